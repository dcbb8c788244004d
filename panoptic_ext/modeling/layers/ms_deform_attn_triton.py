"""Multi-scale deformable attention as Triton kernels: fp32, fp16 or bf16 values, fp32 sums.

The kernels do not support float64 values: `ms_deform_attn` uses another backend for them.

One program works on ROWS (query, head) pairs and all D channels of a head: for each of the L * P
samples it reads four rows of `value`. Nothing of size Lq x L x P x D is written. Backward reads the
rows again and adds to the value gradient with atomics (float32), so that gradient's last bits
depend on the order in which programs run, as with grid_sample's backward on CUDA.

Import this module only where Triton is installed. Under TRITON_INTERPRET=1 (set before the import)
the same kernels run on CPU tensors, slowly: for tests.
"""
# Triton's compiler reads the kernels' signatures; ordinary annotations mean nothing there.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from panoptic_ext.host_copies import to_device

__all__ = ["ms_deform_attn_triton", "runs_interpreted"]

Shapes = tuple[tuple[int, int], ...]


def runs_interpreted() -> bool:
    """Whether the kernels of this module run in Triton's interpreter (decided at its import)."""
    return _INTERPRETED


_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


def ms_deform_attn_triton(
    value: Tensor, spatial_shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """As `ms_deform_attn`; locations and weights in float32, values in float32 or a half type."""
    if torch.compiler.is_compiling():
        sides = [side for shape in spatial_shapes for side in shape]
        return _operator(value, sampling_locations, attention_weights, sides)
    table = _level_table(spatial_shapes, value.device)
    return _MSDeformAttn.apply(value, table, sampling_locations, attention_weights)


@lru_cache(maxsize=64)
def _level_table(shapes: Shapes, device: torch.device) -> Tensor:
    """(L, 3) int32 on `device`: height, width, first position of each level."""
    starts = [sum(h * w for h, w in shapes[:i]) for i in range(len(shapes))]
    rows = [[h, w, start] for (h, w), start in zip(shapes, starts, strict=True)]
    with torch.inference_mode(False):
        return to_device(np.array(rows, dtype=np.int32), device)


class _MSDeformAttn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, table: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        value, locations, weights = (t.contiguous() for t in (value, locations, weights))
        ctx.save_for_backward(value, table, locations, weights)
        return _run_forward(value, table, locations, weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad
        value, table, locations, weights = ctx.saved_tensors
        by_value, by_place, by_weight = _run_backward(
            value, table, locations, weights, grad_out.contiguous(), needs[0]
        )
        return (
            by_value if needs[0] else None,
            None,
            by_place if needs[2] else None,
            by_weight if needs[3] else None,
        )


def _run_forward(value: Tensor, table: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The result for contiguous tensors."""
    batch, _, heads, channels = value.shape
    out = value.new_empty(batch, locations.shape[1], heads * channels)
    if out.numel():
        grid, sizes = _launch(value, locations)
        with torch.cuda.device_of(value):  # Triton launches on the current device
            _forward_kernel[grid](value, table, locations, weights, out, **sizes)
    return out


def _run_backward(
    value: Tensor,
    table: Tensor,
    locations: Tensor,
    weights: Tensor,
    grad_out: Tensor,
    need_value: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of contiguous tensors; that of the values is 0 if it is not needed."""
    by_value = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
    by_place, by_weight = torch.empty_like(locations), torch.empty_like(weights)
    if grad_out.numel():
        grid, sizes = _launch(value, locations)
        with torch.cuda.device_of(value):
            _backward_kernel[grid](
                value,
                table,
                locations,
                weights,
                grad_out,
                by_value,
                by_place,
                by_weight,
                NEED_VALUE=need_value,
                **sizes,
            )
    return by_value.to(value.dtype), by_place, by_weight


# Operators that torch.compile does not look into. It would otherwise end its graph at every
# attention, and copy the table of levels to the device in every call.
def _operator_forward(
    value: Tensor, locations: Tensor, weights: Tensor, sides: Sequence[int]
) -> Tensor:
    table = _level_table(tuple(itertools.pairwise(sides))[::2], value.device)
    return _run_forward(value.contiguous(), table, locations.contiguous(), weights.contiguous())


def _operator_backward(
    value: Tensor, locations: Tensor, weights: Tensor, grad_out: Tensor, sides: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    table = _level_table(tuple(itertools.pairwise(sides))[::2], value.device)
    value, locations, weights, grad_out = (
        t.contiguous() for t in (value, locations, weights, grad_out)
    )
    return _run_backward(value, table, locations, weights, grad_out, True)


_operator = torch.library.custom_op(
    "panoptic_ext::ms_deform_attn",
    _operator_forward,
    mutates_args=(),
    schema="(Tensor value, Tensor locations, Tensor weights, int[] sides) -> Tensor",
)
_gradient_operator = torch.library.custom_op(
    "panoptic_ext::ms_deform_attn_backward",
    _operator_backward,
    mutates_args=(),
    schema=(
        "(Tensor value, Tensor locations, Tensor weights, Tensor grad_out, int[] sides) "
        "-> (Tensor, Tensor, Tensor)"
    ),
)


@_operator.register_fake
def _(value: Tensor, locations: Tensor, weights: Tensor, sides: Sequence[int]) -> Tensor:
    batch, _, heads, channels = value.shape
    return value.new_empty(batch, locations.shape[1], heads * channels)


@_gradient_operator.register_fake
def _(
    value: Tensor, locations: Tensor, weights: Tensor, grad_out: Tensor, sides: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    layout = torch.contiguous_format
    like = (torch.empty_like(t, memory_format=layout) for t in (value, locations, weights))
    return tuple(like)


def _keep_inputs(ctx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.sides = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    return (*_gradient_operator(*ctx.saved_tensors, grad_out, ctx.sides), None)


_operator.register_autograd(_gradients, setup_context=_keep_inputs)


def _launch(value: Tensor, locations: Tensor) -> tuple[tuple[int], dict[str, int]]:
    """Grid and compile-time sizes. Programs hold about 1024 channels, 32 rows at D = 32."""
    batch, positions, heads, channels = value.shape
    _, queries, _, levels, points, _ = locations.shape
    padded = triton.next_power_of_2(channels)
    rows = max(1, min(32, 1024 // padded))
    total = batch * queries * heads
    sizes = {
        "total": total,
        "queries": queries,
        "positions": positions,
        "HEADS": heads,
        "LEVELS": levels,
        "POINTS": points,
        "CHANNELS": channels,
        "PADDED": padded,
        "ROWS": rows,
    }
    return (triton.cdiv(total, rows),), sizes


@triton.jit
def _axis(place, size):
    """Of samples at `place` in [0, 1]: first corner's index and the share of the second corner."""
    # Samples a pixel or more outside read nothing; the clamp keeps their index representable.
    # A location that is NaN lies outside, too, but its share stays NaN and so does the sum.
    known = place == place
    pixel = tl.where(known, place * size - 0.5, -2.0)
    pixel = tl.minimum(tl.maximum(pixel, -2.0), size + 1.0)
    corner = tl.floor(pixel)
    return corner.to(tl.int32), tl.where(known, pixel - corner, place)


@triton.jit
def _corner(value, base, x, y, width, height, row_ok, channel, channel_ok, stride):
    """Where the corner (x, y) of each row lies, which lanes exist, and its values in fp32."""
    inside = row_ok & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    where = (base + (y * width + x) * stride)[:, None] + channel[None, :]
    lanes = inside[:, None] & channel_ok[None, :]
    return where, lanes, tl.load(value + where, mask=lanes, other=0.0).to(tl.float32)


@triton.jit
def _forward_kernel(
    value,
    table,
    locations,
    weights,
    out,
    total,
    queries,
    positions,
    HEADS: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row_ok = row < total
    channel = tl.arange(0, PADDED)
    channel_ok = channel < CHANNELS
    stride = HEADS * CHANNELS
    image = row // (queries * HEADS)
    start = image * positions * stride + (row % HEADS) * CHANNELS
    acc = tl.zeros((ROWS, PADDED), dtype=tl.float32)
    for level in range(LEVELS):
        height = tl.load(table + level * 3)
        width = tl.load(table + level * 3 + 1)
        base = start + tl.load(table + level * 3 + 2) * stride
        for point in range(POINTS):
            sample = (row * LEVELS + level) * POINTS + point
            share = tl.load(weights + sample, mask=row_ok, other=0.0)
            x, right = _axis(tl.load(locations + sample * 2, mask=row_ok, other=0.0), width)
            y, down = _axis(tl.load(locations + sample * 2 + 1, mask=row_ok, other=0.0), height)
            for corner in tl.static_range(4):
                dx = corner % 2
                dy = corner // 2
                _, _, read = _corner(
                    value,
                    base,
                    x + dx,
                    y + dy,
                    width,
                    height,
                    row_ok,
                    channel,
                    channel_ok,
                    stride,
                )
                along_x = right if dx == 1 else 1.0 - right
                along_y = down if dy == 1 else 1.0 - down
                acc += (share * along_x * along_y)[:, None] * read
    lanes = row_ok[:, None] & channel_ok[None, :]
    where = row[:, None] * CHANNELS + channel[None, :]
    tl.store(out + where, acc.to(out.dtype.element_ty), mask=lanes)


@triton.jit
def _backward_kernel(
    value,
    table,
    locations,
    weights,
    grad_out,
    by_value,
    by_place,
    by_weight,
    total,
    queries,
    positions,
    NEED_VALUE: tl.constexpr,
    HEADS: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row_ok = row < total
    channel = tl.arange(0, PADDED)
    channel_ok = channel < CHANNELS
    stride = HEADS * CHANNELS
    image = row // (queries * HEADS)
    start = image * positions * stride + (row % HEADS) * CHANNELS
    lanes = row_ok[:, None] & channel_ok[None, :]
    where_out = row[:, None] * CHANNELS + channel[None, :]
    grad = tl.load(grad_out + where_out, mask=lanes, other=0.0).to(tl.float32)
    for level in range(LEVELS):
        height = tl.load(table + level * 3)
        width = tl.load(table + level * 3 + 1)
        base = start + tl.load(table + level * 3 + 2) * stride
        for point in range(POINTS):
            sample = (row * LEVELS + level) * POINTS + point
            share = tl.load(weights + sample, mask=row_ok, other=0.0)
            x, right = _axis(tl.load(locations + sample * 2, mask=row_ok, other=0.0), width)
            y, down = _axis(tl.load(locations + sample * 2 + 1, mask=row_ok, other=0.0), height)
            to_x = tl.zeros((ROWS,), dtype=tl.float32)
            to_y = tl.zeros((ROWS,), dtype=tl.float32)
            to_share = tl.zeros((ROWS,), dtype=tl.float32)
            for corner in tl.static_range(4):
                dx = corner % 2
                dy = corner // 2
                where, found, read = _corner(
                    value,
                    base,
                    x + dx,
                    y + dy,
                    width,
                    height,
                    row_ok,
                    channel,
                    channel_ok,
                    stride,
                )
                along_x = right if dx == 1 else 1.0 - right
                along_y = down if dy == 1 else 1.0 - down
                dot = tl.sum(read * grad, axis=1)
                to_share += along_x * along_y * dot
                to_x += (along_y * dot) if dx == 1 else (-along_y * dot)
                to_y += (along_x * dot) if dy == 1 else (-along_x * dot)
                if NEED_VALUE:
                    part = (share * along_x * along_y)[:, None] * grad
                    # Nothing reads the sums before the kernel ends. Triton's default would put a
                    # fence and an emptied L1 cache around every addition.
                    tl.atomic_add(by_value + where, part, mask=found, sem="relaxed")
            tl.store(by_weight + sample, to_share, mask=row_ok)
            tl.store(by_place + sample * 2, to_x * share * width, mask=row_ok)
            tl.store(by_place + sample * 2 + 1, to_y * share * height, mask=row_ok)

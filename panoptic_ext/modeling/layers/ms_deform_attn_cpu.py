"""Multi-scale deformable attention on CPU: one weighted gather a head, with its own backward.

A query's output is a weighted sum of 4 * L * P rows of `value` (four corners a sample).
`embedding_bag` computes such sums in one kernel. This module computes the rows and weights, part by
part in buffers that are reused, so that memory does not grow with the queries:

- the left upper corner is clamped to [0, size - 2], so that both corners of an axis always exist;
- a corner's weight on an axis is the hat function max(0, 1 - |distance|), which is the bilinear
  weight inside and 0 for corners more than a pixel away: no mask is needed outside the map.

Backward: rows and weights form a sparse (Lq, S) matrix A with out = A value. The gradient of
`value` is the transposed product, those of locations and weights follow from the products of the
output's gradient with the gathered rows. At the kinks of the hats the right-hand derivative is
taken, as grid_sample does.
"""

from __future__ import annotations

import warnings
from functools import cache, lru_cache
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ms_deform_attn_cpu"]

Shapes = tuple[tuple[int, int], ...]

# Queries of one head that share a gather or a product: at 12 samples a query, buffers of 19 MB in
# forward and 52 MB in backward. Each call synchronises all threads, so that few blocks are better.
_BLOCK = 24576
# Elements of an elementwise operation, just below torch's threshold for multithreading. On a busy
# machine, synchronising the threads of these many small operations costs more than a second core
# gains, and their operands stay in the cache. The few large gathers and products use all threads.
_ELEMENTS = 32766


def ms_deform_attn_cpu(
    value: Tensor, spatial_shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """As `ms_deform_attn`, for tensors of one type (float32 or float64) on CPU."""
    sizes = [int(side) for shape in spatial_shapes for side in shape]
    return _forward_op(value, sampling_locations, attention_weights, sizes)


class _Levels:
    """Constants of the levels' sizes for each of the L * P samples of a query, to broadcast."""

    def __init__(self, shapes: Shapes, points: int, dtype: torch.dtype) -> None:
        def row(values: list, dtype: torch.dtype) -> Tensor:
            per_level = torch.tensor(values, dtype=dtype)
            return per_level.repeat_interleave(points, dim=0).contiguous()

        starts = [sum(h * w for h, w in shapes[:i]) for i in range(len(shapes))]
        self.size = row([[w, h] for h, w in shapes], dtype)  # (L * P, 2), (x, y)
        self.minus_half = torch.full_like(self.size, -0.5)
        self.last_cell = row([[max(w - 2, 0), max(h - 2, 0)] for h, w in shapes], torch.int32)
        self.first_cell = torch.zeros_like(self.last_cell)
        self.start = row(starts, torch.int32)  # (L * P,)
        self.width = row([w for _, w in shapes], torch.int32)
        # Steps to the second corner of an axis: none in a map of one pixel, whose weight is 0.
        self.right = row([int(w > 1) for _, w in shapes], torch.int32)
        self.down = row([w if h > 1 else 0 for h, w in shapes], torch.int32)
        self.diagonal = self.right + self.down
        narrow = any(h == 1 or w == 1 for h, w in shapes)
        self.second = row([[w > 1, h > 1] for h, w in shapes], dtype) if narrow else None


@lru_cache(maxsize=64)
def _levels(shapes: Shapes, points: int, dtype: torch.dtype) -> _Levels:
    with torch.inference_mode(False):
        return _Levels(shapes, points, dtype)


class _Corners:
    """Rows and weights of the four corners of a block of samples, in buffers used again.

    After `compute`, row q of a buffer belongs to query q of the block: `rows` and `weights`
    (_, L * P, 4), in the order (x0, y0), (x1, y0), (x0, y1), (x1, y1); `near` and `far`
    (_, L * P, 2), the hats of the first and second corner along x and y; `offset`, as large, the
    distance from the second corner in pixels.
    """

    def __init__(self, levels: _Levels, queries: int, *, keep_hats: bool) -> None:
        dtype, samples = levels.size.dtype, levels.size.shape[0]
        self.levels = levels
        self.step = max(1, _ELEMENTS // (2 * samples))
        length = min(queries, _BLOCK)
        hats = length if keep_hats else min(length, self.step)
        self.keep_hats = keep_hats
        self.near, self.far, self.offset = torch.empty(3, hats, samples, 2, dtype=dtype)
        self.rows = torch.empty(length, samples, 4, dtype=torch.int32)
        self.weights = torch.empty(length, samples, 4, dtype=dtype)
        self.zeros = torch.zeros(self.weights.numel() if keep_hats else 0, dtype=dtype)
        self.bags = torch.arange(length + 1, dtype=torch.int32) * (4 * samples)
        self._cell = torch.empty(self.step, samples, 2, dtype=torch.int32)
        self._base = torch.empty(self.step, samples, dtype=torch.int32)
        self._share = torch.empty(self.step, samples, dtype=dtype)

    def compute(self, locations: Tensor, attention: Tensor) -> None:
        """Fill the buffers from (n, L * P, 2) locations and (n, L * P) weights of a block."""
        for part in _spans(0, locations.shape[0], self.step):
            hats = part if self.keep_hats else slice(0, part.stop - part.start)
            near, far = self.near[hats], self.far[hats]
            cell = self._cell[: near.shape[0]]
            self._hats(locations[part], cell, self.offset[hats], near, far)
            self._weights(attention[part], near, far, self.weights[part])
            self._rows(cell, self.rows[part])

    def _weights(self, attention: Tensor, near: Tensor, far: Tensor, out: Tensor) -> None:
        share = self._share[: near.shape[0]]
        for upper, hat_y in ((0, near[..., 1]), (2, far[..., 1])):
            torch.mul(attention, hat_y, out=share)
            torch.mul(share, near[..., 0], out=out[..., upper])
            torch.mul(share, far[..., 0], out=out[..., upper + 1])

    def _hats(
        self, locations: Tensor, cell: Tensor, offset: Tensor, near: Tensor, far: Tensor
    ) -> None:
        levels = self.levels
        torch.addcmul(levels.minus_half, locations, levels.size, out=offset)
        # Truncation differs from floor only below 0, where the clamp moves both to the first cell.
        cell.copy_(offset)
        torch.maximum(cell, levels.first_cell, out=cell)
        torch.minimum(cell, levels.last_cell, out=cell)
        offset.sub_(cell)
        torch.abs(offset, out=near).neg_().add_(1).clamp_(min=0)
        offset.sub_(1)
        torch.abs(offset, out=far).neg_().add_(1).clamp_(min=0)
        if levels.second is not None:
            far.mul_(levels.second)

    def _rows(self, cell: Tensor, out: Tensor) -> None:
        levels, base = self.levels, self._base[: cell.shape[0]]
        torch.addcmul(levels.start, cell[..., 1], levels.width, out=base).add_(cell[..., 0])
        out[..., 0] = base
        torch.add(base, levels.right, out=out[..., 1])
        torch.add(base, levels.down, out=out[..., 2])
        torch.add(base, levels.diagonal, out=out[..., 3])

    def slopes(self, part: slice) -> tuple[Tensor, Tensor]:
        """Right-hand derivatives (n, L * P, 2) of `near` and `far`: -1, 0 or 1."""
        offset = self.offset[part]
        # Not floor(): it starts threads for far smaller tensors than these operations do.
        from_2, from_1, from_0, from_end = (
            torch.ge(offset, edge, out=torch.empty_like(offset)) for edge in (-2, -1, 0, 1)
        )
        between = from_1 - from_0
        near = from_2.sub_(from_1).sub_(between)
        far = between.sub_(from_0.sub_(from_end))
        if self.levels.second is not None:
            far.mul_(self.levels.second)
        return near, far


# Schemas are written out: torch 2.4 does not read them from annotations that are text.
@torch.library.custom_op(
    "panoptic_ext::ms_deform_attn_cpu",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor value, Tensor locations, Tensor attention, SymInt[] sizes) -> Tensor",
)
def _forward_op(value: Tensor, locations: Tensor, attention: Tensor, sizes: list[int]) -> Tensor:
    batch, _, heads, channels = value.shape
    queries, samples = attention.shape[1], attention.shape[3] * attention.shape[4]
    shapes = tuple(zip(sizes[0::2], sizes[1::2], strict=True))
    levels = _levels(shapes, attention.shape[4], value.dtype)
    out = value.new_empty(batch, queries, heads, channels)
    corners = _Corners(levels, queries, keep_hats=False)
    locations = locations.reshape(batch, queries, heads, samples, 2)
    attention = attention.reshape(batch, queries, heads, samples)
    for image, head in product(range(batch), range(heads)):
        table = value[image, :, head].contiguous()
        for block in _spans(0, queries, _BLOCK):
            count = block.stop - block.start
            corners.compute(locations[image, block, head], attention[image, block, head])
            out[image, block, head] = F.embedding_bag(
                corners.rows[:count].view(-1),
                table,
                corners.bags[: count + 1],
                mode="sum",
                per_sample_weights=corners.weights[:count].view(-1),
                include_last_offset=True,
            )
    return out.view(batch, queries, heads * channels)


@_forward_op.register_fake
def _(value: Tensor, locations: Tensor, attention: Tensor, sizes: list[int]) -> Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@torch.library.custom_op(
    "panoptic_ext::ms_deform_attn_cpu_backward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor grad_out, Tensor value, Tensor locations, Tensor attention, SymInt[] sizes, "
    "bool need_value, bool need_samples) -> (Tensor, Tensor, Tensor)",
)
def _backward_op(
    grad_out: Tensor,
    value: Tensor,
    locations: Tensor,
    attention: Tensor,
    sizes: list[int],
    need_value: bool,
    need_samples: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, heads, channels = value.shape
    queries, samples = attention.shape[1], attention.shape[3] * attention.shape[4]
    shapes = tuple(zip(sizes[0::2], sizes[1::2], strict=True))
    levels = _levels(shapes, attention.shape[4], value.dtype)
    grad_value, grad_locations, grad_attention = _gradient_buffers(
        value, locations, attention, need_value, need_samples
    )
    flat = (batch, queries, heads, samples)
    locations, attention = locations.reshape(*flat, 2), attention.reshape(flat)
    grad_out = grad_out.reshape(batch, queries, heads, channels)
    corners = _Corners(levels, queries, keep_hats=need_samples)
    for image, head in product(range(batch), range(heads)):
        table = value[image, :, head].contiguous()
        for block in _spans(0, queries, _BLOCK):
            grad = grad_out[image, block, head].contiguous()
            share = attention[image, block, head]
            corners.compute(locations[image, block, head], share)
            if need_samples:
                _write_sample_gradients(
                    corners,
                    _row_products(corners, grad, table),
                    share,
                    grad_locations.view(*flat, 2)[image, block, head],
                    grad_attention.view(flat)[image, block, head],
                )
            if need_value:
                grad_value[image, :, head] += _transposed_product(corners, grad, table)
    return grad_value, grad_locations, grad_attention


@_backward_op.register_fake
def _(
    _grad_out: Tensor, value: Tensor, locations: Tensor, attention: Tensor, _sizes, *needs: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradient_buffers(value, locations, attention, *needs)


def _gradient_buffers(
    value: Tensor, locations: Tensor, attention: Tensor, need_value: bool, need_samples: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Contiguous buffers for the gradients asked for; the others are empty."""
    return (
        value.new_zeros(value.shape if need_value else 0),
        value.new_empty(locations.shape if need_samples else 0),
        value.new_empty(attention.shape if need_samples else 0),
    )


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    value, locations, attention, ctx.sizes = inputs
    ctx.save_for_backward(value, locations, attention)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    value, locations, attention = ctx.saved_tensors
    for_value, for_places, for_weights = ctx.needs_input_grad[:3]
    by_value, by_place, by_weight = _backward_op(
        grad_out, value, locations, attention, ctx.sizes, for_value, for_places or for_weights
    )
    return (
        by_value if for_value else None,
        by_place if for_places else None,
        by_weight if for_weights else None,
        None,
    )


_forward_op.register_autograd(_backward, setup_context=_setup_context)


def _spans(start: int, stop: int, length: int) -> list[slice]:
    return [slice(i, min(i + length, stop)) for i in range(start, stop, length)]


def _write_sample_gradients(
    corners: _Corners, dots: Tensor, share: Tensor, by_place: Tensor, by_weight: Tensor
) -> None:
    """Gradients of a block's locations and weights from its corners' dot products.

    Args:
        corners: as left by `compute` for these n queries.
        dots: (n, L * P, 4) products of the output's gradient with the corners' rows.
        share: (n, L * P) attention weights.
        by_place: (n, L * P, 2), written.
        by_weight: (n, L * P), written.
    """
    for part in _spans(0, dots.shape[0], corners.step):
        near, far = corners.near[part], corners.far[part]
        near_slope, far_slope = corners.slopes(part)
        left_up, right_up, left_down, right_down = dots[part].unbind(-1)
        up = near[..., 0] * left_up + far[..., 0] * right_up
        down = near[..., 0] * left_down + far[..., 0] * right_down
        left = near[..., 1] * left_up + far[..., 1] * left_down
        right = near[..., 1] * right_up + far[..., 1] * right_down
        by_weight[part] = near[..., 1] * up + far[..., 1] * down
        place = near_slope.mul_(torch.stack((left, up), dim=-1))
        place.addcmul_(far_slope, torch.stack((right, down), dim=-1))
        place.mul_(corners.levels.size)
        torch.mul(place, share[part].unsqueeze(-1), out=by_place[part])


def _row_products(corners: _Corners, grad: Tensor, table: Tensor) -> Tensor:
    """Products (n, L * P, 4) of each query's gradient (n, D) with the rows that it read."""
    rows = corners.rows[: grad.shape[0]]
    if rows[0].numel() > table.shape[0]:
        # More reads than positions: sampled_addmm refuses such a pattern, and the map is tiny.
        return torch.einsum("npcd,nd->npc", table[rows], grad)
    _silence_beta_notice()
    pattern = torch.sparse_csr_tensor(
        corners.bags[: rows.shape[0] + 1],
        rows.view(-1),
        corners.zeros[: rows.numel()],
        size=(rows.shape[0], table.shape[0]),
        check_invariants=False,
    )
    products = torch.sparse.sampled_addmm(pattern, grad, table.t(), beta=0.0)
    return products.values().view(rows.shape)


@cache
def _silence_beta_notice() -> None:
    """Trigger torch's warning that CSR tensors are in beta, which comes once, and suppress it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], size=(1, 1), check_invariants=False)


@cache
def _scipy_sparse() -> Any:
    """scipy.sparse, imported on first use; None where it is missing (index_add_ is slower)."""
    try:
        from scipy import sparse
    except ImportError:
        return None
    return sparse


def _transposed_product(corners: _Corners, grad: Tensor, table: Tensor) -> Tensor:
    """Gradient (S, D) of one head's values from all corners kept for the queries of `grad`."""
    count = grad.shape[0]
    rows, weights = corners.rows[:count].view(-1), corners.weights[:count].view(-1)
    sparse = _scipy_sparse()
    if sparse is None:
        return _scattered_sum(rows, weights, grad, table)
    matrix = sparse.csr_matrix(
        (weights.numpy(), rows.numpy(), corners.bags[: count + 1].numpy()),
        shape=(count, table.shape[0]),
        copy=False,
    )
    return torch.from_numpy(np.ascontiguousarray(matrix.T @ grad.numpy()))


def _scattered_sum(rows: Tensor, weights: Tensor, grad: Tensor, table: Tensor) -> Tensor:
    out, per_query = torch.zeros_like(table), rows.numel() // max(grad.shape[0], 1)
    for part in _spans(0, grad.shape[0], 256):
        at = slice(part.start * per_query, part.stop * per_query)
        spread = weights[at].view(-1, per_query, 1) * grad[part].unsqueeze(1)
        out.index_add_(0, rows[at], spread.flatten(0, 1))
    return out

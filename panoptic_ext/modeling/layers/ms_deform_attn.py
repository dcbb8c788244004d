"""Multi-scale deformable attention (Zhu et al., ICLR 2021, eq. 2) behind one function.

Shape legend of this package: B batch, Lq queries, S positions of all levels together, M heads,
D channels of a head, L levels, P sampling points a level.

Example: one head, one level of 1 x 2 values [a, b]. Pixel centres lie at 0.25 and 0.75, so a
sample at x = 0.5 gives (a + b) / 2, one at x = 0.25 gives a, and one at x = 0 gives a / 2, since
the map is zero outside.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from panoptic_ext.errors import ConfigError, check_known

__all__ = ["MS_DEFORM_ATTN_BACKENDS", "ms_deform_attn", "ms_deform_attn_reference"]

logger = logging.getLogger(__name__)

MS_DEFORM_ATTN_BACKENDS = ("auto", "reference", "cpu", "triton")


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """Weighted sum of bilinear samples of several maps; zero outside the maps.

    Args:
        value: (B, S, M, D) float; the levels one after the other, each in row-major order.
        spatial_shapes: (height, width) of each of the L levels, as Python integers.
        sampling_locations: (B, Lq, M, L, P, 2) float, (x, y) in [0, 1] from the left upper to the
            right lower border of the level; anything outside is allowed.
        attention_weights: (B, Lq, M, L, P) float.
        backend: "auto" (chosen by device and type), "reference" (grid_sample), "cpu" (one gather,
            with its own backward) or "triton" (CUDA kernels with float32 sums). Where "triton"
            cannot run, and for float64 values, another backend is used and one line is logged.

    Returns:
        (B, Lq, M * D) in the type of `value`. Half types are accumulated in float32. A location
        that is NaN makes its query's head NaN.

    Raises:
        ConfigError: unknown backend, or "cpu" for tensors elsewhere.
        ValueError: shapes that do not fit each other.
    """
    shapes = tuple((int(h), int(w)) for h, w in spatial_shapes)
    _check_shapes(value, shapes, sampling_locations, attention_weights)
    chosen = _choose_backend(backend, value.device, value.dtype)
    compute = torch.float32 if value.dtype in (torch.float16, torch.bfloat16) else value.dtype
    with torch.autocast(value.device.type, enabled=False):
        locations = sampling_locations.to(compute)
        weights = attention_weights.to(compute)
        if chosen == "triton":
            from panoptic_ext.modeling.layers.ms_deform_attn_triton import ms_deform_attn_triton

            return ms_deform_attn_triton(value, shapes, locations, weights)
        if chosen == "cpu":
            from panoptic_ext.modeling.layers.ms_deform_attn_cpu import ms_deform_attn_cpu

            return ms_deform_attn_cpu(value.to(compute), shapes, locations, weights).to(value.dtype)
        out = ms_deform_attn_reference(value.to(compute), shapes, locations, weights)
        return out.to(value.dtype)


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """The definition, level by level with grid_sample.

    Arguments are those of `ms_deform_attn`, all of one type.
    """
    batch, _, heads, channels = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    per_level = value.split([h * w for h, w in spatial_shapes], dim=1)
    out = value.new_zeros(batch * heads, channels, queries)
    for level, (height, width) in enumerate(spatial_shapes):
        # (B, H * W, M, D) -> (B * M, D, H, W)
        maps = per_level[level].permute(0, 2, 3, 1).reshape(-1, channels, height, width)
        grid = (2 * sampling_locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        weight = attention_weights[:, :, :, level].transpose(1, 2).reshape(-1, 1, queries, points)
        sampled = F.grid_sample(maps, grid, padding_mode="zeros", align_corners=False)
        out = out + (sampled * weight).sum(-1)
    return out.view(batch, heads * channels, queries).transpose(1, 2).contiguous()


def _check_shapes(
    value: Tensor, shapes: tuple[tuple[int, int], ...], locations: Tensor, weights: Tensor
) -> None:
    if value.dim() != 4 or locations.dim() != 6 or locations.shape[-1] != 2:
        raise ValueError(
            "ms_deform_attn needs value (B, S, M, D) and sampling_locations (B, Lq, M, L, P, 2), "
            f"got {tuple(value.shape)} and {tuple(locations.shape)}"
        )
    batch, positions, heads, _ = value.shape
    total = sum(h * w for h, w in shapes)
    if total != positions or any(h < 1 or w < 1 for h, w in shapes):
        raise ValueError(
            f"spatial_shapes {shapes} have {total} positions, value has {positions}; each level "
            "needs at least one pixel and together they must fill value"
        )
    if (locations.shape[0], locations.shape[2], locations.shape[3]) != (batch, heads, len(shapes)):
        raise ValueError(
            f"sampling_locations {tuple(locations.shape)} do not fit batch {batch}, {heads} heads "
            f"and {len(shapes)} levels"
        )
    if weights.shape != locations.shape[:-1]:
        raise ValueError(
            f"attention_weights {tuple(weights.shape)} must be {tuple(locations.shape[:-1])}"
        )


# torch.compile takes the answer as it is, and does not look for Triton in its graph.
@torch.compiler.assume_constant_result
def _choose_backend(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    check_known("ms_deform_attn backend", backend, MS_DEFORM_ATTN_BACKENDS)
    on_cpu = device.type == "cpu"
    if backend == "cpu" and not on_cpu:
        raise ConfigError(
            f"ms_deform_attn backend 'cpu' got tensors on {device}; use 'auto', 'triton' or "
            "'reference' there"
        )
    if backend in ("reference", "cpu"):
        return backend
    fallback = "cpu" if on_cpu else "reference"
    if backend == "auto" and (device.type != "cuda" or dtype == torch.float64):
        return fallback
    reason = _why_no_triton(device.type, dtype)
    if reason is None:
        return "triton"
    _log_fallback(reason, fallback)
    return fallback


def _why_no_triton(device_type: str, dtype: torch.dtype) -> str | None:
    """The reason why the kernels cannot run; None on CUDA, or under Triton's interpreter."""
    if dtype == torch.float64:
        return "Triton kernels compute in float32, values are float64"
    if not _triton_installed():
        return f"there is no Triton {_LEAST_TRITON} or newer (pip install triton)"
    from panoptic_ext.modeling.layers.ms_deform_attn_triton import runs_interpreted

    if device_type == "cuda" or runs_interpreted():
        return None
    return f"Triton kernels need a CUDA device, tensors are on {device_type!r}"


# Triton 3.2 comes with torch 2.6. Triton 3.0, of torch 2.4, cannot run the kernels, not even in its
# interpreter.
_LEAST_TRITON = "3.2"


@cache
def _triton_installed() -> bool:
    """Whether there is a Triton that the kernels are written for; torch's version decides."""
    return importlib.util.find_spec("triton") is not None and torch.__version__ >= (2, 6)


@cache
def _log_fallback(reason: str, fallback: str) -> None:
    logger.warning("ms_deform_attn uses its %s backend: %s.", fallback, reason)

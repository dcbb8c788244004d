"""Bilinear sampling of masks at points.

Shapes: M or Q masks of h x w pixels, P points. Points are (x, y) in [0, 1] of the padded input, so
that they fit maps of every size. Pixel centres are at half integers and there are zeros outside,
which is `grid_sample` with `align_corners=False, padding_mode="zeros"`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["interpolate_equality", "pixel_corners", "sample_at_common_points", "sample_masks"]


def pixel_corners(points: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Find the four pixels around each point and their bilinear weights.

    Args:
        points: (..., 2) float.
        height, width: size of the map, pixels.

    Returns:
        Flat pixel indices (4, ...) int64, always inside the map, and weights (4, ...) of the
        points' dtype, 0 for a pixel outside the map.
    """
    x = points[..., 0] * width - 0.5
    y = points[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    right_share, bottom_share = x - left, y - top
    columns = torch.stack((left, left + 1, left, left + 1))
    rows = torch.stack((top, top, top + 1, top + 1))
    column_shares = torch.stack((1 - right_share, right_share, 1 - right_share, right_share))
    row_shares = torch.stack((1 - bottom_share, 1 - bottom_share, bottom_share, bottom_share))
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    # A pixel outside the map has no value: its index is clamped, and its weight is 0.
    weights = column_shares * row_shares * inside
    indices = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    # float32 holds integers exactly up to 2**24. Flat indices of larger maps need int64.
    if height * width >= 2**24:
        indices = rows.clamp(0, height - 1).long() * width + columns.clamp(0, width - 1).long()
    return indices.long(), weights


def sample_masks(masks: Tensor, points: Tensor) -> Tensor:
    """Sample each mask at points of its own; differentiable in the masks.

    Args:
        masks: (M, h, w) float.
        points: (M, P, 2).

    Returns:
        (M, P) of the masks' dtype.
    """
    # grid_sample refuses an empty batch. The sum keeps the masks in the graph, so that a batch
    # without targets has a gradient (of 0) as well.
    if len(masks) == 0:
        return masks.flatten(1).sum(1, keepdim=True).expand(0, points.shape[1])
    grid = (2 * points - 1).to(masks.dtype)[:, :, None]
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0, :, 0]


def sample_at_common_points(masks: Tensor, points: Tensor) -> Tensor:
    """Sample all masks at the same points, without gradient.

    Args:
        masks: (Q, h, w) float32.
        points: (P, 2) float32.

    Returns:
        (Q, P) float32.
    """
    masks = masks.detach()
    if masks.is_cuda:
        return F.grid_sample(masks[None], 2 * points[None, :, None] - 1, align_corners=False)[
            0, :, :, 0
        ]
    # On a CPU grid_sample processes the masks one by one. Here the masks are the columns of a table
    # with a row for each pixel, so that the four corners of a point are four contiguous reads of Q
    # values.
    indices, weights = pixel_corners(points, *masks.shape[-2:])
    table = masks.flatten(1).t().contiguous()
    bags = F.embedding_bag(
        indices.t().contiguous(), table, per_sample_weights=weights.t().contiguous(), mode="sum"
    )
    return bags.t()


def interpolate_equality(
    bordered: Tensor, points: Tensor, wanted: Tensor | int, planes: Tensor | None = None
) -> Tensor:
    """Sample the mask `bordered == wanted` bilinearly, each row at points of its own.

    Args:
        bordered: (H + 2, W + 2) or (N, H + 2, W + 2), with a border of void: the corners of every
            point in [0, 1] lie inside, so that none needs a check.
        points: (M, P, 2) float.
        wanted: (M, 1) values, or one for all.
        planes: (M,) int64, the plane that each row is read from; None: there is only one.

    Returns:
        (M, P) of the points' dtype, 0 to 1.
    """
    height, width = bordered.shape[-2:]
    # Pixel centres are at half integers (-0.5), and the border moves every pixel by one (+1).
    x = points[..., 0] * (width - 2) + 0.5
    y = points[..., 1] * (height - 2) + 0.5
    left, top = x.floor(), y.floor()
    # int32 suffices for an index in one plane, and takes less memory traffic. The index in a stack
    # of planes may be larger.
    upper_left = top.int() * width + left.int()
    if planes is not None:
        upper_left = upper_left.long() + (planes * (height * width))[:, None]
    flat = bordered.reshape(-1)

    def corner(offset: int) -> Tensor:
        # Compare first, interpolate then: the mean of two ids would be the id of a third target.
        values = flat.index_select(0, (upper_left + offset).view(-1)).view(upper_left.shape)
        return torch.eq(values, wanted).to(points.dtype)

    right_share, bottom_share = x - left, y - top
    upper = corner(0).lerp(corner(1), right_share)
    lower = corner(width).lerp(corner(width + 1), right_share)
    return upper.lerp(lower, bottom_share)

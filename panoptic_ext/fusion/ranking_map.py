"""How instances rank among those they overlap, read from a map of the image.

Source: Liu et al., "An End-to-End Network for Panoptic Segmentation" (OANet), CVPR 2019, section
3.3: masks go into one channel per class, a network gives a map of probabilities, and an instance
ranks by the mean of its class's channel over its mask.

Shapes: N instances, T thing classes, m x m mask logits in a box, H x W pixels of the image, h x w
cells of the reduced map that covers it. A thing index is a class's place among the things, 0..T-1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panoptic_ext.postprocessing.tiled_resize import Size

__all__ = [
    "class_channels",
    "reduced_labels",
    "reduced_masks",
    "reduced_size",
    "spatial_ranking_scores",
]


def reduced_size(image_size: Size, longest: int) -> Size:
    """(h, w) of the map whose longer side has `longest` cells, nearly square ones.

    It follows the image, not its resolution: a network sees an object at one size, whether the
    image was resized for training or is at its original resolution.
    """
    scale = longest / max(image_size)
    return max(1, round(image_size[0] * scale)), max(1, round(image_size[1] * scale))


@torch.no_grad()
def reduced_masks(boxes: Tensor, mask_logits: Tensor, *, image_size: Size, size: Size) -> Tensor:
    """Masks on the reduced map: the cells whose centre lies in the box at a logit above 0.

    Args:
        boxes: (N, 4) x1, y1, x2, y2 in pixels of the image; may reach beyond it.
        mask_logits: (N, m, m) in the box, any floating type.
        image_size: (H, W).
        size: (h, w).

    Returns:
        (N, h, w) bool. A mask that has no cell, being small, has the one at its box's centre;
        it is empty only if no logit is above 0, or its box is empty or outside the image.
    """
    with torch.autocast(boxes.device.type, enabled=False):
        corners, logits = boxes.float(), mask_logits.float()
        rows, in_rows = _weights(
            corners[:, 1], corners[:, 3], logits.shape[1], image_size[0], size[0]
        )
        columns, in_columns = _weights(
            corners[:, 0], corners[:, 2], logits.shape[2], image_size[1], size[1]
        )
        # Bilinear resizing of N masks of different boxes as two batched products, without a loop.
        resized = rows @ logits @ columns.transpose(1, 2)
    masks = (resized > 0) & in_rows[:, :, None] & in_columns[:, None]
    # An instance smaller than a cell would leave no trace on the map, and be ranked by nothing.
    small = ~masks.flatten(1).any(1) & (logits > 0).flatten(1).any(1)
    x, in_x = _centre_cell(corners[:, 0], corners[:, 2], image_size[1], size[1])
    y, in_y = _centre_cell(corners[:, 1], corners[:, 3], image_size[0], size[0])
    which = (small & in_x & in_y).nonzero()[:, 0]
    masks[which, y[which], x[which]] = True
    return masks


def _weights(
    low: Tensor, high: Tensor, cells: int, pixels: int, length: int
) -> tuple[Tensor, Tensor]:
    """(N, length, cells) bilinear weights of mask cells; (N, length): which places are inside."""
    places = torch.arange(length, device=low.device, dtype=torch.float32)
    centres = (places + 0.5) * (pixels / length)
    inside = (centres >= low[:, None]) & (centres < high[:, None])
    extent = (high - low).clamp(min=torch.finfo(torch.float32).tiny)
    at = (centres - low[:, None]) * (cells / extent)[:, None] - 0.5
    at = torch.where(inside, at, 0.0).clamp(0, cells - 1)
    distance = at[..., None] - torch.arange(cells, device=low.device, dtype=torch.float32)
    return (1 - distance.abs()).clamp(min=0), inside


def _centre_cell(low: Tensor, high: Tensor, pixels: int, length: int) -> tuple[Tensor, Tensor]:
    """(N,) int64 map cell of the box's centre, and whether there is one."""
    centre = (low + high) / 2
    known = (high > low) & (centre >= 0) & (centre < pixels)
    cell = torch.where(known, centre, 0.0) * (length / pixels)
    return cell.long().clamp(max=length - 1), known


def class_channels(masks: Tensor, classes: Tensor, num_things: int) -> Tensor:
    """The network's input: 1 in a class's channel where one of its instances is, else 0.

    Args:
        masks: (N, h, w) bool.
        classes: (N,) int64 thing indices.
        num_things: T.

    Returns:
        (T, h, w) float32.
    """
    # A sum clamped to 1 is the union of the masks of each class; counts are exact in float32.
    counts = torch.zeros((num_things, *masks.shape[1:]), device=masks.device)
    return counts.index_add_(0, classes, masks.float()).clamp_(max=1)


def spatial_ranking_scores(ranking_map: Tensor, masks: Tensor, classes: Tensor) -> Tensor:
    """The mean over each instance's mask of its class's channel.

    Args:
        ranking_map: (T, h, w) probabilities of the classes.
        masks: (N, h, w) bool, from `reduced_masks`.
        classes: (N,) int64 thing indices.

    Returns:
        (N,) float64 in 0..1; 0 for an empty mask.
    """
    # Float64, because float32 sums over masks of different sizes would rank equal maps unequally.
    flat = masks.flatten(1).double()
    sums = (flat @ ranking_map.flatten(1).double().t()).gather(1, classes[:, None])[:, 0]
    return sums / flat.sum(1).clamp(min=1)


def reduced_labels(labels: Tensor, size: Size) -> Tensor:
    """(h, w) labels at the cells' centres of an (H, W) map."""
    rows, columns = (
        ((torch.arange(n, device=labels.device) + 0.5) * (pixels / n)).long()
        for n, pixels in zip(size, labels.shape, strict=True)
    )
    return labels[rows][:, columns]

"""The ranks of overlapping instances, read from a reduced map of the image.

Source: Liu et al., "An End-to-End Network for Panoptic Segmentation" (OANet), CVPR 2019, section
3.3. The masks are drawn into one channel per class. A network turns the channels into a map of
class probabilities. The rank of an instance is the mean of its class's channel over its mask.

Shapes: N instances, T thing classes, m x m mask logits in a box, H x W pixels of the image, h x w
cells of the reduced map that covers it. A thing index is a class's index among the things, 0..T-1.
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
    """Return (h, w) of the map: `longest` cells on the longer side, cells as square as possible."""
    # The size depends on the aspect ratio only, not on the resolution. The network then sees an
    # object at one size, whether the image was resized for training or has its original size.
    scale = longest / max(image_size)
    return max(1, round(image_size[0] * scale)), max(1, round(image_size[1] * scale))


@torch.no_grad()
def reduced_masks(boxes: Tensor, mask_logits: Tensor, *, image_size: Size, size: Size) -> Tensor:
    """Draw masks on the reduced map: cells whose centre is in the box and has a logit above 0.

    Args:
        boxes: (N, 4) x1, y1, x2, y2 in pixels of the image; may reach beyond it.
        mask_logits: (N, m, m) in the box, any floating type.
        image_size: (H, W).
        size: (h, w).

    Returns:
        (N, h, w) bool. A mask that is too small to contain a cell's centre gets the cell at its
        box's centre. A mask is empty only if no logit is above 0, its box is empty, or the centre
        of its box is outside the image.
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
    # An instance smaller than a cell may contain no cell's centre, and could not be ranked then.
    small = ~masks.flatten(1).any(1) & (logits > 0).flatten(1).any(1)
    x, in_x = _centre_cell(corners[:, 0], corners[:, 2], image_size[1], size[1])
    y, in_y = _centre_cell(corners[:, 1], corners[:, 3], image_size[0], size[0])
    rows = torch.arange(len(masks), device=masks.device)
    masks[rows, y, x] |= small & in_x & in_y
    return masks


def _weights(
    low: Tensor, high: Tensor, cells: int, pixels: int, length: int
) -> tuple[Tensor, Tensor]:
    """Resizing of masks along one axis, from their boxes to the map.

    Args:
        low, high: (N,) edges of the boxes in pixels of the image.
        cells: m.
        pixels: of the image.
        length: cells of the map.

    Returns:
        (N, length, cells) bilinear weights of mask cells; (N, length) bool, whether the centre of a
        map cell is in the box.
    """
    map_cells = torch.arange(length, device=low.device, dtype=torch.float32)
    centres = (map_cells + 0.5) * (pixels / length)
    inside = (centres >= low[:, None]) & (centres < high[:, None])
    extent = (high - low).clamp(min=torch.finfo(torch.float32).tiny)
    position = (centres - low[:, None]) * (cells / extent)[:, None] - 0.5
    # The clamp keeps the logits constant from the outermost cells' centres to the box's edge.
    position = torch.where(inside, position, 0.0).clamp(0, cells - 1)
    distance = position[..., None] - torch.arange(cells, device=low.device, dtype=torch.float32)
    return (1 - distance.abs()).clamp(min=0), inside


def _centre_cell(low: Tensor, high: Tensor, pixels: int, length: int) -> tuple[Tensor, Tensor]:
    """(N,) int64 map cell at the box's centre, and (N,) bool, whether that is in the image."""
    centre = (low + high) / 2
    in_image = (high > low) & (centre >= 0) & (centre < pixels)
    cell = torch.where(in_image, centre, 0.0) * (length / pixels)
    return cell.long().clamp(max=length - 1), in_image


def class_channels(masks: Tensor, classes: Tensor, num_things: int) -> Tensor:
    """Draw the network's input: 1 in a class's channel where a mask of that class is, else 0.

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
    """Compute the mean of each instance's class channel over its mask.

    Args:
        ranking_map: (T, h, w) probabilities of the classes.
        masks: (N, h, w) bool, from `reduced_masks`.
        classes: (N,) int64 thing indices.

    Returns:
        (N,) float64 in 0..1; 0 for an empty mask.
    """
    # In float64, because rounding of float32 sums depends on the mask's size: instances would get
    # different ranks from a constant map.
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

"""Semantic labels and instance masks of any two models merged by the naive rule.

Shapes: K classes, N instances, H x W pixels of the image, h x w pixels of one mask's window.
Source: Kirillov et al., "Panoptic Segmentation", CVPR 2019, section 7 ("combining").
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["MaskWindow", "naive_fusion"]

MaskWindow = tuple[Tensor, int, int]
"""An instance's (h, w) bool mask and the row and column of the image where it begins."""


def naive_fusion(
    labels: Tensor,
    *,
    scores: Sequence[float],
    classes: Sequence[int],
    mask_of: Callable[[int], MaskWindow],
    thing_ids: Collection[int],
    num_classes: int,
    score_threshold: float = 0.5,
    overlap_threshold: float = 0.5,
    stuff_area_threshold: int = 4096,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Instances by descending score, then stuff where they left pixels free.

    An instance is dropped if its score is under the threshold, if the share of its mask that better
    instances cover is above the overlap threshold, or if no pixel is left for it. Pixels whose
    label is a thing, and stuff of a small area, become void. One mask is held at a time: memory is
    O(H W) for any N.

    Args:
        labels: (H, W) integers, the unified class of each pixel; others than 0..K-1 are void.
        scores: (N,) of the instances; equal ones keep their order.
        classes: (N,) unified ids of their classes.
        mask_of: gives the mask of instance i, asked for in order of score; for masks of the whole
            image `lambda i: (masks[i], 0, 0)`.
        thing_ids: unified ids of the thing classes.
        num_classes: K.
        score_threshold: in [0, 1]; an instance of just this score stays.
        overlap_threshold: in [0, 1]; an instance of just this share stays.
        stuff_area_threshold: pixels; stuff of just this area stays.

    Returns:
        (H, W) int32 map, 0 for void and ids from 1, on the device of `labels`; its segments, each
        with `id`, `isthing`, `category_id` (unified), `area` (pixels) and, if a thing, `score` and
        `instance_id` (0..N-1).
    """
    panoptic_seg = torch.zeros(labels.shape, dtype=torch.int32, device=labels.device)
    segments: list[dict[str, Any]] = []
    for index in sorted(range(len(scores)), key=lambda i: -float(scores[i])):
        if scores[index] < score_threshold:
            break
        area = _place(panoptic_seg, mask_of(index), len(segments) + 1, overlap_threshold)
        if area:
            segments.append(
                {
                    "id": len(segments) + 1,
                    "isthing": True,
                    "category_id": int(classes[index]),
                    "score": float(scores[index]),
                    "instance_id": index,
                    "area": area,
                }
            )
    stuff = [c for c in range(num_classes) if c not in set(thing_ids)]
    segments += _fill(panoptic_seg, labels, stuff, num_classes, stuff_area_threshold)
    return panoptic_seg, segments


def _place(canvas: Tensor, window: MaskWindow, segment_id: int, overlap_threshold: float) -> int:
    """Write an instance to the free pixels of `canvas`, in place; how many, 0 if it is dropped."""
    mask, top, left = window
    part = canvas[top : top + mask.shape[0], left : left + mask.shape[1]]
    area = int(mask.sum())
    free = mask & (part == 0)
    placed = int(free.sum())
    if placed == 0 or (area - placed) / area > overlap_threshold:
        return 0
    part.masked_fill_(free, segment_id)
    return placed


def _fill(
    canvas: Tensor, labels: Tensor, stuff: Sequence[int], num_classes: int, least_area: int
) -> list[dict[str, Any]]:
    """Write large enough stuff to the free pixels of `canvas`, in place; gives its segments."""
    free = canvas == 0
    known = labels.long().clamp(-1, num_classes) + 1  # 0 and K + 1 are void
    areas = torch.bincount(known[free], minlength=num_classes + 2).tolist()
    first = int(canvas.max()) + 1 if canvas.numel() else 1
    kept = [c for c in stuff if areas[c + 1] >= max(least_area, 1)]
    table = torch.zeros(num_classes + 2, dtype=torch.int32)
    for segment_id, category in enumerate(kept, start=first):
        table[category + 1] = segment_id
    canvas[free] = table.to(canvas.device)[known[free]]
    return [
        {"id": i, "isthing": False, "category_id": c, "area": areas[c + 1]}
        for i, c in enumerate(kept, start=first)
    ]

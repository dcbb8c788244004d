"""Area and box of every segment, computed from the panoptic map.

Shapes: H x W the map, N segments, R runs: stretches of equal ids within a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["with_extents"]


def with_extents(
    panoptic_seg: Tensor, segments_info: Sequence[dict[str, Any]]
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Add the entries "area" and "bbox" of COCO's panoptic format to every segment.

    Every model calls this last, so that the segments of all models and fusions have both entries.
    It takes 1 to 2 ms for 2 million pixels on one CPU core.

    Args:
        panoptic_seg: (H, W) integer segment ids, on any device.
        segments_info: with distinct "id"s; not changed.

    Returns:
        `panoptic_seg` itself, and copies of the segments with "area", the number of pixels, and
        "bbox", [x, y, width, height] in pixels, all of them ints. A segment without a pixel has
        area 0 and bbox [0, 0, 0, 0].
    """
    ids = np.array([int(segment["id"]) for segment in segments_info], np.int64)
    areas, boxes = _extents(panoptic_seg, ids)
    segments = [
        {**segment, "area": area, "bbox": box}
        for segment, area, box in zip(segments_info, areas.tolist(), boxes.tolist(), strict=True)
    ]
    return panoptic_seg, segments


def _extents(panoptic_seg: Tensor, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) areas and (N, 4) x, y, width, height of the distinct `ids`, int64."""
    count, (height, width) = len(ids), panoptic_seg.shape
    areas, boxes = np.zeros(count, np.int64), np.zeros((count, 4), np.int64)
    if not count or not panoptic_seg.numel():
        return areas, boxes
    starts, values = _runs(panoptic_seg)
    lengths = np.diff(starts, append=height * width)
    # The row of `ids` that each run belongs to; runs of other ids, such as void, are left out.
    order = np.argsort(ids, kind="stable")
    index = np.searchsorted(ids[order], values).clip(max=count - 1)
    runs = np.flatnonzero(ids[order][index] == values)
    owner = order[index[runs]]
    # Sorted by segment, so that `reduceat` takes sums and extremes of each segment's runs.
    by_owner = np.argsort(owner, kind="stable")
    owner, runs = owner[by_owner], runs[by_owner]
    first = np.flatnonzero(np.diff(owner, prepend=-1))  # the first run of each segment
    if not len(first):
        return areas, boxes
    y, x = np.divmod(starts[runs], width)
    left, top = np.minimum.reduceat(x, first), np.minimum.reduceat(y, first)
    right = np.maximum.reduceat(x + lengths[runs], first)
    bottom = np.maximum.reduceat(y, first) + 1
    areas[owner[first]] = np.add.reduceat(lengths[runs], first)
    boxes[owner[first]] = np.stack((left, top, right - left, bottom - top), axis=1)
    return areas, boxes


def _runs(panoptic_seg: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(R,) int64 positions in the flattened map where a run starts, and (R,) ids."""
    # Runs are found on the map's device: a real map has some thousand, and only these are copied.
    flat = panoptic_seg.detach().reshape(-1)
    change = torch.empty(flat.shape, dtype=torch.bool, device=flat.device)
    torch.ne(flat[1:], flat[:-1], out=change[1:])
    change[:: panoptic_seg.shape[1]] = True  # a run ends with its row
    if flat.device.type == "cpu":  # several times faster than torch's nonzero
        starts = np.flatnonzero(change.numpy())
        return starts, flat.numpy()[starts]
    positions = change.nonzero()[:, 0]
    starts, ids = torch.stack((positions, flat[positions].long())).cpu().numpy()
    return starts, ids

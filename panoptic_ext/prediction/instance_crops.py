"""Instances that may overlap, each with its own mask.

Shapes: H x W the image, N instances; a crop is (height, width) of an instance's box.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from detectron2.structures import Instances

from panoptic_ext.data.datasets.unified_classes import UnifiedClasses
from panoptic_ext.prediction.segments import Segment, typed_segment

__all__ = ["Crops", "crops_of_instances", "stacked"]

Crops = Mapping[int, np.ndarray]
"""Segment id -> (height, width) bool, the segment's mask within its box."""


def crops_of_instances(
    instances: Instances, classes: UnifiedClasses, min_score: float
) -> tuple[list[Segment], Crops]:
    """The segments of an instance model's output, and their masks.

    Args:
        instances: with scores, pred_classes and pred_masks (N, H, W); on any device.
        classes: of the data set.
        min_score: instances below it are left out, as are those without a pixel.

    Returns:
        The segments by descending score, their ids 1 + the row of `instances`; areas and boxes are
        those of the masks. And the masks.
    """
    instances = instances.to("cpu")
    height, width = instances.image_size
    segments: list[Segment] = []
    crops: dict[int, np.ndarray] = {}
    for row in torch.argsort(instances.scores, descending=True, stable=True).tolist():
        score, mask = float(instances.scores[row]), instances.pred_masks[row].bool().numpy()
        if score < min_score or not mask.any():
            continue
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        x, y = int(columns[0]), int(rows[0])
        crop = mask[y : rows[-1] + 1, x : columns[-1] + 1].copy()
        info = {
            "id": row + 1,
            "category_id": int(instances.pred_classes[row]),
            "isthing": True,
            "score": score,
            "area": int(crop.sum()),
            "bbox": (x, y, crop.shape[1], crop.shape[0]),
        }
        segments.append(typed_segment(info, classes, height * width))
        crops[row + 1] = crop
    return segments, crops


def stacked(segments: Sequence[Segment], crops: Crops, height: int, width: int) -> torch.Tensor:
    """(H, W) int32 id map of overlapping instances: of two, the one with the better score is seen.

    Args:
        segments: by descending score.
        crops: of the segments.
        height, width: of the image.
    """
    ids: np.ndarray = np.zeros((height, width), np.int32)
    for segment in reversed(segments):
        x0, y0, x1, y1 = segment.box
        ids[y0:y1, x0:x1][crops[segment.id]] = segment.id
    return torch.from_numpy(ids)

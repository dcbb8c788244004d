"""Convert masks, which may overlap, into the one map of segments that pictures are drawn from.

Shapes: N masks of an image of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data.transforms import TransformList
from detectron2.structures import BoxMode, Instances

from panoptic_ext.data.annotated_instances import instances_of_annotations

__all__ = ["annotated_segments", "instance_segments", "stack_masks"]

Segments = tuple[np.ndarray, list[dict[str, Any]]]


def stack_masks(masks: np.ndarray) -> np.ndarray:
    """Merge masks into one map; where they overlap, the smaller mask covers the larger.

    Args:
        masks: (N, H, W) bool.

    Returns:
        (H, W) int32: 1 + the index of the uppermost mask, 0 where there is none.
    """
    ids: np.ndarray = np.zeros(masks.shape[1:], np.int32)
    # From the largest to the smallest, so that none of the small masks is lost.
    for index in np.argsort(-masks.sum(axis=(1, 2)), kind="stable").tolist():
        ids[masks[index]] = index + 1
    return ids


def instance_segments(instances: Instances) -> Segments:
    """Convert the mapper's instances for `draw_panoptic`.

    Args:
        instances: with gt_masks (BitMasks), gt_classes and gt_boxes.

    Returns:
        (H, W) ids, and a segment for each instance; "full_bbox" is its own box.
    """
    boxes = BoxMode.convert(instances.gt_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    return _segments(instances, boxes.tolist())


def annotated_segments(record: dict[str, Any]) -> Segments:
    """Convert the annotations of a record, crowds included, for `draw_panoptic`.

    Args:
        record: Detectron2's of an instances JSON, with height and width; left unchanged.

    Returns:
        As `instance_segments`; "full_bbox" is the annotation's box.

    Raises:
        DatasetError: an annotation without a mask, or with one of another size.
    """
    size = record["height"], record["width"]
    # Training skips crowds. A picture shows them, so they are passed on as ordinary objects.
    instances = instances_of_annotations(
        [{**annotation, "iscrowd": 0} for annotation in record["annotations"]],
        TransformList([]),
        original_size=size,
        size=size,
        keep_empty=True,
        where=record["file_name"],
    )
    boxes = [
        BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYWH_ABS) if "bbox" in a else None
        for a in record["annotations"]
    ]
    return _segments(instances, boxes)


def _segments(instances: Instances, boxes: Sequence[Sequence[float] | None]) -> Segments:
    segments: list[dict[str, Any]] = [
        {"id": index + 1, "category_id": category, "isthing": True}
        for index, category in enumerate(instances.gt_classes.tolist())
    ]
    for segment, box in zip(segments, boxes, strict=True):
        if box is not None:
            segment["full_bbox"] = box
    return stack_masks(instances.gt_masks.tensor.numpy()), segments

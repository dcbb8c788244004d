"""Mapped training images -> targets of the mask-classification loss.

Shapes: H x W the padded batch, h x w one image in it, K classes of the data set, N segments.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.structures import BitMasks, Instances, PolygonMasks
from torch import Tensor
from torch.nn import functional as F

from panoptic_ext.errors import DatasetError
from panoptic_ext.modeling.mask_classification.criterion import MaskTargets

__all__ = ["TASKS", "build_mask_targets"]

TASKS = ("panoptic", "instance", "semantic")


def build_mask_targets(
    inputs: dict[str, Any],
    *,
    task: str,
    padded_size: tuple[int, int],
    device: torch.device,
    class_index: Tensor,
    ignore_value: int = 255,
) -> MaskTargets:
    """What the queries of one image have to find. Nothing of `inputs` is changed.

    Args:
        inputs: of one image, "panoptic_ids" ((h, w) int, 0 void, i is row i - 1) and "segments"
            (`gt_classes`, `gt_isthing`, `gt_iscrowd`); or, where these are missing, "instances"
            with `gt_classes` and `gt_masks` for the instance task, or "sem_seg" ((h, w) int64)
            for the semantic one.
        task: "panoptic": every segment; "instance": every thing; "semantic": every class present,
            its segments joined. Crowd segments are void in the first two.
        padded_size: H, W.
        device: where the targets shall be.
        class_index: (K,) int64 on the CPU, the model's class of each class of the data set; -1
            where it has none, and such segments are left out.
        ignore_value: void in "sem_seg".

    Raises:
        DatasetError: no usable ground truth, or a class outside of 0..K-1; names the image.
    """
    name = str(inputs.get("file_name", ""))
    if "panoptic_ids" in inputs:
        ids, segments = inputs["panoptic_ids"], inputs["segments"]
        targets = _from_segments(ids, segments, task, class_index, name)
    elif task == "instance" and "instances" in inputs:
        targets = _from_instances(inputs["instances"], class_index, name)
    elif task == "semantic" and "sem_seg" in inputs:
        targets = _from_sem_seg(inputs["sem_seg"], class_index, ignore_value, name)
    else:
        raise DatasetError(
            f"training image {name!r} has {sorted(inputs)}, but the {task} task needs "
            "'panoptic_ids' and 'segments'; map it with PanopticDatasetMapper"
        )
    return _pad_and_move(targets, padded_size, device)


def _from_segments(
    ids: Tensor, segments: Instances, task: str, class_index: Tensor, name: str
) -> MaskTargets:
    classes, keep = _model_classes(segments.gt_classes, class_index, name)
    if task != "semantic":
        keep = keep & ~segments.gt_iscrowd.bool()
    if task == "instance":
        keep = keep & segments.gt_isthing.bool()
    table = torch.zeros(len(classes) + 1, dtype=torch.int32)
    if task == "semantic":
        labels, rows = classes[keep].unique(return_inverse=True)
    else:
        labels = classes[keep]
        rows = torch.arange(len(labels))
    table[1:][keep] = rows.to(torch.int32) + 1
    return MaskTargets(labels=labels, id_map=_look_up(table, ids), image=name)


def _from_instances(instances: Instances, class_index: Tensor, name: str) -> MaskTargets:
    classes, keep = _model_classes(instances.gt_classes, class_index, name)
    masks = instances.gt_masks
    if hasattr(masks, "id_map"):
        table = torch.zeros(int(masks.id_map.max()) + 1, dtype=torch.int32)
        inside = keep & (masks.ids < len(table))
        table[masks.ids[inside].long()] = torch.cumsum(keep, 0)[inside].to(torch.int32)
        return MaskTargets(labels=classes[keep], id_map=_look_up(table, masks.id_map), image=name)
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *instances.image_size)
    dense = masks if isinstance(masks, Tensor) else masks.tensor
    return MaskTargets.from_masks(dense[keep], classes[keep], image=name)


def _from_sem_seg(
    sem_seg: Tensor, class_index: Tensor, ignore_value: int, name: str
) -> MaskTargets:
    found, inverse = sem_seg.long().unique(return_inverse=True)
    valid = found != ignore_value
    classes, keep = _model_classes(torch.where(valid, found, 0), class_index, name)
    keep = keep & valid
    table = torch.cumsum(keep, 0) * keep
    return MaskTargets(labels=classes[keep], id_map=table[inverse].to(torch.int32), image=name)


def _model_classes(classes: Tensor, class_index: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Classes of the data set -> the model's, and which of them it has."""
    wrong = classes[(classes < 0) | (classes >= len(class_index))]
    if len(wrong):
        raise DatasetError(
            f"training image {name!r} has a segment of class {int(wrong[0])}, but its data set "
            f"has classes 0 to {len(class_index) - 1}; mend its category ids"
        )
    mapped = class_index[classes]
    return mapped, mapped >= 0


def _look_up(table: Tensor, ids: Tensor) -> Tensor:
    identity = torch.arange(len(table), dtype=table.dtype)
    if torch.equal(table, identity):
        return ids.to(torch.int32)
    return table[ids.long()]


def _pad_and_move(
    targets: MaskTargets, padded_size: tuple[int, int], device: torch.device
) -> MaskTargets:
    planes = targets.id_map if targets.masks is None else targets.masks
    assert planes is not None
    height, width = padded_size
    pad = (0, width - planes.shape[-1], 0, height - planes.shape[-2])
    planes = F.pad(planes.to(device, non_blocking=True), pad)
    is_map = targets.masks is None
    return MaskTargets(
        labels=targets.labels.to(device, non_blocking=True),
        id_map=planes if is_map else None,
        masks=None if is_map else planes,
        image=targets.image,
    )

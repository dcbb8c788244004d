"""Convert the annotations of a COCO instances record to training targets.

Shapes: H x W is the augmented image, N the number of instances kept in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances
from detectron2.structures.masks import polygons_to_bitmask

from panoptic_ext.errors import DatasetError

__all__ = ["instances_of_annotations"]


def instances_of_annotations(
    annotations: Sequence[dict[str, Any]],
    transforms: T.TransformList,
    *,
    original_size: tuple[int, int],
    size: tuple[int, int],
    keep_empty: bool = False,
    where: str,
) -> Instances:
    """Return the instances that are no crowd, with their masks in the augmented image.

    Polygons are transformed as coordinates and then drawn, as the published Mask2Former does.
    Run lengths are decoded and transformed as a map. Masks may overlap.

    Args:
        annotations: those of a Detectron2 record; they are not changed.
        transforms: those that were applied to the image.
        original_size: height and width of the image on disk, pixels.
        size: H, W.
        keep_empty: keep instances without a pixel in the augmented image, as empty masks.
        where: names the image in errors.

    Returns:
        gt_boxes (tight), gt_classes (int64, contiguous) and gt_masks (BitMasks of N x H x W).

    Raises:
        DatasetError: an annotation without a mask, or with one of another size.
    """
    masks, classes = [], []
    for number, annotation in enumerate(annotations):
        if annotation.get("iscrowd", 0):
            continue
        segmentation = annotation.get("segmentation")
        _check_mask(segmentation, original_size, f"{where}, annotation {number}")
        with _quiet_decoding():
            mask = _transformed_mask(segmentation, transforms, size)
        if keep_empty or mask.any():
            masks.append(mask)
            classes.append(int(annotation["category_id"]))
    instances = Instances(size)
    planes = np.stack(masks) if masks else np.zeros((0, *size), bool)
    instances.gt_masks = BitMasks(torch.from_numpy(planes))
    # A crop may cut off parts of an object. Boxes are computed from the remaining mask, because
    # the annotated box would include the parts that were cut off.
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    return instances


@contextmanager
def _quiet_decoding() -> Iterator[None]:
    """Ignore numpy 2's warning about pycocotools' arrays, which `-W error` turns into an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="__array__ implementation doesn't accept a copy")
        yield


def _transformed_mask(
    segmentation: Any, transforms: T.TransformList, size: tuple[int, int]
) -> np.ndarray:
    """(H, W) bool mask in the augmented image."""
    if isinstance(segmentation, dict):
        mask = transforms.apply_segmentation(mask_util.decode(segmentation))
        return np.asarray(mask).astype(bool)
    # The points are transformed with apply_coords. apply_polygons would cut the polygons at a
    # crop's border, which needs shapely, and drawing them cuts them anyway. np.array makes a
    # float64 copy, because transforms write into their argument.
    points = [np.array(polygon, np.float64).reshape(-1, 2) for polygon in segmentation]
    polygons = [transforms.apply_coords(p).reshape(-1) for p in points]
    return polygons_to_bitmask(polygons, *size)


def _check_mask(segmentation: Any, expected: tuple[int, int], where: str) -> None:
    if not segmentation:
        raise DatasetError(
            f"{where} has no 'segmentation'; give each instance polygons or run lengths (boxes "
            "alone are not enough)"
        )
    if isinstance(segmentation, dict) and tuple(segmentation["size"]) != tuple(expected):
        height, width = segmentation["size"]
        raise DatasetError(
            f"{where} has a mask of {height} x {width} (height x width), the image is "
            f"{expected[0]} x {expected[1]}; correct its 'size' and 'counts'"
        )

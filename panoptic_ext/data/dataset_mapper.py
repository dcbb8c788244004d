"""Convert a record to the training input of every model here: an image, an id map and a table.

Shapes: H x W is the augmented image, N the number of segments kept in it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances
from detectron2.utils.logger import log_first_n

from panoptic_ext.config.ground_truth import PANOPTIC_TARGETS, panoptic_targets
from panoptic_ext.data.annotated_instances import instances_of_annotations
from panoptic_ext.data.augmentation import AugmentationInput, build_augmentations
from panoptic_ext.data.coco.runs import find_runs, segment_boxes
from panoptic_ext.data.copy_paste import CopyPaste, Scene
from panoptic_ext.data.datasets.instances import has_instances_alone
from panoptic_ext.data.datasets.registered import get_metadata
from panoptic_ext.data.donors import Donors, classes_of_things
from panoptic_ext.data.id_map_masks import IdMapMasks
from panoptic_ext.data.read_record import Labels, read_labels, read_record_image
from panoptic_ext.errors import DatasetError, UnreadableFileError, check_known, quoted

__all__ = ["PanopticDatasetMapper"]

logger = logging.getLogger(__name__)
_FORMATS = ("BGR", "RGB", "L", "YUV-BT.601")


class PanopticDatasetMapper:
    """Read, augment and convert one record.

    In training the result holds, besides the record's file_name, image_id, height and width:
    - image: (3, H, W) uint8;
    - panoptic_ids: (H, W) int32; 0 is void, i is row i - 1 of `segments`;
    - segments: Instances of N rows with gt_classes (int64, contiguous), gt_isthing, gt_iscrowd
      (bool). Segments without pixels after a crop are discarded, unless `keep_empty`;
    - instances (if in `targets`): things that are no crowd, with gt_boxes (tight), gt_classes
      (contiguous), gt_masks (IdMapMasks);
    - sem_seg (if in `targets`): (H, W) int64 contiguous ids, `ignore_label` where void.
    A record of instances alone ("annotations" and no label map) gives image and instances
    (gt_masks are BitMasks, which may overlap). At test time only the image is read.

    The mapper stores nothing between samples. Its only random generator is numpy's global one, as
    in Detectron2's augmentations. A loader seeds that generator for each sample.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        targets: Sequence[str] = PANOPTIC_TARGETS,
        ignore_label: int = 255,
        skip_corrupt: bool = False,
        keep_empty: bool = False,
        redraw_empty: int = 0,
        things_alone: bool = False,
        copy_paste: CopyPaste | None = None,
    ):
        """
        Args:
            is_train: whether ground truth is read and augmentations are those of training.
            augmentations: Detectron2 augmentations or transforms, in order.
            image_format: e.g. "BGR", as `detection_utils.read_image` takes it.
            targets: which of "instances" and "sem_seg" to derive from the id map.
            ignore_label: value of void pixels in `sem_seg`.
            skip_corrupt: return None, and log the file once, for a sample of which a file is
                missing or damaged.
            keep_empty: keep the rows of `segments` that augmentation leaves without pixels, as the
                published panoptic mappers of Mask2Former do. Queries are then also trained to
                predict classes that the crop has removed, with empty masks. `instances` never has
                such rows.
            redraw_empty: how often augmentation is repeated, at most, while no segment is left.
                Crowds do not count.
            things_alone: whether stuff does not count, either.
            copy_paste: how things of other images are pasted into augmented ones; None: not.
        """
        check_known("INPUT.FORMAT", image_format, _FORMATS)
        for target in targets:
            check_known("name in INPUT.PANOPTIC_TARGETS", target, PANOPTIC_TARGETS)
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.targets = tuple(targets)
        self.ignore_label = ignore_label
        self.skip_corrupt = skip_corrupt
        self.keep_empty = keep_empty
        self.redraw_empty = redraw_empty
        self.things_alone = things_alone
        self.copy_paste = copy_paste
        logger.info("augmentations in %s: %s", "training" if is_train else "test", augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Arguments of __init__ from the config."""
        names = cfg.DATASETS.TRAIN if is_train else cfg.DATASETS.TEST
        ignore_label = get_metadata(names[0]).get("ignore_label", 255) if names else 255
        # RandomCrop_CategoryAreaConstraint reads a map of classes, which such records do not have.
        # A limit of 1 selects the plain RandomCrop.
        if any(map(has_instances_alone, names)) and cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA < 1:
            logger.info("Instances alone have no classes of pixels: crops are drawn only once")
            cfg = cfg.clone()
            cfg.defrost()
            cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
        return {
            "is_train": is_train,
            "augmentations": build_augmentations(cfg, is_train, ignore_label),
            "image_format": cfg.INPUT.FORMAT,
            "targets": panoptic_targets(cfg),
            "ignore_label": ignore_label,
            "skip_corrupt": is_train and cfg.DATALOADER.SKIP_CORRUPT,
            "keep_empty": bool(cfg.INPUT.KEEP_EMPTY_SEGMENTS),
            "redraw_empty": cfg.INPUT.REDRAW_EMPTY,
            "things_alone": cfg.MODEL.MASK_FORMER.TASK == "instance",
            "copy_paste": CopyPaste.from_keys(cfg.INPUT.COPY_PASTE) if is_train else None,
        }

    def __call__(
        self, record: dict[str, Any], donors: Donors | None = None
    ) -> dict[str, Any] | None:
        """
        Args:
            record: from `load_panoptic`, or Detectron2's record of an instances JSON; it is not
                changed.
            donors: images whose things are pasted into this one, see `copy_paste`; None: nothing
                is pasted.

        Returns:
            the dict that the class docstring describes, or None for an unreadable sample that is
            skipped.

        Raises:
            UnreadableFileError: a file is missing or damaged.
            DatasetError: a file does not fit the record.
        """
        try:
            return self._map(record, donors)
        except UnreadableFileError as error:
            self._raise_or_warn(error, "skipped a sample")
            return None

    def _raise_or_warn(self, error: UnreadableFileError, consequence: str) -> None:
        if not self.skip_corrupt:
            raise error
        log_first_n(logging.WARNING, f"{consequence}: {error}", n=1, name=__name__, key="message")

    def _map(self, record: dict[str, Any], donors: Donors | None) -> dict[str, Any]:
        image = read_record_image(record, self.image_format)
        out = {k: v for k, v in record.items() if k not in _GROUND_TRUTH}
        out.setdefault("height", image.shape[0])
        out.setdefault("width", image.shape[1])
        if not self.is_train:
            aug_input = AugmentationInput(image, None, None)
            self._augment(aug_input, record)
            out["image"] = _to_tensor(aug_input.image)
            return out
        if "pan_seg_file_name" not in record and "annotations" in record:
            out.update(self._until_learnable(lambda: self._map_instances(image, record)))
        else:
            labels = read_labels(record, image.shape[:2])
            out.update(
                self._until_learnable(lambda: self._map_segments(image, record, labels, donors))
            )
        return out

    def _until_learnable(self, draw: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The first augmentation that leaves a segment to learn, or that of the last try."""
        drawn = draw()
        for _ in range(self.redraw_empty):
            if _has_segment(drawn, self.things_alone):
                break
            drawn = draw()
        return drawn

    def _map_segments(
        self, image: np.ndarray, record: dict[str, Any], labels: Labels, donors: Donors | None
    ) -> dict[str, Any]:
        """Augment once; image and targets."""
        augmented = self._augment_scene(image, record, labels)
        if self.copy_paste is not None and donors is not None:
            augmented = self.copy_paste(augmented, donors, self._read_donor)
        return {"image": _to_tensor(augmented.image), **self._targets(augmented.labels)}

    def _augment_scene(
        self,
        image: np.ndarray,
        record: dict[str, Any],
        labels: Labels,
        donated: Collection[int] | None = None,
    ) -> Scene:
        """Augment an image and its labels; `donated`: classes of things to crop around."""
        segments = labels.segments
        # Local id 0 is void, so its category is the ignore label.
        categories = np.array([self.ignore_label] + [s["category_id"] for s in segments])
        thing_classes = np.array([-1, *classes_of_things(segments, donated)])
        aug_input = AugmentationInput(image, labels.ids, categories, thing_classes)
        self._augment(aug_input, record)
        return Scene(aug_input.image, labels._replace(ids=aug_input.id_map))

    def _read_donor(self, record: dict[str, Any], donated: Collection[int]) -> Scene | None:
        """An augmented image to copy things from; None for one that is unreadable and skipped."""
        try:
            image = read_record_image(record, self.image_format)
            labels = read_labels(record, image.shape[:2])
        except UnreadableFileError as error:
            self._raise_or_warn(error, "copied no thing")
            return None
        return self._augment_scene(image, record, labels, donated)

    def _map_instances(self, image: np.ndarray, record: dict[str, Any]) -> dict[str, Any]:
        """Return image and instances of a record without a label map."""
        aug_input = AugmentationInput(image, None, None)
        transforms = self._augment(aug_input, record)
        height, width = aug_input.image.shape[:2]
        instances = instances_of_annotations(
            record["annotations"],
            transforms,
            original_size=(image.shape[0], image.shape[1]),
            size=(height, width),
            keep_empty=self.keep_empty,
            where=f"image id {quoted(record.get('image_id'))}",
        )
        return {"image": _to_tensor(aug_input.image), "instances": instances}

    def _augment(self, aug_input: AugmentationInput, record: dict[str, Any]) -> T.TransformList:
        height, width = aug_input.image.shape[:2]
        transforms = self.augmentations(aug_input)
        if aug_input.image.size == 0:
            raise DatasetError(
                f"image id {quoted(record.get('image_id'))}: image {record['file_name']} of "
                f"{height} x {width} (height x width) has no pixel left after augmentation; "
                "remove it, or set INPUT.CROP.SIZE and INPUT.MIN_SIZE_TRAIN larger"
            )
        return transforms

    def _targets(self, labels: Labels) -> dict[str, Any]:
        """Return the targets as tensors, from augmented labels."""
        local, segments, present = labels
        # Every target is computed from these runs, of which there are far fewer than pixels.
        runs = find_runs(local, split_rows=True)
        visible = np.bincount(runs.ids, minlength=len(segments) + 1)[1:]
        # A segment that the label map never had is discarded even with keep_empty: it is an error
        # of the data set, not an effect of augmentation.
        kept = np.flatnonzero(present if self.keep_empty else visible)
        # Ids are renumbered without gaps, so that id i is row i - 1. Discarded segments become 0.
        renumber = np.zeros(len(segments) + 1, np.int32)
        renumber[kept + 1] = np.arange(1, len(kept) + 1)
        table = np.array(
            [(s["category_id"], s["isthing"], s["iscrowd"]) for s in segments], np.int64
        ).reshape(-1, 3)[kept]
        run_ids = renumber[runs.ids]
        ids = torch.from_numpy(runs.expand(run_ids))
        rows = Instances((local.shape[0], local.shape[1]))
        rows.gt_classes = torch.from_numpy(table[:, 0].copy())
        rows.gt_isthing = torch.from_numpy(table[:, 1] > 0)
        rows.gt_iscrowd = torch.from_numpy(table[:, 2] > 0)
        out = {"panoptic_ids": ids, "segments": rows}
        if "instances" in self.targets:
            boxes = segment_boxes(runs, run_ids - 1, len(kept))
            out["instances"] = _instances(ids, rows, torch.from_numpy(boxes))
        if "sem_seg" in self.targets:
            classes = np.concatenate([[self.ignore_label], table[:, 0]]).astype(np.int64)
            out["sem_seg"] = torch.from_numpy(runs.expand(classes[run_ids]))
        return out


_GROUND_TRUTH = ("segments_info", "pan_seg_file_name", "pan_seg_encoding", "annotations")


def _instances(ids: torch.Tensor, rows: Instances, boxes: torch.Tensor) -> Instances:
    """Return visible things that are no crowd. `boxes` has one box for each of `rows`."""
    visible = boxes[:, 2] > boxes[:, 0]
    keep = (rows.gt_isthing & ~rows.gt_iscrowd & visible).nonzero()[:, 0]
    instances = Instances(rows.image_size)
    instances.gt_boxes = Boxes(boxes[keep].to(torch.float32))
    instances.gt_classes = rows.gt_classes[keep]
    # Row i has the id i + 1 in the map, since 0 is void. The masks share this one map.
    instances.gt_masks = IdMapMasks(ids, keep + 1, boxes[keep])
    return instances


def _has_segment(mapped: dict[str, Any], things_alone: bool) -> bool:
    """Whether an augmented image has a segment, visible or kept, that is no crowd."""
    if "segments" not in mapped:
        return len(mapped["instances"]) > 0
    rows = mapped["segments"]
    counted = rows.gt_isthing & ~rows.gt_iscrowd if things_alone else ~rows.gt_iscrowd
    return bool(counted.any())


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    """Copy an (H, W, C) array to a contiguous (C, H, W) tensor."""
    out = np.empty((image.shape[2], *image.shape[:2]), image.dtype)
    for channel, plane in enumerate(out):
        plane[:] = image[..., channel]
    return torch.from_numpy(out)

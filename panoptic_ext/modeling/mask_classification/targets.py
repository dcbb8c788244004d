"""Targets of mask classification: mapped training images -> masks that queries have to find.

Shapes: H x W the padded batch, h x w one image in it or the cells of a smaller map, K classes of
the data set, N targets, M chosen ones, P points. Points are (x, y) in [0, 1] of the padded batch;
sampling is that of `bilinear`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks, Instances, PolygonMasks
from torch import Tensor
from torch.nn import functional as F

from panoptic_ext.errors import DatasetError
from panoptic_ext.host_copies import to_device
from panoptic_ext.modeling.mask_classification.bilinear import interpolate_equality, pixel_corners

__all__ = ["IdMapTargets", "MaskTargets", "PlaneTargets", "build_mask_targets"]


class MaskTargets(ABC):
    """The objects of one image: their classes and masks, at the size of the padded batch.

    Matcher and criterion use this interface alone. `IdMapTargets` holds disjoint masks as one map
    of ids. `PlaneTargets` holds masks that may overlap, as a plane each. Another form has to
    implement the abstract methods; all other methods use these.

    Attributes:
        labels: (N,) int64, the model's class of each target.
        pixels: the masks in the form of the class, (..., H, W), 0 for void; on the labels' device.
        image: what errors call the image, such as its file name.
        isthing: (N,) bool on the CPU, so that reading it does not wait for the device; None if
            `things` is never called.
    """

    def __init__(
        self, labels: Tensor, pixels: Tensor, image: str = "", isthing: Tensor | None = None
    ) -> None:
        self.labels = labels
        self.pixels = pixels
        self.image = image
        self.isthing = isthing
        self._bordered: Tensor | None = None

    def __len__(self) -> int:
        """N."""
        return len(self.labels)

    def things(self) -> MaskTargets:
        """The targets that are things, in the same order; the host does not wait for the device.

        Raises:
            ValueError: `isthing` is None.
        """
        if self.isthing is None:
            raise ValueError("targets without `isthing` cannot say which of them are things")
        rows = np.flatnonzero(self.isthing.numpy())
        return self if len(rows) == len(self) else self._choose(rows)

    @abstractmethod
    def _choose(self, rows: np.ndarray) -> MaskTargets:
        """The targets of `rows` ((M,) int64), in this order."""

    @abstractmethod
    def smallest_first(self) -> MaskTargets:
        """The same targets, ordered so that `owner_map` gives a cell that several of them cover
        to the smallest. Disjoint targets keep their order."""

    @abstractmethod
    def owner_map(self, size: tuple[int, int]) -> Tensor:
        """Target of the pixel nearest to each cell's centre; of overlapping masks the first.

        Args:
            size: h, w of the map.

        Returns:
            (h, w) int64, i for target i - 1 and 0 for void.
        """

    @abstractmethod
    def sample(self, points: Tensor) -> Tensor:
        """Every target at points common to all.

        Args:
            points: (P, 2) float.

        Returns:
            (N, P) of the points' dtype, 0 to 1.
        """

    @abstractmethod
    def sample_each(self, rows: Tensor, points: Tensor) -> Tensor:
        """Chosen targets, each at points of its own.

        Args:
            rows: (M,) int64, which targets.
            points: (M, P, 2) float.

        Returns:
            (M, P) of the points' dtype, 0 to 1.
        """

    @abstractmethod
    def covers(self, points: Tensor) -> Tensor:
        """Find the targets that the pixel of each point belongs to.

        Args:
            points: (P, 2) float, x and y in [0, 1).

        Returns:
            (N, P) bool.
        """

    @abstractmethod
    def _extent(self, axis: int) -> Tensor:
        """First pixel of each target along an axis (-1 columns, -2 rows), and one past its last:
        (2, N) float32. For a target without pixels the second is not above the first."""

    def padded(self, size: tuple[int, int], device: torch.device) -> MaskTargets:
        """The same targets on `device`, with void to the right and below up to `size` (H, W)."""
        pixels = to_device(self.pixels, device)
        pad = (0, size[1] - pixels.shape[-1], 0, size[0] - pixels.shape[-2])
        labels = to_device(self.labels, device)
        return type(self)(labels, F.pad(pixels, pad), self.image, self.isthing)

    def boxes(self) -> Tensor:
        """(N, 4) float32 x0, y0, x1, y1 in [0, 1] around each target.

        A target without pixels has the whole image as its box: points drawn in it lie anywhere.
        """
        height, width = self.pixels.shape[-2:]
        columns, rows = self._extent(-1) / width, self._extent(-2) / height
        boxes = torch.stack((columns[0], rows[0], columns[1], rows[1]), dim=1)
        everywhere = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
        return torch.where((boxes[:, 2] > boxes[:, 0])[:, None], boxes, everywhere)

    def label_map(self, size: tuple[int, int]) -> Tensor:
        """Class of the pixel nearest to each cell's centre; of overlapping masks the first's.

        Args:
            size: h, w of the map.

        Returns:
            (h, w) int64, -1 for void.
        """
        table = F.pad(self.labels.to(self.pixels.device), (1, 0), value=-1)
        return table[self.owner_map(size)]

    def _with_border(self) -> Tensor:
        """`pixels` in a border of void, made once, see `interpolate_equality`."""
        if self._bordered is None:
            self._bordered = F.pad(self.pixels, (1, 1, 1, 1))
        return self._bordered

    def _nearest_pixels(self, size: tuple[int, int]) -> Tensor:
        """`pixels` at the pixel nearest to the centre of each cell, (..., h, w)."""
        rows, columns = (
            ((torch.arange(count, device=self.pixels.device) + 0.5) * full / count).long()
            for count, full in zip(size, self.pixels.shape[-2:], strict=True)
        )
        return self.pixels[..., rows[:, None], columns]

    def _at(self, points: Tensor) -> Tensor:
        """`pixels` at the pixel that each of (P, 2) points lies in, (..., P)."""
        size = points.new_tensor([self.pixels.shape[-1], self.pixels.shape[-2]])
        columns, rows = (points * size).long().unbind(-1)
        return self.pixels[..., rows, columns]


class IdMapTargets(MaskTargets):
    """Disjoint targets as one id map.

    Its memory does not grow with N: an image of hundreds of segments needs one plane in all.

    `pixels` is the map, (H, W) int32: 0 for void and i for target i - 1.
    """

    @property
    def id_map(self) -> Tensor:
        """(H, W) int32, see the class."""
        return self.pixels

    def _choose(self, rows: np.ndarray) -> MaskTargets:
        new_ids = np.zeros(len(self) + 1, np.int32)
        new_ids[rows + 1] = np.arange(1, len(rows) + 1)
        device = self.pixels.device
        id_map = to_device(new_ids, device)[self.pixels.long()]
        return IdMapTargets(self.labels[to_device(rows, device)], id_map, self.image)

    def smallest_first(self) -> MaskTargets:
        return self

    def owner_map(self, size: tuple[int, int]) -> Tensor:
        return self._nearest_pixels(size).long()

    def sample(self, points: Tensor) -> Tensor:
        count, num_points = len(self), len(points)
        indices, weights = pixel_corners(points, *self.id_map.shape)
        ids = self.id_map.reshape(-1)[indices].long()
        # A corner of a point lies in one target at most. Its weight is added there, and the other
        # targets stay 0. Row 0 collects the weights of void and is left out.
        sampled = points.new_zeros((count + 1) * num_points)
        columns = torch.arange(num_points, device=points.device)
        for corner_ids, corner_weights in zip(ids, weights, strict=True):
            sampled.scatter_add_(0, corner_ids * num_points + columns, corner_weights)
        return sampled.view(count + 1, num_points)[1:]

    def sample_each(self, rows: Tensor, points: Tensor) -> Tensor:
        wanted = (rows + 1).to(self.id_map.dtype)[:, None]
        return interpolate_equality(self._with_border(), points, wanted)

    def covers(self, points: Tensor) -> Tensor:
        ids = torch.arange(1, len(self) + 1, device=self.id_map.device)
        return self._at(points) == ids[:, None]

    def _extent(self, axis: int) -> Tensor:
        size = self.id_map.shape[axis]
        pixel = torch.arange(size, dtype=torch.float32, device=self.id_map.device)
        pixel = pixel if axis == -1 else pixel[:, None]
        ids = self.id_map.reshape(-1).long()
        pixel = pixel.expand(self.id_map.shape).reshape(-1)
        first = pixel.new_full((len(self) + 1,), size).scatter_reduce(0, ids, pixel, "amin")
        end = pixel.new_zeros(len(self) + 1).scatter_reduce(0, ids, pixel + 1, "amax")
        return torch.stack((first[1:], end[1:]))


class PlaneTargets(MaskTargets):
    """Targets that may overlap, as a plane each.

    `pixels` are the masks, (N, H, W), true or non-zero inside; they are held as bool.

    Raises:
        ValueError: another number of masks than of labels.
    """

    def __init__(
        self, labels: Tensor, pixels: Tensor, image: str = "", isthing: Tensor | None = None
    ) -> None:
        super().__init__(labels, pixels.bool(), image, isthing)
        if len(pixels) != len(labels):
            raise ValueError(
                f"{len(pixels)} masks for {len(labels)} labels"
                f"{' in ' + image if image else ''}; give one label for each mask"
            )

    @property
    def masks(self) -> Tensor:
        """(N, H, W) bool."""
        return self.pixels

    def _choose(self, rows: np.ndarray) -> MaskTargets:
        chosen = to_device(rows, self.pixels.device)
        return PlaneTargets(self.labels[chosen], self.pixels[chosen], self.image)

    def smallest_first(self) -> MaskTargets:
        order = self.masks.flatten(1).sum(1).argsort()
        return PlaneTargets(self.labels[order], self.masks[order], self.image)

    def owner_map(self, size: tuple[int, int]) -> Tensor:
        cells = self._nearest_pixels(size)
        # The first mask has the largest number, so that the maximum in a cell is its first mask.
        first = torch.arange(len(self), 0, -1, device=cells.device)[:, None, None] * cells
        best = first.amax(0) if len(self) else first.sum(0)
        return torch.where(best > 0, len(self) + 1 - best, 0).long()

    def sample(self, points: Tensor) -> Tensor:
        indices, weights = pixel_corners(points, *self.masks.shape[-2:])
        flat = self.masks.flatten(1)
        return sum(
            (flat[:, i] * w for i, w in zip(indices, weights, strict=True)),
            start=points.new_zeros(len(self), len(points)),
        )

    def sample_each(self, rows: Tensor, points: Tensor) -> Tensor:
        return interpolate_equality(self._with_border(), points, 1, rows)

    def covers(self, points: Tensor) -> Tensor:
        return self._at(points)

    def _extent(self, axis: int) -> Tensor:
        size = self.masks.shape[axis]
        pixel = torch.arange(size, dtype=torch.float32, device=self.masks.device)
        occupied = self.masks.any(-2 if axis == -1 else -1)
        first = torch.where(occupied, pixel, size).amin(1)
        return torch.stack((first, torch.where(occupied, pixel + 1, 0).amax(1)))


def build_mask_targets(
    inputs: dict[str, Any],
    *,
    task: str,
    padded_size: tuple[int, int],
    device: torch.device,
    class_index: Tensor,
    ignore_value: int = 255,
) -> MaskTargets:
    """Build the targets that the queries of one image have to find. `inputs` are not changed.

    Args:
        inputs: of one image, "panoptic_ids" ((h, w) int, 0 void, i is row i - 1) and "segments"
            (`gt_classes`, `gt_isthing`, `gt_iscrowd`); or, where these are missing, "instances"
            with `gt_classes` and `gt_masks` for the instance task, or "sem_seg" ((h, w) int64)
            for the semantic one.
        task: "panoptic": every segment; "instance": every thing; "semantic": every class present,
            its segments joined. Crowd segments are void in the first two.
        padded_size: H, W.
        device: of the targets.
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
    return targets.padded(padded_size, device)


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
    isthing = None if task == "semantic" else segments.gt_isthing.bool()[keep]
    return IdMapTargets(labels, _look_up(table, ids), name, isthing)


def _from_instances(instances: Instances, class_index: Tensor, name: str) -> MaskTargets:
    classes, keep = _model_classes(instances.gt_classes, class_index, name)
    masks = instances.gt_masks
    # The mapper's IdMapMasks are recognised by their attribute: modeling never imports data.
    if hasattr(masks, "id_map"):
        table = torch.zeros(int(masks.id_map.max()) + 1, dtype=torch.int32)
        inside = keep & (masks.ids < len(table))
        table[masks.ids[inside].long()] = torch.cumsum(keep, 0)[inside].to(torch.int32)
        return IdMapTargets(classes[keep], _look_up(table, masks.id_map), name)
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *instances.image_size)
    dense = masks if isinstance(masks, Tensor) else masks.tensor
    return PlaneTargets(classes[keep], dense[keep], name)


def _from_sem_seg(
    sem_seg: Tensor, class_index: Tensor, ignore_value: int, name: str
) -> MaskTargets:
    values, inverse = sem_seg.long().unique(return_inverse=True)
    is_class = values != ignore_value
    classes, keep = _model_classes(torch.where(is_class, values, 0), class_index, name)
    keep = keep & is_class
    table = torch.cumsum(keep, 0) * keep
    return IdMapTargets(classes[keep], table[inverse].to(torch.int32), name)


def _model_classes(classes: Tensor, class_index: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Classes of the data set -> classes of the model, and which of them the model has."""
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

"""Segments of one image: their map, masks, boxes and numbers. The core of `PanopticResult`.

Shapes: H x W the image, N segments. Arrays are numpy's; the map is a torch tensor, as Detectron2's.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from panoptic_ext.data.coco.runs import find_runs
from panoptic_ext.data.datasets.unified_classes import unified_classes, unified_metadata
from panoptic_ext.errors import ConfigError, DatasetError, listed
from panoptic_ext.prediction.description import describe
from panoptic_ext.prediction.instance_crops import Crops, stacked
from panoptic_ext.prediction.segments import Segment, id_map_and_segments, only_segments

__all__ = ["SegmentedImage"]

Self = TypeVar("Self", bound="SegmentedImage")


class SegmentedImage:
    """A map of segments, and the segments; see `PanopticResult`."""

    def __init__(
        self,
        panoptic_seg: np.ndarray | torch.Tensor,
        segments_info: Sequence[Mapping[str, Any]] | None,
        metadata: Any,
        image: np.ndarray | Callable[[], np.ndarray] | None = None,
        outputs: Mapping[str, Any] | None = None,
        file_name: str = "",
    ) -> None:
        """
        Args:
            panoptic_seg: (H, W) segment ids, 0 for void; copied to the CPU.
            segments_info: with "id" and "category_id" (contiguous), optionally "isthing" and
                "score". Ids of the map without an entry are void; entries without a pixel are left
                out. None: ids are category * metadata.label_divisor + instance, void is -1.
            metadata: of the data set, with thing_classes or stuff_classes. Where it numbers things
                and stuff apart, as Detectron2's separated ones, `segments` and `self.metadata` have
                one numbering, things first.
            image: (H, W, 3) uint8 RGB, or a function that reads it when it is needed.
            outputs: of the model, to keep.
            file_name: of the image.

        Raises:
            DatasetError: map and segments do not fit each other, or the classes.
        """
        self._classes = unified_classes(metadata)
        self.metadata = unified_metadata(metadata)
        divisor = int(getattr(metadata, "label_divisor", 1000))
        self.panoptic_seg, segments = id_map_and_segments(
            panoptic_seg, segments_info, self._classes, divisor
        )
        self.segments: tuple[Segment, ...] = tuple(segments)
        self.outputs = outputs
        self.file_name = os.fspath(file_name)
        self._crops: Crops | None = None
        self._image = image
        if isinstance(image, np.ndarray):
            self._check_image(image)

    @property
    def height(self) -> int:
        return int(self.panoptic_seg.shape[0])

    @property
    def width(self) -> int:
        return int(self.panoptic_seg.shape[1])

    @property
    def image(self) -> np.ndarray | None:
        """(H, W, 3) uint8 RGB, read at the first access; None where there is none."""
        if callable(self._image):
            image = np.asarray(self._image())
            self._check_image(image)
            self._image = image
        return self._image

    @property
    def segments_info(self) -> list[dict[str, Any]]:
        """The segments as Detectron2 has them, for `Visualizer.draw_panoptic_seg_predictions`.

        Dicts with id, category_id (contiguous), isthing, area, bbox (x, y, width, height) and the
        score, where the model gave one.
        """
        return [segment.to_segments_info() for segment in self.segments]

    @property
    def class_names(self) -> list[str]:
        """Names of all classes of the data set, by contiguous id."""
        return [category.name for category in self._classes.categories]

    @property
    def boxes(self) -> np.ndarray:
        """(N, 4) int64, the box of each segment; see `Segment.box`."""
        return np.array([s.box for s in self.segments], np.int64).reshape(-1, 4)

    def masks(self) -> np.ndarray:
        """(N, H, W) bool, the mask of each segment, in the order of `segments`."""
        masks: np.ndarray = np.zeros((len(self), self.height, self.width), bool)
        for mask, segment in zip(masks, self.segments, strict=True):
            x0, y0, x1, y1 = segment.box
            mask[y0:y1, x0:x1] = self.crop(segment)
        return masks

    def mask(self, segment: Segment | int) -> np.ndarray:
        """(H, W) bool, the mask of one segment.

        Args:
            segment: of this result, or its id.

        Raises:
            ConfigError: there is no such segment.
        """
        mask: np.ndarray = np.zeros((self.height, self.width), bool)
        x0, y0, x1, y1 = self._find(segment).box
        mask[y0:y1, x0:x1] = self.crop(segment)
        return mask

    def crop(self, segment: Segment | int) -> np.ndarray:
        """(y1 - y0, x1 - x0) bool, the mask of one segment within its box; errors as `mask`."""
        found = self._find(segment)
        if self._crops is not None:
            return self._crops[found.id]
        x0, y0, x1, y1 = found.box
        return (self.panoptic_seg[y0:y1, x0:x1] == found.id).numpy()

    def counts(self) -> dict[str, int]:
        """The number of things of each class that has any, the most first."""
        counts = Counter(segment.name for segment in self.segments if segment.isthing)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def shares(self) -> dict[str, float]:
        """The part of the image's pixels, 0 to 1, that each class covers, the largest first.

        Void is the rest to 1. Pixels where instances overlap count once.
        """
        return self._shares(self.segments)

    def filter(
        self: Self,
        classes: str | int | Sequence[str | int] | None = None,
        *,
        min_score: float = 0.0,
        min_area: float = 0,
        isthing: bool | None = None,
    ) -> Self:
        """A new result with a part of the segments; pixels of the others are void.

        Args:
            classes: names or contiguous ids of the classes to keep. None: all.
            min_score: segments with a lower score are left out; those without a score stay.
            min_area: pixels; smaller segments are left out.
            isthing: True keeps things alone, False stuff alone.

        Raises:
            ConfigError: the data set has no such class.
        """
        wanted = None if classes is None else self._classes.find(classes)
        kept = [
            s
            for s in self.segments
            if (wanted is None or s.class_id in wanted)
            and (s.score is None or s.score >= min_score)
            and s.area >= min_area
            and (isthing is None or s.isthing is isthing)
        ]
        result = copy.copy(self)
        result.segments = tuple(kept)
        if self._crops is None:
            result.panoptic_seg = only_segments(self.panoptic_seg, kept)
        else:
            result._crops = {s.id: self._crops[s.id] for s in kept}
            result.panoptic_seg = stacked(kept, result._crops, self.height, self.width)
        return result

    def __len__(self) -> int:
        return len(self.segments)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.segments)

    def __getitem__(self, index: int) -> Segment:
        return self.segments[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SegmentedImage):
            return NotImplemented
        return (
            self.segments == other.segments
            and self._classes.categories == other._classes.categories
            and torch.equal(self.panoptic_seg, other.panoptic_seg)
            and all(np.array_equal(self.crop(s), other.crop(s)) for s in self.segments)
        )

    def __repr__(self) -> str:
        stuff = self._shares([segment for segment in self.segments if not segment.isthing])
        of_file = f" of {os.path.basename(self.file_name)}" if self.file_name else ""
        what = describe(self.counts(), stuff)
        return f"{type(self).__name__}{of_file}, {self.width} x {self.height}: {what}"

    def _shares(self, segments: Sequence[Segment]) -> dict[str, float]:
        pixels = {segment.id: segment.area for segment in segments}
        if self._crops is not None:  # others may cover a part of an instance
            ids, areas = find_runs(self.panoptic_seg.numpy()).areas()
            visible = dict(zip(ids.tolist(), areas.tolist(), strict=True))
            pixels = {segment.id: visible.get(segment.id, 0) for segment in segments}
        shares: Counter[str] = Counter()
        for segment in segments:
            shares[segment.name] += pixels[segment.id]
        total = max(1, self.panoptic_seg.numel())
        ordered = sorted(shares.items(), key=lambda item: (-item[1], item[0]))
        return {name: area / total for name, area in ordered}

    def _find(self, segment: Segment | int) -> Segment:
        wanted = segment.id if isinstance(segment, Segment) else int(segment)
        for candidate in self.segments:
            if candidate.id == wanted:
                return candidate
        known = listed((s.id for s in self.segments), 20) or "none"
        raise ConfigError(f"the result has no segment of the id {wanted}; known: {known}")

    def _check_image(self, image: np.ndarray) -> None:
        if image.shape != (self.height, self.width, 3):
            raise DatasetError(
                f"the image is of shape {image.shape}, the id map {(self.height, self.width)};"
                " expected (H, W, 3) of the same height and width"
            )

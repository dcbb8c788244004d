"""The segments of one label map as arrays."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from panoptic_ext.data.coco.runs import MAX_ID
from panoptic_ext.errors import EvaluationError, quoted, unknown

__all__ = ["SegmentTable", "integer"]


@dataclass(frozen=True)
class SegmentTable:
    """S segments, in the order of their segments_info.

    Attributes:
        ids: (S,) int64, in [1, 2^24), all different.
        categories: (S,) int64, dataset category ids.
        iscrowd: (S,) bool.
        areas: (S,) int64, pixels.
    """

    ids: np.ndarray
    categories: np.ndarray
    iscrowd: np.ndarray
    areas: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def from_segments_info(
        cls, segments: Iterable[Mapping], categories: Mapping | frozenset, where: str
    ) -> SegmentTable:
        """Read COCO's segments_info.

        Args:
            segments: dicts with id and category_id (dataset id), and optionally iscrowd and area
                (0 where missing).
            categories: holds the known category ids.
            where: names image and file in errors.

        Raises:
            EvaluationError: an id out of range or twice, or an unknown category.
        """
        segments = list(segments)
        seen: set[int] = set()
        for segment in segments:
            segment_id = integer(segment, "id", where)
            category = integer(segment, "category_id", where)
            if not 0 < segment_id < MAX_ID:
                raise EvaluationError(
                    f"{where}: segment id {segment_id} in segments_info; expected 0 < id < 2^24"
                    " (0 is void)"
                )
            if segment_id in seen:
                raise EvaluationError(f"{where}: segment id {segment_id} occurs twice")
            seen.add(segment_id)
            if category not in categories:
                # Sorted by length first, ids as text are in numeric order: 9 before 10.
                known = sorted(map(str, categories), key=lambda c: (len(c), c))
                text = unknown("category_id", category, known, limit=20)
                raise EvaluationError(f"{where}, segment {segment_id}: {text}")
        return cls(
            np.array([int(s["id"]) for s in segments], np.int64),
            np.array([int(s["category_id"]) for s in segments], np.int64),
            np.array([bool(s.get("iscrowd", 0)) for s in segments], bool),
            np.array([int(s.get("area", 0)) for s in segments], np.int64),
        )

    @classmethod
    def from_checked(cls, segments: Sequence[Mapping]) -> SegmentTable:
        """Read segments that were checked when their JSON was read; see `from_segments_info`."""
        return cls(
            np.array([s["id"] for s in segments], np.int64),
            np.array([s["category_id"] for s in segments], np.int64),
            np.array([s.get("iscrowd") == 1 for s in segments], bool),
            np.array([_area(s.get("area")) for s in segments], np.int64),
        )

    def with_areas(self, areas: np.ndarray) -> SegmentTable:
        """The same segments with other areas, (S,) int64."""
        return replace(self, areas=areas)

    def with_pixel_areas(self, ids: np.ndarray, pixels: np.ndarray) -> SegmentTable:
        """The same segments with the areas counted in a map, see `Runs.areas`."""
        rows = self.rows(ids)
        areas: np.ndarray = np.zeros(len(self), np.int64)
        areas[rows[rows >= 0]] = pixels[rows >= 0]
        return self.with_areas(areas)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """The row of each id: same shape as `ids`, int64, -1 for ids without a row."""
        if not len(self):
            return np.full(ids.shape, -1, np.int64)
        order = np.argsort(self.ids)
        # searchsorted gives len(self) for ids above all others, which would be out of range.
        positions = np.minimum(np.searchsorted(self.ids[order], ids), len(self) - 1)
        rows = order[positions]
        return np.where(self.ids[rows] == ids, rows, -1)


def integer(segment: Mapping, key: str, where: str) -> int:
    """An integer of any kind (Python, numpy, torch) in an entry of segments_info.

    Raises:
        EvaluationError: missing or something else.
    """
    try:
        return operator.index(segment.get(key))  # type: ignore[arg-type]
    except TypeError as error:
        raise EvaluationError(
            f"{where}: a segment has {key} {quoted(segment.get(key))}; expected an integer"
        ) from error


def _area(value: object) -> int:
    # The areas of predictions are counted in the pixels. Their JSON may hold anything.
    return int(value) if isinstance(value, (int, float)) and 0 <= value < 2**53 else 0

"""Label maps as runs of equal ids: boxes, areas, and how two of them overlap.

Shapes: a map is (H, W) of segment ids, 0 is void. Flattened row by row it has N = H W pixels in R
runs. A street scene of 307k pixels has about 5k runs, so work that is done on runs is many times
faster than the same work on pixels. Maps of noise have as many runs as pixels: `overlaps` then
compares pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from panoptic_ext.errors import EvaluationError

__all__ = [
    "MAX_ID",
    "Overlaps",
    "Runs",
    "find_runs",
    "overlaps",
    "runs_from_ids",
    "runs_from_rgb",
    "segment_boxes",
]

MAX_ID = 1 << 24  # ids fit into the three bytes of an RGB pixel
_BLOCK = 1 << 18  # pixels compared at a time, so that temporaries fit into the CPU's cache
_MAX_TABLE = 1 << 18  # up to this number of pairs of ids, a table is used instead of sorting
_MIN_PIXELS_PER_RUN = 4  # with fewer pixels per run, pixels are sorted instead of runs


@dataclass(frozen=True)
class Runs:
    """A label map as runs of equal ids along its flattened rows.

    A run may continue in the next row, unless the runs were split at the ends of rows.

    Attributes:
        starts: (R,) int64, index of each run's first pixel; ascending, starts[0] is 0.
        ids: (R,), the id of each run, of the map's integer type.
        shape: (H, W).
    """

    starts: np.ndarray
    ids: np.ndarray
    shape: tuple[int, int]

    @property
    def size(self) -> int:
        """Number of pixels."""
        return self.shape[0] * self.shape[1]

    @cached_property
    def lengths(self) -> np.ndarray:
        """(R,) int64, pixels of each run."""
        return np.diff(self.starts, append=self.size)

    @cached_property
    def index(self) -> tuple[np.ndarray, np.ndarray]:
        """(S,) distinct ids, ascending, and (R,) int64, the position of each run's id in them."""
        return np.unique(self.ids, return_inverse=True)

    def dense(self) -> np.ndarray:
        """The (H, W) int32 map."""
        return self.expand(self.ids.astype(np.int32))

    def expand(self, values: np.ndarray) -> np.ndarray:
        """(H, W) map, of the values' type, from (R,) one value for each run."""
        return np.repeat(values, self.lengths).reshape(self.shape)

    def areas(self) -> tuple[np.ndarray, np.ndarray]:
        """The ids that occur, ascending, and the pixels of each: two (S,) arrays."""
        ids, inverse = self.index
        return ids, np.bincount(inverse, self.lengths, len(ids)).astype(np.int64)

    def boxes(self, ids: np.ndarray) -> np.ndarray:
        """(S, 4) int64 x, y, width, height in pixels of each of `ids`, which all occur."""
        if not len(ids):
            return np.zeros((0, 4), np.int64)
        runs = self.split_rows()
        order = np.argsort(ids)
        nearest = order[np.minimum(np.searchsorted(ids[order], runs.ids), len(ids) - 1)]
        rows = np.where(ids[nearest] == runs.ids, nearest, -1)
        corners = segment_boxes(runs, rows, len(ids))
        return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)

    def split_rows(self) -> Runs:
        """The same map in runs that each lie within one row."""
        starts = np.union1d(self.starts, np.arange(0, self.size, max(1, self.shape[1])))
        ids = self.ids[np.searchsorted(self.starts, starts, side="right") - 1]
        return Runs(starts, ids, self.shape)


@dataclass(frozen=True)
class Overlaps:
    """The pixels that each pair of segments of two maps shares; only pairs that share some.

    Attributes:
        gt_ids, pred_ids, pixels: (M,) int64 each, ordered by gt id, then by predicted id.
    """

    gt_ids: np.ndarray
    pred_ids: np.ndarray
    pixels: np.ndarray


def find_runs(ids: np.ndarray, *, split_rows: bool = False) -> Runs:
    """Encode an (H, W) map of any values, also an empty one; nothing is checked.

    Args:
        ids: the map; not changed.
        split_rows: split runs at the ends of rows, as `segment_boxes` needs them.
    """
    flat = np.ascontiguousarray(ids).reshape(-1)
    shape = (int(ids.shape[0]), int(ids.shape[1]))
    if flat.size == 0:
        return Runs(np.zeros(0, np.int64), flat, shape)
    starts = _run_starts(flat, shape[1] if split_rows else 0)
    return Runs(starts, flat[starts], shape)


def runs_from_ids(ids: np.ndarray, name: str = "the map", *, shift: int = 0) -> Runs:
    """Encode a map of segment ids, checked.

    Args:
        ids: (H, W) array of any integer type; not kept and not changed.
        name: names the map in errors.
        shift: added to every id.

    Returns:
        runs with int64 ids.

    Raises:
        EvaluationError: not a two-dimensional integer map, empty, or ids out of range.
    """
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or ids.size == 0:
        raise EvaluationError(
            f"{name} is an array of {ids.dtype} of shape {ids.shape}; expected a (height, width)"
            " map of integer segment ids"
        )
    runs = find_runs(ids)
    values = runs.ids.astype(np.int64) + shift
    if values.min() < 0 or values.max() >= MAX_ID:
        wrong = int(values.min()) if values.min() < 0 else int(values.max())
        raise EvaluationError(
            f"{name} has segment id {wrong}; expected 0 (void) <= id < 2^24 = {MAX_ID}"
        )
    return Runs(runs.starts, values, runs.shape)


def runs_from_rgb(rgb: np.ndarray) -> Runs:
    """Encode an RGB picture of ids, id = R + 256 G + 65536 B, without making the map of ids.

    Args:
        rgb: (H, W, 3) uint8.
    """
    height, width = rgb.shape[:2]
    flat = np.ascontiguousarray(rgb).reshape(-1)
    parts: list[np.ndarray] = [np.zeros(1, np.int64)]
    step = 3 * _BLOCK
    for first in range(0, len(flat) - 3, step):
        last = min(first + step, len(flat) - 3)
        # A pixel differs from the one before it where one of its three bytes does: the same pixel
        # may be listed up to three times.
        pixel: np.ndarray = np.flatnonzero(flat[first + 3 : last + 3] != flat[first:last]) // 3
        if len(pixel):
            is_new: np.ndarray = np.empty(len(pixel), bool)
            is_new[0] = True
            np.not_equal(pixel[1:], pixel[:-1], out=is_new[1:])
            parts.append(pixel[is_new] + (first // 3 + 1))
    starts = np.concatenate(parts)
    colours = flat.reshape(-1, 3)[starts].astype(np.int64)
    ids = colours[:, 0] + (colours[:, 1] << 8) + (colours[:, 2] << 16)
    return Runs(starts, ids, (height, width))


def segment_boxes(runs: Runs, rows: np.ndarray, count: int) -> np.ndarray:
    """Tight boxes of segments, in one pass over the runs.

    Args:
        runs: split at the ends of rows.
        rows: (R,) the segment that each run belongs to, 0..count - 1; runs with other values
            are ignored.
        count: number of segments.

    Returns:
        (count, 4) int64 x0, y0, x1, y1, the last two exclusive; zeros where there is no run.
    """
    boxes = np.zeros((count, 4), np.int64)
    keep = np.flatnonzero((rows >= 0) & (rows < count))
    if len(keep) == 0:
        return boxes
    # Sorted by segment, the runs of a segment are consecutive: one reduceat covers all segments.
    keep = keep[np.argsort(rows[keep], kind="stable")]
    owner = rows[keep]
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    y, x0 = np.divmod(runs.starts[keep], runs.shape[1])
    x1 = x0 + runs.lengths[keep]
    present = owner[first]
    boxes[present, 0] = np.minimum.reduceat(x0, first)
    boxes[present, 1] = np.minimum.reduceat(y, first)
    boxes[present, 2] = np.maximum.reduceat(x1, first)
    boxes[present, 3] = np.maximum.reduceat(y, first) + 1
    return boxes


def overlaps(gt: Runs, pred: Runs) -> Overlaps:
    """Count the pixels that each pair of segments shares.

    Args:
        gt, pred: maps of one shape (not checked here).
    """
    # Sorting runs costs more than sorting pixels once there are nearly as many of them.
    if (len(gt.starts) + len(pred.starts)) * _MIN_PIXELS_PER_RUN > gt.size:
        return _count_pixels(gt.dense().reshape(-1), pred.dense().reshape(-1))
    starts = np.concatenate([gt.starts, pred.starts])
    order = np.argsort(starts, kind="stable")
    gt_run = np.cumsum(order < len(gt.starts))
    pred_run = np.arange(1, len(order) + 1) - gt_run
    # Both maps have a run that starts at pixel 0, and the stable order puts the truth's first. The
    # prediction's run would be -1 there. Any valid index will do, because this piece has no pixels.
    pred_run[0] = 1
    lengths = np.diff(starts[order], append=gt.size)
    (gt_ids, gt_index), (pred_ids, pred_index) = gt.index, pred.index
    pairs = gt_index[gt_run - 1] * len(pred_ids) + pred_index[pred_run - 1]
    return _sum_pairs(pairs, lengths, gt_ids, pred_ids)


def _run_starts(flat: np.ndarray, row_length: int = 0) -> np.ndarray:
    """(R,) int64, where a flat map changes; with a row length also the first pixel of each row."""
    parts: list[np.ndarray] = [np.zeros(1, np.int64)]
    for first in range(0, len(flat) - 1, _BLOCK):
        last = min(first + _BLOCK, len(flat) - 1)
        is_start = flat[first + 1 : last + 1] != flat[first:last]
        # is_start[i] belongs to pixel first + 1 + i, which begins a row if row_length divides it.
        if row_length:
            is_start[-(first + 1) % row_length :: row_length] = True
        parts.append(np.flatnonzero(is_start) + (first + 1))
    return np.concatenate(parts)


def _sum_pairs(
    pairs: np.ndarray, lengths: np.ndarray, gt_ids: np.ndarray, pred_ids: np.ndarray
) -> Overlaps:
    """Add up the lengths of equal pairs, which are numbered row by row."""
    # Both branches drop pairs without pixels, which come from runs that start at the same pixel.
    number = len(gt_ids) * len(pred_ids)
    if number <= _MAX_TABLE:
        pixels = np.bincount(pairs, lengths, number)  # float64, exact below 2^53
        present = np.flatnonzero(pixels)
        pixels = pixels[present]
    else:
        present, inverse = np.unique(pairs, return_inverse=True)
        pixels = np.bincount(inverse, lengths)
        present, pixels = present[pixels > 0], pixels[pixels > 0]
    return Overlaps(
        gt_ids[present // len(pred_ids)], pred_ids[present % len(pred_ids)], pixels.astype(np.int64)
    )


def _count_pixels(gt_ids: np.ndarray, pred_ids: np.ndarray) -> Overlaps:
    """Count equal pairs of ids in two flat maps."""
    pairs, pixels = np.unique(gt_ids.astype(np.int64) * MAX_ID + pred_ids, return_counts=True)
    return Overlaps(pairs // MAX_ID, pairs % MAX_ID, pixels.astype(np.int64))

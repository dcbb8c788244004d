"""Match one image's prediction with its truth, by the rules of panopticapi.

Source: Kirillov et al., "Panoptic Segmentation", CVPR 2019; the rules are panopticapi's:
- IoU = I / (P + G - I - I(void, P)): predicted area P from the pixels, true area G from the JSON.
- A pair matches if of one category, the truth is not crowd, and IoU > 0.5, strictly.
- FN: truth without a match that is not crowd.
- FP: prediction without a match, unless more than half of it, strictly, is void or crowd of its
  category; of several crowd segments of a category only the last in the JSON counts.
- Pixels of an id that the truth's JSON lacks are neither void nor of any segment.

Shapes: G true and P predicted segments, M pairs of them that share pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from panoptic_ext.data.coco.runs import Overlaps, Runs, overlaps
from panoptic_ext.data.coco.segment_table import SegmentTable
from panoptic_ext.errors import EvaluationError, listed

__all__ = [
    "ImageMatch",
    "check_areas",
    "check_same_size",
    "match_segments",
    "predicted_segments",
]


@dataclass(frozen=True)
class ImageMatch:
    """How the segments of a prediction lie on those of the truth.

    Attributes:
        shape: (H, W) of the image.
        gt, pred: the segments, areas as they count.
        shared: the pixels that ids share, void and ids without an entry included.
        shared_gt, shared_pred: the row of each of those ids in `gt` and in `pred`; -1 for none.
        g, p: (M,) int64, the rows of each pair in `gt` and in `pred`.
        pixels: (M,) int64 that the pair shares.
        iou: (M,) float64; that of a pair of two categories or with a crowd, too.
        same: (M,) bool, the pairs of one category whose truth is not crowd.
        matched: (M,) bool, the true positives.
        missed: (G,) bool, the false negatives.
        extra: (P,) bool, the false positives.
        void: (P,) int64, pixels of each prediction on void.
        ignored: (P,) int64, those and its pixels on the crowd of its category that counts.
    """

    shape: tuple[int, int]
    gt: SegmentTable
    pred: SegmentTable
    shared: Overlaps
    shared_gt: np.ndarray
    shared_pred: np.ndarray
    g: np.ndarray
    p: np.ndarray
    pixels: np.ndarray
    iou: np.ndarray
    same: np.ndarray
    matched: np.ndarray
    missed: np.ndarray
    extra: np.ndarray
    void: np.ndarray
    ignored: np.ndarray

    def with_iou(self, iou: np.ndarray) -> ImageMatch:
        """The match that another IoU of the same pairs, (M,), gives."""
        return _decided(replace(self, iou=iou))


def match_segments(
    gt_runs: Runs, gt: SegmentTable, pred_runs: Runs, pred: SegmentTable, where: str
) -> ImageMatch:
    """Match one image, by the rules at the top of this file.

    Args:
        gt_runs, pred_runs: the label maps.
        gt: the true segments; areas from the JSON.
        pred: the predicted segments, from `predicted_segments`.
        where: names the image in errors.

    Raises:
        EvaluationError: the sizes differ, or true areas contradict the pixels so much that a union
            has none.
    """
    check_same_size(gt_runs.shape, pred_runs.shape, where)
    shared = overlaps(gt_runs, pred_runs)
    gt_rows, pred_rows = gt.rows(shared.gt_ids), pred.rows(shared.pred_ids)
    void = _pixels_by_row(pred_rows, shared.pixels, shared.gt_ids == 0, len(pred))
    both = (gt_rows >= 0) & (pred_rows >= 0)
    g, p, pixels = gt_rows[both], pred_rows[both], shared.pixels[both]
    union = pred.areas[p] + gt.areas[g] - pixels - void[p]
    if (union <= 0).any():
        row = g[np.argmax(union <= 0)]
        raise EvaluationError(
            f"{where}: the ground truth's JSON gives segment {gt.ids[row]} an area of"
            f" {gt.areas[row]}, less than the pixels that a prediction shares with it; correct the"
            " areas, or count them with gt_area: 'pixels'"
        )
    found = ImageMatch(
        shape=gt_runs.shape,
        gt=gt,
        pred=pred,
        shared=shared,
        shared_gt=gt_rows,
        shared_pred=pred_rows,
        g=g,
        p=p,
        pixels=pixels,
        iou=pixels / union,
        same=(gt.categories[g] == pred.categories[p]) & ~gt.iscrowd[g],
        void=void,
        ignored=void + _crowd_pixels(gt, pred, shared, pred_rows),
        **dict.fromkeys(("matched", "missed", "extra"), _UNDECIDED),
    )
    return _decided(found)


_UNDECIDED = np.zeros(0, bool)


def _decided(match: ImageMatch) -> ImageMatch:
    """The match with the TPs, FNs and FPs that its IoUs give."""
    matched = match.same & (match.iou > 0.5)
    missed = ~match.gt.iscrowd
    missed[match.g[matched]] = False
    # A prediction mostly on void or crowd is no FP: void has no truth, and a crowd no single
    # instances to match.
    extra = match.ignored / np.maximum(match.pred.areas, 1) <= 0.5
    extra[match.p[matched]] = False
    return replace(match, matched=matched, missed=missed, extra=extra)


def predicted_segments(runs: Runs, table: SegmentTable, where: str) -> SegmentTable:
    """The predicted segments with their areas counted in the pixels.

    Args:
        runs: the predicted map.
        table: its segments; their areas are not used.
        where: names the image in errors.

    Raises:
        EvaluationError: a pixel's id has no entry, or an entry has no pixels.
    """
    ids, pixels = runs.areas()
    rows = table.rows(ids)
    unknown = ids[(rows < 0) & (ids != 0)]
    if len(unknown):
        raise EvaluationError(
            f"{where}: predicted segment ids {listed(unknown.tolist())} are in the label map"
            " but not in segments_info; expected an entry for every id but 0 (void)"
        )
    counted = table.with_pixel_areas(ids, pixels)
    without_pixels = table.ids[counted.areas == 0]
    if len(without_pixels):
        raise EvaluationError(
            f"{where}: predicted segment ids {listed(without_pixels.tolist())} are in"
            " segments_info but have no pixel in the label map; drop those entries"
        )
    return counted


def check_areas(runs: Runs, table: SegmentTable, where: str) -> None:
    """Compare the true areas of the JSON with the pixels.

    Segments without any pixel pass: they are false negatives, as in panopticapi.

    Raises:
        EvaluationError: an area differs.
    """
    ids, pixels = runs.areas()
    rows = table.rows(ids)
    ids, pixels, rows = ids[rows >= 0], pixels[rows >= 0], rows[rows >= 0]
    wrong = np.flatnonzero(table.areas[rows] != pixels)
    if len(wrong):
        first = wrong[0]
        raise EvaluationError(
            f"{where}: the ground truth's JSON gives segment {ids[first]} an area of"
            f" {table.areas[rows[first]]}, but its PNG has {pixels[first]} pixels of it"
            f" ({len(wrong)} such segments in this image); PQ would be wrong. Correct the areas, or"
            " say which to trust with gt_area: 'pixels', or 'json' as panopticapi does"
        )


def check_same_size(truth: tuple[int, int], prediction: tuple[int, int], where: str) -> None:
    """Raise EvaluationError unless truth and prediction have the same (H, W)."""
    if truth != prediction:
        raise EvaluationError(
            f"{where}: the prediction is {prediction[0]} x {prediction[1]}, the ground truth"
            f" {truth[0]} x {truth[1]} (height x width); predictions must have the original"
            " image's size"
        )


def _crowd_pixels(
    gt: SegmentTable, pred: SegmentTable, shared: Overlaps, pred_rows: np.ndarray
) -> np.ndarray:
    """(P,) int64: pixels that each prediction shares with the last crowd of its category."""
    # Only the last crowd counts, as in panopticapi, which keeps one for each category in a dict.
    last_crowd = {int(gt.categories[r]): int(gt.ids[r]) for r in np.flatnonzero(gt.iscrowd)}
    result: np.ndarray = np.zeros(len(pred), np.int64)
    for category, crowd_id in last_crowd.items():
        at = shared.gt_ids == crowd_id
        pixels = _pixels_by_row(pred_rows, shared.pixels, at, len(pred))
        of_category = pred.categories == category
        result[of_category] = pixels[of_category]
    return result


def _pixels_by_row(rows: np.ndarray, pixels: np.ndarray, use: np.ndarray, n: int) -> np.ndarray:
    use = use & (rows >= 0)
    result: np.ndarray = np.zeros(n, np.int64)
    np.add.at(result, rows[use], pixels[use])
    return result

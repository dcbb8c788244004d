"""Panoptic quality by the rules of panopticapi: match one image, add up many, average.

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

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from panoptic_ext.data.coco.panoptic_files import Annotation, PanopticFiles
from panoptic_ext.data.coco.runs import Overlaps, Runs, overlaps
from panoptic_ext.data.coco.segment_table import SegmentTable
from panoptic_ext.errors import EvaluationError, check_known, listed, quoted
from panoptic_ext.evaluation.error_causes import false_negative_causes, false_positive_causes

__all__ = [
    "GT_AREAS",
    "ClassCounts",
    "PQStat",
    "check_areas",
    "check_same_size",
    "check_sizes_in_headers",
    "compare_with_truth",
    "match_image",
    "predicted_segments",
]


GT_AREAS = ("check", "json", "pixels")
"""Which areas of true segments count, see `PanopticEvaluator`."""


@dataclass
class ClassCounts:
    """The counts of one category that panoptic quality is computed from.

    Attributes:
        ious: the IoU of each true positive.
        fp, fn: false positives and negatives.
        fp_causes, fn_causes: how many of them by cause, see `error_causes`.
    """

    # A list and not its sum: math.fsum of all values is the same to the last bit in any order of
    # the images and on any number of workers.
    ious: list[float] = field(default_factory=list)
    fp: int = 0
    fn: int = 0
    fp_causes: Counter[str] = field(default_factory=Counter)
    fn_causes: Counter[str] = field(default_factory=Counter)

    @property
    def tp(self) -> int:
        """True positives."""
        return len(self.ious)

    @property
    def weight(self) -> float:
        """TP + FP / 2 + FN / 2, what PQ and RQ divide by."""
        return self.tp + 0.5 * self.fp + 0.5 * self.fn

    @property
    def shortfall(self) -> float:
        """weight * (1 - PQ), 0 for a perfect result; those of all images add up to the total's."""
        return self.weight - math.fsum(self.ious)

    def add(self, other: ClassCounts) -> None:
        """Add the counts of `other` to these."""
        self.ious.extend(other.ious)
        self.fp += other.fp
        self.fn += other.fn
        if other.fp_causes:
            self.fp_causes.update(other.fp_causes)
        if other.fn_causes:
            self.fn_causes.update(other.fn_causes)

    def quality(self) -> dict[str, float]:
        """pq, sq, rq in [0, 1]; nan for a category without TP, FP and FN (sq 0 without TP)."""
        if self.weight == 0:
            return {"pq": math.nan, "sq": math.nan, "rq": math.nan}
        iou_sum = math.fsum(self.ious)
        return {
            "pq": iou_sum / self.weight,
            "sq": iou_sum / self.tp if self.tp else 0.0,
            "rq": self.tp / self.weight,
        }


@dataclass
class PQStat:
    """Counts by dataset category id, of one image or of many.

    Merging in any order gives results equal to the last bit.
    """

    counts: dict[int, ClassCounts] = field(default_factory=dict)

    def __getitem__(self, category: int) -> ClassCounts:
        if category not in self.counts:
            self.counts[category] = ClassCounts()
        return self.counts[category]

    def merge(self, other: PQStat) -> None:
        """Add the counts of `other` to these."""
        for category, counts in other.counts.items():
            self[category].add(counts)

    @classmethod
    def total(cls, stats: Iterable[PQStat]) -> PQStat:
        """The sum of `stats`."""
        result = cls()
        for stat in stats:
            result.merge(stat)
        return result

    def average(self, categories: Iterable[int]) -> dict[str, float]:
        """Mean pq, sq, rq in [0, 1] over those of `categories` that have TP, FP or FN.

        Returns:
            {"pq", "sq", "rq", "n"}; n is the number of those categories. Where it is 0 the
            qualities are not available: nan.
        """
        rows = [self.counts[c].quality() for c in categories if self.has(c)]
        means = {k: math.fsum(r[k] for r in rows) / len(rows) if rows else math.nan for k in _KEYS}
        return {**means, "n": len(rows)}

    def has(self, category: int) -> bool:
        """Whether the category has any TP, FP or FN."""
        return category in self.counts and self.counts[category].weight > 0

    def totals(self) -> dict[str, int]:
        """{"tp", "fp", "fn"} over all categories."""
        return {k: sum(getattr(c, k) for c in self.counts.values()) for k in ("tp", "fp", "fn")}

    def pooled_pq(self) -> float:
        """PQ in [0, 1] of all segments taken as one category's (matches stay within categories)."""
        counts = self.counts.values()
        pooled = ClassCounts(
            [iou for c in counts for iou in c.ious],
            sum(c.fp for c in counts),
            sum(c.fn for c in counts),
        )
        return pooled.quality()["pq"]

    def summary(self, isthing: Mapping[int, bool]) -> dict[str, dict]:
        """All averages.

        Args:
            isthing: for each category of the data set, whether it is a thing.

        Returns:
            {"All", "Things", "Stuff": as `average`, "per_class": {category: {pq, sq, rq, iou, tp,
            fp, fn, fp_causes, fn_causes}}}, every category of `isthing` in its order.
        """
        per_class = {}
        for category in isthing:
            counts = self.counts.get(category, ClassCounts())
            per_class[category] = {
                **counts.quality(),
                "iou": math.fsum(counts.ious),
                "tp": counts.tp,
                "fp": counts.fp,
                "fn": counts.fn,
                "fp_causes": dict(sorted(counts.fp_causes.items())),
                "fn_causes": dict(sorted(counts.fn_causes.items())),
            }
        return {
            "All": self.average(isthing),
            "Things": self.average(c for c, thing in isthing.items() if thing),
            "Stuff": self.average(c for c, thing in isthing.items() if not thing),
            "per_class": per_class,
        }


_KEYS = ("pq", "sq", "rq")


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


def compare_with_truth(
    truth: PanopticFiles,
    annotation: Annotation,
    runs: Runs,
    table: SegmentTable,
    gt_area: str = "check",
) -> PQStat:
    """Read the truth of one image and compare a prediction with it.

    Args:
        truth: the ground truth.
        annotation: the image, from `truth`.
        runs, table: the prediction, from `predicted_segments`.
        gt_area: as `PanopticEvaluator`.

    Raises:
        EvaluationError: the truth cannot be read, sizes differ, or its areas are wrong.
    """
    check_known("gt_area", gt_area, GT_AREAS, error=EvaluationError)
    # The headers are compared before the PNG is unpacked: a small file may hold a label map that
    # fills the memory.
    check_sizes_in_headers(truth.size(annotation), runs.shape, annotation)
    gt_runs = truth.runs(annotation)
    gt_table = truth.table(annotation, gt_runs)
    if gt_area == "check":
        check_areas(gt_runs, gt_table, truth.where(annotation))
    elif gt_area == "pixels":
        gt_table = gt_table.with_pixel_areas(*gt_runs.areas())
    return match_image(gt_runs, gt_table, runs, table, f"image {quoted(annotation.image_id)}")


def check_sizes_in_headers(
    truth: tuple[int, int] | None, prediction: tuple[int, int] | None, annotation: Annotation
) -> None:
    """Compare the (H, W) of two label maps before the larger of them is unpacked."""
    if truth is not None and prediction is not None:
        check_same_size(truth, prediction, f"image {quoted(annotation.image_id)}")


def match_image(
    gt_runs: Runs,
    gt: SegmentTable,
    pred_runs: Runs,
    pred: SegmentTable,
    where: str,
) -> PQStat:
    """Compare one image's prediction with its truth, by the rules at the top of this file.

    Args:
        gt_runs, pred_runs: the label maps.
        gt: the true segments; areas from the JSON.
        pred: the predicted segments, from `predicted_segments`.
        where: names the image in errors.

    Returns:
        the counts of this image.

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
    iou = pixels / union
    same = gt.categories[g] == pred.categories[p]
    match = same & ~gt.iscrowd[g] & (iou > 0.5)
    missed = ~gt.iscrowd
    missed[g[match]] = False
    # A prediction mostly on void or crowd is no FP: void has no truth, and a crowd no single
    # instances to match.
    extra = (void + _crowd_pixels(gt, pred, shared)) / np.maximum(pred.areas, 1) <= 0.5
    extra[p[match]] = False

    stat = PQStat()
    for row, value in zip(g[match].tolist(), iou[match].tolist(), strict=True):
        stat[int(gt.categories[row])].ious.append(value)
    pairs = (g, p, pixels, iou)
    for row, cause in false_negative_causes(np.flatnonzero(missed), gt, pred, pairs):
        counts = stat[int(gt.categories[row])]
        counts.fn += 1
        counts.fn_causes[cause] += 1
    for row, cause in false_positive_causes(np.flatnonzero(extra), gt, pred, pairs):
        counts = stat[int(pred.categories[row])]
        counts.fp += 1
        counts.fp_causes[cause] += 1
    return stat


def _crowd_pixels(gt: SegmentTable, pred: SegmentTable, shared: Overlaps) -> np.ndarray:
    """(P,) int64: pixels that each prediction shares with the last crowd of its category."""
    # Only the last crowd counts, as in panopticapi, which keeps one for each category in a dict.
    last_crowd = {int(gt.categories[r]): int(gt.ids[r]) for r in np.flatnonzero(gt.iscrowd)}
    result: np.ndarray = np.zeros(len(pred), np.int64)
    for category, crowd_id in last_crowd.items():
        at = shared.gt_ids == crowd_id
        pixels = _pixels_by_row(pred.rows(shared.pred_ids), shared.pixels, at, len(pred))
        of_category = pred.categories == category
        result[of_category] = pixels[of_category]
    return result


def _pixels_by_row(rows: np.ndarray, pixels: np.ndarray, use: np.ndarray, n: int) -> np.ndarray:
    use = use & (rows >= 0)
    result: np.ndarray = np.zeros(n, np.int64)
    np.add.at(result, rows[use], pixels[use])
    return result

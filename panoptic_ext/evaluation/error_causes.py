"""Why a segment has no match: one cause for each false negative and false positive.

A segment gets the first cause in this list that holds. "Mostly inside" means with more than half of
its pixels.
- "wrong class": IoU > 0.5 with a segment of another category.
- "split" (FN): at least two predictions of its category lie mostly inside it; FP: it lies mostly
  inside one true segment of its category.
- "merged" (FN): it lies mostly inside a prediction of its category that also holds most of another
  true segment of it; FP: it holds most of two or more true segments of its category.
- "low IoU": the best segment of its category has an IoU of 0.1 to 0.5.
- "missed" (FN), "spurious" (FP): none of these.

Shapes: `pairs` holds the M pairs that share pixels: row in the truth, row in the prediction, pixels
and IoU, (M,) each.
"""

from __future__ import annotations

import numpy as np

from panoptic_ext.data.coco.segment_table import SegmentTable

__all__ = ["false_negative_causes", "false_positive_causes"]

_LEAST_LOW_IOU = 0.1  # of a pair that is called "low IoU"

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def false_negative_causes(
    rows: np.ndarray, gt: SegmentTable, pred: SegmentTable, pairs: Pairs
) -> list[tuple[int, str]]:
    """The cause of each missed true segment.

    Args:
        rows: rows of the missed segments in `gt`.

    Returns:
        (row, cause) of each.
    """
    if not len(rows):
        return []
    g, p, _, iou = pairs
    same, inside_gt, inside_pred = _relations(gt, pred, pairs)
    pieces = _sum_by(g, same & inside_gt, len(gt))
    held = _sum_by(p, same & inside_pred, len(pred))
    causes = _causes_of_pairs(same, iou, merged=inside_pred & (held[p] > 1), split=pieces[g] > 1)
    return _first_cause(rows, len(gt), g, "missed", causes)


def false_positive_causes(
    rows: np.ndarray, gt: SegmentTable, pred: SegmentTable, pairs: Pairs
) -> list[tuple[int, str]]:
    """The cause of each predicted segment without a match; as `false_negative_causes`."""
    if not len(rows):
        return []
    _, p, _, iou = pairs
    same, inside_gt, inside_pred = _relations(gt, pred, pairs)
    held = _sum_by(p, same & inside_pred, len(pred))
    causes = _causes_of_pairs(same, iou, merged=held[p] > 1, split=inside_gt)
    return _first_cause(rows, len(pred), p, "spurious", causes)


def _causes_of_pairs(
    same: np.ndarray, iou: np.ndarray, *, merged: np.ndarray, split: np.ndarray
) -> dict[str, np.ndarray]:
    """Name of each cause -> (M,) bool, the pairs for which it holds; a later cause overrides."""
    return {
        "low IoU": same & (iou >= _LEAST_LOW_IOU),
        "merged": same & merged,
        "split": same & split,
        "wrong class": ~same & (iou > 0.5),
    }


def _relations(
    gt: SegmentTable, pred: SegmentTable, pairs: Pairs
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(M,) bool: same category and no crowd; prediction mostly inside truth; truth inside it."""
    g, p, pixels, _ = pairs
    same = (gt.categories[g] == pred.categories[p]) & ~gt.iscrowd[g]
    return same, 2 * pixels > pred.areas[p], 2 * pixels > gt.areas[g]


def _sum_by(rows: np.ndarray, use: np.ndarray, n: int) -> np.ndarray:
    return np.bincount(rows[use], minlength=n)


def _first_cause(
    rows: np.ndarray, n: int, at: np.ndarray, default: str, causes: dict[str, np.ndarray]
) -> list[tuple[int, str]]:
    """Give each row the last of `causes` that holds for one of its pairs, else the default."""
    names = [default, *causes]
    cause_numbers: np.ndarray = np.zeros(n, np.int64)
    for number, holds in enumerate(causes.values(), start=1):
        cause_numbers[at[holds]] = number
    return [(row, names[cause_numbers[row]]) for row in rows.tolist()]

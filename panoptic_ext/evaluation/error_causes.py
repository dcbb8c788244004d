"""Why a segment has no match: one cause for each false negative and false positive.

A segment gets the first cause in this list that holds. "Mostly inside" means with more than half of
its pixels; segments of its category are those that are no crowd.
- "wrong class": IoU > 0.5 with a segment of another category.
- "duplicate" (FP): it lies mostly inside a true segment of its category that another prediction
  matches.
- "split" (FN): at least two predictions of its category lie mostly inside it; FP: it lies mostly
  inside such a true segment.
- "merged" (FN): it lies mostly inside a prediction of its category that also holds most of another
  true segment of it; FP: it holds most of two or more true segments of its category.
- "void or crowd" (FN): it lies mostly inside a prediction of its category that does not count,
  because more than half of that is void or crowd.
- "poor mask": the best segment of its category has an IoU of 0.1 to 0.5; FP: also one that lies
  mostly inside a true segment of its category.
- "void or crowd" (FP): more of it lies on void and crowds of its category than on any true segment.
- "missed" (FN), "spurious" (FP): none of these.

Matches have errors, too: what their IoU lacks of 1 is the cause "mask quality of matches".
"""

from __future__ import annotations

import numpy as np

from panoptic_ext.evaluation.image_match import ImageMatch

__all__ = ["CAUSES", "MATCHED", "false_negative_causes", "false_positive_causes"]

MATCHED = "mask quality of matches"

CAUSES = (
    MATCHED,
    "missed",
    "spurious",
    "wrong class",
    "split",
    "merged",
    "duplicate",
    "poor mask",
    "void or crowd",
)
"""All causes, in the order of tables."""

_LEAST_POOR_IOU = 0.1  # of a pair that is called "poor mask"


def false_negative_causes(match: ImageMatch) -> np.ndarray:
    """(G,) int64, positions in `CAUSES`; they mean something where `match.missed`."""
    same, p = match.same, match.p
    inside = 2 * match.pixels > match.gt.areas[match.g]
    held = np.bincount(p[same & inside], minlength=len(match.pred))
    pieces = _pieces(match)
    # Of a prediction that matches another truth, "merged" holds and overrides this.
    unused = 2 * match.ignored > match.pred.areas
    return _last_cause(
        len(match.gt),
        match.g,
        "missed",
        {
            "poor mask": same & (match.iou >= _LEAST_POOR_IOU),
            "void or crowd": same & inside & unused[p],
            "merged": same & inside & (held[p] > 1),
            "split": same & (pieces[match.g] > 1),
            "wrong class": _wrong_class(match),
        },
    )


def false_positive_causes(match: ImageMatch) -> np.ndarray:
    """(P,) int64, positions in `CAUSES`; they mean something where `match.extra`."""
    same, g, p = match.same, match.g, match.p
    inside = 2 * match.pixels > match.pred.areas[p]
    holds = 2 * match.pixels > match.gt.areas[g]
    held = np.bincount(p[same & holds], minlength=len(match.pred))
    is_matched: np.ndarray = np.zeros(len(match.gt), bool)
    is_matched[g[match.matched]] = True
    causes = _last_cause(
        len(match.pred),
        p,
        "spurious",
        {
            "poor mask": same & (inside | (match.iou >= _LEAST_POOR_IOU)),
            "merged": same & (held[p] > 1),
            "split": same & inside & (_pieces(match)[g] > 1),
            "duplicate": same & inside & is_matched[g],
            "wrong class": _wrong_class(match),
        },
    )
    unexplained = causes == CAUSES.index("spurious")
    causes[unexplained & _mostly_without_truth(match)] = CAUSES.index("void or crowd")
    return causes


def _wrong_class(match: ImageMatch) -> np.ndarray:
    """(M,) bool: pairs of two categories that would match if they were of one."""
    differs = match.gt.categories[match.g] != match.pred.categories[match.p]
    return differs & (match.iou > 0.5)


def _pieces(match: ImageMatch) -> np.ndarray:
    """(G,) int64: predictions of its category that lie mostly inside each true segment."""
    inside = match.same & (2 * match.pixels > match.pred.areas[match.p])
    return np.bincount(match.g[inside], minlength=len(match.gt))


def _mostly_without_truth(match: ImageMatch) -> np.ndarray:
    """(P,) bool: more pixels on void and crowds of its category than on any true segment."""
    one_category = match.gt.categories[match.g] == match.pred.categories[match.p]
    crowd = one_category & match.gt.iscrowd[match.g]
    largest: np.ndarray = np.zeros(len(match.pred), np.int64)
    np.maximum.at(largest, match.p[~crowd], match.pixels[~crowd])
    without = match.void + np.bincount(
        match.p[crowd], match.pixels[crowd], minlength=len(match.pred)
    )
    return without > largest


def _last_cause(
    n: int, rows: np.ndarray, default: str, causes: dict[str, np.ndarray]
) -> np.ndarray:
    """Give each of n segments the last of `causes` that holds for a pair of it, else the default.

    Args:
        n: number of segments.
        rows: (M,) the segment of each pair.
        default: a cause.
        causes: name -> (M,) bool, the pairs for which it holds.
    """
    numbers: np.ndarray = np.full(n, CAUSES.index(default))
    for name, holds in causes.items():
        numbers[rows[holds]] = CAUSES.index(name)
    return numbers

"""What each cause of error costs: points of PQ that add up to the whole loss, 100 - PQ.

With S the sum of the IoUs of a class's matches and W = TP + FP / 2 + FN / 2, its PQ is S / W, so

    1 - PQ = (W - S) / W = (sum of (1 - IoU) over TP  +  FP / 2  +  FN / 2) / W.

A false positive or negative therefore costs its class 1 / (2 W), whatever its cause, and a match
(1 - IoU) / W. PQ of several classes is the mean of theirs, so a class's costs divided by the number
of classes add up to its loss. This is bookkeeping of what is lost, not a forecast: an error that is
mended changes W as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from panoptic_ext.evaluation.error_causes import CAUSES, MATCHED
from panoptic_ext.evaluation.outcomes import TP, Outcomes
from panoptic_ext.evaluation.panoptic_quality import ClassCounts, PQStat

__all__ = ["average_costs", "class_costs", "cost_of_causes", "segment_costs"]


def class_costs(counts: ClassCounts) -> dict[str, float]:
    """What each cause costs a class.

    Returns:
        {cause: points of the class's PQ, 0 to 100}, every cause of `CAUSES`; {} for a class without
        TP, FP and FN.
    """
    if counts.weight == 0:
        return {}
    lost = {c: 0.5 * (counts.fn_causes[c] + counts.fp_causes[c]) for c in CAUSES}
    lost[MATCHED] = math.fsum(1 - iou for iou in counts.ious)
    return {cause: 100 * value / counts.weight for cause, value in lost.items()}


def average_costs(total: PQStat, categories: Iterable[int]) -> dict[str, float]:
    """What each cause costs the mean PQ of those of `categories` that occur, as `class_costs`."""
    rows = [class_costs(total.counts[c]) for c in categories if total.has(c)]
    if not rows:
        return {}
    return {cause: math.fsum(row[cause] for row in rows) / len(rows) for cause in CAUSES}


def cost_of_causes(total: PQStat, isthing: Mapping[int, bool]) -> dict[str, dict]:
    """The costs of all groups and classes.

    Returns:
        {"All", "Things", "Stuff": as `average_costs`, "per_class": {category: as `class_costs`}}.
    """
    return {
        "All": average_costs(total, isthing),
        "Things": average_costs(total, [c for c, thing in isthing.items() if thing]),
        "Stuff": average_costs(total, [c for c, thing in isthing.items() if not thing]),
        "per_class": {c: class_costs(total.counts.get(c, ClassCounts())) for c in isthing},
    }


def segment_costs(outcomes: Outcomes, total: PQStat) -> np.ndarray:
    """(N,) what each segment costs the PQ of all classes, in points; they add up to 100 - PQ.

    Args:
        outcomes: segments of images whose counts are in `total`.
        total: of the data set.
    """
    present = [c for c in total.counts if total.has(c)]
    lost = np.where(outcomes.kinds == TP, 1 - outcomes.ious, 0.5)
    weights = {c: total.counts[c].weight * len(present) for c in present}
    return 100 * lost / np.array([weights[c] for c in outcomes.categories.tolist()])

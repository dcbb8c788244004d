"""Panoptic quality: add up the counts of images, and average over classes.

Source: Kirillov et al., "Panoptic Segmentation", CVPR 2019. `image_match` has the rules that make
the counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from panoptic_ext.evaluation.error_causes import CAUSES
from panoptic_ext.evaluation.outcomes import FN, TP, Outcomes

__all__ = ["ClassCounts", "PQStat"]


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

    @classmethod
    def of(cls, outcomes: Outcomes) -> PQStat:
        """The counts of segments."""
        stat = cls()
        for kind, category, cause, iou in zip(
            outcomes.kinds.tolist(),
            outcomes.categories.tolist(),
            outcomes.causes.tolist(),
            outcomes.ious.tolist(),
            strict=True,
        ):
            counts = stat[category]
            if kind == TP:
                counts.ious.append(iou)
            elif kind == FN:
                counts.fn += 1
                counts.fn_causes[CAUSES[cause]] += 1
            else:
                counts.fp += 1
                counts.fp_causes[CAUSES[cause]] += 1
        return stat

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

"""Two results on one truth: their differences, and whether these are more than noise.

Both are drawn with the same images (paired bootstrap, see `bootstrap`). What is hard or easy for
both then cancels out, so that far smaller differences show than the two intervals of PQ suggest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from panoptic_ext.errors import EvaluationError
from panoptic_ext.evaluation.bootstrap import FEW_IMAGES, LEVEL, NUM_DRAWS, drawn_values, intervals
from panoptic_ext.evaluation.measures import Measures
from panoptic_ext.evaluation.report import image_ranking

__all__ = ["Comparison", "Difference", "compare_results"]

_GROUPS = ("PQ", "PQ_th", "PQ_st")


@dataclass(frozen=True)
class Difference:
    """The second result's PQ less the first's, in points.

    Attributes:
        first, second: their PQs; nan where not available.
        low, high: the interval of the difference; nan where no draw has both.
    """

    first: float
    second: float
    low: float
    high: float

    @property
    def value(self) -> float:
        """The difference."""
        return self.second - self.first

    @property
    def is_clear(self) -> bool:
        """Whether the interval lies on one side of 0: more than the noise of the images."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    """Two results of the same images.

    Attributes:
        groups: of "PQ", "PQ_th" and "PQ_st".
        per_class: by dataset id, those classes that one of the results has.
        images: dicts with image_id, file_name, pq_first and pq_second (percent, of the image alone)
            and difference: the points of PQ by which the image takes less off the second result.
            Those of all images add up to the difference of PQ. The largest, either way, come first.
        level: of the intervals.
        num_draws: of the bootstrap.
    """

    groups: dict[str, Difference]
    per_class: dict[int, Difference]
    images: list[dict[str, Any]]
    level: float
    num_draws: int

    def sentence(self, first: str = "A", second: str = "B") -> str:
        """Which result is better, and whether that is more than noise."""
        pq, number = self.groups["PQ"], len(self.images)
        if math.isnan(pq.value):
            return "The results cannot be compared: one of them has no class to average over."
        if math.isnan(pq.low):
            return f"{second} - {first}: {pq.value:+.2f} points of PQ; one image says no more."
        if pq.value == 0 == pq.high - pq.low:
            return f"{second} and {first} have the same PQ on every draw of the {number} images."
        how = "better" if pq.value > 0 else "worse"
        text = (
            f"{second} is {how} than {first} by {abs(pq.value):.2f} points of PQ"
            f" ({pq.first:.2f} and {pq.second:.2f}); {100 * self.level:.0f} % interval of the"
            f" difference {pq.low:.2f} to {pq.high:.2f}, over draws of the {number} images. "
        )
        few = ""
        if number < FEW_IMAGES:
            few = f" Of fewer than {FEW_IMAGES} images such intervals are too narrow: be careful."
        if pq.is_clear:
            return f"{text}That is more than the noise of which images the data set has.{few}"
        return (
            f"{text}The interval contains 0: that is not more than the noise of which images the"
            f" data set has{_times_as_many(pq)}.{few}"
        )


def compare_results(
    first: Measures,
    second: Measures,
    file_names: Mapping[Any, str],
    *,
    num_draws: int = NUM_DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> Comparison:
    """Compare two results.

    Args:
        first, second: of the same images and categories.
        file_names: of each image.
        num_draws: of the bootstrap.
        level: of the intervals, 0 to 1.
        seed: of the draws.

    Raises:
        EvaluationError: the results are of different images or categories.
    """
    if list(first.images) != list(second.images) or list(first.categories) != list(
        second.categories
    ):
        raise EvaluationError(
            f"the two results are of different images or categories ({len(first.images)} and"
            f" {len(second.images)} images); compare both on the images that they share"
        )
    values = drawn_values(
        len(first.images),
        lambda times: second.sums.quality(times) - first.sums.quality(times),
        num_draws=num_draws,
        seed=seed,
    )
    found = [
        Difference(of_first, of_second, low, high)
        for of_first, of_second, (low, high) in zip(
            _qualities(first), _qualities(second), intervals(values, level), strict=True
        )
    ]
    per_class = dict(zip(first.categories, found[len(_GROUPS) :], strict=True))
    return Comparison(
        dict(zip(_GROUPS, found, strict=False)),
        {c: d for c, d in per_class.items() if not math.isnan(d.first) or not math.isnan(d.second)},
        _image_differences(first, second, file_names),
        level,
        num_draws,
    )


def _qualities(measures: Measures) -> list[float]:
    """PQ in percent of All, Things and Stuff, then of each class."""
    summary = measures.summary
    rows = [summary[group] for group in ("All", "Things", "Stuff")]
    return [100 * row["pq"] for row in (*rows, *summary["per_class"].values())]


def _image_differences(
    first: Measures, second: Measures, file_names: Mapping[Any, str]
) -> list[dict[str, Any]]:
    pairs = zip(image_ranking(first, file_names), image_ranking(second, file_names), strict=True)
    rows = [
        {
            "image_id": a["image_id"],
            "file_name": a["file_name"],
            "pq_first": a["pq"],
            "pq_second": b["pq"],
            "difference": a["loss"] - b["loss"],
        }
        for a, b in pairs
    ]
    return sorted(rows, key=lambda row: -abs(row["difference"]))


def _times_as_many(difference: Difference) -> str:
    """How many images would be needed, as the width of an interval shrinks by their root."""
    half = (difference.high - difference.low) / 2
    times = (half / difference.value) ** 2 if difference.value else math.inf
    if times > 100:
        return ""
    return f"; a difference of this size would show with about {max(times, 1.1):.1f} times as many"

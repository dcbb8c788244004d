"""All measures of a data set, from the numbers of its images; each is computed when asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from panoptic_ext.evaluation.bootstrap import ImageSums, Interval, drawn_values, intervals
from panoptic_ext.evaluation.confusion import pixel_confusion, segment_confusion
from panoptic_ext.evaluation.costs import cost_of_causes
from panoptic_ext.evaluation.image_measures import ImageMeasures
from panoptic_ext.evaluation.other_measures import ap_without_scores, stuff_ious
from panoptic_ext.evaluation.outcomes import ClassPixels, Outcomes, concatenate
from panoptic_ext.evaluation.panoptic_quality import ClassCounts, PQStat
from panoptic_ext.evaluation.semantic_evaluation import semantic_scores
from panoptic_ext.evaluation.sizes import SIZE_LIMITS, quality_by_size

__all__ = ["Measures"]


class Measures:
    """The measures of one result on one truth.

    Attributes:
        images: {image id: its numbers}, in the truth's order.
        categories: {dataset id: {"name", "isthing", ...}}, in the truth's order.
    """

    def __init__(
        self, images: Mapping[Any, ImageMeasures], categories: Mapping[int, Mapping[str, Any]]
    ):
        self.images = dict(images)
        self.categories = dict(categories)

    def subset(self, image_ids: Iterable[Any]) -> Measures:
        """The measures of some of the images."""
        return Measures({i: self.images[i] for i in image_ids}, self.categories)

    @property
    def isthing(self) -> dict[int, bool]:
        """{dataset id: whether it is a thing}."""
        return {c: bool(entry["isthing"]) for c, entry in self.categories.items()}

    @property
    def class_names(self) -> list[str]:
        """The names of the categories, in their order."""
        return [str(entry["name"]) for entry in self.categories.values()]

    @cached_property
    def stats(self) -> dict[Any, PQStat]:
        """The counts of each image."""
        return {image_id: image.stat() for image_id, image in self.images.items()}

    @cached_property
    def total(self) -> PQStat:
        """The counts of all images."""
        return PQStat.of(self.segments[0])

    @cached_property
    def summary(self) -> dict[str, dict]:
        """`PQStat.summary` of all images."""
        return self.total.summary(self.isthing)

    @cached_property
    def costs(self) -> dict[str, dict]:
        """`costs.cost_of_causes` of all images."""
        return cost_of_causes(self.total, self.isthing)

    @cached_property
    def segments(self) -> tuple[Outcomes, np.ndarray]:
        """N segments of all images, and the position of each one's image, (N,) int64."""
        return concatenate([image.outcomes for image in self.images.values()])

    @cached_property
    def class_pixels(self) -> tuple[ClassPixels, np.ndarray]:
        """K pairs of classes of all images, and the position of each one's image, (K,) int64."""
        return concatenate([image.class_pixels for image in self.images.values()])

    @cached_property
    def by_size(self) -> dict[str, dict[str, dict]]:
        """{kind of `SIZE_LIMITS`: `sizes.quality_by_size` of all images}."""
        outcomes, images = self.segments
        num_pixels = np.array([image.num_pixels for image in self.images.values()])[images]
        return {
            kind: quality_by_size(outcomes, num_pixels, self.isthing, kind) for kind in SIZE_LIMITS
        }

    @cached_property
    def segment_confusion(self) -> np.ndarray:
        """(C + 1, C + 1) int64, see `confusion.segment_confusion`; classes as `categories`."""
        return segment_confusion(self.segments[0], list(self.categories))

    @cached_property
    def pixel_confusion(self) -> np.ndarray:
        """(C + 1, C + 1) int64, see `confusion.pixel_confusion`; classes as `categories`."""
        return pixel_confusion(self.class_pixels[0], list(self.categories))

    @cached_property
    def sums(self) -> ImageSums:
        """What each image adds to the PQ of each class; classes as `categories`."""
        return ImageSums.of(*self.segments, len(self.images), self.isthing)

    @cached_property
    def intervals(self) -> dict[str, Any]:
        """Intervals of PQ over draws of images, see `bootstrap`, in percent.

        Returns:
            {"PQ", "PQ_th", "PQ_st": (low, high), "per_class": {category: (low, high)}}; nan where
            not available, and where there is one image alone, whose draws are all the same.
        """
        values = drawn_values(len(self.images), self.sums.quality)
        pq, things, stuff, *classes = intervals(values)
        per_class: dict[int, Interval] = dict(zip(self.categories, classes, strict=True))
        return {"PQ": pq, "PQ_th": things, "PQ_st": stuff, "per_class": per_class}

    @cached_property
    def semantic(self) -> dict[str, float]:
        """`semantic_scores` of the classes of the maps, in percent."""
        # They have the predicted class in rows.
        return semantic_scores(self.pixel_confusion.T, self.class_names)

    @cached_property
    def dagger(self) -> dict[str, Any]:
        """PQ-dagger, see `other_measures.stuff_ious`, in percent.

        Returns:
            {"PQ_dagger", "PQ_dagger_st", "per_class": {category}}; nan where not available.
        """
        ious = stuff_ious(*self.class_pixels, self.isthing)
        per_class = {
            c: 100 * (row["pq"] if self.isthing[c] else mean_of(ious[c]))
            for c, row in self.summary["per_class"].items()
        }
        stuff = [value for c, value in per_class.items() if not self.isthing[c]]
        return {
            "PQ_dagger": mean_of(per_class.values()),
            "PQ_dagger_st": mean_of(stuff),
            "per_class": per_class,
        }

    @cached_property
    def precision(self) -> dict[str, Any]:
        """AP of the things of the maps, see `other_measures.ap_without_scores`, in percent.

        Returns:
            {"AP", "AP50", "AP75", "per_class": {category: AP}}; nan where not available.
        """
        found = {
            c: 100 * ap_without_scores(self.total.counts.get(c, ClassCounts()))
            for c, thing in self.isthing.items()
            if thing
        }
        return {
            "AP": mean_of(ap.mean() for ap in found.values()),
            "AP50": mean_of(ap[0] for ap in found.values()),
            "AP75": mean_of(ap[5] for ap in found.values()),
            "per_class": {c: float(ap.mean()) for c, ap in found.items()},
        }

    @cached_property
    def boundary(self) -> dict[str, dict] | None:
        """`PQStat.summary` by boundary IoU; None where that was not asked for."""
        parts = [image.boundary for image in self.images.values() if image.boundary is not None]
        if not parts:
            return None
        return PQStat.of(concatenate(parts)[0]).summary(self.isthing)


def mean_of(values: Iterable[float]) -> float:
    """The mean of the values that are not nan; nan if there is none."""
    numbers = [float(value) for value in values if not math.isnan(value)]
    return math.fsum(numbers) / len(numbers) if numbers else math.nan

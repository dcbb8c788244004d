"""All measures of a data set, from the numbers of its images; each is computed when asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from panoptic_ext.data.coco.json_file import ImageId
from panoptic_ext.evaluation.bootstrap import ImageSums, Interval, drawn_values, intervals
from panoptic_ext.evaluation.confusion import pixel_confusion, segment_confusion
from panoptic_ext.evaluation.costs import cost_of_causes
from panoptic_ext.evaluation.image_measures import ImageMeasures
from panoptic_ext.evaluation.outcomes import ClassPixels, Outcomes, concatenate
from panoptic_ext.evaluation.panoptic_quality import PQStat
from panoptic_ext.evaluation.sizes import SIZE_LIMITS, quality_by_size

__all__ = ["Measures"]


class Measures:
    """The measures of one result on one truth.

    Attributes:
        images: {image id: its numbers}, in the truth's order.
        categories: {dataset id: {"name", "isthing", ...}}, in the truth's order.
    """

    def __init__(
        self, images: Mapping[ImageId, ImageMeasures], categories: Mapping[int, Mapping[str, Any]]
    ):
        self.images = dict(images)
        self.categories = dict(categories)

    def subset(self, image_ids: Iterable[ImageId]) -> Measures:
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
    def stats(self) -> dict[ImageId, PQStat]:
        """The counts of each image."""
        return {image_id: image.stat() for image_id, image in self.images.items()}

    @cached_property
    def total(self) -> PQStat:
        """The counts of all images."""
        return PQStat.total(self.stats.values())

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

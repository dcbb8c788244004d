"""All measures of a data set, from the numbers of its images; each is computed when asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from panoptic_ext.data.coco.json_file import ImageId
from panoptic_ext.evaluation.costs import cost_of_causes
from panoptic_ext.evaluation.image_measures import ImageMeasures
from panoptic_ext.evaluation.panoptic_quality import PQStat

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

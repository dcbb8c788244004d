"""What evaluators share that are built on Detectron2's: each image counts once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from detectron2.evaluation import DatasetEvaluator

from panoptic_ext.data.coco.panoptic_files import Annotation
from panoptic_ext.evaluation.truth import Truth

__all__ = ["OncePerImage"]


class OncePerImage(DatasetEvaluator):
    """Passes over an image that comes again; stands before an evaluator of Detectron2 as a base.

    A sampler that fills the last batch repeats images.

    Attributes:
        truth: of the data set.
    """

    truth: Truth

    def reset(self) -> None:
        """Forget all predictions."""
        super().reset()
        self._seen: set[Any] = set()

    def first_time(
        self, inputs: Iterable[dict], outputs: Iterable[dict]
    ) -> Iterator[tuple[dict, Annotation, dict]]:
        """Yield input, true annotation and output of each image that was not predicted before."""
        for given, output in zip(inputs, outputs, strict=True):
            annotation = self.truth.find(given["image_id"], given.get("file_name"))
            if annotation.image_id not in self._seen:
                self._seen.add(annotation.image_id)
                yield given, annotation, output

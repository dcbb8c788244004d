"""A base of evaluators that counts each image once, however often it is predicted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from detectron2.evaluation import DatasetEvaluator

from panoptic_ext.data.coco.panoptic_files import Annotation
from panoptic_ext.evaluation.truth import Truth

__all__ = ["OncePerImage"]


class OncePerImage(DatasetEvaluator):
    """A base class that skips images that were predicted before.

    It stands before an evaluator of Detectron2 among the bases, so that its `reset` extends that
    evaluator's.

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
            # A sampler that fills the last batch repeats images.
            if annotation.image_id not in self._seen:
                self._seen.add(annotation.image_id)
                yield given, annotation, output

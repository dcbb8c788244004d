"""Batches for work that goes through image files one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from panoptic_ext.data.image_files import read_image
from panoptic_ext.engine.memory_errors import explained_memory_errors
from panoptic_ext.errors import PanopticExtError
from panoptic_ext.prediction.predictor import Predictor

__all__ = ["PredictAhead"]

Result = TypeVar("Result")


class PredictAhead(Generic[Result]):
    """Called with one file after the other; predicts those that come next in the same batch.

    A file that cannot be read, or a batch that fails, is an error of the file's own call alone.
    """

    def __init__(
        self,
        predictor: Predictor,
        paths: Sequence[str],
        keep: Callable[[dict[str, Any]], Result],
        *,
        batch_size: int = 1,
    ) -> None:
        """
        Args:
            predictor: whose batches hold images of one size.
            paths: all files, in the order in which they will be asked for.
            keep: what is wanted of the model's output; the rest is let go.
            batch_size: files that are read at once, at most.
        """
        self._predictor, self._keep, self._batch_size = predictor, keep, batch_size
        self._paths = list(paths)
        self._places = {path: place for place, path in enumerate(self._paths)}
        self._ready: dict[str, tuple[np.ndarray, Result]] = {}

    def __call__(self, path: str) -> tuple[np.ndarray, Result]:
        """The image, (H, W, 3) uint8 RGB, and what `keep` makes of its output."""
        if path in self._ready:
            return self._ready.pop(path)
        image = read_image(path, "RGB")
        self._ready.clear()  # of files that were passed over
        batch = {path: image, **self._next_images(path)}
        if len(batch) > 1:
            try:
                self._ready = self._predicted(batch)
                return self._ready.pop(path)
            except (RuntimeError, ValueError, MemoryError):
                self._ready.clear()  # alone, it may do
        with explained_memory_errors(*image.shape[:2]):
            return image, self._keep(self._predictor(image[:, :, ::-1]))

    def _predicted(self, images: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, Result]]:
        outputs = self._predictor.predict_each(
            [image[:, :, ::-1] for image in images.values()], batch_size=self._batch_size
        )
        pairs = zip(images.items(), outputs, strict=True)
        return {path: (image, self._keep(output)) for (path, image), output in pairs}

    def _next_images(self, path: str) -> dict[str, np.ndarray]:
        """The next files as far as they can be read; another's error waits for its own call."""
        images: dict[str, np.ndarray] = {}
        start = self._places[path] + 1
        for other in self._paths[start : start + self._batch_size - 1]:
            try:
                images[other] = read_image(other, "RGB")
            except (PanopticExtError, MemoryError):
                continue
        return images

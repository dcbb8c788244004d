"""Predict in batches for a caller that asks for one image file after the other."""

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
    """Called with one file after the other; predicts the files that follow in the same batch.

    A file that cannot be read raises an error in its own call only. If a batch fails, each of its
    files is predicted alone.
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
            keep: maps the model's output to the part that is needed, so that the rest can be freed.
            batch_size: the most files that are read at once.
        """
        self._predictor, self._keep, self._batch_size = predictor, keep, batch_size
        self._paths = list(paths)
        self._positions = {path: position for position, path in enumerate(self._paths)}
        self._ready: dict[str, tuple[np.ndarray, Result]] = {}

    def __call__(self, path: str) -> tuple[np.ndarray, Result]:
        """The image, (H, W, 3) uint8 RGB, and what `keep` makes of its output."""
        if path in self._ready:
            return self._ready.pop(path)
        image = read_image(path, "RGB")
        # The caller skipped the files of the results that are left: free them.
        self._ready.clear()
        batch = {path: image, **self._next_images(path)}
        if len(batch) > 1:
            try:
                self._ready = self._predicted(batch)
                return self._ready.pop(path)
            except (RuntimeError, ValueError, MemoryError):
                # One bad image fails its whole batch, and a batch needs more memory than an image.
                # Predicted alone, below, this file raises an error only if it is the bad one.
                self._ready.clear()
        with explained_memory_errors(*image.shape[:2]):
            return image, self._keep(self._predictor(image[:, :, ::-1]))

    def _predicted(self, images: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, Result]]:
        outputs = self._predictor.predict_each(
            [image[:, :, ::-1] for image in images.values()], batch_size=self._batch_size
        )
        pairs = zip(images.items(), outputs, strict=True)
        return {path: (image, self._keep(output)) for (path, image), output in pairs}

    def _next_images(self, path: str) -> dict[str, np.ndarray]:
        """Read the files that follow; one that cannot be read raises its error in its own call."""
        images: dict[str, np.ndarray] = {}
        start = self._positions[path] + 1
        for next_path in self._paths[start : start + self._batch_size - 1]:
            try:
                images[next_path] = read_image(next_path, "RGB")
            except (PanopticExtError, MemoryError):
                continue
        return images

"""The results of several pictures, one after the other."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from tqdm import tqdm

from panoptic_ext.errors import ConfigError, PanopticExtError, listed
from panoptic_ext.many_files import FILE_ERRORS, explain_failure, failure_line
from panoptic_ext.prediction.panoptic_result import PanopticResult
from panoptic_ext.prediction.pictures_in import PictureIn, Pictures

__all__ = ["ResultStream"]

logger = logging.getLogger(__name__)

_SHORT = 2.0  # seconds of work that show no progress


class ResultStream(Iterator[PanopticResult]):
    """The results of several pictures in their order; each batch is predicted when it is due.

    An iterator, to be gone through once. It has a length, unless a video or a generator was given.

    Attributes:
        failed: name of each picture that was left out -> why; complete at the end.
        done: the number of results so far.
    """

    def __init__(
        self,
        predict: Callable[[Sequence[PictureIn], Sequence[np.ndarray]], list[PanopticResult]],
        pictures: Pictures,
        *,
        batch_size: int = 1,
        skip_failures: bool = False,
        progress: bool = True,
    ) -> None:
        """
        Args:
            predict: predicts pictures of one size, given with their pixels.
            pictures: what to predict.
            batch_size: the most pictures that `predict` gets at once.
            skip_failures: leave out pictures that fail, with a warning.
            progress: show the progress if it takes longer than two seconds.
        """
        self.failed: dict[str, str] = {}
        self.done = 0
        self._predict, self._pictures = predict, pictures
        self._batch_size, self._skip_failures = batch_size, skip_failures
        self._bar = tqdm(
            total=pictures.total,
            unit="image",
            desc="predict",
            delay=_SHORT,
            disable=not progress or pictures.total == 1,
        )
        self._waiting: deque[tuple[PictureIn, np.ndarray | Exception]] = deque()
        self._ready: deque[tuple[PictureIn, PanopticResult | Exception]] = deque()

    def __iter__(self) -> ResultStream:
        return self

    def __next__(self) -> PanopticResult:
        while True:
            if not self._ready and not self._predict_batch():
                self._end()
                raise StopIteration
            picture, outcome = self._ready.popleft()
            self._bar.update()
            if isinstance(outcome, PanopticResult):
                self.done += 1
                return outcome
            if not self._skip_failures or isinstance(outcome, ConfigError):
                self._bar.close()
                raise outcome
            self._leave_out(picture, outcome)

    def __len__(self) -> int:
        if self._pictures.total is None:
            raise TypeError("the number of results is known at the end only: list(results)")
        return self._pictures.total

    def __bool__(self) -> bool:
        return True  # not by `len`, which is not always known

    def __repr__(self) -> str:
        total = self._pictures.total
        number = "a yet unknown number of pictures" if total is None else f"{total} pictures"
        return f"{type(self).__name__} of {number}, {self.done} done: go through it, or list(...)"

    def _end(self) -> None:
        """Close the bar; to have left out every picture is an error."""
        self._bar.close()
        if self.failed and not self.done:
            lines = (failure_line(name, reason) for name, reason in self.failed.items())
            raise PanopticExtError(
                f"none of {len(self.failed)} pictures could be predicted:\n  "
                + listed(lines, 20, separator="\n  ", show=str)
            )

    def _leave_out(self, picture: PictureIn, error: Exception) -> None:
        self.failed[picture.name] = explain_failure(error)
        logger.warning("left out: %s", failure_line(picture.name, self.failed[picture.name]))

    def _predict_batch(self) -> bool:
        """Put the outcomes of the next batch into `_ready`; False at the end of all pictures."""
        batch = self._next_batch()
        if not batch:
            return False
        first, error = batch[0]
        if isinstance(error, Exception):  # it could not be read, and is alone in its batch
            self._ready.append((first, error))
            return True
        pixels = [pixels for _, pixels in batch if isinstance(pixels, np.ndarray)]
        self._ready.extend(self._outcomes([picture for picture, _ in batch], pixels))
        return True

    def _next_batch(self) -> list[tuple[PictureIn, np.ndarray | Exception]]:
        """Neighbours of one size, or one picture that cannot be read."""
        batch: list[tuple[PictureIn, np.ndarray | Exception]] = []
        while len(batch) < self._batch_size:
            if not self._waiting:
                picture = next(self._pictures.pictures, None)
                if picture is None:
                    break
                self._waiting.append((picture, _read(picture)))
            pixels = self._waiting[0][1]
            if batch and not _share_size(batch[0][1], pixels):
                break
            batch.append(self._waiting.popleft())
        return batch

    def _outcomes(
        self, pictures: Sequence[PictureIn], pixels: Sequence[np.ndarray]
    ) -> list[tuple[PictureIn, PanopticResult | Exception]]:
        try:
            return list(zip(pictures, self._predict(pictures, pixels), strict=True))
        except FILE_ERRORS as error:
            if len(pictures) == 1:
                return [(pictures[0], error)]
        # One picture fails its whole batch; alone, only the bad one fails.
        alone = (self._outcomes([p], [x]) for p, x in zip(pictures, pixels, strict=True))
        return [outcome for outcomes in alone for outcome in outcomes]


def _read(picture: PictureIn) -> np.ndarray | Exception:
    """The pixels, or the error, which is raised or logged when the picture's turn comes."""
    try:
        return picture.read()
    except FILE_ERRORS as error:
        return error


def _share_size(first: np.ndarray | Exception, second: np.ndarray | Exception) -> bool:
    return (
        isinstance(first, np.ndarray)
        and isinstance(second, np.ndarray)
        and first.shape == second.shape
    )

"""One call from a model's name to a predictor, and from a picture to its result.

model = panoptic_ext.load("output/street")
result = model("photo.jpg")
for result in model("photos/"):
    print(result)
"""

from __future__ import annotations

import functools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from tqdm import tqdm

from panoptic_ext.data.image_files import read_image
from panoptic_ext.errors import ConfigError, check_known
from panoptic_ext.many_files import FILE_ERRORS, explain_failure, failure_line
from panoptic_ext.prediction.kinds import result_of_kind
from panoptic_ext.prediction.model_source import find_model
from panoptic_ext.prediction.panoptic_result import PanopticResult
from panoptic_ext.prediction.pictures_in import (
    CHANNELS,
    PictureIn,
    Pictures,
    find_pictures,
    is_single,
)
from panoptic_ext.prediction.predictor import Predictor

__all__ = ["PanopticPredictor", "ResultStream", "load"]

logger = logging.getLogger(__name__)

_SHORT = 2.0  # seconds of work that show no progress


def load(
    source: str | os.PathLike | CfgNode,
    weights: str | os.PathLike | None = None,
    device: str | None = None,
    opts: Sequence[str] = (),
) -> PanopticPredictor:
    """Load a trained model to predict with.

    Args:
        source: a name of the model zoo (`panoptic-ext zoo list`, or one of Detectron2's); the
            output folder of a training run; a YAML file, also one that comes with panoptic_ext; or
            a config. A file or folder of the name comes first.
        weights: a checkpoint in place of the model's own.
        device: such as "cpu" or "cuda:1". None takes the config's, or the CPU where there is no
            CUDA.
        opts: KEY VALUE pairs of the config, applied last.

    Raises:
        ConfigError: there is no such model, it has no weights, or its config is wrong.
        CheckpointError: the weights cannot be read or do not fit.
        DownloadError: the weights cannot be fetched.
    """
    cfg, found = find_model(source, weights=weights, device=device, opts=opts)
    return PanopticPredictor(Predictor(cfg, weights=found))


class PanopticPredictor:
    """Predicts pictures; call it.

    Attributes:
        predictor: Detectron2's predictor with the config `cfg` and the model.
        metadata: of the data set that the model was trained on.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.metadata = predictor.metadata

    @property
    def classes(self) -> list[str]:
        """Names of the classes by contiguous id."""
        empty = np.zeros((1, 1), np.int32)
        return PanopticResult(empty, [], self.metadata).class_names

    def __call__(
        self,
        images: Any,
        *,
        channels: str = "BGR",
        batch_size: int = 1,
        min_score: float = 0.5,
        skip_failures: bool | None = None,
        progress: bool = True,
    ) -> Any:
        """Predict one picture, or several lazily and in order.

        Args:
            images: one picture: a path, an http(s) address, a PIL image, a numpy array or a tensor
                of (H, W, 3) or (H, W), with values from 0 to 255. Or several: a list or another
                iterable, a folder, a glob, a video.
            channels: "BGR", the order of OpenCV and Detectron2, or "RGB", that of Pillow,
                matplotlib and torchvision; of arrays and tensors only. If in doubt, look at
                `result.draw()`: in the wrong order a blue sky is orange.
            batch_size: the most pictures of one size that the model gets at once, for a GPU.
            min_score: instances with a lower score are left out; of an instance model only.
            skip_failures: whether a picture that fails is left out with a warning, and the others
                are predicted all the same. None: in folders and globs. Otherwise its error is
                raised when its turn comes.
            progress: show the progress of several pictures that take longer than two seconds.

        Returns:
            A `PanopticResult` for one picture; for several a `ResultStream` of them.

        Raises:
            ImageError, UnreadableFileError, DownloadError: a picture cannot be used.
            ConfigError: a folder without pictures, or an unknown order of channels.
        """
        check_known("channels", channels, CHANNELS)
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}, expected 1 or more")
        found = find_pictures(images, channels=channels)
        results = ResultStream(
            functools.partial(self._predicted, min_score=min_score),
            found,
            batch_size=batch_size,
            skip_failures=found.from_search if skip_failures is None else skip_failures,
            progress=progress and not is_single(images),
        )
        return next(results) if is_single(images) else results

    def segment_image(
        self,
        image: Any,
        output_image_name: str | os.PathLike = "",
        *,
        kind: str = "panoptic",
        channels: str = "BGR",
        min_score: float = 0.5,
        **drawing: Any,
    ) -> PanopticResult:
        """Predict one picture, and write what was found over it into a file.

        Args:
            image: one picture, as the call takes it.
            output_image_name: picture to write, ending in .png or .jpg; "" writes none.
            kind: "panoptic", "instance" (things alone) or "semantic" (a region for each class).
            channels: as the call's.
            min_score: things with a lower score are left out.
            **drawing: as `PanopticResult.draw`.

        Raises:
            ConfigError: several pictures, another suffix, or the model does not give this kind.
            ImageError, UnreadableFileError, DownloadError: the picture cannot be used.
        """
        check_known("channels", channels, CHANNELS)
        if not is_single(image):
            raise ConfigError("segment_image takes one picture; call the predictor with several")
        picture = next(find_pictures(image, channels=channels).pictures)
        pixels = picture.read()
        outputs = self.predictor(pixels)
        rgb = functools.partial(_rgb, pixels)
        result = result_of_kind(
            kind, outputs, self.metadata, rgb, file_name=picture.name, min_score=min_score
        )
        if output_image_name:
            result.save(output_image_name, **drawing)
        return result

    def _predicted(
        self, pictures: Sequence[PictureIn], pixels: Sequence[np.ndarray], *, min_score: float
    ) -> list[PanopticResult]:
        """The results of a batch of pictures of one size."""
        outputs = self.predictor.predict_each(pixels, batch_size=len(pixels))
        return [
            PanopticResult.from_outputs(
                output,
                self.metadata,
                _image_of(picture, bgr),
                file_name=picture.name,
                min_score=min_score,
            )
            for picture, bgr, output in zip(pictures, pixels, outputs, strict=True)
        ]

    def __repr__(self) -> str:
        model = type(self.predictor.model).__name__
        source = self.predictor.weights or "its own weights"
        return f"{type(self).__name__} of {model}, {len(self.classes)} classes, from {source}"


class ResultStream(Iterator[PanopticResult]):
    """The results of several pictures in their order; each batch is predicted when it is due.

    An iterator, to be gone through once. It has a length, unless a video or a generator was given.

    Attributes:
        failed: name of each picture that was left out -> why; complete at the end.
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
                self._bar.close()
                raise StopIteration
            picture, outcome = self._ready.popleft()
            self._bar.update()
            if isinstance(outcome, PanopticResult):
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
        return f"{type(self).__name__} of {number}: `for result in ...`, or list(...)"

    def _leave_out(self, picture: PictureIn, error: Exception) -> None:
        self.failed[picture.name] = explain_failure(error)
        logger.warning("left out: %s", failure_line(picture.name, self.failed[picture.name]))

    def _predict_batch(self) -> bool:
        """Put the outcomes of the next batch into `_ready`; False at the end of all pictures."""
        batch = self._next_batch()
        if not batch:
            return False
        pixels = [pixels for _, pixels in batch if isinstance(pixels, np.ndarray)]
        if len(pixels) < len(batch):  # one picture, which could not be read
            self._ready.append((batch[0][0], batch[0][1]))  # type: ignore[arg-type]  # no pixels
            return True
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


def _image_of(picture: PictureIn, bgr: np.ndarray) -> Callable[[], np.ndarray]:
    """Reads the picture for its result; a file again, so that many results hold no pixels."""
    if picture.path:
        return functools.partial(read_image, picture.path, "RGB")
    return functools.partial(_rgb, bgr)


def _rgb(bgr: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(bgr[:, :, ::-1]).round().astype(np.uint8)

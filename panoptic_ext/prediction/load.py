"""One call from a model's name to a predictor, and from a picture to its result.

model = panoptic_ext.load("output/street")
result = model("photo.jpg")
for result in model("photos/"):
    print(result)
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from panoptic_ext.data.datasets.unified_classes import unified_classes, unified_metadata
from panoptic_ext.data.image_files import read_image
from panoptic_ext.errors import ConfigError, check_known
from panoptic_ext.prediction.kinds import KINDS, result_of_kind
from panoptic_ext.prediction.model_source import find_model
from panoptic_ext.prediction.panoptic_result import PanopticResult, check_picture_name
from panoptic_ext.prediction.pictures_in import CHANNELS, PictureIn, find_pictures, is_single
from panoptic_ext.prediction.predictor import Predictor
from panoptic_ext.prediction.result_stream import ResultStream

__all__ = ["PanopticPredictor", "load"]


def load(
    source: str | os.PathLike | CfgNode,
    weights: str | os.PathLike | None = None,
    device: Any = None,
    opts: Sequence[Any] = (),
) -> PanopticPredictor:
    """Load a trained model to predict with.

    Args:
        source: the output folder of a training run, or a checkpoint in it; a YAML file, also one of
            a zoo entry; a folder that `panoptic-ext zoo add` wrote, or transformers saved a model
            in; a name of the model zoo (`panoptic-ext zoo list`); a config that comes with
            panoptic_ext or with Detectron2's model zoo, such as
            "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml"; a name on Hugging Face's hub; or
            a config in memory. What exists as a file or folder comes first.
        weights: a checkpoint in place of the model's own.
        device: such as "cpu", "cuda:1" or a torch.device. None: CUDA where it is there, else the
            CPU.
        opts: KEY VALUE pairs of the config, applied last.

    Raises:
        ConfigError: there is no such model (the message suggests the nearest name), it has no
            weights, its config is wrong, or the device is not there.
        CheckpointError: the weights cannot be read or do not fit.
        DownloadError: the weights cannot be fetched.
    """
    cfg, found = find_model(source, weights=weights, device=device, opts=opts)
    return PanopticPredictor(Predictor(cfg, weights=found))


class PanopticPredictor:
    """Predicts pictures; call it.

    Attributes:
        predictor: Detectron2's predictor, whose outputs are the model's own.
        metadata: of the data set that the model was trained on, in one numbering for things and
            stuff, as the results'.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.metadata = unified_metadata(predictor.metadata)

    @property
    def cfg(self) -> CfgNode:
        """The model's config."""
        return self.predictor.cfg

    @property
    def classes(self) -> list[str]:
        """Names of the classes, things and stuff, by contiguous id."""
        return list(self.metadata.thing_classes)

    def __call__(
        self,
        images: Any,
        *,
        channels: str = "BGR",
        batch_size: int = 1,
        min_score: float = 0.5,
        skip_failures: bool | None = None,
        keep_outputs: bool = False,
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
                raised when its turn comes, and the next results can be asked for after that.
            keep_outputs: keep the model's outputs in `result.outputs`; semantic scores are large.
            progress: show the progress of several pictures that take longer than two seconds.

        Returns:
            A `PanopticResult` for one picture; for several a `ResultStream`, which makes them when
            they are asked for.

        Raises:
            ImageError, UnreadableFileError, DownloadError: a picture cannot be used.
            ConfigError: a folder without pictures, or an unknown order of channels.
            MemoryNeededError: there is not enough memory for a picture of this size.
        """
        check_known("channels", channels, CHANNELS)
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}, expected 1 or more")
        found = find_pictures(images, channels=channels)
        options: dict[str, Any] = {"min_score": min_score, "keep_outputs": keep_outputs}
        results = ResultStream(
            functools.partial(self._predicted, in_memory=is_single(images), **options),
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
        classes: str | Sequence[str] | None = None,
        min_score: float = 0.5,
        channels: str = "BGR",
        **drawing: Any,
    ) -> PanopticResult:
        """Predict one picture, and write what was found over it into a file.

        Args:
            image: one picture, as the call takes it.
            output_image_name: picture to write, ending in .png or .jpg; "" writes none.
            kind: "panoptic", "instance" (things alone) or "semantic" (a region for each class).
            classes: names of the classes to find. None: all, `self.classes`.
            min_score: things with a lower score are left out.
            channels: as the call's.
            **drawing: as `PanopticResult.draw`.

        Returns:
            What was drawn.

        Raises:
            ConfigError: several pictures, another suffix, an unknown class, or a kind that the
                model does not give.
            ImageError, UnreadableFileError, DownloadError: the picture cannot be used.
        """
        # Wrong arguments are refused before the model runs, which may take long.
        check_known("channels", channels, CHANNELS)
        check_known("kind", kind, KINDS)
        if classes is not None:
            unified_classes(self.predictor.metadata).find(classes)
        if output_image_name:
            check_picture_name(output_image_name)
        if not is_single(image):
            raise ConfigError("segment_image takes one picture; call the predictor with several")
        picture = next(find_pictures(image, channels=channels).pictures)
        pixels = picture.read()
        outputs = self.predictor(pixels)
        rgb = functools.partial(_rgb, pixels)
        result = result_of_kind(
            kind, outputs, self.predictor.metadata, rgb, file_name=picture.name, min_score=min_score
        )
        result = result.filter(classes)
        if output_image_name:
            result.save(output_image_name, **drawing)
        return result

    def _predicted(
        self,
        pictures: Sequence[PictureIn],
        pixels: Sequence[np.ndarray],
        *,
        in_memory: bool,
        **options: Any,
    ) -> list[PanopticResult]:
        """The results of a batch of pictures of one size; `in_memory` keeps pixels of files too."""
        outputs = self.predictor.predict_each(pixels, batch_size=len(pixels))
        return [
            PanopticResult.from_outputs(
                output,
                self.predictor.metadata,
                _rgb(bgr) if in_memory or not picture.path else _reader(picture.path),
                file_name=picture.name,
                **options,
            )
            for picture, bgr, output in zip(pictures, pixels, outputs, strict=True)
        ]

    def __repr__(self) -> str:
        model = type(self.predictor.model).__name__
        weights = self.predictor.weights or "its own weights"
        number, device = len(self.classes), self.predictor.cfg.MODEL.DEVICE
        return f"{type(self).__name__} of {model} with {weights}, {number} classes, on {device}"


def _reader(path: str) -> Callable[[], np.ndarray]:
    """Reads a file again for its result, so that many results hold no pixels."""
    return functools.partial(read_image, path, "RGB")


def _rgb(bgr: np.ndarray) -> np.ndarray:
    """A copy, because the caller may change an array before its result is drawn."""
    pixels = bgr if bgr.dtype == np.uint8 else bgr.round().astype(np.uint8)
    return np.ascontiguousarray(pixels[:, :, ::-1])

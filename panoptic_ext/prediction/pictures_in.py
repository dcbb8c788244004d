"""The pictures that a caller gives in one of many forms, one after the other.

H x W pixels. A picture is read when its turn comes, so that a folder of any size can be given.
"""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch

from panoptic_ext.data.image_files import read_image
from panoptic_ext.download import cache_path, fetch
from panoptic_ext.errors import ConfigError, PanopticExtError
from panoptic_ext.prediction.image_arrays import as_bgr_image, is_one_image
from panoptic_ext.prediction.inputs import PredictionInput, is_video, search_inputs
from panoptic_ext.prediction.video import VideoReader

__all__ = ["CHANNELS", "PictureIn", "Pictures", "find_pictures", "is_single"]

CHANNELS = ("BGR", "RGB")
"""Orders of the colour channels of arrays and tensors. Files and PIL images state their own."""

_ADDRESS = ("http://", "https://")


@dataclass(frozen=True)
class PictureIn:
    """One picture that has yet to be read.

    Attributes:
        name: its path or address, of a frame the video's and its number; "" of pixels.
        read: returns (H, W, 3) BGR, or raises the error of this picture.
        path: the file, which can be read again; "" of pixels and frames.
    """

    name: str
    read: Callable[[], np.ndarray]
    path: str = ""


@dataclass(frozen=True)
class Pictures:
    """Pictures in their order.

    Attributes:
        pictures: read one after the other.
        total: their number; None where it is not known before the end, as with a video.
        from_search: whether they were found in a folder or by a glob, and not named one by one.
    """

    pictures: Iterator[PictureIn]
    total: int | None
    from_search: bool


def is_single(given: Any) -> bool:
    """Whether this is one picture: no list or other iterable, folder, glob or video."""
    if not is_one_image(given):
        return False
    if not isinstance(given, (str, os.PathLike)):
        return True
    name = os.path.expanduser(os.fspath(given))
    return not (is_video(name) or os.path.isdir(name) or _is_glob(name))


def find_pictures(given: Any, *, channels: str = "BGR") -> Pictures:
    """Everything that was given, as pictures.

    Args:
        given: a picture (a path, an http(s) address, a PIL image, an array or a tensor); a list or
            another iterable of these, of folders, globs and videos; or one of the latter.
        channels: of arrays and tensors, one of `CHANNELS`.

    Raises:
        ConfigError: a folder or a glob without any picture.
    """
    if is_single(given):
        return Pictures(iter([_picture(given, channels)]), 1, from_search=False)
    if is_one_image(given):
        return _of_search(os.fspath(given))
    items: Iterable[Any] = given
    is_counted = isinstance(given, Sequence) and all(map(is_single, given))
    total = len(given) if is_counted else None
    return Pictures(_of_each(items, channels), total, from_search=False)


def _of_each(items: Iterable[Any], channels: str) -> Iterator[PictureIn]:
    for number, item in enumerate(items):
        if is_single(item):
            yield _picture(item, channels, f"image {number} of the list")
        else:
            yield from find_pictures(item, channels=channels).pictures


def _of_search(pattern: str) -> Pictures:
    """Of a folder, a glob or a video."""
    if pattern.startswith(_ADDRESS):
        return Pictures(_frames(_fetched(pattern), pattern), None, from_search=False)
    inputs = search_inputs([pattern]).inputs
    if all(item.problem for item in inputs):
        raise ConfigError("; ".join(f"{item.path}: {item.problem}" for item in inputs))
    total = None if any(item.is_video for item in inputs) else len(inputs)
    is_video_alone = len(inputs) == 1 and inputs[0].is_video
    return Pictures(_of_inputs(inputs), total, from_search=not is_video_alone)


def _of_inputs(inputs: Iterable[PredictionInput]) -> Iterator[PictureIn]:
    for item in inputs:
        if item.problem:
            problem = PanopticExtError(f"{item.path}: {item.problem}")
            yield PictureIn(item.path, functools.partial(_raise, problem))
        elif item.is_video:
            yield from _frames(item.path, item.path)
        else:
            yield _picture(item.path, "BGR")


def _frames(path: str, name: str) -> Iterator[PictureIn]:
    """The frames of a video; an error of the video is the error of its next frame."""
    number = 0
    try:
        for frame in VideoReader(path):
            yield PictureIn(f"{name}/{number:06d}", functools.partial(_given, frame))
            number += 1
    except PanopticExtError as error:
        yield PictureIn(name, functools.partial(_raise, error))


def _picture(image: Any, channels: str, name: str = "the image") -> PictureIn:
    if not isinstance(image, (str, os.PathLike)):
        return PictureIn("", functools.partial(_pixels, image, channels, name))
    path = os.path.expanduser(os.fspath(image))
    if path.startswith(_ADDRESS):
        # Fetched when its turn comes; the cache then has it for the next reading.
        return PictureIn(path, lambda: read_image(_fetched(path), "BGR"), cache_path(path))
    return PictureIn(path, functools.partial(read_image, path, "BGR"), path)


def _fetched(address: str) -> str:
    return fetch(address, cache_path(address))


def _pixels(image: Any, channels: str, name: str) -> np.ndarray:
    """(H, W, 3) BGR of pixels in memory."""
    pixels = as_bgr_image(image, name)
    is_rgb = channels == "RGB" and isinstance(image, (np.ndarray, torch.Tensor))
    return np.ascontiguousarray(pixels[:, :, ::-1]) if is_rgb else pixels


def _is_glob(name: str) -> bool:
    return glob.has_magic(name) and not os.path.lexists(name) and not name.startswith(_ADDRESS)


def _given(frame: np.ndarray) -> np.ndarray:
    return frame


def _raise(error: PanopticExtError) -> NoReturn:
    raise error

"""The pictures that a caller gives in one of many forms, one after the other.

H x W pixels. A picture is read when its turn comes, so that a folder of any size can be given.
"""

from __future__ import annotations

import functools
import glob
import os
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from panoptic_ext.data.image_files import read_image
from panoptic_ext.download import temporary_copy
from panoptic_ext.errors import ConfigError, DatasetError, DownloadError, PanopticExtError
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
        path: the file, which can be read again; "" of pixels, addresses and frames.
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
    if _is_address(name):
        return not is_video(_path_of_address(name))
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
    if _is_address(pattern):
        return Pictures(_frames_of_address(pattern), None, from_search=False)
    inputs = search_inputs([pattern]).inputs
    if all(_is_missing(item) for item in inputs):
        raise ConfigError(f"nothing to predict. {inputs[0].path}: {inputs[0].problem}")
    total = None if any(item.is_video for item in inputs) else len(inputs)
    return Pictures(_of_inputs(inputs), total, from_search=not os.path.isfile(pattern))


def _is_missing(item: PredictionInput) -> bool:
    # The other problem of an input is that the picture of another one would have its name.
    return bool(item.problem) and not os.path.isfile(item.path)


def _of_inputs(inputs: Iterable[PredictionInput]) -> Iterator[PictureIn]:
    for item in inputs:
        if item.is_video:
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
    if _is_address(path):
        return PictureIn(path, functools.partial(_read_address, path))
    return PictureIn(path, functools.partial(read_image, path, "BGR"), path)


def _pixels(image: Any, channels: str, name: str) -> np.ndarray:
    return as_bgr_image(image, name, channels=channels)


def _read_address(address: str) -> np.ndarray:
    with temporary_copy(address) as path:
        try:
            return read_image(path, "BGR")
        except DatasetError as error:  # it names a file that is not there any more
            raise type(error)(str(error).replace(path, address)) from error


def _frames_of_address(address: str) -> Iterator[PictureIn]:
    try:
        with temporary_copy(address) as path:
            yield from _frames(path, address)
    except DownloadError as error:
        yield PictureIn(address, functools.partial(_raise, error))


def _is_address(name: str) -> bool:
    return name.lower().startswith(_ADDRESS)


def _path_of_address(address: str) -> str:
    """Its path, without what may follow a "?"."""
    with suppress(ValueError):  # the download has a better error
        return urllib.parse.urlsplit(address).path
    return ""


def _is_glob(name: str) -> bool:
    return glob.has_magic(name) and not os.path.lexists(name)


def _given(frame: np.ndarray) -> np.ndarray:
    return frame


def _raise(error: PanopticExtError) -> NoReturn:
    raise error

"""Image files of a conversion: their size and orientation, and where the result has them."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from panoptic_ext.atomic import write_file
from panoptic_ext.data.convert.labels import SourceImage
from panoptic_ext.data.image_files import EXIF_ORIENTATION, too_many_pixels, turned_size
from panoptic_ext.errors import DatasetError, UnreadableFileError
from panoptic_ext.regular_files import IMAGE, READ_ERRORS, check_regular_file

__all__ = [
    "PLACEMENTS",
    "ImageHeader",
    "common_root",
    "oriented",
    "place_image",
    "read_header",
]

PLACEMENTS = {
    "link": "hard links, or copies where the disk allows none",
    "copy": "copies",
    "reference": "stay where they are",
}
"""Where the images of a result are."""


class ImageHeader(NamedTuple):
    """Height and width in the file, and its EXIF orientation from 1 (upright) to 8."""

    height: int
    width: int
    orientation: int

    @property
    def stored(self) -> tuple[int, int]:
        """(height, width) of the pixels in the file."""
        return self.height, self.width

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) after the tag has turned the image, as training reads it."""
        return turned_size(self.stored, self.orientation)


def read_header(image: SourceImage) -> ImageHeader:
    """Size and orientation of an image, without decoding its pixels.

    Raises:
        UnreadableFileError: there is no such file, or it is no image.
    """
    if image.embedded is not None:
        return _header(io.BytesIO(image.embedded()), f"embedded image {image.name}")
    check_regular_file(image.path, IMAGE)
    return _header(image.path, f"image {image.path}")


def _header(file: str | io.BytesIO, name: str) -> ImageHeader:
    try:
        with Image.open(file) as image:
            turn = image.getexif().get(EXIF_ORIENTATION, 1)
            height, width = image.height, image.width
    except Image.DecompressionBombError as error:
        raise UnreadableFileError(f"{name} {too_many_pixels(error)}") from error
    except READ_ERRORS as error:
        raise UnreadableFileError(f"{name} cannot be read ({error}); copy it again") from error
    return ImageHeader(height, width, turn if turn in range(1, 9) else 1)


def oriented(
    ids: np.ndarray, header: ImageHeader, frame: str | None, name: str, *, forced: str | None = None
) -> np.ndarray:
    """A label map in the pixels of the upright image, which training reads.

    Args:
        ids: (H, W) map of the labels.
        header: of the image file.
        frame: which pixels the labels describe as far as the format tells, see `FRAMES`.
        name: of the image, for the errors.
        forced: the user's word on that.

    Raises:
        DatasetError: the labels have another size than the image, or nobody can tell which pixels
            they describe.
    """
    size = (ids.shape[0], ids.shape[1])
    if size not in (header.upright, header.stored):
        raise DatasetError(
            f"{name}: the labels are of {_by(size)} pixels (height x width), the image has "
            f"{_by(header.upright)}; both must be of the same image in the same size"
        )
    if header.orientation == 1:
        return ids
    if header.upright != header.stored:
        frame = "upright" if size == header.upright else "stored"
    else:
        frame = forced or frame
    if frame is None:
        raise DatasetError(
            f"{name}: the image's EXIF tag (orientation {header.orientation}) turns or mirrors it, "
            "and its size does not show whether its labels are of the turned pixels; give --exif "
            "upright where the tool showed the image turned, --exif stored where it ignored the tag"
        )
    return ids if frame == "upright" else _turned(ids, header.orientation)


def _turned(ids: np.ndarray, orientation: int) -> np.ndarray:
    """A map of stored pixels, turned as Pillow turns an image with this tag."""
    picture = Image.fromarray(np.ascontiguousarray(ids, np.int32))
    picture.getexif()[EXIF_ORIENTATION] = orientation
    turned = ImageOps.exif_transpose(picture)
    return np.asarray(turned).astype(ids.dtype)


def place_image(image: SourceImage, path: str, placement: str) -> None:
    """Put an image into the result.

    Args:
        image: of the source.
        path: where it belongs; the folder is made.
        placement: "link" or "copy", see PLACEMENTS. An embedded image is written.

    Raises:
        OSError: it cannot be written.
    """
    if image.embedded is not None:
        write_file(path, image.embedded(), durable=False, error=None)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    original = os.path.realpath(image.path)
    if placement == "link":
        try:
            os.link(original, path)
            return
        except OSError:  # another disk, or one without hard links
            pass
    shutil.copyfile(original, path)


def common_root(images: Sequence[SourceImage]) -> str:
    """The folder that holds all images, for a result that refers to them.

    Raises:
        DatasetError: an image is in no file, or they have no folder in common.
    """
    for image in images:
        if image.embedded is not None:
            raise DatasetError(
                f"image {image.name} is inside its annotation file and in no file of its own, so "
                "the result cannot refer to it; use --images link or copy"
            )
    try:
        return os.path.commonpath([os.path.dirname(os.path.abspath(i.path)) for i in images])
    except ValueError as error:
        raise DatasetError(
            f"the images are on different drives ({error}); use --images link or copy"
        ) from error


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"

"""Read image files: 8 bits per channel, rotated or mirrored by their EXIF tag."""

from __future__ import annotations

import os
import re

import numpy as np
from detectron2.data import detection_utils
from PIL import Image

from panoptic_ext.errors import DatasetError, UnreadableFileError
from panoptic_ext.regular_files import IMAGE, READ_ERRORS, check_regular_file

__all__ = [
    "EXIF_ORIENTATION",
    "READ_ERRORS",
    "deep_pixels",
    "read_image",
    "too_many_pixels",
    "turned_size",
]

EXIF_ORIENTATION = 274
"""Number of the EXIF orientation tag: 1 means upright, 2 to 8 mean rotated or mirrored."""


def read_image(
    path: str | os.PathLike, image_format: str, *, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Read an image file.

    Args:
        path: the file.
        image_format: "RGB", "BGR" or another that `detection_utils.read_image` takes.
        size: (height, width) in the JSON. A file whose header has neither this size nor the
            swapped one is refused before its pixels are decoded.

    Returns:
        (H, W, C) array in that format, 0..255.

    Raises:
        UnreadableFileError: no regular file with content, truncated, or not an image.
        DatasetError: its pixels have more than 8 bits, or it has another size.
    """
    path = os.fspath(path)
    check_regular_file(path, IMAGE)
    try:
        with Image.open(path) as image:
            # The comparison ignores the order of the sides, because an EXIF tag may swap them.
            if size is not None and {image.width, image.height} != set(size):
                raise DatasetError(
                    f"image {path} is {image.height} x {image.width} (height x width), the JSON"
                    f" says {size[0]} x {size[1]}; correct the JSON or the image"
                )
            depth_error = deep_pixels(image)
            if not depth_error:
                # Pillow rotates a TIFF while it loads it and then drops the tag. Loading comes
                # first, so that a TIFF is not rotated twice.
                image.load()
                upright = detection_utils._apply_exif_orientation(image)
                return detection_utils.convert_PIL_to_numpy(upright, image_format)
    except DatasetError:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableFileError(f"image {path} {too_many_pixels(error)}") from error
    except READ_ERRORS as error:
        raise UnreadableFileError(f"image {path} cannot be read ({error})") from error
    raise DatasetError(f"image {path} {depth_error}")


def deep_pixels(image: Image.Image) -> str:
    """Return the text of the error for pixels of more than 8 bits; "" for all other images."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return ""
    kind = "floating point" if image.mode == "F" else "integers of more than 8 bits"
    return (
        f"has pixels of {kind} (mode {image.mode}), expected 8 bits a channel: values above 255 "
        "would all become white; convert to 8 bit, scaled to 0..255"
    )


def too_many_pixels(error: Image.DecompressionBombError) -> str:
    """Return the text of the error for an image with more pixels than Pillow reads."""
    # The number of pixels is only in the text of Pillow's error. Pillow raises it at twice
    # MAX_IMAGE_PIXELS; below that it only warns.
    numbers = re.findall(r"\d+", str(error))
    number = f"{int(numbers[0]) / 1e6:.0f} million pixels" if numbers else "too many pixels"
    most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
    return (
        f"has {number}, expected at most {most:.0f} million: the file is damaged, or has to be "
        "made smaller or cut into parts"
    )


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return (height, width) after applying the EXIF orientation, 1 to 8."""
    return (size[1], size[0]) if orientation in (5, 6, 7, 8) else size

"""Images as they lie on disk: 8 bits a channel, turned as their EXIF tag says."""

from __future__ import annotations

import os

import numpy as np
from detectron2.data import detection_utils
from PIL import Image

from panoptic_ext.data.id_map import READ_ERRORS
from panoptic_ext.errors import DatasetError, UnreadableFileError

__all__ = ["EXIF_ORIENTATION", "deep_pixels", "read_image", "turned_size"]

EXIF_ORIENTATION = 274
"""The EXIF tag that says how to turn an image: 1 as it is, 2 to 8 turned or mirrored."""


def read_image(path: str | os.PathLike, image_format: str) -> np.ndarray:
    """Read an image file.

    Args:
        path: the file.
        image_format: "RGB", "BGR" or another that `detection_utils.read_image` takes.

    Returns:
        (H, W, C) array in that format, 0..255.

    Raises:
        UnreadableFileError: no such file, empty, truncated, or not an image.
        DatasetError: its pixels have more than 8 bits.
    """
    path = os.fspath(path)
    try:
        if os.path.getsize(path) == 0:
            raise UnreadableFileError(f"image {path} cannot be read: the file is empty")
        with Image.open(path) as image:
            deep = deep_pixels(image)
            if not deep:
                # Pillow turns a TIFF while it loads it, and drops the tag: so load first.
                image.load()
                upright = detection_utils._apply_exif_orientation(image)
                return detection_utils.convert_PIL_to_numpy(upright, image_format)
    except UnreadableFileError:
        raise
    except FileNotFoundError as error:
        found = (
            "is a link to a file that does not exist"
            if os.path.islink(path)
            else ("does not exist")
        )
        raise UnreadableFileError(f"image {path} {found}") from error
    except READ_ERRORS as error:
        raise UnreadableFileError(f"image {path} cannot be read ({error})") from error
    raise DatasetError(f"image {path} {deep}")


def deep_pixels(image: Image.Image) -> str:
    """What is wrong and what to do, where pixels have more than 8 bits; else ""."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return ""
    kind = "floating point" if image.mode == "F" else "integers of more than 8 bits"
    return (
        f"has pixels of {kind} (mode {image.mode}), expected 8 bits a channel: values above 255 "
        "would all become white; convert to 8 bit, scaled to 0..255"
    )


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(height, width) after turning as the EXIF orientation, 1 to 8, says."""
    return (size[1], size[0]) if orientation in (5, 6, 7, 8) else size

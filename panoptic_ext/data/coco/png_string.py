"""Id maps as the bytes of a PNG: the "png_string" of DETR and of panopticapi's tools."""

from __future__ import annotations

import numpy as np

from panoptic_ext.data.coco.label_png import decode_png, encode_png, png_size
from panoptic_ext.data.image_files import READ_ERRORS
from panoptic_ext.errors import UnreadableFileError

__all__ = ["read_png_string", "write_png_string"]


def read_png_string(png: bytes) -> np.ndarray:
    """Decode a PNG of segment ids.

    Args:
        png: the bytes of an RGB PNG, id = R + 256 G + 65536 B.

    Returns:
        (H, W) int32 ids.

    Raises:
        UnreadableFileError: the bytes are no PNG, or damaged.
    """
    content = bytes(png)
    expected = "expected the bytes of an RGB PNG, as write_png_string gives"
    if png_size(content) is None:
        raise UnreadableFileError(f"{len(content)} bytes are no PNG; {expected}")
    try:
        return decode_png(content)
    except READ_ERRORS as error:
        raise UnreadableFileError(f"the PNG is damaged ({error}); {expected}") from error


def write_png_string(ids: np.ndarray) -> bytes:
    """The bytes of an RGB PNG, from (H, W) integer ids in [0, 2^24); see `read_png_string`.

    Raises:
        DatasetError: no map of two dimensions, or an id out of range.
    """
    return encode_png(np.asarray(ids))

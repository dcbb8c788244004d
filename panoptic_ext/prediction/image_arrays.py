"""Convert paths, PIL images, arrays and tensors to the BGR array that `Predictor` works on.

H x W pixels; C channels, in BGR order as OpenCV and Detectron2 have them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from panoptic_ext.data.image_files import READ_ERRORS, deep_pixels, read_image
from panoptic_ext.errors import ImageError

__all__ = ["as_bgr_image", "is_one_image"]

_EXPECTED = (
    "a path, a PIL image, or an array or tensor of (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) with "
    "values from 0 to 255, in BGR order (the predictor of panoptic_ext.load takes channels='RGB')"
)


def is_one_image(image: Any) -> bool:
    """Whether this is one image and not a list, a tuple, a generator or another iterable."""
    single = (np.ndarray, torch.Tensor, Image.Image, str, bytes, os.PathLike, dict)
    return isinstance(image, single) or not isinstance(image, Iterable)


def as_bgr_image(image: Any, name: str = "the image", *, channels: str = "BGR") -> np.ndarray:
    """Convert one image to BGR and check it.

    Args:
        image: a path; a PIL image of 8 bits a channel, which is turned upright by its EXIF tag; or
            an array or tensor with values from 0 to 255: grey (H, W) or (H, W, 1), BGR (H, W, 3),
            or BGRA (H, W, 4), whose alpha is left out.
        name: of the image in errors.
        channels: "BGR" or "RGB", the order of an array or a tensor.

    Returns:
        (H, W, 3) BGR, contiguous; uint8, or float32 where floating point was given.

    Raises:
        ImageError: it is something else, has no pixel, more than 8 bits a channel, or values that
            are NaN, infinite or outside 0 to 255. Floats from 0 to 1 are refused, not scaled.
        UnreadableFileError: the file is missing or damaged.
        DatasetError: the file's pixels have more than 8 bits.
    """
    if isinstance(image, (str, os.PathLike)):
        array = read_image(image, "BGR")
    elif isinstance(image, Image.Image):
        array = _pil_pixels(image, name)[:, :, ::-1]
    elif isinstance(image, (np.ndarray, torch.Tensor)):
        array = image if isinstance(image, np.ndarray) else _tensor_values(image)
    else:
        hint = " (cv2.imread gives None where it cannot read a file)" if image is None else ""
        raise ImageError(f"{name} is {_kind(image)}{hint}; expected {_EXPECTED}")
    if not array.size:
        raise ImageError(f"{name} has no pixel: its shape is {array.shape}; expected {_EXPECTED}")
    pixels = _three_channels(_checked_values(array, name), name, channels)
    if channels == "RGB" and isinstance(image, (np.ndarray, torch.Tensor)):
        pixels = pixels[:, :, ::-1]
    return np.ascontiguousarray(pixels)


def _kind(value: Any) -> str:
    return "None" if value is None else f"of the type {type(value).__name__}"


def _pil_pixels(image: Image.Image, name: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB."""
    deep = deep_pixels(image)
    if deep:
        raise ImageError(f"{name} {deep}")
    try:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except READ_ERRORS as error:
        raise ImageError(f"{name}, a PIL image, cannot be read ({error})") from error


def _tensor_values(image: torch.Tensor) -> np.ndarray:
    image = image.detach().cpu()
    return (image.float() if image.dtype == torch.bfloat16 else image).numpy()


def _three_channels(array: np.ndarray, name: str, channels: str) -> np.ndarray:
    shape = array.shape
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim == 3 and array.shape[2] in (1, 3, 4):
        return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[:, :, :3]
    mend = ""
    if array.ndim == 3 and shape[0] in (1, 3, 4):
        mend = ". Channels come last here: transpose(1, 2, 0), or permute(1, 2, 0) of a tensor"
        mend += f"; in {channels} order" if shape[0] > 1 else ""
    elif array.ndim == 4:
        mend = ". Give a list for several images"
    raise ImageError(f"{name} has the shape {shape}; expected {_EXPECTED}{mend}")


def _checked_values(array: np.ndarray, name: str) -> np.ndarray:
    """Values from 0 to 255 as uint8 or float32."""
    dtype = array.dtype
    if dtype == np.uint8:
        return array
    if dtype.kind not in "iuf":
        raise ImageError(f"{name} has values of the type {dtype}; expected {_EXPECTED}")
    if dtype == np.uint16:
        raise ImageError(
            f"{name} has 16 bits a channel (uint16, at most {array.max()}); expected 8: scale it "
            "by the range that its camera uses, e.g. (image / 65535 * 255).astype(np.uint8)"
        )
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        count = int((~np.isfinite(array)).sum())
        raise ImageError(f"{name} has {count} values that are NaN or infinite; expected 0 to 255")
    if low < 0 or high > 255:
        raise ImageError(
            f"{name} has values from {low:g} to {high:g}, expected 0 to 255: the model normalises "
            "images itself"
        )
    # To guess the range and scale would silently change the result of a dark image with values from
    # 0 to 255. A maximum of 0 is a black image in both ranges.
    if dtype.kind == "f" and 0 < high <= 1:
        raise ImageError(
            f"{name} has floating point values from {low:g} to {high:g}, expected 0 to 255: "
            "multiply it by 255"
        )
    return array.astype(np.float32 if dtype.kind == "f" else np.uint8)

"""Label PNGs to and from runs.

torchvision's decoder takes half of Pillow's time; it reads 8-bit RGB, all that COCO's format
has, and the rest goes through `panoptic_ext.data.read_id_map`, whose errors name what is wrong.
"""

from __future__ import annotations

import io
import os

import numpy as np
import torch
from PIL import Image

from panoptic_ext.data.id_map import id_to_rgb, read_id_map
from panoptic_ext.errors import DatasetError, EvaluationError

from .label_runs import LabelRuns, runs_from_ids, runs_from_rgb

try:
    import torchvision.io  # noqa: F401  (loads the operator)

    # torchvision.io.decode_png itself warns at every call: it will move to another package. Where
    # it has moved, or torchvision lacks its image extension, Pillow does the work.
    _decode_png = torch.ops.image.decode_png
except (ImportError, AttributeError, RuntimeError):
    _decode_png = None

__all__ = ["encode_png", "read_runs", "write_file"]

_MODE_RGB = 3  # torchvision.io.ImageReadMode.RGB
# Signature and IHDR of a PNG of 8-bit RGB that is not interlaced, without its width and height.
_RGB_HEAD = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_RGB_KIND = b"\x08\x02\0\0\0"


def read_runs(path: str, encoding: str = "rgb") -> LabelRuns:
    """Read a label PNG.

    Args:
        path: of the file.
        encoding: "rgb" or "divisor", see `panoptic_ext.data.read_id_map`.

    Raises:
        EvaluationError: no such file, damaged, not a label PNG of this encoding, or ids out of
            range.
    """
    if encoding == "rgb" and _decode_png is not None:
        try:
            with open(path, "rb") as stream:
                content = stream.read()
        except OSError as error:
            raise _unreadable(path, error.strerror) from error
        rgb = _decode_rgb(content)
        if rgb is not None:
            return runs_from_rgb(rgb)
    try:
        return runs_from_ids(read_id_map(path, encoding), f"label map {path}")
    except DatasetError as error:
        raise EvaluationError(str(error)) from error
    except OSError as error:
        raise _unreadable(path, str(error)) from error


def encode_png(runs: LabelRuns) -> bytes:
    """The map as COCO's RGB PNG."""
    with io.BytesIO() as stream:
        Image.fromarray(id_to_rgb(runs.dense())).save(stream, format="PNG", compress_level=1)
        return stream.getvalue()


def write_file(path: str, content: bytes) -> None:
    """Write a file aside, then rename it; makes its folder.

    Raises:
        EvaluationError: not writable, or no space left.
    """
    folder, name = os.path.split(os.path.abspath(path))
    aside = os.path.join(folder, f".{os.getpid()}.{name}")
    try:
        os.makedirs(folder, exist_ok=True)
        with open(aside, "wb") as stream:
            stream.write(content)
        os.replace(aside, path)
    except OSError as error:
        if os.path.exists(aside):
            os.remove(aside)
        raise EvaluationError(
            f"cannot write {path}: {error.strerror}; choose a folder that is writable and has space"
        ) from error


def _decode_rgb(content: bytes) -> np.ndarray | None:
    """(H, W, 3) uint8 of an 8-bit RGB PNG; None for anything else or a damaged file."""
    if not content.startswith(_RGB_HEAD) or content[24:29] != _RGB_KIND:
        return None
    try:
        data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        pixels = _decode_png(data, _MODE_RGB, False)
    except (RuntimeError, TypeError):
        return None
    return pixels.permute(1, 2, 0).numpy()


def _unreadable(path: str, reason: str | None) -> EvaluationError:
    return EvaluationError(f"label map {path} cannot be read: {reason}")

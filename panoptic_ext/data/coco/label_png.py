"""Label PNGs to and from runs.

OpenCV decodes 8-bit RGB, all that COCO's format has, in two thirds of Pillow's time and, unlike
torchvision, survives damaged data. The rest goes through `panoptic_ext.data.read_id_map`, whose
errors name what is wrong. No decoder here checks the checksums of pixel data, so they are checked
first: a flipped bit must not become another segment.
"""

from __future__ import annotations

import io
import os
import zlib

import cv2
import numpy as np
from PIL import Image

from panoptic_ext.atomic import write_atomic
from panoptic_ext.data.coco.id_map import (
    PNG_HEADER_LENGTH,
    ExpectedSize,
    id_to_rgb,
    png_size,
    read_id_map,
)
from panoptic_ext.data.coco.runs import LabelRuns, runs_from_ids, runs_from_rgb
from panoptic_ext.errors import DatasetError, EvaluationError, quoted
from panoptic_ext.regular_files import LABEL_MAP, check_regular_file

__all__ = ["encode_png", "read_runs", "write_file"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The rest of IHDR, after width and height, of a PNG of 8-bit RGB that is not interlaced.
_RGB_KIND = b"\x08\x02\0\0\0"
_PIXEL_CHUNKS = (b"IHDR", b"IDAT", b"IEND")
_MAX_PIXELS = 1 << 26  # Pillow has its say on larger ones
# Not in OpenCV before 4.11: Pillow does the work there.
_READ_RGB: int | None = getattr(cv2, "IMREAD_COLOR_RGB", None)


def read_runs(path: str, encoding: str = "rgb", size: ExpectedSize | None = None) -> LabelRuns:
    """Read a label PNG.

    Args:
        path: of the file.
        encoding: "rgb" or "divisor", see `panoptic_ext.data.read_id_map`.
        size: that it must have; compared with the file's header, before pixels are unpacked.

    Raises:
        EvaluationError: no regular file with content, damaged, not a label PNG of this encoding, of
            another size, or ids out of range.
    """
    check_regular_file(path, LABEL_MAP, error=EvaluationError)
    try:
        with open(path, "rb") as stream:
            head = stream.read(PNG_HEADER_LENGTH)
            found = png_size(head)
            if found is not None and size is not None:
                size.check(path, *found)
            # What is no PNG is left to Pillow, which need not read the whole of it.
            content = head + stream.read() if found is not None else b""
    except DatasetError as error:
        raise EvaluationError(str(error)) from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise _unreadable(path, getattr(error, "strerror", str(error))) from error
    pixel_chunks = _checked_chunks(content, path)
    if encoding == "rgb":
        rgb = _decode_rgb(pixel_chunks)
        if rgb is not None:
            return runs_from_rgb(rgb)
    try:
        return runs_from_ids(read_id_map(path, encoding, size=size), f"label map {path}")
    except DatasetError as error:
        raise EvaluationError(str(error)) from error
    except OSError as error:
        raise _unreadable(path, str(error)) from error


def encode_png(runs: LabelRuns) -> bytes:
    """The map as COCO's RGB PNG."""
    with io.BytesIO() as stream:
        Image.fromarray(id_to_rgb(runs.dense())).save(stream, format="PNG", compress_level=1)
        return stream.getvalue()


def write_file(path: str, content: bytes, *, durable: bool = True) -> None:
    """Write a file as `write_atomic`; makes its folder.

    Raises:
        EvaluationError: not writable, or no space left.
    """
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        write_atomic(path, lambda stream: stream.write(content), durable=durable)
    except OSError as error:
        raise EvaluationError(
            f"cannot write {path}: {error.strerror}; choose a folder that is writable and has space"
        ) from error


def _checked_chunks(content: bytes, path: str) -> list[bytes]:
    """The chunks of a PNG that make its pixels, in order; [] for what is no whole PNG.

    Raises:
        EvaluationError: a chunk contradicts its checksum.
    """
    if not content.startswith(_SIGNATURE):
        return []
    chunks, at = [], len(_SIGNATURE)
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        kind = content[at + 4 : at + 8]
        if end > len(content):
            return []  # truncated; Pillow says where
        if zlib.crc32(content[at + 4 : end - 4]).to_bytes(4, "big") != content[end - 4 : end]:
            raise EvaluationError(
                f"label map {path} is damaged (wrong checksum of {quoted(kind)} at byte {at}); "
                "expected a readable PNG: copy or make it again"
            )
        if kind in _PIXEL_CHUNKS:
            chunks.append(content[at:end])
        if kind == b"IEND":
            return chunks
        at = end
    return []


def _decode_rgb(chunks: list[bytes]) -> np.ndarray | None:
    """(H, W, 3) uint8 of an 8-bit RGB PNG; None for anything else or what cannot be decoded.

    Only these chunks: others, as of orientation or colour spaces, must not change ids.
    """
    if _READ_RGB is None or not chunks or chunks[0][4:8] != b"IHDR":
        return None
    width, height = (int.from_bytes(chunks[0][i : i + 4], "big") for i in (8, 12))
    if chunks[0][16:21] != _RGB_KIND or not 0 < width * height <= _MAX_PIXELS:
        return None
    data = np.frombuffer(b"".join([_SIGNATURE, *chunks]), np.uint8)
    try:
        pixels = cv2.imdecode(data, _READ_RGB)
    except cv2.error:
        return None
    return pixels if pixels is not None and pixels.shape == (height, width, 3) else None


def _unreadable(path: str, reason: str | None) -> EvaluationError:
    return EvaluationError(f"label map {path} cannot be read: {reason}")

"""Read and write label PNGs, as id maps or as runs.

Encodings: "rgb" is COCO's, id = R + 256 G + 65536 B; "divisor" stores the integer
category * label_divisor + instance itself, in a grey PNG of 8 or 16 bits.

`read_id_map` decodes with Pillow. `read_runs` is the faster reader of the evaluation. It
decodes 8-bit RGB, the only kind in COCO's format, with OpenCV: this takes two thirds of Pillow's
time and, unlike torchvision, survives damaged data. All other files go through
`read_id_map`, whose errors describe the fault. No decoder here verifies the checksums of pixels, so
`read_runs` verifies them first: a flipped bit must not become another segment.
"""

from __future__ import annotations

import io
import os
import zlib
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from panoptic_ext.data.coco.id_map import MAX_RGB_ID, id_to_rgb
from panoptic_ext.data.coco.runs import Runs, runs_from_ids, runs_from_rgb
from panoptic_ext.data.image_files import READ_ERRORS, too_many_pixels
from panoptic_ext.errors import (
    DatasetError,
    EvaluationError,
    UnreadableFileError,
    check_known,
    quoted,
)
from panoptic_ext.regular_files import LABEL_MAP, check_regular_file

__all__ = [
    "ENCODINGS",
    "ExpectedSize",
    "check_encoding",
    "decode_png",
    "encode_png",
    "png_size",
    "read_class_map",
    "read_id_map",
    "read_png_size",
    "read_runs",
    "write_id_map",
]

ENCODINGS = ("rgb", "divisor")

_GREY_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "L")
# "classes" is no encoding of a data set: one class id a pixel, or the number of a palette's colour.
_MODES = {"rgb": ("RGB", "RGBA"), "divisor": _GREY_MODES, "classes": (*_GREY_MODES, "P")}
_MODE_NAMES = {"1": "black and white", "L": "grayscale", "P": "palette", "LA": "grayscale + alpha"}

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER_LENGTH = 24  # signature, IHDR's length and name, width, height
# The rest of IHDR, after width and height, of a PNG of 8-bit RGB that is not interlaced.
_RGB_KIND = b"\x08\x02\0\0\0"
_PIXEL_CHUNKS = (b"IHDR", b"IDAT", b"IEND")
# Larger images go to Pillow, which enforces its decompression-bomb limit.
_MAX_OPENCV_PIXELS = 1 << 26
# OpenCV before 4.11 does not have this flag. Pillow decodes all files there.
_READ_RGB: int | None = getattr(cv2, "IMREAD_COLOR_RGB", None)


class ExpectedSize(NamedTuple):
    """The size that a label map must have, and the text of the error where it has another.

    The error reads: label map PATH is 1 x 2 (height x width), `who` 3 x 4; `mend`.
    """

    height: int
    width: int
    who: str = "the JSON says"
    mend: str = "correct the JSON or the label map"

    def check(self, path: str | os.PathLike, height: int, width: int) -> None:
        """Raise DatasetError unless a file has this size."""
        if (height, width) != (self.height, self.width):
            raise DatasetError(
                f"label map {os.fspath(path)} is {height} x {width} (height x width), {self.who} "
                f"{self.height} x {self.width}; {self.mend}"
            )


def check_encoding(encoding: str) -> None:
    """Raise DatasetError unless `encoding` is one of ENCODINGS."""
    check_known("encoding", encoding, ENCODINGS, error=DatasetError)


def read_id_map(
    path: str | os.PathLike, encoding: str = "rgb", *, size: ExpectedSize | None = None
) -> np.ndarray:
    """Read a label PNG.

    Args:
        path: the PNG file.
        encoding: "rgb" or "divisor" (module docstring).
        size: the size that it must have; the header is checked before pixels are decoded.

    Returns:
        (H, W) int32 id map; 0 is void.

    Raises:
        UnreadableFileError: no regular file with content, truncated, or not an image.
        DatasetError: an image, but not a PNG of a mode of this encoding, or of another size.
    """
    check_encoding(encoding)
    return _read(path, encoding, size)


def read_class_map(path: str | os.PathLike, *, size: ExpectedSize | None = None) -> np.ndarray:
    """Read a PNG of class ids: grey of 8 or 16 bits, or a palette, whose entries are numbers.

    Args and errors as `read_id_map`.

    Returns:
        (H, W) int32.
    """
    return _read(path, "classes", size)


def read_runs(path: str, encoding: str = "rgb", size: ExpectedSize | None = None) -> Runs:
    """Read a label PNG for the evaluation: fast, its checksums checked.

    Args:
        path: of the file.
        encoding: "rgb" or "divisor" (module docstring).
        size: the size that it must have; the header is checked before pixels are decoded.

    Raises:
        EvaluationError: no regular file with content, damaged, not a label PNG of this encoding, of
            another size, or ids out of range.
    """
    check_regular_file(path, LABEL_MAP, error=EvaluationError)
    try:
        with open(path, "rb") as stream:
            head = stream.read(_HEADER_LENGTH)
            size_in_header = png_size(head)
            if size_in_header is not None and size is not None:
                size.check(path, *size_in_header)
            # Other formats are left to Pillow, which need not read the whole file.
            content = head + stream.read() if size_in_header is not None else b""
    except DatasetError as error:
        raise EvaluationError(str(error)) from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise _unreadable(path, getattr(error, "strerror", str(error))) from error
    pixel_chunks = _checked_chunks(content, path)
    if encoding == "rgb":
        rgb = _decode_with_opencv(pixel_chunks)
        if rgb is not None:
            return runs_from_rgb(rgb)
    try:
        return runs_from_ids(read_id_map(path, encoding, size=size), f"label map {path}")
    except DatasetError as error:
        raise EvaluationError(str(error)) from error
    except OSError as error:
        raise _unreadable(path, str(error)) from error


def read_png_size(path: str | os.PathLike) -> tuple[int, int] | None:
    """(height, width) of a label PNG from its header alone; None for what is no PNG.

    Raises:
        UnreadableFileError: no regular file with content.
    """
    check_regular_file(path, LABEL_MAP)
    try:
        with open(path, "rb") as stream:
            return png_size(stream.read(_HEADER_LENGTH))
    except OSError as error:
        raise UnreadableFileError(f"label map {path} cannot be read ({error.strerror})") from error


def png_size(head: bytes) -> tuple[int, int] | None:
    """(height, width) from the first bytes of a PNG; None for what is no PNG."""
    is_png = head.startswith(_SIGNATURE) and head[12:16] == b"IHDR"
    if not is_png or len(head) < _HEADER_LENGTH:
        return None
    return int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")


def decode_png(content: bytes) -> np.ndarray:
    """The (H, W) int32 id map of a PNG from `encode_png`."""
    with Image.open(io.BytesIO(content)) as image:
        return _decode(image, "rgb")


def encode_png(label_map: Runs | np.ndarray) -> bytes:
    """A label map, (H, W) ids or their runs, as COCO's RGB PNG."""
    with io.BytesIO() as stream:
        write_id_map(stream, label_map.dense() if isinstance(label_map, Runs) else label_map)
        return stream.getvalue()


def write_id_map(
    path: str | os.PathLike | BinaryIO, ids: np.ndarray, encoding: str = "rgb"
) -> None:
    """Write an (H, W) integer id map as a label PNG, to a path or an open binary file.

    `read_id_map` gives it back exactly.
    """
    check_encoding(encoding)
    ids = np.asarray(ids)
    if ids.ndim != 2:
        raise DatasetError(f"expected an (H, W) id map, found shape {ids.shape}")
    if encoding == "rgb":
        image = Image.fromarray(id_to_rgb(ids))
    elif ids.size and ids.min() < 0:
        raise DatasetError(f"id {ids.min()} < 0 cannot be written; void is 0")
    elif ids.size and ids.max() > 0xFFFF:
        raise DatasetError(
            f"id {ids.max()} does not fit a 16-bit PNG; use a smaller label_divisor or "
            'encoding "rgb"'
        )
    else:
        image = Image.fromarray(ids.astype(np.uint16))
    image.save(path, format="PNG", compress_level=1)


def _read(path: str | os.PathLike, encoding: str, size: ExpectedSize | None) -> np.ndarray:
    check_regular_file(path, LABEL_MAP)
    try:
        with Image.open(path) as image:
            _check_label_format(image, path, encoding)
            if size is not None:
                size.check(path, image.height, image.width)
            return _decode(image, encoding)
    except DatasetError:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableFileError(f"label map {path} {too_many_pixels(error)}") from error
    except READ_ERRORS as error:
        what = "is not an image" if isinstance(error, UnidentifiedImageError) else "is damaged"
        raise UnreadableFileError(
            f"label map {path} {what} ({error}); expected a readable PNG: copy or make it again"
        ) from error


def _decode(image: Image.Image, encoding: str) -> np.ndarray:
    """(H, W) int32 ids of an image of a mode of this encoding."""
    if encoding != "rgb":
        return np.asarray(image).astype(np.int32)
    # Pillow stores RGB in four bytes a pixel, so each pixel, read as a little-endian int32, is
    # already R + 256 G + 65536 B; the mask removes the alpha byte.
    packed = np.asarray(image.convert("RGBA")).view("<i4")[..., 0]
    return (packed & MAX_RGB_ID).astype(np.int32, copy=False)


def _check_label_format(image: Image.Image, path: str | os.PathLike, encoding: str) -> None:
    if image.format != "PNG":
        raise DatasetError(
            f"label map {path} is a {image.format} file, expected PNG: lossy formats change ids; "
            "make the label maps again as PNG"
        )
    if image.mode in _MODES[encoding]:
        return
    kind = _MODE_NAMES.get(image.mode, "16-bit" if image.mode.startswith("I") else image.mode)
    if encoding == "rgb":
        raise DatasetError(
            f"label map {path} is a {kind} PNG, expected RGB with id = R + 256 G + 65536 B; "
            'convert it, or register with encoding="divisor" if its pixels are '
            "category * label_divisor + instance"
        )
    if encoding == "classes":
        raise DatasetError(
            f"label map {path} is a {kind} PNG, expected a grey one of 8 or 16 bits or a palette, "
            "one class id a pixel; write it again"
        )
    raise DatasetError(
        f"label map {path} is a {kind} PNG, expected a grey one of 8 or 16 bits; register "
        'with encoding="rgb" if its colours are R + 256 G + 65536 B'
    )


def _checked_chunks(content: bytes, path: str) -> list[bytes]:
    """The chunks of a PNG that make its pixels, in order; [] for what is no whole PNG.

    Raises:
        EvaluationError: a chunk contradicts its checksum.
    """
    if not content.startswith(_SIGNATURE):
        return []
    chunks, offset = [], len(_SIGNATURE)
    while offset < len(content):
        # A chunk has 12 bytes besides its data: length, kind and checksum, each of 4 bytes. The
        # checksum covers kind and data.
        end = offset + 12 + int.from_bytes(content[offset : offset + 4], "big")
        kind = content[offset + 4 : offset + 8]
        if end > len(content):
            return []  # truncated: the caller's Pillow error describes it
        if zlib.crc32(content[offset + 4 : end - 4]).to_bytes(4, "big") != content[end - 4 : end]:
            raise EvaluationError(
                f"label map {path} is damaged (wrong checksum of {quoted(kind)} at byte {offset}); "
                "expected a readable PNG: copy or make it again"
            )
        if kind in _PIXEL_CHUNKS:
            chunks.append(content[offset:end])
        if kind == b"IEND":
            return chunks
        offset = end
    return []


def _decode_with_opencv(chunks: list[bytes]) -> np.ndarray | None:
    """Return the (H, W, 3) uint8 pixels of an 8-bit RGB PNG; None for any other or damaged PNG.

    `chunks` must be those of `_checked_chunks`: chunks of orientation or colour space, which
    OpenCV would apply, must not change ids.
    """
    if _READ_RGB is None or not chunks or chunks[0][4:8] != b"IHDR":
        return None
    width, height = (int.from_bytes(chunks[0][i : i + 4], "big") for i in (8, 12))
    if chunks[0][16:21] != _RGB_KIND or not 0 < width * height <= _MAX_OPENCV_PIXELS:
        return None
    data = np.frombuffer(b"".join([_SIGNATURE, *chunks]), np.uint8)
    try:
        pixels = cv2.imdecode(data, _READ_RGB)
    except cv2.error:
        return None
    return pixels if pixels is not None and pixels.shape == (height, width, 3) else None


def _unreadable(path: str, reason: str | None) -> EvaluationError:
    return EvaluationError(f"label map {path} cannot be read: {reason}")

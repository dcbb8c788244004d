"""Id maps: one integer per pixel, 0 = void, otherwise the id of the one segment it belongs to.

Shapes: H x W is the image; R is the number of runs (see `Runs`).
Encodings of a label PNG: "rgb" is COCO's, id = R + 256 G + 65536 B; "divisor" stores the integer
category * label_divisor + instance itself, in a grey PNG of 8 or 16 bits.
"""

from __future__ import annotations

import os
import re
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from panoptic_ext.errors import DatasetError, UnreadableFileError, nearest, quoted
from panoptic_ext.regular_files import LABEL_MAP, check_regular_file

__all__ = [
    "ENCODINGS",
    "MAX_RGB_ID",
    "PNG_HEADER_LENGTH",
    "READ_ERRORS",
    "ExpectedSize",
    "Runs",
    "find_runs",
    "id_to_rgb",
    "png_size",
    "read_id_map",
    "read_png_size",
    "remap_ids",
    "rgb_to_id",
    "segment_boxes",
    "too_many_pixels",
    "write_id_map",
]

ENCODINGS = ("rgb", "divisor")
MAX_RGB_ID = 2**24 - 1
PNG_HEADER_LENGTH = 24  # signature, IHDR's length and name, width, height
READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""What Pillow raises for missing, truncated, foreign or absurdly large image files."""

_MODES = {"rgb": ("RGB", "RGBA"), "divisor": ("I", "I;16", "I;16B", "I;16L", "I;16N", "L")}
_MODE_NAMES = {"1": "black and white", "L": "grayscale", "P": "palette", "LA": "grayscale + alpha"}


class Runs(NamedTuple):
    """Stretches of equal values in the flattened map; each a contiguous 1D array of R."""

    values: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray


class ExpectedSize(NamedTuple):
    """The size that a label map must have, and the words of the error where it has another.

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


def rgb_to_id(array: np.ndarray) -> np.ndarray:
    """(..., 3 or 4) uint8 colours to (...) int32 ids, R + 256 G + 65536 B."""
    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim < 1 or array.shape[-1] not in (3, 4):
        raise DatasetError(
            f"expected (..., 3) uint8 colours, found {array.dtype} of shape {array.shape}"
        )
    ids = array[..., 2].astype(np.int32)
    for channel in (1, 0):
        ids <<= 8
        ids |= array[..., channel]
    return ids


def id_to_rgb(ids: np.ndarray) -> np.ndarray:
    """(...) integer ids in [0, 2^24) to (..., 3) uint8 colours; the inverse of `rgb_to_id`."""
    ids = np.asarray(ids)
    if ids.size and (ids.min() < 0 or ids.max() > MAX_RGB_ID):
        raise DatasetError(
            f"ids from {ids.min()} to {ids.max()} do not fit an RGB PNG: expected 0 to "
            f"{MAX_RGB_ID}; renumber the segments"
        )
    little = np.ascontiguousarray(ids, dtype="<u4")
    return np.ascontiguousarray(little.view(np.uint8).reshape(*ids.shape, 4)[..., :3])


def read_id_map(
    path: str | os.PathLike, encoding: str = "rgb", *, size: ExpectedSize | None = None
) -> np.ndarray:
    """Read a label PNG.

    Args:
        path: the PNG file.
        encoding: "rgb" or "divisor" (module docstring).
        size: that it must have; compared with the file's header, before pixels are unpacked.

    Returns:
        (H, W) int32 id map; 0 is void.

    Raises:
        UnreadableFileError: no regular file with content, truncated, or not an image.
        DatasetError: an image, but not a PNG of a mode of this encoding, or of another size.
    """
    check_encoding(encoding)
    check_regular_file(path, LABEL_MAP)
    try:
        with Image.open(path) as image:
            _check_label_format(image, path, encoding)
            if size is not None:
                size.check(path, image.height, image.width)
            if encoding == "rgb":
                # Pillow holds RGB in four bytes a pixel, so this view needs no arithmetic.
                packed = np.asarray(image.convert("RGBA")).view("<i4")[..., 0]
                return (packed & MAX_RGB_ID).astype(np.int32, copy=False)
            return np.asarray(image).astype(np.int32)
    except DatasetError:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableFileError(f"label map {path} {too_many_pixels(error)}") from error
    except READ_ERRORS as error:
        what = "is not an image" if isinstance(error, UnidentifiedImageError) else "is damaged"
        raise UnreadableFileError(
            f"label map {path} {what} ({error}); expected a readable PNG: copy or make it again"
        ) from error


def read_png_size(path: str | os.PathLike) -> tuple[int, int] | None:
    """(height, width) of a label PNG from its header alone; None for what is no PNG.

    Raises:
        UnreadableFileError: no regular file with content.
    """
    check_regular_file(path, LABEL_MAP)
    try:
        with open(path, "rb") as stream:
            return png_size(stream.read(PNG_HEADER_LENGTH))
    except OSError as error:
        raise UnreadableFileError(f"label map {path} cannot be read ({error.strerror})") from error


def png_size(head: bytes) -> tuple[int, int] | None:
    """(height, width) from the first bytes of a PNG; None for what is no PNG."""
    is_png = head.startswith(b"\x89PNG\r\n\x1a\n") and head[12:16] == b"IHDR"
    if not is_png or len(head) < PNG_HEADER_LENGTH:
        return None
    return int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")


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


def too_many_pixels(error: Image.DecompressionBombError) -> str:
    """What to say of an image that has more pixels than Pillow reads."""
    numbers = re.findall(r"\d+", str(error))
    found = f"{int(numbers[0]) / 1e6:.0f} million pixels" if numbers else "too many pixels"
    most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
    return (
        f"has {found}, expected at most {most:.0f} million: the file is damaged, or has to be made "
        "smaller or cut into parts"
    )


def check_encoding(encoding: str) -> None:
    """Raise DatasetError unless `encoding` is one of ENCODINGS."""
    if encoding not in ENCODINGS:
        raise DatasetError(
            f"unknown encoding {quoted(encoding)}, expected one of {ENCODINGS}"
            + nearest(encoding, ENCODINGS)
        )


def _check_label_format(image: Image.Image, path: str | os.PathLike, encoding: str) -> None:
    if image.format != "PNG":
        raise DatasetError(
            f"label map {path} is a {image.format} file, expected PNG: lossy formats change ids; "
            "make the label maps again as PNG"
        )
    if image.mode in _MODES[encoding]:
        return
    found = _MODE_NAMES.get(image.mode, "16-bit" if image.mode.startswith("I") else image.mode)
    if encoding == "rgb":
        raise DatasetError(
            f"label map {path} is a {found} PNG, expected RGB with id = R + 256 G + 65536 B; "
            'convert it, or register with encoding="divisor" if its pixels are '
            "category * label_divisor + instance"
        )
    raise DatasetError(
        f"label map {path} is a {found} PNG, expected a grey one of 8 or 16 bits; register "
        'with encoding="rgb" if its colours are R + 256 G + 65536 B'
    )


def find_runs(ids: np.ndarray, *, split_rows: bool = False) -> Runs:
    """Runs of an (H, W) map in row-major order; with `split_rows` none crosses a row's end.

    Real maps have a few thousand runs in hundreds of thousands of pixels, so work per segment is
    done on runs instead of pixels.
    """
    flat = np.ascontiguousarray(ids).reshape(-1)
    if flat.size == 0:
        empty = np.zeros(0, np.int64)
        return Runs(flat, empty, empty)
    change = np.empty(flat.size, bool)
    change[0] = True
    np.not_equal(flat[1:], flat[:-1], out=change[1:])
    if split_rows:
        change[:: ids.shape[1]] = True
    starts = np.flatnonzero(change)
    return Runs(flat[starts], starts, np.diff(starts, append=flat.size))


def segment_boxes(runs: Runs, width: int, rows: np.ndarray, count: int) -> np.ndarray:
    """Tight boxes of segments, in one pass over the runs.

    Args:
        runs: of `find_runs` with split_rows.
        width: of the map.
        rows: (R,) the segment that each run belongs to, 0..count - 1; others are left out.
        count: number of segments.

    Returns:
        (count, 4) int64 x0, y0, x1, y1, the last two exclusive; zeros where there is no run.
    """
    boxes = np.zeros((count, 4), np.int64)
    keep = np.flatnonzero((rows >= 0) & (rows < count))
    if len(keep) == 0:
        return boxes
    keep = keep[np.argsort(rows[keep], kind="stable")]
    owner = rows[keep]
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    y, x0 = np.divmod(runs.starts[keep], width)
    x1 = x0 + runs.lengths[keep]
    found = owner[first]
    boxes[found, 0] = np.minimum.reduceat(x0, first)
    boxes[found, 1] = np.minimum.reduceat(y, first)
    boxes[found, 2] = np.maximum.reduceat(x1, first)
    boxes[found, 3] = np.maximum.reduceat(y, first) + 1
    return boxes


def remap_ids(ids: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Renumber an id map by the position of each id in `known`.

    Args:
        ids: (H, W) integer map, 0 = void.
        known: (N,) distinct ids, none of them 0.

    Returns:
        (H, W) map with i + 1 where ids == known[i] and 0 for void or unknown ids, of the smallest
        of uint8, uint16, int32 that holds N; (N,) bool, whether known[i] occurs; sorted array of
        the unknown ids found.
    """
    known = np.asarray(known, dtype=np.int64)
    dtype = np.uint8 if len(known) < 2**8 else np.uint16 if len(known) < 2**16 else np.int32
    runs = find_runs(ids)
    order = np.argsort(known, kind="stable")
    keys = np.concatenate([[-1], known[order]])  # a sentinel, so that nothing known works too
    rows = np.concatenate([[0], order + 1])
    at = np.clip(np.searchsorted(keys, runs.values, side="right") - 1, 0, None)
    hit = keys[at] == runs.values
    local = np.where(hit, rows[at], 0)
    unknown = np.unique(runs.values[~hit])
    present = np.zeros(len(known) + 1, bool)
    present[local] = True
    out = np.repeat(local.astype(dtype), runs.lengths).reshape(ids.shape)
    return out, present[1:], unknown[unknown != 0]

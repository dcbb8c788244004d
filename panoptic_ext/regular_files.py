"""Check, before a file is opened, that it is a regular file of a plausible size.

Opening a named pipe can block for ever, /dev/zero never ends, and a sparse file can have a size of
hundreds of gigabytes. The file's status shows all of this without opening it.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, replace

from PIL import Image

from panoptic_ext.errors import PanopticExtError, UnreadableFileError, shortened

__all__ = [
    "CHECKPOINT",
    "CONFIG_FILE",
    "IMAGE",
    "INSTANCES_JSON",
    "LABEL_MAP",
    "LOG_FILE",
    "METADATA",
    "METRICS",
    "PANOPTIC_JSON",
    "READ_ERRORS",
    "RESULTS_JSON",
    "SMALL_FILE",
    "VIDEO",
    "FileKind",
    "check_regular_file",
    "file_problem",
    "readable_size",
]

READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""Errors of Pillow for image files that are missing, truncated, of other formats or too large."""

_MIB, _GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class FileKind:
    """A kind of file, and what its readers expect of it.

    Attributes:
        name: its name in messages.
        most_bytes: the largest size that is accepted.
        missing: how to mend it if there is no such file.
        bad: how to mend it if it is no regular file, is empty or is too large.
        may_be_empty: whether a file of 0 bytes is valid.
    """

    name: str
    most_bytes: int
    missing: str = "check the path"
    bad: str = "copy or make it again"
    may_be_empty: bool = False


IMAGE = FileKind("image", 4 * _GIB, "check the path or the image root")
LABEL_MAP = FileKind("label map", _GIB, "check the PNG root")
# COCO's largest panoptic JSON has 0.4 GB; instance results of its test images some GB.
PANOPTIC_JSON = FileKind(
    "panoptic JSON",
    8 * _GIB,
    "put it there or correct the path",
    "it may be an interrupted download or copy: get it again",
)
INSTANCES_JSON = replace(PANOPTIC_JSON, name="instances JSON")
RESULTS_JSON = FileKind("results", 16 * _GIB, bad="write it again")
METADATA = FileKind(
    "metadata file",
    64 * _MIB,
    "expected the metadata.json that training writes into its output folder",
    "expected the metadata.json that training writes into its output folder",
)
SMALL_FILE = FileKind("file", 16 * _MIB, bad="remove it: it is written again")
CONFIG_FILE = FileKind("config file", 4 * _MIB, "check the path", may_be_empty=True)
# A model of 7 billion parameters with its optimizer has 90 GB.
CHECKPOINT = FileKind("checkpoint", 256 * _GIB, "check MODEL.WEIGHTS", "fetch or copy it again")
LOG_FILE = FileKind("log", 4 * _GIB, bad="remove it", may_be_empty=True)
METRICS = FileKind(
    "metrics",
    4 * _GIB,
    "give the OUTPUT_DIR of a training",
    "give the OUTPUT_DIR of a training",
    may_be_empty=True,
)
VIDEO = FileKind("video", 1024 * _GIB)

_OTHER_FILE_TYPES = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe, which may never end"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_REASONS_OF_NO_FILE = {
    errno.ENOENT: "does not exist",
    errno.ENOTDIR: "does not exist (a folder in its path is a file)",
    errno.ELOOP: "is a link that leads round in a circle",
    errno.ENAMETOOLONG: "has a name that is too long for a file",
    errno.EACCES: "is in a folder that this user may not enter",
}


def check_regular_file(
    path: str | os.PathLike,
    kind: FileKind,
    *,
    error: type[PanopticExtError] = UnreadableFileError,
    prefix: str = "",
) -> int:
    """Check, without opening it, that a file exists and can be read to its end.

    Args:
        path: path of the file, or of a link to it.
        kind: the kind of file that is expected.
        error: the class to raise.
        prefix: the beginning of the message, such as "image id 7: ".

    Returns:
        Its size in bytes.

    Raises:
        `error`: see `file_problem`.
    """
    problem = file_problem(path, kind)
    if problem:
        raise error(f"{prefix}{kind.name} {shortened(os.fsdecode(path), 300)} {problem}")
    return os.stat(path).st_size


def file_problem(path: str | os.PathLike, kind: FileKind) -> str:
    """Why a file cannot be read, and how to mend it; "" if it can.

    The problems are: the file does not exist, is a dangling link, a folder, a pipe, a socket or a
    device, may not be read by this user, is empty, or is larger than `kind` allows. The text is
    meant to follow the file's path: "is empty (0 bytes); copy or make it again".
    """
    try:
        status = os.stat(path)
    except ValueError:
        return f"has a null character in its name; {kind.missing}"
    except OSError as error:
        return f"{_why_no_file(path, error)}; {kind.missing}"
    for is_kind, description in _OTHER_FILE_TYPES:
        if is_kind(status.st_mode):
            return f"is {description}, expected a regular file; {kind.bad}"
    if not os.access(path, os.R_OK):
        return "may not be read by this user (permission denied); change its permissions"
    if status.st_size == 0 and not kind.may_be_empty:
        return f"is empty (0 bytes); {kind.bad}"
    if status.st_size > kind.most_bytes:
        return (
            f"has {readable_size(status.st_size)}, expected at most"
            f" {readable_size(kind.most_bytes)}: damaged, or another kind of file; {kind.bad}"
        )
    return ""


def readable_size(size: int) -> str:
    """A number of bytes in the unit in which it is between 1 and 1000: "3.2 MB"."""
    if size < 1000:
        return f"{size} bytes"
    units = ("kB", "MB", "GB", "TB", "PB", "EB")
    # 999.95 and more would be rounded to "1000.0" of the smaller unit.
    power = next((p for p in range(1, len(units)) if size / 1000**p < 999.95), len(units))
    return f"{size / 1000**power:.1f} {units[power - 1]}"


def _why_no_file(path: str | os.PathLike, error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and os.path.islink(path):
        return "is a link to a file that does not exist"
    number = getattr(error, "errno", None)
    if number in _REASONS_OF_NO_FILE:
        return _REASONS_OF_NO_FILE[number]
    return f"cannot be read ({getattr(error, 'strerror', None) or error})"

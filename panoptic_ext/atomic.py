"""Files written aside and renamed, so that a kill leaves the old content or the new, never half."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import BinaryIO

__all__ = ["remove_leftovers", "write_atomic"]

_SUFFIX = ".tmp-"
_TEMPORARY = re.compile(r".+\.tmp-\d+")


def write_atomic(path: str, write: Callable[[BinaryIO], object], *, durable: bool = True) -> None:
    """Write a file under a temporary name in the same folder, flush it to disk, rename it.

    Args:
        path: the file; its folder must exist.
        write: called with the open binary stream.
        durable: also outlives a power failure; without it, many small files are written faster.

    Raises:
        OSError: the disk is full or the folder not writable; `path` is as before.
    """
    temporary = f"{path}{_SUFFIX}{os.getpid()}"
    try:
        with open(temporary, "wb") as stream:
            write(stream)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise
    if durable:
        _sync_folder(os.path.dirname(path) or ".")


def remove_leftovers(folder: str) -> None:
    """Remove what `write_atomic` of killed runs left in `folder`: files `<name>.tmp-<number>`."""
    if not os.path.isdir(folder):
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name) and entry.is_file():
                os.remove(entry.path)


def _sync_folder(folder: str) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # not every system can open a folder
        return
    try:
        os.fsync(handle)
    except OSError:  # nor sync one
        pass
    finally:
        os.close(handle)

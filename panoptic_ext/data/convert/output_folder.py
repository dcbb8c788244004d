"""The folder of a result, which is there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from panoptic_ext.atomic import try_lock
from panoptic_ext.errors import DatasetError, listed, quoted

__all__ = ["check_output", "whole_folder"]

_ASIDE = ".unfinished-"
_LOCK = ".lock"


def check_output(
    path: str, inputs: Collection[str], *, overwrite: bool, written: Collection[str]
) -> None:
    """Raise DatasetError where a result must not be written.

    Args:
        path: folder of the result.
        inputs: files and folders that are read.
        overwrite: an earlier result there may be replaced.
        written: names that a result may have in this folder. A folder that holds anything else is
            never replaced.
    """
    real = os.path.realpath(path)
    for one in inputs:
        other = os.path.realpath(one)
        inside = f"{real}{os.sep}".startswith(os.path.join(other, ""))
        around = f"{other}{os.sep}".startswith(os.path.join(real, ""))
        if around or (inside and os.path.isdir(other)):
            raise DatasetError(
                f"the result would be written to {path}, {'around' if around else 'inside'} the "
                f"input {one}; choose another folder (--output)"
            )
    if os.path.exists(real) and not os.path.isdir(real):
        raise DatasetError(f"{path} is a file, expected a folder for the result (--output)")
    names = sorted(os.listdir(real)) if os.path.isdir(real) else []
    if not names:
        return
    if not overwrite:
        raise DatasetError(
            f"{path} is not empty ({listed(names, 3, show=str)}); choose another folder, or "
            "replace the earlier result there with --overwrite"
        )
    foreign = [name for name in names if name not in written]
    if foreign:
        raise DatasetError(
            f"{path} has {listed(foreign, 3)}, which no conversion wrote, so --overwrite does not "
            "replace the folder; choose another folder or move these files"
        )


@contextmanager
def whole_folder(path: str) -> Iterator[str]:
    """Yield a new folder beside `path` that takes its place at the end of the block.

    An error or a signal in the block removes the new folder and leaves `path` as it was. That of a
    killed process goes when the next one begins: its lock is free.

    Raises:
        DatasetError: the folder cannot be made.
    """
    real = os.path.realpath(path)
    parent = os.path.dirname(real)
    try:
        os.makedirs(parent, exist_ok=True)
        _remove_left(parent, os.path.basename(real) + _ASIDE)
        aside = tempfile.mkdtemp(prefix=os.path.basename(real) + _ASIDE, dir=parent)
    except OSError as error:
        raise DatasetError(
            f"cannot write to {quoted(parent)}: {error.strerror}; choose a folder that is writable "
            "(--output)"
        ) from error
    with open(os.path.join(aside, _LOCK), "wb") as lock:
        try_lock(lock)
        try:
            yield aside
            os.remove(lock.name)
            os.chmod(aside, 0o777 & ~_umask())  # mkdtemp lets nobody else read it
            _replace(aside, real)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _remove_left(parent: str, prefix: str) -> None:
    """Remove the unfinished folders of killed processes."""
    for name in os.listdir(parent):
        path = os.path.join(parent, name)
        if name.startswith(prefix) and os.path.isfile(os.path.join(path, _LOCK)):
            with open(os.path.join(path, _LOCK), "rb") as lock:
                is_left = try_lock(lock) == "free"
            if is_left:
                shutil.rmtree(path, ignore_errors=True)


def _replace(new: str, path: str) -> None:
    """Rename a folder to `path`; what was there goes at the very end, or comes back."""
    if not os.path.isdir(path):
        os.rename(new, path)
        return
    old = tempfile.mkdtemp(prefix=os.path.basename(path) + ".old-", dir=os.path.dirname(path))
    os.rename(path, os.path.join(old, "result"))
    try:
        os.rename(new, path)
    except BaseException:
        os.rename(os.path.join(old, "result"), path)
        os.rmdir(old)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

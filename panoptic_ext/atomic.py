"""Write files under a temporary name and rename them: a kill leaves the old content or the new.

Every file that is being written is a `TemporaryFile`, `<name>.tmp-<machine>-<process>`, which its
writer keeps locked. The lock distinguishes the file of a killed process from one that is still
being written. The next process that writes into the folder removes the former.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from types import TracebackType
from typing import BinaryIO

from panoptic_ext.errors import EvaluationError, PanopticExtError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["TemporaryFile", "is_at", "remove_leftovers", "try_lock", "write_atomic", "write_file"]

# Older versions wrote `<name>.tmp-<process>`.
_TEMPORARY = re.compile(r".+\.tmp-(?:(?P<machine>[0-9a-f]{8})-)?(?P<process>\d+)(?P<kind>\.\w+)?")
# Seconds without a write, after which the writer is taken for dead where locks cannot tell.
_ABANDONED_AFTER = 24 * 3600.0
_MAX_LOCK_TRIES, _LOCK_PAUSE = 3000, 0.01  # at least half a minute; the pause is in seconds
_MAX_NAME_BYTES = 255  # on all common file systems
_BINARY_FLAG = getattr(os, "O_BINARY", 0)  # exists on Windows only

_swept_folders: set[str] = set()
_sweeping = threading.Lock()


def write_atomic(path: str, write: Callable[[BinaryIO], object], *, durable: bool = True) -> None:
    """Write a file under a temporary name in the same folder, flush it to disk, rename it.

    The first call of a process for a folder removes the temporary files of killed processes there.

    Args:
        path: the file; its folder must exist.
        write: called with the open binary stream.
        durable: True flushes to disk, so that the file survives a power failure; False is faster
            for many small files.

    Raises:
        OSError: the disk is full or the folder is not writable; `path` is unchanged.
    """
    with TemporaryFile(path) as temporary:
        write(temporary.stream)
        temporary.stream.flush()
        if durable:
            os.fsync(temporary.stream.fileno())
        temporary.commit()
    if durable:
        _sync_folder(os.path.dirname(path) or ".")


def write_file(
    path: str,
    content: bytes,
    *,
    durable: bool = True,
    error: type[PanopticExtError] | None = EvaluationError,
) -> None:
    """Write bytes with `write_atomic`, after making the folder.

    Args:
        path, durable: as in `write_atomic`.
        content: the bytes of the file.
        error: the class to raise; None raises the OSError itself.

    Raises:
        `error`: the folder is not writable, or no space is left.
    """
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        write_atomic(path, lambda stream: stream.write(content), durable=durable)
    except OSError as failure:
        if error is None:
            raise
        raise error(
            f"cannot write {path}: {failure.strerror}; choose a folder that is writable and has "
            "space"
        ) from failure


class TemporaryFile:
    """A locked file beside its target; `commit` renames it, and leaving the block removes it.

    Attributes:
        path: path of the temporary file, for libraries that open files themselves.
        stream: the temporary file, open for writing.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """

    def __init__(self, path: str, *, kind: str = "") -> None:
        """
        Args:
            path: path of the target; its folder must exist.
            kind: ending of the temporary name, such as ".mp4", for libraries that read the format
                from it.
        """
        _sweep_once(os.path.dirname(path) or ".")
        self.path = _temporary_path(path, f".tmp-{_machine()}-{os.getpid()}{kind}")
        self._target = path
        self._is_committed = False
        self.stream = _open_locked(self.path)

    def commit(self) -> None:
        """Rename the file to its target, which it replaces, and close the stream."""
        try:
            # Before the stream, and with it the lock, is closed: without the lock another process
            # could take the file for a leftover and remove it.
            os.replace(self.path, self._target)
        except PermissionError:  # Windows and some network folders cannot rename open files
            self.stream.close()
            os.replace(self.path, self._target)
        self._is_committed = True
        self.stream.close()

    def __enter__(self) -> TemporaryFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):  # on a full disk the buffer cannot be written
            self.stream.close()
        if not self._is_committed and os.path.exists(self.path):
            os.remove(self.path)


def remove_leftovers(folder: str) -> None:
    """Remove the temporary files of killed processes from `folder`.

    A file whose writer may live is kept: one that is locked and, where locks cannot be seen, one of
    a running process of this machine, or one that another machine wrote within the last day.
    """
    try:
        with os.scandir(folder) as entries:
            temporary = [e for e in entries if _TEMPORARY.fullmatch(e.name) and e.is_file()]
    except OSError:  # the folder is missing or unreadable, so there is nothing to remove
        return
    for entry in temporary:
        try:
            _remove_if_left(entry.path)
        except OSError:  # another process has removed it, or it belongs to another user
            continue


def _temporary_path(path: str, suffix: str) -> str:
    """`path` with the suffix; a name that is too long for it is replaced by its hash."""
    folder, name = os.path.split(path)
    encoded = os.fsencode(name)
    # Raised here with the file's own name; the error of open() would have the temporary one.
    if len(encoded) > _MAX_NAME_BYTES:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
    if len(encoded + os.fsencode(suffix)) > _MAX_NAME_BYTES:
        name = hashlib.sha256(encoded).hexdigest()
    return os.path.join(folder, name + suffix)


def _sweep_once(folder: str) -> None:
    folder = os.path.abspath(folder)
    with _sweeping:
        if folder in _swept_folders:
            return
        _swept_folders.add(folder)
    remove_leftovers(folder)


def _remove_if_left(path: str) -> None:
    name = _TEMPORARY.fullmatch(os.path.basename(path))
    assert name is not None
    if name["kind"] and name["machine"] is None:
        return  # a user's own file, such as `notes.tmp-1.txt`
    with open(path, "r+b") as stream:
        lock = try_lock(stream)
        idle = time.time() - os.fstat(stream.fileno()).st_mtime
        if lock == "held" or _may_be_written(name, lock, idle):
            return
        # Removed while it is locked, so that no writer opens it in between.
        with contextlib.suppress(PermissionError):
            os.remove(path)
            return
    os.remove(path)  # on systems that cannot remove an open file


def _may_be_written(name: re.Match[str], lock: str, idle: float) -> bool:
    if name["machine"] not in (None, _machine()):
        return idle < _ABANDONED_AFTER  # a shared folder may hide the locks of other machines
    if not _is_running(int(name["process"])):
        return False
    if name["machine"] is None:  # older versions did not lock
        return idle < _ABANDONED_AFTER
    # If the lock is free, the running process only happens to have the writer's number.
    return lock != "free"


def _open_locked(path: str) -> BinaryIO:
    """Open an empty file for writing and lock it.

    Raises:
        OSError: the file cannot be made, or another thread does not finish writing it.
    """
    for _ in range(_MAX_LOCK_TRIES):
        stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | _BINARY_FLAG, 0o666), "wb")
        lock = try_lock(stream)
        # A sweep may have removed the file between opening and locking it.
        if lock == "unknown" or (lock == "free" and is_at(stream, path)):
            stream.truncate()
            return stream
        stream.close()  # a sweep, or a thread with the same target, holds the lock
        time.sleep(_LOCK_PAUSE)
    raise OSError(errno.EBUSY, "another thread is writing the same file", path)


def try_lock(stream: BinaryIO) -> str:
    """Lock an open file until it is closed; returns "free" (ours now), "held" or "unknown"."""
    if fcntl is None:
        return "unknown"
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "held"
    except OSError:  # the file system does not support locks
        return "unknown"
    return "free"


def is_at(stream: BinaryIO, path: str) -> bool:
    """Whether an open file still is the one at `path`: not renamed, removed or replaced."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _is_running(process: int) -> bool:
    if os.name != "posix":
        return True  # on Windows os.kill would end the process
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # a process of another user
        return True
    return True


@lru_cache(maxsize=1)
def _machine() -> str:
    """A hash of the machine and container, within which process numbers are unique."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


def _sync_folder(folder: str) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # some systems cannot open a folder
        return
    try:
        os.fsync(handle)
    except OSError:  # some file systems cannot sync one
        pass
    finally:
        os.close(handle)

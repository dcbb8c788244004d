"""Files written aside and renamed, so that a kill leaves the old content or the new, never half.

Every file that is written aside is a `TemporaryFile` here: `<name>.tmp-<machine>-<process>`, locked
by its writer for as long as that lives. What a killed process left is therefore told from what
another one is writing at the moment, and the next process that writes into the folder removes it.
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

__all__ = ["TemporaryFile", "remove_leftovers", "write_atomic", "write_file"]

# Older versions wrote `<name>.tmp-<process>`.
_TEMPORARY = re.compile(r".+\.tmp-(?:(?P<machine>[0-9a-f]{8})-)?(?P<process>\d+)(?P<kind>\.\w+)?")
_ABANDONED = 24 * 3600.0  # seconds without a write, where nothing else tells whether a writer lives
_MAX_TRIES, _PAUSE = 3000, 0.01  # half a minute and more
_LONGEST_NAME = 255  # bytes, on all common file systems
_BINARY = getattr(os, "O_BINARY", 0)  # on Windows

_swept_folders: set[str] = set()
_sweeping = threading.Lock()


def write_atomic(path: str, write: Callable[[BinaryIO], object], *, durable: bool = True) -> None:
    """Write a file under a temporary name in the same folder, flush it to disk, rename it.

    The first time a process does so in a folder, it removes what killed processes left there.

    Args:
        path: the file; its folder must exist.
        write: called with the open binary stream.
        durable: also outlives a power failure; without it, many small files are written faster.

    Raises:
        OSError: the disk is full or the folder not writable; `path` is as before.
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
    """Write bytes as `write_atomic`; makes the folder.

    Args:
        path, durable: as `write_atomic`.
        content: of the file.
        error: the class to raise; None raises the OSError itself.

    Raises:
        `error`: not writable, or no space left.
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
    """A file beside the one that it will become; leaving the block without `commit` removes it.

    Attributes:
        path: of the temporary file, for libraries that open files themselves.
        stream: the file, open for writing.

    Raises:
        OSError: the disk is full or the folder not writable.
    """

    def __init__(self, path: str, *, kind: str = "") -> None:
        """
        Args:
            path: of the file to be; its folder must exist.
            kind: ending of the temporary name, as ".mp4", for libraries that go by it.
        """
        _sweep_once(os.path.dirname(path) or ".")
        self.path = _temporary_path(path, f".tmp-{_machine()}-{os.getpid()}{kind}")
        self._target = path
        self._is_committed = False
        self.stream = _open_locked(self.path)

    def commit(self) -> None:
        """Give the file its name, in place of what has it; the stream ends here."""
        try:
            # While it is locked: else another process could take it for a leftover.
            os.replace(self.path, self._target)
        except PermissionError:  # Windows, and some network folders, do not rename an open file
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
        with contextlib.suppress(OSError):  # a full disk: what is in the buffer cannot be written
            self.stream.close()
        if not self._is_committed and os.path.exists(self.path):
            os.remove(self.path)


def remove_leftovers(folder: str) -> None:
    """Remove the temporary files of killed processes from `folder`.

    A file stays while its writer may live: one that is locked, and, where locks cannot be seen, one
    of a running process of this machine or of another machine within the last day.
    """
    try:
        with os.scandir(folder) as entries:
            temporary = [e for e in entries if _TEMPORARY.fullmatch(e.name) and e.is_file()]
    except OSError:  # no such folder, or not readable: nothing to do there
        return
    for entry in temporary:
        try:
            _remove_if_left(entry.path)
        except OSError:  # another process removed it, or it is another user's
            continue


def _temporary_path(path: str, suffix: str) -> str:
    """`path` with the suffix; of a name that leaves no room for it, a hash stands in its place."""
    folder, name = os.path.split(path)
    encoded = os.fsencode(name)
    if len(encoded) > _LONGEST_NAME:  # here, where the error can name the file itself
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
    if len(encoded + os.fsencode(suffix)) > _LONGEST_NAME:
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
        return  # `notes.tmp-1.txt` is somebody's own
    with open(path, "r+b") as stream:
        lock = _lock(stream)
        idle = time.time() - os.fstat(stream.fileno()).st_mtime
        if lock == "held" or _may_be_written(name, lock, idle):
            return
        # While it is locked, so that no writer takes it up in between.
        with contextlib.suppress(PermissionError):
            os.remove(path)
            return
    os.remove(path)  # where an open file cannot be removed


def _may_be_written(name: re.Match[str], lock: str, idle: float) -> bool:
    if name["machine"] not in (None, _machine()):
        return idle < _ABANDONED  # a shared folder may hide the locks of other machines
    if not _is_running(int(name["process"])):
        return False
    if name["machine"] is None:  # older versions did not lock
        return idle < _ABANDONED
    return lock != "free"  # else a later process has the number by chance


def _open_locked(path: str) -> BinaryIO:
    """Open an empty file for writing, locked.

    Raises:
        OSError: it cannot be made, or another thread keeps writing it.
    """
    for _ in range(_MAX_TRIES):
        stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | _BINARY, 0o666), "wb")
        lock = _lock(stream)
        if lock == "unknown" or (lock == "free" and _is_at(stream, path)):
            stream.truncate()
            return stream
        stream.close()  # a sweep, or a thread with the same target, has it for a moment
        time.sleep(_PAUSE)
    raise OSError(errno.EBUSY, "another thread is writing the same file", path)


def _lock(stream: BinaryIO) -> str:
    """Lock an open file until it is closed: "free" (now ours), "held" by another, or "unknown"."""
    if fcntl is None:
        return "unknown"
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "held"
    except OSError:  # the file system has no locks
        return "unknown"
    return "free"


def _is_at(stream: BinaryIO, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _is_running(process: int) -> bool:
    if os.name != "posix":
        return True  # there, os.kill would end it
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


@lru_cache(maxsize=1)
def _machine() -> str:
    """Within what process numbers are unique: the machine, and the container of it."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


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

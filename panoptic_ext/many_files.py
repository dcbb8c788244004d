"""Process many files; a file that fails does not stop the others."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import cv2
import torch

from panoptic_ext.errors import ConfigError, listed, shortened
from panoptic_ext.interruption import Interrupted, StopRequest, stoppable
from panoptic_ext.regular_files import READ_ERRORS

__all__ = ["FILE_ERRORS", "ManyFiles", "explain_failure", "failure_line", "listed_failures"]

Item = TypeVar("Item")
Result = TypeVar("Result")

FILE_ERRORS = (*READ_ERRORS, RuntimeError, MemoryError, cv2.error)
"""Errors that work on a file raises for reasons that concern this file only."""

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # every other file would fail too
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "Insufficient memory")
_MAX_REASON_LENGTH = 400  # characters
_STOPPING = "stopping after the current file; a second signal ends at once"


class ManyFiles(Generic[Item]):
    """One pass over many files.

    An error that concerns one file is recorded with the file's name, and the pass goes on. A signal
    ends the pass after the files that are being processed. An error that every file would cause, a
    ConfigError or a full disk, is raised.

    Attributes:
        failed: name of a file that failed -> reason.
        done: number of files that succeeded.
        total: number of files.
        stop: whether a signal ended the pass early.
    """

    def __init__(self, name_of: Callable[[Item], str] = str, *, num_threads: int = 0) -> None:
        """
        Args:
            name_of: file -> its name in messages.
            num_threads: number of threads; 0 works in the caller's thread.
        """
        self.failed: dict[str, str] = {}
        self.done = 0
        self.total = 0
        self.stop = StopRequest()
        self._name_of = name_of
        self._num_threads = num_threads

    @property
    def left(self) -> int:
        """Number of files that were not reached."""
        return self.total - self.done - len(self.failed)

    def results(
        self, items: Sequence[Item], work: Callable[[Item], Result]
    ) -> Iterator[tuple[Item, Result | None]]:
        """Yield each file with the result of `work`, in order; None for a file that failed."""
        self.total = len(items)
        with stoppable(_STOPPING) as self.stop:
            for item, outcome in self._outcomes(items, work):
                try:
                    result = outcome()
                except Interrupted:
                    return
                except FILE_ERRORS as error:
                    if _concerns_all_files(error):
                        raise
                    self.failed[self._name_of(item)] = explain_failure(error)
                    result = None
                else:
                    self.done += 1
                yield item, result

    def _outcomes(
        self, items: Iterable[Item], work: Callable[[Item], Result]
    ) -> Iterator[tuple[Item, Callable[[], Result]]]:
        """Yield each file with a function that returns its result or raises its error."""
        if not self._num_threads:
            for item in items:
                if self.stop:
                    return
                yield item, lambda item=item: work(item)  # type: ignore[misc]
            return
        waiting: deque[tuple[Item, Future[Result]]] = deque()
        with ThreadPoolExecutor(self._num_threads, "files") as pool:
            try:
                for item in items:
                    if self.stop:
                        break
                    waiting.append((item, pool.submit(work, item)))
                    # Results are taken before all files are submitted, which bounds their memory.
                    if len(waiting) > 4 * self._num_threads:
                        first, future = waiting.popleft()
                        yield first, future.result
                while waiting:
                    first, future = waiting.popleft()
                    if not (self.stop and future.cancel()):
                        yield first, future.result
            finally:
                for _, future in waiting:
                    future.cancel()


def _concerns_all_files(error: BaseException) -> bool:
    causes = (error, error.__cause__)
    is_of_disk = any(isinstance(e, OSError) and e.errno in _DISK_ERRORS for e in causes)
    return isinstance(error, ConfigError) or is_of_disk


def explain_failure(error: BaseException) -> str:
    """The reason for the failure of a file, in one line of bounded length."""
    text = " ".join(str(error).split())
    if any(isinstance(e, torch.OutOfMemoryError) for e in (error, error.__cause__)):
        torch.cuda.empty_cache()  # frees what the failed image used, for the next one
    if isinstance(error, MemoryError) or any(part in text for part in _OUT_OF_MEMORY):
        text = f"needs more memory than there is; use a smaller copy of it ({text or 'no details'})"
    elif isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        name = os.path.basename(os.fsdecode(error.filename or ""))
        text = (
            f"the name of its result would have {len(os.fsencode(name))} bytes, more than the file"
            " system takes; rename it"
        )
    elif not text:
        text = type(error).__name__
    return shortened(text, _MAX_REASON_LENGTH)


def failure_line(name: str, reason: str) -> str:
    """A file's name and the reason for its failure, without repeating the name."""
    if reason.startswith((f"{name}: ", f"{name} ")):
        return f"{name}: {reason[len(name) :].lstrip(': ')}"
    return f"{name}: {reason.replace(f' {name}', '', 1)}"


def listed_failures(failed: Mapping[str, str], total: int, what: str) -> str:
    """One message about all files that failed; for a single file it is the reason alone.

    Args:
        failed: name -> reason, not empty.
        total: number of all files.
        what: what could not be done, as in "3 of 50 images `what`".
    """
    if len(failed) == 1:
        return next(iter(failed.values()))
    lines = [failure_line(name, reason) for name, reason in failed.items()]
    text = listed(lines, 20, separator="\n  ", show=str)
    return f"{len(failed)} of {total} images {what}:\n  {text}"

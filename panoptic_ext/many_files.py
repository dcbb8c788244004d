"""Work on many files, of which one that fails does not end the rest."""

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
"""What the work on one file may raise for a reason that lies in this file."""

_OF_ALL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # would come with every other file too
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "Insufficient memory")
_LONGEST = 400  # characters of a reason
_STOPPING = "stopping after the current file; a second signal ends at once"


class ManyFiles(Generic[Item]):
    """One pass over many files.

    An error that lies in a file is kept with the file's name and the pass goes on. It ends early,
    after the files that are being worked on, when a signal asks for it; and with the error itself
    where that would come with every file: a ConfigError, or a full disk.

    Attributes:
        failed: name -> reason of the files that failed.
        done: how many succeeded.
        total: how many there are.
        stop: whether a signal ended the pass early.
    """

    def __init__(self, name_of: Callable[[Item], str] = str, *, num_threads: int = 0) -> None:
        """
        Args:
            name_of: file -> its name in messages.
            num_threads: that work at once; 0: the caller's alone.
        """
        self.failed: dict[str, str] = {}
        self.done = 0
        self.total = 0
        self.stop = StopRequest()
        self._name_of = name_of
        self._num_threads = num_threads

    @property
    def left(self) -> int:
        """How many files were not reached."""
        return self.total - self.done - len(self.failed)

    def results(
        self, items: Sequence[Item], work: Callable[[Item], Result]
    ) -> Iterator[tuple[Item, Result | None]]:
        """Each file with what `work` makes of it, in order; None where it failed."""
        self.total = len(items)
        with stoppable(_STOPPING) as self.stop:
            for item, outcome in self._outcomes(items, work):
                try:
                    result = outcome()
                except Interrupted:
                    return
                except FILE_ERRORS as error:
                    if _holds_for_all(error):
                        raise
                    self.failed[self._name_of(item)] = explain_failure(error)
                    result = None
                else:
                    self.done += 1
                yield item, result

    def _outcomes(
        self, items: Iterable[Item], work: Callable[[Item], Result]
    ) -> Iterator[tuple[Item, Callable[[], Result]]]:
        """Each file with a function that gives its result or raises its error."""
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


def _holds_for_all(error: BaseException) -> bool:
    causes = (error, error.__cause__)
    is_of_disk = any(isinstance(e, OSError) and e.errno in _OF_ALL for e in causes)
    return isinstance(error, ConfigError) or is_of_disk


def explain_failure(error: BaseException) -> str:
    """Why the work on a file failed, in one line of bounded length."""
    text = " ".join(str(error).split())
    if any(isinstance(e, torch.OutOfMemoryError) for e in (error, error.__cause__)):
        torch.cuda.empty_cache()  # what the failed image took must not fail the next one
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
    return shortened(text, _LONGEST)


def failure_line(name: str, reason: str) -> str:
    """A file's name and why it failed, without the name twice."""
    return f"{name}: {reason.removeprefix(f'{name}: ').replace(f' {name}', '', 1)}"


def listed_failures(failed: Mapping[str, str], total: int, what: str) -> str:
    """One message about all files that failed; that of a single one is its reason alone.

    Args:
        failed: name -> reason, not empty.
        total: how many files there are.
        what: what could not be done, as in "3 of 50 images `what`".
    """
    if len(failed) == 1:
        return next(iter(failed.values()))
    lines = [failure_line(name, reason) for name, reason in failed.items()]
    text = listed(lines, 20, separator="\n  ", show=str)
    return f"{len(failed)} of {total} images {what}:\n  {text}"

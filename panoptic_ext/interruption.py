"""Ctrl-C and SIGTERM: what runs comes to a good end, and one line says how to go on.

Long work opens `stoppable()` and looks at the request that it gives between two steps. Work within
work shares the request, so a signal during an evaluation ends the training around it too.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

__all__ = [
    "STOPPING",
    "Interrupted",
    "StopRequest",
    "outlive_interruption",
    "signals_of_a_command",
    "stoppable",
    "until_stopped",
]

STOPPING = "stopping after the current image; a second signal ends at once"

Item = TypeVar("Item")

_DEFAULTS: dict[int, tuple[Any, ...]] = {
    signal.SIGINT: (signal.default_int_handler, signal.SIG_DFL),
    signal.SIGTERM: (signal.SIG_DFL,),
}


class Interrupted(KeyboardInterrupt):
    """Work that ended early, in good order; its message says how to go on.

    A KeyboardInterrupt, so that `except Exception` lets it pass.

    Attributes:
        signum: the signal that asked for it.
        exit_code: 130 after Ctrl-C, 143 after SIGTERM, as shells have it.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_code = 128 + signum


class StopRequest:
    """Whether a signal has asked to stop.

    Attributes:
        signum: the first signal that did; None: none has.
    """

    def __init__(self) -> None:
        self.signum: int | None = None

    def __bool__(self) -> bool:
        return self.signum is not None

    def interrupted(self, message: str) -> Interrupted:
        """The error to end with."""
        return Interrupted(self.signum or signal.SIGINT, message)

    def check(self, message: str) -> None:
        """Raise `interrupted(message)` if a signal has come."""
        if self:
            raise self.interrupted(message)


_current: StopRequest | None = None
_in_command = False


@contextmanager
def signals_of_a_command() -> Iterator[None]:
    """For a command line: Ctrl-C raises KeyboardInterrupt, and a second signal ends the process.

    The second one needs no Python then: it ends what hangs in a library as well.
    """
    global _in_command
    is_main_thread = threading.current_thread() is threading.main_thread()
    # Set by the scripts, which want no traceback while they import.
    if is_main_thread and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    before, _in_command = _in_command, is_main_thread
    try:
        yield
    finally:
        _in_command = before


@contextmanager
def stoppable(
    announce: str = "", on_signal: Callable[[int], object] | None = None
) -> Iterator[StopRequest]:
    """Take the first SIGINT or SIGTERM as a request to stop, within the block.

    The signal's former handler is back as soon as the first one came, so a second one has its
    ordinary effect: it ends at once. A handler that someone else has set is left in place, and so
    is an ignored signal; outside the main thread, where handlers cannot be set, nothing changes.

    Args:
        announce: written to stderr, as a line, when the signal comes.
        on_signal: called with the signal's number then, within the handler.

    Yields:
        The request; within another `stoppable` block, that block's.
    """
    global _current
    if _current is not None or threading.current_thread() is not threading.main_thread():
        yield StopRequest() if _current is None else _current
        return
    request = StopRequest()
    handlers: dict[int, Any] = {}

    def note(signum: int, _frame: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_DFL if _in_command else handlers[signum])
        if request.signum is None:
            request.signum = signum
            if announce:  # a print could come in the middle of another
                os.write(2, f"\n{announce}\n".encode())
        if on_signal is not None:
            on_signal(signum)

    _current = request
    try:
        for signum, defaults in _DEFAULTS.items():
            handler = signal.getsignal(signum)
            if handler in defaults:
                handlers[signum] = handler
                signal.signal(signum, note)
        yield request
    finally:
        _current = None
        # Where one has come it is a request no more: what follows may be interrupted as ever.
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def until_stopped(images: Iterable[Item], message: Callable[[int], str]) -> Iterator[Item]:
    """The images, one by one, until a signal has asked to stop.

    Args:
        images: or what stands for them.
        message: number of those that are done -> how to go on.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM, before the next image.
    """
    with stoppable(STOPPING) as stop:
        for number, image in enumerate(images):
            if stop:
                raise stop.interrupted(message(number))
            yield image


def outlive_interruption(*_: object) -> None:
    """In a data loading process: leave the end to the process that it loads for.

    Ctrl-C in a terminal, and a scheduler's SIGTERM, reach every process of a group. Without its
    data workers the training could not end its iteration, and each would print a traceback.
    A SIGTERM of the parent itself ends the worker, and so does the parent's end (torch's watchdog).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS, Windows
        return
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))

    def end_with_parent() -> None:
        while signal.sigwaitinfo((signal.SIGTERM,)).si_pid != parent:
            pass
        os._exit(0)  # another code would raise in the parent

    threading.Thread(target=end_with_parent, daemon=True).start()

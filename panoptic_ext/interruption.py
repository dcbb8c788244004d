"""Stop in good order after Ctrl-C or SIGTERM, with one line about how to go on.

Long work opens `stoppable()` and checks the request that it yields between two steps. Nested work
shares the request, so a signal during an evaluation also ends the training around it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, TypeVar

__all__ = [
    "STOPPING",
    "Interrupted",
    "StopRequest",
    "Terminated",
    "born_deaf",
    "outlive_interruption",
    "signals_of_a_command",
    "stoppable",
    "until_stopped",
]

STOPPING = "stopping after the current image; a second signal ends at once"

Item = TypeVar("Item")


class Interrupted(KeyboardInterrupt):
    """Work was stopped by a signal, in good order; the message says how to go on.

    Attributes:
        signum: the number of the signal.
        exit_code: 130 after Ctrl-C, 143 after SIGTERM, as in shells.
    """

    # A KeyboardInterrupt, so that no `except Exception` catches it.

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_code = 128 + signum


class Terminated(KeyboardInterrupt):
    """A command got SIGTERM outside of `stoppable`; what Ctrl-C's KeyboardInterrupt is there."""


class StopRequest:
    """Whether a signal has asked to stop.

    Attributes:
        signum: the number of the first signal, or None.
    """

    def __init__(self) -> None:
        self.signum: int | None = None

    def __bool__(self) -> bool:
        return self.signum is not None

    def interrupted(self, message: str) -> Interrupted:
        """The error with which the work ends."""
        return Interrupted(self.signum or signal.SIGINT, message)

    def check(self, message: str) -> None:
        """Raise `interrupted(message)` if a signal has come."""
        if self:
            raise self.interrupted(message)


_current: StopRequest | None = None
_in_command = False
_process = os.getpid()


def _raise_terminated(signum: int, _frame: FrameType | None) -> NoReturn:
    # A second one ends the process at once, and the first one a process that was forked from it.
    signal.signal(signum, signal.SIG_DFL)
    if os.getpid() != _process:
        os.kill(os.getpid(), signum)
    raise Terminated


# The handlers that `stoppable` replaces: those that Python or a command has set by default.
_DEFAULT_HANDLERS: dict[int, tuple[Any, ...]] = {
    signal.SIGINT: (signal.default_int_handler, signal.SIG_DFL),
    signal.SIGTERM: (_raise_terminated, signal.SIG_DFL),
}


@contextmanager
def signals_of_a_command() -> Iterator[None]:
    """Within the block, which runs a command, a second signal ends the process at once.

    The first Ctrl-C outside of `stoppable` raises KeyboardInterrupt, and SIGTERM `Terminated`.
    """
    global _in_command, _process
    is_main_thread = threading.current_thread() is threading.main_thread()
    takes_sigterm = is_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if takes_sigterm:
        _process = os.getpid()
        signal.signal(signal.SIGTERM, _raise_terminated)
    # The scripts set SIG_DFL, so that Ctrl-C during their imports prints no traceback.
    if is_main_thread and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    before, _in_command = _in_command, is_main_thread
    try:
        yield
    finally:
        _in_command = before
        if takes_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def stoppable(
    announce: str = "", on_signal: Callable[[int], object] | None = None
) -> Iterator[StopRequest]:
    """Take the first SIGINT or SIGTERM within the block as a request to stop.

    A second signal ends the process at once. A handler that other code has set stays, and so does
    an ignored signal. Outside the main thread, where handlers cannot be set, nothing changes.

    Args:
        announce: line that is written to stderr when the signal comes.
        on_signal: called within the handler, with the signal's number.

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
        # From now on the signal has its former effect. In a command it is the system's own: that
        # needs no Python, and so also ends a process that hangs in a library.
        signal.signal(signum, signal.SIG_DFL if _in_command else handlers[signum])
        if request.signum is None:
            request.signum = signum
            if announce:  # print is not reentrant, and the signal may have interrupted one
                os.write(2, f"\n{announce}\n".encode())
        if on_signal is not None:
            on_signal(signum)

    _current = request
    try:
        for signum, defaults in _DEFAULT_HANDLERS.items():
            handler = signal.getsignal(signum)
            if handler in defaults:
                handlers[signum] = handler
                signal.signal(signum, note)
        yield request
    finally:
        _current = None
        # Restored even after a signal: the work that follows can be interrupted as usual.
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def until_stopped(images: Iterable[Item], message: Callable[[int], str]) -> Iterator[Item]:
    """Yield the images one by one, until a signal has asked to stop.

    Args:
        images: images, or files or ids of images.
        message: number of images that are done -> how to go on.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM, before the next image.
    """
    with stoppable(STOPPING) as stop:
        for number, image in enumerate(images):
            if stop:
                raise stop.interrupted(message(number))
            yield image


@contextmanager
def born_deaf() -> Iterator[None]:
    """Processes that are started in the block begin with SIGINT and SIGTERM blocked.

    This process gets the signals of the block behind it. For data loading processes, which a signal
    could otherwise end before they call `outlive_interruption`.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outlive_interruption(*_: object) -> None:
    """Ignore Ctrl-C and SIGTERM in a data loading process, unless its parent sends SIGTERM.

    The worker also ends when its parent does (torch's watchdog).
    """
    # Ctrl-C in a terminal and a scheduler's SIGTERM reach every process of a group. Without its
    # data workers the training could not finish its iteration, and each would print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS, Windows
        return
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))

    def end_with_parent() -> None:
        while signal.sigwaitinfo((signal.SIGTERM,)).si_pid != parent:
            pass
        os._exit(0)  # with any other code the parent raises an error

    threading.Thread(target=end_with_parent, daemon=True).start()

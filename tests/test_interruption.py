"""Ctrl-C and SIGTERM: the first one is a request; handlers of other code stay."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from panoptic_ext.interruption import (
    Interrupted,
    StopRequest,
    Terminated,
    outlive_interruption,
    signals_of_a_command,
    stoppable,
)

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {signum: signal.getsignal(signum) for signum in BOTH}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_a_request(
    signum: int, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with stoppable("stopping soon") as stop:
        assert not stop
        stop.check("not yet")
        signal.raise_signal(signum)
        assert stop
        with pytest.raises(Interrupted, match="3 of 5") as stopped:
            stop.check("stopped after 3 of 5")
    assert stopped.value.exit_code == code
    assert capfd.readouterr().err == "\nstopping soon\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_signal_has_its_ordinary_effect() -> None:
    with stoppable() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.signum == signal.SIGINT
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL  # has not come


def test_a_second_signal_kills_a_command() -> None:
    with signals_of_a_command(), stoppable():
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_sigterm_outside_of_stoppable_work_is_an_error_in_a_command() -> None:
    with pytest.raises(Terminated), signals_of_a_command():
        with stoppable() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert stop.signum == signal.SIGTERM
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with signals_of_a_command():
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # the second ends it at once


def _sleep(ready: multiprocessing.synchronize.Event) -> None:
    ready.set()
    time.sleep(60)


def test_sigterm_ends_a_process_that_a_command_forked() -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_sleep, args=(ready,), daemon=True)
    with signals_of_a_command():
        process.start()
        assert ready.wait(10)
        process.terminate()
        process.join(10)
    assert process.exitcode == -signal.SIGTERM


def test_work_within_work_shares_the_request() -> None:
    with stoppable() as outer:
        with stoppable() as inner:
            signal.raise_signal(signal.SIGTERM)
        assert inner is outer and outer
    with stoppable() as later:
        assert not later


@pytest.mark.parametrize("handler", [lambda *_: None, signal.SIG_IGN])
def test_handlers_of_others_stay(handler: object) -> None:
    signal.signal(signal.SIGINT, handler)
    with stoppable() as stop:
        assert signal.getsignal(signal.SIGINT) is handler
        signal.raise_signal(signal.SIGINT)
        assert not stop
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_thread_sets_no_handler() -> None:
    seen: list[StopRequest] = []

    def work() -> None:
        with stoppable() as stop:
            seen.append(stop)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(seen) == 1 and not seen[0]


def _wait_in_data_worker(ready: multiprocessing.synchronize.Event) -> None:
    outlive_interruption()
    ready.set()
    time.sleep(60)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="needs Linux")
def test_a_data_worker_ends_with_its_parent_alone() -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    worker = context.Process(target=_wait_in_data_worker, args=(ready,), daemon=True)
    worker.start()
    assert ready.wait(10)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGINT)
    send = f"import os, signal; os.kill({worker.pid}, signal.SIGTERM)"  # as a scheduler does
    subprocess.run([sys.executable, "-S", "-c", send], check=True)
    worker.join(0.1)
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0

"""A file that fails does not stop the others."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
import torch

from panoptic_ext.atomic import write_atomic
from panoptic_ext.errors import ConfigError, EvaluationError
from panoptic_ext.many_files import ManyFiles, explain_failure, failure_line, listed_failures

ERRORS = {
    2: OSError(errno.ENAMETOOLONG, "File name too long", "x" * 256),
    3: MemoryError(),
    5: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4 GiB"),
    6: EvaluationError("labels 42"),
}


def work(number: int) -> int:
    if number in ERRORS:
        raise ERRORS[number]
    return number * number


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_failures_are_named_and_the_other_files_are_done(num_threads: int) -> None:
    files = ManyFiles[int](lambda n: f"{n}.png", num_threads=num_threads)
    results = list(files.results(range(40), work))
    assert results == [(n, None if n in ERRORS else n * n) for n in range(40)]
    assert (files.done, files.total, files.left, bool(files.stop)) == (36, 40, 0, False)
    assert list(files.failed) == ["2.png", "3.png", "5.png", "6.png"]
    assert "would have 256 bytes, more than the file system takes" in files.failed["2.png"]
    for name in ("3.png", "5.png"):
        assert files.failed[name].startswith("needs more memory than there is")
    assert files.failed["6.png"] == "labels 42"


@pytest.mark.parametrize("num_threads", [0, 2])
@pytest.mark.parametrize("error", [ConfigError("no such key"), OSError(errno.ENOSPC, "full")])
def test_an_error_that_every_file_would_have_ends_the_loop(
    num_threads: int, error: Exception
) -> None:
    def fail(number: int) -> None:
        if number == 1:
            raise error

    files = ManyFiles[int](num_threads=num_threads)
    with pytest.raises(type(error)):
        list(files.results(range(5), fail))
    assert files.done == 1 and files.left == 4


def test_a_full_disk_is_seen_behind_an_error_of_ours() -> None:
    def fail(number: int) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise EvaluationError("cannot write a.png") from error

    with pytest.raises(EvaluationError):
        list(ManyFiles[int]().results(range(5), fail))


@pytest.mark.parametrize("num_threads", [0, 2])
def test_a_signal_ends_the_pass_after_the_current_files(num_threads: int) -> None:
    files = ManyFiles[int](num_threads=num_threads)
    seen = []
    for number, _ in files.results(range(100), work):
        seen.append(number)
        if number == 1:
            signal.raise_signal(signal.SIGTERM)
    assert files.stop.signum == signal.SIGTERM
    assert seen == list(range(len(seen))) and 2 <= len(seen) < 30
    assert files.left == 100 - len(seen)


def test_messages_are_bounded() -> None:
    long = explain_failure(RuntimeError(f"{'x' * 5000}; write it again"))
    assert len(long) == 400 and long.endswith("; write it again")
    assert explain_failure(RuntimeError()) == "RuntimeError"
    assert listed_failures({"a": "no image"}, 3, "cannot be read") == "no image"
    text = listed_failures({f"{n}.png": "cut off" for n in range(500)}, 900, "cannot be read")
    assert text.startswith("500 of 900 images cannot be read:\n  0.png: cut off\n")
    assert text.endswith("\n  and 480 more")


def test_a_name_that_leaves_no_room_for_a_temporary_suffix_is_written(tmp_path: Path) -> None:
    path = str(tmp_path / ("n" * 255))
    write_atomic(path, lambda stream: stream.write(b"content"))
    assert os.listdir(tmp_path) == ["n" * 255]
    with pytest.raises(OSError) as failed:
        write_atomic(path + "n", lambda stream: None)
    assert failed.value.errno == errno.ENAMETOOLONG and failed.value.filename == path + "n"


def test_a_failed_file_is_named_once() -> None:
    reasons = ("image a/b.png is empty", "a/b.png: damaged", "no memory")
    lines = [failure_line("a/b.png", reason) for reason in reasons]
    assert lines == ["a/b.png: image is empty", "a/b.png: damaged", "a/b.png: no memory"]

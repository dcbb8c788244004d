"""Temporary files: those of a killed process are removed, those of a live one are not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from panoptic_ext import atomic
from panoptic_ext.atomic import TemporaryFile, remove_leftovers, write_atomic
from panoptic_ext.prediction.video import VideoWriter

WRITER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("atomic", sys.argv[1])
atomic = importlib.util.module_from_spec(spec)
sys.modules["atomic"] = atomic  # alone: the package would import torch
spec.loader.exec_module(atomic)
temporary = atomic.TemporaryFile(sys.argv[2])
print(temporary.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not yet written anything."""
    monkeypatch.setattr(atomic, "_swept_folders", set())


def start_writer(target: Path) -> tuple[subprocess.Popen[str], Path]:
    """Another process in the middle of writing `target`, and its temporary file."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(atomic.__file__), str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_file_of_a_live_process_stays_and_goes_once_it_is_killed(tmp_path: Path) -> None:
    """A killed run's file stayed for ever."""
    process, temporary = start_writer(tmp_path / "model_0000004.pth")
    remove_leftovers(str(tmp_path))
    assert names(tmp_path) == {temporary.name}
    process.kill()
    process.communicate()
    write_atomic(str(tmp_path / "other.json"), lambda stream: stream.write(b"1"))
    assert names(tmp_path) == {"other.json"}


def test_a_number_that_another_process_has_by_now_does_not_keep_a_file(tmp_path: Path) -> None:
    left = tmp_path / f"a.png.tmp-{atomic._machine()}-{os.getpid()}"
    left.write_bytes(b"")
    remove_leftovers(str(tmp_path))
    assert not left.exists()


def test_where_locks_are_unknown_the_process_number_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "try_lock", lambda stream: "unknown")
    live = tmp_path / f"a.tmp-{atomic._machine()}-{os.getppid()}"
    dead = tmp_path / f"b.tmp-{atomic._machine()}-{dead_process()}"
    for path in (live, dead):
        path.write_bytes(b"")
        os.utime(path, (0, 0))
    remove_leftovers(str(tmp_path))
    assert names(tmp_path) == {live.name}
    write_atomic(str(tmp_path / "c"), lambda stream: stream.write(b"1"))
    assert (tmp_path / "c").read_bytes() == b"1"


def test_the_file_of_another_machine_stays_for_a_day(tmp_path: Path) -> None:
    new, old = (tmp_path / f"{name}.pth.tmp-0123abcd-{dead_process()}" for name in "ab")
    for path, age in ((new, 23 * 3600), (old, 25 * 3600)):
        path.write_bytes(b"")
        os.utime(path, (time.time() - age,) * 2)
    remove_leftovers(str(tmp_path))
    assert names(tmp_path) == {new.name}


def test_names_of_older_versions_go_with_their_process(tmp_path: Path) -> None:
    dead, live = f"a.tmp-{dead_process()}", f"b.tmp-{os.getppid()}"
    others = {"notes.tmp-old", "table.tmp-", f"a.tmp-{dead_process()}.txt", ".tmp-5"}
    for name in (dead, live, *others):
        (tmp_path / name).write_text("x")
    (tmp_path / "folder.tmp-7").mkdir()
    remove_leftovers(str(tmp_path))
    assert names(tmp_path) == {live, *others, "folder.tmp-7"}
    remove_leftovers(str(tmp_path / "none"))


def test_every_folder_is_swept_at_the_first_file_written_into_it(tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        (folder / f"1.png.tmp-{dead_process()}").write_bytes(b"")
        with VideoWriter(str(folder / "clip.mp4"), 25.0):
            (left,) = names(folder)
            assert left.startswith("clip.mp4.tmp-") and left.endswith(".mp4")
        assert not names(folder)


def test_old_content_stays_where_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        write_atomic(str(path), lambda stream: (stream.write(b"new"), 1 / 0))
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_a_file_taken_away_while_it_is_opened_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, calls = atomic.try_lock, []

    def lock_after_a_sweep(stream: object) -> str:
        if not calls:
            os.remove(next(tmp_path.iterdir()))
        calls.append(stream)
        return lock(stream)

    monkeypatch.setattr(atomic, "try_lock", lock_after_a_sweep)
    with TemporaryFile(str(tmp_path / "file")) as temporary:
        temporary.stream.write(b"1")
        temporary.commit()
    assert (tmp_path / "file").read_bytes() == b"1" and len(calls) == 2

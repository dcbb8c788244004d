"""Files are checked before they are opened."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from panoptic_ext.errors import CheckpointError, UnreadableFileError
from panoptic_ext.regular_files import (
    IMAGE,
    LABEL_MAP,
    LOG_FILE,
    check_regular_file,
    file_problem,
    readable_size,
)


def test_a_file_and_a_link_to_it_are_taken_with_their_size(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"123")
    (tmp_path / "link.png").symlink_to(path)

    assert check_regular_file(path, IMAGE) == 3
    assert check_regular_file(str(tmp_path / "link.png"), IMAGE) == 3


def test_each_thing_that_is_no_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"1")
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    os.mkfifo(tmp_path / "pipe")
    expected = {
        tmp_path / "nothing": "does not exist; check the PNG root",
        tmp_path / "broken": "is a link to a file that does not exist",
        tmp_path / "circle": "is a link that leads round in a circle",
        file / "inside": "a folder in its path is a file",
        tmp_path / ("x" * 300): "has a name that is too long",
        tmp_path / "null\0character": "has a null character in its name; check the PNG root",
        tmp_path: "is a folder, expected a regular file",
        tmp_path / "pipe": "is a pipe, which may never end, expected a regular file",
        Path("/dev/zero"): "is a device, expected a regular file",
    }
    for path, words in expected.items():
        assert words in file_problem(path, LABEL_MAP)
        with pytest.raises(UnreadableFileError, match=r"^label map ") as raised:
            check_regular_file(path, LABEL_MAP)
        assert len(str(raised.value)) < 400 + len(str(tmp_path))


def test_a_socket_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name has at most 108 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        assert "is a socket" in file_problem("socket", IMAGE)


def test_only_a_log_may_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()

    assert "is empty (0 bytes)" in file_problem(path, IMAGE)
    assert file_problem(path, LOG_FILE) == ""


def test_a_sparse_file_of_100_gigabytes_is_refused_with_its_size(tmp_path: Path) -> None:
    path = tmp_path / "sparse.png"
    path.touch()
    os.truncate(path, 100 * 2**30)

    with pytest.raises(CheckpointError, match=r"image 7: label map .*has 107.4 GB, expected at"):
        check_regular_file(path, LABEL_MAP, error=CheckpointError, prefix="image 7: ")


def test_a_file_without_read_permission_has_its_own_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    # Tests may run as root, to whom every file is readable.
    monkeypatch.setattr(os, "access", lambda *_: False)

    assert "permission denied" in file_problem(path, IMAGE)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (999_960, "1.0 MB"), (3e9, "3.0 GB")],
)
def test_sizes_are_written_in_units_that_fit(size: int, text: str) -> None:
    assert readable_size(size) == text

"""Downloads from a real server on the loopback interface: served well, badly or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from panoptic_ext import transfer
from panoptic_ext.download import cache_path, fetch, sha256_of
from panoptic_ext.errors import DownloadError
from tests.tiny.file_server import FileServer

CONTENT = np.random.default_rng(0).bytes(200_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_PAUSES", (0.0, 0.0, 0.0, 0.0))


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_file_is_downloaded_once(file_server: FileServer, tmp_path: Path) -> None:
    address = file_server.add("a/b/model.pth", CONTENT)
    path = cache_path(address)
    assert path == str(tmp_path / "cache/a/b/model.pth")
    for _ in range(2):
        assert fetch(address, path, sha256=SHA256, size=len(CONTENT)) == path
    assert Path(path).read_bytes() == CONTENT and len(file_server.requests) == 1
    assert names(tmp_path / "cache/a/b") == ["model.pth", "model.pth.sha256"]
    assert sha256_of(path) == SHA256


def test_dropped_connections_are_continued(file_server: FileServer, tmp_path: Path) -> None:
    address = file_server.add("a.pth", CONTENT, drops=[70_000, 30_000])
    fetch(address, str(tmp_path / "a.pth"))
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    assert file_server.ranges("a.pth") == [None, "bytes=70000-", "bytes=100000-"]


def test_a_truncated_file_is_one_error(file_server: FileServer, tmp_path: Path) -> None:
    address = file_server.add("a.pth", CONTENT, truncated_to=1000)
    with pytest.raises(DownloadError, match=r"broke off 5 times in a row.*after 1000 of 200000"):
        fetch(address, str(tmp_path / "a.pth"))
    file_server.answers["a.pth"].truncated_to = None
    fetch(address, str(tmp_path / "a.pth"))
    assert (tmp_path / "a.pth").read_bytes() == CONTENT

"""A file is downloaded once, whoever asks for it; what is there is verified, and never replaced."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import urllib.parse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from detectron2.utils.file_io import PathManager

from panoptic_ext import atomic, download
from panoptic_ext.download import cache_path, fetch, sha256_of
from panoptic_ext.errors import DownloadError
from tests.tiny.download_process import start_download
from tests.tiny.file_server import FileServer, wait_until

CONTENT, OTHER = (np.random.default_rng(seed).bytes(200_000) for seed in (0, 1))
SHA256 = hashlib.sha256(CONTENT).hexdigest()
WAITING = "another process downloads {}; waiting until it has finished"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.pth"


def has_begun(path: Path) -> Callable[[], bool]:
    part = Path(f"{path}.part")
    return lambda: part.exists() and part.stat().st_size > 0


def slow(server: FileServer) -> str:
    """The address of a file that takes about a second."""
    return server.add("a.pth", CONTENT, pause=0.1, block=20_000)


# One process


def test_a_file_is_downloaded_once(file_server: FileServer, tmp_path: Path) -> None:
    address = file_server.add("a/b/model.pth", CONTENT)
    place = cache_path(address)
    for _ in range(2):
        assert fetch(address, place, sha256=SHA256.upper(), size=len(CONTENT)) == place
    assert Path(place).read_bytes() == CONTENT and len(file_server.requests) == 1
    assert sorted(os.listdir(tmp_path / "cache/a/b")) == ["model.pth", "model.pth.sha256"]
    assert sha256_of(place) == SHA256


def test_the_first_download_is_recorded(
    file_server: FileServer, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In a form that `sha256sum --check` reads; it is said once."""
    address = file_server.add("a.pth", CONTENT)
    fetch(address, str(path))
    assert Path(f"{path}.sha256").read_text() == f"# {address}\n{SHA256}  a.pth\n"
    subprocess.run(["sha256sum", "--check", "a.pth.sha256"], cwd=path.parent, check=True)
    (message,) = caplog.messages
    assert message.startswith(f"no sha256 is known for {address}") and SHA256 in message
    fetch(address, str(path))
    os.remove(path)
    fetch(address, str(path))
    assert len(caplog.messages) == 1


def test_a_known_hash_is_recorded_silently(
    file_server: FileServer, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fetch(file_server.add("a.pth", CONTENT), str(path), sha256=SHA256)
    assert SHA256 in Path(f"{path}.sha256").read_text() and not caplog.messages


@pytest.mark.parametrize("name", ["a.pth", "groß und klein.pth"])
def test_a_file_that_changed_on_the_disk_is_refused(
    file_server: FileServer, path: Path, name: str
) -> None:
    file_server.add(urllib.parse.quote(name), CONTENT)
    address = f"{file_server.root}/{name}"
    fetch(address, str(path))
    path.write_bytes(OTHER)
    found = hashlib.sha256(OTHER).hexdigest()
    expected = f"expected {SHA256}, which was recorded at the first download: it is damaged"
    with pytest.raises(DownloadError, match=f"{path} has the sha256 {found}, {expected}"):
        fetch(address, str(path))
    assert path.read_bytes() == OTHER and len(file_server.requests) == 1
    os.remove(f"{path}.sha256")  # as the error says
    fetch(address, str(path))


def test_a_file_that_was_put_there_is_used(file_server: FileServer, path: Path) -> None:
    """Without a network, and from any source; a known hash or size is compared."""
    address = file_server.add("a.pth", OTHER)
    path.write_bytes(CONTENT)
    fetch(address, str(path))
    fetch(address, str(path), sha256=SHA256, size=len(CONTENT))
    with pytest.raises(DownloadError, match=r"has 200000 bytes, expected 3: .* Remove it"):
        fetch(address, str(path), size=3)
    with pytest.raises(DownloadError, match=f"{path} has the sha256 {SHA256}, expected 0000"):
        fetch(address, str(path), sha256="0" * 64)
    path.write_bytes(b"")
    with pytest.raises(DownloadError, match=r"is empty \(0 bytes\); remove it"):
        fetch(address, str(path))
    assert not file_server.requests and os.listdir(path.parent) == ["a.pth"]


def test_a_file_of_another_address_is_not_taken(file_server: FileServer, path: Path) -> None:
    first, second = (file_server.add(f"{name}.pth", CONTENT) for name in "ab")
    fetch(first, str(path))
    with pytest.raises(DownloadError, match=f"holds the file of {first}, expected that of"):
        fetch(second, str(path))
    fetch(second, str(path), sha256=SHA256)  # a mirror, whose file is known to be the same


def test_a_home_folder_is_expanded(
    file_server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = fetch(file_server.add("a.pth", CONTENT), "~/models/a.pth")
    assert found == str(tmp_path / "models/a.pth") and os.path.isfile(found)


def test_the_hash_is_computed_once_in_a_process(
    file_server: FileServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = file_server.add("a.pth", CONTENT)
    fetch(address, str(path))
    fetch(address, str(path))
    monkeypatch.setattr(download, "sha256_of", lambda path: pytest.fail("computed again"))
    fetch(address, str(path))


# Places


def test_the_cache_is_that_of_detectron2(file_server: FileServer) -> None:
    for name in ("a/b.pth", "a/c.pth?download=true", "d%3Ae.pkl"):
        address = file_server.add(name, CONTENT)
        assert PathManager.get_local_path(address) == cache_path(address)
    count = len(file_server.requests)
    fetch(address, cache_path(address), sha256=SHA256)
    other = fetch(file_server.add("f.pth", CONTENT), cache_path(f"{file_server.root}/f.pth"))
    assert PathManager.get_local_path(f"{file_server.root}/f.pth") == other
    assert len(file_server.requests) == count + 1


def test_the_default_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FVCORE_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_path("https://x/a/b.pth") == f"{tmp_path}/.torch/iopath_cache/a/b.pth"


def test_places_in_the_cache(file_server: FileServer, tmp_path: Path) -> None:
    cache, root = tmp_path / "cache", file_server.root
    queries = [cache_path(f"{root}/get.pkl?id={number}") for number in (1, 2)]
    assert len(set(queries)) == 2 and all(place.endswith(".pkl") for place in queries)
    assert cache_path(f"{root}/../../etc/./a.pth") == f"{cache}/etc/a.pth"
    assert cache_path(f"{root}/a.pth#part") == f"{cache}/a.pth"
    long = cache_path(f"{root}/{'x' * 3000}.pkl")
    assert len(os.path.basename(long)) < 200 and long.endswith(".pkl")
    fetch(file_server.add(f"{'x' * 3000}.pkl", CONTENT), long)
    for address in (root, f"{root}/", f"{root}/a/", "", "http://[::1/a"):
        with pytest.raises(DownloadError, match=r"names no file|is no valid address"):
            cache_path(address)


def test_two_hosts_do_not_share_a_file(file_server: FileServer, tmp_path: Path) -> None:
    with FileServer() as other_server:
        first, second = (
            s.add("a/b.pth", c) for s, c in ((file_server, CONTENT), (other_server, OTHER))
        )
        for address, content in ((first, CONTENT), (second, OTHER)) * 2:
            assert Path(fetch(address, cache_path(address))).read_bytes() == content
        host = other_server.root.removeprefix("http://").replace(":", "_")
        assert cache_path(second) == f"{tmp_path}/cache/{host}/a/b.pth"


# Several processes


def test_two_processes_download_once(file_server: FileServer, path: Path) -> None:
    address = slow(file_server)
    first = start_download(address, path)
    wait_until(has_begun(path))
    second = start_download(address, path)
    for process, error in ((first, ""), (second, WAITING.format(path))):
        output, errors = process.communicate(timeout=60)
        assert output == f"{path}\n" and error in errors
    assert len(file_server.requests) == 1 and path.read_bytes() == CONTENT
    assert sorted(os.listdir(path.parent)) == ["a.pth", "a.pth.sha256"]


def test_a_waiting_process_goes_on_after_a_killed_one(
    file_server: FileServer, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = file_server.add("a.pth", CONTENT, pause=0.1, block=20_000)
    first = start_download(address, path)
    wait_until(has_begun(path))
    second = start_download(address, path)
    assert second.stderr is not None
    assert second.stderr.readline() == WAITING.format(path) + "\n"
    first.kill()
    first.communicate(timeout=60)
    output, _ = second.communicate(timeout=60)
    assert output == f"{path}\n" and path.read_bytes() == CONTENT
    first_range, second_range = file_server.ranges("a.pth")
    assert first_range is None and second_range is not None


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [
        (signal.SIGINT, 1, "Interrupted: stopped; what came of {} is kept"),
        (signal.SIGTERM, -signal.SIGTERM, ""),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    ],
)
def test_what_came_before_a_signal_is_kept(
    file_server: FileServer, path: Path, number: int, code: int, message: str
) -> None:
    address = slow(file_server)
    process = start_download(address, path)
    wait_until(has_begun(path))
    process.send_signal(number)
    assert message.format(address) in process.communicate(timeout=60)[1]
    assert process.returncode == code and not path.exists()
    kept = os.path.getsize(f"{path}.part")
    file_server.answers["a.pth"].pause = 0
    fetch(address, str(path))
    assert file_server.ranges("a.pth") == [None, f"bytes={kept}-"] and path.read_bytes() == CONTENT


def test_a_file_that_appears_while_waiting_for_the_lock_is_taken(
    file_server: FileServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process renames its file after this one has seen that there is none."""

    def lock_late(stream: BinaryIO) -> str:
        path.write_bytes(CONTENT)
        return atomic.try_lock(stream)

    monkeypatch.setattr(download, "try_lock", lock_late)
    fetch(file_server.add("a.pth", OTHER), str(path))
    assert not file_server.requests and os.listdir(path.parent) == ["a.pth"]


def test_a_part_that_is_removed_before_it_is_locked_is_made_again(
    file_server: FileServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process fails, and removes the empty .part that this one has just opened."""
    removed: list[bool] = []

    def lock_late(stream: BinaryIO) -> str:
        if not removed:
            os.remove(f"{path}.part")
            removed.append(True)
        return atomic.try_lock(stream)

    monkeypatch.setattr(download, "try_lock", lock_late)
    fetch(file_server.add("a.pth", CONTENT), str(path))
    assert path.read_bytes() == CONTENT


def test_a_file_system_without_locks(
    file_server: FileServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process has a .part of its own: none cuts off what another one has finished."""
    for module in (atomic, download):
        monkeypatch.setattr(module, "try_lock", lambda stream: "unknown")
    address = file_server.add("a.pth", CONTENT, drops=[70_000], pause=0.05, block=50_000)
    with ThreadPoolExecutor() as pool:
        call = pool.submit(fetch, address, str(path), sha256=SHA256)
        wait_until(lambda: list(path.parent.glob("a.pth.tmp-*")))
        (part,) = path.parent.glob("a.pth.tmp-*[0-9]")
        assert str(os.getpid()) in part.name
        call.result()
    assert path.read_bytes() == CONTENT
    assert sorted(os.listdir(path.parent)) == ["a.pth", "a.pth.sha256"]
    file_server.add("b.pth", OTHER)
    with pytest.raises(DownloadError, match="has the sha256"):
        fetch(f"{file_server.root}/b.pth", f"{path}.2", sha256=SHA256)
    assert len(os.listdir(path.parent)) == 2

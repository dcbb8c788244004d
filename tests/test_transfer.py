"""Broken downloads go on where they ended, and never mix two versions of a file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext import transfer
from panoptic_ext.download import fetch
from panoptic_ext.errors import DownloadError
from tests.tiny.file_server import FileServer, wait_until

CONTENT, OTHER = (np.random.default_rng(seed).bytes(200_000) for seed in (0, 1))
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_PAUSES", (0.0, 0.0))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.pth"


def break_off(server: FileServer, address: str, path: Path, at: int) -> None:
    """A call that ends in an error after `at` bytes."""
    answer = server.answers["a.pth"]
    answer.truncated_to = at
    with pytest.raises(DownloadError, match=f"ended after {at} of 200000 bytes"):
        fetch(address, str(path), progress=False)
    answer.truncated_to = None
    server.requests.clear()


@pytest.mark.parametrize("last_modified", ["", "Mon, 02 Jan 2023 03:04:05 GMT"])
def test_the_next_call_goes_on(file_server: FileServer, path: Path, last_modified: str) -> None:
    """By an ETag; by the date, where the ETag is a weak one."""
    etag = 'W/"1"' if last_modified else '"1"'
    address = file_server.add("a.pth", CONTENT, etag=etag, last_modified=last_modified)
    break_off(file_server, address, path, 70_000)
    assert sorted(os.listdir(path.parent)) == ["a.pth.part", "a.pth.part.json"]
    fetch(address, str(path))
    assert path.read_bytes() == CONTENT
    (request,) = file_server.requests
    assert (request.range, request.if_range) == ("bytes=70000-", last_modified or etag)
    assert sorted(os.listdir(path.parent)) == ["a.pth", "a.pth.sha256"]


def test_drops_within_a_call_are_continued(file_server: FileServer, path: Path) -> None:
    address = file_server.add("a.pth", CONTENT, drops=[70_000, 0, 30_000, 0, 40_000])
    fetch(address, str(path))
    assert path.read_bytes() == CONTENT
    ranges = [f"bytes={at}-" for at in (70_000, 70_000, 100_000, 100_000, 140_000)]
    assert file_server.ranges("a.pth") == [None, *ranges]


def test_a_server_without_ranges_starts_again(file_server: FileServer, path: Path) -> None:
    address = file_server.add("a.pth", CONTENT, ranges=False, drops=[70_000])
    fetch(address, str(path))
    assert path.read_bytes() == CONTENT
    assert file_server.ranges("a.pth") == [None, "bytes=70000-"]


def test_a_file_that_changed_starts_again(file_server: FileServer, path: Path) -> None:
    address = file_server.add("a.pth", OTHER)
    break_off(file_server, address, path, 70_000)
    file_server.answers["a.pth"].content = CONTENT  # and with it the ETag
    fetch(address, str(path))
    assert path.read_bytes() == CONTENT and len(file_server.requests) == 1


def test_a_server_that_ignores_if_range_is_noticed(file_server: FileServer, path: Path) -> None:
    address = file_server.add("a.pth", OTHER, honours_if_range=False)
    break_off(file_server, address, path, 70_000)
    file_server.answers["a.pth"].content = CONTENT
    fetch(address, str(path))
    assert path.read_bytes() == CONTENT
    assert file_server.ranges("a.pth") == ["bytes=70000-", None]


@pytest.mark.parametrize("sha256", ["", SHA256], ids=["no hash", "hash"])
def test_bytes_without_a_validator_are_kept_only_if_a_hash_is_known(
    file_server: FileServer, path: Path, sha256: str
) -> None:
    address = file_server.add("a.pth", OTHER, etag="")
    break_off(file_server, address, path, 70_000)
    file_server.answers["a.pth"].content = CONTENT
    fetch(address, str(path), sha256=sha256)
    assert path.read_bytes() == CONTENT
    # With the hash, the mixed file is noticed and the whole one is fetched.
    assert file_server.ranges("a.pth") == (["bytes=70000-", None] if sha256 else [None])


@pytest.mark.parametrize("content", [CONTENT, OTHER[:1000]], ids=["same", "shorter"])
def test_all_bytes_were_there_already(file_server: FileServer, path: Path, content: bytes) -> None:
    """An earlier process was killed before the renaming; or the file is a shorter one by now."""
    address = file_server.add("a.pth", CONTENT, etag='"1"')
    break_off(file_server, address, path, 199_999)
    with open(f"{path}.part", "ab") as part:
        part.write(CONTENT[-1:])
    file_server.answers["a.pth"].content = content
    fetch(address, str(path))
    assert path.read_bytes() == content
    assert file_server.ranges("a.pth") == ["bytes=200000-", None][: 1 + (content != CONTENT)]


def test_the_part_of_another_address_is_not_used(file_server: FileServer, path: Path) -> None:
    address = file_server.add("a.pth", OTHER, etag='"1"')
    break_off(file_server, address, path, 70_000)
    fetch(file_server.add("b.pth", CONTENT, etag='"1"'), str(path))
    assert path.read_bytes() == CONTENT and file_server.ranges("b.pth") == [None]


@pytest.mark.parametrize("text", ["", "[1]", '{"etag": 5, "size": "x"}', "{"])
def test_a_damaged_note_starts_again(file_server: FileServer, path: Path, text: str) -> None:
    Path(f"{path}.part").write_bytes(OTHER[:70_000])
    Path(f"{path}.part.json").write_text(text)
    fetch(file_server.add("a.pth", CONTENT), str(path))
    assert path.read_bytes() == CONTENT


def test_a_log_in_page_does_not_cost_what_came(file_server: FileServer, path: Path) -> None:
    address = file_server.add("a.pth", CONTENT, etag='"1"')
    break_off(file_server, address, path, 70_000)
    file_server.add_page("a.pth")
    with pytest.raises(DownloadError, match="HTML page"):
        fetch(address, str(path), sha256=SHA256, size=len(CONTENT))
    file_server.add("a.pth", CONTENT, etag='"1"')
    fetch(address, str(path))
    assert file_server.ranges("a.pth")[-1] == "bytes=70000-" and path.read_bytes() == CONTENT


def test_a_passing_fault_of_the_server_is_waited_for(file_server: FileServer, path: Path) -> None:
    address = file_server.add("a.pth", CONTENT, passing_status=[503, 429])
    fetch(address, str(path))
    assert path.read_bytes() == CONTENT and len(file_server.requests) == 3


def test_a_server_that_starts_again_is_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At first a refused connection is an error at once; later it is a break like others."""
    monkeypatch.setattr(transfer, "_PAUSES", (0.02,) * 1000)
    with ThreadPoolExecutor() as pool:
        with FileServer() as server:
            address = server.add("a.pth", CONTENT, drops=[70_000] + [0] * 1000)
            call = pool.submit(fetch, address, str(path))
            wait_until(lambda: "after 70000 of 200000" in caplog.text)
        wait_until(lambda: "refused" in caplog.text)
        with FileServer(port=int(address.split(":")[2].split("/")[0])) as server:
            server.add("a.pth", CONTENT)
            call.result(timeout=60)
    assert path.read_bytes() == CONTENT and server.ranges("a.pth") == ["bytes=70000-"]


def test_a_redirection_keeps_the_range(file_server: FileServer, path: Path) -> None:
    target = file_server.add("b.pth", CONTENT, drops=[70_000])
    fetch(file_server.add("a.pth", status=302, location=target), str(path))
    assert path.read_bytes() == CONTENT
    assert file_server.ranges("b.pth") == [None, "bytes=70000-"]


def test_a_body_of_unknown_length(file_server: FileServer, path: Path) -> None:
    fetch(file_server.add("a.pth", CONTENT, declares_length=False), str(path))
    assert path.read_bytes() == CONTENT


def test_a_local_file_and_unusual_characters(file_server: FileServer, path: Path) -> None:
    source = path.parent / "ein großes Modell.pth"
    source.write_bytes(CONTENT)
    fetch(source.as_uri(), str(path))
    fetch(f"file://{source}", f"{path}.2")
    file_server.add("gro%C3%9F%20und%20klein.pth?a=b%20c", OTHER)
    fetch(f"{file_server.root}/groß und klein.pth?a=b%20c#part", f"{path}.3")
    assert path.read_bytes() == Path(f"{path}.2").read_bytes() == CONTENT
    assert Path(f"{path}.3").read_bytes() == OTHER


def test_a_proxy_of_the_environment_is_used(
    file_server: FileServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same process downloads without one first, as a notebook does."""
    fetch(file_server.add("a.pth", CONTENT), str(path))
    monkeypatch.setenv("http_proxy", file_server.root)
    file_server.add("http://model.example/a.pth", OTHER)
    fetch("http://model.example/a.pth", f"{path}.2")
    assert Path(f"{path}.2").read_bytes() == OTHER


def test_the_progress_bar(
    file_server: FileServer, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = file_server.add("a.pth", CONTENT, drops=[70_000])
    fetch(address, str(path))
    error = capsys.readouterr().err
    assert "a.pth: 100%" in error and "200k/200k [" in error and "B/s]" in error
    path.unlink()
    fetch(address, str(path), progress=False)
    assert capsys.readouterr() == ("", "")


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 2000), st.booleans()), max_size=6),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, "", 'W/"x"']),
    st.booleans(),
)
def test_whatever_breaks_the_file_is_a_whole_version(
    breaks: list[tuple[int, bool]], ranges: bool, if_range: bool, etag: str | None, knows: bool
) -> None:
    """Drops at any byte, and replaced files in between, in any order."""
    versions = [CONTENT[:1500], OTHER[:1500], OTHER[:1600]]
    with FileServer() as server, tempfile.TemporaryDirectory() as folder:
        address = server.add("a.pth", versions[0], ranges=ranges, etag=etag)
        answer, path = server.answers["a.pth"], os.path.join(folder, "a.pth")
        answer.honours_if_range = if_range
        for number, (drop, replaces) in enumerate(breaks):
            answer.drops = [drop] * 3
            with contextlib.suppress(DownloadError):
                fetch(address, path, progress=False)
            if replaces and not knows:
                answer.content = versions[number % 3]
        answer.drops = []
        sha256 = hashlib.sha256(versions[0]).hexdigest() if knows else ""
        if not os.path.exists(path):
            fetch(address, path, sha256=sha256, progress=False)
        with open(path, "rb") as stream:
            assert stream.read() in versions
        assert not os.path.exists(f"{path}.part")

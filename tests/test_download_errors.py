"""Each failure of a download is one clear error. `pytest -s` prints them one by one."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from panoptic_ext import download_errors, transfer
from panoptic_ext.download import cache_path, fetch
from panoptic_ext.errors import DownloadError
from tests.tiny.download_process import start_download
from tests.tiny.file_server import FileServer, free_port

CONTENT, OTHER = (np.random.default_rng(seed).bytes(200_000) for seed in (0, 1))
SHA256 = hashlib.sha256(CONTENT).hexdigest()

LIMIT = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
"""
# Of the user `nobody`, where the tests run as root, whom no permission stops.
NOBODY = """
import os
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
"""


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_PAUSES", (0.0,) * 4)


def checked(text: str, address: str, path: object, *words: str) -> str:
    """Print an error; check that it is one line with the address, the place and the words."""
    print(f"\n{text}")
    assert text.startswith(f"{address} cannot be downloaded: ") and "\n" not in text
    assert text.endswith(f"he file in another way and put it at {path}")
    for word in words:
        assert word in text
    return text


def error_of(address: str, *words: str, sha256: str = "", size: int | None = None) -> str:
    """The error of a download into the cache, which leaves nothing at the file's place."""
    path = cache_path(address)
    with pytest.raises(DownloadError) as caught:
        fetch(address, path, sha256=sha256, size=size, progress=False)
    assert not os.path.exists(path)
    return checked(str(caught.value), address, path, *words)


def error_of_process(address: str, path: object, *words: str, **options: Any) -> str:
    """The error of a download in another process."""
    process = start_download(address, path, **options)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 1 and text.startswith("DownloadError: "), text
    return checked(text.strip().removeprefix("DownloadError: "), address, path, *words)


# The network and the server


def test_no_network(file_server: FileServer) -> None:
    error_of("http://no-such-host.invalid/a.pth", "no address is known for the host no-such-host")


def test_connection_refused(file_server: FileServer) -> None:
    error_of(f"http://127.0.0.1:{free_port()}/a.pth", "refuses the connection", "Check the network")


def test_no_answer(file_server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (transfer, download_errors):
        monkeypatch.setattr(module, "TIMEOUT", 0.2)
    error_of(file_server.add("a.pth", CONTENT, silence=60), "does not answer within")


def test_a_body_that_stops(file_server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "TIMEOUT", 0.1)
    address = file_server.add("a.pth", CONTENT, pause=60)
    error_of(address, "the connection broke off (timed out), 5 times in a row")


def test_a_dead_proxy(file_server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{port}")
    text = error_of("http://model.example/a.pth", f"proxy 127.0.0.1:{port} ($HTTP_PROXY)")
    assert "secret" not in text


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, ("404 Not Found: no file is there", "Check the address")),
        (403, ("403 Forbidden: it may need a login", "with a browser")),
        (401, ("401 Unauthorized",)),
        (418, ("the server answers 418",)),
        (500, ("500 Internal Server Error: a fault of the server", "Try again later")),
    ],
)
def test_a_status(file_server: FileServer, status: int, words: tuple[str, ...]) -> None:
    error_of(file_server.add("a/b.pth", status=status), *words)
    assert len(file_server.requests) == 1
    assert os.listdir(os.environ["FVCORE_CACHE"] + "/a") == []


def test_a_status_that_stays_although_it_may_pass(file_server: FileServer) -> None:
    address = file_server.add("a.pth", status=503)
    error_of(address, "the server answers 503 Service Unavailable, 5 times in a row")


def test_a_redirection_in_a_circle(file_server: FileServer) -> None:
    file_server.add("a.pth", status=302, location=f"{file_server.root}/a.pth")
    error_of(f"{file_server.root}/a.pth", "302 The HTTP server returned a redirect error")


def test_a_server_that_speaks_no_http(file_server: FileServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.recv(1 << 16)
            connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        error_of(f"http://127.0.0.1:{server.getsockname()[1]}/a.pth", "SSH-2.0-OpenSSH")
        thread.join()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_certificate_that_is_not_trusted(
    file_server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", "key.pem", "-out", "cert.pem"]
    command = ["openssl", "req", "-x509", *key, *subject, *files]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with FileServer(tls=context) as server:
        address = server.add("a.pth", CONTENT)
        error_of(address, "certificate of 127.0.0.1", "not trusted (self", "Set $SSL_CERT_FILE")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))  # as the error says
        fetch(address, cache_path(address))


# What comes


def test_an_html_page(file_server: FileServer) -> None:
    error_of(file_server.add_page("a.pth"), "an HTML page came", "title 'Please log in'")
    page = file_server.add("b.pth", b"\n <html><body>no type, no title</body>")
    error_of(page, "an HTML page came instead of the file: a page to log in")


def test_truncation(file_server: FileServer) -> None:
    address = file_server.add("a.pth", CONTENT, truncated_to=1500)
    error_of(address, "ended after 1500 of 200000 bytes, 5 times", "1.5 kB that came are kept")
    assert len(file_server.requests) == 5


def test_another_size(file_server: FileServer) -> None:
    address = file_server.add("a.pth", CONTENT)
    error_of(address, "the server has a file of 200000 bytes there, expected 999", size=999)
    file_server.answers["a.pth"].declares_length = False
    error_of(address, "the file that came has 200000 bytes, expected 999", size=999)


def test_another_hash(file_server: FileServer) -> None:
    address = file_server.add("a.pth", OTHER)
    found = hashlib.sha256(OTHER).hexdigest()
    error_of(address, f"has the sha256 {found}, expected {SHA256}", sha256=SHA256)
    assert os.listdir(os.environ["FVCORE_CACHE"]) == []  # it begins anew


def test_another_hash_than_the_first_time(file_server: FileServer) -> None:
    address = file_server.add("a.pth", OTHER)
    path = fetch(address, cache_path(address))
    os.remove(path)
    file_server.add("a.pth", CONTENT)
    error_of(address, f"expected {hashlib.sha256(OTHER).hexdigest()}, which was recorded", SHA256)
    os.remove(f"{path}.sha256")  # as the error says
    fetch(address, path)


def test_an_empty_file(file_server: FileServer) -> None:
    error_of(file_server.add("a.pth", b""), "0 bytes, expected some")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("s3://bucket/a.pth", "it is no http(s) or file address"),
        ("a.pth", "it is no http(s) or file address"),
        ("http://[::1/a.pth", "the address is not valid"),
        ("http://user:word@host/a.pth", "the address is not valid"),
        ("http://..host../a.pth", "the address is not valid"),
        ("file:///no/such/a.pth", "downloaded: No such file"),
        ("file:///", "Is a directory"),
    ],
)
def test_an_address_that_cannot_be_used(address: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        fetch(address, str(tmp_path / "a.pth"))
    checked(str(caught.value), address, tmp_path / "a.pth", words, "orrect")


# The disk


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, other than pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def mounted(folder: Path, options: str) -> tuple[str, ...]:
    """A command that runs another one with a small file system in memory at `folder`."""
    mount = f'mount -t tmpfs -o {options} none "{folder}" && exec "$@"'
    wrapper = ("unshare", "--mount", "sh", "-c", mount, "sh")
    try:
        subprocess.run([*wrapper, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount a file system of its own (unshare --mount)")
    return wrapper


def test_a_full_disk(file_server: FileServer, tmp_path: Path) -> None:
    """Noticed before the first byte if the size is known, else while it is written."""
    disk = mounted(tmp_path, "size=100k")
    address, path = file_server.add("a.pth", CONTENT), tmp_path / "a.pth"
    free = f"the disk of {tmp_path} is full: it has "
    error_of_process(address, path, free, "200.0 kB are needed", "Free space", wrapper=disk)
    file_server.answers["a.pth"].declares_length = False
    error_of_process(address, path, f"the disk of {tmp_path} is full. Free space", wrapper=disk)


def test_a_limit_of_file_sizes(file_server: FileServer, tmp_path: Path) -> None:
    """The kernel cuts a write off at the limit, and refuses the next one: EFBIG."""
    address, path = file_server.add("a.pth", CONTENT), tmp_path / "a.pth"
    error_of_process(address, path, "grow further", "ulimit -f", prepare=LIMIT)
    assert os.path.getsize(f"{path}.part") == 50_000
    file_server.requests.clear()
    fetch(address, str(path))  # without the limit it goes on
    assert path.read_bytes() == CONTENT and file_server.ranges("a.pth") == ["bytes=50000-"]


def test_a_read_only_cache(file_server: FileServer, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    wrapper = mounted(cache, "ro")
    address = file_server.add("a/b.pth", CONTENT)
    words = f"{cache}/a cannot be written: its file system is read-only", "set $FVCORE_CACHE to"
    error_of_process(address, cache / "a/b.pth", *words, wrapper=wrapper)
    assert not file_server.requests


def test_a_folder_without_permission(file_server: FileServer, open_folder: Path) -> None:
    (open_folder / "there.pth").write_bytes(CONTENT)
    os.chmod(open_folder, 0o555)
    address, path = file_server.add("a.pth", CONTENT), open_folder / "a.pth"
    words = f"{path}.part cannot be written: this user has no permission. Make it writable"
    error_of_process(address, path, words, prepare=NOBODY)
    # What is there already is used: a cache that others fill.
    process = start_download(address, open_folder / "there.pth", prepare=NOBODY)
    assert process.communicate(timeout=60)[0].strip() == str(open_folder / "there.pth")
    os.chmod(open_folder, 0o755)


@pytest.mark.parametrize("at", ["a", "a/b"])
def test_a_file_where_a_folder_belongs(file_server: FileServer, at: str) -> None:
    file = Path(os.environ["FVCORE_CACHE"], at)
    file.parent.mkdir(parents=True)
    file.touch()
    error_of(file_server.add("a/b/c.pth", CONTENT), f"a file is in the way at {file}", "Move it")


def test_a_folder_where_a_file_belongs(file_server: FileServer, tmp_path: Path) -> None:
    address, path = file_server.add("a.pth", CONTENT), tmp_path / "a.pth"
    Path(f"{path}.part").mkdir()
    with pytest.raises(DownloadError) as caught:
        fetch(address, str(path))
    checked(str(caught.value), address, path, f"a folder is in the way at {path}.part")
    path.mkdir()
    with pytest.raises(DownloadError) as caught:
        fetch(address, str(path))
    print(f"\n{caught.value}")
    assert str(caught.value) == (
        f"{path}, the place of {address}, is a folder, expected a regular file; remove it"
    )

"""Download a file once: resumed after a break, verified, and safe for several processes.

    path = fetch("https://example.org/model.pth", cache_path("https://example.org/model.pth"))

While it is downloaded, the file is `<path>.part`, which one process keeps locked; the others wait.
`<path>.part.json` notes the version of the file, so that a later call asks the server for the rest
of that version. `<path>.sha256` records the address and the hash of what was downloaded.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from signal import SIGINT
from typing import BinaryIO

from panoptic_ext.atomic import TemporaryFile, is_at, try_lock, write_file
from panoptic_ext.download_errors import Download, cache_folder
from panoptic_ext.errors import DownloadError, quoted
from panoptic_ext.interruption import Interrupted
from panoptic_ext.regular_files import FileKind, file_problem
from panoptic_ext.transfer import Transfer

__all__ = ["cache_path", "fetch", "forget_record", "sha256_of", "temporary_copy"]

logger = logging.getLogger(__name__)

_FILE = FileKind("file", 256 << 30, bad="remove it")
_WAIT = 0.2  # seconds between two looks at another process's download
_RECORD = re.compile(r"(?:# (?P<address>.*)\n)?(?P<sha256>[0-9a-f]{64})\b")
_BINARY_FLAG = getattr(os, "O_BINARY", 0)  # exists on Windows only
# Path and status of files whose hash was computed in this process -> the hash.
_hashes: dict[tuple[str, int, int, int], str] = {}


def fetch(
    address: str,
    path: str,
    *,
    sha256: str = "",
    size: int | None = None,
    progress: bool = True,
) -> str:
    """Download a file to `path`, unless it is there.

    A file that is there is compared with `sha256` or, if that is not given, with the hash that was
    recorded at its download; one without a record was put there by hand, and is taken as it is.

    Args:
        address: http(s) or file address. Proxies are taken from the environment.
        path: where the file goes; its folder is made.
        sha256: the expected hash in hexadecimal digits. If it is not given, the one of the first
            download is recorded in `<path>.sha256`, and any other is refused later.
        size: the expected number of bytes.
        progress: whether a bar with size, speed and remaining time is shown on stderr.

    Returns:
        `path`, its ~ replaced by the home folder.

    Raises:
        DownloadError: the address cannot be used or reached, the file is not there or is another
            one, or `path` cannot be written. The message says where a file that was got in
            another way can be put.
        Interrupted: Ctrl-C; what came is kept for the next call.
    """
    download = Download(address, os.path.expanduser(path), sha256.lower(), size)
    if _is_there(download):
        return download.path
    _check_address(download)
    try:
        os.makedirs(download.folder, exist_ok=True)
        _download_once(download, progress)
    except OSError as error:
        raise download.not_written(error) from error
    except KeyboardInterrupt as interruption:
        raise Interrupted(
            SIGINT, f"stopped; what came of {address} is kept, and the next call goes on from there"
        ) from interruption
    return download.path


@contextmanager
def temporary_copy(address: str) -> Iterator[str]:
    """The path of a copy of a file, which is removed at the end of the `with` block.

    Nothing is recorded, so that the file of an address, such as a picture, may change.

    Args:
        address: http(s) or file address.

    Raises:
        DownloadError: as `fetch`; the message asks for a path instead.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "file")
        download = Download(address, path, private_part=path, is_kept=False)
        _check_address(download)
        with open(path, "w+b", buffering=0) as part:
            Transfer(download, part, progress=False).run()
        yield path


def cache_path(address: str) -> str:
    """The place of an address in the cache that Detectron2 uses, too.

    The cache is $FVCORE_CACHE, or ~/.torch/iopath_cache. Its layout leaves out the host. If that
    place holds the file of another host, the path below a folder of the host's name is returned.

    Raises:
        DownloadError: the address names no file.
    """
    try:
        parts = urllib.parse.urlsplit(address)
    except ValueError as error:
        raise DownloadError(
            f"{quoted(address)} is no valid address ({error}). Correct it"
        ) from error
    folders = [name for name in parts.path.split("/") if name not in ("", ".", "..")]
    if not folders or parts.path.endswith("/"):
        raise DownloadError(
            f"{quoted(address)} names no file, expected an address such as "
            "https://host/folder/model.pth"
        )
    path = os.path.join(cache_folder(), *map(_short_name, folders))
    if parts.query:
        path = _with_query(path, parts.query)
    recorded = _recorded(path)
    if recorded is None or recorded[0] in ("", address):
        return path
    host = re.sub(r"[^\w.-]", "_", parts.netloc.rpartition("@")[2])
    return os.path.join(cache_folder(), host, os.path.relpath(path, cache_folder()))


def sha256_of(path: str) -> str:
    """The sha256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def forget_record(path: str) -> None:
    """Forget the hash of a file that turned out to be wrong, so that another one may come."""
    with suppress(FileNotFoundError):
        os.remove(_record_path(path))


def _with_query(path: str, query: str) -> str:
    """iopath's name, which ends in the query, if it is there; else one that keeps its ending."""
    if os.path.isfile(f"{path}?{query}"):
        return f"{path}?{query}"
    return _with_tag(path, query)


def _short_name(name: str) -> str:
    """A name to which the endings of the files beside it can be added."""
    return name if len(os.fsencode(name)) <= 200 else _with_tag(name[:60] + name[-20:], name)


def _with_tag(path: str, text: str) -> str:
    """A path with some digits of a text's hash before its ending."""
    base, ending = os.path.splitext(path)
    return f"{base}-{hashlib.sha256(text.encode()).hexdigest()[:8]}{ending}"


def _check_address(download: Download) -> None:
    try:
        parts = urllib.parse.urlsplit(download.address)
    except ValueError as error:
        raise download.failed(f"the address is not valid ({error})", "Correct it") from error
    if parts.scheme not in ("http", "https", "file") or not (parts.netloc or parts.path):
        raise download.failed(
            "it is no http(s) or file address, expected such as https://host/folder/file",
            "Correct it",
        )


def _is_there(download: Download) -> bool:
    """Whether the file is at its place.

    Raises:
        DownloadError: something else is there.
    """
    path, address = download.path, download.address
    if not os.path.lexists(path):
        return False
    problem = file_problem(path, _FILE)
    if problem:
        raise DownloadError(f"{path}, the place of {address}, {problem}")
    recorded = _recorded(path)
    if recorded and recorded[0] not in ("", address) and not download.sha256:
        raise DownloadError(
            f"{path} holds the file of {recorded[0]}, expected that of {address}. Move it away, or "
            "choose another place"
        )
    found = _difference(download, path, _hash_of)
    if not found:
        return True
    mend = f"Remove it, so that {address} is downloaded"
    if not download.sha256:
        mend += f"; if the change is meant, remove {_record_path(path)} alone"
    raise DownloadError(f"{path} has {found}: it is damaged, or another file. {mend}")


def _difference(download: Download, path: str, hash_of: Callable[[str], str]) -> str:
    """How a file differs from what is expected: "5 bytes, expected 7"; "" if it does not."""
    size = os.path.getsize(path)
    if download.size is not None and size != download.size:
        return f"{size} bytes, expected {download.size}"
    recorded = _recorded(download.path)
    if download.sha256:
        expected, origin = download.sha256, ""
    elif recorded and recorded[0] in ("", download.address):
        expected, origin = recorded[1], ", which was recorded at the first download"
    else:
        return ""
    found = hash_of(path)
    return "" if found == expected else f"the sha256 {found}, expected {expected}{origin}"


def _hash_of(path: str) -> str:
    """`sha256_of`, computed once in a process as long as the file does not change."""
    status = os.stat(path)
    key = os.path.abspath(path), status.st_ino, status.st_size, status.st_mtime_ns
    if key not in _hashes:
        _hashes[key] = sha256_of(path)
    return _hashes[key]


def _download_once(download: Download, progress: bool) -> None:
    """Download the file, or wait until another process has done so."""
    has_said = False
    while not _is_there(download):
        # Without a buffer: after a kill, all that came is on the disk.
        handle = os.open(download.part, os.O_RDWR | os.O_CREAT | _BINARY_FLAG, 0o666)
        with os.fdopen(handle, "r+b", buffering=0) as part:
            lock = try_lock(part)
            try:
                if lock == "free" and is_at(part, download.part) and not _is_there(download):
                    return _download(download, part, progress)
            finally:
                if lock != "held":
                    _remove_empty(part, download.part)
        if lock == "unknown":
            return _download_without_lock(download, progress)
        if lock == "held" and not has_said:
            has_said = True
            logger.warning(  # INFO is not shown by most programs
                "another process downloads %s; waiting until it has finished", download.path
            )
        time.sleep(_WAIT)


def _download_without_lock(download: Download, progress: bool) -> None:
    """Download into a file of this process's own, which no later call can go on with."""
    with TemporaryFile(download.path) as temporary:
        private = replace(download, private_part=temporary.path)
        _download(private, temporary.stream, progress)


def _remove_empty(part: BinaryIO, path: str) -> None:
    """Remove a .part into which nothing came, unless it has been renamed."""
    if not part.closed and os.fstat(part.fileno()).st_size == 0 and is_at(part, path):
        with suppress(OSError):  # on systems that cannot remove an open file
            os.remove(path)


def _download(download: Download, part: BinaryIO, progress: bool) -> None:
    """Fill the .part, verify it, and rename it."""
    logger.info("downloading %s to %s", download.address, download.path)
    transfer = Transfer(download, part, progress=progress)
    found = _run(transfer, download, part)
    if found and transfer.is_spliced:
        # The kept bytes may be of another version, although the server did not say so.
        transfer.discard()
        found = _run(transfer, download, part)
    if found or not os.path.getsize(download.part):
        transfer.discard()
        raise _wrong_file(download, found or "0 bytes, expected some")
    os.fsync(part.fileno())
    _record(download)
    transfer.forget_origin()
    try:
        os.replace(download.part, download.path)  # before the lock ends with the stream
    except PermissionError:  # Windows cannot rename open files
        part.close()
        os.replace(download.part, download.path)


def _run(transfer: Transfer, download: Download, part: BinaryIO) -> str:
    """Transfer the file; how it differs from what is expected, or ""."""
    transfer.run()
    part.flush()
    return _difference(download, download.part, sha256_of)


def _wrong_file(download: Download, found: str) -> DownloadError:
    if found.endswith("first download"):
        record = _record_path(download.path)
        mend = f"If its publisher replaced it and you trust the new one, remove {record}"
    else:
        mend = "Check the address, try again"
    return download.failed(
        f"the file that came has {found}: it is another file, or was damaged on its way", mend
    )


def _record_path(path: str) -> str:
    return f"{path}.sha256"


def _recorded(path: str) -> tuple[str, str] | None:
    """The address ("" if it is not there) and the hash that the record of a file holds."""
    try:
        with open(_record_path(path), encoding="utf-8") as stream:
            match = _RECORD.match(stream.read(1 << 14))
    except (OSError, UnicodeDecodeError):
        return None
    return (match["address"] or "", match["sha256"]) if match else None


def _record(download: Download) -> None:
    """Write the record of the .part, which `sha256sum --check` reads as well."""
    found = download.sha256 or sha256_of(download.part)
    name = os.path.basename(download.path)
    content = f"# {download.address}\n{found}  {name}\n"
    is_new = _recorded(download.path) is None
    write_file(_record_path(download.path), content.encode(), error=None)
    if is_new and not download.sha256:
        logger.warning(
            "no sha256 is known for %s: the one of this download, %s, is recorded in %s, and any "
            "other will be refused",
            download.address,
            found,
            _record_path(download.path),
        )

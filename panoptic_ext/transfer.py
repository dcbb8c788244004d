"""Bring the bytes of an address into a file, going on where an earlier try ended.

`panoptic_ext.download` is the module for users: it locks, verifies and renames the file.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from tqdm import tqdm

from panoptic_ext.atomic import write_atomic
from panoptic_ext.download_errors import TIMEOUT, Download
from panoptic_ext.errors import DownloadError, shortened
from panoptic_ext.regular_files import readable_size

__all__ = ["Transfer"]

logger = logging.getLogger(__name__)

_PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds before another try, as long as no further byte comes
_BLOCK = 1 << 16
_HEAD = 1 << 12  # bytes in which an HTML page is recognised
_CONNECTION_ERRORS = (OSError, http.client.HTTPException)
_PASSING_STATUS = (408, 429, 502, 503, 504)


@dataclass(frozen=True)
class _Origin:
    """Which version of which file some bytes are of."""

    address: str = ""
    etag: str = ""
    last_modified: str = ""
    size: int | None = None

    @property
    def validator(self) -> str:
        """The value for If-Range, where a weak ETag is not allowed."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified

    def may_be(self, other: _Origin) -> bool:
        """Whether nothing shows that the other is another version."""
        pairs = zip(asdict(self).values(), asdict(other).values(), strict=True)
        return all(a == b for a, b in pairs if a and b)


class _DroppedError(Exception):
    """The connection ended early; another try may go on."""


class Transfer:
    """The transfer of one file into its .part.

    Attributes:
        is_spliced: whether the bytes that are there came by several requests.
    """

    def __init__(self, download: Download, stream: BinaryIO, *, progress: bool) -> None:
        """
        Args:
            download: what to download.
            stream: the .part, open for reading and writing without a buffer, and locked.
            progress: whether a bar with size, speed and remaining time is shown on stderr.
        """
        self._download = download
        self._stream = stream
        self._origin_path = f"{download.part}.json"
        self._furthest = 0  # most bytes of the file that this call has had
        self._is_answered = False
        self._progress = progress
        self._bar: Any = None
        # Not `urlopen`, which keeps the proxies and certificates of the process's first request.
        self._opener = urllib.request.build_opener()
        self.is_spliced = False

    def run(self) -> None:
        """Fill the .part with the whole file.

        Raises:
            DownloadError: it cannot be done; what came is kept for the next call.
        """
        tries = 0
        try:
            while True:
                before = self._furthest
                try:
                    return self._try_once()
                except _DroppedError as drop:
                    tries = 1 if self._furthest > before else tries + 1
                    if tries > len(_PAUSES):
                        raise self._broke_off(drop, tries) from drop.__cause__
                    logger.warning("%s: %s; trying again", self._download.address, drop)
                time.sleep(_PAUSES[tries - 1])
        finally:
            if self._bar is not None:
                self._bar.close()

    def discard(self) -> None:
        """Forget what came, so that the next run begins anew."""
        self._stream.truncate(0)
        self.forget_origin()
        self.is_spliced = False

    def forget_origin(self) -> None:
        """Remove the file beside the .part that says what it is of."""
        with suppress(FileNotFoundError):
            os.remove(self._origin_path)

    def _try_once(self) -> None:
        origin, offset = self._kept()
        if self._request(origin, offset):
            return
        self.discard()
        if not self._request(_Origin(), 0):
            raise _DroppedError("the server sends another part of the file than the one asked for")

    def _kept(self) -> tuple[_Origin, int]:
        """The origin and number of the bytes that are there; 0 if their origin is not certain."""
        try:
            with open(self._origin_path, encoding="utf-8") as stream:
                origin = _Origin(**json.load(stream))
            # Without a validator only the hash can tell whether the file has changed in between.
            is_certain = origin.validator or self._download.sha256
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            return _Origin(), 0  # there is no note, or it is damaged
        if not is_certain or origin.address != self._download.address:
            return _Origin(), 0
        return origin, os.fstat(self._stream.fileno()).st_size

    def _request(self, origin: _Origin, offset: int) -> bool:
        """Ask for the bytes from `offset` on; False if those before are of another version."""
        try:
            response = self._open(origin, offset)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416 and offset:
                    # If all bytes are there, a call ended between the last one and the renaming.
                    self.is_spliced = True
                    return _content_range(error.headers)[1] == offset
                if error.code in _PASSING_STATUS:
                    raise _DroppedError(
                        f"the server answers {error.code} {error.reason}"
                    ) from error
                raise self._download.refused(error.code, str(error.reason)) from error
        with response:
            self._is_answered = True
            found = _origin_of(self._download.address, response.headers)
            if getattr(response, "status", None) != 206:
                offset = 0
            elif _content_range(response.headers)[0] != offset or not origin.may_be(found):
                return False
            self._receive(response, found, offset)
        return True

    def _open(self, origin: _Origin, offset: int) -> Any:
        headers = {"User-Agent": "panoptic_ext"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            headers |= {"If-Range": origin.validator} if origin.validator else {}
        try:
            request = urllib.request.Request(_ascii(self._download.address), headers=headers)
            return self._opener.open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError as error:
            reason = error.reason
            if not isinstance(reason, BaseException):
                reason = OSError(reason)
            raise self._not_opened(reason) from error
        except (http.client.InvalidURL, ValueError) as error:
            raise self._download.failed(
                f"the address is not valid ({error})", "Correct it"
            ) from error
        except _CONNECTION_ERRORS as error:
            raise self._not_opened(error) from error

    def _not_opened(self, reason: BaseException) -> Exception:
        """The error that no response came; another try follows if it may help."""
        is_drop = isinstance(reason, (ConnectionError, ssl.SSLEOFError))
        if self._is_answered or (is_drop and not isinstance(reason, ConnectionRefusedError)):
            return _DroppedError(_broken(reason))
        return self._download.not_reached(reason)

    def _broke_off(self, drop: _DroppedError, tries: int) -> DownloadError:
        size = os.fstat(self._stream.fileno()).st_size
        kept = f" (the {readable_size(size)} that came are kept)" if size else ""
        return self._download.failed(f"{drop}, {tries} times in a row", f"Try again later{kept}")

    def _receive(self, response: Any, found: _Origin, offset: int) -> None:
        """Write the body of a response after the first `offset` bytes of the .part."""
        blocks = _blocks(response)
        head = next(blocks)
        # Both before the kept bytes are thrown away: a proxy's log-in page must not cost them.
        if offset == 0 and _is_page(head, response.headers, self._download.path):
            raise self._download.is_page(head)
        self._check_size(found.size)
        if offset == 0:
            self.discard()
            self._write_origin(found)
        self.is_spliced = offset > 0
        self._check_space((found.size or 0) - offset)
        self._show(offset, found.size or self._download.size)
        self._stream.seek(offset)
        position = offset + self._append(head)
        for block in blocks:
            position += self._append(block)
        if found.size is not None and position < found.size:
            raise _DroppedError(f"the connection ended after {position} of {found.size} bytes")

    def _show(self, position: int, size: int | None) -> None:
        """Begin the progress bar, or set it to another position."""
        if self._bar is None:
            is_terminal = sys.stderr is not None and sys.stderr.isatty()
            self._bar = tqdm(
                desc=shortened(os.path.basename(self._download.path), 40),
                total=size,
                initial=position,
                unit="B",
                unit_scale=True,
                mininterval=0.1 if is_terminal else 10.0,  # seconds; few lines in a log file
                disable=not self._progress or sys.stderr is None,
            )
        self._bar.total, self._bar.n = size, position

    def _append(self, block: bytes) -> int:
        rest = memoryview(block)
        try:
            while rest:  # an unbuffered stream may take a part of a block
                rest = rest[self._stream.write(rest) :]
        except OSError as error:
            raise self._download.not_written(error) from error
        self._furthest = max(self._furthest, self._stream.tell())
        self._bar.update(len(block))
        return len(block)

    def _write_origin(self, origin: _Origin) -> None:
        content = json.dumps(asdict(origin)).encode()
        try:
            write_atomic(self._origin_path, lambda stream: stream.write(content), durable=False)
        except OSError as error:
            raise self._download.not_written(error) from error

    def _check_size(self, size: int | None) -> None:
        expected = self._download.size
        if expected is not None and size is not None and size != expected:
            raise self._download.failed(
                f"the server has a file of {size} bytes there, expected {expected}: another file, "
                "or another version of it",
                "Check the address",
            )

    def _check_space(self, needed: int) -> None:
        with suppress(OSError):  # a file system that does not say
            free = shutil.disk_usage(self._download.folder).free
            if needed > free:
                raise self._download.disk_full(needed, free)


def _blocks(response: Any) -> Iterator[bytes]:
    """The body in blocks, of which the first may be empty."""
    size = _HEAD
    while True:
        try:
            block = response.read(size)
        except _CONNECTION_ERRORS as error:
            raise _DroppedError(_broken(error)) from error
        if not block and size == _BLOCK:
            return
        yield block
        size = _BLOCK


def _origin_of(address: str, headers: Any) -> _Origin:
    size = _content_range(headers)[1]
    length = headers.get("Content-Length", "")
    if size is None and length.isdigit():
        size = int(length)
    return _Origin(address, headers.get("ETag", ""), headers.get("Last-Modified", ""), size)


def _content_range(headers: Any) -> tuple[int | None, int | None]:
    """The first byte and the size of the whole file that Content-Range gives."""
    match = re.match(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers.get("Content-Range", ""))
    first, size = match.groups() if match else (None, None)
    return int(first) if first else None, int(size) if size and size != "*" else None


def _is_page(head: bytes, headers: Any, path: str) -> bool:
    """Whether a body is an HTML page, where none is expected."""
    if path.lower().endswith((".html", ".htm")):
        return False
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    starts_as_page = text.startswith((b"<!doctype html", b"<html"))
    is_called_page = headers.get("Content-Type", "").startswith("text/html")
    return starts_as_page or (is_called_page and text.startswith(b"<"))


def _ascii(address: str) -> str:
    """The address with all characters quoted that may not stand in one."""
    parts = urllib.parse.urlsplit(address)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    path, query = (urllib.parse.quote(p, safe="%/:=&?+!$,;'@()*[]~") for p in (parts[2], parts[3]))
    return urllib.parse.urlunsplit((parts.scheme, host, path, query, ""))


def _broken(error: BaseException) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"the connection broke off ({reason})"

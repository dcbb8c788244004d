"""What can prevent a download: one error each, with the address and the place of the file."""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass

from panoptic_ext.errors import DownloadError, quoted, shortened
from panoptic_ext.regular_files import readable_size

__all__ = ["TIMEOUT", "Download", "cache_folder"]

TIMEOUT = 30.0
"""Seconds without an answer or a byte, after which a connection is taken for dead."""

_TITLE = re.compile(rb"<title[^>]*>(.*?)</title", re.DOTALL | re.IGNORECASE)
_STATUS = {
    401: ("the file needs a login", "Log in with a browser"),
    403: ("it may need a login, or a licence that you accept", "Look at its page with a browser"),
    404: ("no file is there, or not any more", "Check the address"),
    407: ("the proxy needs a login", "Check $HTTPS_PROXY"),
    410: ("the file was withdrawn", "Check the address"),
    429: ("it had too many requests", "Try again later"),
}
_DENIED = "this user has no permission"
_NOT_WRITABLE = {
    errno.EROFS: "its file system is read-only",
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
}


@dataclass(frozen=True)
class Download:
    """What to download, where it goes, and the errors about it.

    Attributes:
        address: an http(s) or file address.
        path: the path of the file.
        sha256: the expected hash in lower case; "" if it is not known.
        size: the expected number of bytes, or None.
        private_part: the path of a .part that other processes do not use, or "".
        is_kept: whether the file stays, so that one that was got by hand can be put there.
    """

    address: str
    path: str
    sha256: str = ""
    size: int | None = None
    private_part: str = ""
    is_kept: bool = True

    @property
    def part(self) -> str:
        """The path of the file while it is downloaded."""
        return self.private_part or f"{self.path}.part"

    @property
    def folder(self) -> str:
        """The folder of the file."""
        return os.path.dirname(self.path) or os.curdir

    def failed(self, problem: str, mend: str = "") -> DownloadError:
        """The error that says what was found, how to mend it, and where the file belongs."""
        way = f"{mend}, or get" if mend else "Get"
        place = f"put it at {os.path.abspath(self.path)}" if self.is_kept else "give its path"
        return DownloadError(
            f"{shortened(self.address, 400)} cannot be downloaded: {problem}. {way} the file in "
            f"another way and {place}"
        )

    def disk_full(self, needed: int | None = None, free: int | None = None) -> DownloadError:
        """The disk has no space for the rest of the file; both sizes are in bytes."""
        numbers = ""
        if needed is not None and free is not None:
            numbers = f": it has {readable_size(free)} free, and {readable_size(needed)} are needed"
        return self.failed(
            f"the disk of {self.folder} is full{numbers}",
            f"Free space and try again (what came is kept in {self.part})",
        )

    def not_written(self, error: OSError) -> DownloadError:
        """A folder cannot be made, or a file cannot be written."""
        where = error.filename or self.part
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return self.disk_full()
        if error.errno == errno.EFBIG:
            return self.failed(
                f"the system forbids {where} to grow further (a limit of file sizes)",
                "Raise the limit (ulimit -f) or take another file system",
            )
        if error.errno in _NOT_WRITABLE:
            reason, mend = _NOT_WRITABLE[error.errno], "Make it writable"
            if self._is_in_cache():
                mend = "Make it writable, set $FVCORE_CACHE to another folder"
            return self.failed(f"{where} cannot be written: {reason}", mend)
        if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST):
            while not os.path.lexists(where) and os.path.dirname(where) != where:
                where = os.path.dirname(where)
            other = "a folder" if os.path.isdir(where) else "a file"
            return self.failed(f"{other} is in the way at {where}", "Move it away")
        return self.failed(f"{where} cannot be written: {error.strerror or error}")

    def not_reached(self, reason: BaseException) -> DownloadError:
        """There is no connection to the server."""
        parts = urllib.parse.urlsplit(self.address)
        host = parts.netloc.rpartition("@")[2]
        text = " ".join((getattr(reason, "strerror", None) or str(reason)).split())
        if parts.scheme == "file":
            return self.failed(text, "Correct the address")
        if isinstance(reason, ssl.SSLCertVerificationError):
            return self.failed(
                f"the certificate of {host} is not trusted ({reason.verify_message})",
                "Set $SSL_CERT_FILE to your network's certificates",
            )
        if isinstance(reason, socket.gaierror):
            problem = f"no address is known for the host {host} ({text})"
        elif isinstance(reason, TimeoutError):
            problem = f"{host} does not answer within {TIMEOUT:g} seconds"
        elif isinstance(reason, ConnectionRefusedError):
            problem = f"{host} refuses the connection"
        else:
            problem = f"there is no connection to {host} ({text})"
        return self.failed(f"{problem}{self._proxy()}", "Check the network and the address")

    def refused(self, status: int, reason: str) -> DownloadError:
        """The server answers with an error status."""
        hint, mend = _STATUS.get(status, ("", "Check the address"))
        if status >= 500:
            hint, mend = "a fault of the server", "Try again later"
        answer = " ".join(f"the server answers {status} {reason}".split())
        return self.failed(f"{answer}: {hint}" if hint else answer, mend)

    def is_page(self, head: bytes) -> DownloadError:
        """The server sends an HTML page; `head` is its beginning."""
        title = _TITLE.search(head)
        text = " ".join(title[1].decode(errors="replace").split()) if title else ""
        return self.failed(
            "an HTML page came instead of the file"
            + (f", with the title {quoted(text, 80)}" if text else "")
            + ": a page to log in or to agree, or an error page",
            "Look at it with a browser",
        )

    def _is_in_cache(self) -> bool:
        return os.path.abspath(self.path).startswith(cache_folder() + os.sep)

    def _proxy(self) -> str:
        """The words about the proxy that is used, without its password."""
        scheme, host = urllib.parse.urlsplit(self.address)[:2]
        proxy = urllib.request.getproxies().get(scheme)
        if not proxy or urllib.request.proxy_bypass(host):
            return ""
        return f" through the proxy {proxy.rpartition('@')[2]} (${scheme.upper()}_PROXY)"


def cache_folder() -> str:
    """The folder of downloaded files, as Detectron2 has it."""
    return os.path.abspath(
        os.path.expanduser(os.environ.get("FVCORE_CACHE") or "~/.torch/iopath_cache")
    )

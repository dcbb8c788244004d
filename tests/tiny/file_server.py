"""An HTTP server on the loopback interface that serves files well, badly or not at all.

def test_it(file_server):  # the fixture of tests/conftest.py
    address = file_server.add("a/model.pth", content)
    broken = file_server.add("b.pth", content, truncated_to=10)
    ...
    assert [r.range for r in file_server.requests] == [None, "bytes=10-"]
"""

from __future__ import annotations

import hashlib
import http.server
import re
import ssl
import threading
import time
from dataclasses import dataclass, field
from typing import Any

HTML_PAGE = (
    b"<!DOCTYPE html>\n<html><head><title>Please log in</title></head><body></body></html>\n"
)


@dataclass
class Answer:
    """How the server answers for one path; tests may change it between two requests.

    Attributes:
        content: the bytes of the file.
        status: the HTTP status; one other than 200 is sent with a short text.
        content_type: the header of that name.
        etag: the header of that name; None derives it from the content, "" sends none.
        last_modified: the header of that name; "" sends none.
        passing_status: statuses of the next answers, before the file is served.
        ranges: whether the server honours Range.
        honours_if_range: whether it honours If-Range.
        declares_length: whether it sends Content-Length.
        truncated_to: the number of bytes of the file after which it always closes the connection,
            while Content-Length declares all of them.
        drops: one number for each of the next answers: it closes after that many bytes of body.
        silence: seconds before the answer begins.
        pause: seconds before each block of the body.
        block: bytes of a block.
        location: where a status of 301 to 308 leads.
    """

    content: bytes
    status: int = 200
    content_type: str = "application/octet-stream"
    etag: str | None = None
    last_modified: str = ""
    passing_status: list[int] = field(default_factory=list)
    ranges: bool = True
    honours_if_range: bool = True
    declares_length: bool = True
    truncated_to: int | None = None
    drops: list[int] = field(default_factory=list)
    silence: float = 0.0
    pause: float = 0.0
    block: int = 1 << 16
    location: str = ""

    def validators(self) -> dict[str, str]:
        """The headers by which a client notices that the file changed."""
        etag = f'"{hashlib.sha256(self.content).hexdigest()[:16]}"' if self.etag is None else ""
        headers = {"ETag": self.etag or etag, "Last-Modified": self.last_modified}
        return {name: value for name, value in headers.items() if value}


@dataclass(frozen=True)
class Request:
    """A request that came in: its path (the whole address if it came to a proxy) and headers."""

    path: str
    range: str | None
    if_range: str | None
    headers: dict[str, str]


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: clients that go away, or refuse a certificate, are what the tests are about."""


class FileServer:
    """A server in threads of this process, from `with FileServer() as server` to the block's end.

    Attributes:
        answers: path without the first slash -> its answer; any other path is answered by 404.
        requests: the requests so far.
    """

    def __init__(self, *, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        """
        Args:
            port: the port; 0 takes a free one.
            tls: the certificate of a server of https addresses.
        """
        self._scheme = "https" if tls else "http"
        self.answers: dict[str, Answer] = {}
        self.requests: list[Request] = []
        self._closing = threading.Event()
        handler = type("Handler", (_Handler,), {"files": self})
        self._server = _Server(("127.0.0.1", port), handler)
        if tls:
            # The thread of each connection shakes hands, so that a failure is that client's alone.
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    @property
    def root(self) -> str:
        """The address of the server, without a slash at its end."""
        return f"{self._scheme}://127.0.0.1:{self._server.server_port}"

    def add(self, path: str, content: bytes = b"", **options: Any) -> str:
        """Serve a file from now on; `options` are attributes of `Answer`. Returns its address."""
        self.answers[path] = Answer(content, **options)
        return f"{self.root}/{path}"

    def add_page(self, path: str) -> str:
        """Serve an HTML page with status 200, as a log-in or consent page comes. Its address."""
        return self.add(path, HTML_PAGE, content_type="text/html; charset=utf-8")

    def ranges(self, path: str) -> list[str | None]:
        """The Range header of each request for a path so far."""
        return [request.range for request in self.requests if request.path.lstrip("/") == path]

    def wait(self, seconds: float) -> None:
        """Pause an answer, but not beyond the end of the server."""
        if seconds:
            self._closing.wait(seconds)

    def __enter__(self) -> FileServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def free_port() -> int:
    """A port of the loopback interface on which nobody listens."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        return server.server_port


def wait_until(condition: Any, seconds: float = 20.0) -> None:
    """Wait until `condition()` holds.

    Raises:
        TimeoutError: it still does not.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the condition does not hold")
        time.sleep(0.02)


class _Handler(http.server.BaseHTTPRequestHandler):
    files: FileServer
    timeout = 30

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: stderr is for the client under test."""

    def do_GET(self) -> None:
        headers = dict(self.headers.items())
        request = Request(self.path, headers.get("Range"), headers.get("If-Range"), headers)
        self.files.requests.append(request)
        answer = self.files.answers.get(self.path.lstrip("/"))
        try:
            self.files.wait(answer.silence if answer else 0)
            if answer is None:
                self._refuse(404)
            elif answer.passing_status:
                self._refuse(answer.passing_status.pop(0))
            elif answer.status != 200:
                self._refuse(answer.status, answer.location)
            else:
                self._serve(answer, request)
        except ConnectionError:  # the client is gone
            self.close_connection = True

    def _refuse(self, status: int, location: str = "") -> None:
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(b"this is no file")

    def _serve(self, answer: Answer, request: Request) -> None:
        content, validators = answer.content, answer.validators()
        start, status = 0, 200
        unchanged = request.if_range in (None, *validators.values()) or not answer.honours_if_range
        if answer.ranges and request.range and unchanged:
            match = re.fullmatch(r"bytes=(\d+)-", request.range)
            start, status = int(match[1]) if match else 0, 206
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(status)
        headers = {"Content-Type": answer.content_type, **validators}
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if answer.declares_length:
            headers["Content-Length"] = str(len(content) - start)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self._send(answer, start)

    def _send(self, answer: Answer, start: int) -> None:
        end = len(answer.content) if answer.truncated_to is None else answer.truncated_to
        if answer.drops:
            end = min(end, start + answer.drops.pop(0))
        for begin in range(start, end, answer.block):
            self.files.wait(answer.pause)
            self.wfile.write(answer.content[begin : min(begin + answer.block, end)])
        self.close_connection = True

"""A server of append blobs over HTTP, which checks what it is sent and fails as told."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

BLOCK_LIMIT = 4 * 2**20


class Blob:
    """What one holds: its bytes, or, when those are not kept, their number and digest."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.data = bytearray()
        self.size = 0
        self.digest = hashlib.sha256()
        self.blocks = 0
        self.times: list[float] = []


class AppendBlobs(ThreadingHTTPServer):
    """`faults`: what goes wrong with the next requests, one each: `reset` (nothing is done),
    `lose` (it is done, no answer comes), or a status with an error code, as in `503 ServerBusy`;
    empty: nothing. `on_append` is told of each block that arrived, before it is answered."""

    daemon_threads = True

    def __init__(self, *, keep: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.keep = keep
        self.blobs: dict[str, Blob] = {}
        self.faults: list[str] = []
        self.always: dict[str, str] = {}
        """A fault of every request for a blob."""
        self.on_append: Callable[[str, bytes], None] = lambda name, block: None
        self.wrong: list[str] = []
        """Requests that Azure would not have understood, and what `on_append` raised."""
        self.lock = threading.Lock()

    def url(self, name: str) -> str:
        """A signed URL."""
        return f"http://127.0.0.1:{self.server_address[1]}/account/c/{name}?sv=2025&sig=secret"

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that we, or the client, cut is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: AppendBlobs
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_PUT(self) -> None:
        """Put Blob and Append Block."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server = self.server
        with server.lock:
            parts = urlsplit(self.path)
            name = parts.path.removeprefix("/account/c/")
            fault = server.always.get(name) or (server.faults.pop(0) if server.faults else "")
            if fault == "reset":
                self._cut()
                return
            if fault and fault != "lose":
                status, _, code = fault.partition(" ")
                self._answer(int(status), code)
                return
            if self.headers["x-ms-version"] is None or "sig=secret" not in parts.query:
                server.wrong.append(f"{self.path}: no version or signature")
            try:
                if parse_qs(parts.query).get("comp") == ["appendblock"]:
                    status, code = self._append(name, body)
                else:
                    status, code = self._create(name, body)
            except AssertionError as error:
                server.wrong.append(repr(error))
                status, code = 400, "InvalidInput"
        if fault == "lose":
            self._cut()
        else:
            self._answer(status, code)

    def do_HEAD(self) -> None:
        """Get Blob Properties."""
        blob = self.server.blobs.get(urlsplit(self.path).path.removeprefix("/account/c/"))
        if blob is None:
            self._answer(404, "BlobNotFound")
            return
        self.send_response(200)
        self.send_header("x-ms-meta-runner", blob.mark)
        self.send_header("Content-Length", str(blob.size))
        self.end_headers()

    def _create(self, name: str, body: bytes) -> tuple[int, str]:
        assert self.headers["x-ms-blob-type"] == "AppendBlob"
        assert self.headers["If-None-Match"] == "*"
        assert not body
        if name in self.server.blobs:
            return 409, "BlobAlreadyExists"
        self.server.blobs[name] = Blob(self.headers["x-ms-meta-runner"])
        return 201, ""

    def _append(self, name: str, body: bytes) -> tuple[int, str]:
        assert 0 < len(body) <= BLOCK_LIMIT
        blob = self.server.blobs.get(name)
        if blob is None:
            return 404, "BlobNotFound"
        if int(self.headers["x-ms-blob-condition-appendpos"]) != blob.size:
            return 412, "AppendPositionConditionNotMet"
        self.server.on_append(name, body)
        if self.server.keep:
            blob.data += body
        blob.digest.update(body)
        blob.size += len(body)
        blob.blocks += 1
        blob.times.append(time.monotonic())
        return 201, ""

    def _answer(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("x-ms-error-code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing is printed."""


@contextmanager
def append_blobs(*, keep: bool = True) -> Iterator[AppendBlobs]:
    """A server, whose clients did nothing wrong."""
    with AppendBlobs(keep=keep) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
    assert server.wrong == []

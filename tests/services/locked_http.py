"""An HTTP server that gives and takes nothing without the right signature or password."""

from __future__ import annotations

import base64
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, urlsplit

MARKER = "<AuthenticationErrorDetail>"


class LockedHttp:
    """Objects on loopback, as a context manager. A path in `signatures` wants `?sig=` with that
    value, one in `passwords` wants Basic authentication with that `user:password`. Whoever brings
    another one is refused as Azure refuses: in words that hold what was brought."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.signatures: dict[str, str] = {}
        self.passwords: dict[str, str] = {}
        self.refused: list[str] = []
        """Paths for which something wrong was brought."""
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    @property
    def host(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self._server.server_address[1]}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    owner: LockedHttp

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Silent."""

    def do_HEAD(self) -> None:
        """Size of an object."""
        self._give()

    def do_GET(self) -> None:
        """An object, or the part of it that Range names."""
        self._give()

    def do_PUT(self) -> None:
        """Take an object."""
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if path := self._admitted():
            self.server.owner.objects[path] = body
            self._answer(201, b"")

    def _give(self) -> None:
        path = self._admitted()
        if path is None:
            return
        whole = self.server.owner.objects.get(path)
        if whole is None:
            self._answer(404, b"<Error><Code>BlobNotFound</Code></Error>")
            return
        asked = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        if asked[0] and whole:
            start, end = int(asked[0]), min(int(asked[2] or len(whole)), len(whole) - 1)
            place = {"Content-Range": f"bytes {start}-{end}/{len(whole)}"}
            self._answer(206, whole[start : end + 1], place)
        else:
            self._answer(200, whole)

    def _admitted(self) -> str | None:
        """The path, if what is brought opens it; else the refusal has been sent."""
        owner, parts = self.server.owner, urlsplit(self.path)
        signature = parse_qs(parts.query).get("sig", [""])[0]
        brought = self.headers.get("Authorization", "")
        wanted = base64.b64encode(owner.passwords.get(parts.path, "").encode()).decode()
        if parts.path in owner.passwords and brought != f"Basic {wanted}":
            self._refuse(parts.path, 401, brought)
            return None
        if signature != owner.signatures.get(parts.path, ""):
            self._refuse(parts.path, 403, signature)
            return None
        return parts.path

    def _refuse(self, path: str, status: int, brought: str) -> None:
        self.server.owner.refused.append(path)
        said = f"<Error><Code>AuthenticationFailed {brought}</Code>{MARKER}{brought}</Error>"
        self._answer(status, said.encode(), {"x-ms-error-code": "AuthenticationFailed"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status, f"said {self.path}" if status == 403 else None)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

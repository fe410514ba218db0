"""An HTTPS server in a thread for stand-ins of cloud services: certificates, outages, a record."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import parse_qs, urlsplit

from tests.services import certificates

Trouble = Literal["closed", "silent"] | int
"""How a server fails: it closes each connection before TLS begins, it lets everybody wait, or it
answers each request with this status."""


class Refusal(Exception):
    """Ends a request with a status, a JSON document and headers."""

    def __init__(self, status: int, document: Any, headers: Mapping[str, str] | None = None):
        super().__init__(status)
        self.status, self.document, self.headers = status, document, dict(headers or {})


class Request:
    """One request: its method, path, query, form and headers (names in lower case)."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        self.method = handler.command
        self.path = parts.path
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.headers = {name.lower(): value for name, value in handler.headers.items()}
        self.body = handler.rfile.read(int(self.headers.get("content-length", 0)))

    @property
    def form(self) -> dict[str, str]:
        """The body as a form."""
        return {name: values[0] for name, values in parse_qs(self.body.decode()).items()}


class TlsServer:
    """Serves JSON over TLS on a port that the system chooses, with an authority of its own.

    A context manager. `asked` has the method and path of every request that was answered.
    Subclasses answer in `answer`, from several threads at once.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        made = certificates.make(directory, "127.0.0.1", "localhost")
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(made.certificate, made.key)
        self.ca_bundle = str(made.authority)
        """PEM file of the authority that clients must trust."""
        self.asked: list[str] = []
        self._trouble: Trouble | None = None
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def answer(self, request: Request) -> Any:
        """The JSON document to answer with status 200. Raises Refusal."""
        raise NotImplementedError

    def down(self, trouble: Trouble = "closed") -> None:
        """Fail from now on, open connections included."""
        self._trouble = trouble

    def up(self) -> None:
        """Answer again."""
        self._trouble = None

    def count(self, text: str) -> int:
        """How many requests had this text in their method and path."""
        return sum(text in each for each in list(self.asked))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.up()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def handle(self, handler: BaseHTTPRequestHandler) -> tuple[int, Any, Mapping[str, str]] | None:
        """Status, document and headers; None: close the connection without a word."""
        request = Request(handler)
        while (trouble := self._trouble) == "silent":
            time.sleep(0.02)
        if trouble == "closed":
            return None
        if isinstance(trouble, int):
            return trouble, {"error": "temporarily_unavailable"}, {}
        self.asked.append(f"{request.method} {request.path}")
        try:
            return 200, self.answer(request), {}
        except Refusal as refusal:
            return refusal.status, refusal.document, refusal.headers


class _Server(ThreadingHTTPServer):
    owner: TlsServer
    daemon_threads = True
    # Waiting clients of a silent server must not keep a test from ending.
    block_on_close = False
    request_queue_size = 128

    def finish_request(self, request: Any, client_address: Any) -> None:
        """TLS in the connection's own thread: a slow handshake delays nobody."""
        if self.owner._trouble == "closed":
            return
        request.settimeout(30)
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self.owner._context.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, *_: Any) -> None:
        """Clients that go away, or trust others, are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._respond()

    def do_POST(self) -> None:
        self._respond()

    def do_PUT(self) -> None:
        self._respond()

    def _respond(self) -> None:
        found = self.server.owner.handle(self)
        if found is None:
            self.close_connection = True
            return
        status, document, headers = found
        body = json.dumps(document).encode()
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Nothing: tests have their own words."""

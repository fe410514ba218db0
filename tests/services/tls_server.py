"""An HTTPS server in a thread for stand-ins of cloud services: certificates, outages, a record."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from tests.services import certificates
from tests.services.loopback_http import LoopbackHttp, QuietHandler

Trouble = Literal["closed", "silent"] | int
"""How a server fails: it closes each connection before TLS begins, it lets everybody wait, or it
answers each request with this status."""


class Refusal(Exception):
    """Ends a request with a status, a JSON document and headers."""

    def __init__(self, status: int, document: Any, headers: Mapping[str, str] | None = None):
        super().__init__(status)
        self.status, self.document, self.headers = status, document, dict(headers or {})


class Cut(Exception):
    """Ends a request, and its connection, without a word."""


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


class TlsServer(LoopbackHttp):
    """Serves JSON over TLS on a port that the system chooses, with an authority of its own.

    A context manager. `asked` has the method and path of every request that was answered.
    Subclasses answer in `answer`, from several threads at once.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        made = certificates.make(directory, "127.0.0.1", "localhost")
        super().__init__(_Handler, made)
        self.certificate = made
        self.url = self.origin
        self.ca_bundle = str(made.authority)
        """PEM file of the authority that clients must trust."""
        self.asked: list[str] = []
        self._trouble: Trouble | None = None

    def answer(self, request: Request) -> Any:
        """The JSON document to answer with status 200. Raises Refusal or Cut."""
        raise NotImplementedError

    def down(self, trouble: Trouble = "closed") -> None:
        """Fail from now on, open connections included."""
        self._trouble = trouble
        self.accepting = trouble != "closed"

    def up(self) -> None:
        """Answer again."""
        self._trouble = None
        self.accepting = True

    def count(self, text: str) -> int:
        """How many requests had this text in their method and path."""
        return sum(text in each for each in list(self.asked))

    def __exit__(self, *_: object) -> None:
        self.up()
        super().__exit__()

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
        except Cut:
            return None


class _Handler(QuietHandler):
    owner: TlsServer

    def do_GET(self) -> None:
        self._respond()

    def do_POST(self) -> None:
        self._respond()

    def do_PUT(self) -> None:
        self._respond()

    def do_PATCH(self) -> None:
        self._respond()

    def do_DELETE(self) -> None:
        self._respond()

    def do_HEAD(self) -> None:
        self._respond()

    def _respond(self) -> None:
        found = self.owner.handle(self)
        if found is None:
            self.close_connection = True
            return
        status, document, headers = found
        if document is None:
            self.reply(status, b"", headers)
            return
        kind = {"Content-Type": "application/json; charset=utf-8"}
        self.reply(status, json.dumps(document).encode(), kind | dict(headers))

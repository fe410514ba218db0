"""How the Batch stand-in speaks HTTP: requests, replies, refusals as Batch's are, times, a server.

Sources: "Batch Status and Error Codes", "Common headers" of the Batch service's REST reference.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import re
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.services import certificates

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
TICKS_PER_SECOND = 10_000_000
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,7}))?(?:Z|\+00:00)")
_DURATION = re.compile(
    r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?", re.IGNORECASE
)


class Clock:
    """The service's time, in ticks of 100 ns since the epoch: what Batch's own times are made of.
    `skew_s` moves it away from this machine's."""

    def __init__(self) -> None:
        self.skew_s = 0.0

    def now(self) -> int:
        """Ticks."""
        return time.time_ns() // 100 + int(self.skew_s * TICKS_PER_SECOND)


def format_time(ticks: int) -> str:
    """As Batch writes times, with seven digits."""
    whole = _EPOCH + dt.timedelta(seconds=ticks // TICKS_PER_SECOND)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{ticks % TICKS_PER_SECOND:07d}Z"


def format_http_time(ticks: int) -> str:
    """As headers have it (RFC 1123)."""
    return format_datetime(_EPOCH + dt.timedelta(seconds=ticks // TICKS_PER_SECOND), usegmt=True)


def parse_time(text: str) -> int:
    """Ticks of a W3C-DTF time in UTC. Raises ValueError."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError(f"not a time: {text}")
    whole = dt.datetime.fromisoformat(found[1]).replace(tzinfo=dt.UTC)
    seconds = int((whole - _EPOCH).total_seconds())
    return seconds * TICKS_PER_SECOND + int((found[2] or "0").ljust(7, "0"))


def parse_duration(text: str) -> float:
    """Seconds of an ISO 8601 duration without years and months. Raises ValueError."""
    found = _DURATION.fullmatch(text)
    if found is None or text.upper() in ("P", "PT"):
        raise ValueError(f"not a duration: {text}")
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


@dataclass
class Request:
    """One request: `target` as sent, the rest decoded; names of headers in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    path: str = field(init=False)
    query: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.target)
        self.path = parts.path
        self.query = dict(reversed(parse_qsl(parts.query, keep_blank_values=True)))

    @property
    def parts(self) -> list[str]:
        """The path's segments, decoded."""
        return [unquote(part) for part in self.path.strip("/").split("/")]

    @property
    def document(self) -> Any:
        """The body as JSON; None when there is none. Raises Refused."""
        if not self.body:
            return None
        try:
            return json.loads(self.body)
        except ValueError:
            said = "The specified Request Body is not syntactically valid."
            raise Refused(400, "InvalidRequestBody", said) from None


@dataclass
class Reply:
    """What is answered: a document, or bytes, or nothing but a status and headers."""

    status: int
    document: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None


class Refused(Exception):
    """Batch's refusal: status, code, message, and named details."""

    def __init__(
        self,
        status: int,
        code: str,
        said: str,
        values: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(code)
        self.status, self.code, self.said = status, code, said
        self.values, self.headers = dict(values or {}), dict(headers or {})

    def document(self, clock: Clock) -> dict[str, Any]:
        """The BatchError."""
        trace = f"\nRequestId:{uuid.uuid4()}\nTime:{format_time(clock.now())}"
        found: dict[str, Any] = {
            "code": self.code,
            "message": {"lang": "en-US", "value": self.said + trace},
        }
        if self.values:
            found["values"] = [{"key": key, "value": each} for key, each in self.values.items()]
        return found


def invalid_value(name: str, value: object, reason: str) -> Refused:
    """A property of the body that the service does not take."""
    said = "The value provided for one of the properties in the request body is invalid."
    values = {"PropertyName": name, "PropertyValue": str(value), "Reason": reason}
    return Refused(400, "InvalidPropertyValue", said, values)


class HttpServer:
    """Serves `answer` on a port of 127.0.0.1 that the system chooses; over TLS with a certificate,
    or a directory to make one in. `answer` is called from several threads; None cuts the
    connection without a word."""

    def __init__(
        self,
        answer: Callable[[Request], Reply | None],
        tls: Path | certificates.Certificate | None = None,
    ) -> None:
        self.ca_bundle = ""
        """PEM file of the authority that clients must trust; empty without TLS."""
        context: ssl.SSLContext | None = None
        if isinstance(tls, Path):
            tls.mkdir(parents=True, exist_ok=True)
            tls = certificates.make(tls, "127.0.0.1", "localhost")
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls.certificate, tls.key)
            self.ca_bundle = str(tls.authority)
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.answer, self._server.context = answer, context
        scheme = "http" if context is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """No more answers."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


class _Server(ThreadingHTTPServer):
    answer: Callable[[Request], Reply | None]
    context: ssl.SSLContext | None
    daemon_threads = True
    # A client that waits for a slow answer must not keep a test from ending.
    block_on_close = False
    request_queue_size = 128

    def finish_request(self, request: Any, client_address: Any) -> None:
        """TLS in the connection's own thread: a slow handshake delays nobody."""
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.context is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(30)
        with self.context.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, *_: Any) -> None:
        """Clients that go away, or trust others, are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    wbufsize = 65536

    def _respond(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        reply = self.server.answer(Request(self.command, self.path, headers, body))
        if reply is None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        content = reply.content
        if content is None:
            content = b"" if reply.document is None else json.dumps(reply.document).encode()
        given = {name.lower() for name in reply.headers}
        with contextlib.suppress(ConnectionError):
            self.send_response(reply.status)
            if reply.document is not None:
                self.send_header("Content-Type", "application/json;odata=minimalmetadata")
            if "content-length" not in given and reply.status != 204:
                self.send_header("Content-Length", str(len(content)))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)
            self.wfile.flush()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _respond

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Nothing: tests have their own words."""

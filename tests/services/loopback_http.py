"""What stand-ins for HTTP services have in common: a port on loopback, a thread, TLS, silence."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from tests.services.certificates import Certificate


class QuietHandler(BaseHTTPRequestHandler):
    """One connection, which stays open between requests. Subclasses declare their `owner`."""

    owner: Any
    """The LoopbackHttp that it belongs to."""
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def reply(
        self,
        status: int,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        reason: str | None = None,
    ) -> None:
        """A whole answer, whether or not the client is still there; HTTP's `reason` if None."""
        with contextlib.suppress(OSError):
            self.send_response(status, reason)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Silent."""


class LoopbackHttp:
    """Serves on a port of 127.0.0.1 that the system chooses, in threads, as a context manager; with
    a `certificate` over TLS. While it is not `accepting`, it closes connections without a word.
    """

    def __init__(self, handler: type[QuietHandler], certificate: Certificate | None = None) -> None:
        self._server = _Server(handler, self)
        self.accepting = True
        self.scheme = "http"
        if certificate:
            self.scheme = "https"
            self._server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._server.tls.load_cert_chain(certificate.certificate, certificate.key)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        port: int = self._server.server_address[1]
        return port

    @property
    def host(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"{self.scheme}://{self.host}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    tls: ssl.SSLContext | None = None

    def __init__(self, handler: type[QuietHandler], owner: LoopbackHttp) -> None:
        super().__init__(("127.0.0.1", 0), type(handler.__name__, (handler,), {"owner": owner}))
        self.owner = owner

    def verify_request(self, *_: Any) -> bool:
        """Whether to go on with a connection."""
        return self.owner.accepting

    def finish_request(self, request: Any, client_address: Any) -> None:
        """TLS in the connection's own thread: a slow handshake delays nobody."""
        if self.tls is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(30)
        with self.tls.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, *_: Any) -> None:
        """Clients that go away, or trust others, are part of the tests."""

"""What a connection may take: bytes of a head, seconds, connections at once.

Time is watched per connection by one timer, not per request: nothing is added to the fast path.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tesazure.api.errors import RETRY_AFTER_S, raw
from tesazure.api.ids import request_id

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers together (uvicorn with httptools sets no limit of its own)."""
WRITE_STALL_S = 60.0
"""A client that takes none of what is written to it for so long is dropped."""
Record = Callable[[str, str, int, float, bytes, tuple[str, int] | None], None]
"""Notes a request in log and metrics: method, path, status, seconds, request id, client."""
_UPGRADE_HEADERS = frozenset({b"upgrade", b"connection", b"http2-settings"})
LINGER_S = 2.0
"""How long an unread body is drained after a refusal, so that the client gets to read the reply:
closing a socket with unread input resets it (RFC 9112, section 9.6)."""


@dataclass(slots=True)
class ConnectionLimits:
    """Seconds for a whole request to arrive, and connections at once. May change at any time."""

    request_timeout_s: float
    max_connections: int


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with limits on time, on the head's size and on connections, and with our
    error shape for requests that never reach the application."""

    limits: ConnectionLimits
    record: Record

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._receiving_since: float | None = None
        self._began = 0.0
        """When the request began, by `time.perf_counter`."""
        self._begun = False
        self._in_head = True
        self._head_bytes = 0
        self._stalled_since: float | None = None
        self._closing_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected; refuse it if there are too many."""
        super().connection_made(transport)
        self._receiving_since = self.loop.time()
        self._began = time.perf_counter()
        if len(self.connections) > self.limits.max_connections:
            retry = [(b"retry-after", b"%d" % RETRY_AFTER_S)]
            self._refuse(
                503, "too_many_connections", "too many connections; try again later", retry
            )
        else:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        if self._timer:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes have come; counts those of a head."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("")
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_without_upgrade(data[upgrade.args[0] :])
        if self._in_head and self._begun:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                text = f"request line and headers must be at most {MAX_HEAD_BYTES} bytes together"
                self._refuse(431, "headers_too_large", text)

    def on_message_begin(self) -> None:
        """The parser has seen the first byte of a request."""
        super().on_message_begin()
        self._receiving_since = self.loop.time()
        self._began = time.perf_counter()
        self._begun = self._in_head = True
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._in_head = False
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The whole request is there."""
        if not self.parser.should_upgrade():
            self._receiving_since = None
            super().on_message_complete()

    def pause_writing(self) -> None:
        """The client takes less than is written."""
        self._stalled_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client has taken what was written."""
        self._stalled_since = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Not HTTP."""
        if not self.transport.is_closing():
            self._refuse(400, "invalid_http", "this is not an HTTP request")

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """Take the request as if no upgrade had been asked for (RFC 9110, section 7.8): Java's
        client asks for h2c. The parser has skipped the body, so it begins anew."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(405, "method_not_allowed", "this is no proxy")
            return
        lines = [b"%b %b HTTP/1.1" % (method, self.url)]
        lines += [b"%b: %b" % pair for pair in self.headers if pair[0] not in _UPGRADE_HEADERS]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join([*lines, b"", rest]))

    def _wait(self) -> None:
        period = min(5.0, self.limits.request_timeout_s / 4)
        self._timer = self.loop.call_later(period, self._check)

    def _check(self) -> None:
        now = self.loop.time()
        if self.transport.is_closing() and self._closing_since is None:
            self._closing_since = now
        if _longer(now, self._stalled_since, WRITE_STALL_S) or _longer(
            now, self._closing_since, WRITE_STALL_S
        ):
            self.transport.abort()
        elif not self._closing_since and _longer(
            now, self._receiving_since, self.limits.request_timeout_s
        ):
            self._time_out()
        self._wait()

    def _time_out(self) -> None:
        cycle: RequestResponseCycle | None = self.cycle
        busy = cycle is not None and cycle.response_started and not cycle.response_complete
        if busy or not self._begun:
            self.transport.close()
        else:
            seconds = f"{self.limits.request_timeout_s:g}"
            self._refuse(408, "timeout", f"the request did not arrive within {seconds} s")

    def _refuse(
        self, status: int, code: str, message: str, headers: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        # Of a request that is only half there something may be known already.
        name = request_id(self.headers or [])
        method = self.parser.get_method().decode("ascii") if self._begun and self.url else "-"
        path = self.url.partition(b"?")[0].decode("latin-1") if self._begun else ""
        self.transport.write(raw(status, code, message, name, headers))
        self.transport.close()
        seconds = time.perf_counter() - self._began
        self.record(method, path, status, seconds, name, self.client)


def _longer(now: float, since: float | None, seconds: float) -> bool:
    return since is not None and now - since > seconds


def protocol(limits: ConnectionLimits, record: Record) -> type[LimitedProtocol]:
    """The protocol class for uvicorn, which takes no arguments for it."""
    return type("Protocol", (LimitedProtocol,), {"limits": limits, "record": staticmethod(record)})

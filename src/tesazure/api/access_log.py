"""One JSON line per request on standard error."""

from __future__ import annotations

import time

import msgspec

from tesazure.api.lines import Lines
from tesazure.api.views import timestamp
from tesazure.callers import Caller

_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked for by machines every few seconds; logged only when they fail."""
_encode = msgspec.json.Encoder().encode


class AccessLog:
    """Query strings are left out: they may hold secrets. So are all headers."""

    def __init__(self, lines: Lines, enabled: bool) -> None:
        self._lines = lines
        self.enabled = enabled

    def write(
        self,
        method: str,
        path: str,
        status: int,
        seconds: float,
        request_id: bytes,
        client: tuple[str, int] | None,
        caller: Caller | None = None,
    ) -> None:
        """Note one request."""
        if not self.enabled or (path in _QUIET and status < 400):
            return
        self._lines.add(
            b'{"time":"%b","level":"info","event":"request","method":%b,"path":%b,"status":%d,'
            b'"ms":%.2f,"request_id":"%b","client":%b,"caller":%b}'
            % (
                timestamp(time.time()).encode("ascii"),
                _encode(method),
                _encode(path[:1000]),
                status,
                seconds * 1000,
                request_id,
                _encode(client and client[0]),
                _encode(caller and caller.name),
            )
        )

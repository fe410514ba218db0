"""One JSON line per request on standard error, gathered for a moment and written together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time

import msgspec

from tesazure.api.views import timestamp

_FLUSH_S = 0.05
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked for by machines every few seconds; logged only when they fail."""
_encode = msgspec.json.Encoder().encode


class AccessLog:
    """Writes to a file descriptor. Query strings are left out: they may hold secrets."""

    def __init__(self, descriptor: int, enabled: bool) -> None:
        self._descriptor = descriptor
        self._enabled = enabled
        self._lines: list[bytes] = []

    def write(
        self,
        method: str,
        path: str,
        status: int,
        seconds: float,
        request_id: bytes,
        client: tuple[str, int] | None,
    ) -> None:
        """Note one request."""
        if not self._enabled or (path in _QUIET and status < 400):
            return
        if not self._lines:
            asyncio.get_running_loop().call_later(_FLUSH_S, self.flush)
        self._lines.append(
            b'{"time":"%b","level":"info","event":"request","method":%b,"path":%b,"status":%d,'
            b'"ms":%.2f,"request_id":"%b","client":%b}'
            % (
                timestamp(time.time()).encode("ascii"),
                _encode(method),
                _encode(path[:1000]),
                status,
                seconds * 1000,
                request_id,
                _encode(client and client[0]),
            )
        )

    def flush(self) -> None:
        """Write what has been gathered."""
        lines, self._lines = self._lines, []
        if lines:
            with contextlib.suppress(OSError):  # a closed or full log must not fail requests
                os.write(self._descriptor, b"\n".join(lines) + b"\n")

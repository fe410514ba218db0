"""Lines for a log, gathered for a moment and written together."""

from __future__ import annotations

import asyncio
import contextlib
import os

_FLUSH_S = 0.05


class Lines:
    """Writes to a file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._gathered: list[bytes] = []

    def add(self, line: bytes) -> None:
        """Write a line, without its end, soon."""
        if not self._gathered:
            asyncio.get_running_loop().call_later(_FLUSH_S, self.flush)
        self._gathered.append(line)

    def flush(self) -> None:
        """Write what has been gathered."""
        lines, self._gathered = self._gathered, []
        if lines:
            with contextlib.suppress(OSError):  # a closed or full log must not fail requests
                os.write(self._descriptor, b"\n".join(lines) + b"\n")

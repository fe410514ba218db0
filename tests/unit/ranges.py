"""What the tests of objects in parts share: a server of ranges, sizes, patience."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from tesazure.storage.parts import PART
from tesazure.storage.patience import Patience
from tests.services.faulty_http import Handler

HASTY = Patience(
    attempts=8, connect_s=5, read_s=0.4, pause_s=0.005, longest_pause_s=0.02, retry_after_s=0.03
)
SIZE = 5 * PART + 12345


class Ranges:
    """Answers GETs with ranges of a file, as good servers do, and counts the bytes it sends.

    `before` is called with the handler and the first byte asked for, ahead of each answer; what it
    returns is how many bytes are sent before the connection is broken off, None for all of them.
    """

    def __init__(
        self,
        path: Path,
        before: Callable[[Handler, int], int | None] = lambda *_: None,
        **headers: str,
    ) -> None:
        self.path = path
        self.before = before
        self.headers = headers
        self.sent = 0
        self._lock = threading.Lock()

    def __call__(self, handler: Handler) -> None:
        size = self.path.stat().st_size
        start, _, last = handler.headers["Range"].removeprefix("bytes=").partition("-")
        length = min(int(last) + 1, size) - int(start)
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{int(start) + length - 1}/{size}")
        handler.send_header("Content-Length", str(length))
        for name, value in self.headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.flush()
        most = self.before(handler, int(start))
        left = length if most is None else min(most, length)
        offset = int(start)
        with self.path.open("rb") as file, contextlib.suppress(OSError):
            while left:
                sent = os.sendfile(handler.connection.fileno(), file.fileno(), offset, left)
                offset, left = offset + sent, left - sent
                with self._lock:
                    self.sent += sent
        if most is not None:
            handler.break_off()


def names(directory: Path) -> list[str]:
    """What is in a directory, sorted."""
    return sorted(place.name for place in directory.iterdir())

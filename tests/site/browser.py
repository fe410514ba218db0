"""Debian's Chromium without a window, led through its DevTools protocol over a pair of pipes."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.services import base

PATIENCE_S = 90.0
"""For whatever Chromium is asked, on a busy machine."""

FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
)
# Chromium reads commands from file 3 and writes to file 4.
_EXEC = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4);"
    " os.execv(sys.argv[3], sys.argv[3:])"
)


class Browser:
    """One tab. `requests` are the URLs that its pages have asked for."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self._loaded = 0
        self.requests: list[str] = []
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self._ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self._ask("Network.enable")
        self._ask("Page.enable")

    def size(self, width: int, height: int) -> None:
        """Of the page, in CSS pixels, each of them one pixel of a picture."""
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def open(self, url: str) -> None:
        """Go to a page and wait until it is loaded."""
        before = self._loaded
        self._ask("Page.navigate", url=url)
        deadline = time.monotonic() + PATIENCE_S
        while self._loaded == before:
            self._take(deadline)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is in the page."""
        reply = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    def until(self, expression: str) -> Any:
        """What an expression is once that is true; AssertionError if it never is."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := self.value(expression)):
            assert time.monotonic() < deadline, f"never: {expression}"
            time.sleep(0.05)
        return found

    def picture(self) -> bytes:
        """What is seen, as PNG."""
        return base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"])

    def _ask(self, method: str, **parameters: object) -> Any:
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE_S
        while True:
            reply = self._take(deadline)
            if reply.get("id") == self._number:
                assert "error" not in reply, (method, reply["error"])
                return reply["result"]

    def _take(self, deadline: float) -> dict[str, Any]:
        """The next message, whose news is noted."""
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], deadline - time.monotonic())
            assert ready, "Chromium does not answer"
            piece = os.read(self._answers, 1 << 20)
            assert piece, "Chromium has ended"
            self._buffer += piece
        first, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        if message.get("method") == "Page.loadEventFired":
            self._loaded += 1
        return message


@contextlib.contextmanager
def browser(home: Path) -> Iterator[Browser]:
    """A new Chromium with its files below `home`. Raises Unavailable if it is not installed."""
    program = base.require_program("chromium", "chromium")
    # It refuses to confine its processes for root; what it shows here is this project's own.
    flags = [*FLAGS, f"--user-data-dir={home / 'profile'}"]
    flags += ["--no-sandbox"] if os.geteuid() == 0 else []
    reads, commands = os.pipe()
    answers, writes = os.pipe()
    # Away from 3 and 4, which they become.
    given = [fcntl.fcntl(each, fcntl.F_DUPFD, 10) for each in (reads, writes)]
    with (home / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _EXEC, *map(str, given), program, *flags],
            pass_fds=given,
            env={**os.environ, "HOME": str(home)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    for each in (reads, writes, *given):
        os.close(each)
    try:
        yield Browser(commands, answers)
    finally:
        # Its end of the pipe closed, it ends by itself.
        os.close(commands)
        os.close(answers)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()

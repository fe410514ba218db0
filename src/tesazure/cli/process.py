"""A server of our own for a while: started as a process, found by what it prints, stopped again."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from tesazure.cli.client import TesClient
from tesazure.cli.exits import Code, Failure
from tesazure.settings import Client

START_S = 30.0
STOP_S = 15.0
_LISTENING = re.compile(r"listening on (http://\S+)")


class ServerProcess:
    """`tesazure serve` with the given flags, on a port that the system chooses.

    A context manager: `client` and `root` are there once it is ready. What it prints goes to `log`.
    """

    root: str
    client: TesClient

    def __init__(self, flags: list[str], log: Path) -> None:
        self._flags = flags
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ServerProcess:
        command = [sys.executable, "-m", "tesazure.cli.main", "serve", "--port", "0", *self._flags]
        with self._log.open("wb") as log:
            # Its own process group: Ctrl-C is for us, and we stop it in order.
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            deadline = time.monotonic() + START_S
            self.root = self._address(deadline)
            self.client = TesClient(Client(server=self.root))
            self._until_ready(deadline)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.client.close()
        self._stop()

    def _address(self, deadline: float) -> str:
        while True:
            text = self._log.read_text(errors="replace")
            found = _LISTENING.search(text)
            if found:
                return found[1].rstrip("/")
            self._check(deadline)
            time.sleep(0.02)

    def _until_ready(self, deadline: float) -> None:
        while True:
            ready, body, _ = self.client.readiness()
            if ready:
                return
            bad = [check for check in body.get("checks") or [] if not check.get("ok")]
            why = [
                f"{c.get('name')}: {c.get('detail', '')} {c.get('remedy', '')}".strip() for c in bad
            ]
            self._check(deadline, *why)
            time.sleep(0.1)

    def _check(self, deadline: float, *why: str) -> None:
        """Raises Failure when the server has died or has had its time."""
        assert self._process is not None  # noqa: S101 - started in __enter__
        code = self._process.poll()
        last = self._log.read_text(errors="replace").splitlines()[-15:]
        if code is not None:
            said = f"the server ended at once with exit code {code}; it said:"
            raise Failure(Code.UNREACHABLE, said, *last)
        if time.monotonic() > deadline:
            said = f"the server was not ready within {START_S:g} s; it said:"
            raise Failure(Code.UNREACHABLE, said, *why, *last)

    def _stop(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

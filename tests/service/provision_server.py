"""The server of `provision_site` as a process that can be killed and started again."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.service.provision_site import SECRET, Cloud

START_S = 60.0
SUBSCRIPTION = "0b1f6471-1bf0-4dda-aec3-111122223333"
PRINCIPAL = {
    "client_id": "0b1f6471-1bf0-4dda-aec3-cccccccccccc",
    "secret": SECRET,
    "tenant": "contoso.example",
}
OWN = {"subscription_id": SUBSCRIPTION}
BY_PRINCIPAL = {**OWN, "service_principal": PRINCIPAL}


class Server:
    """One process after the other, on one database and one cloud."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.cloud = Cloud(directory / "cloud")
        self.log = directory / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> httpx.Client:
        """Start it; a client for it."""
        port = self.directory / "one.port"
        port.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.service.provision_site"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, str(self.directory), "one"], stdout=log, stderr=log, env=dict(os.environ)
            )
        deadline = time.monotonic() + START_S
        while not (port.exists() and port.read_text()):
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        self.url = f"http://127.0.0.1:{port.read_text()}"
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def died(self) -> bool:
        """Whether it was killed."""
        return self._process is not None and self._process.poll() == -9

    def stop(self) -> None:
        """SIGTERM, or nothing if it died."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
            process.wait()


@contextlib.contextmanager
def provision_server(directory: Path) -> Iterator[Server]:
    """One that is not started yet."""
    server = Server(directory)
    try:
        yield server
    finally:
        server.stop()


def query(client: httpx.Client, guid: str) -> dict[str, Any]:
    """How far a run is."""
    reply = client.get(f"/provision/query/{guid}")
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def ended(client: httpx.Client, guid: str) -> dict[str, Any]:
    """The run, once it has ended."""
    deadline = time.monotonic() + 60
    while True:
        run = query(client, guid)
        if run["status"] in ("CREATED", "ERROR", "DELETED"):
            return run
        assert time.monotonic() < deadline, run
        time.sleep(0.02)

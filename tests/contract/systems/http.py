"""Plain web servers."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tesazure.storage.http import HttpStorage
from tesazure.storage.transport import Patience, Transport
from tesazure.storage.urls import join
from tests.conftest import shared
from tests.contract.systems import InDirectory, System
from tests.services.faulty_http import FaultyHttp
from tests.services.nginx import Nginx


class Http(System):
    """`http://`, on a server that takes PUT."""

    has_directories = False
    keeps_empty_directories = False

    def __init__(self, server: FaultyHttp, transport: Transport) -> None:
        self.server = server
        self.storage = HttpStorage(transport)

    @classmethod
    @contextlib.contextmanager
    def made(cls, tmp_path: Path) -> Iterator[Self]:
        transport = Transport(patience=Patience(attempts=2, pause_s=0.01))
        with FaultyHttp() as server, contextlib.closing(transport):
            yield cls(server, transport)

    def url(self, path: str) -> str:
        return join(self.server.url("/"), path)

    def plant(self, path: str, content: bytes) -> str:
        self.server.add(f"/{path}", content)
        return self.url(path)

    def planted(self, path: str) -> bytes | None:
        served = self.server.objects.get(f"/{path}")
        return served.content if served else None


class RealWebServer(InDirectory):
    """`http://`, on nginx with WebDAV's PUT; each test has a directory of its own there."""

    has_directories = False
    keeps_empty_directories = False

    def __init__(self, server: Nginx, transport: Transport) -> None:
        self.root = server.files / uuid.uuid4().hex
        self._server = server
        self.storage = HttpStorage(transport)

    @classmethod
    @contextlib.contextmanager
    def made(cls, tmp_path: Path) -> Iterator[Self]:
        transport = Transport(patience=Patience(attempts=2, pause_s=0.01))
        with contextlib.closing(transport):
            yield cls(shared(Nginx), transport)

    def url(self, path: str) -> str:
        return join(f"{self._server.origin}/{self.root.name}", path)


SYSTEMS = {"http": Http, "nginx": RealWebServer}

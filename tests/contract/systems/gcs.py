"""Google Cloud Storage, on a stand-in that checks tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tesazure.storage.gcs import GcsStorage
from tesazure.storage.transport import Transport
from tests.contract.systems import System
from tests.services.gcs_server import TOKEN, GcsServer


class Gcs(System):
    """gs:// URLs."""

    can_select = True

    def __init__(self, server: GcsServer, transport: Transport) -> None:
        self.server = server
        self.bucket = server.bucket()
        self.storage = GcsStorage(transport, server.endpoints, TOKEN, page=3)

    @classmethod
    @contextlib.contextmanager
    def made(cls, tmp_path: Path) -> Iterator[Self]:
        with contextlib.closing(Transport()) as transport, GcsServer() as server:
            yield cls(server, transport)

    def url(self, path: str) -> str:
        return f"gs://{self.bucket}/{path}"

    def plant(self, path: str, content: bytes) -> str:
        self.server.plant(self.bucket, path, content)
        return self.url(path)

    def planted(self, path: str) -> bytes | None:
        held = self.server.buckets[self.bucket].get(path)
        return held.content if held else None


SYSTEMS = {"gcs": Gcs}

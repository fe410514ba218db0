"""Amazon S3: Moto, behind a check of signatures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tesazure.storage.s3 import S3Storage
from tesazure.storage.transport import Transport
from tests.conftest import shared
from tests.contract.systems import System
from tests.services.s3_server import S3Server


class S3(System):
    """s3:// URLs of a bucket of the test's own."""

    can_select = True

    def __init__(self, server: S3Server, transport: Transport) -> None:
        self.server = server
        self.bucket = server.bucket()
        self.storage = S3Storage(transport, server.endpoints, server.key, page=3)

    @classmethod
    @contextlib.contextmanager
    def made(cls, tmp_path: Path) -> Iterator[Self]:
        server = shared(S3Server)
        with contextlib.closing(Transport()) as transport:
            yield cls(server, transport)

    def url(self, path: str) -> str:
        return f"s3://{self.bucket}/{path}"

    def plant(self, path: str, content: bytes) -> str:
        self.server.plant(self.bucket, path, content)
        return self.url(path)

    def planted(self, path: str) -> bytes | None:
        return self.server.planted(self.bucket, path)


SYSTEMS = {"s3": S3}

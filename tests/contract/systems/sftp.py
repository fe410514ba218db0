"""SFTP servers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Self

from tesazure.storage.patience import Patience
from tesazure.storage.sftp import SftpStorage
from tesazure.storage.urls import join
from tests.conftest import shared
from tests.contract.systems import InDirectory
from tests.services.sftp_server import SftpServer


class Sftp(InDirectory):
    """`sftp://` with a private key, on OpenSSH's server."""

    query: ClassVar[str] = ""

    def __init__(self, server: SftpServer, root: Path) -> None:
        self.root = root
        self._top = f"sftp://{server.user}@127.0.0.1:{server.port}{root.as_uri()[7:]}"
        self.storage = SftpStorage(
            server.key, server.known_hosts(), patience=Patience(attempts=2, pause_s=0.01)
        )

    @classmethod
    @contextlib.contextmanager
    def made(cls, tmp_path: Path) -> Iterator[Self]:
        root = tmp_path / "served"
        root.mkdir()
        system = cls(shared(SftpServer), root)
        yield system
        system.storage.close()

    def url(self, path: str) -> str:
        return join(self._top, path)


SYSTEMS = {"sftp": Sftp}

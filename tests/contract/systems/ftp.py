"""FTP servers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Self
from urllib.parse import quote

from tesazure.storage.ftp import FtpStorage
from tesazure.storage.patience import Patience
from tesazure.storage.urls import join
from tests.contract.systems import InDirectory
from tests.services.ftp_server import PASSWORD, USER, FtpServer


class Ftp(InDirectory):
    """`ftp://`, as a user with a password, in the user's home."""

    query: ClassVar[str] = ""
    without: ClassVar[tuple[str, ...]] = ()
    """Commands that the server does not know."""

    def __init__(self, server: FtpServer) -> None:
        self.server, self.root = server, server.root
        self.storage = FtpStorage(patience=Patience(attempts=2, pause_s=0.01))

    @classmethod
    @contextlib.contextmanager
    def made(cls, tmp_path: Path) -> Iterator[Self]:
        root = tmp_path / "served"
        root.mkdir()
        with FtpServer(root, without=cls.without) as server:
            system = cls(server)
            yield system
            system.storage.close()

    def url(self, path: str) -> str:
        return join(self.server.url(user=f"{USER}:{quote(PASSWORD, safe='')}"), path)


class OldFtp(Ftp):
    """The same on a server that knows RFC 959 and SIZE alone."""

    without: ClassVar[tuple[str, ...]] = ("MLST", "MLSD")


SYSTEMS = {"ftp": Ftp, "old_ftp": OldFtp}

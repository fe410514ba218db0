"""An FTP server with a directory of its own, and the storage that talks to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tesazure.storage.ftp import FtpStorage
from tesazure.storage.patience import Patience
from tests.services.ftp_server import FtpServer

QUICK = Patience(attempts=4, pause_s=0.001, read_s=5, progress_bytes=10_000)
SIZE = 3_000_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "served"
    directory.mkdir()
    return directory


@pytest.fixture
def server(root: Path) -> Iterator[FtpServer]:
    with FtpServer(root) as server:
        yield server


@pytest.fixture
def storage() -> Iterator[FtpStorage]:
    storage = FtpStorage(patience=QUICK)
    yield storage
    storage.close()

"""A Batch account whose tasks run until they are ended, and an installation on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.service.batch_pools.pool_site import Site, until_killed
from tests.services.batch_server import BatchServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BatchServer]:
    with BatchServer(tmp_path / "batch", simulation=until_killed) as b:
        yield b


@pytest.fixture
async def site(server: BatchServer, tmp_path: Path) -> AsyncIterator[Site]:
    found = Site(server, tmp_path)
    yield found
    await found.close()

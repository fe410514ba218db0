"""What the tests of runners share, and those of Azure Batch."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tesazure.backends.azure_batch.backend import AzureBatchBackend
from tests.conftest import refuse, shared
from tests.contract.backend_site import BatchSite
from tests.service.runner_bench import RunnerBench, open_bench
from tests.services import base
from tests.services.azurite import Azurite
from tests.services.batch_lab import batch_lab


@pytest.fixture(scope="module")
def bench() -> Iterator[RunnerBench]:
    """A directory and a spawner for the attempts of one module."""
    with open_bench() as bench:
        yield bench


@pytest.fixture
def marker() -> str:
    """An argument of `sleep` that no other process has."""
    return f"1000{secrets.randbelow(10**9)}"


@pytest.fixture
async def site(short_dir: Path) -> AsyncIterator[BatchSite]:
    """A Batch account and servers on it, whose nodes run sandboxes."""
    try:
        base.require_program("bwrap", "bubblewrap")
    except base.Unavailable as error:
        refuse(str(error))
    with batch_lab(short_dir / "batch", shared(Azurite)) as lab:
        site = BatchSite(short_dir, lab)
        yield site
        await site.close()


@pytest.fixture
async def backend(site: BatchSite) -> AzureBatchBackend:
    return await site.server()

"""What the tests of runners, of the API, of storage and of Azure share."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from tesazure.backends.azure_batch.backend import AzureBatchBackend
from tests.conftest import need_sandbox, shared
from tests.contract.backend_site import BatchSite
from tests.service.azure_subscription import Subscription, subscription
from tests.service.provision_site import Installation
from tests.service.runner_bench import RunnerBench, open_bench
from tests.service.server import OLD, TES, RunningServer
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
def client(server: RunningServer) -> Iterator[httpx.Client]:
    """Of the server of a module."""
    with server.client() as opened:
        yield opened


@pytest.fixture(params=[TES, OLD])
def prefix(request: pytest.FixtureRequest) -> str:
    """Where the API is: as the standard has it, and as it was."""
    return str(request.param)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """To be stored."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return path


@pytest.fixture
async def site(short_dir: Path) -> AsyncIterator[BatchSite]:
    """A Batch account and servers on it, whose nodes run sandboxes."""
    need_sandbox()
    with batch_lab(short_dir / "batch", shared(Azurite)) as lab:
        site = BatchSite(short_dir, lab)
        yield site
        await site.close()


@pytest.fixture
async def backend(site: BatchSite) -> AzureBatchBackend:
    return await site.server()


@pytest.fixture
def azure(tmp_path: Path) -> Iterator[Subscription]:
    """An empty subscription."""
    with subscription(tmp_path) as found:
        yield found


@pytest.fixture
def used(azure: Subscription) -> Subscription:
    """A subscription that has had such resources before, so that Azure says all of names."""
    azure.cloud.register("Microsoft.Storage", "Microsoft.Batch", "Microsoft.ContainerRegistry")
    return azure


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Installation]:
    """Servers of the provisioner, on each database."""
    url = "" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    installation = Installation(tmp_path, url)
    yield installation
    await installation.close()

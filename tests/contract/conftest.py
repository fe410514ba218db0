"""What the suites of the Store and of the Backend Protocol share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tesazure.backends.base import Backend
from tesazure.store.sql_store import SqlStore
from tests.conftest import need_sandbox, shared
from tests.contract.backend_site import BatchSite, LocalSite, Site, TracedSite
from tests.contract.store_tasks import Place
from tests.services.azurite import Azurite
from tests.services.batch_lab import BatchLab, batch_lab

ONE_BY_ONE = pytest.mark.xdist_group("backend-docker")
"""Attempts of different tests have the same keys, which one engine takes for the same attempts."""
IN_SANDBOXES = pytest.mark.xdist_group("attempt-keys")
"""The same of sandboxes, which nodes of Azure Batch have in these tests, too."""
ENGINES = [
    pytest.param("sandbox", marks=IN_SANDBOXES),
    pytest.param("docker", marks=[pytest.mark.docker, ONE_BY_ONE]),
]


DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]


@pytest.fixture(params=DATABASES)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    """Each database."""
    url = "" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    found = Place(url, tmp_path / "tesazure.db")
    yield found
    await found.close()


@pytest.fixture
async def store(place: Place) -> SqlStore:
    return await place.open()


@pytest.fixture(
    params=[*ENGINES, *(pytest.param(kind, marks=IN_SANDBOXES) for kind in ("traced", "batch"))]
)
async def site(request: pytest.FixtureRequest, short_dir: Path) -> AsyncIterator[Site]:
    """Each backend, the local one with each engine, and one that is traced."""
    site: Site
    if request.param == "traced":
        need_sandbox()
        site = TracedSite(short_dir)
    elif request.param == "batch":
        site = BatchSite(short_dir, request.getfixturevalue("batch_account"))
    else:
        site = local_site(request, short_dir)
    yield site
    await site.close()


@pytest.fixture
async def backend(site: Site) -> Backend:
    return await site.server()


@pytest.fixture
def batch_account(short_dir: Path) -> Iterator[BatchLab]:
    """A Batch account with its storage."""
    need_sandbox()
    with batch_lab(short_dir / "batch", shared(Azurite)) as lab:
        yield lab


def local_site(request: pytest.FixtureRequest, directory: Path) -> LocalSite:
    """A site with the engine that the test's parameter names."""
    host = image = ""
    if request.param == "docker":
        host = request.getfixturevalue("docker_engine").url
        image = request.getfixturevalue("busybox_image")
    else:
        need_sandbox()
    return LocalSite(directory, request.param, host, image or "unused")

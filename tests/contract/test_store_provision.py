"""What every Store promises of the provisioner's runs, on each database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tesazure.errors import StaleVersion
from tesazure.provisioning import Request, Run, StepRecord
from tesazure.store.sql_store import SqlStore
from tests.contract.store_tasks import Place
from tests.contract.test_store import DATABASES


@pytest.fixture(params=DATABASES)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    url = "" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    found = Place(url, tmp_path / "tesazure.db")
    yield found
    await found.close()


@pytest.fixture
async def store(place: Place) -> SqlStore:
    return await place.open()


def run(name: str = "a", created: float = 1.5) -> Run:
    request = Request(subscription_id="s", tags={"größe": "\x00"})
    steps = [StepRecord(name="group", title="The group", resource_id="/x")]
    return Run(
        id=name, fingerprint="f", request=request, steps=steps, created=created, updated=created
    )


async def test_a_run_comes_back_as_it_was_kept(store: SqlStore, place: Place) -> None:
    assert await store.provision_run("a") is None
    assert await store.provision_runs() == []
    assert await store.put_provision_run(run(), 0, 60) == 1
    for each in (store, await place.open()):
        found = await each.provision_run("a")
        assert found is not None
        assert (found.run, found.version, found.held) == (run(), 1, True)


async def test_writes_are_compare_and_set(store: SqlStore) -> None:
    for wrong in (1, 7):
        with pytest.raises(StaleVersion):
            await store.put_provision_run(run(), wrong, 60)
    version = await store.put_provision_run(run(), 0, 60)
    with pytest.raises(StaleVersion):
        await store.put_provision_run(run(), 0, 60)
    changed = msgspec.structs.replace(run(), state="ERROR", note="n")
    assert await store.put_provision_run(changed, version, 0) == version + 1
    with pytest.raises(StaleVersion):
        await store.put_provision_run(run(), version, 60)
    found = await store.provision_run("a")
    assert found is not None
    assert (found.run, found.version, found.held) == (changed, version + 1, False)


async def test_of_many_who_begin_one_wins(place: Place) -> None:
    stores = [await place.open() for _ in range(2)]
    tries = [store.put_provision_run(run(), 0, 60) for store in stores for _ in range(5)]
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    assert [o for o in outcomes if not isinstance(o, StaleVersion)] == [1]


async def test_a_lease_ends_by_itself(store: SqlStore) -> None:
    await store.put_provision_run(run(), 0, 0.2)
    async with asyncio.timeout(30):
        while True:
            found = await store.provision_run("a")
            assert found is not None
            if not found.held:
                return
            await asyncio.sleep(0.01)


async def test_runs_are_listed_the_newest_first(store: SqlStore) -> None:
    for name, created in (("b", 2.0), ("c", 9.0), ("a", 2.0)):
        await store.put_provision_run(run(name, created), 0, 0)
    assert [stored.run.id for stored in await store.provision_runs()] == ["c", "a", "b"]

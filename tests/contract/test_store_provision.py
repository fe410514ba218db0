"""What every Store promises of the provisioner's runs, on each database."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from tesazure.errors import Conflict, StaleVersion
from tesazure.provisioning import Request, Run, StepRecord
from tesazure.store.sql_store import SqlStore
from tests.contract.store_tasks import Place


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


def named(name: str, **names: str) -> Run:
    request = Request(subscription_id="s", **names)  # type: ignore[arg-type]
    return msgspec.structs.replace(run(name), request=request)


@pytest.mark.parametrize(
    "kind", ["resource_group", "storage_account_name", "batch_account_name", "registry"]
)
async def test_one_run_at_a_time_has_a_name(store: SqlStore, place: Place, kind: str) -> None:
    """Whoever began it, and until it has ended, however long it is left alone."""
    version = await store.put_provision_run(named("a", **{kind: "labA"}), 0, 0)
    other = named("b", **{kind: "LABa"})
    for each in (store, await place.open()):
        with pytest.raises(Conflict, match="run a is under way"):
            await each.put_provision_run(other, 0, 60)
    assert await store.provision_run("b") is None
    free = named("c", **dict.fromkeys(("storage_account_name", "registry"), "free"))
    assert await store.put_provision_run(free, 0, 60) == 1
    a = msgspec.structs.replace(named("a", **{kind: "labA"}), state="CREATED")
    version = await store.put_provision_run(a, version, 0)
    assert await store.put_provision_run(other, 0, 60) == 1
    # Not even the one that had it before; what has ended may be written meanwhile.
    with pytest.raises(Conflict, match="run b is under way"):
        await store.put_provision_run(msgspec.structs.replace(a, state="DELETING"), version, 60)
    assert await store.put_provision_run(a, version, 0) == version + 1
    assert await store.put_provision_run(other, 1, 60) == 2


async def test_of_many_who_begin_with_one_name_one_wins(place: Place) -> None:
    stores = [await place.open() for _ in range(2)]
    tries = [
        store.put_provision_run(named(f"{index}{number}", batch_account_name="x"), 0, 60)
        for index, store in enumerate(stores)
        for number in range(5)
    ]
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    assert [o for o in outcomes if not isinstance(o, Conflict)] == [1]


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

"""Stations in the test's own process: what is left of former ones, and of those never used."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tesazure.backends import local_machine
from tesazure.backends.azure_batch.names import installation_of, scope_of
from tesazure.budgets import Budgets
from tesazure.errors import ConfigurationError, NotFound
from tesazure.grants import Threads
from tesazure.home import Home
from tesazure.sealing import KEY_BYTES, Seal
from tesazure.settings import Settings
from tesazure.stations.station import Footing, Station
from tesazure.stations.switching import Stations
from tesazure.store.sql_store import open_store
from tests.conftest import shared
from tests.contract.store_tasks import finished, placed
from tests.service.assembly import eventually
from tests.service.test_backend_switch import batch_settings
from tests.services.azurite import Azurite
from tests.services.batch_lab import BatchLab, batch_lab

GONE = "nothing is left of what ran on "


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[BatchLab]:
    with batch_lab(tmp_path / "batch", shared(Azurite)) as running:
        yield running


@contextlib.asynccontextmanager
async def stations(directory: Path, begin: Settings) -> AsyncIterator[Stations]:
    """Those of a server that keeps former ones for a moment."""
    home = directory / "home"
    home.mkdir(exist_ok=True)
    store = await open_store("", home / "tesazure.db")
    seal = Seal([bytes(KEY_BYTES)])
    at = Home(home, "server", 0.0)
    footing = Footing(store, await store.identity(), seal, at, Budgets(), Threads())
    made = Stations(footing, look_s=0.02, kept_s=0.1)
    try:
        await made.start(begin)
        yield made
    finally:
        await made.stop()
        await made.stop()
        await store.close()


def here(**more: Any) -> Settings:
    return Settings(local_engine="sandbox", **more)


def there(lab: BatchLab, **more: Any) -> Settings:
    given = {"compute_backend": "batch", "batch_pool_idle_min": 0, **batch_settings(lab), **more}
    return here(**given)


async def switched(to: Stations, settings: Settings) -> Station:
    async with to.changing(settings):
        pass
    return to.current


async def test_former_stations_end_when_nothing_is_left(
    tmp_path: Path, lab: BatchLab, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tesazure")
    async with stations(tmp_path, here()) as made:
        first = made.current
        scope = first.scope
        second = await switched(made, there(lab))
        assert made.current is second
        assert made.backend_of(scope) is first.backend
        await eventually(lambda: f"{GONE}a server's own machine" in caplog.text)
        with pytest.raises(NotFound, match="it ran on a server's own machine"):
            made.backend_of(scope)
        # And back: this machine has a backend again.
        third = await switched(made, here())
        assert made.backend_of(scope) is third.backend
        assert made.backend_of(None) is third.backend
        await eventually(lambda: f"{GONE}Azure Batch" in caplog.text)


async def test_this_machine_has_one_backend_however_often_it_is_used(
    tmp_path: Path, lab: BatchLab
) -> None:
    async with stations(tmp_path, here()) as made:
        made._kept_s = 600
        first = made.current
        await switched(made, there(lab))
        again = await switched(made, here(s3_endpoint_url="http://127.0.0.1:9"))
        assert again.backend is first.backend
        assert first.local is not None
        assert first.local.endpoints.s3 == "http://127.0.0.1:9"
        assert (await first.backend.check())[0].ok


async def test_what_is_made_ready_and_not_used_leaves_nothing(
    tmp_path: Path, lab: BatchLab
) -> None:
    async with stations(tmp_path, here()) as made:
        before = made.current
        signed = before.grants.granter
        for settings in (
            there(lab),
            here(s3_region="eu-west-1"),
            here(s3_access_key_id="a", s3_secret_access_key="b"),
        ):
            with pytest.raises(ConfigurationError, match="a sign-in that cannot be"):
                async with made.changing(settings):
                    assert made.current is before
                    raise ConfigurationError(["a sign-in that cannot be"])
        with pytest.raises(ConfigurationError, match="batch account"):
            await switched(made, there(lab, batch_account_key="d3Jvbmc="))
        assert made.current is before
        assert made.current.grants.granter is signed
        assert (await made.current.backend.check())[0].ok
        # Credentials alone make no other station.
        assert await switched(made, here(s3_access_key_id="a", s3_secret_access_key="b")) is before
        assert made.current.grants.granter is not signed


async def test_who_is_cancelled_in_a_switch_has_it_ended(tmp_path: Path, lab: BatchLab) -> None:
    """Half a switch would leave tasks that nobody looks after."""
    async with stations(tmp_path, here()) as made:
        first, inside = made.current, asyncio.Event()

        async def switch() -> None:
            async with made.changing(here(s3_region="eu-west-1")):
                inside.set()

        switching = asyncio.create_task(switch())
        await inside.wait()
        switching.cancel()
        # Wherever that met it, either all of it has happened or nothing.
        await asyncio.gather(switching, return_exceptions=True)
        assert first.scheduler is not None
        assert made.current.scheduler is not None
        assert bool(made.current.scheduler._loops)
        assert bool(first.scheduler._loops) == (made.current is first)


async def test_a_former_backend_is_not_ended_while_it_is_made_the_current_one(
    tmp_path: Path, lab: BatchLab
) -> None:
    async with stations(tmp_path, here()) as made:
        first = made.current
        made._kept_s = 600
        await switched(made, there(lab))
        async with made.changing(here()):
            made._kept_s = 0
            await asyncio.sleep(10 * made._look_s)
        assert made.current.backend is first.backend
        assert (await first.backend.check())[0].ok
        assert first.backend.capabilities.name == "local"


async def test_what_runs_where_no_setting_leads_is_told_at_the_start(
    tmp_path: Path, lab: BatchLab, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "home").mkdir()
    store = await open_store("", tmp_path / "home" / "tesazure.db")
    installation = installation_of(await store.identity())
    for account in ("former", lab.batch.account):
        await placed(store, scope=scope_of(account, installation))
    await placed(store, scope="another machine")
    await store.close()
    async with stations(tmp_path, there(lab)):
        [told] = [each.getMessage() for each in caplog.records if "no setting leads" in each.msg]
    assert told.startswith("attempts of tasks in the Batch account former")
    assert "any more: 1; " in told
    assert "BATCH_ACCOUNT_NAME=former" in told


async def test_what_cannot_be_opened_at_the_start_is_tried_again(
    tmp_path: Path, lab: BatchLab, caplog: pytest.LogCaptureFixture
) -> None:
    """What ran here, and in an account that the settings still name."""
    caplog.set_level(logging.INFO, "tesazure")
    (tmp_path / "home").mkdir()
    store = await open_store("", tmp_path / "home" / "tesazure.db")
    local = local_machine.node_name()
    batch = scope_of(lab.batch.account, installation_of(await store.identity()))
    for scope in (local, batch):
        await finished(store, scope=scope)
    await store.close()
    blocked = tmp_path / "blocked"
    blocked.touch()
    async with stations(tmp_path, there(lab, shared_global_dir=str(blocked / "shared"))) as made:
        await eventually(lambda: "server's own machine cannot be looked after yet" in caplog.text)
        with pytest.raises(NotFound):
            made.backend_of(local)
        blocked.unlink()
        await eventually(lambda: any(each.scope == local for each in made._all()))
        assert made.backend_of(local).capabilities.name == "local"
        assert caplog.text.count("cannot be looked after yet") == 1
        assert made.current.backend.capabilities.name == "batch"
    async with stations(tmp_path, there(lab, compute_backend="local")) as made:
        assert made.current.backend.capabilities.name == "local"
        assert made.backend_of(batch).capabilities.name == "batch"

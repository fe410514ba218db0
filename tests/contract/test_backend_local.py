"""What is the local backend's own: the machine, its engine and disk, the attempts' directories."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tesazure.backends import local
from tesazure.backends.local import LocalBackend
from tesazure.errors import ConfigurationError, Unplaceable
from tesazure.lifecycle import Handle, Phase
from tesazure.report import Said, encode
from tesazure.runner.config import NodeConfig
from tests.contract.backend_site import LocalSite, complete, ended, look, sleeper, until
from tests.contract.conftest import ENGINES, local_site


@pytest.fixture(params=ENGINES)
async def site(request: pytest.FixtureRequest, short_dir: Path) -> AsyncIterator[LocalSite]:
    site = local_site(request, short_dir)
    yield site
    await site.close()


@pytest.fixture
async def backend(site: LocalSite) -> LocalBackend:
    return await site.server()


async def test_the_machine_is_the_capacity(backend: LocalBackend, site: LocalSite) -> None:
    first = backend.capabilities
    await backend.start()
    assert backend.capabilities == first
    assert first.engine == site.engine
    assert first.capacity is not None
    assert first.capacity.cpu_cores > 0
    assert (local.SANDBOX_WARNING in first.warnings) == (site.engine == "sandbox")
    assert (await site.server("two")).capabilities.scope == first.scope


async def test_engine_directory_and_disk_are_checked(backend: LocalBackend) -> None:
    assert [(check.name, check.ok) for check in await backend.check()] == [
        ("engine", True),
        ("work directory", True),
        ("disk", True),
    ]


async def test_a_vanished_engine_is_named_with_a_remedy(site: LocalSite) -> None:
    site.engine, site.host = "docker", f"unix://{site.directory}/nobody.sock"
    with pytest.raises(ConfigurationError, match=r"nobody\.sock"):
        await site.server("lost")
    site.engine = "auto"


async def test_plans_larger_than_the_machine_are_refused(
    backend: LocalBackend, site: LocalSite
) -> None:
    backend.admit(site.plan("true", cpu_cores=0.5))
    with pytest.raises(Unplaceable, match="needs 100000 cores, this machine has"):
        backend.admit(site.plan("true", cpu_cores=100_000))
    with pytest.raises(Unplaceable, match="memory"):
        backend.admit(site.plan("true", ram_gb=10**6))
    with pytest.raises(Unplaceable, match="disk"):
        backend.admit(site.plan("true", disk_gb=10**8))


async def test_there_is_never_more_room_than_capacity(backend: LocalBackend) -> None:
    capacity = backend.capabilities.capacity
    assert capacity is not None
    for closely in (False, True):
        room = await backend.room(closely)
        assert room is not None
        assert 0 < room.disk_bytes <= capacity.disk_bytes
        assert (room.cpu_cores, room.ram_bytes) == (capacity.cpu_cores, capacity.ram_bytes)


async def test_one_that_cannot_be_looked_at_hides_no_other(
    backend: LocalBackend, site: LocalSite
) -> None:
    good = await site.submit(backend, "true", "k1")
    bad = await site.submit(backend, "true", "k2")
    await ended(backend, good)
    await ended(backend, bad)
    report = Path(bad["dir"]) / "report.jsonl"
    aside = report.rename(report.with_name("aside"))
    report.mkdir()
    other = await site.server("two")
    handles: dict[str, Handle] = {"k2": bad, "k3": {"dir": "/etc"}, "k4": {}, "k1": good}
    seen = await other.observe(handles)
    assert seen.keys() == {"k1"}
    report.rmdir()
    aside.rename(report)
    assert (await other.observe({"k2": bad}))["k2"].report.ended is not None


async def test_a_long_report_is_adopted_beside_the_event_loop(
    backend: LocalBackend, site: LocalSite
) -> None:
    handle = await site.submit(backend, "true", "k1")
    await ended(backend, handle)
    line = encode(Said(time="2026-01-01T00:00:00.000000Z", message="x" * 1000))
    for lines, beside in ((0, False), (1000, True)):
        with (Path(handle["dir"]) / "report.jsonl").open("ab") as report:
            report.write(line * lines)
        turns: list[int] = []
        other = await site.server(f"reads{lines}")
        asyncio.get_running_loop().call_soon(turns.append, 1)
        seen = (await other.observe({"k1": handle}))["k1"]
        assert bool(turns) is beside
        assert seen.report.events > lines
        assert seen.report.ended is not None


async def test_a_dead_spawner_is_replaced(backend: LocalBackend, site: LocalSite) -> None:
    pid = backend._spawner.pid
    assert pid is not None
    stays = await site.submit(backend, sleeper("stays"), "stays")
    os.kill(pid, signal.SIGKILL)
    await until(lambda: backend._spawner.pid is None)
    handle = await site.submit(backend, "true", "k")
    await complete(backend, handle)
    assert (await look(backend, stays)).phase in (Phase.RUNNING, Phase.PENDING)


async def test_tasks_are_kept_out_of_all_servers_data(site: LocalSite) -> None:
    one, two = await site.server("one"), await site.server("two")
    handle = await site.submit(two, "true", "k")
    node = msgspec.json.decode((Path(handle["dir"]) / "node.json").read_bytes(), type=NodeConfig)
    assert set(node.hidden) == {str(site.directory / name) for name in ("one", "two")}
    assert set(one.data_dirs()) == set(two.data_dirs()) == set(node.hidden)
    await ended(two, handle)


async def test_a_shared_directory_that_others_can_enter_is_warned_of(site: LocalSite) -> None:
    """A task of root can leave a setuid program there."""
    open_to_all = (await site.server("one")).capabilities.warnings
    assert any(str(site.marks) in warning and "setuid" in warning for warning in open_to_all)
    site.directory.chmod(0o700)
    closed = (await site.server("two")).capabilities.warnings
    assert not any("setuid" in warning for warning in closed)

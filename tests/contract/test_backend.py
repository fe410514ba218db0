"""What every Backend promises of attempts, asked of each implementation with real processes and
containers."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from tesazure.access import Access
from tesazure.backends import local
from tesazure.backends.local import LocalBackend
from tesazure.errors import ConfigurationError, NotFound, Unplaceable
from tesazure.lifecycle import Handle, Phase
from tesazure.model import State
from tesazure.report import Said, encode
from tests.contract.backend_site import (
    DEADLINE_S,
    MARKS,
    Site,
    ended,
    files,
    look,
    runner_of,
    runs,
    seconds,
    sleeper,
    until,
)

# -- start, stop, capabilities ------------------------------------------------------------------


async def test_capabilities_are_constant(backend: LocalBackend, site: Site) -> None:
    first = backend.capabilities
    await backend.start()
    assert backend.capabilities == first
    assert first.engine == site.engine
    assert first.capacity is not None
    assert first.capacity.cpu_cores > 0
    assert (local.SANDBOX_WARNING in first.warnings) == (site.engine == "sandbox")
    assert (await site.server("two")).capabilities.scope == first.scope


async def test_stop_may_be_called_twice(backend: LocalBackend) -> None:
    await backend.stop()
    await backend.stop()


async def test_a_healthy_backend_says_so(backend: LocalBackend) -> None:
    assert [(check.name, check.ok) for check in await backend.check()] == [
        ("engine", True),
        ("work directory", True),
        ("disk", True),
    ]


async def test_a_vanished_engine_is_named_with_a_remedy(site: Site) -> None:
    site.engine, site.host = "docker", f"unix://{site.directory}/nobody.sock"
    with pytest.raises(ConfigurationError, match=r"nobody\.sock"):
        await site.server("lost")
    site.engine = "auto"


async def test_plans_larger_than_the_machine_are_refused(backend: LocalBackend, site: Site) -> None:
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


# -- submit, find, observe ----------------------------------------------------------------------


async def test_an_attempt_runs_to_its_end(backend: LocalBackend, site: Site) -> None:
    handle = await site.submit(backend, "echo out; echo err >&2; exit 3", "k1")
    seen = await ended(backend, handle)
    assert seen.phase is Phase.EXITED
    assert seen.report.ended is not None
    assert seen.report.ended.state is State.EXECUTOR_ERROR
    [executor] = seen.report.log.logs
    assert (executor.stdout, executor.stderr, executor.exit_code) == ("out\n", "err\n", 3)
    assert seen.report.log.start_time
    assert seen.report.log.end_time


async def test_one_key_runs_once(backend: LocalBackend, site: Site) -> None:
    script = f"echo ran >> {MARKS}/once; sleep 0.2"
    plan = site.plan(script)
    handles = await asyncio.gather(*[backend.submit(plan, "once", Access()) for _ in range(8)])
    site.submitted.append((backend, handles[0]))
    assert all(handle == handles[0] for handle in handles)
    seen = await ended(backend, handles[0])
    assert seen.report.ended is not None
    assert await backend.submit(plan, "once", Access()) == handles[0]
    await backend.release(handles[0])
    assert await backend.submit(plan, "once", Access()) == handles[0]
    assert (await ended(backend, handles[0])).phase is Phase.EXITED
    assert site.mark("once") == "ran\n"


async def test_one_key_runs_once_on_all_servers_of_a_scope(site: Site) -> None:
    one, two = await site.server("one"), await site.server("two")
    plan = site.plan(f"echo ran >> {MARKS}/once")
    handles = await asyncio.gather(
        *[server.submit(plan, "once", Access()) for server in (one, two) * 4]
    )
    site.submitted.append((one, handles[0]))
    assert all(handle == handles[0] for handle in handles)
    await ended(two, handles[0])
    assert site.mark("once") == "ran\n"


async def test_find_gives_what_submit_began(site: Site) -> None:
    one, two = await site.server("one"), await site.server("two")
    handle = await site.submit(one, "true", "k")
    assert await one.find("k") == handle
    assert await two.find("k") == handle


async def test_what_was_looked_for_in_vain_never_begins(site: Site) -> None:
    one, two = await site.server("one"), await site.server("two")
    found = await two.find("late")
    handle = await one.submit(site.plan(f"echo ran > {MARKS}/late"), "late", Access())
    assert handle == found
    assert (await look(one, handle)).phase is Phase.EXITED
    await one.release(handle)
    assert site.mark("late") == ""


async def test_observe_has_an_entry_for_each_handle(backend: LocalBackend, site: Site) -> None:
    ends = await site.submit(backend, "true", "ends")
    stays = await site.submit(backend, sleeper("stays"), "stays")
    gone = {"dir": str(site.directory / "one/attempts/gone"), "node": "n"}

    async def stays_runs() -> bool:  # a container may write before its runner says that it runs
        return (await look(backend, stays)).report.executor_started

    await until(stays_runs)
    await ended(backend, ends)
    seen = await backend.observe({"ends": ends, "stays": stays, "gone": gone})
    assert {key: one.phase for key, one in seen.items()} == {
        "ends": Phase.EXITED,
        "stays": Phase.RUNNING,
        "gone": Phase.MISSING,
    }
    assert seen["gone"].reason
    assert seen["stays"].report.executor_started
    assert await backend.observe({}) == {}


async def test_one_that_cannot_be_looked_at_hides_no_other(
    backend: LocalBackend, site: Site
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
    backend: LocalBackend, site: Site
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


async def test_changed_tells_of_events_and_else_waits(backend: LocalBackend, site: Site) -> None:
    while await backend.changed(0.05):
        pass
    begun = time.monotonic()
    assert not await backend.changed(0.2)
    assert time.monotonic() - begun >= 0.19
    handle = await site.submit(backend, "true", "k")
    seen = await look(backend, handle)
    while seen.report.ended is None:
        assert await backend.changed(DEADLINE_S)
        seen = await look(backend, handle)


# -- cancel, release, discard -------------------------------------------------------------------


async def test_cancel_stops_a_running_attempt(backend: LocalBackend, site: Site) -> None:
    handle = await site.submit(backend, sleeper("c"), "c")
    await until(lambda: bool(site.mark("c")))
    await backend.cancel(handle)
    await backend.cancel(handle)
    seen = await ended(backend, handle)
    assert seen.report.ended is not None
    assert seen.report.ended.state is State.CANCELED
    await until(lambda: not runs(seconds("c")))
    await backend.cancel(handle)
    await backend.release(handle)
    await backend.cancel(handle)
    await backend.discard(handle)
    await backend.cancel(handle)


async def test_cancel_at_once(backend: LocalBackend, site: Site) -> None:
    for number in range(5):
        handle = await site.submit(backend, sleeper(f"now{number}"), f"now{number}")
        await asyncio.sleep(number * 0.02)
        await backend.cancel(handle)
        await ended(backend, handle)
        assert not runs(seconds(f"now{number}"))


async def test_release_ends_everything_and_keeps_the_streams(
    backend: LocalBackend, site: Site
) -> None:
    handle = await site.submit(backend, sleeper("r"), "r")
    await until(lambda: bool(site.mark("r")))
    await backend.release(handle)
    assert not runs(seconds("r"))
    assert not {"plan.json", "node.json"} & files(handle)
    await backend.release(handle)
    chunk = await backend.read_stream(handle, 0, "stdout", 0, 100)
    assert chunk.data == b"begun\n"
    assert chunk.ended
    await backend.discard(handle)
    await backend.discard(handle)
    await backend.release(handle)
    assert (await look(backend, handle)).phase is Phase.MISSING
    with pytest.raises(NotFound):
        await backend.read_stream(handle, 0, "stdout", 0, 100)


async def test_a_killed_runner_is_noticed_and_its_remains_released(
    backend: LocalBackend, site: Site
) -> None:
    handle = await site.submit(backend, sleeper("dead"), "dead")
    await until(lambda: bool(site.mark("dead")))
    while await backend.changed(0.05):
        await look(backend, handle)
    os.kill(runner_of(handle), signal.SIGKILL)
    assert await backend.changed(DEADLINE_S)
    seen = await ended(backend, handle)
    assert seen.phase is Phase.EXITED
    assert seen.report.ended is None
    assert seen.report.executor_started
    await backend.release(handle)
    assert not runs(seconds("dead"))


async def test_a_runner_that_does_not_heed_sigterm_is_killed(
    backend: LocalBackend, site: Site
) -> None:
    handle = await site.submit(backend, sleeper("deaf"), "deaf")
    await until(lambda: bool(site.mark("deaf")))
    os.kill(runner_of(handle), signal.SIGSTOP)
    await backend.release(handle)
    assert not runs(seconds("deaf"))


async def test_held_lists_what_there_is(backend: LocalBackend, site: Site) -> None:
    handle = await site.submit(backend, "true", "k")
    assert await backend.held(time.time() + 10) == {"k": handle}
    assert await backend.held(time.time() - 3600) == {}
    await ended(backend, handle)
    await backend.release(handle)
    await backend.discard(handle)
    assert await backend.held(time.time() + 10) == {}

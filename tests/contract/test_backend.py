"""What every Backend promises of attempts, asked of each implementation with real processes and
containers."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from tesazure.access import Access
from tesazure.backends.base import Backend
from tesazure.errors import BackendUnavailable, NotFound, Unplaceable
from tesazure.lifecycle import Handle, Phase
from tesazure.model import State
from tests.contract.backend_site import (
    DEADLINE_S,
    MARKS,
    Site,
    ended,
    files,
    look,
    runs,
    seconds,
    sleeper,
    until,
)

# -- start, stop, capabilities ------------------------------------------------------------------


async def test_capabilities_are_constant(backend: Backend, site: Site) -> None:
    first = backend.capabilities
    await backend.start()
    assert backend.capabilities == first
    assert (first.name, first.engine) == (site.name, site.engine)
    assert (await site.server("two")).capabilities.scope == first.scope
    room = await backend.room()
    assert (room is None) == (first.capacity is None)


async def test_gauges_are_told_at_any_time(backend: Backend) -> None:
    before = backend.gauges()
    assert before
    labels = {gauge.name: set(gauge.labels) for gauge in before}
    assert all(set(gauge.labels) == labels[gauge.name] for gauge in before)
    assert all(gauge.help and gauge.name.startswith("tesazure_") for gauge in before)
    await backend.stop()
    assert {gauge.name for gauge in backend.gauges()} <= set(labels)


async def test_a_healthy_backend_says_so(backend: Backend) -> None:
    checks = await backend.check()
    assert checks
    assert all(check.ok and check.detail for check in checks), checks


async def test_what_can_never_run_is_refused(backend: Backend, site: Site) -> None:
    backend.admit(site.plan("true", cpu_cores=0.5))
    for need in ({"cpu_cores": 100_000}, {"ram_gb": 10**6}, {"disk_gb": 10**8}):
        with pytest.raises(Unplaceable):
            backend.admit(site.plan("true", **need))


async def test_stop_may_be_called_twice(backend: Backend) -> None:
    await backend.stop()
    await backend.stop()


# -- submit, find, observe ----------------------------------------------------------------------


async def tells_that_it_runs(backend: Backend, handle: Handle) -> bool:
    """Whether the report does: a container may write before its runner says that it runs."""
    return (await look(backend, handle)).report.executor_started


async def test_an_attempt_runs_to_its_end(backend: Backend, site: Site) -> None:
    handle = await site.submit(backend, "echo out; echo err >&2; exit 3", "k1")
    seen = await ended(backend, handle)
    assert seen.phase is Phase.EXITED
    assert seen.report.ended is not None
    assert seen.report.ended.state is State.EXECUTOR_ERROR
    [executor] = seen.report.log.logs
    assert (executor.stdout, executor.stderr, executor.exit_code) == ("out\n", "err\n", 3)
    assert seen.report.log.start_time
    assert seen.report.log.end_time


async def test_one_key_runs_once(backend: Backend, site: Site) -> None:
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
    await ended(backend, handles[0])
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


async def test_observe_has_an_entry_for_each_handle(backend: Backend, site: Site) -> None:
    ends = await site.submit(backend, "true", "ends")
    stays = await site.submit(backend, sleeper("stays"), "stays")
    gone = site.unknown("gone")
    await until(lambda: tells_that_it_runs(backend, stays))
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


async def test_what_is_no_handle_hides_no_other(backend: Backend, site: Site) -> None:
    good = await site.submit(backend, "true", "k1")
    await ended(backend, good)
    handles: dict[str, Handle] = {"k3": {"dir": "/etc"}, "k4": {}, "k5": {"job": 5}, "k1": good}
    assert (await (await site.server("two")).observe(handles)).keys() == {"k1"}
    for strange in ({}, {"dir": "/etc"}, {"job": 5}):
        with pytest.raises(BackendUnavailable):
            await backend.release(strange)


async def test_changed_tells_of_events_and_else_waits(backend: Backend, site: Site) -> None:
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


async def test_cancel_stops_a_running_attempt(backend: Backend, site: Site) -> None:
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


async def test_cancel_at_once(backend: Backend, site: Site) -> None:
    for number in range(5):
        handle = await site.submit(backend, sleeper(f"now{number}"), f"now{number}")
        await asyncio.sleep(number * 0.02)
        await backend.cancel(handle)
        await ended(backend, handle)
        assert not runs(seconds(f"now{number}"))


async def test_release_ends_everything_and_keeps_the_streams(backend: Backend, site: Site) -> None:
    handle = await site.submit(backend, sleeper("r"), "r")
    await until(lambda: bool(site.mark("r")))
    await backend.release(handle)
    assert not runs(seconds("r"))
    if site.name == "local":
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
    backend: Backend, site: Site
) -> None:
    handle = await site.submit(backend, sleeper("dead"), "dead")
    await until(lambda: bool(site.mark("dead")))
    await until(lambda: tells_that_it_runs(backend, handle))
    while await backend.changed(0.05):
        await look(backend, handle)
    os.kill(site.runner_of(handle), signal.SIGKILL)
    assert await backend.changed(DEADLINE_S)
    seen = await ended(backend, handle)
    assert seen.phase is Phase.EXITED
    assert seen.report.ended is None
    assert seen.report.executor_started
    await backend.release(handle)
    assert not runs(seconds("dead"))


async def test_a_runner_that_does_not_heed_sigterm_is_killed(backend: Backend, site: Site) -> None:
    handle = await site.submit(backend, sleeper("deaf"), "deaf")
    await until(lambda: bool(site.mark("deaf")))
    os.kill(site.runner_of(handle), signal.SIGSTOP)
    await backend.release(handle)
    assert not runs(seconds("deaf"))


async def test_held_lists_what_there_is(backend: Backend, site: Site) -> None:
    handle = await site.submit(backend, "true", "k")
    assert await backend.held(time.time() + 10) == {"k": handle}
    assert await backend.held(time.time() - 3600) == {}
    await ended(backend, handle)
    await backend.release(handle)
    await backend.discard(handle)
    assert await backend.held(time.time() + 10) == {}

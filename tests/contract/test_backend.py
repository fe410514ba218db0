"""What every Backend promises, asked of each implementation with real processes and containers."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from tesazure.backends import local
from tesazure.backends.base import Backend
from tesazure.backends.local import LocalBackend, LocalConfig
from tesazure.errors import ConfigurationError, NotFound, Unplaceable
from tesazure.lifecycle import Handle, Observation, Phase
from tesazure.model import Executor, Resources, State, Task
from tesazure.plan import Defaults, Plan, make_plan
from tesazure.report import Said, encode
from tesazure.runner.config import NodeConfig
from tests.conftest import refuse
from tests.services import base

DEFAULTS = Defaults(cpu_cores=1, ram_gb=0.1, disk_gb=0.1, max_runtime_s=0)
DEADLINE_S = 40.0
MARKS = "/tes-wd/shared-global"

ONE_BY_ONE = pytest.mark.xdist_group("backend-docker")
"""Attempts of different tests have the same keys, which one engine takes for the same attempts."""


class Site:
    """A backend under test, and servers that share its scope."""

    def __init__(self, directory: Path, engine: str, host: str, image: str) -> None:
        self.directory, self.engine, self.host, self.image = directory, engine, host, image
        self.marks = directory / "marks"
        self.marks.mkdir(mode=0o777)
        self.marks.chmod(0o777)
        self.stack = AsyncExitStack()
        self.submitted: list[tuple[Backend, Handle]] = []

    async def server(self, name: str = "one") -> LocalBackend:
        """A started backend with a data directory of this name."""
        backend = LocalBackend(
            LocalConfig(
                data_dir=self.directory / name,
                engine=self.engine,  # type: ignore[arg-type]
                docker_host=self.host,
                shared_global=str(self.marks),
                register=self.directory / "register",
                network=False,
            )
        )
        await backend.start()
        self.stack.push_async_callback(backend.stop)
        return backend

    def plan(self, script: str, **resources: object) -> Plan:
        """One executor that runs a shell script."""
        executor = Executor(image=self.image, command=["sh", "-c", script])
        task = Task(executors=[executor], resources=Resources(**resources))  # type: ignore[arg-type]
        return make_plan("task", task, DEFAULTS, [])

    async def submit(self, backend: Backend, script: str, key: str) -> Handle:
        """Submit, to be released at the end of the test whatever happens."""
        handle = await backend.submit(self.plan(script), key)
        self.submitted.append((backend, handle))
        return handle

    def mark(self, name: str) -> str:
        """What the scripts wrote to a file of `MARKS`."""
        file = self.marks / name
        return file.read_text() if file.exists() else ""

    async def close(self) -> None:
        """Leave nothing."""
        last = await self.server("cleaner")
        for _, handle in self.submitted:
            await last.release(handle)
        await self.stack.aclose()


@pytest.fixture(params=["sandbox", pytest.param("docker", marks=[pytest.mark.docker, ONE_BY_ONE])])
async def site(request: pytest.FixtureRequest, short_dir: Path) -> AsyncIterator[Site]:
    host = image = ""
    if request.param == "docker":
        host = request.getfixturevalue("docker_engine").url
        image = request.getfixturevalue("busybox_image")
    else:
        try:
            base.require_program("bwrap", "bubblewrap")
        except base.Unavailable as error:
            refuse(str(error))
    site = Site(short_dir, request.param, host, image or "unused")
    yield site
    await site.close()


@pytest.fixture
async def backend(site: Site) -> LocalBackend:
    return await site.server()


async def look(backend: Backend, handle: Handle) -> Observation:
    """How one attempt stands."""
    key = handle["dir"].rpartition("/")[2]
    return (await backend.observe({key: handle}))[key]


async def until(condition: Callable[[], Awaitable[bool]] | Callable[[], bool]) -> None:
    """Wait for a condition, at most `DEADLINE_S`."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        answer = condition()
        if await answer if isinstance(answer, Awaitable) else answer:
            return
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.01)


async def ended(backend: Backend, handle: Handle) -> Observation:
    """The observation of an attempt whose runner is gone."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        seen = await look(backend, handle)
        if seen.phase not in (Phase.PENDING, Phase.RUNNING):
            return seen
        assert time.monotonic() < deadline, f"still {seen.phase}: {seen.report}"
        await backend.changed(1)


def runs(token: str) -> bool:
    """Whether a process with this word in its command line runs on the machine."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if token.encode() in command and base.is_alive(int(entry.name)):
                return True
    return False


def sleeper(token: str) -> str:
    """A script that tells it runs, and whose process can be found by `token`."""
    return f"echo begun; echo {token} > {MARKS}/{token}; sleep 1{abs(hash(token)) % 10**6:06d}"


def seconds(token: str) -> str:
    """What the process of `sleeper(token)` sleeps."""
    return sleeper(token).rsplit(" ", 1)[1]


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
    handles = await asyncio.gather(*[backend.submit(plan, "once") for _ in range(8)])
    site.submitted.append((backend, handles[0]))
    assert all(handle == handles[0] for handle in handles)
    seen = await ended(backend, handles[0])
    assert seen.report.ended is not None
    assert await backend.submit(plan, "once") == handles[0]
    await backend.release(handles[0])
    assert await backend.submit(plan, "once") == handles[0]
    assert (await ended(backend, handles[0])).phase is Phase.EXITED
    assert site.mark("once") == "ran\n"


async def test_one_key_runs_once_on_all_servers_of_a_scope(site: Site) -> None:
    one, two = await site.server("one"), await site.server("two")
    plan = site.plan(f"echo ran >> {MARKS}/once")
    handles = await asyncio.gather(*[server.submit(plan, "once") for server in (one, two) * 4])
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
    handle = await one.submit(site.plan(f"echo ran > {MARKS}/late"), "late")
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


# -- streams ------------------------------------------------------------------------------------


async def test_streams_can_be_read_while_they_grow(backend: LocalBackend, site: Site) -> None:
    script = (
        f"printf 0123456789; printf warn >&2; until [ -e {MARKS}/go ]; do sleep 0.05; done; echo"
    )
    handle = await site.submit(backend, script, "s")

    async def written() -> bool:
        try:
            return (await backend.read_stream(handle, 0, "stdout", 0, 99)).size == 10
        except NotFound:
            return False

    await until(written)
    whole = await backend.read_stream(handle, 0, "stdout", 0, 100)
    assert (whole.data, whole.offset, whole.ended) == (b"0123456789", 0, False)
    for offset, limit, data, start in [
        (4, 3, b"456", 4),
        (-3, 100, b"789", 7),
        (-100, 2, b"01", 0),
        (10, 5, b"", 10),
        (99, 5, b"", 10),
    ]:
        part = await backend.read_stream(handle, 0, "stdout", offset, limit)
        assert (part.data, part.offset, part.size) == (data, start, 10)
    assert (await backend.read_stream(handle, 0, "stderr", 0, 100)).data == b"warn"
    (site.marks / "go").touch()
    await ended(backend, handle)
    last = await backend.read_stream(handle, 0, "stdout", 10, 100)
    assert (last.data, last.size, last.ended) == (b"\n", 11, True)
    with pytest.raises(NotFound):
        await backend.read_stream(handle, 1, "stdout", 0, 100)


# -- servers that come and go -------------------------------------------------------------------


async def test_another_server_adopts_what_one_left(site: Site) -> None:
    one = await site.server("one")
    handle = await site.submit(one, sleeper("adopted"), "adopted")
    await until(lambda: bool(site.mark("adopted")))
    await one.stop()
    assert runs(seconds("adopted"))
    for name in ("one", "two"):
        server = await site.server(name)
        assert (await look(server, handle)).phase is Phase.RUNNING
        if name == "one":
            await server.stop()
    server = await site.server("one")
    await server.cancel(handle)
    seen = await ended(server, handle)
    assert seen.report.ended is not None
    await server.release(handle)
    assert not runs(seconds("adopted"))


async def test_runners_that_outlived_a_server_wake_the_next_one(site: Site) -> None:
    one = await site.server("one")
    script = f"until [ -e {MARKS}/go ]; do sleep 0.05; done"
    handle = await site.submit(one, script, "k")
    await one.stop()
    again = await site.server("one")
    assert (await look(again, handle)).phase is Phase.RUNNING
    while await again.changed(0.2):
        await look(again, handle)
    (site.marks / "go").touch()
    assert await again.changed(DEADLINE_S)
    assert (await ended(again, handle)).report.ended


async def test_a_dead_spawner_is_replaced(backend: LocalBackend, site: Site) -> None:
    pid = backend._spawner.pid
    assert pid is not None
    stays = await site.submit(backend, sleeper("stays"), "stays")
    os.kill(pid, signal.SIGKILL)
    await until(lambda: backend._spawner.pid is None)
    handle = await site.submit(backend, "true", "k")
    seen = await ended(backend, handle)
    assert seen.report.ended is not None
    assert seen.report.ended.state is State.COMPLETE
    assert (await look(backend, stays)).phase in (Phase.RUNNING, Phase.PENDING)


async def test_tasks_are_kept_out_of_all_servers_data(site: Site) -> None:
    one, two = await site.server("one"), await site.server("two")
    handle = await site.submit(two, "true", "k")
    node = msgspec.json.decode((Path(handle["dir"]) / "node.json").read_bytes(), type=NodeConfig)
    assert set(node.hidden) == {str(site.directory / name) for name in ("one", "two")}
    assert set(one.data_dirs()) == set(two.data_dirs()) == set(node.hidden)
    await ended(two, handle)


async def test_a_shared_directory_that_others_can_enter_is_warned_of(site: Site) -> None:
    """A task of root can leave a setuid program there."""
    open_to_all = (await site.server("one")).capabilities.warnings
    assert any(str(site.marks) in warning and "setuid" in warning for warning in open_to_all)
    site.directory.chmod(0o700)
    closed = (await site.server("two")).capabilities.warnings
    assert not any("setuid" in warning for warning in closed)


def files(handle: Handle) -> set[str]:
    """What lies in an attempt's directory."""
    return {path.name for path in Path(handle["dir"]).iterdir()}


def runner_of(handle: Handle) -> int:
    """Process id of an attempt's runner, as it told itself."""
    first = (Path(handle["dir"]) / "report.jsonl").read_bytes().splitlines()[0]
    return int(first.split(b'"pid":')[1].split(b",")[0])

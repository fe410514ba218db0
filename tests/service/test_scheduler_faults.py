"""The scheduler when what it stands on fails, and what it deletes in time."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tesazure.access import Access
from tesazure.backends.local import LocalBackend
from tesazure.errors import BackendUnavailable, StoreUnavailable
from tesazure.lifecycle import Bill, Handle, Observation, Phase
from tesazure.model import Executor, Resources, State, Task
from tesazure.plan import Plan, make_plan
from tesazure.report import Report
from tesazure.scheduler.loop import Scheduler
from tesazure.scheduler.retention import Kept, Retention
from tests.service.assembly import (
    DEADLINE_S,
    DEFAULTS,
    EVERYONE,
    MARKS,
    Assembly,
    config,
    eventually,
    logs,
    running,
)

GATE = f"until [ -e {MARKS}/go ]; do sleep 0.02; done"
"""In a script: wait until the test has made the file `go`."""


@pytest.fixture
async def one(short_dir: Path) -> AsyncIterator[Assembly]:
    async with running(short_dir) as assembly:
        yield assembly


# -- failures of what it stands on --------------------------------------------------------------


class Flaky:
    """A Store or Backend in front of another one, which fails while `down`."""

    def __init__(self, behind: object, error: Exception) -> None:
        self._behind, self._error = behind, error
        self.down = False
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._behind, name)
        if not asyncio.iscoroutinefunction(found):
            return found

        async def call(*arguments: Any) -> Any:
            if self.down:
                self.refused += 1
                raise self._error
            return await found(*arguments)

        return call


async def test_an_outage_of_the_store_is_survived(one: Assembly) -> None:
    await one.scheduler.stop()
    store = Flaky(one.store, StoreUnavailable("the database is away"))
    one.begin(store=store)  # type: ignore[arg-type]
    await one.scheduler.start()
    first = await one.submit(f"echo ran >> {MARKS}/r; sleep 0.3")
    await one.marked("r")
    store.down = True
    waiting = await one.submit(f"echo ran >> {MARKS}/w")
    await eventually(lambda: store.refused > 3)
    store.down = False
    for task_id in (first, waiting):
        record = await one.released(task_id)
        assert (record.state, len(record.attempts)) == (State.COMPLETE, 1)
    assert one.mark("r") == one.mark("w") == "ran\n"


async def test_an_outage_of_the_backend_changes_no_task(one: Assembly) -> None:
    await one.scheduler.stop()
    backend = Flaky(one.backend, BackendUnavailable("the node is away"))
    one.scheduler = Scheduler(one.store, backend, one.granting(), config(), one.name)  # type: ignore[arg-type]
    await one.scheduler.start()
    first = await one.submit(f"echo ran >> {MARKS}/r; {GATE}")
    await one.marked("r")
    backend.down = True
    (one.marks / "go").touch()
    waiting = await one.submit(f"echo ran >> {MARKS}/w")
    await eventually(lambda: backend.refused > 3)
    assert (await one.record(first)).state in (State.RUNNING, State.INITIALIZING)
    assert (await one.record(waiting)).state is State.QUEUED
    backend.down = False
    for task_id in (first, waiting):
        record = await one.released(task_id)
        assert (record.state, len(record.attempts)) == (State.COMPLETE, 1)


class Stubborn:
    """A Backend that cannot begin certain tasks, for a reason that it did not foresee."""

    def __init__(self, behind: LocalBackend) -> None:
        self._behind = behind
        self.refuses: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)

    async def submit(self, plan: Plan, key: str, access: Access) -> Handle:
        if plan.task_id in self.refuses:
            raise RuntimeError("no idea what to do with this one")
        return await self._behind.submit(plan, key, access)


async def test_one_task_that_cannot_be_handled_holds_up_no_other(one: Assembly) -> None:
    await one.scheduler.stop()
    backend = Stubborn(one.backend)
    one.scheduler = Scheduler(one.store, backend, one.granting(), config(), one.name)  # type: ignore[arg-type]
    bad = await one.submit("true")
    backend.refuses.add(bad)
    await one.scheduler.start()
    for _ in range(3):
        assert (await one.released(await one.submit("true"))).state is State.COMPLETE
    await eventually(lambda: one.scheduler.waiting_for(bad) is not None)
    assert "no idea what to do" in str(one.scheduler.waiting_for(bad))
    backend.refuses.clear()
    assert (await one.released(bad)).state is State.COMPLETE


async def test_one_attempt_that_cannot_be_looked_at_holds_up_no_other(one: Assembly) -> None:
    broken = await one.submit(f"echo ran >> {MARKS}/b; sleep 4719")
    other = await one.submit(f"echo ran >> {MARKS}/o; sleep 0.3")
    await one.marked("b")
    await one.marked("o")
    record = await one.until(broken, State.RUNNING)
    pid = one.runner(record)
    handle = record.attempts[0].handle
    assert handle is not None
    report = Path(handle["dir"]) / "report.jsonl"
    aside = report.rename(report.with_name("aside"))
    report.mkdir()
    for task_id in (other, await one.submit("true")):
        assert (await one.released(task_id)).state is State.COMPLETE
    canceled = await one.submit("sleep 4720")
    await one.until(canceled, State.RUNNING)
    await one.cancel(canceled)
    assert (await one.released(canceled)).state is State.CANCELED

    # Its owner is told, and it goes on once it can be looked at again.
    await eventually(lambda: "cannot be told" in str(one.scheduler.waiting_for(broken)))
    async with asyncio.timeout(DEADLINE_S):
        while "held up" not in str(logs(await one.record(broken))):
            await one.backend.changed(0.05)
    assert (await one.record(broken)).state is State.RUNNING
    report.rmdir()
    aside.rename(report)
    os.kill(pid, signal.SIGKILL)
    assert (await one.until(broken, State.QUEUED)).attempts[0].released
    await one.cancel(broken)
    await one.released(broken)


class Blind:
    """A Backend that cannot look at anything while `blind`."""

    def __init__(self, behind: LocalBackend) -> None:
        self._behind = behind
        self.blind = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)

    async def observe(self, handles: Mapping[str, Handle]) -> Mapping[str, Observation]:
        if self.blind:
            raise BackendUnavailable("it is dark")
        return await self._behind.observe(handles)


async def test_what_needs_no_look_goes_on_while_nothing_can_be_looked_at(one: Assembly) -> None:
    await one.scheduler.stop()
    backend = Blind(one.backend)
    one.scheduler = Scheduler(one.store, backend, one.granting(), config(), one.name)  # type: ignore[arg-type]
    await one.scheduler.start()
    first = await one.submit(f"echo ran >> {MARKS}/f; {GATE}")
    await one.marked("f")
    await one.until(first, State.RUNNING)
    backend.blind = True
    (one.marks / "go").touch()
    began = time.monotonic()
    second = await one.submit(f"echo ran >> {MARKS}/s")
    await one.marked("s")
    await eventually(lambda: one.scheduler.last_error == "it is dark")
    assert one.scheduler.last_tick <= time.monotonic()
    backend.blind = False
    for task_id in (first, second):
        assert (await one.released(task_id)).state is State.COMPLETE
    await eventually(lambda: one.scheduler.last_error == "" and one.scheduler.last_tick > began)


class Absurd:
    """A Backend that tells nonsense of some attempts: a time that there is not."""

    def __init__(self, behind: LocalBackend) -> None:
        self._behind = behind
        self.absurd: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)

    async def observe(self, handles: Mapping[str, Handle]) -> Mapping[str, Observation]:
        seen = dict(await self._behind.observe(handles))
        for key in self.absurd & seen.keys():
            bill = Bill(usd_per_hour=math.inf, since=0.0)
            seen[key] = Observation(Phase.MISSING, Report(), bill=bill)
        return seen


async def test_one_task_of_which_nonsense_is_told_holds_up_no_other(one: Assembly) -> None:
    await one.scheduler.stop()
    backend = Absurd(one.backend)
    one.scheduler = Scheduler(one.store, backend, one.granting(), config(), one.name)  # type: ignore[arg-type]
    await one.scheduler.start()
    odd = await one.submit(GATE)
    record = await one.until(odd, State.RUNNING)
    backend.absurd.add(record.attempts[0].key)
    await eventually(lambda: "OverflowError" in str(one.scheduler.waiting_for(odd)))
    for _ in range(3):
        assert (await one.released(await one.submit("true"))).state is State.COMPLETE
    assert one.scheduler.last_error == ""
    backend.absurd.clear()
    (one.marks / "go").touch()
    record = await one.released(odd)
    assert (record.state, len(record.attempts)) == (State.COMPLETE, 1)


class Deaf:
    """A Backend that fails to listen, in a way that it did not foresee."""

    def __init__(self, behind: LocalBackend) -> None:
        self._behind = behind
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)

    async def changed(self, timeout_s: float) -> bool:
        self.asked += 1
        raise RuntimeError("what was that?")


async def test_a_backend_that_tells_no_news_is_asked_again(one: Assembly) -> None:
    await one.scheduler.stop()
    backend = Deaf(one.backend)
    one.scheduler = Scheduler(one.store, backend, one.granting(), config(), one.name)  # type: ignore[arg-type]
    await one.scheduler.start()
    assert (await one.released(await one.submit("true"))).state is State.COMPLETE
    await eventually(lambda: backend.asked > 1)


# -- room ---------------------------------------------------------------------------------------


async def test_a_full_disk_delays_tasks_and_ends_none(short_dir: Path) -> None:
    disk = short_dir / "disk"
    disk.mkdir()
    with small_file_system(disk, 64):
        (disk / "full").write_bytes(b"x" * 50_000_000)
        one = Assembly(disk)
        await one.start(disk_bytes=0)
        try:
            large = await one.submit("true", Resources(disk_gb=0.03))
            small = await one.submit("true", Resources(disk_gb=0.001))
            never = await one.submit("true", Resources(disk_gb=0.1))
            assert (await one.released(small)).state is State.COMPLETE
            assert (await one.released(never)).state is State.SYSTEM_ERROR
            assert "can never run here" in str(logs(await one.record(never)))
            assert (await one.record(large)).state is State.QUEUED
            await eventually(lambda: "GB of disk" in str(one.scheduler.waiting_for(large)))
            (disk / "full").unlink()
            assert (await one.released(large)).state is State.COMPLETE
        finally:
            await one.close()


async def test_what_an_attempt_wrote_is_not_reserved_twice(short_dir: Path) -> None:
    disk = short_dir / "disk"
    disk.mkdir()
    with small_file_system(disk, 64):
        one = Assembly(disk)
        await one.start(disk_bytes=0)
        try:
            script = (
                "head -c 36000000 /dev/zero >/tes-wd/f; echo ran >> " + MARKS + "/w; sleep 4721"
            )
            writes = await one.submit(script, Resources(disk_gb=0.04))
            await one.marked("w")
            await one.until(writes, State.RUNNING)
            # 64 MiB - 36 MB are free, of which 4 MB are reserved: room for 15 MB more.
            beside = await one.submit("true", Resources(disk_gb=0.015))
            assert (await one.released(beside)).state is State.COMPLETE
            await one.cancel(writes)
            await one.released(writes)
        finally:
            await one.close()


@contextlib.contextmanager
def small_file_system(path: Path, megabytes: int) -> Iterator[None]:
    """A file system of that size (MiB) at `path`."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "tmpfs", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], timeout=10, check=True)


# -- retention ----------------------------------------------------------------------------------


async def test_work_files_and_records_are_kept_for_their_time(one: Assembly) -> None:
    record = await one.released(await one.submit("echo x"))
    await Retention(one.store, one.backend, Kept(work_s=3600, records_s=7200)).run()
    assert record.attempts[0].key in await held(one)
    await Retention(one.store, one.backend, Kept(work_s=1e-6, records_s=7200)).run()
    assert await held(one) == set()
    assert (await one.record(record.id)).attempts[0].discarded
    await Retention(one.store, one.backend, Kept(work_s=0, records_s=1e-6)).run()
    assert await one.store.get(record.id, EVERYONE) is None


async def test_the_scheduler_runs_retention_by_itself(one: Assembly) -> None:
    record = await one.released(await one.submit("echo x"))
    handle = record.attempts[0].handle
    assert handle is not None
    await one.restart(kept=Kept(work_s=0.2))
    await eventually(lambda: not Path(handle["dir"]).exists())


async def test_attempts_that_no_task_knows_are_deleted_unless_they_run(one: Assembly) -> None:
    task = Task(
        executors=[Executor(image="unused", command=["sh", "-c", "sleep $T"], env={"T": "0"})]
    )
    ended = await one.backend.submit(
        make_plan("gone", task, DEFAULTS, []), "gone-00000001", Access()
    )
    task.executors[0].env = {"T": "4718"}
    runs = await one.backend.submit(
        make_plan("lost", task, DEFAULTS, []), "lost-00000001", Access()
    )
    known = await one.released(await one.submit("true"))
    key = "gone-00000001"
    while (await one.backend.observe({key: ended}))[key].report.ended is None:
        await one.backend.changed(0.1)
    for handle in (ended, runs, known.attempts[0].handle):
        assert handle is not None
        os.utime(handle["dir"], (0, time.time() - 7200))
    await Retention(one.store, one.backend, Kept(work_s=0)).run()
    assert await held(one) == {"lost-00000001", known.attempts[0].key}


async def test_files_from_before_the_machine_was_renamed_are_deleted(one: Assembly) -> None:
    record = await one.released(await one.submit("echo x"))
    [attempt] = record.attempts
    assert attempt.handle is not None
    renamed = Renamed(one.backend)
    os.utime(attempt.handle["dir"], (0, time.time() - 7200))
    keep = Retention(one.store, renamed, Kept(work_s=3600))  # type: ignore[arg-type]
    await keep.run()
    assert await held(one) == {attempt.key}
    delete = Retention(one.store, renamed, Kept(work_s=1e-6))  # type: ignore[arg-type]
    await delete.run()
    assert await held(one) == set()
    assert (await one.record(record.id)).attempts[0].discarded


class Renamed:
    """A Backend whose machine has another name than when its attempts were placed."""

    def __init__(self, behind: LocalBackend) -> None:
        self._behind = behind
        self.capabilities = msgspec.structs.replace(behind.capabilities, scope="new name")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)


async def held(one: Assembly) -> set[str]:
    """The attempts that the backend holds anything of."""
    return set(await one.backend.held(time.time() + 10))

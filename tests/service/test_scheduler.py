"""The scheduler on a real store and the real local backend: tasks from submission to release."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tesazure.lifecycle import Policy
from tesazure.model import Executor, FileType, Input, Output, Resources, State, Task
from tesazure.plan import Plan
from tesazure.store.records import NewTask, Reservation
from tests.service.assembly import (
    DEFAULTS,
    MARKS,
    Assembly,
    eventually,
    logs,
    processes,
    running,
)
from tests.submitted import WORKFLOW

RUN = [State.QUEUED, State.INITIALIZING, State.RUNNING]


@pytest.fixture
async def one(short_dir: Path) -> AsyncIterator[Assembly]:
    async with running(short_dir) as assembly:
        yield assembly


# -- the path of a task -------------------------------------------------------------------------


async def test_a_task_goes_through_its_states_and_leaves_nothing(one: Assembly) -> None:
    task_id = await one.submit("echo hello; echo oh >&2")
    record = await one.released(task_id)
    assert record.state is State.COMPLETE
    assert await one.history(task_id) == [*RUN, State.COMPLETE]
    [log] = logs(record)
    [executor] = log.logs
    assert (executor.stdout, executor.stderr, executor.exit_code) == ("hello\n", "oh\n", 0)
    assert log.start_time
    assert log.end_time
    assert (one.scheduler.placed, one.scheduler.retries) == (1, 0)
    counted = {end: count for end, count in one.scheduler.ends.items() if count}
    assert counted == {(State.COMPLETE, ""): 1}
    assert await one.store.watched(one.name) == []


async def test_a_failure_of_the_command_is_not_repeated(one: Assembly) -> None:
    record = await one.released(await one.submit("exit 7"))
    assert record.state is State.EXECUTOR_ERROR
    assert [log.logs[0].exit_code for log in logs(record)] == [7]


async def test_types_that_were_left_open_are_filled_in(one: Assembly) -> None:
    executor = Executor(image="unused", command=["cat", "/in/a"])
    inputs = [Input(path="/in/a", content="x"), Input(path="/in/b", content="y")]
    task = Task(executors=[executor], inputs=inputs)
    record = await one.released(await one.submit("", task=task))
    stored = msgspec.json.decode(record.document, type=Task)
    assert [item.type for item in stored.inputs or []] == [FileType.FILE, FileType.FILE]


async def test_a_missing_output_of_cromwells_is_a_warning(one: Assembly) -> None:
    call = f"/w/{WORKFLOW}/call-c/execution"
    outputs = [
        Output(path=f"{call}/{n}", url=f"{one.marks}{call}/{n}", name=n) for n in ("rc", "x")
    ]
    task = Task(
        executors=[Executor(image="unused", command=["sh", "-c", f"echo 0 > {call}/rc"])],
        inputs=[Input(path=f"{call}/script", content="x", name="commandScript")],
        outputs=outputs,
        description=f"{WORKFLOW}:BackendJobDescriptorKey_CommandCallNode_w.c:-1:1",
    )
    record = await one.released(await one.submit("", task=task))
    assert record.state is State.COMPLETE, logs(record)
    assert f"WARNING outputs[1] ({call}/x)" in str(logs(record)[0].system_logs)
    task.description = "somebody else's"
    assert (await one.released(await one.submit("", task=task))).state is State.SYSTEM_ERROR


async def test_a_task_that_can_never_run_ends_at_once_with_the_reason(one: Assembly) -> None:
    task_id = await one.submit("true", Resources(cpu_cores=64, ram_gb=1000))
    record = await one.until(task_id)
    assert record.state is State.SYSTEM_ERROR
    [log] = logs(record)
    assert "needs 64 cores, this machine has 4" in log.system_logs[0]
    assert "needs 1000 GB of memory, this machine has 8" in log.system_logs[0]
    assert (await one.released(await one.submit("true"))).state is State.COMPLETE


async def test_a_task_that_cannot_be_carried_out_ends_with_the_reason(one: Assembly) -> None:
    spoilt = await one.submit("", document=b'{"executors":{}}', notes=["x was ignored"])
    record = await one.released(spoilt)
    assert record.state is State.SYSTEM_ERROR
    warning, reason = logs(record)[0].system_logs
    assert warning.endswith("WARNING x was ignored")
    assert "Expected `array`, got `object` - at `$.executors`" in reason
    assert await one.history(record.id) == [State.QUEUED, State.SYSTEM_ERROR]


async def test_the_limit_is_the_one_settled_at_submission(one: Assembly) -> None:
    """Whatever the server that places it has as its default."""
    await one.restart(defaults=msgspec.structs.replace(DEFAULTS, max_runtime_s=3600))
    short = await one.submit("sleep 4722", max_runtime_s=0.5)
    endless = await one.submit("sleep 4722", max_runtime_s=0.0)
    record = await one.released(short)
    assert record.state is State.SYSTEM_ERROR
    assert "0.5 s" in str(logs(record)[0].system_logs)
    record = await one.until(endless, State.RUNNING)
    handle = record.attempts[0].handle
    assert handle is not None
    plan = msgspec.json.decode((Path(handle["dir"]) / "plan.json").read_bytes(), type=Plan)
    assert plan.max_runtime_s == 0
    await one.cancel(endless)
    await one.released(endless)


async def test_never_more_at_once_than_there_are_cores(one: Assembly) -> None:
    # Two run at once for sure: the first one waits until another has begun.
    both = f"until [ $(wc -l < {MARKS}/n) -gt 1 ]; do sleep 0.02; done"
    script = f"echo + >> {MARKS}/n; {both}; sleep 0.1; echo - >> {MARKS}/n"
    ids = [await one.submit(script, Resources(cpu_cores=1.5)) for _ in range(8)]
    for task_id in ids:
        assert (await one.released(task_id)).state is State.COMPLETE
    now = most = 0
    for sign in one.mark("n").split():
        now += 1 if sign == "+" else -1
        most = max(most, now)
    assert most == 2


async def test_a_large_task_gets_its_turn(one: Assembly) -> None:
    await one.restart(backfill_s=0.2)
    in_the_way = f"until [ -e {MARKS}/go ]; do sleep 0.02; done"
    await one.submit(in_the_way, Resources(cpu_cores=2))
    await one.until(await one.submit("true"))
    large = await one.submit(f"echo large >> {MARKS}/order", Resources(cpu_cores=4))
    small = [await one.submit(f"sleep 0.2; echo s >> {MARKS}/order") for _ in range(30)]
    await eventually(lambda: one.scheduler.waiting_for(large) is not None)
    assert "waiting for 4 cores" in str(one.scheduler.waiting_for(large))
    (one.marks / "go").touch()
    await one.released(large)
    assert one.mark("order").split().index("large") < 15
    for task_id in small:
        await one.released(task_id)
    assert one.scheduler.waiting_for(large) is None


async def test_a_burst_is_worked_off(one: Assembly) -> None:
    ids = await asyncio.gather(*[one.submit(f"echo {i} > {MARKS}/b{i}") for i in range(40)])
    for task_id in ids:
        assert (await one.released(task_id)).state is State.COMPLETE
    assert sorted(one.mark(f"b{i}").strip() for i in range(40)) == sorted(map(str, range(40)))


# -- cancel -------------------------------------------------------------------------------------


async def test_cancel_while_it_runs(one: Assembly) -> None:
    task_id = await one.submit(f"echo x > {MARKS}/c; sleep 4711")
    await one.marked("c")
    assert await one.cancel(task_id)
    record = await one.until(task_id)
    assert record.state is State.CANCELED
    assert not processes("sleep 4711")
    assert record.attempts[0].released
    assert logs(record)[0].end_time
    assert not await one.cancel(task_id)
    assert await one.history(task_id) == [*RUN, State.CANCELING, State.CANCELED]


async def test_cancel_before_it_is_placed(one: Assembly) -> None:
    full = await one.submit("sleep 0.3", Resources(cpu_cores=4))
    task_id = await one.submit(f"echo x > {MARKS}/never", Resources(cpu_cores=4))
    assert await one.cancel(task_id)
    assert (await one.record(task_id)).state is State.CANCELED
    await one.released(full)
    await one.released(await one.submit("true", Resources(cpu_cores=4)))
    assert one.mark("never") == ""


async def test_cancel_at_any_moment(one: Assembly) -> None:
    chance = random.Random(7)
    ids = []
    for number in range(24):
        task_id = await one.submit(f"echo begun; sleep 48{number:02d}.5")
        await asyncio.sleep(chance.random() * 0.1)
        await one.cancel(task_id)
        ids.append(task_id)
    for task_id in ids:
        assert (await one.released(task_id)).state is State.CANCELED
    assert not [number for number in range(24) if processes(f"sleep 48{number:02d}.5")]
    assert await one.store.watched(one.name) == []


async def test_cancel_of_a_runner_that_does_not_heed(one: Assembly) -> None:
    await one.restart(policy=Policy(cancel_grace_s=0.3))
    task_id = await one.submit(f"echo x > {MARKS}/c; sleep 4712")
    await one.marked("c")
    os.kill(one.runner(await one.until(task_id, State.RUNNING)), signal.SIGSTOP)
    await one.cancel(task_id)
    assert (await one.released(task_id)).state is State.CANCELED
    assert not processes("sleep 4712")


# -- losses and limits --------------------------------------------------------------------------


async def test_a_lost_runner_means_another_attempt(one: Assembly) -> None:
    script = f"echo ran >> {MARKS}/lost; [ $(wc -l < {MARKS}/lost) -gt 1 ] || sleep 4713"
    task_id = await one.submit(script)
    await one.marked("lost")
    os.kill(one.runner(await one.until(task_id, State.RUNNING)), signal.SIGKILL)
    record = await one.released(task_id)
    assert record.state is State.COMPLETE
    assert await one.history(task_id) == [*RUN, *RUN, State.COMPLETE]
    first, second = logs(record)
    assert "the runner died before it finished" in first.system_logs[-1]
    assert first.logs[0].exit_code is None
    assert first.end_time
    assert second.logs[0].exit_code == 0
    assert one.mark("lost") == "ran\nran\n"
    assert not processes("sleep 4713")
    assert one.scheduler.retries == 1


async def test_attempts_are_given_up(one: Assembly) -> None:
    task_id = await one.submit(f"echo ran >> {MARKS}/lost; sleep 4714")
    for number in (1, 2, 3):
        await eventually(lambda n=number: one.mark("lost").count("ran") == n)  # type: ignore[misc]
        record = await one.until(task_id, State.RUNNING)
        os.kill(one.runner(record), signal.SIGKILL)
        if number < 3:
            await eventually(lambda n=number: one.scheduler.retries == n)  # type: ignore[misc]
    record = await one.released(task_id)
    assert record.state is State.SYSTEM_ERROR
    assert len(record.attempts) == 3
    assert "given up after attempt 3" in logs(record)[-1].system_logs[-1]
    assert not processes("sleep 4714")


async def test_lost_work_files_are_a_lost_attempt(one: Assembly) -> None:
    script = f"echo ran >> {MARKS}/w; [ $(wc -l < {MARKS}/w) -gt 1 ] || sleep 4723"
    task_id = await one.submit(script)
    await one.marked("w")
    record = await one.until(task_id, State.RUNNING)
    await one.scheduler.stop()
    handle = record.attempts[-1].handle
    assert handle is not None
    await one.backend.release(handle)
    await one.backend.discard(handle)
    one.begin()
    await one.scheduler.start()
    record = await one.released(task_id)
    assert record.state is State.COMPLETE
    first = logs(record)[0]
    assert "no longer knows the attempt" in first.system_logs[-1]
    assert len(first.logs) == 1, "what was known of the attempt stays"


async def test_a_time_limit_ends_the_task(one: Assembly) -> None:
    limit = Resources(backend_parameters={"max_runtime_s": "0.5"})
    record = await one.released(await one.submit("sleep 4715", limit))
    assert record.state is State.SYSTEM_ERROR
    assert "timed out after 0.5 s" in " ".join(logs(record)[0].system_logs)
    assert len(record.attempts) == 1


async def test_a_runner_that_hangs_past_its_limit_is_ended(one: Assembly) -> None:
    task_id = await one.submit(f"echo x > {MARKS}/h; sleep 4716")
    await one.marked("h")
    os.kill(one.runner(await one.until(task_id, State.RUNNING)), signal.SIGSTOP)
    # The runner began without it, or it might heed the limit before it is made to hang.
    await one.scheduler.stop()
    with contextlib.closing(sqlite3.connect(one.directory / "one.db")) as link, link:
        link.execute("UPDATE tasks SET max_runtime_s = 0.5")
    await one.restart()
    record = await one.released(task_id)
    assert record.state is State.SYSTEM_ERROR
    assert "did not end within its limit of 0.5 s" in logs(record)[0].system_logs[-1]
    assert not processes("sleep 4716")


# -- servers that stop, start, and share --------------------------------------------------------


async def test_a_restarted_server_adopts_what_runs(one: Assembly) -> None:
    script = f"echo ran >> {MARKS}/a; until [ -e {MARKS}/go ]; do sleep 0.05; done"
    first = await one.submit(script)
    await one.marked("a")
    while_down = await one.submit(f"echo ran >> {MARKS}/d; sleep 0.1")
    await one.marked("d")
    await one.stop()
    (one.marks / "go").touch()
    await one.start()
    for task_id in (first, while_down):
        record = await one.released(task_id)
        assert record.state is State.COMPLETE
        assert len(record.attempts) == 1
    assert one.mark("a") == one.mark("d") == "ran\n"


async def test_stop_and_start_at_any_moment(one: Assembly) -> None:
    chance = random.Random(11)
    ids = [
        await one.submit(f"echo ran >> {MARKS}/s{number}; sleep 0.{number % 3}")
        for number in range(24)
    ]
    for _ in range(6):
        await asyncio.sleep(chance.random() * 0.15)
        await one.stop()
        await one.start()
    for number, task_id in enumerate(ids):
        record = await one.released(task_id)
        assert record.state is State.COMPLETE
        assert len(record.attempts) == 1
        assert one.mark(f"s{number}") == "ran\n"


async def test_stop_may_be_called_twice(one: Assembly) -> None:
    await one.scheduler.stop()
    await one.scheduler.stop()
    await one.scheduler.start()
    await one.scheduler.start()
    assert (await one.released(await one.submit("true"))).state is State.COMPLETE


@pytest.mark.postgres
async def test_two_servers_share_the_work_of_one_database(
    short_dir: Path, postgres_url: str
) -> None:
    servers = [Assembly(short_dir, name, postgres_url) for name in ("one", "two")]
    for server in servers:
        await server.start()
    one, two = servers
    ids = [
        await servers[number % 2].submit(f"echo ran >> {MARKS}/p{number}; sleep 0.1")
        for number in range(20)
    ]
    stays = await one.submit(f"echo x >> {MARKS}/stays; sleep 4717")
    await one.marked("stays")
    await two.cancel(stays)
    assert (await two.released(stays)).state is State.CANCELED
    for number, task_id in enumerate(ids):
        record = await two.released(task_id)
        assert record.state is State.COMPLETE
        assert one.mark(f"p{number}") == "ran\n"
    assert one.scheduler.placed + two.scheduler.placed == 21
    await one.close()
    await two.close()


@pytest.mark.postgres
async def test_a_server_takes_over_what_another_one_leaves(
    short_dir: Path, postgres_url: str
) -> None:
    one, two = (Assembly(short_dir, name, postgres_url) for name in ("one", "two"))
    await one.start()
    task_id = await one.submit(
        f"echo ran >> {MARKS}/o; until [ -e {MARKS}/go ]; do sleep 0.05; done"
    )
    await one.marked("o")
    await two.start()
    await one.stop()
    (two.marks / "go").touch()
    record = await two.released(task_id)
    assert (record.state, len(record.attempts)) == (State.COMPLETE, 1)
    assert two.mark("o") == "ran\n"
    assert two.scheduler.placed == 0
    await two.close()


# -- cost ---------------------------------------------------------------------------------------


async def test_ten_thousand_waiting_tasks_cost_nothing(one: Assembly) -> None:
    """An idle server with a long queue uses less than 3 % of a core."""
    full = await one.submit("sleep 4719", Resources(cpu_cores=4))
    await one.until(full, State.RUNNING)
    document = msgspec.json.encode(Task(executors=[Executor(image="unused", command=["true"])]))
    await asyncio.gather(
        *[
            one.store.create(
                NewTask(
                    id=f"q{number:025d}",
                    document=document,
                    name="",
                    owner=None,
                    tags={},
                    reservation=Reservation(1.0, 1, 1),
                    max_runtime_s=0,
                    notes=[],
                    created=time.time(),
                )
            )
            for number in range(10_000)
        ]
    )
    one.scheduler.wake()
    await eventually(lambda: one.scheduler.waiting_for("q" + "0" * 25) is not None)
    await asyncio.sleep(1)
    cpu, wall = time.process_time(), time.monotonic()
    await asyncio.sleep(8)
    share = (time.process_time() - cpu) / (time.monotonic() - wall)
    print(f"10,000 queued tasks and an idle server use {share:.2%} of a core")
    assert share < 0.03

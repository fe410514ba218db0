"""Tasks on Azure Batch from submission to their end: store, scheduler, backend, the account's
stand-in, blobs in Azurite, and the real runner on the nodes."""

from __future__ import annotations

import asyncio
import math
import signal
import threading
import time
from collections.abc import AsyncIterator
from datetime import datetime
from fractions import Fraction
from pathlib import Path

import msgspec
import pytest
from azure.batch.models import BatchTaskCreateOptions

from tesazure.backends.azure_batch.backend import LOOK_PATIENCE_S
from tesazure.backends.azure_batch.listing import OVERLAP
from tesazure.budgets import EVERYBODYS
from tesazure.lifecycle import Policy
from tesazure.model import Executor, FileType, Input, Output, Resources, State, Task, TaskLog
from tesazure.scheduler.retention import Kept, Retention
from tesazure.secrecy import hide
from tesazure.store.records import TaskRecord
from tests.service.assembly import DEADLINE_S, MARKS, config, eventually, logs, processes
from tests.service.batch_assembly import BatchAssembly, running_on_batch, said
from tests.services.batch_lab import QUICK

ONCE = f"echo x >> {MARKS}/n; [ $(wc -l < {MARKS}/n) -gt 1 ] || sleep 4732"
"""A script that only ends when it is run for the second time."""


@pytest.fixture
async def one(short_dir: Path) -> AsyncIterator[BatchAssembly]:
    async with running_on_batch(short_dir) as assembly:
        yield assembly


async def eventually_said(one: BatchAssembly, task_id: str, words: str) -> TaskRecord:
    """The task once its log has the words."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        record = await one.record(task_id)
        if words in said(record):
            return record
        assert time.monotonic() < deadline, said(record)
        await asyncio.sleep(0.01)


async def submit_with_files(one: BatchAssembly, script: str) -> tuple[str, str]:
    """A task with an input and an output in Azurite, and the signature of their URLs."""
    azurite, container = one.lab.azurite, one.lab.container
    with azurite.client() as client:
        client.get_blob_client(container, "in/x").upload_blob(b"content", overwrite=True)
    signature = azurite.container_sas(container)
    base = f"{azurite.endpoint}/{container}"
    whole = {"inputs.0": f"{base}/in/x?{signature}", "outputs.0": f"{base}/out/y?{signature}"}
    task = Task(
        executors=[Executor(image="unused", command=["sh", "-c", script])],
        inputs=[Input(path="/in/x", url=hide(whole["inputs.0"]), type=FileType.FILE)],
        outputs=[Output(path="/out/y", url=hide(whole["outputs.0"]))],
    )
    task_id = f"files-{one.lab.installation}"
    await one.submit("", task=task, id=task_id, sealed=one.seal.close(task_id, whole))
    return task_id, signature.partition("sig=")[2].partition("&")[0]


async def test_a_task_with_files_completes(one: BatchAssembly) -> None:
    script = f"cat /in/x > /out/y; echo out; echo err >&2; until [ -e {MARKS}/go ]; do :; done"
    task_id, signature = await submit_with_files(one, script)
    running = await one.until(task_id, State.RUNNING)
    early = logs(running)[0].metadata
    assert early["vm_size"].startswith("Standard_")
    assert float(early["vm_price_per_hour_usd"]) > 0
    (one.marks / "go").touch()
    record = await one.released(task_id)
    assert record.state is State.COMPLETE, said(record)
    assert await one.history(task_id) == [
        State.QUEUED,
        State.INITIALIZING,
        State.RUNNING,
        State.COMPLETE,
    ]
    [log] = logs(record)
    [executor] = log.logs
    assert (executor.exit_code, executor.stdout, executor.stderr) == (0, "out\n", "err\n")
    assert [(o.path, o.size_bytes) for o in log.outputs] == [("/out/y", "7")]
    with one.lab.azurite.client() as client:
        blob = client.get_blob_client(one.lab.container, "out/y")
        assert blob.download_blob().readall() == b"content"
    assert float(log.metadata["estimated_cost_usd"]) > 0
    assert signature not in f"{record} {record.document!r}"
    assert one.tasks() == []
    key = record.attempts[0].key
    # What a node could begin with is a tombstone, and the report is in the database.
    assert one.blobs() == {
        f"attempts/{key}": 0,
        f"streams/{key}/0.stdout": 4,
        f"streams/{key}/0.stderr": 4,
    }
    await Retention(one.store, one.backend, Kept(work_s=0.001)).run()
    assert one.blobs() == {}


async def test_a_failing_command_is_an_executor_error(one: BatchAssembly) -> None:
    task_id = await one.submit("echo broken >&2; exit 3")
    record = await one.released(task_id)
    assert record.state is State.EXECUTOR_ERROR
    [log] = logs(record)
    assert (log.logs[0].exit_code, log.logs[0].stderr) == (3, "broken\n")


async def test_a_missing_input_is_named(one: BatchAssembly) -> None:
    azurite, container = one.lab.azurite, one.lab.container
    url = f"{azurite.endpoint}/{container}/in/none"
    task = Task(
        executors=[Executor(image="unused", command=["true"])],
        inputs=[Input(path="/in/x", url=hide(f"{url}?sig=x"), type=FileType.FILE)],
    )
    task_id = f"missing-{one.lab.installation}"
    whole = {"inputs.0": f"{url}?{azurite.container_sas(container)}"}
    await one.submit("", task=task, id=task_id, sealed=one.seal.close(task_id, whole))
    record = await one.released(task_id)
    assert record.state is State.SYSTEM_ERROR
    assert len(record.attempts) == 1
    assert one.tasks() == []


async def test_cancel_while_it_waits_for_a_node(one: BatchAssembly) -> None:
    one.lab.batch.shortage()
    task_id = await one.submit(f"echo x > {MARKS}/ran")
    await eventually_said(one, task_id, "AllocationFailed")
    assert (await one.record(task_id)).state is State.INITIALIZING
    await one.cancel(task_id)
    record = await one.released(task_id)
    assert record.state is State.CANCELED
    one.lab.batch.plenty()
    assert one.tasks() == []
    assert one.mark("ran") == ""


async def test_cancel_while_it_runs(one: BatchAssembly) -> None:
    task_id = await one.submit(f"echo x > {MARKS}/ran; sleep 4733")
    await one.marked("ran")
    await one.cancel(task_id)
    record = await one.released(task_id)
    assert record.state is State.CANCELED
    assert processes("4733") == []
    assert one.tasks() == []


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("comes_back", [False, True])
async def test_a_preempted_attempt_is_followed_by_another(
    one: BatchAssembly, comes_back: bool, counts: bool
) -> None:
    """Whether Batch queues the task again, or has begun it on the node that came back; and whether
    its count of requeues tells so."""
    one.lab.batch.fleet.losses_count = counts
    task_id = await one.submit(ONCE, Resources(preemptible=True))
    await one.marked("n")
    running = await one.until(task_id, State.RUNNING)
    node = one.node(running)
    if not comes_back:
        one.lab.batch.shortage(most=0)
    one.lab.batch.preempt(node)
    if comes_back:
        one.lab.batch.restore(node)
    else:
        await eventually_said(one, task_id, "preempted")
        one.lab.batch.plenty()
    record = await one.released(task_id)
    assert record.state is State.COMPLETE, said(record)
    first, second = logs(record)
    assert "preempted" in first.system_logs[-1]
    assert ("requeueCount 1" in first.system_logs[-1]) == counts
    assert first.end_time
    assert second.logs[0].exit_code == 0
    assert one.mark("n") == "x\nx\n"
    assert one.tasks() == []


async def test_a_preemption_while_no_server_ran_is_known(one: BatchAssembly) -> None:
    """The pool has no node in its place: the task changes no more, and lists of what changed lately
    do not have it."""
    task_id = await one.submit(ONCE, Resources(preemptible=True))
    await one.marked("n")
    record = await one.until(task_id, State.RUNNING)
    await one.stop()
    one.lab.batch.shortage(most=0)
    one.lab.batch.preempt(one.node(record))
    one.lab.batch.skew(10 * OVERLAP.total_seconds())
    handle = record.attempts[0].handle
    assert handle is not None
    with one.lab.client() as client:
        other = BatchTaskCreateOptions(id="another", command_line="true")
        client.create_task(handle["job"], other)
    one.pace = msgspec.structs.replace(QUICK, whole_s=600)
    await one.start()
    record = await eventually_said(one, task_id, "preempted")
    assert record.attempts[0].released
    one.lab.batch.plenty()
    one.lab.batch.skew(0)
    record = await one.released(task_id)
    assert record.state is State.COMPLETE, said(record)
    assert one.mark("n") == "x\nx\n"


async def test_one_that_is_preempted_each_time_ends_as_preempted(one: BatchAssembly) -> None:
    await one.restart(policy=Policy(max_retries=1, retry_delay_s=0.05))
    task_id = await one.submit(f"echo x >> {MARKS}/n; sleep 4734", Resources(preemptible=True))
    for number in (1, 2):
        deadline = time.monotonic() + DEADLINE_S
        while len(one.mark("n").split()) < number:
            assert time.monotonic() < deadline, said(await one.record(task_id))
            await asyncio.sleep(0.01)
        one.lab.batch.preempt(one.node(await one.record(task_id)))
    record = await one.released(task_id)
    assert record.state is State.PREEMPTED, said(record)
    assert len(record.attempts) == 2
    assert "given up after attempt 2" in said(record)


async def test_one_that_waits_is_placed_anew_before_its_credentials_end(
    one: BatchAssembly,
) -> None:
    """However often: nothing was wrong with it."""
    one.lab.batch.shortage()
    await one.restart(policy=Policy(max_retries=0, retry_delay_s=0.05, credential_s=2))
    task_id = await one.submit(f"echo x >> {MARKS}/n")
    deadline = time.monotonic() + DEADLINE_S
    while len((await one.record(task_id)).attempts) < 3:
        assert time.monotonic() < deadline, said(await one.record(task_id))
        await asyncio.sleep(0.05)
    await one.restart(policy=Policy(max_retries=0))
    one.lab.batch.plenty()
    record = await one.released(task_id)
    assert record.state is State.COMPLETE, said(record)
    assert "until its credentials were about to end; another attempt follows" in said(record)
    assert one.mark("n") == "x\n"
    assert one.tasks() == []


async def test_a_task_tells_that_the_quota_is_reached(one: BatchAssembly) -> None:
    one.lab.batch.quotas.dedicated_cores = 0
    task_id = await one.submit("true")
    record = await eventually_said(one, task_id, "(AccountCoreQuotaReached)")
    assert "quota of dedicated cores is used up" in said(record)
    assert record.state is State.INITIALIZING
    one.lab.batch.quotas.dedicated_cores = 100
    record = await one.released(task_id)
    assert record.state is State.COMPLETE, said(record)


async def test_a_restarted_server_finds_what_runs(one: BatchAssembly) -> None:
    script = f"echo x >> {MARKS}/n; until [ -e {MARKS}/go ]; do sleep 0.05; done; echo out"
    task_id = await one.submit(script)
    await one.marked("n")
    await one.stop()
    await one.start()
    (one.marks / "go").touch()
    record = await one.released(task_id)
    assert record.state is State.COMPLETE, said(record)
    [log] = logs(record)
    assert log.logs[0].stdout == "out\n"
    assert one.mark("n") == "x\n"


async def test_what_runs_is_left_alone_until_it_has_been_looked_at(
    one: BatchAssembly, caplog: pytest.LogCaptureFixture
) -> None:
    """However long the first look takes, and however old its credentials are: nothing is known."""
    script = f"echo x >> {MARKS}/n; until [ -e {MARKS}/go ]; do sleep 0.05; done"
    task_id = await one.submit(script)
    await one.marked("n")
    await one.until(task_id, State.RUNNING)
    await one.stop()
    slow_s = LOOK_PATIENCE_S + 2
    trouble = one.lab.batch.trouble("Task_List", slow_s=slow_s)
    began = time.monotonic()
    await one.start(config(policy=Policy(max_retries=0, credential_s=0.1), unseen_s=20.0))
    handle = (await one.record(task_id)).attempts[-1].handle
    assert handle is not None
    key = handle["task"]
    assert await one.backend.observe({key: handle}) == {}
    while not await one.backend.observe({key: handle}):
        assert time.monotonic() < began + DEADLINE_S
        await one.backend.changed(0.1)
    assert trouble.times == 0
    assert time.monotonic() > began + slow_s - 0.5
    (one.marks / "go").touch()
    record = await one.released(task_id)
    assert record.state is State.COMPLETE, said(record)
    assert one.mark("n") == "x\n"
    assert len(record.attempts) == 1
    assert "cannot be told" not in said(record) + caplog.text


async def test_a_look_for_unused_pools_holds_up_no_task(one: BatchAssembly) -> None:
    await one.stop()
    one.pace = msgspec.structs.replace(QUICK, tidy_s=0.05)
    asked, answered, go_on = (threading.Event() for _ in range(3))

    def hold(operation: str, _: object) -> None:
        if operation == "Pool_List":
            asked.set()
            go_on.wait()
            answered.set()

    await one.start()
    await one.released(await one.submit("true"))  # which makes the pool
    one.lab.batch.before = hold
    one.backend._pools._adopted = -math.inf  # they were listed long ago
    try:
        await eventually(asked.is_set)
        record = await one.released(await one.submit("true"))
        assert record.state is State.COMPLETE, said(record)
        assert not answered.is_set()
    finally:
        go_on.set()


async def test_what_ended_while_no_server_ran_is_known(one: BatchAssembly) -> None:
    script = f"echo x >> {MARKS}/n; until [ -e {MARKS}/go ]; do sleep 0.05; done; exit 4"
    task_id = await one.submit(script)
    await one.marked("n")
    record = await one.record(task_id)
    await one.stop()
    (one.marks / "go").touch()
    handle = record.attempts[-1].handle
    assert handle is not None
    task = one.lab.batch.task(handle["job"], handle["task"])
    assert task is not None
    await asyncio.to_thread(one.lab.batch.wait_for, lambda _: task.state == "completed")
    await one.start()
    record = await one.released(task_id)
    assert record.state is State.EXECUTOR_ERROR
    assert logs(record)[0].logs[0].exit_code == 4


async def test_the_time_limit_holds(one: BatchAssembly) -> None:
    limit = Resources(backend_parameters={"max_runtime_s": "1"})
    task_id = await one.submit("sleep 4735", limit)
    record = await one.released(task_id)
    assert record.state is State.SYSTEM_ERROR
    assert "timed out" in said(record)
    assert processes("4735") == []


async def test_a_killed_runner_is_followed_by_another(one: BatchAssembly) -> None:
    task_id = await one.submit(ONCE)
    await one.marked("n")
    record = await one.until(task_id, State.RUNNING)
    handle = record.attempts[-1].handle
    assert handle is not None
    one.kill_runner(handle)
    record = await one.released(task_id)
    assert record.state is State.COMPLETE, said(record)
    assert "was killed by SIGKILL" in said(record)
    assert "(exit code 70)" in said(record)
    assert one.mark("n") == "x\nx\n"
    assert is_billed(logs(record)[0])


async def test_another_server_goes_on_with_what_one_left(
    one: BatchAssembly, postgres_url: str
) -> None:
    servers = [
        BatchAssembly(one.directory, one.lab, name, postgres_url) for name in ("first", "second")
    ]
    for server in servers:
        await server.start()
    first, second = servers
    script = "echo x >> {0}/m{1}; until [ -e {0}/go ]; do sleep 0.05; done"
    ids = [await first.submit(script.format(MARKS, number)) for number in range(6)]
    for number in range(6):
        await first.marked(f"m{number}")
    await first.stop()
    (one.marks / "go").touch()
    for task_id in ids:
        record = await second.released(task_id)
        assert record.state is State.COMPLETE, said(record)
        assert len(record.attempts) == 1
    assert [one.mark(f"m{number}") for number in range(6)] == ["x\n"] * 6
    await second.close()


async def test_on_a_dedicated_node_of_a_spot_pool_that_is_what_it_costs(
    one: BatchAssembly,
) -> None:
    one.lab.batch.shortage(spot=True)
    task_id = await one.submit("true", Resources(preemptible=True))
    record = await one.released(task_id)
    assert record.state is State.COMPLETE, said(record)
    facts = logs(record)[0].metadata
    assert "-spot-" in facts["batch_job"]
    assert facts["vm_kind"] == "dedicated"
    assert float(facts["vm_price_per_hour_usd"]) > 0
    assert float(facts["estimated_cost_usd"]) > 0


# -- what attempts cost that could not say so


async def all_spent(one: BatchAssembly) -> float:
    """In US dollars."""
    return (await one.store.spent([EVERYBODYS]))[EVERYBODYS] / 1e9


def is_billed(log: TaskLog) -> bool:
    """Whether it is told that the attempt was lost, and what it cost until then."""
    facts = log.metadata
    until = datetime.fromisoformat(facts.get("estimated_cost_until", "1970-01-01T00:00:00Z"))
    hour = float(facts["vm_price_per_hour_usd"]) * float(Fraction(facts["vm_share"]))
    cost = float(facts.get("estimated_cost_usd", "0"))
    return 0 < cost < hour * DEADLINE_S / 3600 and 0 <= time.time() - until.timestamp() < DEADLINE_S


async def test_an_attempt_whose_node_failed_is_paid_for(one: BatchAssembly) -> None:
    task_id = await one.submit(ONCE)
    await one.marked("n")
    node = one.node(await one.until(task_id, State.RUNNING))
    one.lab.batch.fail_node(node)
    await eventually_said(one, task_id, "its node was taken away or failed")
    one.lab.batch.restore(node)
    record = await one.released(task_id)
    assert record.state is State.COMPLETE, said(record)
    first, second = logs(record)
    assert is_billed(first)
    assert "estimated_cost_until" not in second.metadata
    costs = [float(log.metadata["estimated_cost_usd"]) for log in (first, second)]
    assert await all_spent(one) == pytest.approx(sum(costs))


async def test_an_attempt_without_a_report_is_paid_for(one: BatchAssembly) -> None:
    """And it is told where it was."""
    await one.restart(policy=Policy(max_retries=0))
    one.lab.batch.fail_tasks(70)
    record = await one.released(await one.submit("true"))
    assert record.state is State.SYSTEM_ERROR
    [log] = logs(record)
    assert log.metadata["vm_size"].startswith("Standard_")
    assert log.metadata["vm_kind"] == "dedicated"
    assert "estimated_cost_until" in log.metadata
    assert is_billed(log) or float(log.metadata["estimated_cost_usd"]) == 0
    assert await all_spent(one) == pytest.approx(float(log.metadata["estimated_cost_usd"]))


async def test_an_attempt_that_has_to_be_killed_is_paid_for(one: BatchAssembly) -> None:
    await one.restart(policy=Policy(max_retries=0, cancel_grace_s=0.0))
    task_id = await one.submit(f"trap '' TERM; echo x > {MARKS}/ran; sleep 4736")
    await one.marked("ran")
    record = await one.until(task_id, State.RUNNING)
    handle = record.attempts[-1].handle
    assert handle is not None
    one.signal_runner(handle, signal.SIGSTOP)
    await one.cancel(task_id)
    record = await one.released(task_id)
    assert record.state is State.CANCELED
    [log] = logs(record)
    assert is_billed(log)
    assert await all_spent(one) == pytest.approx(float(log.metadata["estimated_cost_usd"]))

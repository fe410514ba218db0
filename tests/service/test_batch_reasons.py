"""Why a task waits or fails on Azure Batch is in its system_logs after one look, with Batch's own
code."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tesazure.backends.azure_batch.watch import Pace
from tesazure.lifecycle import Policy
from tesazure.model import Resources, State
from tests.service.assembly import DEADLINE_S, MARKS, config, logs
from tests.service.batch_assembly import BatchAssembly, running_on_batch, said
from tests.services.batch_server import BatchServer, Failed, NodeScript

STILL = Pace(soon_s=3600, late_s=3600, tasks_s=0, pool_s=0, whole_s=3600)
"""Nothing is looked at but when a test does."""
RUNS = f"echo x >> {MARKS}/n; sleep 4737"


@pytest.fixture
async def one(short_dir: Path) -> AsyncIterator[BatchAssembly]:
    async with running_on_batch(short_dir) as assembly:
        await assembly.stop()
        assembly.pace = STILL
        await assembly.start(config(policy=Policy(max_retries=0)))
        yield assembly


async def look(one: BatchAssembly) -> None:
    """One pass, of all that there is to look at."""
    one.backend._watch.hurry()
    await one.backend._watch._pass()


async def is_said(one: BatchAssembly, task_id: str, *words: str) -> None:
    """Without another look."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        found = said(await one.record(task_id))
        if all(each in found for each in words):
            return
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.01)


async def runs(one: BatchAssembly, resources: Resources | None = None) -> str:
    """A task that runs, and does not end; no other node comes for it."""
    task_id = await one.submit(RUNS, resources)
    await one.marked("n")
    deadline = time.monotonic() + DEADLINE_S
    while (await one.record(task_id)).state is not State.RUNNING:
        assert time.monotonic() < deadline
        await look(one)
        await asyncio.sleep(0.05)
    one.lab.batch.shortage()
    return task_id


def allocation_fails(batch: BatchServer) -> None:
    batch.shortage(code="AllocationFailed")


def no_cores(batch: BatchServer) -> None:
    batch.quotas.dedicated_cores = 0


def no_spot_cores(batch: BatchServer) -> None:
    batch.quotas.spot_cores = 0


def unusable(batch: BatchServer) -> None:
    error = {"code": "DiskFull", "message": "There is no space left", "errorDetails": []}
    batch.script_nodes(*(NodeScript("unusable", errors=[error]) for _ in range(9)))


def start_task_fails(batch: BatchServer) -> None:
    batch.script_nodes(*(NodeScript("starttaskfailed") for _ in range(9)))


@pytest.mark.parametrize(
    ("makes", "words"),
    [
        (allocation_fails, ["Azure could not allocate such nodes (AllocationFailed)"]),
        (no_cores, ["in the portal, under Quotas of the account (AccountCoreQuotaReached)"]),
        (
            no_spot_cores,
            ["quota of Spot cores is used up", "(AccountLowPriorityCoreQuotaReached)"],
        ),
        (unusable, ["a node cannot be used: There is no space left (DiskFull)"]),
        (
            start_task_fails,
            ["a node could not be made ready: its start task ended", "1 (StartTaskFailed)"],
        ),
    ],
)
async def test_what_it_waits_for(
    one: BatchAssembly, makes: Callable[[BatchServer], None], words: list[str]
) -> None:
    makes(one.lab.batch)
    task_id = await one.submit("true", Resources(preemptible=makes is no_spot_cores))
    await one.until(task_id, State.INITIALIZING)
    broken = ("unusable", "starttaskfailed")

    def has_come_to_pass(batch: BatchServer) -> bool:
        pools = list(batch.world.pools)
        bad = [node for pool in pools for node in pool.nodes if node.state in broken]
        return bool(bad) or any(pool.resize_errors for pool in pools)

    one.lab.batch.wait_for(has_come_to_pass)
    await look(one)
    await is_said(one, task_id, *words)
    assert (await one.record(task_id)).state is State.INITIALIZING


async def test_what_it_waits_for_while_it_is_queued(one: BatchAssembly) -> None:
    one.lab.batch.quotas.pools = 0
    task_id = await one.submit("true")
    await is_said(one, task_id, "as many pools", "(PoolQuotaReached)")
    assert (await one.record(task_id)).state not in (State.RUNNING, State.SYSTEM_ERROR)
    one.lab.batch.quotas.pools = 10


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (Failed("DiskFull", "No space"), ["disk is full; ask for more disk_gb (DiskFull)"]),
        (Failed("ContainerInvalidImage", ""), ["cannot be pulled", "(ContainerInvalidImage)"]),
        (Failed("NodePreempted", "Evicted"), ["taken away or failed (NodePreempted)"]),
    ],
    ids=str,
)
async def test_why_it_failed(one: BatchAssembly, failure: Failed, words: list[str]) -> None:
    one.lab.batch.fail_tasks(failure)
    task_id = await one.submit("true")
    await one.until(task_id, State.INITIALIZING)
    one.lab.batch.wait_for(lambda _: is_completed(one))
    await look(one)
    await is_said(one, task_id, *words)


def is_completed(one: BatchAssembly) -> bool:
    tasks = [task for job in one.lab.batch.world.jobs for task in job.tasks]
    return bool(tasks) and all(task.state == "completed" for task in tasks)


async def test_that_its_time_was_over(one: BatchAssembly) -> None:
    limit = Resources(backend_parameters={"max_runtime_s": "1"})
    task_id = await one.submit("sleep 4738", limit)
    await one.until(task_id, State.INITIALIZING)
    one.lab.batch.wait_for(lambda _: is_completed(one), DEADLINE_S)
    await look(one)
    await is_said(one, task_id, "timed out")


async def test_that_its_node_was_preempted(one: BatchAssembly) -> None:
    task_id = await runs(one, Resources(preemptible=True))
    node = one.node(await one.record(task_id))
    one.lab.batch.preempt(node)
    await look(one)
    await is_said(one, task_id, f"node {node} was taken away by Azure", "(preempted)")
    assert (await one.until(task_id)).state is State.PREEMPTED


@pytest.mark.parametrize(
    ("state", "code", "words"),
    [
        ("unusable", "DiskFull", "cannot be used: it is so (DiskFull)"),
        ("unusable", "", "cannot be used (unusable)"),
        ("unknown", "", "does not answer (unknown)"),
    ],
)
async def test_what_is_wrong_with_the_node_that_it_lost(
    one: BatchAssembly, state: str, code: str, words: str
) -> None:
    """Though nothing waits in its pool, which is looked at for nothing else."""
    task_id = await runs(one)
    node = one.node(await one.record(task_id))
    before = one.lab.batch.calls["Pool_Get"]
    await look(one)
    assert one.lab.batch.calls["Pool_Get"] == before
    one.lab.batch.fail_node(node, state, code, "it is so")
    await look(one)
    await is_said(one, task_id, "its node was taken away or failed", f"node {node} {words}")
    assert one.lab.batch.calls["Pool_Get"] == before + 1
    [log] = logs(await one.record(task_id))
    assert len([line for line in log.system_logs if node in line]) == 1

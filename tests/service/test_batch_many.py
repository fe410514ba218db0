"""Many attempts on Azure Batch, their nodes simulated: little is asked of Batch for them, none is
lost, and nothing of them is kept."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tesazure.access import Access
from tesazure.backends.azure_batch.backend import AzureBatchBackend
from tesazure.backends.azure_batch.watch import Pace
from tesazure.errors import BackendUnavailable
from tesazure.lifecycle import Handle, Observation, Phase
from tesazure.model import Executor, Resources, Task
from tesazure.plan import Defaults, Plan, make_plan
from tests.conftest import shared
from tests.contract.backend_site import until
from tests.services.azurite import Azurite
from tests.services.batch_lab import BatchLab, batch_lab
from tests.services.batch_runner import PlayedRunner

DEADLINE_S = 90.0
PACE = Pace(soon_s=0.25, late_s=1.0, tasks_s=0.5, pool_s=1.0)
OWN = ("Task_AddCollection", "Task_Delete", "Task_Get", "Task_Terminate")
"""What is asked for single tasks; all else is asked for all of them together."""


def seconds(key: str) -> float:
    """How long the attempt runs."""
    return 2.0 if key.startswith("long") else 0.1


@pytest.fixture
def runner() -> Iterator[PlayedRunner]:
    with closing(PlayedRunner(shared(Azurite).endpoint, seconds)) as runner:
        yield runner


@pytest.fixture
async def lab(short_dir: Path, runner: PlayedRunner) -> AsyncIterator[BatchLab]:
    with batch_lab(short_dir / "batch", shared(Azurite), runner) as lab:
        yield lab


@pytest.fixture
async def backend(lab: BatchLab) -> AsyncIterator[AzureBatchBackend]:
    backend = AzureBatchBackend(lab.config(), PACE)
    await backend.start()
    yield backend
    await backend.stop()


def a_plan(task_id: str, **resources: object) -> Plan:
    defaults = Defaults(cpu_cores=1, ram_gb=0.1, disk_gb=0.1, max_runtime_s=0)
    executor = Executor(image="unused", command=["true"])
    task = Task(executors=[executor], resources=Resources(**resources))  # type: ignore[arg-type]
    return make_plan(task_id, task, defaults, [])


async def submit(
    backend: AzureBatchBackend, name: str, count: int, **resources: object
) -> dict[str, Handle]:
    """So many attempts at once."""
    keys = [f"{name}{number}" for number in range(count)]
    plans = [a_plan(key, **resources) for key in keys]
    pairs = zip(plans, keys, strict=True)
    handles = await asyncio.gather(*(backend.submit(plan, key, Access()) for plan, key in pairs))
    return dict(zip(keys, handles, strict=True))


async def all_ended(
    backend: AzureBatchBackend, handles: dict[str, Handle]
) -> dict[str, Observation]:
    """How attempts ended; each is released as it does."""
    ended: dict[str, Observation] = {}
    deadline = time.monotonic() + DEADLINE_S
    while len(ended) < len(handles):
        left = {key: handle for key, handle in handles.items() if key not in ended}
        seen = await backend.observe(left)
        assert seen.keys() == left.keys()
        alive = (Phase.PENDING, Phase.RUNNING)
        over = {key: one for key, one in seen.items() if one.phase not in alive}
        await asyncio.gather(*(backend.release(handles[key]) for key in over))
        ended |= over
        assert time.monotonic() < deadline, f"{len(ended)} of {len(handles)} have ended"
        await backend.changed(1)
    return ended


async def run(
    lab: BatchLab, backend: AzureBatchBackend, name: str, count: int
) -> tuple[float, Counter[str]]:
    """Seconds that so many attempts take until all are released, and what Batch is asked."""
    before, begun = Counter(lab.batch.calls), time.monotonic()
    handles = await submit(backend, name, count)
    ended = await all_ended(backend, handles)
    assert {one.phase for one in ended.values()} == {Phase.EXITED}
    return time.monotonic() - begun, Counter(lab.batch.calls) - before


@pytest.mark.serial
async def test_calls_grow_neither_with_tasks_nor_with_how_long_they_run(
    lab: BatchLab, backend: AzureBatchBackend
) -> None:
    await run(lab, backend, "first", 1)  # which makes the pool
    runs = {
        (name, count): await run(lab, backend, name, count)
        for name, count in (("few", 60), ("many", 300), ("long", 60))
    }
    own, shared_rate = {}, {}
    for (name, count), (took, calls) in runs.items():
        assert calls["Task_Delete"] == count
        assert calls["Task_Get"] == calls["Task_Terminate"] == 0
        assert calls["Task_List"] <= took / PACE.tasks_s + 2
        own[name] = sum(calls[each] for each in OWN) / count
        shared_rate[name] = (calls.total() - sum(calls[each] for each in OWN)) / took
    # For each task one to delete it and a part of one to add it, of however many, however long.
    assert own["few"] < 1.3
    assert own["many"] < own["few"] + 0.05
    assert own["long"] < own["few"] + 0.15
    # In a second, for five times the tasks and for twenty times the time, hardly more calls.
    assert shared_rate["many"] < 1.5 * shared_rate["few"] + 1
    assert shared_rate["long"] < 1.5 * shared_rate["few"] + 1
    assert not backend._watch._known
    with lab.batch.world.lock:
        assert not [task.id for job in lab.batch.world.jobs for task in job.tasks]


@pytest.mark.parametrize("counts", [False, True])
async def test_preempted_attempts_are_known_from_ended_ones(
    lab: BatchLab, backend: AzureBatchBackend, runner: PlayedRunner, counts: bool
) -> None:
    """Each attempt ends, or is told to have lost its node: none is forgotten by a node that goes,
    whatever Batch counts, and none begins twice."""
    lab.batch.fleet.losses_count = counts
    handles = await submit(backend, "long", 60, preemptible=True)
    pool = next(iter(handles.values()))["job"]
    ending = asyncio.create_task(all_ended(backend, handles))
    while not ending.done():
        for node in lab.batch.nodes(pool, "running")[:1]:
            lab.batch.preempt(node)
        await asyncio.wait([ending], timeout=0.5)
    lost = {key for key, one in ending.result().items() if one.report.ended is None}
    assert lost
    for key, one in ending.result().items():
        assert one.phase is (Phase.PREEMPTED if key in lost else Phase.EXITED), (key, one)
    assert all(times == 1 for times in runner.begun.values())
    assert set(runner.ended) >= handles.keys() - lost


async def test_to_observe_thousands_is_cheap(lab: BatchLab, backend: AzureBatchBackend) -> None:
    """The scheduler does so each second."""
    lab.batch.shortage()
    job = (await backend.submit(a_plan("task"), "k", Access()))["job"]
    handles = {f"k{number}": {"job": job, "task": f"k{number}"} for number in range(5000)}
    for key in handles:
        backend._watch.begin(key, job)
    begun = time.thread_time()
    seen = await backend.observe(handles)
    assert time.thread_time() - begun < 0.25  # some microseconds each
    assert len(seen) == 5000
    for key in list(handles)[1:]:
        backend._watch.drop(key)


async def test_the_longer_a_look_takes_the_rarer_it_is(lab: BatchLab) -> None:
    """However often there is reason to look: four fifths of the time are for all else."""
    lab.batch.shortage()
    backend = AzureBatchBackend(lab.config(), Pace(soon_s=0.05, tasks_s=0.05))
    await backend.start()
    try:
        job = (await backend.submit(a_plan("task"), "k", Access()))["job"]
        slow = lab.batch.trouble("Task_List", slow_s=0.4, times=1000)
        begun, number = time.monotonic(), 0
        while (took := time.monotonic() - begun) < 6:
            backend._watch.begin(f"k{number}", job)
            number += 1
            await asyncio.sleep(0.05)
        looks = 1000 - slow.times
        assert 1 <= looks <= took / (5 * 0.4) + 2
    finally:
        await backend.stop()


async def test_what_nobody_has_looked_at_waits_for_no_pause(lab: BatchLab) -> None:
    """Though a look is due, and put off since the last one took long."""
    lab.batch.shortage()
    backend = AzureBatchBackend(lab.config(), Pace(soon_s=3600, late_s=3600))
    await backend.start()
    try:
        job = (await backend.submit(a_plan("task"), "k", Access()))["job"]
        watch = backend._watch
        watch._pass_due, watch._rested = 0.0, time.monotonic() + 3600
        watch._nudged.set()
        await until(lambda: not watch._nudged.is_set())
        watch.drop("k")
        seen = await watch.observe({"k": job}, DEADLINE_S)
        assert seen["k"].phase is Phase.PENDING
    finally:
        await backend.stop()


async def test_an_end_that_is_found_while_batch_is_away_is_told_once_it_is_back(
    lab: BatchLab, backend: AzureBatchBackend
) -> None:
    """By a server that was started meanwhile, and has nothing else to look at."""
    handle = await backend.submit(a_plan("task"), "k", Access())

    async def has_ended() -> bool:
        return (await backend.observe({"k": handle}))["k"].phase is Phase.EXITED

    await until(has_ended)
    away = [
        lab.batch.trouble(operation, status=403, times=10**6)
        for operation in ("Task_List", "Task_Get")
    ]
    later = AzureBatchBackend(lab.config(), PACE)
    await later.start()
    try:
        with pytest.raises(BackendUnavailable):
            await later.observe({"k": handle})
        known = later._watch.find("k")
        assert known is not None
        assert known.over
        for trouble in away:
            trouble.times = 0
        # By no other question: with the next look, whenever that is.
        await until(lambda: known.looked_at)
        assert (await later.observe({"k": handle}))["k"].phase is Phase.EXITED
    finally:
        await later.stop()

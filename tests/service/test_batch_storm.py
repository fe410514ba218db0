"""Hundreds of tasks on Azure Batch while nodes are preempted and requests fail: every task ends,
none runs twice at a time, and nothing is left of any. Thousands: `python -m benchmarks batch`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from tesazure.lifecycle import Policy
from tesazure.model import TERMINAL, Resources, State
from tests.conftest import shared
from tests.service.assembly import config
from tests.service.batch_assembly import BatchAssembly
from tests.services.azurite import Azurite
from tests.services.batch_lab import batch_lab
from tests.services.batch_runner import PlayedRunner
from tests.services.batch_storm import Storm

COUNT = 400
"""What Azurite serves in half a minute."""
DEADLINE_S = 120.0


@pytest.fixture
def runner() -> PlayedRunner:
    draw = random.Random(20)
    return PlayedRunner(shared(Azurite).endpoint, lambda _: draw.uniform(0.5, 2), steps=1)


@pytest.fixture
async def one(short_dir: Path, runner: PlayedRunner) -> AsyncIterator[BatchAssembly]:
    with closing(runner), batch_lab(short_dir / "batch", shared(Azurite), runner) as lab:
        assembly = BatchAssembly(short_dir, lab)
        policy = Policy(max_retries=20, retry_delay_s=0.1)
        await assembly.start(config(policy=policy), max_nodes=100)
        yield assembly
        await assembly.stop()


async def all_over(one: BatchAssembly) -> dict[State, int]:
    """How many tasks ended in which state, once all have and nothing of them is left on Batch."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        counts = {state: n for state, n in (await one.store.count_by_state()).items() if n}
        if counts.keys() <= TERMINAL and not await one.store.watched(one.name):
            return counts
        assert time.monotonic() < deadline, (counts, one.scheduler.last_error)
        await one.store.wait_for_events(await one.store.last_event(), 0.5)


async def test_every_task_ends_though_nodes_go_and_requests_fail(
    one: BatchAssembly, runner: PlayedRunner
) -> None:
    began = time.monotonic()
    with Storm(one.lab.batch, share=0.3, within_s=6, every=10) as storm:
        wanted = Resources(cpu_cores=1, preemptible=True)
        ids = await asyncio.gather(*(one.submit("true", wanted) for _ in range(COUNT)))
        assert await all_over(one) == {State.COMPLETE: COUNT}
    took = time.monotonic() - began
    # Some of them end before their time has come.
    assert storm.preempted > 0.2 * storm.nodes
    assert runner.together == []
    assert set(runner.ended) == set(ids)
    records = [await one.record(task_id) for task_id in ids]
    assert max(len(record.attempts) for record in records) > 1
    assert all(attempt.released for record in records for attempt in record.attempts)
    assert one.scheduler._roster.tasks == {}
    assert one.scheduler._busy == {}
    assert one.backend._watch._known == {}
    assert one.tasks() == []
    assert not any(one.blobs().values())  # tombstones
    attempts = sum(len(record.attempts) for record in records)
    calls = Counter(one.lab.batch.calls)
    # A cut or refused call is made again.
    again = storm.troubles
    assert calls["Task_Delete"] <= attempts + again
    assert calls["Task_AddCollection"] <= attempts / 4 + again
    assert sum(calls.values()) <= 1.5 * attempts + again + 20 * took

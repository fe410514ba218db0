"""What a backend says that a live attempt waits for reaches the task's log, and stays there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from tesazure.backends.local import LocalBackend
from tesazure.lifecycle import Handle, Observation, Phase
from tesazure.model import State
from tesazure.scheduler.loop import LOOK_S
from tests.service.assembly import DEADLINE_S, MARKS, Assembly, logs, running


class Wordy(LocalBackend):
    """The local backend, with words on each live attempt."""

    words = "waiting for a node: 0 of 3 are ready"

    async def observe(self, handles: Mapping[str, Handle]) -> Mapping[str, Observation]:
        """As the local backend does, and the words."""
        seen = await super().observe(handles)
        alive = (Phase.PENDING, Phase.RUNNING)
        return {
            key: msgspec.structs.replace(o, reason=self.words) if o.phase in alive else o
            for key, o in seen.items()
        }


class WordyAssembly(Assembly):
    kind = Wordy


@pytest.fixture
async def one(short_dir: Path) -> AsyncIterator[Assembly]:
    async with running(short_dir, WordyAssembly) as assembly:
        yield assembly


async def test_words_on_a_live_attempt_stay_beside_those_of_its_report(one: Assembly) -> None:
    assert isinstance(one.backend, Wordy)
    task_id = await one.submit(f"echo ran >> {MARKS}/r; while [ -e {MARKS}/r ]; do :; done")
    await one.marked("r")
    await said(one, task_id, "0 of 3 are ready")
    one.backend.words = "waiting for a node: 1 of 3 is ready"
    await said(one, task_id, "1 of 3 is ready")
    one.backend.words = Wordy.words  # it has said so before
    await one.restart()  # which does not know what was said
    version = (await one.record(task_id)).version
    placed = one.scheduler.last_tick
    await until(lambda: one.scheduler.last_tick > placed + 2 * LOOK_S)
    assert (await one.record(task_id)).version == version
    (one.marks / "r").unlink()
    record = await one.until(task_id, State.COMPLETE)
    lines = logs(record)[-1].system_logs
    for words in ("0 of 3 are ready", "1 of 3 is ready"):
        assert len([line for line in lines if words in line]) == 1, lines
    assert lines == sorted(lines)
    assert logs(record)[-1].logs[0].exit_code == 0


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def said(one: Assembly, task_id: str, words: str) -> None:
    """Until the log of the task's attempt has the words."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        record = await one.record(task_id)
        found = [log.system_logs for log in logs(record)] if record.attempts[-1].log else []
        if any(words in line for lines in found for line in lines):
            return
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.01)

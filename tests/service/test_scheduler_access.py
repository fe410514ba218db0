"""What attempts are given to reach their files: unsealed, granted, and kept out of sight."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from tesazure.access import Access
from tesazure.api.ids import new_task_id
from tesazure.errors import PermissionDenied, StorageUnavailable
from tesazure.lifecycle import Policy
from tesazure.model import Executor, FileType, Input, Output, State, Task
from tesazure.plan import Plan
from tesazure.scheduler.granting import given
from tesazure.sealing import KEY_BYTES, Seal
from tesazure.store.records import TaskRecord
from tests.service.assembly import MARKS, Assembly, eventually, logs, running
from tests.service.server import contents

SHOWN_IN = "https://in.example/x?sv=1&sig=***"
SHOWN_OUT = "https://***@out.example/y?keep=1"
SECRET = "planted-signature"


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Assembly]:
    async with running(tmp_path) as assembly:
        yield assembly


def whole(one: Assembly) -> dict[str, str]:
    """What stands for the URLs with their secrets: files that tasks may use."""
    return {"inputs.0": f"{one.marks}/{SECRET}-in", "outputs.0": f"{one.marks}/{SECRET}-out"}


async def submit(one: Assembly, script: str = "cat /in/x > /out/y", **sealed: str) -> str:
    """A task of one input and one output whose URLs were stripped, `sealed` beside it."""
    (one.marks / f"{SECRET}-in").write_text("content")
    task = Task(
        executors=[Executor(image="unused", command=["sh", "-c", script])],
        inputs=[Input(path="/in/x", url=SHOWN_IN, type=FileType.FILE)],
        outputs=[Output(path="/out/y", url=SHOWN_OUT)],
    )
    task_id = new_task_id(time.time())
    secrets = one.seal.close(task_id, sealed or whole(one))
    await one.submit("", task=task, id=task_id, sealed=secrets)
    return task_id


def said(record: TaskRecord) -> str:
    """All that its system_logs say."""
    return "\n".join(line for log in logs(record) for line in log.system_logs)


def holding_secrets(directory: Path) -> list[Path]:
    """The files there that hold the secret."""
    files = dict(contents(directory))
    assert files
    return [path for path, content in files.items() if SECRET.encode() in content]


async def test_an_attempt_gets_what_was_cut_out_and_shows_none_of_it(one: Assembly) -> None:
    script = f"cat /in/x > /out/y; echo x > {MARKS}/runs; while [ ! -e {MARKS}/go ]; do :; done"
    task_id = await submit(one, script)
    await one.marked("runs")
    record = await one.record(task_id)
    assert await one.store.sealed(task_id) is not None
    [held] = (await one.backend.held(time.time() + 10)).values()
    assert holding_secrets(Path(held["dir"])) == []
    (one.marks / "go").touch()
    record = await one.released(task_id)
    assert record.state is State.COMPLETE, said(record)
    assert one.mark(f"{SECRET}-out") == "content"
    [log] = logs(record)
    assert [(o.url, o.path, o.size_bytes) for o in log.outputs] == [(SHOWN_OUT, "/out/y", "7")]
    assert SECRET not in str(log)
    assert SECRET.encode() not in record.document
    assert await one.store.sealed(task_id) is None


async def test_another_attempt_after_a_restart_gets_them_again(one: Assembly) -> None:
    count = f"echo x >> {MARKS}/n; [ $(wc -l < {MARKS}/n) -gt 1 ] || sleep 4731; cp /in/x /out/y"
    task_id = await submit(one, count)
    await one.marked("n")
    record = await one.until(task_id, State.RUNNING)
    await one.stop()
    os.kill(one.runner(record), signal.SIGKILL)
    await one.start()
    record = await one.released(task_id)
    assert (record.state, len(record.attempts)) == (State.COMPLETE, 2), said(record)
    assert one.mark(f"{SECRET}-out") == "content"


async def test_another_servers_key_ends_the_task_with_the_remedy(one: Assembly) -> None:
    await one.scheduler.stop()
    task_id = await submit(one)
    one.seal = Seal([os.urandom(KEY_BYTES)])
    await one.restart()
    record = await one.released(task_id)
    assert record.state is State.SYSTEM_ERROR
    assert "set SECRETS_KEY to the same on all servers of a database" in said(record)
    assert await one.store.sealed(task_id) is None


async def test_secrets_that_are_gone_end_the_task(one: Assembly) -> None:
    task = Task(
        executors=[Executor(image="unused", command=["true"])],
        inputs=[Input(path="/in/x", url=SHOWN_IN)],
    )
    record = await one.released(await one.submit("", task=task))
    assert record.state is State.SYSTEM_ERROR
    assert "the secrets in its URLs are gone" in said(record)


async def test_a_refused_grant_ends_the_task_with_the_reason(one: Assembly) -> None:
    async def refuse(plan: Plan, secrets: Mapping[str, str]) -> Access:
        raise PermissionDenied("the vault refuses https://in.example/x?sig=planted-signature-0")

    one.grant = refuse
    await one.restart()
    signed = "https://in.example/x?sig=planted-signature-0"
    record = await one.released(await submit(one, **{"inputs.0": signed}))
    assert record.state is State.SYSTEM_ERROR
    assert "no access to its files: the vault refuses https://in.example/x?sig=***" in said(record)
    assert SECRET not in said(record)


async def test_a_grant_that_may_come_yet_is_waited_for(one: Assembly) -> None:
    asked = 0

    async def reluctant(plan: Plan, secrets: Mapping[str, str]) -> Access:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise StorageUnavailable("the service that signs is away")
        return await given(plan, secrets)

    one.grant = reluctant
    await one.restart()
    task_id = await submit(one)
    await eventually(lambda: one.scheduler.waiting_for(task_id) is not None)
    reason = one.scheduler.waiting_for(task_id) or ""
    assert "the service that signs is away" in reason
    record = await one.released(task_id)
    assert (record.state, len(record.attempts), asked) == (State.COMPLETE, 1, 3), said(record)


@pytest.mark.parametrize(
    "error", [StorageUnavailable("the service that signs is away"), KeyError()]
)
async def test_a_grant_that_never_comes_ends_the_task(one: Assembly, error: Exception) -> None:
    """Attempts, as many as there are, each with its tries; then the others can have its room."""
    asked = 0

    async def never(plan: Plan, secrets: Mapping[str, str]) -> Access:
        nonlocal asked
        asked += 1
        raise error

    one.grant = never
    policy = Policy(max_retries=1, retry_delay_s=0.05, grace_s=1, cancel_grace_s=5)
    await one.restart(grant_tries=2, policy=policy)
    task_id = await submit(one)
    record = await one.released(task_id)
    assert record.state is State.SYSTEM_ERROR
    assert (asked, len(record.attempts)) == (4, 2)
    first, last = logs(record)
    assert "another attempt follows" in str(first.system_logs)
    assert first.end_time
    assert "given up after attempt 2" in str(last.system_logs)
    reason = "no access to its files: " + (str(error) or "KeyError")
    assert all(reason in str(log.system_logs) for log in (first, last))
    assert await one.history(task_id) == [
        *(State.QUEUED, State.INITIALIZING, State.QUEUED, State.SYSTEM_ERROR)
    ]


async def test_a_task_is_canceled_while_its_grant_is_waited_for(one: Assembly) -> None:
    asked = asyncio.Event()

    async def never(plan: Plan, secrets: Mapping[str, str]) -> Access:
        asked.set()
        raise StorageUnavailable("the service that signs is away")

    one.grant = never
    await one.restart()
    task_id = await submit(one)
    await asyncio.wait_for(asked.wait(), 30)
    await one.cancel(task_id)
    assert (await one.released(task_id)).state is State.CANCELED
    assert await one.store.sealed(task_id) is None


async def test_remarks_of_the_grant_are_in_the_log(one: Assembly) -> None:
    async def remark(plan: Plan, secrets: Mapping[str, str]) -> Access:
        return Access(notes=("no key for in.example: it is asked anonymously",))

    one.grant = remark
    await one.restart()
    record = await one.released(await one.submit("true"))
    assert "WARNING no key for in.example: it is asked anonymously" in said(record)

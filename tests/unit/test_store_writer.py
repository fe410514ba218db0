"""Which writes share a commit, and where they are carried out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tesazure.store import schema
from tesazure.store.engine import Database
from tesazure.store.transaction import Transaction
from tesazure.store.writer import LARGE, MOST_BYTES, Writer
from tests.contract.store_tasks import new_task


class Commits(list[int]):
    """The number of the newest event at each commit, and who makes them."""

    writer: Writer


@pytest.fixture
async def commits(tmp_path: Path) -> AsyncIterator[Commits]:
    schema.prepare_file(tmp_path / "tesazure.db")
    database = Database(str(tmp_path / "tesazure.db"))
    schema.bring_up_to_date(database)
    found = Commits()
    found.writer = Writer(database, found.append)
    yield found
    await found.writer.close()


def thread(_: Transaction) -> int:
    """Where the batch is carried out."""
    return threading.get_ident()


@pytest.mark.parametrize(("size", "in_loop"), [(LARGE - 1, True), (LARGE, False)])
async def test_large_documents_are_written_in_the_thread(
    commits: Commits, size: int, in_loop: bool
) -> None:
    create = commits.writer.create(new_task(document=b"x" * size))
    _, where = await asyncio.gather(create, commits.writer.submit(thread))
    assert (where == threading.get_ident()) is in_loop


async def test_large_logs_are_written_in_the_thread(commits: Commits) -> None:
    where = await commits.writer.submit(thread, size=LARGE)
    assert where != threading.get_ident()
    assert await commits.writer.submit(thread) == threading.get_ident()


async def test_a_commit_is_bounded_in_bytes(commits: Commits) -> None:
    sizes = [10, MOST_BYTES // 2, MOST_BYTES // 2, 10, 3 * MOST_BYTES, 10]
    tasks = [new_task(document=b"x" * size) for size in sizes]
    await asyncio.gather(*map(commits.writer.create, tasks))
    assert commits == [2, 4, 5, 6]

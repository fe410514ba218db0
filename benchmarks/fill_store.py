"""A data directory whose SQLite store has many tasks: what a server looks like after years.

`python -m benchmarks.fill_store DIRECTORY [TASKS]`; a million take a minute and 1.8 GB. The tasks
are the same in each run, and hold values that are frequent, rare, clustered in time, and never
together, for measurements of lists:

state   COMPLETE 90 %, EXECUTOR_ERROR 5 %, SYSTEM_ERROR 3 %, CANCELED 2 % (even tasks only),
        PREEMPTED 40 in all; the newest 200 QUEUED
name    align-… 50 %, call-… 49 %, qc-… 1 %, rare-… 40 in all
tags    project=exome 33 % (in the older half), rare 40 in all, else common;
        ms-submitter-workflow-id=w… 500 neighbours each; sample=s… 10 each, all over the store;
        parity=even, odd; half=old, new; debug 40 in all
owner   alice of the tenant lab 50 %, bob of clinic 40 in all, else nobody
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Table, insert
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateIndex, DropIndex

from tesazure.model import TERMINAL, State
from tesazure.store.sql_store import open_store
from tesazure.store.tables import attempts, docs, events, metadata, tags, tasks, workflows
from tesazure.submitters import WORKFLOW_ID

START = 1_700_000_000.0
"""When the oldest task was created, in seconds since the epoch; one a second from then on."""

LOG = b'{"logs":[{"exit_code":0,"stdout":"done\\n"}],"outputs":[],"metadata":{},"system_logs":[]}'
_CHUNK = 10_000
_NEIGHBOURS = 500
"""Tasks of one workflow."""
_dialect = sqlite.dialect()

Row = tuple[Any, ...]


def fill(directory: Path, count: int, document_bytes: int = 1000) -> None:
    """Make a data directory with `count` tasks of about `document_bytes` each."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = directory / "tesazure.db"
    asyncio.run(_make(file))
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA cache_size=-200000")
    indexes = [index for table in metadata.sorted_tables for index in table.indexes]
    for index in indexes:
        connection.execute(str(DropIndex(index).compile(dialect=_dialect)))
    states: Counter[str] = Counter()
    for first in range(1, count + 1, _CHUNK):
        tables = (tasks, docs, tags, attempts, events, workflows)
        rows: dict[Table, list[Row]] = {table: [] for table in tables}
        for number in range(first, min(first + _CHUNK, count + 1)):
            for table, row in _task(number, count, document_bytes):
                rows[table].append(row)
        states.update(row[2] for row in rows[tasks])
        rows[workflows] = _workflows(rows[tasks])
        rows[tags].sort()
        connection.execute("BEGIN")
        for table, some in rows.items():
            connection.executemany(str(insert(table).compile(dialect=_dialect)), some)
        connection.execute("COMMIT")
    connection.executemany(
        "UPDATE state_counts SET tasks = ? WHERE state = ?",
        [(number, state) for state, number in states.items()],
    )
    for index in indexes:
        connection.execute(str(CreateIndex(index).compile(dialect=_dialect)))
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


async def _make(file: Path) -> None:
    store = await open_store("", file)
    await store.close()


def _task(number: int, count: int, document_bytes: int) -> Iterator[tuple[Table, Row]]:
    # As the server's own: 26 digits, sorted by age.
    task_id = f"{number:013x}{number * 2_654_435_761 % 2**52:013x}"
    state = _state(number, count)
    name = _name(number, count)
    owner = "bob" if _rare(number, count, 3) else "alice" if number % 2 else None
    tenant = {"alice": "lab", "bob": "clinic", None: None}[owner]
    created = START + number
    ended = created + 60 if state in TERMINAL else None
    own = _tags(number, count)
    text = {"name": name, "tags": own, "executors": [{"image": "debian:12", "command": ["true"]}]}
    document = json.dumps({**text, "description": "x" * (document_bytes - 200)}).encode()
    attempt = 1 if ended else 0
    yield (
        tasks,
        (
            *(number, task_id, state.value, 1 + 5 * attempt, owner, name, created, ended, None),
            *("node" if attempt else None, None, attempt, 0.0, 1.0, 10**9, 10**9),
            *(None, tenant, _workflow(number, owner)),
        ),
    )
    yield docs, (number, document)
    yield events, (number, number, task_id, state.value, ended or created, owner, tenant)
    for key, value in own.items():
        yield tags, (key, value, number)
    if ended:
        yield (
            attempts,
            (
                *(number, 1, f"{task_id}.1", "node", True, True, created, ended),
                *(1.0, 10**9, 10**9, 9, b"{}", LOG, None),
            ),
        )


def _first(number: int) -> int:
    """The first of a task's neighbours."""
    return number - (number - 1) % _NEIGHBOURS


def _workflow(number: int, owner: str | None) -> int:
    """The row of a task's workflow: a number of its own among those of its first tasks."""
    return _first(number) + (None, "alice", "bob").index(owner)


def _workflows(some: list[Row]) -> list[Row]:
    """The rows that count tasks of whole workflows, one for each owner."""
    members: dict[int, list[Row]] = {}
    for row in some:
        members.setdefault(row[-1], []).append(row)
    return [
        (
            *(seq, f"w{_first(seq)}", "wf", "cromwell", rows[0][4], rows[0][-2]),
            *(rows[0][6], rows[-1][7] or rows[-1][6], None),
            *(sum(row[2] == state.value for row in rows) for state in State),
        )
        for seq, rows in members.items()
    ]


def _rare(number: int, count: int, phase: int) -> bool:
    """40 numbers, all over the store."""
    return number % (count // 40) == phase


def _state(number: int, count: int) -> State:
    if number > count - 200:
        return State.QUEUED
    if _rare(number, count, 7):
        return State.PREEMPTED
    part = number * 7_919 % 100
    if part < 4 and number % 2 == 0:
        return State.CANCELED
    if part < 90 + 2:
        return State.COMPLETE
    return State.EXECUTOR_ERROR if part < 97 else State.SYSTEM_ERROR


def _name(number: int, count: int) -> str:
    if _rare(number, count, 11):
        return f"rare-{number}"
    part = number * 104_729 % 200
    kind = "align" if part < 100 else "call" if part < 198 else "qc"
    return f"{kind}-{number % 5000:04}"


def _tags(number: int, count: int) -> dict[str, str]:
    old = number <= count // 2
    exome = old and number % 3 > 0
    found = {
        "project": "rare" if _rare(number, count, 9) else "exome" if exome else "common",
        WORKFLOW_ID: f"w{_first(number)}",
        "parity": "odd" if number % 2 else "even",
        "sample": f"s{number * 48_271 % (count // 10)}",
        "half": "old" if old else "new",
    }
    return found | ({"debug": "yes"} if _rare(number, count, 5) else {})


if __name__ == "__main__":
    began = time.monotonic()
    fill(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000)
    print(f"{time.monotonic() - began:.1f} s")

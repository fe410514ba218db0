"""New tasks, many at a time: the busiest write."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import insert

from tesazure.model import State
from tesazure.store.engine import Prepared
from tesazure.store.records import NewTask
from tesazure.store.tables import docs, sealed, tags, tasks
from tesazure.store.transaction import Transaction

_INSERT_TASK = Prepared(insert(tasks))
_INSERT_DOC = Prepared(insert(docs))
_INSERT_TAG = Prepared(insert(tags))
_INSERT_SEALED = Prepared(insert(sealed))

LARGEST = 2**63 - 1
"""The largest integer of both databases."""

_TAG_BYTES = 512
"""Longer tag keys and values are kept by their digest: PostgreSQL refuses index entries above
2.7 kB, and tags are only ever compared for equality."""

_encode = msgspec.json.Encoder().encode


def create_all(transaction: Transaction, new: Sequence[NewTask]) -> None:
    """Make the tasks QUEUED. Raises what the driver raises when one of them exists already."""
    if not new:
        return
    queued = State.QUEUED
    state = queued.value
    task_rows: list[tuple[Any, ...]] = []
    doc_rows: list[tuple[int, bytes]] = []
    tag_rows: list[tuple[str, str, int]] = []
    sealed_rows: list[tuple[int, bytes]] = []
    for task in new:
        seq = transaction.next_number()
        transaction.add_event(seq, task.id, None, queued, task.created, (task.owner, task.tenant))
        reserved = task.reservation
        task_rows.append(
            (
                *(seq, task.id, state, 1, task.owner, task.name, task.created),
                *(None, None, None, None, 0, task.max_runtime_s, reserved.cpu_cores),
                *(min(reserved.ram_bytes, LARGEST), min(reserved.disk_bytes, LARGEST)),
                *(_encode(task.notes).decode() if task.notes else None, task.tenant),
            )
        )
        doc_rows.append((seq, task.document))
        for key, value in task.tags.items():
            tag_rows.append((stored_tag(key), stored_tag(value or ""), seq))
        if task.sealed is not None:
            sealed_rows.append((seq, task.sealed))
    link = transaction.link
    link.run_many(_INSERT_TASK, task_rows)
    link.run_many(_INSERT_DOC, doc_rows)
    link.run_many(_INSERT_TAG, tag_rows)
    link.run_many(_INSERT_SEALED, sealed_rows)


def stored_tag(text: str) -> str:
    """How a tag's key or value is kept in the tags table."""
    if len(text) * 4 <= _TAG_BYTES:
        return text
    raw = text.encode()
    if len(raw) <= _TAG_BYTES:
        return text
    return "sha256:" + hashlib.sha256(raw).hexdigest()

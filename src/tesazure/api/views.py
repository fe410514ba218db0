"""Stored bytes -> the bytes of a reply, for each view. Pure.

A task's document and logs are stored encoded, so a FULL view is put together from them without
decoding; BASIC decodes only what holds something to leave out.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache

import msgspec

from tesazure.model import Document, OutputFileLog, Task, TaskLog
from tesazure.report import system_line


class _BasicExecutorLog(Document):
    start_time: str | None = None
    end_time: str | None = None
    exit_code: int | None = None


class _BasicTaskLog(msgspec.Struct, kw_only=True):
    logs: list[_BasicExecutorLog] = []
    outputs: list[OutputFileLog] = []
    metadata: dict[str, str] = {}
    start_time: str | msgspec.UnsetType = msgspec.UNSET
    end_time: str | msgspec.UnsetType = msgspec.UNSET


_task_decoder = msgspec.json.Decoder(Task)
_basic_log_decoder = msgspec.json.Decoder(_BasicTaskLog)
_encode = msgspec.json.Encoder().encode


def timestamp(seconds: float) -> str:
    """RFC 3339 in UTC with microseconds, from seconds since the epoch."""
    microseconds = round(seconds * 1e6)
    return f"{_to_the_second(microseconds // 10**6)}.{microseconds % 10**6:06}Z"


@lru_cache(4096)
def _to_the_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def minimal(task_id: str, state: bytes) -> bytes:
    """`id` and `state` alone."""
    return b'{"id":"%b","state":"%b"}' % (task_id.encode("ascii"), state)


def full(
    task_id: str, state: bytes, created: float, document: bytes, logs: Sequence[bytes]
) -> bytes:
    """Everything: the stored document with what only the server sets put in front and behind."""
    return b'{"id":"%b","state":"%b","creation_time":"%b",%b,"logs":[%b]}' % (
        task_id.encode("ascii"),
        state,
        timestamp(created).encode("ascii"),
        document[1:-1],
        b",".join(logs),
    )


def without_contents(document: bytes) -> bytes:
    """A document without `inputs[].content`."""
    if b'"content":' not in document:
        return document
    task = _task_decoder.decode(document)
    for item in task.inputs or ():
        item.content = None
    return _encode(task)


def without_texts(log: bytes) -> bytes:
    """A TaskLog without `system_logs` and the executors' `stdout` and `stderr`."""
    return _encode(_basic_log_decoder.decode(log))


def waiting_log(notes: Sequence[str], created: float, waiting: str | None) -> list[bytes]:
    """The logs of a task without attempts: what there is to say to its owner, if anything."""
    if not notes and not waiting:
        return []
    time = timestamp(created)
    lines = [system_line(time, "warning", note) for note in notes]
    if waiting:
        lines.append(system_line(time, "info", waiting))
    return [_encode(TaskLog(system_logs=lines))]


def with_tails(log: bytes, tails: dict[tuple[int, str], str]) -> bytes:
    """A TaskLog whose running executors show `tails` (by index and stream) instead of nothing."""
    if not tails:
        return log
    decoded = msgspec.json.decode(log, type=TaskLog)
    for (index, stream), text in tails.items():
        if index < len(decoded.logs):
            setattr(decoded.logs[index], stream, text)
    return _encode(decoded)


def page(tasks: Sequence[bytes], next_page_token: str | None) -> bytes:
    """A ListTasks reply. The token is absent on the last page."""
    if next_page_token is None:
        return b'{"tasks":[%b]}' % b",".join(tasks)
    token = next_page_token.encode("ascii")
    return b'{"tasks":[%b],"next_page_token":"%b"}' % (b",".join(tasks), token)

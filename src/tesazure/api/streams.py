"""An executor's whole stdout and stderr: by byte range, and followed while it is being written."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator
from urllib.parse import parse_qsl

import msgspec
from starlette.requests import Request

from tesazure.api.admission import visibility_of
from tesazure.api.errors import HttpError
from tesazure.api.feed import Feed
from tesazure.api.parts import Parts
from tesazure.api.renewal import Renewal
from tesazure.api.replies import Headers, Reply, Route, Stream
from tesazure.api.tasks import known_id, unknown
from tesazure.backends.base import LogChunk
from tesazure.backends.base import Stream as StreamName
from tesazure.callers import Visibility
from tesazure.errors import FieldError, InvalidInput, NotFound
from tesazure.model import TERMINAL
from tesazure.store.records import TaskRecord

_CHUNK = 256 * 1024
_QUICK_S = 0.1
_SLOW_S = 0.5
"""Between looks at a followed stream: the pause grows from the one to the other while nothing is
written to it."""
_TICK_S = 0.1
"""All pauses end on multiples of this: one awakening for all who follow is cheaper."""
_NO_END = 2**53 - 1
"""Last byte of a range that has no end yet (RFC 8673, section 3)."""
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class _Asked(msgspec.Struct, frozen=True):
    """What the request names. `attempt` counts from 1; None: the newest."""

    task_id: str
    executor: int
    name: StreamName
    attempt: int | None
    follow: bool
    range: str
    visibility: Visibility


class Streams:
    """The handlers."""

    def __init__(self, parts: Parts, feed: Feed) -> None:
        self._store = parts.store
        self._stations = parts.stations
        self._closing = parts.closing
        self._gate = parts.gate
        self._feed = feed

    def routes(self) -> list[Route]:
        """The two streams of an executor."""
        path = "/api/v1/tasks/{id}/logs/{executor}"
        return [
            Route(f"{path}/stdout", {"GET": self.stdout}),
            Route(f"{path}/stderr", {"GET": self.stderr}),
        ]

    async def stdout(self, request: Request) -> Reply | Stream:
        """What the executor wrote to standard output."""
        return await self._stream(request, "stdout")

    async def stderr(self, request: Request) -> Reply | Stream:
        """What the executor wrote to standard error."""
        return await self._stream(request, "stderr")

    async def _stream(self, request: Request, name: StreamName) -> Stream:
        asked = _asked(request, name)
        number = await self._store.last_event() if asked.follow else 0
        record = await self._record(asked)
        if asked.follow:
            renewal = Renewal(self._gate, self._closing, request)
            return await self._live(asked, record, number, renewal)
        size = (await self._read(asked, record, 0, 0)).size
        span = _span(asked.range, size)
        headers = [*_HEADERS, (b"accept-ranges", b"bytes")]
        if span is None:
            status, span = 200, range(size)
        else:
            status = 206
            headers.append(
                (b"content-range", b"bytes %d-%d/%d" % (span.start, span.stop - 1, size))
            )
        headers.append((b"content-length", b"%d" % len(span)))
        return Stream(status, self._bytes(asked, record, span), headers)

    async def _bytes(
        self, asked: _Asked, record: TaskRecord, span: range
    ) -> AsyncGenerator[bytes, None]:
        """Exactly the bytes of `span`. Raises NotFound if the stream has been deleted meanwhile."""
        offset = span.start
        while offset < span.stop:
            limit = min(_CHUNK, span.stop - offset)
            chunk = await self._read(asked, record, offset, limit)
            if not chunk.data:
                raise NotFound("the stream became shorter while it was read")
            yield chunk.data
            offset += len(chunk.data)

    async def _live(
        self, asked: _Asked, record: TaskRecord, number: int, renewal: Renewal
    ) -> Stream:
        """The stream from its beginning, or from N with `Range: bytes=N-`, to the executor's end.

        What has not begun yet is waited for, unless it can no longer begin.
        """
        match = _RANGE.fullmatch(asked.range)
        start = int(match[1]) if match and match[1] and not match[2] else None
        try:
            size = (await self._read(asked, record, 0, 0)).size
        except NotFound:
            if _is_over(asked, record):
                raise
            size = 0
        headers = list(_HEADERS)
        if start is not None:
            if start > size:
                raise _unsatisfiable(size)
            headers.append((b"content-range", b"bytes %d-%d/*" % (start, _NO_END)))
        status = 200 if start is None else 206
        chunks = self._following(asked, record, number, start or 0, renewal)
        return Stream(status, chunks, headers)

    async def _following(
        self, asked: _Asked, record: TaskRecord, number: int, offset: int, renewal: Renewal
    ) -> AsyncGenerator[bytes, None]:
        """`record` is as of the event `number` or newer; it is read again after each further one of
        the task, not for each look at the stream."""
        pause = _QUICK_S
        async with self._feed.listening():
            while not self._closing.is_set():
                refusal = await renewal.refusal()
                if refusal is None:
                    continue
                if refusal:  # just ends it: words of ours would pass for the executor's
                    return
                # Looked at before reading: once the attempt is over, nothing is written any more.
                over = _is_over(asked, record)
                ended = False
                with contextlib.suppress(NotFound):
                    chunk = await self._read(asked, record, offset, _CHUNK)
                    # From here on the same attempt, also when another one follows.
                    asked = msgspec.structs.replace(
                        asked, attempt=asked.attempt or len(record.attempts)
                    )
                    if chunk.data:
                        offset = chunk.offset + len(chunk.data)
                        pause = _QUICK_S
                        yield chunk.data
                        continue
                    ended = chunk.ended
                if over or ended:
                    return
                await self._pause(pause)
                pause = min(pause * 1.5, _SLOW_S)
                events, number = await self._feed.after(number, asked.visibility, (asked.task_id,))
                if events:
                    record, pause = await self._record(asked), _QUICK_S

    async def _pause(self, seconds: float) -> None:
        seconds += -(asyncio.get_running_loop().time() + seconds) % _TICK_S
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    async def _record(self, asked: _Asked) -> TaskRecord:
        record = await self._store.get(asked.task_id, asked.visibility)
        if record is None:
            raise unknown(asked.task_id)
        return record

    async def _read(self, asked: _Asked, record: TaskRecord, offset: int, limit: int) -> LogChunk:
        """Bytes of the stream. Raises NotFound with the reason."""
        count = len(record.attempts)
        if not count:
            raise NotFound(f"task {record.id} has not been started yet")
        number = asked.attempt or count
        if number > count:
            raise NotFound(f"task {record.id} has {count} attempts; they count from 1")
        attempt = record.attempts[number - 1]
        if attempt.discarded:
            raise NotFound("the stream has expired (setting WORK_RETENTION_HOURS)")
        if attempt.handle is None:
            raise NotFound(f"attempt {number} of task {record.id} has not been placed")
        backend = self._stations.backend_of(attempt.scope)
        return await backend.read_stream(attempt.handle, asked.executor, asked.name, offset, limit)


_HEADERS: Headers = [
    (b"content-type", b"text/plain; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-accel-buffering", b"no"),
]


def _asked(request: Request, name: StreamName) -> _Asked:
    task_id = known_id(request)
    executor = _number(request.scope["path_params"]["executor"])
    if executor is None:
        raise NotFound("executors are numbered from 0")
    query = dict(parse_qsl(request.scope["query_string"].decode("latin-1")))
    attempt = _number(query["attempt"]) if "attempt" in query else None
    if "attempt" in query and not attempt:
        raise InvalidInput([FieldError("attempt", "must be a number from 1")])
    follow = query.get("follow", "").lower() in ("1", "true", "yes")
    span = request.headers.get("range", "")
    return _Asked(task_id, executor, name, attempt, follow, span, visibility_of(request))


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _is_over(asked: _Asked, record: TaskRecord) -> bool:
    """Whether the attempt asked for will never write again."""
    count = len(record.attempts)
    return record.state in TERMINAL or bool(asked.attempt and asked.attempt < count)


def _span(wanted: str, size: int) -> range | None:
    """The bytes that a Range header asks for; None for all, also when it is not understood or asks
    for several ranges (RFC 9110, section 14.2). Raises HttpError 416."""
    match = _RANGE.fullmatch(wanted)
    if not match or (not match[1] and not match[2]):
        return None
    if not match[1]:
        length = int(match[2])
        if not length or not size:
            raise _unsatisfiable(size)
        return range(max(0, size - length), size)
    start = int(match[1])
    end = int(match[2]) if match[2] else size - 1
    if end < start and match[2]:
        return None
    if start >= size:
        raise _unsatisfiable(size)
    return range(start, min(end, size - 1) + 1)


def _unsatisfiable(size: int) -> HttpError:
    headers = [(b"content-range", b"bytes */%d" % size)]
    return HttpError(416, "range_not_satisfiable", f"the stream has {size} bytes", headers)

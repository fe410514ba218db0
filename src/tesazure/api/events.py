"""Server-sent events of state changes (WHATWG HTML, section 9.2), resumable by Last-Event-ID.

One reader follows the store's events and keeps the newest in memory; every client reads from there
at its own pace, or from the store for what is older. A slow client thus costs no memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from bisect import bisect_right
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from urllib.parse import parse_qsl

import msgspec
from starlette.requests import Request

from tesazure.api.ids import is_task_id
from tesazure.api.parts import EVERYONE, Parts
from tesazure.api.replies import Headers, Reply, Route, Stream
from tesazure.api.tasks import known_id, unknown
from tesazure.api.views import timestamp
from tesazure.errors import FieldError, InvalidInput, StoreUnavailable
from tesazure.model import TERMINAL, State
from tesazure.store.base import Store
from tesazure.store.records import StateEvent

HEARTBEAT_S = 15.0
MAX_TASKS = 1000
"""Tasks that one stream may name."""
_KEPT = 8192
_PAGE = 1000
_IDLE_S = 60.0
_RETRY_S = 1.0
_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
_log = logging.getLogger(__name__)


class Feed:
    """The newest events, read once for all clients. Reads only while somebody listens."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._events: list[StateEvent] = []
        self._floor = 0
        """Events above this number and up to `_head` are in memory."""
        self._head = 0
        self._listeners = 0
        self._changed = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """While this is open the feed is read."""
        self._listeners += 1
        try:
            if self._reader is None:
                self._reader = asyncio.create_task(self._read())
            yield
        finally:
            self._listeners -= 1
            if not self._listeners and self._reader is not None:
                self._reader.cancel()
                self._reader = None
                self._events, self._floor = [], self._head

    async def after(self, number: int, task_ids: Sequence[str]) -> tuple[list[StateEvent], int]:
        """Events above `number` (of the given tasks only, if any), in order, and the number up to
        which there are no others: where to ask on."""
        if number < self._floor:
            events = await self._store.events_after(number, _PAGE, EVERYONE, task_ids)
            if events and (len(events) == _PAGE or events[-1].number > self._floor):
                return events, events[-1].number
            # Nothing between here and where memory begins.
            return events, self._floor
        start = bisect_right(self._events, number, key=lambda event: event.number)
        found = self._events[start:]
        if task_ids:
            found = [event for event in found if event.task_id in task_ids]
        return found, max(number, self._head)

    async def wait(self, number: int, timeout_s: float) -> None:
        """Waits until there may be events above `number`, at most `timeout_s`."""
        changed = self._changed
        if self._head > number:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await changed.wait()

    def nudge(self) -> None:
        """Make all who wait look again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _read(self) -> None:
        begun = False
        while True:
            try:
                if not begun:
                    # What happened while nobody listened is left to the store.
                    self._floor = self._head = await self._store.last_event()
                    begun = True
                    self.nudge()
                if await self._store.wait_for_events(self._head, _IDLE_S):
                    self._keep(await self._store.events_after(self._head, _PAGE, EVERYONE))
            except StoreUnavailable as error:
                _log.warning("cannot read events: %s", error)
                await asyncio.sleep(_RETRY_S)
            except Exception:
                _log.exception("reading events failed")
                await asyncio.sleep(_RETRY_S)

    def _keep(self, events: list[StateEvent]) -> None:
        if not events:
            return
        self._events += events
        self._head = events[-1].number
        if len(self._events) > 2 * _KEPT:
            self._floor = self._events[-_KEPT - 1].number
            del self._events[:-_KEPT]
        self.nudge()


class Events:
    """The handlers."""

    def __init__(self, parts: Parts) -> None:
        self._store = parts.store
        self._clock = parts.clock
        self._closing = parts.closing
        self._feed = Feed(parts.store)

    def routes(self) -> list[Route]:
        """All events, and those of one task."""
        return [
            Route("/api/v1/events", {"GET": self.some}),
            Route("/api/v1/tasks/{id}/events", {"GET": self.one}),
        ]

    def close(self) -> None:
        """End all streams; `parts.closing` is set."""
        self._feed.nudge()

    async def some(self, request: Request) -> Reply | Stream:
        """State changes of all tasks, or of those named by `task_id` (repeated or with commas)."""
        query = parse_qsl(request.scope["query_string"].decode("latin-1"))
        named = [part for name, value in query if name == "task_id" for part in value.split(",")]
        task_ids = tuple(dict.fromkeys(filter(None, named)))
        if len(task_ids) > MAX_TASKS:
            raise InvalidInput([FieldError("task_id", f"names more than {MAX_TASKS} tasks")])
        return await self._stream(request, dict(query), task_ids)

    async def one(self, request: Request) -> Reply | Stream:
        """State changes of one task, its present state first; ends with the task."""
        query = dict(parse_qsl(request.scope["query_string"].decode("latin-1")))
        return await self._stream(request, query, (known_id(request),))

    async def _stream(
        self, request: Request, query: dict[str, str], task_ids: tuple[str, ...]
    ) -> Reply | Stream:
        last = _last_event_id(request, query)
        head = await self._store.last_event()
        if last is not None and last > head:
            last = None  # from another installation, or before its database was made anew
        states = await self._states(task_ids)
        if last is None:
            first = await self._snapshot(states, head)
            return Stream(200, self._events(first, head, states), _HEADERS)
        if states:
            missed = await self._store.events_after(last, _PAGE, EVERYONE, task_ids)
            changed = {e.task_id for e in missed} if len(missed) < _PAGE else states.keys()
            states.update((task_id, State.UNKNOWN) for task_id in changed)
            if TERMINAL.issuperset(states.values()):
                # 204 tells an EventSource not to come back (WHATWG HTML, section 9.2.3).
                return Reply(204, b"", [(b"cache-control", b"no-store")])
        return Stream(200, self._events([], last, states), _HEADERS)

    async def _states(self, task_ids: Sequence[str]) -> dict[str, State]:
        states = {}
        for task_id in task_ids:
            brief = await self._store.get_brief(task_id, EVERYONE) if is_task_id(task_id) else None
            if brief is None:
                raise unknown(task_id)
            states[task_id] = brief.state
        return states

    async def _snapshot(self, states: dict[str, State], head: int) -> list[bytes]:
        """The present state of each task, with the time at which it was entered where known."""
        if not states:
            return []
        known = await self._store.events_after(0, _PAGE, EVERYONE, tuple(states))
        times = {(event.task_id, event.state): event.time for event in known}
        now = self._clock()
        return [
            _encoded(head, task_id, state, times.get((task_id, state), now))
            for task_id, state in states.items()
        ]

    async def _events(
        self, first: list[bytes], number: int, states: dict[str, State]
    ) -> AsyncGenerator[bytes, None]:
        """`first`, then the events above `number`; of the tasks in `states`, if any, until all of
        them have ended."""
        task_ids = tuple(states)
        yield b"retry: 1000\n\n" + b"".join(first)
        written = time.monotonic()
        async with self._feed.listening():
            while not self._closing.is_set():
                events, number = await self._feed.after(number, task_ids)
                news = [e for e in events if states.get(e.task_id) is not e.state]
                if task_ids:
                    states.update((event.task_id, event.state) for event in news)
                quiet = time.monotonic() - written
                if news:
                    yield b"".join(_encoded(e.number, e.task_id, e.state, e.time) for e in news)
                    written = time.monotonic()
                elif quiet >= HEARTBEAT_S:
                    yield b": still here\n\n"
                    written = time.monotonic()
                if task_ids and TERMINAL.issuperset(states.values()):
                    return
                if not events:
                    await self._feed.wait(number, max(0.0, HEARTBEAT_S - quiet))


def _encoded(number: int, task_id: str, state: State, when: float) -> bytes:
    data = msgspec.json.encode({"id": task_id, "state": state, "time": timestamp(when)})
    return b"event: state\nid: %d\ndata: %b\n\n" % (number, data)


def _last_event_id(request: Request, query: dict[str, str]) -> int | None:
    given = request.headers.get("last-event-id") or query.get("last_event_id") or ""
    if not given:
        return None
    if not (given.isascii() and given.isdigit() and len(given) < 19):
        raise InvalidInput([FieldError("last_event_id", "must be the id of an event")])
    return int(given)

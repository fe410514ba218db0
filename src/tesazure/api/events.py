"""Server-sent events of state changes (WHATWG HTML, section 9.2), resumable by Last-Event-ID.

One reader follows the store's events and keeps the newest in memory; every client reads from there
at its own pace, or from the store for what is older. A slow client thus costs no memory.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from urllib.parse import parse_qsl

import msgspec
from starlette.requests import Request

from tesazure.api.feed import Feed
from tesazure.api.ids import is_task_id
from tesazure.api.parts import Parts
from tesazure.api.renewal import Renewal
from tesazure.api.replies import Headers, Reply, Route, Stream
from tesazure.api.tasks import known_id, unknown
from tesazure.api.views import timestamp
from tesazure.callers import EVERYTHING, Visibility
from tesazure.errors import FieldError, InvalidInput
from tesazure.model import TERMINAL, State
from tesazure.store.records import StateEvent

HEARTBEAT_S = 15.0
MAX_TASKS = 1000
"""Tasks that one stream may name."""
_HEARTBEAT = b": still here\n\n"
_PAGE = 1000
_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class Events:
    """The handlers."""

    def __init__(self, parts: Parts, feed: Feed) -> None:
        self._store = parts.store
        self._clock = parts.clock
        self._closing = parts.closing
        self._gate = parts.gate
        self._feed = feed

    def routes(self) -> list[Route]:
        """All events, and those of one task."""
        return [
            Route("/api/v1/events", {"GET": self.some}),
            Route("/api/v1/tasks/{id}/events", {"GET": self.one}),
        ]

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
        renewal = Renewal(self._gate, self._closing, request)
        head = await self._store.last_event()
        begin = b"retry: 1000\n\n"
        if last is not None and last > head:
            last = None  # from another installation, or before its database was made anew
        elif last and await self._is_pruned(last):
            begin += b": events after %d are no longer kept; going on from %d\n\n" % (last, head)
            last = None
        number = head if last is None else last
        entered = await self._entered(task_ids, number, renewal.visibility)
        states = {task_id: at.state for task_id, at in entered.items()}
        if last is None:
            begin += b"".join(
                _encoded(number, task_id, at.state, at.time)
                for task_id, at in entered.items()
                if at.state is not State.UNKNOWN
            )
        elif states and TERMINAL.issuperset(states.values()):
            # 204 tells an EventSource not to come back (WHATWG HTML, section 9.2.3).
            return Reply(204, b"", [(b"cache-control", b"no-store")])
        return Stream(200, self._events(begin, number, states, renewal), _HEADERS)

    async def _is_pruned(self, last: int) -> bool:
        """Whether events above `last` have been deleted, whoever's."""
        oldest = await self._store.events_after(0, 1, EVERYTHING)
        return bool(oldest) and oldest[0].number > last + 1

    async def _entered(
        self, task_ids: Sequence[str], number: int, visibility: Visibility
    ) -> dict[str, _Entered]:
        """The state of each task as of the event `number`, so that those above it go on from there;
        UNKNOWN where one of these will be the first to tell."""
        if not task_ids:
            return {}
        briefs = await self._store.get_briefs([*filter(is_task_id, task_ids)], visibility)
        for task_id in task_ids:
            if task_id not in briefs:
                raise unknown(task_id)
        now = self._clock()
        # Holds for tasks without events, which were read after this: so nothing has changed since.
        entered = {task_id: _Entered(briefs[task_id].state, now) for task_id in task_ids}
        told: set[str] = set()
        for event in await self._kept(task_ids, visibility):
            if event.number <= number:
                entered[event.task_id] = _Entered(event.state, event.time)
            elif event.task_id not in told:
                entered[event.task_id] = _Entered(State.UNKNOWN, now)
            told.add(event.task_id)
        return entered

    async def _kept(self, task_ids: Sequence[str], visibility: Visibility) -> list[StateEvent]:
        """All events of the tasks that have not been deleted."""
        events: list[StateEvent] = []
        while task_ids:
            after = events[-1].number if events else 0
            page = await self._store.events_after(after, _PAGE, visibility, task_ids)
            events += page
            if len(page) < _PAGE:
                break
        return events

    async def _events(
        self, begin: bytes, number: int, states: dict[str, State], renewal: Renewal
    ) -> AsyncGenerator[bytes, None]:
        """`begin`, then the events above `number`; of the tasks in `states`, if any, until all of
        them have ended."""
        task_ids = tuple(states)
        yield begin
        written = time.monotonic()
        async with self._feed.listening():
            while not self._closing.is_set():
                if task_ids and TERMINAL.issuperset(states.values()):
                    return
                refusal = await renewal.refusal()
                if refusal:
                    yield b": this stream ends: %b\n\n" % refusal.encode("ascii", "replace")
                    return
                if refusal is None:
                    yield _HEARTBEAT
                    written = time.monotonic()
                    continue
                events, number = await self._feed.after(number, renewal.visibility, task_ids)
                quiet = time.monotonic() - written
                if events:
                    yield b"".join(_encoded(e.number, e.task_id, e.state, e.time) for e in events)
                    written = time.monotonic()
                    if task_ids:
                        states.update((event.task_id, event.state) for event in events)
                    continue
                if quiet >= HEARTBEAT_S:
                    yield _HEARTBEAT
                    written, quiet = time.monotonic(), 0.0
                await self._feed.wait(number, HEARTBEAT_S - quiet)


class _Entered(msgspec.Struct, frozen=True):
    """A state and when it was entered, in seconds since the epoch; now, where that is not known."""

    state: State
    time: float


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

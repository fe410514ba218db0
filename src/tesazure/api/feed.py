"""The newest state changes, read from the store once for all who follow them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from bisect import bisect_right
from collections.abc import AsyncIterator, Sequence

from tesazure.callers import EVERYTHING, Visibility
from tesazure.errors import StoreUnavailable
from tesazure.store.base import Store
from tesazure.store.records import StateEvent

_KEPT = 8192
_PAGE = 1000
_IDLE_S = 60.0
_RETRY_S = 1.0
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

    async def after(
        self, number: int, visibility: Visibility, task_ids: Sequence[str]
    ) -> tuple[list[StateEvent], int]:
        """Events above `number` that a caller sees (of the given tasks only, if any), in order, and
        the number up to which there are no others: where to ask on."""
        floor = self._floor
        if number < floor:
            events = await self._store.events_after(number, _PAGE, visibility, task_ids)
            if events and (len(events) == _PAGE or events[-1].number > floor):
                return events, events[-1].number
            # Nothing between here and where memory began when the store was asked.
            return events, floor
        start = bisect_right(self._events, number, key=lambda event: event.number)
        found = self._events[start:]
        if not visibility.everyone:
            found = [event for event in found if visibility.sees(event.owner, event.tenant)]
        if task_ids:
            wanted = frozenset(task_ids)
            found = [event for event in found if event.task_id in wanted]
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
                    self._keep(await self._store.events_after(self._head, _PAGE, EVERYTHING))
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

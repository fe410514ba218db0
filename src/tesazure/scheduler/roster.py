"""The tasks that one server looks after, kept true to the store without reading all of them again
whenever one changes."""

from __future__ import annotations

from collections.abc import Collection

from tesazure.callers import EVERYTHING
from tesazure.model import State
from tesazure.store.base import Store
from tesazure.store.records import Watched

EVENTS = 1000
"""Events read at once."""


class Roster:
    """Reads what this server did not write itself. `server` is its name in the store."""

    def __init__(self, store: Store, server: str) -> None:
        self.tasks: dict[str, Watched] = {}
        """By id, as last committed or read."""
        self.stale = True
        """All is to be read."""
        self.doubtful: set[str] = set()
        """Ids of tasks that are to be read before anything more is done about them."""
        self._store = store
        self._server = server
        self._last_event = 0

    async def hear(self) -> bool:
        """Read the store's events since the last ones; whether there are any. A cancel is all that
        others write to a task of this server."""
        if self.stale:
            return True
        heard = False
        while news := await self._store.events_after(self._last_event, EVENTS, EVERYTHING):
            heard = True
            self._last_event = news[-1].number
            canceled = (event.task_id for event in news if event.state is State.CANCELING)
            self.doubtful.update(task_id for task_id in canceled if task_id in self.tasks)
        return heard

    async def refresh(self, busy: Collection[str]) -> Collection[str]:
        """Read what has to be, but for those tasks that are being acted on: they may be committed
        while they are read, and are read later. Ids of what was read, or is no longer there."""
        if self.stale:
            return await self._read_all(set(busy))
        wanted = self.doubtful.difference(busy)
        if wanted:
            rows = {row.id: row for row in await self._store.watched(self._server, list(wanted))}
            for task_id in wanted - rows.keys():
                self.tasks.pop(task_id, None)
            self.tasks |= rows
            self.doubtful -= wanted
        return wanted

    async def _read_all(self, busy: set[str]) -> Collection[str]:
        self.stale = False
        self.doubtful = busy
        try:
            # Before the tasks: what happens meanwhile is heard of next time.
            self._last_event = await self._store.last_event()
            rows = {row.id: row for row in await self._store.watched(self._server)}
        except BaseException:
            self.stale = True
            raise
        before = self.tasks
        kept = {i: before[i] for i in busy if i in before}
        self.tasks = {i: row for i, row in rows.items() if i not in busy} | kept
        return (before.keys() | self.tasks.keys()) - busy

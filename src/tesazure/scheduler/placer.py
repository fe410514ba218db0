"""The queue as one server sees it: when it is worth trying to place something, and doing so."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence

from tesazure.backends.base import Backend, Capacity
from tesazure.budgets import Budgets
from tesazure.errors import StaleVersion
from tesazure.model import State
from tesazure.scheduler.ends import UNPLACEABLE, Ends
from tesazure.scheduler.perform import new_key
from tesazure.scheduler.placement import Blocked, Choice, choose, short_of_disk, waits_for
from tesazure.store.base import Store
from tesazure.store.records import Queued, Reservation, TaskRecord

log = logging.getLogger(__name__)

RECHECK_S = 5.0
"""Seconds after which a queue that did not fit is tried again: another server of the scope may have
released something."""
BURST_S = 0.1
"""Seconds in which submissions are taken together while nothing can be placed."""


class Placer:
    """Places queued tasks for one server. `window`: how many, the oldest, are looked at together;
    `backfill_s`: see `placement`."""

    def __init__(
        self,
        store: Store,
        backend: Backend,
        server: str,
        budgets: Budgets,
        window: int,
        backfill_s: float,
        ends: Ends,
    ) -> None:
        self._store = store
        self._backend = backend
        self._server = server
        self._budgets = budgets
        self._window = window
        self._backfill_s = backfill_s
        self._ends = ends
        self.new = True
        """Something may have been submitted or released since the last try."""
        self.retry_at: float | None = None
        """When the first waiting retry may be placed, in seconds since the epoch. One that may be
        and was not is tried with the rest of the queue."""
        self._tried = 0.0
        """When placement was last tried, on the monotonic clock."""
        self._fruitless = False
        self._blocked: Blocked | None = None
        self._queue: Sequence[Queued] = ()
        """Those that the last try left waiting, oldest first."""
        self._used = Reservation(0.0, 0, 0)
        self._room: Capacity | None = None
        """What there was room for at the last try."""
        self._closely = False
        """Disk is short: it is worth a closer look at how much of it is taken."""

    @property
    def settled_at(self) -> float:
        """When submissions that keep coming are worth another look, on the monotonic clock."""
        return self._tried + BURST_S if self._fruitless else 0.0

    @property
    def wanted(self) -> bool:
        """Whether it is time for a try."""
        if self.retry_at is not None and self.retry_at <= time.time():
            return True
        return self.new and time.monotonic() >= self.settled_at

    def rest(self) -> None:
        """Others place what is queued: nothing here is waited for, nor known of it."""
        self.new, self.retry_at, self._queue = False, None, ()

    def made_room(self) -> None:
        """An attempt was released: the queue is looked at again if anything waits in it."""
        self.new = self.new or bool(self._queue)
        self._fruitless = False

    def look_again(self) -> None:
        """Try again what has waited for a while, or may have: nobody tells what other servers
        release, nor when there is a new budget, whose tasks the last try did not see."""
        self.new = self.new or time.monotonic() > self._tried + RECHECK_S

    def retry_after(self, delay_s: float) -> None:
        """A task was queued again, to wait that long."""
        retry_at = time.time() + delay_s
        self.retry_at = min(self.retry_at or retry_at, retry_at)

    async def find_retry(self, now: float) -> None:
        """Ask the store which retry is the first to become due after `now`, in seconds since the
        epoch."""
        self.retry_at = await self._store.next_retry(now)

    def waiting_for(self, task_id: str) -> str | None:
        """Why a task waits, in words, as far as the last try tells."""
        if self._room is None:
            return None
        for place, task in enumerate(self._queue):
            if task.id == task_id:
                what = waits_for(task.reservation, self._used, self._room)
                if what is not None:
                    return f"waiting for {what}"
                return f"waiting behind {place} older tasks" if place else None
        return None

    async def place(self) -> tuple[list[TaskRecord], bool]:
        """Place what fits; end what never can. The tasks placed, and whether to try at once again.
        Raises StoreUnavailable, BackendUnavailable."""
        capabilities = self._backend.capabilities
        room = await self._backend.room(self._closely)
        now, blocked = time.time(), self._blocked
        self.new, self._tried = False, time.monotonic()
        tried: list[tuple[Sequence[Queued], Choice]] = []

        def chosen(queue: Sequence[Queued], used: Reservation) -> Mapping[str, str]:
            choice = choose(
                queue, used, capabilities.capacity, now, self._backfill_s, blocked, room
            )
            tried.append((queue, choice))
            return {task_id: new_key(task_id) for task_id in choice.place}

        try:
            records = await self._store.place(
                self._server, capabilities.scope, chosen, self._window, now, self._budgets.all
            )
        except BaseException:
            self.new = True
            raise
        self._fruitless = not records
        if self.retry_at is not None and self.retry_at <= now:
            await self.find_retry(now)
        if not tried:
            self._queue = ()
            return records, False
        queue, choice = tried[-1]  # a transaction that was begun again chose again
        again = self._take_note(queue, choice, room) or len(records) == self._window
        await self._reject(choice.reject)
        self.new = self.new or again
        return records, again

    def _take_note(self, queue: Sequence[Queued], choice: Choice, room: Capacity | None) -> bool:
        """Remember how the try ended; whether another one may end otherwise."""
        self._blocked, self._used, self._room = choice.blocked, choice.used, room
        gone = {*choice.place, *(task.id for task, _ in choice.reject)}
        self._queue = [task for task in queue if task.id not in gone]
        closely = self._closely
        self._closely = room is not None and any(
            short_of_disk(task.reservation, choice.used, room) for task in self._queue
        )
        return bool(choice.reject) or (self._closely and not closely)

    async def _reject(self, tasks: Sequence[tuple[Queued, str]]) -> None:
        for task, reason in tasks:
            with contextlib.suppress(StaleVersion):
                await self._store.reject(task.id, task.version, reason, time.time())
                self._ends.count(State.SYSTEM_ERROR, UNPLACEABLE)
                log.info("%s", reason, extra={"task": task.id})

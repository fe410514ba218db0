"""What is kept for how long: work files, records, events, and what nobody knows any more."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from itertools import islice

import msgspec

from tesazure.backends.base import Backend
from tesazure.errors import BackendError
from tesazure.lifecycle import Handle, Phase
from tesazure.store.base import Store

log = logging.getLogger(__name__)

BATCH = 100
EVENTS_S = 7 * 86400.0
"""How long state changes can be replayed to listeners, in seconds."""
ORPHAN_S = 3600.0
"""How old an attempt that the store does not know must be before it is deleted, in seconds: older
than any write under way."""


class Kept(msgspec.Struct, frozen=True):
    """Seconds that finished tasks' work files and records are kept; 0: for ever."""

    work_s: float = 86400.0
    records_s: float = 0.0


class Retention:
    """Deletes what has been kept long enough. Every step may fail and be done again."""

    def __init__(self, store: Store, backend: Backend, kept: Kept) -> None:
        self._store = store
        self._backend = backend
        self.kept = kept
        """May be replaced; a pass under way goes on with what it began with."""

    async def run(self) -> None:
        """One pass over everything."""
        now, kept = time.time(), self.kept
        if kept.work_s:
            await self._discard(now - kept.work_s)
        if kept.records_s:
            # A record names its work files: those go first, however long they were to be kept.
            await self._discard(now - kept.records_s)
            while await self._store.forget(now - kept.records_s, BATCH) == BATCH:
                pass
        await self._store.prune_events(now - EVENTS_S)
        await self._store.prune_spending(now)
        lives = [seconds for seconds in (kept.work_s, kept.records_s) if seconds]
        await self._sweep(now - ORPHAN_S, now - min(lives) if lives else 0.0)

    async def _discard(self, ended_before: float) -> None:
        """Delete the work files of tasks that ended before then."""
        scope = self._backend.capabilities.scope
        failed: set[str] = set()
        while True:
            found = await self._store.discardable(scope, ended_before, BATCH + len(failed))
            todo = [task for task in found if task.id not in failed]
            if not todo:
                return
            for task in todo:
                try:
                    for attempt in task.attempts:
                        if attempt.handle is not None and not attempt.discarded:
                            await self._backend.discard(attempt.handle)
                    await self._store.mark_discarded([a.key for a in task.attempts])
                except (BackendError, OSError) as error:
                    failed.add(task.id)
                    log.warning("work files not deleted: %s", error, extra={"task": task.id})

    async def _sweep(self, begun_before: float, ended_before: float) -> None:
        """Delete what the backend holds and no step above finds: attempts that the store does not
        know, and those from before this machine was renamed, which are of a scope that is no more.
        """
        held = await self._backend.held(begun_before)
        for keys in batched(held, BATCH):
            ends = await self._store.ends(keys)
            for key in keys:
                ended = ends.get(key)
                if key not in ends:
                    await self._sweep_one(key, held[key])
                elif ended is not None and ended < ended_before:
                    await self._discard_one(key, held[key])

    async def _discard_one(self, key: str, handle: Handle) -> None:
        try:
            await self._backend.discard(handle)
            await self._store.mark_discarded([key])
        except (BackendError, OSError) as error:
            log.warning("work files not deleted: %s", error, extra={"attempt": key})

    async def _sweep_one(self, key: str, handle: Handle) -> None:
        """Delete an attempt that the store does not know. One that still runs is left alone and
        named in the log: it may be another server's."""
        seen = await self._backend.observe({key: handle})
        if key not in seen or seen[key].phase in (Phase.PENDING, Phase.RUNNING):
            text = "an attempt runs, but no task of this server's store has it"
            log.warning(text, extra={"attempt": key})
            return
        try:
            await self._backend.release(handle)
            await self._backend.discard(handle)
        except (BackendError, OSError) as error:
            text = "an attempt is unknown to the store and not deleted: %s"
            log.warning(text, error, extra={"attempt": key})
        else:
            log.info("an attempt is unknown to the store: deleted", extra={"attempt": key})


def batched(keys: Iterable[str], size: int) -> Iterator[list[str]]:
    """The keys, that many at a time."""
    left = iter(keys)
    while some := list(islice(left, size)):
        yield some

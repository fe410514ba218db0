"""The scheduler: places queued tasks and looks after placed ones, until each has ended.

Driven by events, not by polling: a tick follows a submission, a cancel, a sign of life from the
backend, the end of an action, or a deadline (lease, retry, time limit). A tick decides, on those
tasks that its agenda names; what was decided is done in tasks of its own, one at a time for each
task, so that nothing slow holds it up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence

from tesazure.backends.base import Backend
from tesazure.errors import (
    BackendError,
    NotGranted,
    StaleVersion,
    StoreError,
    StoreUnavailable,
)
from tesazure.json_log import about
from tesazure.lifecycle import (
    Action,
    Advance,
    Attempt,
    Cancel,
    Facts,
    Observation,
    Retry,
    decide,
)
from tesazure.model import TERMINAL, State
from tesazure.scheduler.agenda import Agenda
from tesazure.scheduler.config import SchedulerConfig
from tesazure.scheduler.granting import Granting
from tesazure.scheduler.perform import Performer
from tesazure.scheduler.placer import Placer
from tesazure.scheduler.retention import Kept, Retention
from tesazure.scheduler.roster import Roster
from tesazure.scheduler.trouble import NO_TROUBLE, Trouble, pause_after
from tesazure.store.base import Store
from tesazure.store.records import Watched

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Seconds between looks at what no event tells: other servers' requests, time limits."""
RETENTION_S = 3600.0
"""Seconds between passes of retention."""
FIRST_RETENTION_S = 60.0
"""Seconds from the start to the first pass: a server that is often restarted has one, too."""
TOLD_AFTER = 3
"""Failures in a row after which a task's log says that it is held up."""
NEWS_S = 0.2
"""Seconds between commits of a task's log while its state stays; what came meanwhile goes along."""
LONGEST_PAUSE_S = 2.0
"""Seconds between tries while the store or the backend is away."""
STOP_S = 5.0
"""Seconds that actions under way get to end when the scheduler stops."""

_UNSEEN = "how the attempt stands cannot be told; the server's log says why"


class Scheduler:
    """One server's scheduler. `server` names it in the store: no two living ones share a name."""

    def __init__(
        self,
        store: Store,
        backend: Backend,
        granting: Granting,
        config: SchedulerConfig,
        server: str,
    ) -> None:
        self._store = store
        self._backend = backend
        self._config = config
        self._server = server
        self._performer = Performer(store, backend, granting, config.defaults)
        ends = self._performer.ends
        self._placer = Placer(
            store, backend, server, config.budgets, config.window, config.backfill_s, ends
        )
        self._retention = Retention(store, backend, config.kept)

        self.lag_s = 0.0
        """Seconds from the first signal that the last tick served to its end."""
        self.last_tick = time.monotonic()
        """When the last tick that went well ended (at first: when this was made), on the monotonic
        clock. A healthy scheduler ticks every `LOOK_S`."""
        self.last_error = ""
        """Why the last tick failed; empty when it went well."""
        self.placed = 0
        self.ends: Mapping[tuple[State, str], int] = ends.counts
        self.retries = 0

        self._drains = False
        self._loops: list[asyncio.Task[None]] = []
        self._awake = asyncio.Event()
        self._signalled: float | None = None
        self._urgent = True
        """A tick must not wait for more submissions to come."""
        self._told_of_news = True
        """The store has events that were not read."""
        self._agenda = Agenda()
        self._roster = Roster(store, server)
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._troubled: dict[str, Trouble] = {}
        self._cancel_asked: dict[str, float] = {}
        self._told: dict[str, set[str]] = {}
        """Task id -> what its live attempt waits for or has, as far as its log is known to say."""
        self._unseen: dict[str, float] = {}
        """Task id -> since when the backend has left its attempt out, on the monotonic clock."""
        self._written: dict[str, float] = {}
        """Task id -> when it was last written, on the monotonic clock."""
        self._heartbeat_due = 0.0
        self._look_due = 0.0
        self._lease_until = 0.0

    # -- from outside ---------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin. May be called twice."""
        if not self._loops:
            self._placer.new = self._urgent = self._roster.stale = True
            self._heartbeat_due = 0.0
            self._loops = [
                asyncio.create_task(self._run(), name="scheduler"),
                asyncio.create_task(self._listen(), name="scheduler-listen"),
                asyncio.create_task(self._retain(), name="scheduler-retain"),
            ]

    async def stop(self) -> None:
        """End, and let other servers take over at once; attempts keep running. May be called
        twice, and at any time: what it cuts short is taken up again from the store."""
        loops, self._loops = self._loops, []
        if not loops:
            return
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        if self._busy:
            _, late = await asyncio.wait(self._busy.values(), timeout=STOP_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        with contextlib.suppress(StoreError):
            await self._store.sign_off(self._server)

    def wake(self) -> None:
        """A task was submitted or is to be canceled. Cheap: called after every such request."""
        if not (self._placer.new and self._told_of_news):
            self._placer.new = self._told_of_news = True
            self._signal(urgent=False)

    def drain(self) -> None:
        """Place nothing any more: only look after what was placed. For good."""
        self._drains = True

    def keep(self, kept: Kept) -> None:
        """What is kept for how long, from the next pass of retention on."""
        self._retention.kept = kept

    def waiting_for(self, task_id: str) -> str | None:
        """Why a QUEUED task waits, in words, as far as the last tries tell."""
        if task_id in self._troubled:
            return _held_up(self._troubled[task_id].reason)
        return self._placer.waiting_for(task_id)

    # -- the loop -------------------------------------------------------------------------------

    async def _run(self) -> None:
        failures = 0
        while True:
            await self._wait()
            since = self._signalled if self._signalled is not None else time.monotonic()
            self._signalled, self._urgent = None, False
            try:
                await self._tick()
            except (StoreError, BackendError) as error:
                failures += 1
                self.last_error = str(error)
                if failures == 1:
                    log.warning("the scheduler waits: %s", error)
            except Exception as error:
                failures += 1
                self.last_error = f"{type(error).__name__}: {error}"
                log.exception("the scheduler's tick failed")
            else:
                if failures:
                    log.info("the scheduler goes on after %d failures", failures)
                failures = 0
                self.last_tick, self.last_error = time.monotonic(), ""
            self.lag_s = time.monotonic() - since
            if failures:
                # What the tick left undone is not known: all of it is looked at again.
                self._roster.stale = self._placer.new = self._urgent = True
                await asyncio.sleep(pause_after(failures, 0.2, LONGEST_PAUSE_S))

    def _signal(self, *, urgent: bool = True) -> None:
        if self._signalled is None:
            self._signalled = time.monotonic()
        self._urgent = self._urgent or urgent
        self._awake.set()

    async def _wait(self) -> None:
        """Until there is a reason for a tick."""
        while not self._urgent:
            due = self._due() - time.monotonic()
            if due <= 0:
                return
            self._awake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(due):
                    await self._awake.wait()

    def _due(self) -> float:
        """When the next tick is due if nothing happens, on the monotonic clock."""
        dues = [self._heartbeat_due, self._look_due, self._agenda.due(time.monotonic())]
        if self._placer.new or self._told_of_news:
            dues.append(self._placer.settled_at)
        if self._placer.retry_at is not None:
            dues.append(time.monotonic() + self._placer.retry_at - time.time())
        return min(dues)

    async def _tick(self) -> None:
        await self._keep_lease()
        if time.monotonic() > self._lease_until:
            return
        if time.monotonic() >= self._look_due:
            self._look()
        if self._told_of_news:
            await self._hear()
        for task_id in await self._roster.refresh(self._busy.keys()):
            if task_id in self._roster.tasks:
                self._agenda.look_at(task_id)
            else:
                self._forget(task_id)
        failure: BackendError | None = None
        if self._drains:
            self._placer.rest()
        elif self._placer.wanted:
            try:
                await self._place()
            except BackendError as error:
                failure = error
        await self._follow()
        if failure is not None:
            raise failure

    async def _keep_lease(self) -> None:
        """Renew the lease in time; take over what dead servers left. Without a lease nothing is
        done: another server may look after the tasks by now."""
        now = time.monotonic()
        if now < self._heartbeat_due:
            return
        scope, lease_s = self._backend.capabilities.scope, self._config.lease_s
        await self._store.heartbeat(self._server, scope, lease_s)
        if now > self._lease_until:
            self._roster.stale = True
        self._lease_until = now + lease_s
        self._heartbeat_due = now + lease_s / 3
        taken = await self._store.take_over(self._server, scope)
        if taken:
            log.info("took over %d tasks", taken)
            self._roster.stale = self._placer.new = True

    def _look(self) -> None:
        """What no event of this process tells: what other servers wrote, time limits."""
        self._look_due = time.monotonic() + LOOK_S
        self._told_of_news = True
        self._placer.look_again()
        self._agenda.look_at_all()

    async def _hear(self) -> None:
        """Learn of submissions, cancels and retries, of other servers too."""
        self._told_of_news = False
        if await self._roster.hear():
            self._placer.new = True
            await self._placer.find_retry(time.time())

    async def _place(self) -> None:
        records, again = await self._placer.place()
        for record in records:
            self._roster.tasks[record.id] = self._performer.placed(record)
            self._agenda.look_at(record.id)
        self.placed += len(records)
        self._urgent = self._urgent or again

    # -- attempts -------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Observe in bulk, decide for each task, and begin what was decided."""
        now = time.monotonic()
        wanted = self._agenda.take(now)
        tasks = self._roster.tasks
        found = tasks.values() if wanted is None else map(tasks.get, wanted)
        ready = [
            task
            for task in found
            if task is not None
            and task.id not in self._busy
            and task.id not in self._roster.doubtful
            and self._troubled.get(task.id, NO_TROUBLE).due <= now
        ]
        handles = {
            task.attempt.key: task.attempt.handle
            for task in ready
            if task.attempt and task.attempt.handle and task.state not in TERMINAL
        }
        seen: Mapping[str, Observation] = {}
        failure: Exception | None = None
        if handles:
            try:
                seen = await self._backend.observe(handles)
            except Exception as error:
                # What needs no observation goes on.
                failure = error
        wall = time.time()
        for task in ready:
            key = task.attempt.key if task.attempt else ""
            if key in handles and key not in seen and failure is None:
                if now >= self._unseen.setdefault(task.id, now) + self._config.unseen_s:
                    self._busy[task.id] = asyncio.create_task(self._hold_up(task, _UNSEEN))
                continue
            if key in seen:
                self._unseen.pop(task.id, None)
            actions = self._decided(task, seen.get(key), wall)
            if actions is None or self._can_wait(task, actions, now):
                continue
            if actions:
                self._busy[task.id] = asyncio.create_task(self._act(task, actions))
            elif key in seen or key not in handles:
                self._troubled.pop(task.id, None)
        if wanted is None:
            self._agenda.rest(time.monotonic() - now, time.monotonic())
        if failure is not None:
            raise failure

    def _decided(self, task: Watched, seen: Observation | None, wall: float) -> list[Action] | None:
        """What to do about a task; None if what is known of it makes no sense: it alone is held up
        by that."""
        try:
            return decide(self._facts(task), seen, wall, self._config.policy)
        except Exception as error:
            log.exception("what to do is not known", extra={"task": task.id})
            self._busy[task.id] = asyncio.create_task(self._hold_up(task, repr(error)))
            return None

    def _can_wait(self, task: Watched, actions: Sequence[Action], now: float) -> bool:
        """Whether to put off a commit that only keeps the log up, as one was made just now."""
        due = self._written.get(task.id, 0.0) + NEWS_S
        match actions:
            case [Advance(state=None)] if now < due:
                self._agenda.look_later(task.id, due)
                return True
            case _:
                return False

    def _facts(self, task: Watched) -> Facts:
        row, trouble = task.attempt, self._troubled.get(task.id, NO_TROUBLE)
        attempt = row and Attempt(row.number, row.key, row.started, row.handle, row.released)
        return Facts(
            task_id=task.id,
            state=task.state,
            max_runtime_s=task.max_runtime_s,
            attempt=attempt or None,
            seen_events=row.seen_events if row else 0,
            ungranted=trouble.reason if trouble.ungranted >= self._config.grant_tries else "",
            cancel_asked=self._cancel_asked.get(task.id),
            told=self._told.get(task.id, ()),
        )

    async def _act(self, task: Watched, actions: Sequence[Action]) -> None:
        """Carry out the actions on one task. Its failure stays its own, and is tried again."""
        ids = about(task=task.id, attempt=task.attempt.key if task.attempt else None)
        try:
            done = await self._performer.perform(task, actions)
        except StaleVersion:
            self._roster.doubtful.add(task.id)
        except StoreUnavailable as error:
            self._trouble(task, str(error))
        except BackendError as error:
            await self._trouble_told(task, str(error), ungranted=isinstance(error, NotGranted))
        except Exception as error:
            log.exception("an action failed", extra={"task": task.id})
            await self._trouble_told(task, str(error))
        else:
            self._troubled.pop(task.id, None)
            if any(isinstance(action, Cancel) for action in actions):
                self._cancel_asked.setdefault(task.id, time.time())
            self._settle(done, actions)
        finally:
            self._free(task)
            ids.clear()  # what it began, such as a process for all attempts, may go on

    def _free(self, task: Watched) -> None:
        """Nothing is being done about a task any more."""
        del self._busy[task.id]
        self._agenda.look_at(task.id)
        self._signal()

    def _settle(self, after: Watched, actions: Sequence[Action]) -> None:
        """Take note of a task as it was committed."""
        released = after.attempt is None or after.attempt.released
        for action in actions:
            if isinstance(action, Advance) and action.waits:
                self._told.setdefault(after.id, set()).add(action.waits)
            if isinstance(action, Retry):
                self.retries += 1
                self._placer.retry_after(action.delay_s)
        if released and (after.state in TERMINAL or after.state is State.QUEUED):
            self._forget(after.id)
            self._placer.made_room()
        else:
            self._roster.tasks[after.id] = after
            self._written[after.id] = time.monotonic()

    def _forget(self, task_id: str) -> None:
        self._roster.tasks.pop(task_id, None)
        self._cancel_asked.pop(task_id, None)
        self._told.pop(task_id, None)
        self._troubled.pop(task_id, None)
        self._unseen.pop(task_id, None)
        self._written.pop(task_id, None)
        self._performer.forget(task_id)

    async def _hold_up(self, task: Watched, reason: str) -> None:
        """Nothing can be done about a task for now."""
        try:
            await self._trouble_told(task, reason)
        finally:
            self._free(task)

    async def _trouble_told(self, task: Watched, reason: str, *, ungranted: bool = False) -> None:
        """As `_trouble`; when it lasts, whoever looks at the task is told."""
        if self._trouble(task, reason, ungranted=ungranted) == TOLD_AFTER:
            with contextlib.suppress(StoreError):
                await self._performer.say(task.id, _held_up(reason))

    def _trouble(self, task: Watched, reason: str, *, ungranted: bool = False) -> int:
        """Have a task tried again, ever later; how often it failed in a row."""
        before = self._troubled.get(task.id, NO_TROUBLE)
        failures = before.failures + 1
        delay = pause_after(failures, 0.5, 60.0)
        due = time.monotonic() + delay
        self._troubled[task.id] = Trouble(failures, before.ungranted + ungranted, reason, due)
        self._agenda.look_later(task.id, due)
        self._roster.doubtful.add(task.id)  # whether the last write was committed is not known
        log.warning("tried again in %g s: %s", delay, reason, extra={"task": task.id})
        return failures

    # -- beside the loop ------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Signal the loop when an attempt may have changed."""
        failed = False
        while True:
            try:
                changed = await self._backend.changed(LOOK_S)
            except Exception as error:
                if not failed:
                    log.warning("the backend tells no news: %s", error, exc_info=error)
                failed = True
                await asyncio.sleep(LOOK_S)
                changed = True  # as long as nothing is heard, it is looked
            else:
                failed = False
            if changed:
                self._agenda.look_at_all()
                self._signal()

    async def _retain(self) -> None:
        """Delete what was kept long enough, now and then."""
        kept = [s for s in (self._config.kept.work_s, self._config.kept.records_s) if s]
        interval = min([RETENTION_S, *(max(s / 4, 1.0) for s in kept)])
        pause = min(interval, FIRST_RETENTION_S)
        while True:
            await asyncio.sleep(pause)
            pause = interval
            try:
                await self._retention.run()
            except (StoreError, BackendError) as error:
                log.warning("retention is put off: %s", error)
            except Exception:
                log.exception("retention failed")


def _held_up(reason: str) -> str:
    return f"held up, and tried again: {reason}"

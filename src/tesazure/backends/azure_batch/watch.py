"""What is known of the attempts on Batch, kept up by passes beside the scheduler.

A pass asks little, however many attempts there are and however long they run: one list of the tasks
of each job that changed since the last one, one list of all reports, and the parts of reports that
are new. What waits, or has lost its node, has its pool looked at. Passes come often while things
happen, and ever less often while nothing does; the longer they take, the longer is the pause after
them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from tesazure.backends.azure_batch import words
from tesazure.backends.azure_batch.account import Account, Gone
from tesazure.backends.azure_batch.bill import bill_of
from tesazure.backends.azure_batch.files import AttemptFiles
from tesazure.backends.azure_batch.known import Known, fold
from tesazure.backends.azure_batch.listing import Listing
from tesazure.backends.azure_batch.pools import Pools
from tesazure.backends.azure_batch.words import Row
from tesazure.errors import BackendError, BackendUnavailable
from tesazure.lifecycle import Bill, Observation, Phase

log = logging.getLogger(__name__)

READERS = 16
"""Reports read, and tasks asked for by themselves, at once."""
STRIPPED = 64
"""Attempts whose secrets are taken out of storage in one pass, and READERS / 2 at once: passes are
not to be held up by it."""
SHARE = 5
"""One part of so many of the time is spent in passes at most, unless that takes a longer pause than
`Pace.late_s`: when thousands of reports are listed, what asks most of storage is not to be the
looking."""
LONG = 256 * 1024
"""Bytes of a report from which on it is first read beside the event loop."""


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How often is looked, in seconds."""

    soon_s: float = 1.0
    late_s: float = 15.0
    """Between passes, while things happen and when nothing has for long."""
    tasks_s: float = 3.0
    """Between lists of tasks at least, and twice as long as between passes: what a task does, its
    report tells sooner."""
    whole_s: float = 300.0
    """Between lists of all tasks of a job, which alone show that somebody deleted one."""
    pool_s: float = 10.0
    """Between looks at a pool in which attempts wait."""
    tidy_s: float = 60.0
    """Between looks for pools that nobody uses."""
    stuck_s: float = 30.0
    """When reading an attempt's report takes longer, it may have ended unseen meanwhile."""
    unasked_s: float = 600.0
    """After so long an attempt that nobody asks for is forgotten: another server has it."""


class Watch:
    """Watches the attempts that it was told of."""

    def __init__(self, account: Account, files: AttemptFiles, pools: Pools, pace: Pace) -> None:
        self._files = files
        self._pools = pools
        self._pace = pace
        self._listing = Listing(account, pace.whole_s)
        self._known: dict[str, Known] = {}
        self._changed = asyncio.Event()
        self._nudged = asyncio.Event()
        self._passed = asyncio.Condition()
        self._unlisted: dict[str, str] = {}
        """Job -> why its tasks could not be listed the last time."""
        self._trouble = ""
        """What keeps passes from seeing all that they should; empty: nothing."""
        self._loop: asyncio.Task[None] | None = None
        self._tidying: asyncio.Task[None] | None = None
        self._pause = pace.soon_s
        """Between this pass and the next one, in seconds."""
        self._pass_due = self._tasks_due = self._tidy_due = 0.0
        """When these are to be done at the latest, on the monotonic clock."""
        self._rested = 0.0
        """When the next pass may be at the earliest, but for attempts that nobody looked at yet."""

    async def start(self) -> None:
        """Begin. May be called twice."""
        if self._loop is None:
            self._tidy_due = time.monotonic() + self._pace.tidy_s
            self._loop = asyncio.create_task(self._run(), name="azure-batch-watch")

    async def stop(self) -> None:
        """End. May be called twice."""
        loop, self._loop = self._loop, None
        tidying, self._tidying = self._tidying, None
        for task in (loop, tidying):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    # -- from outside ---------------------------------------------------------------------------

    def begin(self, key: str, job: str) -> None:
        """An attempt that this server has just submitted: there is nothing to be seen of it yet."""
        known = self._known.get(key)
        if known is None or known.missing:
            self._known[key] = Known(job, looked_at=True)
            self._pause = self._pace.soon_s
            self._hurry(self._pause)

    def drop(self, key: str) -> None:
        """It was released."""
        self._known.pop(key, None)

    def find(self, key: str) -> Known | None:
        """What is known of an attempt that is watched."""
        return self._known.get(key)

    def hurry(self) -> None:
        """Something was asked of Batch whose effect is waited for."""
        self._tasks_due = 0.0
        self._hurry(self._pace.soon_s / 4)

    async def observe(
        self, attempts: Mapping[str, str], patience_s: float
    ) -> dict[str, Observation]:
        """How attempts (key -> job) stand; without those that have not been looked at yet, of which
        nothing is known. For those that are new here, a look is waited for, for so many seconds.
        Raises BackendUnavailable when looks fail and nothing is known of any."""
        now, came = time.monotonic(), False
        for key, job in attempts.items():
            known = self._known.get(key)
            if known is None or known.job != job:  # another server put it into another job
                known = self._known[key] = Known(job)
                self._hurry(0)
                came = True
            known.asked = now
        if came and not self._trouble:
            await self._wait_for_look(attempts, patience_s)
        waits = {job: self._pools.reason(job) for job in set(attempts.values())}
        seen = {}
        for key in attempts:
            known = self._known.get(key)
            if known is not None and known.looked_at:
                seen[key] = self._observation(known, waits[known.job])
        if self._trouble and attempts and not seen:
            raise BackendUnavailable(self._trouble)
        return seen

    async def ask(self, job: str, key: str) -> Row | None:
        """What Batch says of a task; None if it has none. Raises BackendUnavailable."""
        return await self._listing.one(job, key)

    async def changed(self, timeout_s: float) -> bool:
        """Until something may have changed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        changed = self._changed.is_set()
        self._changed.clear()
        return changed

    def _observation(self, known: Known, waits: str) -> Observation:
        report, row = known.report, known.row
        if report.ended is not None:
            return Observation(Phase.EXITED, report)
        bill = bill_of(known, self._pools.placement)
        if known.over:
            return self._lost(known, bill)
        if known.begun:
            since, heard = known.hearing(self._pace.stuck_s)
            return Observation(Phase.RUNNING, report, bill=bill, since=since, heard=heard)
        if self._pools.is_lost(known.job):
            return Observation(Phase.MISSING, report, waits, bill)
        return Observation(Phase.PENDING, report, words.progress(row, waits), bill)

    def _lost(self, known: Known, bill: Bill | None) -> Observation:
        """One that comes to no end of its own."""
        report, row = known.report, known.row
        if known.missing or row is None:
            text = "there is no such Batch task any more"
            return Observation(Phase.MISSING, report, text, bill)
        node = self._pools.failed_node(known.job, known.node)
        if known.is_taken:
            return Observation(Phase.PREEMPTED, report, words.loss(row, node), bill)
        return Observation(Phase.EXITED, report, words.failure(row, node), bill)

    async def _wait_for_look(self, keys: Collection[str], patience_s: float) -> None:
        """Until the attempts have been looked at, or a pass failed."""

        def is_done() -> bool:
            known = (self._known.get(key) for key in keys)
            return bool(self._trouble) or all(one is None or one.looked_at for one in known)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s), self._passed:
                await self._passed.wait_for(is_done)

    def _hurry(self, seconds: float) -> None:
        """Have the next pass no later than then, or as soon as the last one allows; 0: at once."""
        due = time.monotonic() + seconds
        if seconds == 0:
            self._rested = due
        if seconds == 0 or due < self._pass_due:  # else a pass that is due may still rest
            self._pass_due = due
            self._nudged.set()

    # -- the passes -----------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._pass_due = time.monotonic() + self._pace.late_s
            self._tidy_if_due()
            began = time.monotonic()
            news = await self._pass()
            ended = time.monotonic()
            self._rested = ended + min((SHARE - 1) * (ended - began), self._pace.late_s)
            if news:
                self._pause = self._pace.soon_s
            else:
                self._pause = min(self._pause * 1.3, self._pace.late_s)
            came = any(not known.looked_at for known in self._known.values())
            self._hurry(0 if came and not self._trouble else self._pause)
            await self._rest()

    async def _rest(self) -> None:
        while (left := max(self._pass_due, self._rested) - time.monotonic()) > 0:
            self._nudged.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._nudged.wait()

    async def _pass(self) -> bool:
        """Look once; whether anything was new."""
        look = _Look()
        trouble = ""
        try:
            self._forget_unasked()
            # What is over, too, until it has been looked at: before, nobody is told of it.
            live = {
                key: known
                for key, known in self._known.items()
                if not (known.over and known.looked_at)
            }
            if live:
                await self._look(live, look)
            else:
                self._unlisted.clear()
            trouble = "; ".join(dict.fromkeys([*self._unlisted.values(), *look.troubles]))
        except BackendError as error:
            trouble = str(error)
        except Exception as error:
            log.exception("a look at Azure Batch failed")
            trouble = f"{type(error).__name__}: {error}"
        if trouble and trouble != self._trouble:
            log.warning("attempts on Azure Batch cannot be looked at: %s", trouble)
        elif self._trouble and not trouble:
            log.info("attempts on Azure Batch can be looked at again")
        self._trouble = trouble
        async with self._passed:
            self._passed.notify_all()
        if look.news:
            self._changed.set()
        return look.news

    def _tidy_if_due(self) -> None:
        """Beside the passes, which are not to wait for it; one at a time."""
        under_way = self._tidying is not None and not self._tidying.done()
        if under_way or time.monotonic() < self._tidy_due:
            return
        self._tidy_due = time.monotonic() + self._pace.tidy_s
        self._tidying = asyncio.create_task(self._tidy(), name="azure-batch-tidy")

    async def _tidy(self) -> None:
        try:
            known = self._known.values()
            await self._pools.tidy({each.job for each in known}, _waiting(known))
        except BackendError as error:
            log.warning("pools that nobody uses are left for now: %s", error)
        except Exception:
            log.exception("a look for pools that nobody uses failed")

    async def _look(self, live: Mapping[str, Known], look: _Look) -> None:
        """Tasks before reports: a runner delivers its report before its task is completed."""
        now = time.monotonic()
        fresh = {key: known for key, known in live.items() if not known.looked_at}
        if fresh or now >= self._tasks_due:
            by_job: dict[str, dict[str, Known]] = {}
            for key, known in live.items():
                by_job.setdefault(known.job, {})[key] = known
            self._listing.keep(by_job.keys())
            self._unlisted.clear()
            self._tasks_due = now + max(self._pace.tasks_s, 2 * self._pause)
            async with asyncio.TaskGroup() as group:
                for job, attempts in by_job.items():
                    group.create_task(self._look_at_job(job, attempts, look))
        look.news = look.news or bool(fresh)
        await self._read_reports(live, look)
        await self._strip(live, look)
        await self._look_at_pools(live, look)

    async def _look_at_job(self, job: str, attempts: Mapping[str, Known], look: _Look) -> None:
        """Take note of what a job's list says. Its failure is this job's alone."""
        fresh = [key for key, known in attempts.items() if not known.looked_at]
        # A few are asked for by themselves, for which a long list need not be read.
        whole = self._listing.is_due(job) or len(fresh) > READERS
        began = time.monotonic()
        try:
            rows = await self._listing.look(job, whole=whole)
        except BackendError as error:
            if isinstance(error, Gone) and error.is_absent:
                look.absent |= attempts.keys()
                look.news = True
                return
            self._unlisted[job] = str(error)
            look.unseen |= attempts.keys()
            return
        await self._take(job, rows, attempts, look)
        unlisted = [
            key
            for key, known in attempts.items()
            if key not in rows
            and known.since < began
            and (whole or not known.looked_at or known.is_doubtful)
        ]
        for first in range(0, len(unlisted), READERS):
            found: dict[str, Row] = {}
            async with asyncio.TaskGroup() as group:
                for key in unlisted[first : first + READERS]:
                    group.create_task(self._ask(job, key, found, look))
            await self._take(job, found, attempts, look)

    async def _take(
        self, job: str, rows: Mapping[str, Row], attempts: Mapping[str, Known], look: _Look
    ) -> None:
        """Take note of what Batch says. It does not say why a task lost its node, so the pool is
        asked, before anybody hears of the loss."""
        own = {key: row for key, row in rows.items() if key in attempts}
        if job not in look.failing and any(attempts[key].loses(row) for key, row in own.items()):
            look.failing.add(job)
            await self._pools.look_for_failures(job)
        for key, row in own.items():
            look.news |= attempts[key].take(row)

    async def _ask(self, job: str, key: str, found: dict[str, Row], look: _Look) -> None:
        """For one that no list has shown."""
        try:
            row = await self._listing.one(job, key)
        except BackendError as error:
            look.fail(error, [key])
            return
        if row is None:
            look.absent.add(key)
            look.news = True
        else:
            found[key] = row

    async def _sizes(self, live: Mapping[str, Known]) -> Mapping[str, int]:
        """How long the reports are by now."""
        for known in live.values():
            known.reading = min(known.reading, time.time())
        try:
            return await self._files.reports()
        except BackendError:
            for known in live.values():
                known.miss()
            raise

    async def _read_reports(self, live: Mapping[str, Known], look: _Look) -> None:
        """Read what is new. Whose report has been read has been looked at, whatever others take."""
        sizes = await self._sizes(live)
        for key, known in live.items():
            if not known.begun and key in sizes:
                look.news = known.begun = True
        grown = [key for key, known in live.items() if sizes.get(key, 0) > known.read]
        for key in live.keys() - grown:
            live[key].hear(live[key].reading, self._pace.stuck_s)
            look.conclude(key, live[key])
        gate = asyncio.Semaphore(READERS)

        async def read(key: str) -> None:
            known = live[key]
            async with gate:
                begun = time.time()
                try:
                    while known.read < sizes[key]:
                        data = await self._files.read_report(key, known.read)
                        if not data:
                            break  # it was deleted meanwhile
                        await self._fold(key, known, data)
                        look.news = True
                except BackendError as error:
                    known.miss()
                    look.fail(error, [key])
                else:
                    known.hear(begun, self._pace.stuck_s)
                    look.conclude(key, known)

        async with asyncio.TaskGroup() as group:
            for key in grown:
                group.create_task(read(key))

    async def _strip(self, live: Mapping[str, Known], look: _Look) -> None:
        """What began needs no secrets of storage any more. What is over is released, and has none
        then."""
        keys = [key for key, known in live.items() if known.begun and not known.stripped]
        keys = [key for key in keys if not live[key].over][:STRIPPED]
        gate = asyncio.Semaphore(READERS // 2)

        async def strip(key: str) -> None:
            async with gate:
                try:
                    await self._files.strip(key)
                except BackendError as error:
                    look.fail(error)
                else:
                    live[key].stripped = True

        async with asyncio.TaskGroup() as group:
            for key in keys:
                group.create_task(strip(key))

    async def _fold(self, key: str, known: Known, data: bytes) -> None:
        # One that has been looked at, others may be reading.
        if len(data) > LONG and not known.looked_at:
            spoilt = await asyncio.to_thread(fold, known, data)
        else:
            spoilt = fold(known, data)
        for line in spoilt:
            log.warning("a report's line cannot be understood: %s", line, extra={"attempt": key})

    async def _look_at_pools(self, live: Mapping[str, Known], look: _Look) -> None:
        waiting = _waiting(live.values())
        if not waiting:
            return
        before = {job: self._pools.reason(job) for job in waiting}
        try:
            await self._pools.look(waiting)
        except BackendError as error:
            look.fail(error)
        look.news |= any(self._pools.reason(job) != reason for job, reason in before.items())

    def _forget_unasked(self) -> None:
        late = time.monotonic() - self._pace.unasked_s
        for key in [key for key, known in self._known.items() if known.asked < late]:
            del self._known[key]


def _waiting(attempts: Iterable[Known]) -> Mapping[str, int]:
    """Job -> how many of these wait there for a node."""
    return Counter(known.job for known in attempts if known.waits and not known.over)


@dataclass(slots=True)
class _Look:
    """What one pass has found."""

    news: bool = False
    absent: set[str] = field(default_factory=set)
    """Attempts whose task is not there."""
    unseen: set[str] = field(default_factory=set)
    """Attempts that could not be looked at."""
    failing: set[str] = field(default_factory=set)
    """Jobs whose pools were asked what is wrong with their nodes."""
    troubles: dict[str, None] = field(default_factory=dict)

    def fail(self, error: BackendError, keys: Collection[str] = ()) -> None:
        """These could not be looked at, and why."""
        self.unseen.update(keys)
        self.troubles[str(error)] = None

    def conclude(self, key: str, known: Known) -> None:
        """Batch was asked for the attempt, and its report read: unless that failed, it has been
        looked at."""
        if key in self.unseen:
            return
        if known.row is not None and known.row.completed and not known.settled:
            self.news = known.settled = True
        known.missing = known.missing or key in self.absent
        if not known.missing and known.row is not None and known.row.state == "running":
            known.alive = time.time()
        known.looked_at = True

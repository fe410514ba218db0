"""The Store Protocol: the durable truth about tasks.

One implementation on SQLAlchemy Core serves SQLite and PostgreSQL. Every write returns only after
its commit is on disk; writes that arrive together share one commit (group commit). Every write on a
task is compare-and-set on its version. Raises StoreUnavailable when the database cannot answer now.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from tesazure.budgets import Budget, Purse
from tesazure.callers import Visibility
from tesazure.model import State
from tesazure.provisioning import Run, StoredRun
from tesazure.store.records import (
    ApiToken,
    Change,
    Costs,
    KeptSetting,
    ListQuery,
    NewTask,
    Page,
    Queued,
    Reservation,
    StateEvent,
    TaskBrief,
    TaskRecord,
    Watched,
    Workflow,
)

Choose = Callable[[Sequence[Queued], Reservation], Mapping[str, str]]
"""Given the queue (oldest first) and what live attempts of the scope reserve together, the tasks to
place: task id -> key of its new attempt. Pure and quick: runs inside the transaction."""


class Store(Protocol):
    """Tasks, attempts, events, and which server looks after what."""

    async def identity(self) -> str:
        """Random, made with the database and kept in it: the same for all servers on it."""
        ...

    async def sealing_key(self, names: Sequence[str]) -> str:
        """The name of the key that secrets are sealed with, as noted in the database. `names` are
        the caller's keys, the one that it seals with first: that one is noted in place of none, or
        of another of them. Raises StoreUnavailable."""
        ...

    async def ping(self) -> None:
        """Raises StoreUnavailable unless the database can be read and written now."""
        ...

    async def close(self) -> None:
        """Finish the writes under way and close. May be called twice."""
        ...

    # -- what the API needs ---------------------------------------------------------------------

    async def create(self, task: NewTask) -> None:
        """Make a task durable, QUEUED, with its event. Group commit: the busiest path."""
        ...

    async def get(self, task_id: str, visibility: Visibility) -> TaskRecord | None:
        """A task with its attempts; None if there is none or the caller may not see it."""
        ...

    async def get_brief(self, task_id: str, visibility: Visibility) -> TaskBrief | None:
        """As `get`, only what a MINIMAL view needs."""
        ...

    async def get_briefs(
        self, task_ids: Sequence[str], visibility: Visibility
    ) -> dict[str, TaskBrief]:
        """As `get_brief` for each of them, by id, in one read; without those that are None."""
        ...

    async def list_briefs(self, query: ListQuery) -> Page[TaskBrief]:
        """A page of tasks, newest first. A page may hold fewer than `limit` items (even none) and
        still have a next one, when finding more would take too long."""
        ...

    async def list_records(self, query: ListQuery) -> Page[TaskRecord]:
        """As `list_briefs`, whole."""
        ...

    async def list_workflows(
        self, limit: int, before: int | None, visibility: Visibility
    ) -> Page[Workflow]:
        """A page of the workflows that the caller sees a task of, the last begun first. `before` is
        `next_before` of the page before. Cheap with a million tasks."""
        ...

    async def get_workflow(self, workflow_id: str, visibility: Visibility) -> Workflow | None:
        """One of those; None if the caller sees no task of it."""
        ...

    async def costs(self, query: ListQuery, since: float) -> Costs:
        """What the tasks of a list cost that were created at `since` (seconds since the epoch) or
        later, all their attempts: of the newest that are looked at, some `limit` of them."""
        ...

    async def spent(self, purses: Collection[Purse]) -> dict[Purse, int]:
        """What was spent, in billionths of a US dollar, under each of the purses: by all attempts
        since it is counted, also of tasks whose records are gone. Cheap with a million tasks. Of a
        time before this month nothing need be known."""
        ...

    async def request_cancel(self, task_id: str, visibility: Visibility) -> bool | None:
        """QUEUED without an attempt becomes CANCELED at once (by way of CANCELING); other live
        states become CANCELING; CANCELING and terminal states stay. Whether it changed anything;
        None if there is no such task for the caller."""
        ...

    async def events_after(
        self, number: int, limit: int, visibility: Visibility, task_ids: Sequence[str] = ()
    ) -> list[StateEvent]:
        """State changes with a number above `number`, in order; of the given tasks only, if any."""
        ...

    async def last_event(self) -> int:
        """Number of the newest event, 0 if there is none."""
        ...

    async def wait_for_events(self, after: int, timeout_s: float) -> bool:
        """Waits until an event above `after` may exist (True), at most `timeout_s`. Immediate for
        this process's writes, within 100 ms for those of other servers on PostgreSQL."""
        ...

    async def count_by_state(self) -> dict[State, int]:
        """Number of tasks in each state. Cheap with a million tasks."""
        ...

    async def oldest_queued(self) -> float | None:
        """When the oldest QUEUED task was created, in seconds since the epoch."""
        ...

    # -- what the scheduler needs ---------------------------------------------------------------

    async def heartbeat(self, server: str, scope: str, lease_s: float) -> None:
        """Renew this server's lease. Times are the database's. While a server's lease holds, no
        other server touches the tasks it looks after."""
        ...

    async def take_over(self, server: str, scope: str) -> int:
        """Make this server look after all tasks of `scope` whose server's lease has run out, and
        after terminal ones with an unreleased attempt and CANCELING ones that nobody looks after.
        Returns how many. Bumps their versions, so that a server that comes back loses."""
        ...

    async def sign_off(self, server: str) -> None:
        """End this server's lease now (clean shutdown), so that others take over at once."""
        ...

    async def place(
        self,
        server: str,
        scope: str,
        choose: Choose,
        limit: int,
        now: float,
        budgets: Sequence[Budget] = (),
    ) -> list[TaskRecord]:
        """In one transaction, serialised per scope: read up to `limit` QUEUED tasks without a live
        attempt whose retry time has come and of whose budgets none is spent, oldest first, and the
        sum of the reservations of the scope's unreleased attempts; have `choose` choose; commit a
        new attempt (key, number, started=now, a log of nothing but the task's warnings) for each,
        looked after by this server. Returns those placed."""
        ...

    async def sealed(self, task_id: str) -> bytes | None:
        """The sealed secrets of a task's URLs; None if there are none, or the task has ended: they
        are deleted in the commit that ends it."""
        ...

    async def next_retry(self, now: float) -> float | None:
        """When the first retry of those that may not be placed yet may be, in seconds since the
        epoch, as `now` is."""
        ...

    async def watched(self, server: str, task_ids: Sequence[str] | None = None) -> list[Watched]:
        """All tasks this server looks after: those with an attempt and not yet terminal, CANCELING
        ones, and terminal ones whose newest attempt is not released; of the given ones only, if
        any are. Indexed."""
        ...

    async def apply(self, change: Change) -> int:
        """Commit a Change and, if the state changed, its event. Returns the new version. Raises
        StaleVersion when the version differs, ValueError for an illegal transition. A task that
        becomes terminal with its attempt released is looked after by nobody from then on; so is
        one that becomes QUEUED again."""
        ...

    async def reject(self, task_id: str, version: int, reason: str, now: float) -> None:
        """End a QUEUED task that can never run: SYSTEM_ERROR, with an attempt entry that holds only
        system_logs: the task's warnings and this reason. Raises StaleVersion."""
        ...

    # -- API tokens -----------------------------------------------------------------------------

    async def add_api_token(self, token: ApiToken) -> None:
        """Keep a new token."""
        ...

    async def api_tokens(self) -> list[ApiToken]:
        """All tokens, expired ones too, the oldest first."""
        ...

    async def valid_api_tokens(self, now: float) -> list[ApiToken]:
        """Those that have not expired."""
        ...

    async def revoke_api_token(self, token_id: str) -> bool:
        """Forget a token; whether there was one."""
        ...

    async def note_api_token_use(self, token_id: str, day: float) -> None:
        """Note the day on which a token was used, by its beginning in seconds since the epoch."""
        ...

    # -- settings -------------------------------------------------------------------------------

    async def settings(self) -> tuple[int, list[KeptSetting]]:
        """The settings that all servers on this database share, by name, and their version."""
        ...

    async def settings_version(self) -> int:
        """A number that grows with each change of them; 0: there never was one. Cheap."""
        ...

    async def keep_settings(self, kept: Sequence[KeptSetting]) -> int:
        """Keep, replace or forget these, all at once; the version that they then have."""
        ...

    # -- runs of the provisioner ------------------------------------------------------------------

    async def put_provision_run(self, run: Run, version: int, lease_s: float) -> int:
        """Keep a run, of which the caller has read that version (0: there is none yet), under a
        lease for so many seconds of the database's clock (0: nobody works on it). Returns the new
        version. Raises StaleVersion; and Conflict, when the run begins (anew) and another one that
        has not ended has the same things under its hands. The run holds no secret."""
        ...

    async def provision_run(self, run_id: str) -> StoredRun | None:
        """A run, if there is one."""
        ...

    async def provision_runs(self) -> list[StoredRun]:
        """All runs, the newest first."""
        ...

    # -- retention ------------------------------------------------------------------------------

    async def discardable(self, scope: str, ended_before: float, limit: int) -> list[TaskRecord]:
        """Terminal tasks that ended before then, with those of their attempts that are of `scope`,
        released and not all discarded. Longest ended first."""
        ...

    async def holds(self, scope: str, *, live: bool = False) -> bool:
        """Whether there are attempts of the scope that are not released, or, unless only `live`
        ones count, of tasks that have ended, not discarded. Indexed."""
        ...

    async def live_attempts(self) -> dict[str, int]:
        """How many attempts are not released, by scope; none with 0. Indexed."""
        ...

    async def abandon(self, scope: str) -> int:
        """What the attempts of the scope have left is about to be deleted by others: note that of
        those released. Returns how many are not, and then notes nothing."""
        ...

    async def mark_discarded(self, keys: Sequence[str]) -> None:
        """Note that the work files of these attempts are gone."""
        ...

    async def ends(self, keys: Sequence[str]) -> dict[str, float | None]:
        """Those of the attempts that the store knows, of whatever scope: when their task ended, in
        seconds since the epoch; None if it has not, or the attempt is not released."""
        ...

    async def forget(self, ended_before: float, limit: int) -> int:
        """Delete the records of terminal tasks that ended before then and whose attempts are all
        released and discarded. Returns how many."""
        ...

    async def prune_spending(self, now: float) -> None:
        """Forget what was spent in days and months before this month; not what was in all."""
        ...

    async def prune_events(self, before: float) -> int:
        """Delete events older than that, keeping the newest. Returns how many."""
        ...

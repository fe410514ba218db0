"""The Store on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from sqlalchemy import bindparam, insert, update

from tesazure.budgets import Budget, Purse
from tesazure.callers import Visibility
from tesazure.errors import ConfigurationError, StoreUnavailable
from tesazure.model import State
from tesazure.provisioning import Run, StoredRun
from tesazure.store import (
    api_tokens,
    changing,
    kept_settings,
    lists,
    placing,
    provision_runs,
    reading,
    retention,
    schema,
    spending,
    workflows,
)
from tesazure.store.base import Choose
from tesazure.store.engine import Database, Link, Prepared, SignIn
from tesazure.store.records import (
    ApiToken,
    Change,
    Costs,
    KeptSetting,
    ListQuery,
    NewTask,
    Page,
    StateEvent,
    TaskBrief,
    TaskRecord,
    Watched,
    Workflow,
)
from tesazure.store.tables import pings
from tesazure.store.transaction import Transaction, last_event
from tesazure.store.waiting import Newest
from tesazure.store.writer import Writer

T = TypeVar("T")

_READERS = 4
"""Threads that read, each with a connection."""

_PRUNED_AT_ONCE = 20_000

_UPDATE_PING = Prepared(
    update(pings).where(pings.c.id == bindparam("of")).values(time=bindparam("now"))
)
_INSERT_PING = Prepared(insert(pings))


async def open_store(
    url: str, file: Path = Path("tesazure.db"), sign_in: SignIn | None = None
) -> SqlStore:
    """The store at `url`, a postgresql:// URL; when that is empty, in the SQLite `file`. Makes what
    is missing and migrates what is old. Raises ConfigurationError when that can never work,
    StoreUnavailable when the database does not answer now."""
    return await asyncio.to_thread(_open, url, file, sign_in)


def _open(url: str, file: Path, sign_in: SignIn | None) -> SqlStore:
    if not url:
        schema.prepare_file(file)
    database = Database(url or str(file), sign_in)
    try:
        schema.bring_up_to_date(database)
        with database.reader() as link:
            newest = last_event(link)
            identity = reading.store_identity(link)
    except database.errors as error:
        failure = database.unavailable(error)
        if database.is_sqlite:
            # A file does not come back by waiting.
            raise ConfigurationError([str(failure)]) from error
        raise failure from error
    return SqlStore(database, newest, identity)


class SqlStore:
    """Implements `base.Store`; made by `open_store`.

    On SQLite, reads by key happen in the event loop (tens of microseconds); everything longer, and
    all of PostgreSQL, in a few threads with a connection each.
    """

    def __init__(self, database: Database, newest: int, identity: str) -> None:
        self._database = database
        self._identity = identity
        self._writer = Writer(database, self._committed)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="store-reader")
        self._newest = Newest(newest, None if database.is_sqlite else self.last_event)
        self._near: Link | None = None
        self._closed = False

    async def identity(self) -> str:
        return self._identity

    async def sealing_key(self, names: Sequence[str]) -> str:
        return await self._writer.submit(
            lambda transaction: changing.note_sealing_key(transaction, names)
        )

    async def ping(self) -> None:
        await self._writer.submit(_ping)
        await self._read(last_event)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._writer.close()
        await self._newest.close()
        await asyncio.to_thread(self._readers.shutdown)
        if self._near is not None:
            self._near.close()
            self._near = None
        await asyncio.to_thread(self._database.forget_connections)

    async def create(self, task: NewTask) -> None:
        await self._writer.create(task)

    async def get(self, task_id: str, visibility: Visibility) -> TaskRecord | None:
        found = await self._read(lambda link: reading.task(link, task_id))
        return found if found and visibility.sees(found.owner, found.tenant) else None

    async def get_brief(self, task_id: str, visibility: Visibility) -> TaskBrief | None:
        found = await self._read(lambda link: reading.brief(link, task_id))
        return found[0] if found and visibility.sees(*found[1:]) else None

    async def get_briefs(
        self, task_ids: Sequence[str], visibility: Visibility
    ) -> dict[str, TaskBrief]:
        return await self._read_long(lambda link: reading.briefs(link, task_ids, visibility))

    async def list_briefs(self, query: ListQuery) -> Page[TaskBrief]:
        return await self._read_long(lambda link: lists.brief_page(link, query))

    async def list_records(self, query: ListQuery) -> Page[TaskRecord]:
        return await self._read_long(lambda link: lists.record_page(link, query))

    async def list_workflows(
        self, limit: int, before: int | None, visibility: Visibility
    ) -> Page[Workflow]:
        return await self._read_long(lambda link: workflows.page(link, limit, before, visibility))

    async def get_workflow(self, workflow_id: str, visibility: Visibility) -> Workflow | None:
        return await self._read_long(lambda link: workflows.one(link, workflow_id, visibility))

    async def costs(self, query: ListQuery, since: float) -> Costs:
        return await self._read_long(lambda link: lists.cost_page(link, query, since))

    async def spent(self, purses: Collection[Purse]) -> dict[Purse, int]:
        return await self._read(lambda link: spending.spent(link, purses))

    async def request_cancel(self, task_id: str, visibility: Visibility) -> bool | None:
        return await self._writer.submit(
            lambda transaction: changing.request_cancel(transaction, task_id, visibility)
        )

    async def events_after(
        self, number: int, limit: int, visibility: Visibility, task_ids: Sequence[str] = ()
    ) -> list[StateEvent]:
        return await self._read_long(
            lambda link: reading.events_after(link, number, limit, visibility, task_ids)
        )

    async def last_event(self) -> int:
        return await self._read(last_event)

    async def wait_for_events(self, after: int, timeout_s: float) -> bool:
        return await self._newest.wait(after, timeout_s)

    async def count_by_state(self) -> dict[State, int]:
        return await self._read(reading.count_by_state)

    async def oldest_queued(self) -> float | None:
        return await self._read(reading.oldest_queued)

    async def heartbeat(self, server: str, scope: str, lease_s: float) -> None:
        await self._writer.submit(
            lambda transaction: placing.heartbeat(transaction, server, scope, lease_s)
        )

    async def take_over(self, server: str, scope: str) -> int:
        return await self._writer.submit(
            lambda transaction: placing.take_over(transaction, server, scope), slow=True
        )

    async def sign_off(self, server: str) -> None:
        await self._writer.submit(lambda transaction: placing.sign_off(transaction, server))

    async def place(
        self,
        server: str,
        scope: str,
        choose: Choose,
        limit: int,
        now: float,
        budgets: Sequence[Budget] = (),
    ) -> list[TaskRecord]:
        return await self._writer.submit(
            lambda transaction: placing.place(
                transaction, server, scope, choose, limit, now, budgets
            ),
            slow=True,
        )

    async def sealed(self, task_id: str) -> bytes | None:
        return await self._read(lambda link: reading.sealed_of(link, task_id))

    async def next_retry(self, now: float) -> float | None:
        return await self._read(lambda link: reading.next_retry(link, now))

    async def watched(self, server: str, task_ids: Sequence[str] | None = None) -> list[Watched]:
        return await self._read_long(lambda link: reading.watched(link, server, task_ids))

    async def apply(self, change: Change) -> int:
        return await self._writer.submit(
            lambda transaction: changing.apply(transaction, change),
            size=len(change.document or b"") + len(change.log or b""),
        )

    async def reject(self, task_id: str, version: int, reason: str, now: float) -> None:
        await self._writer.submit(
            lambda transaction: changing.reject(transaction, task_id, version, reason, now)
        )

    async def add_api_token(self, token: ApiToken) -> None:
        await self._writer.submit(lambda transaction: api_tokens.add(transaction, token))

    async def api_tokens(self) -> list[ApiToken]:
        return await self._read_long(api_tokens.every)

    async def valid_api_tokens(self, now: float) -> list[ApiToken]:
        return await self._read_long(lambda link: api_tokens.valid(link, now))

    async def revoke_api_token(self, token_id: str) -> bool:
        return await self._writer.submit(
            lambda transaction: api_tokens.revoke(transaction, token_id)
        )

    async def note_api_token_use(self, token_id: str, day: float) -> None:
        await self._writer.submit(
            lambda transaction: api_tokens.note_use(transaction, token_id, day)
        )

    async def settings(self) -> tuple[int, list[KeptSetting]]:
        return await self._read(kept_settings.every)

    async def settings_version(self) -> int:
        return await self._read(kept_settings.version)

    async def keep_settings(self, kept: Sequence[KeptSetting]) -> int:
        return await self._writer.submit(
            lambda transaction: kept_settings.keep(transaction, kept), slow=True
        )

    async def put_provision_run(self, run: Run, version: int, lease_s: float) -> int:
        return await self._writer.submit(
            lambda transaction: provision_runs.put(transaction, run, version, lease_s)
        )

    async def provision_run(self, run_id: str) -> StoredRun | None:
        return await self._read(lambda link: provision_runs.one(link, run_id))

    async def provision_runs(self) -> list[StoredRun]:
        return await self._read_long(provision_runs.every)

    async def discardable(self, scope: str, ended_before: float, limit: int) -> list[TaskRecord]:
        return await self._read_long(
            lambda link: retention.discardable(link, scope, ended_before, limit)
        )

    async def holds(self, scope: str, *, live: bool = False) -> bool:
        return await self._read_long(lambda link: retention.holds(link, scope, live))

    async def live_attempts(self) -> dict[str, int]:
        return await self._read_long(retention.live_attempts)

    async def abandon(self, scope: str) -> int:
        return await self._writer.submit(
            lambda transaction: retention.abandon(transaction, scope), slow=True
        )

    async def mark_discarded(self, keys: Sequence[str]) -> None:
        await self._writer.submit(lambda transaction: retention.mark_discarded(transaction, keys))

    async def ends(self, keys: Sequence[str]) -> dict[str, float | None]:
        return await self._read_long(lambda link: retention.ends(link, keys))

    async def forget(self, ended_before: float, limit: int) -> int:
        return await self._writer.submit(
            lambda transaction: retention.forget(transaction, ended_before, limit), slow=True
        )

    async def prune_spending(self, now: float) -> None:
        while await self._writer.submit(
            lambda transaction: spending.prune(transaction.link, now, _PRUNED_AT_ONCE), slow=True
        ):
            pass

    async def prune_events(self, before: float) -> int:
        pruned = 0
        while True:
            some = await self._writer.submit(
                lambda transaction: retention.prune_events(transaction, before, _PRUNED_AT_ONCE),
                slow=True,
            )
            pruned += some
            if not some:
                return pruned

    def _committed(self, newest: int) -> None:
        self._newest.raise_to(newest)

    async def _read(self, ask: Callable[[Link], T]) -> T:
        """A read by key: in the event loop on SQLite."""
        if not self._database.is_sqlite:
            return await self._read_long(ask)
        self._must_be_open()
        try:
            if self._near is None:
                self._near = self._database.open_reader()
            return ask(self._near)
        except self._database.errors as error:
            if self._near is not None:
                self._near.close()
                self._near = None
            raise self._database.unavailable(error) from error

    async def _read_long(self, ask: Callable[[Link], T]) -> T:
        self._must_be_open()
        return await asyncio.get_running_loop().run_in_executor(
            self._readers, self._read_in_thread, ask
        )

    def _read_in_thread(self, ask: Callable[[Link], T]) -> T:
        try:
            try:
                with self._database.reader() as link:
                    return ask(link)
            except self._database.errors as error:
                if self._database.is_sqlite or self._database.took_too_long(error):
                    raise
                # Pooled connections do not survive PostgreSQL's restart: once more, on a new one.
                self._database.forget_connections()
                with self._database.reader() as link:
                    return ask(link)
        except self._database.errors as error:
            raise self._database.unavailable(error) from error

    def _must_be_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")


def _ping(transaction: Transaction) -> None:
    now = transaction.now()
    if not transaction.link.run(_UPDATE_PING, of=1, now=now):
        transaction.link.run(_INSERT_PING, id=1, time=now)

"""Group commit: all writes that arrive while a commit runs share the next one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tesazure.errors import Conflict, StaleVersion, StoreUnavailable
from tesazure.store.checkpoint import Checkpoints
from tesazure.store.creation import create_all
from tesazure.store.engine import Database, Link
from tesazure.store.records import NewTask
from tesazure.store.schema import demand_own
from tesazure.store.transaction import Transaction

T = TypeVar("T")
Operation = Callable[[Transaction], T]
"""One write. Raises StaleVersion, Conflict and ValueError before it has written anything, so that
the others in its transaction stand."""

MOST = 256
"""Writes that share a commit, at most: bounds how long the event loop is busy with them."""

LARGE = 128 * 1024
"""Bytes of a write from which on it is a slow one: copying them into a database's pages takes the
event loop milliseconds."""

MOST_BYTES = 8 * 1024 * 1024
"""Bytes of the writes that share a commit, unless the first is larger: bounds how long small ones
wait for large ones."""

_log = logging.getLogger(__name__)


class _Write:
    """A write and whoever waits for it: a task to create, or another operation."""

    __slots__ = ("future", "operation", "outcome", "size", "slow", "task")

    def __init__(
        self,
        future: asyncio.Future[Any],
        task: NewTask | None = None,
        operation: Operation[Any] | None = None,
        *,
        size: int = 0,
        slow: bool = False,
    ) -> None:
        self.future = future
        self.task = task
        self.operation = operation
        self.size = size
        self.slow = slow or size >= LARGE
        self.outcome: Any = None

    def settle(self, error: Exception | None = None) -> None:
        """Tell the waiter, unless it has given up."""
        if self.future.done():
            return
        failure = error or (self.outcome if isinstance(self.outcome, Exception) else None)
        if failure is not None:
            self.future.set_exception(failure)
        else:
            self.future.set_result(self.outcome)


class Writer:
    """The only one of this process who writes. All methods are called in the event loop.

    On SQLite the statements of short writes run in the event loop, where they take microseconds,
    and only the commit, which waits for the disk, in a thread: in a thread of their own they would
    hand over the interpreter's lock at each row. On PostgreSQL all of it runs in the thread.
    """

    def __init__(self, database: Database, committed: Callable[[int], None]) -> None:
        """`committed` is called in the event loop with the number of the newest event."""
        self._database = database
        self._committed = committed
        self._checkpoints = Checkpoints(database)
        self._waiting: list[_Write] = []
        self._running: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store-writer")
        self._link: Link | None = None
        self._closed = False

    def create(self, task: NewTask) -> asyncio.Future[None]:
        """Resolved once the task is on disk."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        return self._add(_Write(future, task, size=len(task.document) + len(task.sealed or b"")))

    def submit(
        self, operation: Operation[T], *, size: int = 0, slow: bool = False
    ) -> asyncio.Future[T]:
        """Resolved with the operation's result once that is on disk. `size`: bytes that it writes,
        if they may be many. `slow`: it may take more than a millisecond and runs in the thread."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        return self._add(_Write(future, operation=operation, size=size, slow=slow))

    async def close(self) -> None:
        """Finish what was submitted; refuse what comes later."""
        self._closed = True
        while self._running is not None:
            await asyncio.wait([self._running])
        await self._checkpoints.close()
        self._thread.shutdown(wait=True)
        self._drop_link()

    def _add(self, write: _Write) -> asyncio.Future[Any]:
        if self._closed:
            write.settle(StoreUnavailable("the store is closed"))
            return write.future
        self._waiting.append(write)
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._run())
        return write.future

    async def _run(self) -> None:
        try:
            while self._waiting:
                count = _shared(self._waiting)
                batch, self._waiting = self._waiting[:count], self._waiting[count:]
                await self._write(batch)
        finally:
            self._running = None

    async def _write(self, batch: list[_Write]) -> None:
        try:
            await self._commit(batch)
        except self._database.conflicts as error:
            await self._one_by_one(batch, error)
        except self._database.errors as error:
            self._fail(batch, self._database.unavailable(error))
        except StoreUnavailable as failure:
            self._fail(batch, failure)
        except Exception as error:
            await self._one_by_one(batch, error)
        else:
            self._settle(batch)
            self._checkpoints.wrote(len(batch))

    async def _one_by_one(self, batch: list[_Write], error: Exception) -> None:
        """One of the batch failed in a way that undoes all of it: only that one shall fail."""
        if len(batch) > 1:
            for write in batch:
                await self._write([write])
        elif isinstance(error, self._database.conflicts):
            self._settle(batch, ValueError(f"the database refuses this: {type(error).__name__}"))
        else:
            self._settle(batch, error)

    def _fail(self, batch: list[_Write], failure: StoreUnavailable) -> None:
        _log.warning("%s", failure)
        self._settle(batch, failure)

    def _settle(self, batch: list[_Write], error: Exception | None = None) -> None:
        for write in batch:
            write.settle(error)

    async def _commit(self, batch: list[_Write]) -> None:
        loop = asyncio.get_running_loop()
        transaction = None
        if self._database.is_sqlite and not any(write.slow for write in batch):
            transaction = self._begin(wait=False)
        if transaction is None:
            newest = await loop.run_in_executor(self._thread, self._whole, batch)
        else:
            self._execute(transaction, batch)
            await loop.run_in_executor(self._thread, self._finish, transaction)
            newest = transaction.last_event
        if newest:
            self._committed(newest)

    def _whole(self, batch: list[_Write]) -> int:
        transaction = self._begin(wait=True)
        assert transaction is not None  # noqa: S101 - begin waits or raises
        self._execute(transaction, batch)
        self._finish(transaction)
        return transaction.last_event

    def _begin(self, *, wait: bool) -> Transaction | None:
        if self._link is not None:
            try:
                return self._begun(self._link, wait=wait)
            except self._database.errors:
                self._drop_link()  # closed by the other side, perhaps: nothing was written yet
            except StoreUnavailable:
                self._drop_link()
                raise
        self._link = self._database.open_writer()
        try:
            return self._begun(self._link, wait=wait)
        except BaseException:
            self._drop_link()
            raise

    def _begun(self, link: Link, *, wait: bool) -> Transaction | None:
        if not self._database.begin(link, wait=wait):
            return None
        demand_own(self._database, link)
        return Transaction(self._database, link)

    def _execute(self, transaction: Transaction, batch: Sequence[_Write]) -> None:
        try:
            create_all(transaction, [write.task for write in batch if write.task is not None])
            for write in batch:
                if write.operation is not None:
                    try:
                        write.outcome = write.operation(transaction)
                    except (StaleVersion, Conflict, ValueError) as refused:
                        if isinstance(refused, self._database.conflicts):
                            raise
                        write.outcome = refused
            transaction.flush()
        except BaseException:
            self._undo()
            raise

    def _finish(self, transaction: Transaction) -> None:
        try:
            transaction.link.driver.commit()
        except BaseException:
            self._drop_link()
            raise

    def _undo(self) -> None:
        if self._link is not None:
            try:
                self._link.driver.rollback()
            except self._database.errors:
                self._drop_link()

    def _drop_link(self) -> None:
        """The next batch connects anew."""
        link, self._link = self._link, None
        if link is not None:
            link.close()


def _shared(waiting: Sequence[_Write]) -> int:
    """How many of the writes, at least one, share the next commit."""
    size = 0
    for count, write in enumerate(waiting[:MOST]):
        size += write.size
        if count and size > MOST_BYTES:
            return count
    return min(len(waiting), MOST)

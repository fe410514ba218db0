"""Connections to SQLite or PostgreSQL, and statements compiled once.

Statements are written in SQLAlchemy Core. The fixed ones (`Prepared`) are compiled to text once and
then executed by the driver, because Core's own execution costs about 60 µs a call and the driver's
6 µs; lists, whose shape depends on the query, are executed by Core.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Engine, Executable, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from tesazure.errors import ConfigurationError, StoreUnavailable
from tesazure.trust import authorities_file

LOCK_WAIT_S = 10.0
"""How long a write waits for another process that writes."""

_WRITE_LOCK = 7_305_837_423
"""PostgreSQL advisory lock of whoever writes (any constant of our own will do)."""

_SQLITE_PRAGMAS = (
    "PRAGMA synchronous=FULL",
    "PRAGMA wal_autocheckpoint=10000",
    "PRAGMA cache_size=-16000",
    "PRAGMA temp_store=MEMORY",
)
_POSTGRES_LINK = {
    # A host that is gone and a firewall that has forgotten a silent connection (Azure's do after 4
    # minutes) say nothing: the kernel would wait for a quarter of an hour, or for ever. It tells
    # within 30 s. What is only slow to answer answers its probes, and is left to the timeouts
    # below; what takes nothing of what is sent to it for 30 s is given up, too.
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
    # While names still lead to the server of before a failover, which may be a standby by now:
    # connected to that, all writes would fail for as long as it lives.
    "target_session_attrs": "primary",
}
"""What libpq gets unless DATABASE_URL says otherwise ("Parameter Key Words" of its manual)."""
_POSTGRES_SETTINGS = (
    # What is promised must not depend on how the database, its owner or this role is set up: a
    # commit is on disk, and each statement sees what was committed before the advisory lock.
    "SET synchronous_commit = on",
    "SET default_transaction_isolation = 'read committed'",
    "SET default_transaction_deferrable = off",
    "SET default_transaction_read_only = off",
    f"SET lock_timeout = '{int(LOCK_WAIT_S)}s'",
    # A server that is stopped in the middle of a write must not stop all others.
    f"SET idle_in_transaction_session_timeout = '{int(LOCK_WAIT_S)}s'",
    "SET statement_timeout = '60s'",
    # A plan for any LIMIT is a bad plan for a small one.
    "SET plan_cache_mode = force_custom_plan",
)
_TOO_LONG = frozenset({"57014", "55P03"})
"""query_canceled and lock_not_available ("PostgreSQL Error Codes")."""

SignIn = Callable[[], Mapping[str, str]]
"""What libpq gets for each new connection. Raises ConnectionError."""


class Prepared:
    """A statement of fixed shape. Values are given by the names of its bind parameters."""

    __slots__ = ("_columns", "_compiled", "_statement")

    def __init__(self, statement: Executable, columns: Sequence[str] | None = None) -> None:
        """`columns` are those that an INSERT names, in the table's order; None: all."""
        self._statement = statement
        self._columns = columns
        self._compiled: dict[str, tuple[str, list[str], dict[str, Any]]] = {}

    def on(self, dialect: sqlalchemy.Dialect) -> tuple[str, list[str], dict[str, Any]]:
        """Text for the driver, names in the order of its places, values of constants."""
        found = self._compiled.get(dialect.name)
        if found is None:
            compiled: Any = self._statement.compile(  # type: ignore[attr-defined]
                dialect=dialect, column_keys=self._columns
            )
            constants = {k: v for k, v in compiled.params.items() if v is not None}
            found = (str(compiled), list(compiled.positiontup), constants)
            self._compiled[dialect.name] = found
        return found


class Link:
    """One connection. Used by one thread at a time."""

    def __init__(self, core: Connection) -> None:
        self.core = core
        driver: Any = core.connection.driver_connection
        self.driver = driver
        self._dialect = core.dialect
        self._cursor = driver.cursor()

    def run(self, prepared: Prepared, **values: Any) -> int:
        """Execute; the number of rows changed."""
        cursor = self._execute(prepared, values)
        count: int = cursor.rowcount
        return count

    def rows(self, prepared: Prepared, **values: Any) -> list[tuple[Any, ...]]:
        """Execute; all rows."""
        found: list[tuple[Any, ...]] = self._execute(prepared, values).fetchall()
        return found

    def row(self, prepared: Prepared, **values: Any) -> tuple[Any, ...] | None:
        """Execute; the only row, if there is one."""
        found = self.rows(prepared, **values)
        return found[0] if found else None

    def run_many(self, prepared: Prepared, rows: Sequence[tuple[Any, ...]]) -> None:
        """Execute for each row of values, given in the order of the statement's places."""
        if rows:
            self._cursor.executemany(prepared.on(self._dialect)[0], rows)

    def close(self) -> None:
        """Close the connection, whatever state it is in."""
        self.core.invalidate()
        self.core.close()

    def _execute(self, prepared: Prepared, values: dict[str, Any]) -> Any:
        text, names, constants = prepared.on(self._dialect)
        if constants:
            values = {**constants, **values}
        return self._cursor.execute(text, [values[name] for name in names])


class Database:
    """Where the store's tables are. Translates the driver's failures to ours."""

    def __init__(self, url: str, sign_in: SignIn | None = None) -> None:
        self.is_sqlite = not url.startswith(("postgresql:", "postgres:", "postgresql+"))
        self._engine = _sqlite(url) if self.is_sqlite else _postgresql(url, sign_in)
        self._idle: list[Link] = []
        self.dialect = self._engine.dialect
        self.name = url if self.is_sqlite else _shown(self._engine.url)
        driver: Any = self.dialect.loaded_dbapi
        self.errors: tuple[type[Exception], ...] = (SQLAlchemyError, driver.Error)
        self.conflicts: tuple[type[Exception], ...] = (
            IntegrityError,
            driver.IntegrityError,
            driver.DataError,
            OverflowError,
            UnicodeEncodeError,
        )
        """What one bad statement raises, and not the state of the database."""

    def open_reader(self) -> Link:
        """A connection whose statements each see the newest commit."""
        return Link(self._engine.connect().execution_options(isolation_level="AUTOCOMMIT"))

    @contextmanager
    def reader(self) -> Iterator[Link]:
        """An idle connection for reading, or a new one. After the driver's errors it is closed."""
        try:
            link = self._idle.pop()
        except IndexError:
            link = self.open_reader()
        try:
            yield link
        except self.errors:
            link.close()
            raise
        except BaseException:
            self._idle.append(link)
            raise
        self._idle.append(link)

    def open_writer(self) -> Link:
        """A connection for `begin`. On SQLite it never waits for a lock by itself, as that would
        stop the event loop."""
        link = Link(self._engine.connect())
        if self.is_sqlite:
            link.driver.execute("PRAGMA busy_timeout=0")
        return link

    def begin(self, link: Link, *, wait: bool) -> bool:
        """Start a transaction and become the only writer, which PostgreSQL's advisory lock and
        SQLite's own lock ensure. False when another process writes now and `wait` is false."""
        if not self.is_sqlite:
            link.driver.rollback()
            link.driver.execute("SELECT pg_advisory_xact_lock(%s)", (_WRITE_LOCK,))
            return True
        if link.driver.in_transaction:
            link.driver.rollback()
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                link.driver.execute("BEGIN IMMEDIATE")
                return True
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or (wait and time.monotonic() > deadline):
                    raise
            if not wait:
                return False
            time.sleep(0.005)

    def forget_connections(self) -> None:
        """Close the idle connections: at the end, or when the database was away."""
        while self._idle:
            self._idle.pop().close()

    def took_too_long(self, error: Exception) -> bool:
        """Whether PostgreSQL gave a statement up for the time that it took: it would again."""
        reason = error.orig if isinstance(error, DBAPIError) else error
        return getattr(reason, "sqlstate", None) in _TOO_LONG

    def unavailable(self, error: Exception) -> StoreUnavailable:
        """What to tell the caller about a failure of the database."""
        reason = error.orig if isinstance(error, DBAPIError) else error
        said = " ".join(str(reason).split()) or type(reason).__name__
        return StoreUnavailable(f"database {self.name}: {said}{_remedy(said)}")


def _shown(url: URL) -> str:
    """A PostgreSQL URL without what is secret, or may be: the query can hold a password too."""
    return URL.create("postgresql", None, None, url.host, url.port, url.database).render_as_string()


def _remedy(said: str) -> str:
    if "disk is full" in said:
        return "; free some space on its device"
    if "malformed" in said or "not a database" in said:
        return "; the file is damaged: restore it from a backup, or move it away to start empty"
    if "readonly" in said or "unable to open" in said:
        return "; make the file and its directory writable for this user"
    return ""


def _sqlite(path: str) -> Engine:
    engine = sqlalchemy.create_engine(
        URL.create("sqlite+pysqlite", database=path),
        # Transactions are begun by `Database.begin` alone; connections move between threads.
        connect_args={"check_same_thread": False, "isolation_level": None, "timeout": 5},
        poolclass=NullPool,
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        for pragma in _SQLITE_PRAGMAS:
            connection.execute(pragma)

    return engine


def _postgresql(url: str, sign_in: SignIn | None) -> Engine:
    try:
        import psycopg
    except ImportError:
        raise ConfigurationError(
            ["DATABASE_URL: PostgreSQL needs a driver; pip install 'tesazure[postgres]'"]
        ) from None
    try:
        parsed = make_url(url)
    except (SQLAlchemyError, ValueError):
        raise ConfigurationError(
            ["DATABASE_URL: is not a URL; write postgresql://user:password@host/name"]
        ) from None
    if parsed.query.get("sslrootcert") == "system":
        # As libpq does, but psycopg's wheels bring an OpenSSL that looks where no system has any.
        proof = {"sslmode": "verify-full", "sslrootcert": authorities_file()}
        parsed = parsed.update_query_dict(proof)
    engine = sqlalchemy.create_engine(
        parsed.set(drivername="postgresql+psycopg"),
        paramstyle="format",
        connect_args={
            "connect_timeout": 5,
            **{key: value for key, value in _POSTGRES_LINK.items() if key not in parsed.query},
        },
        poolclass=NullPool,
    )

    if sign_in is not None:

        @event.listens_for(engine, "do_connect")
        def add_sign_in(_: Any, __: Any, ___: Any, arguments: dict[str, Any]) -> None:
            try:
                arguments.update(sign_in())
            except ConnectionError as error:
                raise psycopg.OperationalError(str(error)) from error

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        for setting in _POSTGRES_SETTINGS:
            connection.execute(setting)
        connection.commit()

    return engine

"""Bringing a database to the schema that this code knows, whoever else opens it just then."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import column, inspect, select, table

from tesazure.errors import ConfigurationError, StoreUnavailable
from tesazure.store.engine import LOCK_WAIT_S, Database, Link, Prepared

HEAD = "0009"
"""The newest revision in migrations/versions; a test holds the two together."""

MIGRATIONS = Path(__file__).parent / "migrations"

_VERSION = Prepared(select(column("version_num")).select_from(table("alembic_version")))


def prepare_file(path: Path) -> None:
    """Make the SQLite file, readable by this user alone, as tasks may hold secrets. Raises
    ConfigurationError with the path when that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        problem = (
            f"database {path}: {error.strerror}; make its directory writable for this user,"
            " or choose another DATA_DIR"
        )
        raise ConfigurationError([problem]) from None


def bring_up_to_date(database: Database) -> None:
    """Migrate if need be; several servers may do so at once. Importing Alembic takes a third of a
    second, so that happens only when there is something to do. Raises ConfigurationError when the
    schema is newer than this code, or what is there is no database of ours; the driver's errors
    when the database does not answer."""
    with _opened(database) as link:
        if database.is_sqlite:
            _use_wal(link)
        if _revision(link) == HEAD:
            return
        database.begin(link, wait=True)
        found = _revision(link)
        if found != HEAD:
            if not database.is_sqlite:
                link.driver.execute("SET LOCAL statement_timeout = 0")
            _migrate(link, database, found)
        link.driver.commit()


def demand_own(database: Database, link: Link) -> None:
    """To be asked once a transaction has begun, so that no other version changes the schema before
    its end. Raises StoreUnavailable when one has since this server started: what this code writes
    might be wrong by then. The driver's errors when the database does not answer."""
    row = link.row(_VERSION)
    if row != (HEAD,):
        found = row[0] if row else "none"
        problem = (
            f"database {database.name}: another version of tesazure has changed it (schema {found};"
            f" this one knows {HEAD}), so this server writes nothing more; end it"
        )
        raise StoreUnavailable(problem)


@contextmanager
def _opened(database: Database) -> Iterator[Link]:
    link = database.open_writer()
    try:
        yield link
    finally:
        link.close()


def _use_wal(link: Link) -> None:
    """The mode stays with the file. Others that open it at the same time make this fail, without
    SQLite waiting for them."""
    link.driver.execute(f"PRAGMA busy_timeout={int(LOCK_WAIT_S * 1000)}")
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            link.driver.execute("PRAGMA journal_mode=WAL")
            return
        except link.core.dialect.loaded_dbapi.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _revision(link: Link) -> str | None:
    """The stored revision, None in an empty database."""
    if not inspect(link.core).has_table("alembic_version"):
        return None
    row = link.row(_VERSION)
    return row[0] if row else None


def _migrate(link: Link, database: Database, found: str | None) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = link.core
    if found is not None:
        try:
            ScriptDirectory.from_config(config).get_revision(found)
        except CommandError:
            problem = (
                f"database {database.name}: made by a newer tesazure (schema {found}, this"
                f" version knows up to {HEAD}); use that version, or restore a backup"
            )
            raise ConfigurationError([problem]) from None
    command.upgrade(config, HEAD)

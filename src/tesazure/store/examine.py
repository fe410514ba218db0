"""A look at a database that changes nothing in it: for the command line."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from sqlalchemy import inspect, text

from tesazure.errors import ConfigurationError
from tesazure.store.engine import Database, SignIn
from tesazure.store.kept_settings import every
from tesazure.store.records import KeptSetting
from tesazure.store.schema import HEAD, MIGRATIONS

T = TypeVar("T")

CHECK_S = 10.0
"""How long a file is examined; a large one is then only as sound as far as it was read."""
_DAMAGED = "restore it from a backup, or move it away to start empty"


def examine(url: str, file: Path, check_s: float = CHECK_S, sign_in: SignIn | None = None) -> str:
    """What there is at the postgresql:// URL `url` or, when that is empty, in the SQLite `file`,
    in words; the file is read for `check_s` seconds at most. Raises ConfigurationError when a
    server could not start on it, StoreUnavailable when it does not answer within 5 s. Both say what
    to do."""
    return _postgresql(url, sign_in) if url else _sqlite(file, check_s)


def kept_settings(url: str, file: Path, sign_in: SignIn | None = None) -> list[KeptSetting]:
    """The settings in the database, named as for `examine`, that all servers on it share; none if
    there is no database yet. Raises ConfigurationError, StoreUnavailable."""
    if url:
        database = Database(url, sign_in)
        try:
            with database.reader() as link:
                link.core.execute(text("SET statement_timeout = '5s'"))
                return every(link)[1] if inspect(link.core).has_table("settings") else []
        except database.errors as error:
            raise database.unavailable(error) from None
        finally:
            database.forget_connections()
    try:
        return _read(file, _kept) if file.exists() and file.stat().st_size else []
    except (OSError, sqlite3.DatabaseError) as error:
        raise ConfigurationError([f"{file}: {error}"]) from None


def _kept(link: sqlite3.Connection) -> list[KeptSetting]:
    if not link.execute("SELECT 1 FROM sqlite_master WHERE name = 'settings'").fetchone():
        return []
    rows = link.execute("SELECT name, value, sealed FROM settings ORDER BY name")
    return [KeptSetting(*row) for row in rows if row[1:] != (None, None)]


def _sqlite(file: Path, check_s: float) -> str:
    engine = f"SQLite {sqlite3.sqlite_version}"
    if sqlite3.sqlite_version_info < (3, 35):
        remedy = "use a Python whose sqlite3 module has SQLite 3.35 or newer"
        raise ConfigurationError([f"{engine} is too old; {remedy}"])
    try:
        if not file.exists() or not file.stat().st_size:
            return f"{engine}; {file} will be made"
        return f"{engine}; {file}: {_read(file, lambda link: _verdict(link, file, check_s))}"
    except OSError as error:
        raise ConfigurationError([f"{file}: {error.strerror}"]) from None
    except sqlite3.DatabaseError as error:
        spoilt = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        remedy = _DAMAGED if spoilt else "see that this user may read it, and its directory"
        raise ConfigurationError([f"{file}: {error}; {remedy}"]) from None


def _read(file: Path, look: Callable[[sqlite3.Connection], T]) -> T:
    """A reader of a database in WAL mode makes files beside it, and leaves them, where no server
    has them open. So there it is read as one that nobody changes; unless a server has begun since,
    then what was read may be nonsense, and is read again beside that server."""
    log = file.with_name(f"{file.name}-wal")
    alone = not log.exists()
    try:
        return _look(file, "immutable=1" if alone else "mode=ro", look)
    except (ConfigurationError, sqlite3.DatabaseError):
        if not alone or not log.exists():
            raise
        return _look(file, "mode=ro", look)


def _look(file: Path, mode: str, look: Callable[[sqlite3.Connection], T]) -> T:
    with closing(sqlite3.connect(f"file:{quote(str(file))}?{mode}", uri=True)) as link:
        return look(link)


def _verdict(link: sqlite3.Connection, file: Path, check_s: float) -> str:
    tables = {name for (name,) in link.execute("SELECT name FROM sqlite_master")}
    if not tables:
        return "empty"
    if "alembic_version" not in tables:
        problem = "is a database of another program; choose another DATA_DIR"
        raise ConfigurationError([f"{file}: {problem}"])
    (revision,) = link.execute("SELECT version_num FROM alembic_version").fetchone() or ("none",)
    shown = _schema(revision, str(file))
    deadline = time.monotonic() + check_s
    link.set_progress_handler(lambda: time.monotonic() > deadline, 100_000)
    try:
        (verdict,) = link.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        return f"{shown}, sound as far as it could be read in {check_s:g} s"
    if verdict != "ok":
        raise ConfigurationError([f"{file} is damaged: {verdict}; {_DAMAGED}"])
    return f"{shown}, sound"


def _postgresql(url: str, sign_in: SignIn | None) -> str:
    database = Database(url, sign_in)
    try:
        with database.reader() as link:
            link.core.execute(text("SET statement_timeout = '5s'"))
            engine = f"PostgreSQL {link.core.execute(text('SHOW server_version')).scalar()}"
            if not inspect(link.core).has_table("alembic_version"):
                return f"{engine}; {database.name}: the schema will be made"
            found = link.core.execute(text("SELECT version_num FROM alembic_version")).scalar()
            return f"{engine}; {database.name}: {_schema(str(found), database.name)}"
    except database.errors as error:
        raise database.unavailable(error) from None
    finally:
        database.forget_connections()


def _schema(revision: str, name: str) -> str:
    """What a revision means to this version of the program. Raises ConfigurationError."""
    if revision == HEAD:
        return f"schema {revision}"
    if any((MIGRATIONS / "versions").glob(f"{revision}_*.py")):
        return f"schema {revision}, which the next start brings to {HEAD}"
    problem = f"{name}: made by another version of tesazure (schema {revision}; this one knows up"
    raise ConfigurationError([f"{problem} to {HEAD}); use that version, or restore a backup"])

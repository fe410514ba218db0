"""The migrations make the tables that the code knows."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy
from alembic.config import Config
from alembic.script import ScriptDirectory

from tesazure.model import State
from tesazure.store import schema
from tesazure.store.engine import Database
from tesazure.store.tables import metadata
from tesazure.store.transaction import last_event
from tests.services.postgresql import PostgreSQL

COLUMNS = """
    SELECT table_name, column_name, data_type, collation_name, is_nullable, column_default
    FROM information_schema.columns WHERE table_schema = 'public'
"""
TABLES = "SELECT name, wr, strict FROM pragma_table_list WHERE name NOT LIKE 'sqlite_%'"
SQLITE_INDEXES = "SELECT name, sql FROM sqlite_master WHERE type = 'index'"
INDEXES = "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"


def test_head_is_the_newest_revision() -> None:
    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD]


def test_every_state_is_counted_from_the_start(tmp_path: Path) -> None:
    database = _migrated(str(tmp_path / "tesazure.db"))
    with database.reader() as link:
        states = link.driver.execute("SELECT state FROM state_counts").fetchall()
        assert {row[0] for row in states} == set(State)
        assert last_event(link) == 0
    database.forget_connections()


def test_migrations_make_the_tables_on_sqlite(tmp_path: Path) -> None:
    _migrated(str(tmp_path / "migrated.db"))
    made = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'made.db'}")
    metadata.create_all(made)
    made.dispose()
    assert _of_sqlite(tmp_path / "migrated.db") == _of_sqlite(tmp_path / "made.db")


def _of_sqlite(file: Path) -> set[tuple[object, ...]]:
    """Tables, columns and indexes. Columns in no order: a later one stands behind all others."""
    engine = sqlalchemy.create_engine(f"sqlite:///{file}")
    with engine.connect() as connection:
        tables = connection.exec_driver_sql(TABLES).all()
        indexes = connection.exec_driver_sql(SQLITE_INDEXES).all()
        columns = [
            (row[0], *column[1:])
            for row in tables
            for column in connection.exec_driver_sql(f"PRAGMA table_xinfo('{row[0]}')").all()
        ]
    engine.dispose()
    words = [(name, " ".join((sql or "").split())) for name, sql in indexes]
    return {tuple(row) for row in (*tables, *columns, *words) if "alembic_version" not in str(row)}


@pytest.mark.postgres
def test_migrations_make_the_tables_on_postgresql(postgresql: PostgreSQL) -> None:
    urls = [postgresql.create_database() for _ in range(2)]
    engines = [
        sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:")) for url in urls
    ]
    _migrated(urls[0])
    metadata.create_all(engines[1])
    found = []
    for engine in engines:
        with engine.connect() as connection:
            rows = [row for sql in (COLUMNS, INDEXES) for row in connection.exec_driver_sql(sql)]
        engine.dispose()
        found.append({tuple(row) for row in rows if row[0] != "alembic_version"})
    assert found[0] == found[1]
    for url in urls:
        postgresql.drop_database(url)


def _migrated(where: str) -> Database:
    if "://" not in where:
        schema.prepare_file(Path(where))
    database = Database(where)
    schema.bring_up_to_date(database)
    schema.bring_up_to_date(database)
    return database

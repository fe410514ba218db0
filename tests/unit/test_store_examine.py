"""store.examine: what is there is told apart, and nothing of it is changed."""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tesazure.errors import ConfigurationError, StoreUnavailable
from tesazure.store.engine import Database
from tesazure.store.examine import examine
from tesazure.store.schema import HEAD
from tesazure.store.sql_store import open_store
from tests.contract.store_tasks import make_older, new_task
from tests.services.base import nobodys_port


def refusal(file: Path) -> str:
    before = file.read_bytes()
    with pytest.raises(ConfigurationError) as caught:
        examine("", file)
    assert file.read_bytes() == before
    [problem] = caught.value.problems
    assert str(file) in problem
    return problem


def beside(file: Path) -> list[Path]:
    """What lies in its directory."""
    return list(file.parent.iterdir())


def run(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file)) as link:
        for statement in statements:
            link.execute(statement)
        link.commit()


async def test_a_sound_database_beside_its_server_and_alone(tmp_path: Path) -> None:
    file = tmp_path / "a ?%23#b.db"
    store = await open_store("", file)
    for _ in range(20):
        await store.create(new_task(document=b'{"x":"%b"}' % (b"x" * 5000)))
    assert f"schema {HEAD}, sound" in examine("", file)
    await store.close()
    assert beside(file) == [file]
    assert f"schema {HEAD}, sound" in examine("", file)
    assert beside(file) == [file]
    store = await open_store("", file)
    await store.ping()
    await store.close()


def test_nothing_yet(tmp_path: Path) -> None:
    assert "will be made" in examine("", tmp_path / "new.db")
    assert "will be made" in examine("", tmp_path / "no/such/new.db")
    (tmp_path / "empty.db").touch()
    assert "will be made" in examine("", tmp_path / "empty.db")
    assert not (tmp_path / "new.db").exists()


def test_what_is_no_database_of_ours(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    file.write_bytes(os.urandom(50_000))
    assert "restore it from a backup" in refusal(file)
    file.unlink()
    run(file, "CREATE TABLE other (x)")
    assert "another program" in refusal(file)


async def test_another_versions_schema(tmp_path: Path) -> None:
    file = tmp_path / "tesazure.db"
    make_older(str(file), "0001")
    assert f"schema 0001, which the next start brings to {HEAD}" in examine("", file)
    await (await open_store("", file)).close()
    assert f"schema {HEAD}, sound" in examine("", file)
    run(file, "UPDATE alembic_version SET version_num = '9999'")
    assert re.search(r"schema 9999.*; use that version", refusal(file))


async def test_damage_inside(tmp_path: Path) -> None:
    file = tmp_path / "tesazure.db"
    store = await open_store("", file)
    for _ in range(50):
        await store.create(new_task(document=b'{"x":"%b"}' % (b"x" * 5000)))
    await store.close()
    data = bytearray(file.read_bytes())
    for page in range(len(data) // 8192, len(data) // 4096):
        data[page * 4096 : page * 4096 + 64] = os.urandom(64)
    file.write_bytes(data)
    assert "restore it from a backup" in refusal(file)


async def test_a_large_file_is_not_read_for_ever(tmp_path: Path) -> None:
    file = tmp_path / "tesazure.db"
    await (await open_store("", file)).close()
    filled = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 300000)"
    run(file, "CREATE TABLE more (i)", f"INSERT INTO more {filled} SELECT i FROM n")
    assert "as far as it could be read in 0 s" in examine("", file, check_s=0)


def test_postgresql_that_is_away() -> None:
    with nobodys_port() as port, pytest.raises(StoreUnavailable) as caught:
        url = f"postgresql://me:hunter2@127.0.0.1:{port}/db?user=u&password=s3cret"
        examine(url, Path("unused"))
    assert "127.0.0.1" in str(caught.value)
    assert not re.search("hunter2|s3cret|password=", str(caught.value))
    assert re.fullmatch(r"postgresql://127\.0\.0\.1:\d+/db", Database(url).name)


@pytest.mark.postgres
async def test_postgresql(postgres_url: str) -> None:
    assert "will be made" in examine(postgres_url, Path("unused"))
    await (await open_store(postgres_url)).close()
    assert f"schema {HEAD}" in examine(postgres_url, Path("unused"))

"""The store on PostgreSQL: plans, restarts, several servers."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from tesazure.callers import Visibility
from tesazure.errors import ConfigurationError, StoreUnavailable
from tesazure.model import State
from tesazure.store import filters, reading
from tesazure.store.engine import Database, Prepared
from tesazure.store.records import ListQuery
from tesazure.store.sql_store import open_store
from tests.contract.store_tasks import ALL, created, listed, new_task
from tests.service.server import until
from tests.services.base import nobodys_port
from tests.services.postgresql import PostgreSQL, Standby

pytestmark = pytest.mark.postgres

OPEN = """
import asyncio, sys
from tesazure.store.sql_store import open_store

async def main():
    store = await open_store(sys.argv[1])
    await store.ping()
    await store.close()

sys.stdin.read()
asyncio.run(main())
"""


def test_several_servers_open_a_new_database_at_once(postgres_url: str) -> None:
    root = Path(__file__).parents[2]
    environ = {**os.environ, "PYTHONPATH": str(root / "src")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, postgres_url],
            env=environ,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    for process in processes:
        assert process.stderr is not None
        error = process.stderr.read()
        assert process.wait(timeout=60) == 0, error


async def test_a_restart_of_the_database_is_survived(short_dir: Path) -> None:
    with PostgreSQL(short_dir / "pg") as cluster:
        store = await open_store(cluster.create_database())
        kept = [new_task() for _ in range(20)]
        await asyncio.gather(*map(store.create, kept))
        await store.list_briefs(ListQuery(limit=5))
        cluster.restart(mode="immediate")
        # The connections are all dead, but nothing was under way: nobody notices.
        assert len(await listed(store, ListQuery(limit=5))) == 20
        await created(store)
        cluster.stop()
        for attempt in (store.ping(), store.create(new_task()), store.get(kept[0].id, ALL)):
            with pytest.raises(StoreUnavailable) as caught:
                await attempt
            assert "postgresql://127.0.0.1" in str(caught.value)
        await store.close()


async def test_a_standby_is_not_taken_for_the_database(short_dir: Path) -> None:
    """As names may lead to one for a while in a failover: whoever stays connected to it cannot
    write for as long as it lives."""
    with PostgreSQL(short_dir / "pg") as cluster:
        before = cluster.create_database()
        store = await open_store(before)
        [task] = await created(store)
        with Standby(short_dir / "standby", cluster) as standby:
            url = standby.url(before.rpartition("/")[2])
            with psycopg.connect(url) as reader:
                assert reader.execute("SELECT id FROM tasks").fetchall() == [(task.id,)]
            with pytest.raises(StoreUnavailable, match="standby"):
                await open_store(url)
            await store.close()
            standby.promote()
            store = await open_store(url)
            await created(store)
            assert len(await listed(store, ListQuery(limit=5))) == 2
            await store.close()


def test_a_connection_to_nobody_is_given_up_soon(postgres_url: str) -> None:
    """The kernel would wait for a quarter of an hour for what is sent to be confirmed, and for ever
    for an answer."""
    link = Database(postgres_url).open_reader()
    with socket.socket(fileno=os.dup(link.driver.fileno())) as connected:
        tcp = {
            name: connected.getsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{name}"))
            for name in ("KEEPIDLE", "KEEPINTVL", "KEEPCNT", "USER_TIMEOUT")
        }
        assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    link.close()
    # Before Azure's firewalls forget a connection, after 240 s, and before a lease has run out.
    assert tcp["KEEPIDLE"] + tcp["KEEPINTVL"] * tcp["KEEPCNT"] <= 30
    assert tcp["USER_TIMEOUT"] == 30_000
    link = Database(f"{postgres_url}?keepalives_idle=77").open_reader()
    with socket.socket(fileno=os.dup(link.driver.fileno())) as connected:
        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77
    link.close()


async def test_a_server_that_cannot_be_reached_is_named_without_its_password() -> None:
    with (
        nobodys_port() as port,
        pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1") as caught,
    ):
        await open_store(f"postgresql://me:s3cret@127.0.0.1:{port}/tes")
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(caught.value.__cause__)


async def test_a_url_that_is_none_is_refused_without_its_password() -> None:
    with pytest.raises(ConfigurationError, match="postgresql://user:password@host/name") as caught:
        await open_store("postgresql://me:s3cret@host:port/x")
    assert "s3cret" not in str(caught.value)


async def test_a_commit_that_fails_fails_all_of_it_and_nothing_else(postgres_url: str) -> None:
    store = await open_store(postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'no commit today'; END $$"
        )
        connection.execute(
            "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON tasks DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW WHEN (NEW.name = 'poison') EXECUTE FUNCTION refuse()"
        )
    tasks = [new_task(), new_task(name="poison"), new_task()]
    results = await asyncio.gather(*map(store.create, tasks), return_exceptions=True)
    assert [type(result) for result in results] == [StoreUnavailable] * 3
    assert "no commit today" in str(results[0])
    assert (await store.count_by_state())[State.QUEUED] == 0
    await created(store)
    assert (await store.count_by_state())[State.QUEUED] == 1
    await store.close()


async def test_a_write_that_waits_for_a_newer_version_is_refused(postgres_url: str) -> None:
    """Not only one that begins when the newer version is done with the schema."""
    store = await open_store(postgres_url)
    newer = Database(postgres_url).open_writer()
    Database(postgres_url).begin(newer, wait=True)
    newer.driver.execute("UPDATE alembic_version SET version_num = '9999'")
    task = new_task()
    write = asyncio.ensure_future(store.create(task))
    with psycopg.connect(postgres_url, autocommit=True) as watcher:
        waiting = (
            "SELECT 1 FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database"
            " WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()"
        )  # other tests' databases are in the same cluster
        await asyncio.to_thread(until, lambda: watcher.execute(waiting).fetchone())
    newer.driver.commit()
    newer.close()
    with pytest.raises(StoreUnavailable, match="schema 9999"):
        await write
    assert await store.get(task.id, ALL) is None
    await store.close()


@pytest.mark.slow
async def test_a_stuck_server_does_not_stop_the_others(postgres_url: str) -> None:
    store = await open_store(postgres_url)
    stuck = Database(postgres_url).open_writer()
    Database(postgres_url).begin(stuck, wait=True)
    began = time.monotonic()
    task = new_task()
    try:
        async with asyncio.timeout(60):
            while True:
                try:
                    await store.create(task)
                    break
                except StoreUnavailable:
                    assert time.monotonic() - began < 40
    finally:
        stuck.close()
    assert await store.get(task.id, ALL) is not None
    await store.close()


async def test_a_read_that_took_too_long_is_not_begun_again(postgres_url: str) -> None:
    """A database that is slow already would have twice as much to do."""
    store = await open_store(postgres_url)
    [task] = await created(store)
    with (
        psycopg.connect(postgres_url) as holder,
        psycopg.connect(postgres_url, autocommit=True) as admin,
    ):
        holder.execute("LOCK TABLE tasks")
        read = asyncio.ensure_future(store.get(task.id, ALL))
        cancel = (
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        await asyncio.to_thread(until, lambda: admin.execute(cancel).fetchone())
        with pytest.raises(StoreUnavailable, match="user request"):
            await read
    assert await store.get(task.id, ALL) is not None
    await store.close()


async def test_what_the_store_promises_does_not_depend_on_the_roles_settings(
    postgres_url: str,
) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS careless")
        admin.execute("CREATE ROLE careless LOGIN SUPERUSER")
        for setting in (
            "synchronous_commit = off",
            "default_transaction_isolation = 'serializable'",
            "default_transaction_read_only = on",
        ):
            admin.execute(f"ALTER ROLE careless SET {setting}")  # type: ignore[arg-type]
    url = postgres_url.replace("postgres@", "careless@")
    with psycopg.connect(url) as careless:
        assert careless.execute("SHOW synchronous_commit").fetchone() == ("off",)
    store = await open_store(url)
    link = Database(url).open_writer()
    for name, wanted in (
        ("synchronous_commit", "on"),
        ("transaction_isolation", "read committed"),
        ("transaction_read_only", "off"),
    ):
        assert link.driver.execute(f"SHOW {name}").fetchone() == (wanted,)
    link.close()
    # Serializable writers of two servers would fail each other.
    other = await open_store(url)
    await asyncio.gather(*(one.create(new_task()) for one in (store, other) for _ in range(300)))
    assert (await store.count_by_state())[State.QUEUED] == 600
    await store.close()
    await other.close()


async def test_lists_use_the_indexes(postgres_url: str) -> None:
    store = await open_store(postgres_url)
    for first in range(0, 20_000, 1000):
        await asyncio.gather(
            *(
                store.create(
                    new_task(
                        name=f"{'align' if n % 2 else 'call'}-{n}",
                        tags={"parity": str(n % 2), "batch": str(n // 100)},
                        owner="bob" if n % 100 else "ann",
                        tenant="lab" if n % 100 else "clinic",
                    )
                )
                for n in range(first, first + 1000)
            )
        )
    gone = await store.list_briefs(ListQuery(limit=50))
    for brief in gone.items:
        await store.request_cancel(brief.id, ALL)
    await store.close()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("ANALYZE")
    database = Database(postgres_url)
    link = database.open_reader()
    queries = [
        (ListQuery(limit=256), "tasks_pkey"),
        (ListQuery(limit=256, states=(State.CANCELED,)), "ix_tasks_state"),
        (ListQuery(limit=256, tags=(("batch", "7"),)), "pk_tags"),
        (ListQuery(limit=256, tags=(("parity", ""),)), "ix_tags_key"),
        (
            ListQuery(limit=256, visibility=Visibility(everyone=False, owner="ann")),
            "ix_tasks_owner",
        ),
        (
            ListQuery(limit=256, visibility=Visibility(everyone=False, tenant="clinic")),
            "ix_tasks_tenant",
        ),
    ]
    for query, index in queries:
        found, values = filters.filters(query)
        stream = found[0] if found else filters.Stream()
        assert isinstance(stream, filters.Stream)
        values |= {"before": 2**62, "most": 257, "floor": 0, "wanted": 257}
        for statement in (filters.probe(stream), filters.walk(stream, ())):
            plan = _plan(database, link.driver, statement, values)
            assert index in plan, plan
            assert "Seq Scan" not in plan, plan
    for whose, value in (("owner", "ann"), ("tenant", "clinic")):
        values = {"after": 0, "most": 1000, whose: value}
        plan = _plan(database, link.driver, reading._EVENTS_OF[whose,], values)
        assert f"ix_events_{whose}" in plan, plan
    [name], values = filters.filters(ListQuery(limit=256, name_prefix="call-100"))
    assert isinstance(name, filters.Name)
    values |= {"before": 2**62, "most": 257, "wanted": 257}
    for statement in (filters.count(name), filters.sift(name, ())):
        assert "ix_tasks_name" in _plan(database, link.driver, statement, values)
    link.close()


def _plan(
    database: Database, driver: object, statement: Prepared, values: dict[str, object]
) -> str:
    text, names, constants = statement.on(database.dialect)
    bound = {**constants, **values}
    assert isinstance(driver, psycopg.Connection)
    rows = driver.execute(f"EXPLAIN {text}", [bound[name] for name in names]).fetchall()
    return "\n".join(str(row[0]) for row in rows)

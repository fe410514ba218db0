"""The SQLite store and what befalls its file."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tesazure.errors import ConfigurationError, StoreUnavailable
from tesazure.model import State
from tesazure.store import schema
from tesazure.store.records import ListQuery
from tesazure.store.sql_store import open_store
from tests.contract.store_tasks import ALL, created, new_task

# Creates tasks until it is killed, and prints each id once its creation has returned.
BURST = """
import asyncio, sys
from pathlib import Path
from tesazure.store.sql_store import open_store
from tests.contract.store_tasks import new_task

async def client(store):
    while True:
        task = new_task(document=b"x" * 2000)
        await store.create(task)
        sys.stdout.write(task.id + "\\n")
        sys.stdout.flush()

async def main():
    store = await open_store("", Path(sys.argv[1]))
    await asyncio.gather(*(client(store) for _ in range(16)))

asyncio.run(main())
"""
OPEN = """
import asyncio, sys
from pathlib import Path
from tesazure.store.sql_store import open_store

async def main():
    store = await open_store("", Path(sys.argv[1]))
    await store.ping()
    await store.close()

sys.stdin.read()
asyncio.run(main())
"""


def python(program: str, file: Path) -> subprocess.Popen[bytes]:
    """A Python process that sees the package and the tests."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "src")])
    return subprocess.Popen(
        [sys.executable, "-c", program, str(file)],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    file = tmp_path / "tesazure.db"
    process = python(BURST, file)
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().strip().decode() for _ in range(500)]
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate(timeout=30)
    # The last line may be torn.
    acknowledged += [line.decode() for line in rest.split(b"\n")[:-1]]
    store = await open_store("", file)
    missing = [task_id for task_id in acknowledged if await store.get_brief(task_id, ALL) is None]
    counts = await store.count_by_state()
    page = await store.list_records(ListQuery(limit=2000))
    await store.close()
    assert len(acknowledged) >= 500
    assert missing == []
    assert counts[State.QUEUED] >= len(acknowledged)
    assert all(len(record.document) == 2000 for record in page.items)


def test_several_processes_open_a_new_store_at_once(tmp_path: Path) -> None:
    file = tmp_path / "new" / "tesazure.db"
    processes = [python(OPEN, file) for _ in range(4)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    for process in processes:
        assert process.stderr is not None
        error = process.stderr.read()
        assert process.wait(timeout=60) == 0, error
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [
            (schema.HEAD,)
        ]


async def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    store = await open_store("", tmp_path / "tesazure.db")
    await created(store)
    for file in os.scandir(tmp_path):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    await store.close()


async def test_writes_are_durable_and_logged_ahead(tmp_path: Path) -> None:
    store = await open_store("", tmp_path / "tesazure.db")
    await store.ping()
    link = store._writer._link
    assert link is not None
    pragmas = {
        name: link.driver.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "wal_autocheckpoint")
    }
    assert pragmas["journal_mode"] == "wal"
    assert pragmas["synchronous"] == 2  # FULL
    assert pragmas["wal_autocheckpoint"] >= 10_000
    await store.close()


async def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    store = await open_store("", tmp_path / "tesazure.db")
    kept = await created(store, 3)
    link = store._writer._link
    assert link is not None
    pages = link.driver.execute("PRAGMA page_count").fetchone()[0]
    link.driver.execute(f"PRAGMA max_page_count={pages + 2}")
    refused = [new_task(document=b"x" * 100_000) for _ in range(5)]
    results = await asyncio.gather(*map(store.create, refused), return_exceptions=True)
    assert {type(result) for result in results} == {StoreUnavailable}
    assert str(tmp_path / "tesazure.db") in str(results[0])
    assert "free some space" in str(results[0])
    assert [await store.get_brief(task.id, ALL) for task in refused] == [None] * 5
    link.driver.execute("PRAGMA max_page_count=1000000")
    await created(store)
    assert (await store.count_by_state())[State.QUEUED] == len(kept) + 1
    await store.close()


async def test_a_writer_in_another_process_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "tesazure.db"
    store = await open_store("", file)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writing = asyncio.ensure_future(created(store))
    done, _ = await asyncio.wait([writing], timeout=0.2)
    assert not done
    # Meanwhile the event loop is free, and so are reads.
    assert (await store.count_by_state())[State.QUEUED] == 0
    assert not writing.done()
    other.execute("COMMIT")
    other.close()
    await asyncio.wait_for(writing, 20)
    await store.close()


@pytest.mark.parametrize("damage", [b"this is no database, " * 500, None])
async def test_a_damaged_file_is_named_with_a_remedy(tmp_path: Path, damage: bytes | None) -> None:
    file = tmp_path / "tesazure.db"
    store = await open_store("", file)
    await created(store, 20)
    await store.close()
    content = bytearray(file.read_bytes())
    if damage is None:
        content[100:8000] = os.urandom(7900)
    else:
        content = bytearray(damage)
    file.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        await open_store("", file)
    assert str(file) in str(caught.value)
    assert "restore it from a backup" in str(caught.value)


async def test_a_file_damaged_while_in_use_is_named(tmp_path: Path) -> None:
    file = tmp_path / "tesazure.db"
    store = await open_store("", file)
    await created(store, 200, document=b"x" * 3000)
    await store.close()
    store = await open_store("", file)
    with file.open("r+b") as damaged:
        damaged.seek(4096)
        damaged.write(os.urandom(file.stat().st_size - 4096))
    with pytest.raises(StoreUnavailable, match="restore it from a backup"):
        await store.list_records(ListQuery(limit=200))
    await store.close()


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tesazure.db"
    await (await open_store("", file)).close()
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(ConfigurationError, match=r"newer tesazure \(schema 9999") as caught:
        await open_store("", file)
    assert str(file) in str(caught.value)


async def test_a_read_only_directory_is_named(ordinary: Path) -> None:
    os.chmod(ordinary, 0o500)  # noqa: PTH101 - pathlib's is refused in coroutines
    with pytest.raises(ConfigurationError, match="writable"):
        await open_store("", ordinary / "tesazure.db")


async def test_a_file_system_that_takes_no_files_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"/proc/tesazure\.db.*writable"):
        await open_store("", Path("/proc/tesazure.db"))


async def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="file"):
        await open_store("", tmp_path / "file" / "tesazure.db")


async def test_opening_an_existing_store_is_quick_and_needs_no_alembic(tmp_path: Path) -> None:
    file = tmp_path / "tesazure.db"
    await (await open_store("", file)).close()
    program = OPEN + "\nsys.exit('alembic' in sys.modules)\n"
    process = python(program, file)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    took = []
    for _ in range(5):  # the quickest counts: the machine may have other things to do
        began = time.monotonic()
        await (await open_store("", file)).close()
        took.append(time.monotonic() - began)
    assert min(took) < 2

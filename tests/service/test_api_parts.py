"""Handlers on a real store, in the test's own process: what takes a store or a scheduler that does
something at the wrong moment."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from threading import Event
from typing import Any, ClassVar, cast

import msgspec
import pytest
from starlette.requests import Request

from tesazure.api.audit import Audit
from tesazure.api.errors import HttpError
from tesazure.api.events import Events
from tesazure.api.feed import Feed
from tesazure.api.health import Health
from tesazure.api.ids import new_task_id
from tesazure.api.lines import Lines
from tesazure.api.metrics import Latencies, Metrics
from tesazure.api.parts import Parts
from tesazure.api.replies import Reply, Stream
from tesazure.api.submission import Submission
from tesazure.backends.base import Capabilities, Check, Gauge
from tesazure.budgets import Budgets
from tesazure.callers import EVERYTHING, OPEN
from tesazure.daemon_threads import DaemonThreads
from tesazure.errors import InvalidInput
from tesazure.model import State
from tesazure.sealing import KEY_BYTES, Seal
from tesazure.settings import Settings
from tesazure.signin.gate import Gate, SignIn
from tesazure.signin.tokens import TokenSource
from tesazure.storage.registry import Storages
from tesazure.store.base import Store
from tesazure.store.sql_store import SqlStore, open_store
from tesazure.submitters.cromwell_paths import PathMapping
from tests.contract.backend_site import until
from tests.contract.store_tasks import ALL, new_task


class Interrupted:
    """A store to which something happens just after each answer to `last_event`."""

    def __init__(self, store: SqlStore, happens: Callable[[], Awaitable[Any]]) -> None:
        self._store = store
        self._happens = happens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def last_event(self) -> int:
        number = await self._store.last_event()
        await self._happens()
        return number


class Pulse:
    """A scheduler that does nothing."""

    lag_s = 0.0
    placed = retries = 0
    ends: ClassVar[dict[tuple[State, str], int]] = {}

    def __init__(self, last_tick: float, last_error: str = "") -> None:
        self.last_tick, self.last_error = last_tick, last_error

    def wake(self) -> None: ...

    def waiting_for(self, task_id: str) -> str | None: ...


class Backend:
    """A backend that is well."""

    capabilities = Capabilities("idle", "here", None, ("max_runtime_s",), "none")

    def gauges(self) -> Sequence[Gauge]:
        return []

    async def check(self) -> Sequence[Check]:
        return []


class Station:
    """The only one."""

    cromwell = PathMapping()
    engines: frozenset[str] = frozenset()

    def __init__(self, backend: Any = None, urls: Any = None) -> None:
        self.backend = backend or Backend()
        self.urls = urls or Storages([])

    @property
    def current(self) -> Station:
        return self

    def backend_of(self, scope: str | None) -> Backend:
        return self.backend


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    opened = await open_store("", tmp_path / "tesazure.db")
    yield opened
    await opened.close()


def parts(store: Any, **given: Any) -> Parts:
    values: dict[str, Any] = {
        "settings": Settings(),
        "store": cast(Store, store),
        "stations": Station(),
        "gate": Gate(SignIn(), TokenSource(store)),
        "audit": Audit(Lines(os.open(os.devnull, os.O_WRONLY))),
        "seal": Seal([bytes(KEY_BYTES)]),
        "pulse": None,
        "budgets": Budgets(),
        "identity": "id",
        "created": 0.0,
        "started": 0.0,
        "closing": asyncio.Event(),
        "clock": time.time,
    }
    return Parts(**values | given)


async def queued(store: SqlStore, count: int = 1) -> list[str]:
    tasks = [new_task(id=new_task_id(time.time())) for _ in range(count)]
    await asyncio.gather(*map(store.create, tasks))
    return [task.id for task in tasks]


async def events(store: Any, query: str, last: int | None = None) -> Reply | Stream:
    headers = [] if last is None else [(b"last-event-id", b"%d" % last)]
    scope: dict[str, Any] = {"type": "http", "query_string": query.encode(), "headers": headers}
    scope |= {"caller": OPEN, "visibility": EVERYTHING}
    return await Events(parts(store), Feed(store)).some(Request(scope))


async def whole(reply: Reply | Stream) -> bytes:
    """All that a stream which ends by itself sends."""
    assert isinstance(reply, Stream)
    async with asyncio.timeout(20):
        return b"".join([chunk async for chunk in reply.chunks])


def told(sent: bytes) -> list[str]:
    return [json.loads(line[6:])["state"] for line in sent.split(b"\n") if line[:5] == b"data:"]


async def test_what_happens_while_a_stream_begins_is_told_once_and_in_order(
    store: SqlStore,
) -> None:
    [task_id] = await queued(store)

    async def cancel() -> None:
        await store.request_cancel(task_id, ALL)  # CANCELING and CANCELED in one commit

    sent = await whole(await events(Interrupted(store, cancel), f"task_id={task_id}"))
    assert told(sent) == ["QUEUED", "CANCELING", "CANCELED"]


async def test_a_task_made_while_a_stream_begins(store: SqlStore) -> None:
    [first] = await queued(store)
    await store.request_cancel(first, ALL)
    [task_id] = await queued(store)
    head = await store.last_event()
    await store.request_cancel(task_id, ALL)
    handler = Events(parts(store), Feed(store))
    entered = await handler._entered((first, task_id), head - 1, EVERYTHING)
    assert [entered[i].state for i in (first, task_id)] == [State.CANCELED, State.UNKNOWN]


async def test_a_listener_to_many_tasks_that_comes_back_late_is_told_all_and_let_go(
    store: SqlStore,
) -> None:
    """More was missed than is read at once, and some tasks had ended before."""
    ids = await queued(store, 450)
    await store.request_cancel(ids[0], ALL)
    last = await store.last_event()
    await asyncio.gather(*(store.request_cancel(i, ALL) for i in ids[1:]))
    query = "task_id=" + ",".join(ids)
    sent = await whole(await events(store, query, last))
    assert told(sent).count("CANCELED") == len(ids) - 1
    again = await events(store, query, await store.last_event())
    assert isinstance(again, Reply)
    assert again.status == 204


async def test_events_that_are_no_longer_kept_are_said_to_be_missing(store: SqlStore) -> None:
    [task_id] = await queued(store)
    await store.request_cancel(task_id, ALL)
    [other] = await queued(store)
    await store.request_cancel(other, ALL)
    assert await store.prune_events(time.time() + 1)
    head = await store.last_event()
    sent = await whole(await events(store, f"task_id={task_id},{other}", 1))
    assert b"\n: events after 1 are no longer kept; going on from %d\n" % head in sent
    assert told(sent) == ["CANCELED", "CANCELED"]
    reply = await events(store, "", 1)
    assert isinstance(reply, Stream)
    assert b"no longer kept" in await anext(reply.chunks)
    reply = await events(store, "", head)
    assert isinstance(reply, Stream)
    assert b"no longer kept" not in await anext(reply.chunks)


@pytest.mark.parametrize(
    ("silent_s", "error", "status"),
    [(0.0, "never", 200), (29.0, "away", 200), (31.0, "disk full", 503)],
)
async def test_a_scheduler_that_does_not_come_round_is_seen(
    store: SqlStore, silent_s: float, error: str, status: int
) -> None:
    here = parts(store, pulse=Pulse(time.monotonic() - silent_s, error))
    request = Request({"type": "http", "headers": []})
    reply = await Health(here).readyz(request)
    assert reply.status == status
    [check] = [c for c in json.loads(reply.body)["checks"] if c["name"] == "scheduler"]
    assert check["ok"] == (status == 200)
    assert (error in check["detail"]) == (status == 503)
    metrics = (await Metrics(here, Latencies()).metrics(request)).body.decode()
    [line] = [x for x in metrics.splitlines() if x.startswith("tesazure_scheduler_seconds_since")]
    assert float(line.split()[1]) == pytest.approx(silent_s, abs=1)


class Counting(Backend):
    """Counts how often it was looked at."""

    looks = 0

    async def check(self) -> Sequence[Check]:
        self.looks += 1
        await asyncio.sleep(0)
        return [Check("engine", self.looks > 1, "as found")]


async def test_however_many_ask_the_server_looks_once_a_second(store: SqlStore) -> None:
    backend = Counting()
    health = Health(parts(store, stations=Station(backend)))
    request = Request({"type": "http", "headers": []})
    replies = await asyncio.gather(*(health.readyz(request) for _ in range(500)))
    assert {reply.status for reply in replies} == {503}
    assert backend.looks == 1

    async def ready() -> bool:
        return (await health.readyz(request)).status == 200

    await until(ready)
    assert backend.looks == 2


# -- submissions ----------------------------------------------------------------------------------


class HangingUrls(Storages):
    """As on a network file system whose server is away: looking at `/away/…` never ends."""

    def checks_at_once(self, urls: Iterable[str]) -> bool:
        return not any(url.startswith("/") for url in urls)

    def check_input(self, url: str) -> None:
        if url.startswith("/away/"):
            time.sleep(600)
        super().check_input(url)


def body(*urls: str, **more: Any) -> bytes:
    inputs = [{"path": f"/in/{i}", "url": url} for i, url in enumerate(urls)]
    executor = {"image": "i", "command": ["true"]}
    return msgspec.json.encode({"executors": [executor], "inputs": inputs, **more})


async def test_a_file_system_that_hangs_holds_up_nobody_else(tmp_path: Path) -> None:
    submission = Submission(parts(None, stations=Station(urls=HangingUrls([tmp_path]))))
    documents = (body("/away/x"), body("/away/y", description="x" * 200_000))
    for document in documents:
        submission._looks = DaemonThreads("urls", 1, 600)
        hanging = asyncio.ensure_future(submission.accept(document, OPEN))
        await asyncio.sleep(0)
        assert (await submission.accept(body(), OPEN)).document
        assert not hanging.done()
        hanging.cancel()
    submission._looks = DaemonThreads("urls", 2, 0.5)
    for document in documents:
        with pytest.raises(HttpError) as caught:
            await submission.accept(document, OPEN)
        assert (caught.value.status, caught.value.code) == (503, "unavailable")
        assert caught.value.headers
    # Both threads are lost now: what needs a look gets the same answer, the rest is served.
    with pytest.raises(HttpError):
        await submission.accept(body(str(tmp_path / "file")), OPEN)
    assert (await submission.accept(body(), OPEN)).document


async def test_a_link_out_of_the_allowed_directories_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")
    for urls in (HangingUrls([tmp_path]), Storages([tmp_path])):
        submission = Submission(parts(None, stations=Station(urls=urls)))
        for _ in range(2):
            with pytest.raises(InvalidInput) as caught:
                await submission.accept(body(str(tmp_path / "file"), str(tmp_path / "link")), OPEN)
            assert [error.field for error in caught.value.errors] == ["inputs[1].url"]


async def test_tasks_without_files_ask_no_file_system(tmp_path: Path) -> None:
    submission = Submission(parts(None, stations=Station(urls=HangingUrls([tmp_path]))))
    submission._looks = DaemonThreads("urls", 0, 0.1)  # whoever asks them is refused
    assert (await submission.accept(body("https://example.org/x"), OPEN)).document
    with pytest.raises(HttpError):
        await submission.accept(body(str(tmp_path / "file")), OPEN)


async def test_a_large_body_is_not_looked_at_in_the_event_loop(tmp_path: Path) -> None:
    class Recording(Storages):
        threads: ClassVar[set[int]] = set()

        def check_input(self, url: str) -> None:
            self.threads.add(threading.get_ident())
            super().check_input(url)

    submission = Submission(parts(None, stations=Station(urls=Recording([tmp_path]))))
    urls = [f"{tmp_path}/{i}" for i in range(5000)]
    assert (await submission.accept(body(*urls), OPEN)).document
    assert threading.get_ident() not in Recording.threads


async def test_calls_that_were_given_up_are_forgotten() -> None:
    threads = DaemonThreads("test", 0, 0.05)

    async def give_up() -> weakref.ref[Event]:
        held = Event()
        with contextlib.suppress(TimeoutError):
            await threads.run(held.is_set)
        return weakref.ref(held)

    left = await asyncio.create_task(give_up())  # as each request has a task of its own
    gc.collect()
    assert left() is None


async def test_calls_that_wait_for_a_thread_have_all_their_time_yet() -> None:
    """Many tasks at once ask for signatures, each quickly answered."""
    patience_s = 2.0
    threads = DaemonThreads("test", 1, patience_s)
    took = Event()
    began = time.monotonic()
    calls = [threads.run(lambda: took.wait(patience_s / 4)) for _ in range(5)]
    assert await asyncio.gather(*calls) == [False] * 5
    assert time.monotonic() - began > patience_s
    with pytest.raises(TimeoutError):
        await threads.run(took.wait)
    # Nobody gets any further behind that one.
    with pytest.raises(TimeoutError):
        await threads.run(int)
    took.set()
    assert await threads.run(int) == 0


async def test_daemon_threads_give_results_and_errors() -> None:
    threads = DaemonThreads("test", 2, 5)
    assert await asyncio.gather(*(threads.run(lambda n=n: n * n) for n in range(20))) == [
        n * n for n in range(20)
    ]
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)

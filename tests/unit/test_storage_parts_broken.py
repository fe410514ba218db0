"""storage.parts: servers that break, refuse and stall, and disks that fill."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from tesazure.errors import StorageError, StorageFull, StorageNotFound
from tesazure.storage.base import Progress
from tesazure.storage.http import HttpStorage
from tesazure.storage.parts import PART, download, in_parts
from tesazure.storage.transport import Patience, Transport
from tests.services.faulty_http import FAULTS, PUT_FAULTS, FaultyHttp, Handler
from tests.unit.ranges import HASTY, SIZE, Ranges, names


def test_a_thousand_faults_and_every_file_is_right(transport: Transport, tmp_path: Path) -> None:
    """Seeded faults of every kind in downloads and uploads; what came is what the server holds."""
    storage = HttpStorage(transport)
    sizes = random.Random(1)
    with FaultyHttp(seed=20, rate=0.72) as server:
        down = [f"/object {i}" for i in range(400)]
        up = [f"/result {i}" for i in range(320)]
        for path in down:
            server.add(path, sizes.randbytes(sizes.randrange(200_000)))
        for i in range(len(up)):
            (tmp_path / f"out{i}").write_bytes(sizes.randbytes(sizes.randrange(200_000)))

        def fetch(i: int) -> int:
            return storage.get(server.url(down[i].replace(" ", "%20")), tmp_path / f"in{i}")

        def bring(i: int) -> int:
            return storage.put(tmp_path / f"out{i}", server.url(up[i].replace(" ", "%20")))

        with ThreadPoolExecutor(16) as pool:
            got = pool.map(fetch, range(len(down)), timeout=100)
            put = pool.map(bring, range(len(up)), timeout=100)
            moved = [*got, *put]
        places = [*(f"in{i}" for i in range(len(down))), *(f"out{i}" for i in range(len(up)))]
        for path, place, size in zip([*down, *up], places, moved, strict=True):
            content = server.objects[path].content
            assert size == len(content)
            mine = hashlib.sha256((tmp_path / place).read_bytes()).hexdigest()
            assert mine == hashlib.sha256(content).hexdigest(), path
        assert sum(server.done.values()) >= 1000
        met = set(server.done) | {"limit_connections"}  # which objects of one part do not meet
        assert met == {*FAULTS, *(f"put_{fault}" for fault in PUT_FAULTS)}
    assert len(names(tmp_path)) == len(places)


def test_faults_in_parts(tmp_path: Path) -> None:
    """Each part is asked for again on its own."""
    others = {"change", "change_but_206", "other_etag", "announce_less", "corrupt"}
    faults = tuple(fault for fault in FAULTS if fault not in others)
    content = random.Random(2).randbytes(SIZE)
    patience = msgspec.structs.replace(HASTY, attempts=20)
    with (
        FaultyHttp(seed=7, rate=0.4, faults=faults) as server,
        contextlib.closing(Transport(patience=patience)) as transport,
    ):
        for i in range(40):
            assert download(transport, server.add(f"/{i}", content), tmp_path / "got") == SIZE
            assert (tmp_path / "got").read_bytes() == content
            if i >= 3 and server.done["limit_connections"]:  # which needs two at the same time
                break
        assert sum(server.done.values()) >= 10
        assert server.done["limit_connections"]


@pytest.mark.slow
def test_a_gigabyte_that_breaks_goes_on(tmp_path: Path, server: FaultyHttp) -> None:
    size = 2**30
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, size)
    chance = random.Random(3)
    cuts: list[int] = []

    def cut(_: Handler, start: int) -> int | None:
        with server.lock:
            if chance.random() < 0.3:
                cuts.append(start)
                return chance.randrange(PART)
        return None

    ranges = Ranges(path, cut, ETag='"x"')
    server.answers["/object"] = ranges
    patience = Patience(attempts=20, pause_s=0.005, longest_pause_s=0.02)
    moved: list[int] = []
    with contextlib.closing(Transport(patience=patience)) as transport:
        got = download(transport, server.url("/object"), tmp_path / "got", moved.append)
    assert got == sum(moved) == size
    print(f"{len(cuts)} cuts, {ranges.sent / size:.3f} of the object sent")
    assert len(cuts) > 30
    assert ranges.sent < 1.1 * size


@pytest.mark.parametrize(
    ("limit", "patience"), [(1, Patience()), (2, Patience()), (5, Patience()), (2, HASTY)]
)
def test_servers_may_take_few_connections(tmp_path: Path, limit: int, patience: Patience) -> None:
    """With the patience that everybody has, and less. Nobody insists while others come further."""
    path = tmp_path / "big"
    path.write_bytes(os.urandom(14 * PART + 1))
    began = time.monotonic()
    with (
        FaultyHttp(limit=limit) as server,
        contextlib.closing(Transport(patience=patience)) as transport,
    ):
        slow = Ranges(path, lambda *_: server.closing.wait(0.05) or None, ETag='"x"')
        server.answers["/object"] = slow
        download(transport, server.url("/object"), tmp_path / "got")
        assert 1 <= server.refused <= 14
    assert (tmp_path / "got").read_bytes() == path.read_bytes()
    assert time.monotonic() - began < 10


def test_a_part_has_patience_while_others_come(server: FaultyHttp, tmp_path: Path) -> None:
    """One that broke, and is refused until all others are there."""
    big = tmp_path / "sparse"
    big.touch()
    os.truncate(big, 11 * PART)
    refused: list[str] = []

    def before(handler: Handler, start: int) -> int | None:
        if start == PART:
            return 1000
        server.closing.wait(0.15 * start / PART)
        return None

    ranges = Ranges(big, before, ETag='"x"')

    def answer(handler: Handler) -> None:
        if f"bytes={PART + 1000}-" in handler.headers["Range"] and ranges.sent < 10 * PART:
            refused.append(handler.headers["Range"])
            handler.send_plain(503)
        else:
            ranges(handler)

    server.answers["/object"] = answer
    patience = Patience(attempts=4, pause_s=0.2, longest_pause_s=0.2)
    with contextlib.closing(Transport(patience=patience)) as transport:
        assert download(transport, server.url("/object"), tmp_path / "got") == 11 * PART
    assert len(refused) > 4


def test_what_was_refused_for_a_while_is_asked_for_more(
    server: FaultyHttp, transport: Transport, tmp_path: Path
) -> None:
    """All connections but one are refused at first; one more is made after 16 parts each."""
    most = [0]
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 24 * PART)
    ranges = Ranges(path, ETag='"x"')

    def answer(handler: Handler) -> None:
        with server.lock:
            now = server.under_way["/object"]
        if len(server.requests) <= 12 and now > 1:
            handler.send_plain(503)
            return
        most.append(now)
        ranges(handler)

    server.answers["/object"] = answer
    assert download(transport, server.url("/object"), tmp_path / "got") == 24 * PART
    assert max(most) > 1


def test_a_stalled_part_is_noticed(
    server: FaultyHttp, transport: Transport, tmp_path: Path, big: Path
) -> None:
    stalled: list[int] = []

    def stall(handler: Handler, start: int) -> int | None:
        if start == 2 * PART and not stalled:
            stalled.append(start)
            handler.wait_for_client()
            return 0
        return None

    server.answers["/object"] = Ranges(big, stall, ETag='"x"')
    began = time.monotonic()
    assert download(transport, server.url("/object"), tmp_path / "got") == SIZE
    assert time.monotonic() - began < 8
    assert stalled
    assert (tmp_path / "got").read_bytes() == big.read_bytes()


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_of_one_part_ends_all(
    server: FaultyHttp, transport: Transport, tmp_path: Path, big: Path, status: int
) -> None:
    """As when a signature expires on the way."""
    ranges = Ranges(big, lambda _, start: 1000 if start == PART else None, ETag='"x"')

    def answer(handler: Handler) -> None:
        if handler.headers["Range"].startswith(f"bytes={PART + 1000}-"):
            handler.send_plain(status)
        else:
            ranges(handler)

    server.answers["/object"] = answer
    with pytest.raises(StorageError, match=rf"/object: HTTP {status} .*; try this") as caught:
        download(
            transport,
            server.url("/object?sig=hunter2"),
            tmp_path / "got",
            hint=lambda _: "try this",
        )
    assert not caught.value.retryable
    assert names(tmp_path) == ["big"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("part-")]


def test_a_full_disk_is_named_and_nothing_is_left(
    server: FaultyHttp, transport: Transport, small_disk: Path, big: Path
) -> None:
    (small_disk / "got").write_text("before")
    server.answers["/object"] = Ranges(big, ETag='"x"')
    with pytest.raises(StorageFull, match=r"/object to .*small/got: No space left on device"):
        download(transport, server.url("/object?sig=hunter2"), small_disk / "got")
    assert names(small_disk) == ["got"]
    assert (small_disk / "got").read_text() == "before"
    room = os.statvfs(small_disk)
    assert room.f_bavail * room.f_frsize > 19 * 2**20


@pytest.mark.parametrize("when", [1, 10])
def test_a_progress_that_raises_ends_all_parts(
    server: FaultyHttp, transport: Transport, tmp_path: Path, big: Path, when: int
) -> None:
    server.answers["/object"] = Ranges(big, ETag='"x"')
    calls = 0
    inside = threading.Lock()

    def stop(_: int) -> None:
        nonlocal calls
        assert inside.acquire(blocking=False)  # one call at a time
        calls += 1
        inside.release()
        if calls == when:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(transport, server.url("/object"), tmp_path / "got", stop)
    assert calls == when
    assert names(tmp_path) == ["big"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("part-")]


def test_the_first_error_of_a_part_wins_and_stops_the_others() -> None:
    together = threading.Barrier(4, timeout=20)
    failed = threading.Event()
    stopped: list[int] = []

    def work(index: int, _offset: int, _length: int, progress: Progress | None) -> None:
        together.wait()
        if index == 2:
            failed.set()
            raise StorageNotFound("this one")
        assert failed.wait(20)
        assert progress
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                progress(0)
            except Exception:
                stopped.append(index)
                raise

    with pytest.raises(StorageNotFound, match="this one"):
        in_parts(1000, 1, work, None, connections=4)
    assert sorted(stopped) == [0, 1, 3]

"""storage.parts: objects in parallel parts, from servers that break."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
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

HASTY = Patience(
    attempts=8, connect_s=5, read_s=0.4, pause_s=0.005, longest_pause_s=0.02, retry_after_s=0.03
)
SIZE = 5 * PART + 12345


@pytest.fixture
def server() -> Iterator[FaultyHttp]:
    with FaultyHttp() as running:
        yield running


@pytest.fixture
def transport() -> Iterator[Transport]:
    with contextlib.closing(Transport(patience=HASTY)) as made:
        yield made


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
        for i in range(4):
            assert download(transport, server.add(f"/{i}", content), tmp_path / "got") == SIZE
            assert (tmp_path / "got").read_bytes() == content
        assert sum(server.done.values()) >= 10
        assert server.done["limit_connections"]


class Ranges:
    """Answers GETs with ranges of a file, as good servers do, and counts the bytes it sends.

    `before` is called with the handler and the first byte asked for, ahead of each answer; what it
    returns is how many bytes are sent before the connection is broken off, None for all of them.
    """

    def __init__(
        self,
        path: Path,
        before: Callable[[Handler, int], int | None] = lambda *_: None,
        **headers: str,
    ) -> None:
        self.path = path
        self.before = before
        self.headers = headers
        self.sent = 0
        self._lock = threading.Lock()

    def __call__(self, handler: Handler) -> None:
        size = self.path.stat().st_size
        start, _, last = handler.headers["Range"].removeprefix("bytes=").partition("-")
        length = min(int(last) + 1, size) - int(start)
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{int(start) + length - 1}/{size}")
        handler.send_header("Content-Length", str(length))
        for name, value in self.headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.flush()
        most = self.before(handler, int(start))
        left = length if most is None else min(most, length)
        offset = int(start)
        with self.path.open("rb") as file, contextlib.suppress(OSError):
            while left:
                sent = os.sendfile(handler.connection.fileno(), file.fileno(), offset, left)
                offset, left = offset + sent, left - sent
                with self._lock:
                    self.sent += sent
        if most is not None:
            handler.break_off()


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file of several parts."""
    path = tmp_path / "big"
    path.write_bytes(os.urandom(SIZE))
    return path


def test_parts_come_side_by_side(
    server: FaultyHttp, transport: Transport, tmp_path: Path, big: Path
) -> None:
    together = threading.Barrier(6, timeout=20)

    def all_at_once(*_: object) -> None:
        together.wait()

    server.answers["/object"] = Ranges(big, all_at_once, ETag='"x"')
    moved: list[int] = []
    assert download(transport, server.url("/object"), tmp_path / "got", moved.append) == SIZE
    assert sum(moved) == SIZE
    assert (tmp_path / "got").read_bytes() == big.read_bytes()
    ranges = sorted(headers["Range"] for _, _, headers in server.requests)
    expected = [f"bytes={n * PART}-{min((n + 1) * PART, SIZE) - 1}" for n in range(6)]
    assert ranges == sorted(expected)
    for _, _, headers in server.requests[1:]:
        assert headers["If-Match"] == headers["If-Range"] == '"x"'


DATE = "Wed, 21 Oct 2015 07:28:00 GMT"


def test_a_date_is_a_version_too(
    server: FaultyHttp, transport: Transport, tmp_path: Path, big: Path
) -> None:
    server.answers["/object"] = Ranges(big, ETag='W/"x"', Last_Modified=DATE)
    assert download(transport, server.url("/object"), tmp_path / "got") == SIZE
    for _, _, headers in server.requests[1:]:
        assert headers["If-Unmodified-Since"] == headers["If-Range"] == DATE
        assert "If-Match" not in headers


def test_without_a_version_it_comes_in_one_stream(
    server: FaultyHttp, transport: Transport, tmp_path: Path, big: Path
) -> None:
    ranges = Ranges(big)

    def answer(handler: Handler) -> None:
        if "Range" in handler.headers:
            ranges(handler)
            return
        handler.send_response(200)
        handler.send_header("Content-Length", str(SIZE))
        handler.end_headers()
        handler.write(big.read_bytes())

    server.answers["/object"] = answer
    assert download(transport, server.url("/object"), tmp_path / "got") == SIZE
    assert (tmp_path / "got").read_bytes() == big.read_bytes()
    assert len(server.requests) == 2


@pytest.mark.parametrize("right", [True, False])
def test_the_checksum_of_the_whole_is_verified(
    server: FaultyHttp, transport: Transport, tmp_path: Path, big: Path, right: bool
) -> None:
    """Parts come in any order; the first one last."""
    others = threading.Semaphore(0)

    def first_last(_: Handler, start: int) -> None:
        if start:
            others.release()
        else:
            for _ in range(5):
                others.acquire(timeout=20)

    digest = hashlib.md5(big.read_bytes() if right else b"").digest()
    checksum = base64.b64encode(digest).decode()
    server.answers["/object"] = Ranges(big, first_last, ETag='"x"', x_ms_blob_content_md5=checksum)
    if right:
        assert download(transport, server.url("/object"), tmp_path / "got") == SIZE
        assert (tmp_path / "got").read_bytes() == big.read_bytes()
        return
    with pytest.raises(StorageError, match=r"/object: the checksum .*\(md5 d41d8cd98f.*not fit"):
        download(transport, server.url("/object"), tmp_path / "got")
    assert len(server.requests) == 2 * 6
    assert names(tmp_path) == ["big"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"ETag": '"old"'}, {"ETag": '"new"'}),
        ({"Last_Modified": DATE}, {"Last_Modified": DATE.replace("2015", "2016")}),
    ],
)
def test_an_object_that_changes_meanwhile_is_taken_anew(
    server: FaultyHttp,
    transport: Transport,
    tmp_path: Path,
    big: Path,
    before: dict[str, str],
    after: dict[str, str],
) -> None:
    """Also by a server that ignores every condition, and goes on with parts of the new one."""
    new = tmp_path / "new"
    new.write_bytes(os.urandom(SIZE))
    ranges = Ranges(big, **before)

    def change(_: Handler, start: int) -> None:
        if start == PART:
            ranges.path, ranges.headers = new, after

    ranges.before = change
    server.answers["/object"] = ranges
    assert download(transport, server.url("/object"), tmp_path / "got") == SIZE
    assert (tmp_path / "got").read_bytes() == new.read_bytes()


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


@pytest.mark.parametrize("version", ["ETag", "200"])
def test_several_servers_with_versions_of_their_own(
    server: FaultyHttp, transport: Transport, tmp_path: Path, big: Path, version: str
) -> None:
    """They take turns. One stream comes from one of them."""

    def answer(handler: Handler) -> None:
        with server.lock:
            etag = f'"{len(server.requests) % 2}"'
        asked = "Range" in handler.headers and handler.headers.get("If-Match") in (None, etag)
        if version == "200" and handler.headers.get("If-Range"):
            asked = False
        if asked:
            Ranges(big, ETag=etag)(handler)
        elif version == "ETag" and "If-Match" in handler.headers:
            handler.send_plain(412)
        else:
            handler.send_response(200)
            handler.send_header("ETag", etag)
            handler.send_header("Content-Length", str(SIZE))
            handler.end_headers()
            handler.write(big.read_bytes())

    server.answers["/object"] = answer
    assert download(transport, server.url("/object"), tmp_path / "got") == SIZE
    assert (tmp_path / "got").read_bytes() == big.read_bytes()
    assert "Range" not in server.requests[-1][2]


@pytest.mark.parametrize(
    "told", ["bytes 0-9/*", "bytes 0-9/10", "bytes 0-9/" + "9" * 5000, "", "bytes \u0661-2/3"]
)
def test_a_part_that_nobody_asked_for_is_no_answer(
    server: FaultyHttp, transport: Transport, tmp_path: Path, told: str
) -> None:
    def answer(handler: Handler) -> None:
        if "Range" in handler.headers and told == "bytes 0-9/10":
            handler.send_plain(416)
            return
        handler.send_response(206)
        if told:
            handler.send_header("Content-Range", told.encode().decode("latin-1"))
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        handler.write(b"0123456789")

    server.answers["/object"] = answer
    with pytest.raises(StorageError, match="/object: unexpected HTTP 206") as caught:
        download(transport, server.url("/object"), tmp_path / "got")
    assert not caught.value.retryable
    assert len(server.requests) == 2
    assert names(tmp_path) == []


def test_a_version_that_no_header_can_hold_is_none(
    server: FaultyHttp, transport: Transport, tmp_path: Path, big: Path
) -> None:
    ranges = Ranges(big, ETag='"\xfc"', Last_Modified=DATE)
    server.answers["/object"] = ranges
    assert download(transport, server.url("/object"), tmp_path / "got") == SIZE
    assert server.requests[1][2]["If-Unmodified-Since"] == DATE


def test_servers_may_send_less_of_a_part(
    server: FaultyHttp, transport: Transport, tmp_path: Path
) -> None:
    content = os.urandom(1_000_000)

    def a_little(handler: Handler) -> None:
        start = int(handler.headers["Range"].removeprefix("bytes=").partition("-")[0])
        body = content[start : start + 100_000]
        handler.send_response(206)
        handler.send_header("ETag", '"x"')
        last = start + len(body) - 1
        handler.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.write(body)

    server.answers["/object"] = a_little
    assert download(transport, server.url("/object"), tmp_path / "got") == len(content)
    assert (tmp_path / "got").read_bytes() == content
    assert len(server.requests) == 10


def test_an_empty_object_has_no_range(
    server: FaultyHttp, transport: Transport, tmp_path: Path
) -> None:
    headers = {"Content-Range": "bytes */0"}
    server.answers["/empty"] = lambda handler: handler.send_plain(416, headers)
    assert download(transport, server.url("/empty"), tmp_path / "got") == 0
    server.answers["/odd"] = lambda handler: handler.send_plain(416)
    with pytest.raises(StorageError, match="/odd: HTTP 416"):
        download(transport, server.url("/odd"), tmp_path / "other")
    assert names(tmp_path) == ["got"]


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


@pytest.mark.slow
def test_memory_does_not_grow_with_the_object(tmp_path: Path, server: FaultyHttp) -> None:
    """1 GiB through a process of its own, from a server of this one."""
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 2**30)
    server.answers["/object"] = Ranges(path, ETag='"x"')
    code = (
        "import sys; from pathlib import Path;"
        "from tesazure.storage.registry import Storages; s = Storages([]);"
        "s.for_url(sys.argv[1]).get(sys.argv[1], Path(sys.argv[2]));"
        "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
    )
    command = [sys.executable, "-c", code, server.url("/object"), str(tmp_path / "got")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    print(f"{int(done.stdout) // 1024} MiB")
    assert int(done.stdout) <= 200 * 1024
    assert (tmp_path / "got").stat().st_size == 2**30


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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    if done.returncode:
        pytest.skip(f"mounting a small file system needs root: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=20)


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


def test_uploads_in_parts() -> None:
    """Every part once, side by side, with what is left over at the end."""
    together = threading.Barrier(3, timeout=20)
    done: list[tuple[int, int, int]] = []
    moved: list[int] = []

    def work(index: int, offset: int, length: int, progress: Progress | None) -> None:
        together.wait()
        done.append((index, offset, length))
        assert progress
        progress(length)

    in_parts(25, 10, work, moved.append, connections=3)
    assert sorted(done) == [(0, 0, 10), (1, 10, 10), (2, 20, 5)]
    assert sum(moved) == 25
    in_parts(0, 10, work, None)
    assert len(done) == 3


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


def names(directory: Path) -> list[str]:
    """What is in a directory, sorted."""
    return sorted(place.name for place in directory.iterdir())

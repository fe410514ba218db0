"""storage.parts: objects in parallel parts, and what servers may say of them."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tesazure.errors import StorageError
from tesazure.storage.base import Progress
from tesazure.storage.parts import PART, download, in_parts
from tesazure.storage.transport import Transport
from tests.services.faulty_http import FaultyHttp, Handler
from tests.unit.ranges import SIZE, Ranges, names

DATE = "Wed, 21 Oct 2015 07:28:00 GMT"


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
    ranges, then = Ranges(big, **before), Ranges(new, **after)

    def changed(handler: Handler) -> None:
        if handler.headers["Range"].startswith("bytes=0-"):
            ranges(handler)
        else:
            server.answers["/object"] = then
            then(handler)

    server.answers["/object"] = changed
    assert download(transport, server.url("/object"), tmp_path / "got") == SIZE
    assert (tmp_path / "got").read_bytes() == new.read_bytes()


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

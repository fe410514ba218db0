"""The cache of inputs that attempts on one node have in common."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from tesazure.access import Access
from tesazure.errors import PermissionDenied, StorageNotFound, StorageUnavailable
from tesazure.model import Input
from tesazure.runner.input_cache import InputCache
from tesazure.runner.stage import Calls, stage_in
from tesazure.runner.tree import Tree, prepare
from tesazure.secrecy import hide
from tesazure.storage.http import HttpStorage
from tesazure.storage.registry import Storages
from tesazure.storage.transport import Patience, Transport
from tests.services.faulty_http import FaultyHttp, Handler
from tests.unit.stage_support import plan_of

SIZE = 100_000
PATIENCE = Patience(attempts=2, pause_s=0.01)


class Node:
    """A node with a cache, and a server."""

    def __init__(self, directory: Path, server: FaultyHttp) -> None:
        self.directory = directory
        self.server = server
        self.transport = Transport(patience=PATIENCE)
        self.storage = HttpStorage(self.transport)
        self.kept = directory / "cache"

    def cache(self, capacity: int = 10 * SIZE) -> InputCache:
        """What each attempt makes for itself."""
        return InputCache(self.kept, capacity, smallest=1000)

    def get(self, url: str, *, capacity: int = 10 * SIZE) -> bytes:
        """What an attempt gets."""
        moved: list[int] = []
        place = self.directory / f"got-{os.urandom(4).hex()}"
        size = self.cache(capacity).get(self.storage, url, hide(url), place, moved.append)
        content = place.read_bytes()
        assert size == len(content) == sum(moved)
        place.write_bytes(b"spoiled by the task")
        place.unlink()
        return content

    def downloads(self, path: str) -> int:
        """How often an object was asked for with its content, of which a byte is but a proof."""
        return sum(
            method == "GET" and urlsplit(asked).path == path and headers["Range"] != "bytes=0-0"
            for method, asked, headers in self.server.requests
        )

    def entries(self) -> list[Path]:
        """Directories of entries."""
        return [place for place in self.kept.iterdir() if place.is_dir()]

    def held(self) -> int:
        """Bytes that are kept."""
        return sum(place.stat().st_size for place in self.kept.glob("*/data"))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with FaultyHttp() as server:
        node = Node(tmp_path, server)
        yield node
        node.transport.close()


def test_the_second_attempt_gets_a_copy(node: Node) -> None:
    content = os.urandom(SIZE)
    url = node.server.add("/reads", content)
    assert [node.get(url) for _ in range(3)] == [content] * 3
    assert node.downloads("/reads") == 1


def test_attempts_at_once_download_once(node: Node) -> None:
    content = os.urandom(SIZE)
    url = node.server.add("/reads", content)
    got: list[bytes] = []
    threads = [threading.Thread(target=lambda: got.append(node.get(url))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert got == [content] * 8
    assert node.downloads("/reads") == 1


def test_a_changed_object_is_downloaded_anew(node: Node) -> None:
    url = node.server.add("/reads", b"1" * SIZE)
    node.get(url)
    node.server.add("/reads", b"2" * SIZE)
    assert node.get(url) == b"2" * SIZE
    assert node.downloads("/reads") == 2


@pytest.mark.parametrize(
    ("headers", "is_kept"),
    [
        ({"ETag": '"1"'}, True),
        ({"ETag": 'W/"1"'}, False),
        ({"ETag": 'W/"1"', "Last-Modified": "long ago"}, False),
        ({"Last-Modified": "long ago"}, True),
        ({"Last-Modified": "now"}, False),
        ({"Last-Modified": "some day"}, False),
        ({"ETag": '"of-the-second"', "Last-Modified": "now"}, False),
        ({"ETag": 'W/"1"', "Repr-Digest": "the right one"}, True),
    ],
)
def test_a_version_must_tell_contents_apart(
    node: Node, headers: dict[str, str], is_kept: bool
) -> None:
    """Another content of the same size within the same second has the same time."""
    times = {"long ago": time.time() - 60, "now": time.time()}

    def serve(handler: Handler) -> None:
        content = contents[0]
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        words = {name: formatdate(value, usegmt=True) for name, value in times.items()}
        words["the right one"] = f"sha-256=:{digest}:"
        told = {name: words.get(value, value) for name, value in headers.items()}
        handler.send_response(200)
        for name, value in {**told, "Content-Length": str(SIZE)}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(content)

    contents = [b"1" * SIZE, b"2" * SIZE]
    node.server.answers["/reads"] = serve
    url = node.server.url("/reads")
    assert node.get(url) == contents[0]
    assert node.kept.exists() == is_kept
    del contents[0]
    if not is_kept or "Repr-Digest" in headers:
        assert node.get(url) == contents[0]


@pytest.fixture
def small_cache(node: Node) -> Iterator[None]:
    """The cache on a disk that has room for two objects and a half. Only root can mount one."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    node.kept.mkdir()
    options = ["-o", f"size={SIZE * 5 // 2}"]
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", node.kept], check=True)
    yield
    subprocess.run(["umount", "--lazy", node.kept], check=True)


@pytest.mark.usefixtures("small_cache")
def test_a_full_disk_takes_from_the_cache(node: Node) -> None:
    """Whose bounds may be wider than what others have left on the disk."""
    urls = [node.server.add(f"/{n}", bytes([n]) * SIZE) for n in range(3)]
    for url in urls:
        # Progress counts what came twice twice.
        node.cache().get(node.storage, url, url, node.directory / "got", lambda _: None)
    for url in urls[1:]:
        node.get(url)
    # The first of these two found the disk full.
    assert [node.downloads(f"/{n}") for n in range(3)] == [1, 1, 2]


def test_what_changes_meanwhile_is_not_kept(node: Node) -> None:
    url = node.server.add("/reads", b"1" * SIZE)

    def change(handler: Handler) -> None:
        if handler.command == "GET":
            del node.server.answers["/reads"]
            node.server.add("/reads", b"2" * (SIZE + 1))
        handler.do_GET() if handler.command == "GET" else _head(handler, b"1" * SIZE)

    node.server.answers["/reads"] = change
    assert node.get(url) == b"2" * (SIZE + 1)
    assert node.entries() == []


def test_it_stays_within_its_bounds(node: Node) -> None:
    urls = [node.server.add(f"/{n}", bytes([n]) * SIZE) for n in range(6)]
    capacity = 3 * SIZE
    for url in urls[:3]:
        node.get(url, capacity=capacity)
    node.get(urls[0], capacity=capacity)
    for url in urls[3:5]:
        node.get(url, capacity=capacity)
        assert node.held() <= capacity
    for url in (urls[0], urls[3], urls[4]):
        node.get(url, capacity=capacity)
    assert [node.downloads(f"/{n}") for n in range(5)] == [1] * 5
    node.get(urls[1], capacity=capacity)
    assert node.downloads("/1") == 2
    assert node.held() == capacity


def test_what_is_larger_than_the_cache_passes_by(node: Node) -> None:
    small = node.server.add("/small", b"s" * SIZE)
    large = node.server.add("/large", b"l" * (2 * SIZE))
    node.get(small, capacity=SIZE)
    assert node.get(large, capacity=SIZE) == b"l" * (2 * SIZE)
    node.get(small, capacity=SIZE)
    assert node.downloads("/small") == 1


@pytest.mark.parametrize("damage", ["write", "truncate", "bit_rot", "about"])
def test_damage_is_noticed(node: Node, damage: str) -> None:
    content = os.urandom(SIZE)
    url = node.server.add("/reads", content)
    node.get(url)
    (entry,) = node.entries()
    data, about = entry / "data", entry / "about.json"
    if damage == "write":
        data.chmod(0o600)
        data.write_bytes(os.urandom(SIZE))
    elif damage == "truncate":
        os.truncate(data, SIZE // 2)
    elif damage == "about":
        about.write_bytes(about.read_bytes()[:20])
    else:
        # As a disk does it, across a boot: the times stay as they were.
        before = data.stat()
        with data.open("r+b") as file:
            file.seek(SIZE // 2)
            file.write(bytes([content[SIZE // 2] ^ 1]))
        os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))
        described = msgspec.json.decode(about.read_bytes())
        about.write_bytes(msgspec.json.encode({**described, "boot": "the last one"}))
    assert node.get(url) == content
    assert node.downloads("/reads") == 2
    assert node.get(url) == content
    assert node.downloads("/reads") == 2


def test_after_a_boot_what_is_sound_is_used(node: Node) -> None:
    url = node.server.add("/reads", b"x" * SIZE)
    node.get(url)
    (entry,) = node.entries()
    about = entry / "about.json"
    described = msgspec.json.decode(about.read_bytes())
    about.write_bytes(msgspec.json.encode({**described, "boot": "the last one"}))
    node.get(url)
    assert node.downloads("/reads") == 1
    assert msgspec.json.decode(about.read_bytes()) == described


def test_who_may_not_read_gets_nothing(node: Node) -> None:
    content = os.urandom(SIZE)

    def guarded(handler: Handler) -> None:
        if parse_qs(urlsplit(handler.path).query).get("sig") not in (["right"], ["renewed"]):
            handler.send_plain(403)
        elif handler.command == "HEAD":
            _head(handler, content)
        else:
            handler.send_response(200)
            handler.send_header("ETag", '"1"')
            handler.send_header("Content-Length", str(SIZE))
            handler.end_headers()
            handler.wfile.write(content)

    node.server.answers["/reads"] = guarded
    plain = node.server.url("/reads")
    assert node.get(f"{plain}?sig=right") == content
    assert node.get(f"{plain}?sig=renewed") == content
    assert node.downloads("/reads") == 1
    for url in (plain, f"{plain}?sig=wrong"):
        with pytest.raises(PermissionDenied, match="403"):
            node.get(url)
    names = " ".join(str(place) for place in node.kept.rglob("*"))
    texts = " ".join(place.read_text() for place in node.kept.glob("*/about.json"))
    assert "right" not in names + texts
    assert node.get(f"{plain}?sig=right") == content


def test_who_may_only_ask_about_it_gets_nothing(node: Node) -> None:
    """A signature for HEAD is none for GET."""
    content = os.urandom(SIZE)

    def guarded(handler: Handler) -> None:
        signature = parse_qs(urlsplit(handler.path).query)["sig"][0]
        if handler.command == "HEAD":
            _head(handler, content)
        elif signature != "get":
            handler.send_plain(403)
        else:
            _head(handler, content)
            handler.wfile.write(content)

    node.server.answers["/reads"] = guarded
    plain = node.server.url("/reads")
    assert node.get(f"{plain}?sig=get") == content
    with pytest.raises(PermissionDenied, match="403"):
        node.get(f"{plain}?sig=head")
    assert node.get(f"{plain}?sig=get") == content
    assert node.downloads("/reads") == 2


def test_secrets_that_may_say_what_is_meant_are_not_confused(node: Node) -> None:
    """Two tokens for the same path may well mean two files, with the same ETag."""

    def serve(handler: Handler) -> None:
        token = parse_qs(urlsplit(handler.path).query)["token"][0]
        content = token[:1].encode() * SIZE
        if handler.command == "HEAD":
            _head(handler, content)
            return
        handler.send_response(200)
        handler.send_header("ETag", '"1"')
        handler.send_header("Content-Length", str(SIZE))
        handler.end_headers()
        handler.wfile.write(content)

    node.server.answers["/dl"] = serve
    for token in ("alpha", "beta", "alpha"):
        url = node.server.url(f"/dl?token={token}")
        assert node.get(url) == token[:1].encode() * SIZE
    assert not node.kept.exists()


def test_what_is_missing_is_said_as_ever(node: Node) -> None:
    with pytest.raises(StorageNotFound, match="/nothing"):
        node.get(node.server.url("/nothing"))


def test_a_failed_download_leaves_nothing(node: Node) -> None:
    url = node.server.add("/reads", b"x" * SIZE)
    node.server.rate, node.server.faults, node.server.in_a_row = 1, ("reset",), 99
    with pytest.raises(StorageUnavailable, match="/reads") as caught:
        node.get(url)
    assert str(node.kept) not in str(caught.value)
    assert sorted(node.kept.iterdir()) == [node.kept / "room.lock"]
    node.server.rate = 0
    assert node.get(url) == b"x" * SIZE


def test_a_cache_that_does_not_work_is_passed_by(node: Node) -> None:
    node.kept.write_text("a file, where a directory should be")
    url = node.server.add("/reads", b"x" * SIZE)
    assert node.get(url) == b"x" * SIZE


def test_a_killed_runner_leaves_no_harm(node: Node) -> None:
    """Killed in the middle of a download: another that waits for it goes on, room is freed."""
    content = os.urandom(SIZE)
    url = node.server.add("/reads", content)
    begun = threading.Event()

    def half(handler: Handler) -> None:
        if handler.command == "HEAD":
            del node.server.answers["/reads"]
            handler.do_HEAD()
            node.server.answers["/reads"] = half
            return
        handler.send_response(200)
        handler.send_header("ETag", '"v1"')
        handler.send_header("Content-Length", str(SIZE))
        handler.end_headers()
        handler.wfile.write(content[: SIZE // 2])
        handler.wfile.flush()
        begun.set()
        handler.wait_for_client()

    node.server.answers["/reads"] = half
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from tesazure.runner.input_cache import InputCache\n"
        "from tesazure.storage.registry import Storages\n"
        "kept, url, place = sys.argv[1:]\n"
        f"cache = InputCache(Path(kept), {10 * SIZE}, smallest=1000)\n"
        "cache.get(Storages([]).for_url(url), url, url, Path(place), lambda _: None)\n"
    )
    arguments = [str(node.kept), url, str(node.directory / "lost")]
    victim = subprocess.Popen([sys.executable, "-c", program, *arguments])
    try:
        assert begun.wait(30)
        del node.server.answers["/reads"]
        assert (node.entries()[0] / "room").stat().st_size == SIZE
        got: list[bytes] = []
        waiter = threading.Thread(target=lambda: got.append(node.get(url)))
        waiter.start()
        victim.send_signal(signal.SIGKILL)
        waiter.join(30)
        assert got == [content]
    finally:
        victim.kill()
        victim.wait(10)
    assert [sorted(p.name for p in entry.iterdir()) for entry in node.entries()] == [
        ["about.json", "data"]
    ]


def test_what_a_killed_runner_left_is_deleted_for_room(node: Node) -> None:
    node.kept.mkdir()
    left = node.kept / ("0" * 64)
    left.mkdir()
    with (left / "room").open("wb") as file:
        file.truncate(2 * SIZE)
    (node.kept / f"{'1' * 64}.lock").touch()
    url = node.server.add("/reads", b"x" * SIZE)
    node.get(url, capacity=2 * SIZE)
    node.get(url, capacity=2 * SIZE)
    assert node.downloads("/reads") == 1
    assert not left.exists()
    assert not (node.kept / f"{'1' * 64}.lock").exists()


def test_an_attempt_that_is_stopped_while_it_waits(node: Node) -> None:
    url = node.server.add("/reads", b"x" * SIZE)
    node.get(url)
    (entry,) = node.entries()
    import fcntl

    with (node.kept / f"{entry.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def stop(_: int) -> None:
            raise StoppedByTest

        with pytest.raises(StoppedByTest):
            node.cache().get(node.storage, url, url, node.directory / "got", stop)


def test_inputs_are_staged_through_it(node: Node) -> None:
    large = node.server.add("/large", b"l" * (2 * 2**20))
    small = node.server.add("/small", b"s" * 100)
    for name in ("first", "second"):
        root = node.directory / name
        plan = plan_of([Input(path="/in/large", url=large), Input(path="/in/small", url=small)])
        tree = Tree(root)
        prepare(tree, plan)
        calls = Calls(lambda *_: None, lambda *_: None, lambda *_: None)
        storages = Storages([])
        stage_in(plan, Access(), tree, storages, calls, InputCache(node.kept, 2**30))
        storages.close()
        assert (root / "in/large").read_bytes() == b"l" * (2 * 2**20)
        assert (root / "in/large").stat().st_mode & 0o777 == 0o666
        (root / "in/large").write_bytes(b"the task's own")
    assert (node.downloads("/large"), node.downloads("/small")) == (1, 2)


class StoppedByTest(Exception):
    """Raised by a Progress."""


def _head(handler: Handler, content: bytes) -> None:
    handler.send_response(200)
    handler.send_header("ETag", '"1"')
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()

"""storage.file: what the contract suite does not ask of it: links, special files, full disks."""

from __future__ import annotations

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from tesazure.errors import (
    PermissionDenied,
    StorageError,
    StorageFull,
    StorageNotFound,
    StorageUnavailable,
)
from tesazure.storage.file import FileStorage


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The allowed directory."""
    directory = tmp_path / "data"
    directory.mkdir()
    return directory


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A directory that is not allowed, with a file in it."""
    directory = tmp_path / "secret"
    directory.mkdir()
    (directory / "key").write_text("hunter2")
    return directory


@pytest.fixture
def storage(data: Path) -> FileStorage:
    return FileStorage([data])


def test_links_inside_are_followed(storage: FileStorage, data: Path, tmp_path: Path) -> None:
    (data / "real").mkdir()
    (data / "real/file").write_text("x")
    (data / "link").symlink_to("real")
    (data / "absolute").symlink_to(data / "real/file")
    assert storage.get(str(data / "link/file"), tmp_path / "got") == 1
    assert storage.get(str(data / "absolute"), tmp_path / "got") == 1
    assert {e.path for e in storage.list(str(data))} == {"real/file", "link/file", "absolute"}


def test_the_allowed_directory_may_be_a_link(data: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(data)
    (data / "file").write_text("x")
    storage = FileStorage([tmp_path / "alias"])
    for path in (tmp_path / "alias/file", data / "file"):
        storage.check(str(path), writing=False)
        assert storage.stat(str(path)).size == 1


@pytest.mark.parametrize("target", ["../secret/key", "{secret}/key", "../secret/missing"])
def test_links_to_the_outside_are_refused(
    storage: FileStorage, data: Path, secret: Path, tmp_path: Path, target: str
) -> None:
    link = data / "link"
    link.symlink_to(target.format(secret=secret))
    for act in (
        lambda: storage.check(str(link), writing=False),
        lambda: storage.get(str(link), tmp_path / "got"),
        lambda: storage.stat(str(link)),
        lambda: list(storage.list(str(data))),
    ):
        with pytest.raises(PermissionDenied, match=r"data/link: .*ALLOW_DIR.*--allow-dir"):
            act()
    assert not (tmp_path / "got").exists()


def test_directories_behind_links_to_the_outside_are_refused(
    storage: FileStorage, data: Path, secret: Path, tmp_path: Path
) -> None:
    (data / "link").symlink_to(secret)
    (tmp_path / "file").write_text("x")
    for act in (
        lambda: storage.get(str(data / "link/key"), tmp_path / "got"),
        lambda: list(storage.list(str(data / "link"))),
        lambda: list(storage.list(str(data))),
        lambda: storage.check(str(data / "link/new"), writing=True),
        lambda: storage.put(tmp_path / "file", str(data / "link/new")),
        lambda: storage.put(tmp_path / "file", str(data / "link/new/dir/file")),
        lambda: storage.make_directory(str(data / "link/new")),
    ):
        with pytest.raises(PermissionDenied, match="link"):
            act()
    assert names(secret) == ["key"]


@pytest.mark.parametrize("denied", ["home", "alias"])
def test_a_data_directory_is_closed_within_an_allowed_one(
    data: Path, tmp_path: Path, denied: str
) -> None:
    home = data / "home"
    (home / "attempts").mkdir(parents=True)
    (home / "db").write_text("secret")
    (data / "alias").symlink_to("home")
    (data / "deep").mkdir()
    (data / "deep/link").symlink_to(home / "db")
    (tmp_path / "src").write_text("x")
    storage = FileStorage([data], [data / denied])
    words = r"data directory \(the setting DATA_DIR\)"
    got = tmp_path / "got"
    for url in map(str, (home, home / "db", data / "alias/db", data / "deep/link", home / "new")):
        for method, more in (
            (storage.check, {"writing": False}),
            (storage.stat, {}),
            (storage.get, {"path": got}),
        ):
            with pytest.raises(PermissionDenied, match=words) as caught:
                method(url, **more)
            assert url in str(caught.value)
    for url in map(str, (home / "db", home / "attempts/k/report.jsonl", data / "alias/new")):
        with pytest.raises(PermissionDenied, match=words):
            storage.check(url, writing=True)
        with pytest.raises(PermissionDenied, match=words):
            storage.put(tmp_path / "src", url)
        with pytest.raises(PermissionDenied, match=words):
            storage.make_directory(url)
    for directory in (home, data / "alias"):
        with pytest.raises(PermissionDenied, match=words):
            storage.check(str(directory), writing=True)
    for directory in (data, data / "deep", home):
        with pytest.raises(PermissionDenied, match=words):
            list(storage.list(str(directory)))
    with pytest.raises(PermissionDenied, match="contains a server's data directory"):
        storage.check(str(data), writing=False)
    assert not got.exists()
    assert names(home) == ["attempts", "db"]
    assert (home / "db").read_text() == "secret"
    storage.check(str(data), writing=True)
    storage.check(str(data / "home2"), writing=False)
    assert storage.put(tmp_path / "src", str(data / "homely")) == 1


def test_a_link_at_the_destination_is_replaced_not_followed(
    storage: FileStorage, data: Path, secret: Path, tmp_path: Path
) -> None:
    (data / "out").symlink_to(secret / "key")
    (tmp_path / "file").write_text("new")
    storage.check(str(data / "out"), writing=True)
    storage.put(tmp_path / "file", str(data / "out"))
    assert (secret / "key").read_text() == "hunter2"
    assert (data / "out").read_text() == "new"
    assert not (data / "out").is_symlink()


def test_a_directory_exchanged_for_a_link_never_lets_anything_out(
    storage: FileStorage, data: Path, secret: Path, tmp_path: Path
) -> None:
    """A race: `dir` is now a directory with our key, now a link to the secret one."""
    (data / "inside").mkdir()
    (data / "inside/key").write_text("ours")
    (tmp_path / "file").write_text("written")
    (data / "dir").symlink_to(data / "inside")
    stop = threading.Event()

    def exchange() -> None:
        while not stop.is_set():
            for target in (data / "inside", secret):
                (data / "next").symlink_to(target)
                (data / "next").rename(data / "dir")

    thread = threading.Thread(target=exchange)
    thread.start()
    refused = got = 0
    try:
        for _ in range(1500):
            try:
                storage.get(str(data / "dir/key"), tmp_path / "got")
                assert (tmp_path / "got").read_text() == "ours"
                got += 1
            except (PermissionDenied, StorageNotFound):
                refused += 1
            try:
                storage.put(tmp_path / "file", str(data / "dir/new"))
            except (PermissionDenied, StorageNotFound, StorageError):
                refused += 1
    finally:
        stop.set()
        thread.join(10)
    assert names(secret) == ["key"]
    assert (secret / "key").read_text() == "hunter2"
    assert got
    assert refused


@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
def test_special_files_are_named_and_never_opened(
    storage: FileStorage,
    data: Path,
    tmp_path: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = data / "special"
    match kind:
        case "fifo":
            os.mkfifo(place)
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                monkeypatch.chdir(data)  # the path of a socket must be short
                server.bind("special")
        case _:
            if os.geteuid():
                pytest.skip("making a device needs root")
            os.mknod(place, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    (tmp_path / "file").write_text("x")
    for act in (
        lambda: storage.get(str(place), tmp_path / "got"),
        lambda: storage.stat(str(place)),
        lambda: list(storage.list(str(data))),
        lambda: storage.put(tmp_path / "file", str(place)),
        lambda: storage.put(place, str(data / "new")),
    ):
        with pytest.raises(StorageError, match=r"pipe|socket|device|No such device"):
            act()
    assert names(data) == ["special"]


def test_odd_links_in_a_directory_are_errors(storage: FileStorage, data: Path) -> None:
    (data / "a").mkdir()
    (data / "a/loop").symlink_to("..")
    with pytest.raises(StorageError, match=r"loop.*parents"):
        list(storage.list(str(data)))
    (data / "a/loop").unlink()
    (data / "a/dangling").symlink_to("nothing")
    with pytest.raises(StorageNotFound, match=r"dangling.*nowhere"):
        list(storage.list(str(data)))
    (data / "a/dangling").unlink()
    (data / "a/self").symlink_to("self")
    with pytest.raises(StorageError, match="self"):
        list(storage.list(str(data)))


def test_names_that_are_not_utf8(storage: FileStorage, data: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"a\xff\nb")
    (data / name).write_text("x")
    (entry,) = storage.list(str(data))
    assert storage.get(f"{data}/{entry.path}", tmp_path / "got") == 1
    with pytest.raises(StorageNotFound) as caught:
        storage.get(f"{data}/{entry.path}!", tmp_path / "got")
    str(caught.value).encode()


def test_modes(storage: FileStorage, data: Path, tmp_path: Path) -> None:
    (data / "tool").write_text("#!/bin/sh\n")
    (data / "tool").chmod(0o755)
    (data / "text").write_text("x")
    (data / "text").chmod(0o400)
    before = os.umask(0o027)
    try:
        for name, mode in (("tool", 0o750), ("text", 0o640)):
            storage.get(str(data / name), tmp_path / name)
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode
            storage.put(tmp_path / name, str(data / "new" / name))
            assert stat.S_IMODE((data / "new" / name).stat().st_mode) == mode
    finally:
        os.umask(before)
    assert stat.S_IMODE((data / "new").stat().st_mode) == 0o750


def test_a_copy_is_private(storage: FileStorage, data: Path, tmp_path: Path) -> None:
    (data / "file").write_text("source")
    storage.get(str(data / "file"), tmp_path / "copy")
    (tmp_path / "copy").write_text("changed")
    assert (data / "file").read_text() == "source"


def test_holes_stay_holes(storage: FileStorage, data: Path, tmp_path: Path) -> None:
    size = 300 * 2**20
    with (data / "sparse").open("wb") as file:
        file.seek(100 * 2**20)
        file.write(b"middle")
        file.truncate(size)
    moved: list[int] = []
    assert storage.get(str(data / "sparse"), tmp_path / "copy", moved.append) == size
    found = (tmp_path / "copy").stat()
    assert found.st_size == size
    assert found.st_blocks * 512 < 10 * 2**20
    with (tmp_path / "copy").open("rb") as file:
        file.seek(100 * 2**20 - 2)
        assert file.read(10) == b"\0\0middle\0\0"


def test_a_file_that_the_kernel_makes_up(tmp_path: Path) -> None:
    size = FileStorage([Path("/proc")]).get("/proc/cpuinfo", tmp_path / "got")
    assert size == (tmp_path / "got").stat().st_size > 0


def test_a_source_that_keeps_changing(storage: FileStorage, data: Path, tmp_path: Path) -> None:
    source = data / "file"
    source.write_bytes(b"x" * 2**20)

    def grow(_: int) -> None:
        with source.open("ab") as file:
            file.write(b"y")

    with pytest.raises(StorageUnavailable, match="keeps changing"):
        storage.get(str(source), tmp_path / "got", grow)
    assert not (tmp_path / "got").exists()

    changes = iter([True, False, False])

    def grow_once(_: int) -> None:
        if next(changes, False):
            grow(0)

    size = storage.get(str(source), tmp_path / "got", grow_once)
    assert (tmp_path / "got").read_bytes() == source.read_bytes()
    assert size == source.stat().st_size


def test_what_is_in_the_way(storage: FileStorage, data: Path, tmp_path: Path) -> None:
    (data / "dir").mkdir()
    (data / "file").write_text("x")
    (tmp_path / "new").write_text("y")
    with pytest.raises(StorageError, match=r"dir: a directory is already there"):
        storage.put(tmp_path / "new", str(data / "dir"))
    with pytest.raises(StorageError, match="Not a directory"):
        storage.put(tmp_path / "new", str(data / "file/below"))
    with pytest.raises(StorageError, match="Not a directory"):
        storage.make_directory(str(data / "file"))
    with pytest.raises(PermissionDenied):
        storage.put(tmp_path / "new", str(data))
    assert names(data) == ["dir", "file"]


@pytest.mark.parametrize("size", [200_000, 4 * 2**20])
def test_a_full_disk_is_named_and_nothing_is_left(
    small_disk: Path, data: Path, tmp_path: Path, size: int
) -> None:
    (tmp_path / "big").write_bytes(os.urandom(size))
    (data / "big").write_bytes(os.urandom(size))
    (small_disk / "filler").write_bytes(b"x" * (20 * 2**20 - 150_000))
    (small_disk / "out").write_text("before")
    storage = FileStorage([data, small_disk])
    with pytest.raises(StorageFull, match=r"small/out: No space left on device"):
        storage.put(tmp_path / "big", str(small_disk / "out"))
    with pytest.raises(StorageFull, match="No space left on device"):
        storage.get(str(data / "big"), small_disk / "got")
    assert names(small_disk) == ["filler", "out"]
    assert (small_disk / "out").read_text() == "before"
    assert not StorageFull.retryable


def test_a_killed_writer_leaves_no_file(storage: FileStorage, data: Path, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(os.urandom(20 * 2**20))
    child = os.fork()
    if child == 0:
        storage.put(tmp_path / "big", str(data / "out"), lambda _: os.kill(os.getpid(), 9))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    assert names(data) == []


def names(directory: Path) -> list[str]:
    """What is in a directory, sorted."""
    return sorted(place.name for place in directory.iterdir())

"""One suite for the Storage Protocol, run on every system."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tesazure.errors import StorageError, StorageNotFound, UnsupportedUrl
from tesazure.storage.base import Entry, Selecting
from tesazure.storage.urls import join, redact
from tests.contract.systems import NAMES, System, systems

SYSTEMS = systems()


def those(wanted: Callable[[type[System]], bool] = lambda _: True) -> list[str]:
    """Names of the systems that a test is for."""
    return [name for name, kind in SYSTEMS.items() if wanted(kind)]


@pytest.fixture(params=those())
def system(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[System]:
    with SYSTEMS[request.param].made(tmp_path) as system:
        yield system


@pytest.fixture(params=those(lambda kind: kind.can_write))
def writable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[System]:
    """A system that outputs can go to."""
    with SYSTEMS[request.param].made(tmp_path) as system:
        yield system


@pytest.fixture(params=those(lambda kind: kind.has_directories))
def browsable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[System]:
    """A system that knows directories."""
    with SYSTEMS[request.param].made(tmp_path) as system:
        yield system


@pytest.fixture(params=those(lambda kind: kind.can_select))
def selective(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[System]:
    """A system whose server lists parts of directories."""
    with SYSTEMS[request.param].made(tmp_path) as system:
        yield system


@pytest.fixture(params=those(lambda kind: bool(kind.query or kind.user)))
def secretive(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[System]:
    """A system whose URLs may hold secrets."""
    with SYSTEMS[request.param].made(tmp_path) as system:
        yield system


@pytest.fixture
def local(tmp_path: Path) -> Path:
    directory = tmp_path / "local"
    directory.mkdir()
    return directory


@pytest.mark.parametrize("name", NAMES)
def test_get_brings_the_same_bytes(system: System, local: Path, name: str) -> None:
    content = os.urandom(10_000)
    url = system.plant(f"some dir/{name}", content)
    moved: list[int] = []
    assert system.storage.get(url, local / name, moved.append) == len(content)
    assert (local / name).read_bytes() == content
    assert sum(moved) == len(content)


@pytest.mark.parametrize("size", [0, 1, 4096, 256 * 1024, 256 * 1024 + 1, 20 * 2**20 + 7])
def test_get_brings_every_size(system: System, local: Path, size: int) -> None:
    content = os.urandom(size)
    url = system.plant("object", content)
    assert system.storage.get(url, local / "got") == size
    assert hashlib.sha256((local / "got").read_bytes()).digest() == hashlib.sha256(content).digest()


def test_get_replaces_a_file(system: System, local: Path) -> None:
    (local / "got").write_bytes(b"older and longer")
    system.storage.get(system.plant("object", b"new"), local / "got")
    assert (local / "got").read_bytes() == b"new"
    assert names(local) == ["got"]


def test_get_of_nothing_leaves_nothing(system: System, local: Path) -> None:
    with pytest.raises(StorageNotFound, match="missing"):
        system.storage.get(system.url("missing"), local / "got")
    assert names(local) == []


def test_a_stopped_get_leaves_nothing(system: System, local: Path) -> None:
    url = system.plant("object", os.urandom(10 * 2**20))
    (local / "got").write_bytes(b"before")

    def stop(moved: int) -> None:
        if moved:
            raise InterruptedByTest

    with pytest.raises(InterruptedByTest):
        system.storage.get(url, local / "got", stop)
    assert names(local) == ["got"]
    assert (local / "got").read_bytes() == b"before"


def test_stat(system: System) -> None:
    found = system.storage.stat(system.plant("object", b"12345"))
    assert (found.is_directory, found.size) == (False, 5)
    assert found.version
    assert system.storage.stat(system.plant("empty", b"")).size == 0
    with pytest.raises(StorageNotFound, match="missing"):
        system.storage.stat(system.url("missing"))


def test_version_changes_with_the_object(system: System) -> None:
    before = system.storage.stat(system.plant("object", b"1")).version
    system.plant("object", b"22")
    assert system.storage.stat(system.url("object")).version != before


def test_secrets_stay_out_of_errors(secretive: System, local: Path) -> None:
    plain = secretive.url("missing")
    url = plain.replace("://", f"://{secretive.user}") + secretive.query
    (local / "file").mkdir()
    for act in (
        lambda: secretive.storage.get(url, local / "got"),
        lambda: secretive.storage.stat(url),
        lambda: secretive.storage.put(local / "file", url),
    ):
        with pytest.raises(StorageError) as caught:
            act()
        assert "hunter" not in str(caught.value)
        assert redact(plain) in str(caught.value) or str(local / "file") in str(caught.value)


def test_list_names_everything(browsable: System) -> None:
    expected = set()
    for name in NAMES:
        browsable.plant(f"top/{name}", name.encode())
        browsable.plant(f"top/below {name[:9]}/deeper/{name}", b"")
        expected.add(Entry(name, len(name.encode())))
        expected.add(Entry(f"below {name[:9]}/deeper/{name}", 0))
    if browsable.keeps_empty_directories:
        browsable.storage.make_directory(browsable.url("top/empty/inside"))
        expected.add(Entry("empty/inside", 0, is_directory=True))
    listed = list(browsable.storage.list(browsable.url("top")))
    assert set(listed) == expected
    assert len(listed) == len(expected)


def test_a_part_of_a_directory_is_selected(selective: System) -> None:
    storage = selective.storage
    assert isinstance(storage, Selecting)
    names = ["a", "ab", "abc/x", "abc/deeper/y", "abd/z", "b/ab"]
    for name in names:
        selective.plant(f"top/{name}", name.encode())
    storage.make_directory(selective.url("top/abd"))
    storage.make_directory(selective.url("top/abe"))
    files = [Entry(name, len(name)) for name in names]
    empty = [Entry(name, 0, is_directory=True) for name in ("abc", "abd", "abe")]
    for start, deep, expected in (
        ("ab", True, [*files[1:5], empty[2]]),
        ("ab", False, [files[1], *empty]),
        ("", False, [*files[:2], *empty, Entry("b", 0, is_directory=True)]),
        ("abc/", True, files[2:4]),
        ("none", True, []),
    ):
        found = list(storage.select(selective.url("top"), start, deep=deep))
        assert sorted(found, key=lambda entry: entry.path) == sorted(
            expected, key=lambda entry: entry.path
        )
    with pytest.raises(StorageNotFound, match="missing"):
        list(storage.select(selective.url("missing"), "a", deep=False))


def test_listed_entries_can_be_got_by_joining(browsable: System, local: Path) -> None:
    for name in NAMES:
        browsable.plant(f"top/{name}", name.encode())
    top = browsable.url("top")
    for entry in browsable.storage.list(top):
        browsable.storage.get(join(top, entry.path), local / "got")
        assert (local / "got").read_bytes() == entry.path.encode()


def test_directories_are_told_from_files(browsable: System, local: Path) -> None:
    browsable.plant("top/file", b"")
    assert browsable.storage.stat(browsable.url("top")).is_directory
    with pytest.raises(StorageError, match="top"):
        browsable.storage.get(browsable.url("top"), local / "got")
    with pytest.raises(StorageError, match="top/file"):
        list(browsable.storage.list(browsable.url("top/file")))
    with pytest.raises(StorageNotFound, match="missing"):
        list(browsable.storage.list(browsable.url("missing")))


def test_an_empty_directory_has_no_entries(browsable: System) -> None:
    browsable.storage.make_directory(browsable.url("a/b"))
    browsable.storage.make_directory(browsable.url("a/b"))
    if browsable.keeps_empty_directories:
        assert list(browsable.storage.list(browsable.url("a/b"))) == []


@pytest.mark.parametrize("name", NAMES)
def test_put_writes_the_same_bytes(writable: System, local: Path, name: str) -> None:
    content = os.urandom(300_000)
    (local / "file").write_bytes(content)
    moved: list[int] = []
    url = writable.url(f"new dir/deeper/{name}")
    assert writable.storage.put(local / "file", url, moved.append) == len(content)
    assert writable.planted(f"new dir/deeper/{name}") == content
    assert sum(moved) == len(content)


def test_put_replaces(writable: System, local: Path) -> None:
    url = writable.plant("object", b"older and longer")
    (local / "file").write_bytes(b"new")
    writable.storage.put(local / "file", url)
    assert writable.planted("object") == b"new"


def test_a_stopped_put_leaves_what_was_there(writable: System, local: Path) -> None:
    url = writable.plant("dir/object", b"before")
    (local / "file").write_bytes(os.urandom(10 * 2**20))

    def stop(moved: int) -> None:
        if moved:
            raise InterruptedByTest

    with pytest.raises(InterruptedByTest):
        writable.storage.put(local / "file", url, stop)
    assert writable.planted("dir/object") == b"before"
    if writable.has_directories:
        assert list(writable.storage.list(writable.url("dir"))) == [Entry("object", 6)]


def test_writing_is_admitted_or_refused(system: System, local: Path) -> None:
    url = system.url("object")
    if system.can_write:
        system.storage.check(url, writing=True)
        return
    (local / "file").write_bytes(b"")
    with pytest.raises(UnsupportedUrl, match="object"):
        system.storage.check(url, writing=True)
    with pytest.raises(UnsupportedUrl, match="object"):
        system.storage.put(local / "file", url)


def test_listing_is_refused_where_there_are_no_directories(system: System) -> None:
    if system.storage.has_directories:
        assert list(system.storage.list(system.url(""))) == []
    else:
        with pytest.raises(UnsupportedUrl, match="directory"):
            list(system.storage.list(system.url("dir")))


def test_reading_is_admitted_without_looking(system: System) -> None:
    system.storage.check(system.url("missing"), writing=False)


class InterruptedByTest(Exception):
    """Raised by a Progress."""


def names(directory: Path) -> list[str]:
    """What is in a directory, sorted."""
    return sorted(place.name for place in directory.iterdir())

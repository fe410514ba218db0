"""Which directories are mounted for tasks, and which never."""

from __future__ import annotations

from pathlib import Path

import pytest

from tesazure.errors import PermissionDenied, StorageNotFound
from tesazure.storage.mounted import MountDirs


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """The directory of MOUNT_DIR, with a job store in it."""
    top = tmp_path / "jobs"
    (top / "store" / "deep").mkdir(parents=True)
    return top


def test_what_lies_directly_in_it_is_mounted(top: Path) -> None:
    mounts = MountDirs([top])
    store = top / "store"
    for url in (f"{store}", f"file://{store}", f"file://{top}/./store/", f"{top}/x/../store"):
        assert mounts.find([(3, url, "/data/store")]) == ({3: store}, {})
    away = top.parent / "other"
    away.mkdir()
    for url in (f"{away}", f"file://{top}-2/store", "https://h/jobs/store", f"{top.parent}"):
        assert mounts.find([(0, url, "/data")]) == ({}, {})
    assert MountDirs().find([(0, f"{store}", "/data")]) == ({}, {})


def test_a_directory_may_be_reached_by_links(top: Path) -> None:
    (top.parent / "link").symlink_to(top)
    for mounts in (MountDirs([top.parent / "link"]), MountDirs([top])):
        for url in (f"{top}/store", f"{top.parent}/link/store"):
            assert mounts.find([(0, url, "/data")]) == ({0: top / "store"}, {})


def test_nothing_that_a_task_can_exchange_is_mounted(top: Path) -> None:
    """Neither the directory itself, in which its parts could be exchanged, nor what lies in a part
    that another task has mounted, nor a link."""
    (top / "link").symlink_to("/etc")
    (top / "store" / "etc").symlink_to("/etc")
    (top / "file").write_text("x")
    mounts = MountDirs([top])
    for name, words in (
        ("", "directly in"),
        ("store/deep", "directly in .*MOUNT_DIR"),
        ("link", "a link or a file"),
        ("file", "a link or a file"),
    ):
        found, refused = mounts.find([(0, f"file://{top}/{name}", "/data")])
        assert not found
        with pytest.raises(PermissionDenied, match=words):
            raise refused[0]
    found, refused = mounts.find([(0, f"{top}/none", "/data")])
    assert isinstance(refused[0], StorageNotFound)
    # It leads out, so it is a copy; which ALLOW_DIR then decides on.
    assert mounts.find([(0, f"{top}/store/etc/ssl", "/data")]) == ({}, {})


def test_a_data_directory_is_never_mounted(top: Path) -> None:
    for denied in (top / "store" / "deep", top / "store", top):
        found, refused = MountDirs([top], [denied]).find([(0, f"{top}/store", "/data")])
        assert not found
        assert "data directory" in str(refused[0])


def test_a_mount_covers_nothing_of_the_tasks_own(top: Path) -> None:
    (top / "other").mkdir()
    mounts = MountDirs([top])
    store, other = f"{top}/store", f"{top}/other"
    for path in ("/", "/tmp", "/tes-wd", "/tes-wd/shared-global", "/tes-wd/shared-global/x"):
        found, refused = mounts.find([(0, store, path)])
        assert (found, list(refused)) == ({}, [0]), path
    assert mounts.find([(0, store, "/tmp/x"), (1, other, "/tes-wd/shared/x")])[1] == {}
    for first, second in (("/a", "/a/b"), ("/a/b", "/a"), ("/a", "/a")):
        found, refused = mounts.find([(0, store, first), (1, other, second)])
        assert (list(found), list(refused)) == ([0], [1])

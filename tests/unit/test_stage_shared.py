"""Staging with URLs of the directory that all tasks share, by the paths that tasks see."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tesazure.errors import PermissionDenied, StorageError, StorageNotFound
from tesazure.model import FileType, Input, Output
from tesazure.plan import SHARED_GLOBAL
from tesazure.storage.shared import SharedStorage, is_shared
from tests.unit.stage_support import Attempt


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    made = Attempt(tmp_path)
    made.storages.serve_shared(SharedStorage(made.common, made.tree.real))
    return made


@pytest.mark.parametrize(
    ("url", "shared"),
    [
        (SHARED_GLOBAL, True),
        (f"{SHARED_GLOBAL}/a", True),
        (f"file://{SHARED_GLOBAL}/a", True),
        ("//tes-wd/x/../shared-global/a", True),
        (f"{SHARED_GLOBAL}/../a", False),
        (f"{SHARED_GLOBAL}-2/a", False),
        (f"/x{SHARED_GLOBAL}/a", False),
        (f"https://h{SHARED_GLOBAL}/a", False),
        ("/tes-wd/shared/a", False),
    ],
)
def test_what_is_in_the_shared_directory(url: str, shared: bool) -> None:
    assert is_shared(url) is shared


def test_an_input_in_place_is_left_there(attempt: Attempt) -> None:
    (attempt.common / "a").write_text("x")
    (attempt.common / "d").mkdir()
    inode = (attempt.common / "a").stat().st_ino
    attempt.stage_in(
        Input(path=f"{SHARED_GLOBAL}/a", url=f"file://{SHARED_GLOBAL}/a"),
        Input(path=f"{SHARED_GLOBAL}/d/", url=f"{SHARED_GLOBAL}/d"),
    )
    assert (attempt.common / "a").stat().st_ino == inode
    assert attempt.typed == [("inputs", 0, FileType.FILE), ("inputs", 1, FileType.DIRECTORY)]


def test_an_input_that_is_not_in_place_is_named_as_the_task_names_it(attempt: Attempt) -> None:
    path = f"{SHARED_GLOBAL}/no"
    with pytest.raises(StorageNotFound) as raised:
        attempt.stage_in(Input(path=path, url=path, type=FileType.FILE))
    assert path in str(raised.value)
    assert str(attempt.common) not in str(raised.value)


def test_an_input_from_elsewhere_in_the_directory_is_copied(attempt: Attempt) -> None:
    (attempt.common / "a").write_text("x")
    (attempt.common / "link").symlink_to(f"{SHARED_GLOBAL}/a")  # as a container sees it
    attempt.stage_in(
        Input(path="/in/a", url=f"{SHARED_GLOBAL}/a"),
        Input(path=f"{SHARED_GLOBAL}/call/b", url=f"{SHARED_GLOBAL}/link"),
    )
    assert attempt.place("/in/a").read_text() == "x"
    assert (attempt.common / "call/b").read_text() == "x"
    assert not (attempt.common / "call/b").is_symlink()


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "/in/private"])
def test_a_link_that_another_task_left_leads_to_no_file_of_the_host(
    attempt: Attempt, target: str
) -> None:
    (attempt.common.parent / "outside").write_text("secret")
    (attempt.common / "link").symlink_to(target)
    with pytest.raises(StorageError):
        attempt.stage_in(Input(path="/in/a", url=f"{SHARED_GLOBAL}/link", type=FileType.FILE))
    assert not (attempt.root / "in/a").exists()


def test_the_host_is_out_of_reach_of_a_link_that_appears_late(tmp_path: Path) -> None:
    """The links on the way were looked at, and then one was exchanged."""
    common = tmp_path / "common"
    common.mkdir()
    (tmp_path / "outside").write_text("secret")
    (common / "link").symlink_to(tmp_path / "outside")
    storage = SharedStorage(common)
    with pytest.raises(PermissionDenied) as raised:
        storage.get(f"{SHARED_GLOBAL}/link", tmp_path / "copy")
    assert str(common) not in str(raised.value)


def test_outputs_in_place_are_told_and_left_there(attempt: Attempt) -> None:
    (attempt.common / "d").mkdir()
    (attempt.common / "d/a").write_text("xyz")
    inode = (attempt.common / "d/a").stat().st_ino
    attempt.stage_out(
        Output(path=f"{SHARED_GLOBAL}/d", url=f"{SHARED_GLOBAL}/d/"),
        Output(
            path=f"{SHARED_GLOBAL}/d/?", path_prefix=f"{SHARED_GLOBAL}/d", url=f"{SHARED_GLOBAL}/d"
        ),
        Output(path=f"{SHARED_GLOBAL}/d/a", url=f"{SHARED_GLOBAL}/copy"),
    )
    assert (attempt.common / "d/a").stat().st_ino == inode
    assert (attempt.common / "copy").read_text() == "xyz"
    assert {(path, size) for _, path, size in attempt.uploaded} == {(f"{SHARED_GLOBAL}/d/a", 3)}


def test_an_output_that_is_a_link_to_the_tasks_own_files_becomes_a_file(attempt: Attempt) -> None:
    attempt.place("/tmp/mine").write_text("xyz")
    path = f"{SHARED_GLOBAL}/out"
    (attempt.common / "out").symlink_to("/tmp/mine")
    attempt.stage_out(Output(path=path, url=path))
    assert not (attempt.common / "out").is_symlink()
    assert (attempt.common / "out").read_text() == "xyz"


def test_what_becomes_no_file_while_it_is_left_in_place_is_refused(tmp_path: Path) -> None:
    class Swapped(Attempt):
        """A task's own process is not yet at its end when its outputs have been found."""

        def type(self, field: str, index: int, kind: FileType) -> None:
            (self.common / "a").unlink()
            os.mkfifo(self.common / "a")

    attempt = Swapped(tmp_path)
    attempt.storages.serve_shared(SharedStorage(attempt.common, attempt.tree.real))
    (attempt.common / "a").write_text("x")
    path = f"{SHARED_GLOBAL}/a"
    with pytest.raises(StorageError, match=f"{path}: is a named pipe, not a file"):
        attempt.stage_out(Output(path=path, url=path))

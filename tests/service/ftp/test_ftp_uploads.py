"""FTP: files that are written beside their destination, and what is left of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tesazure.errors import PermissionDenied, StorageError, StorageFull, StorageUnavailable
from tesazure.storage.base import Entry
from tesazure.storage.ftp import FtpStorage
from tests.service.ftp.conftest import SIZE
from tests.services.ftp_server import WHO, FtpServer


def test_a_server_that_does_not_replace_by_renaming(
    root: Path, storage: FtpStorage, tmp_path: Path
) -> None:
    (root / "object").write_text("old")
    (tmp_path / "file").write_text("new")
    with FtpServer(root, replaces=False) as server:
        storage.put(tmp_path / "file", server.url("object", WHO))
    assert (root / "object").read_text() == "new"
    assert names(root) == ["object"]


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("550 Access is denied.", PermissionDenied),
        ("553 Permission denied.", PermissionDenied),
        ("552 Quota exceeded.", StorageFull),
        ("550 Disk quota exceeded.", StorageError),
        ("550 Rename failed.", StorageError),
    ],
)
def test_a_refused_rename_loses_nothing(
    server: FtpServer,
    storage: FtpStorage,
    root: Path,
    tmp_path: Path,
    reply: str,
    kind: type[StorageError],
) -> None:
    (root / "object").write_text("old")
    (tmp_path / "file").write_text("new")
    server.answer = lambda line: reply if line == "RNTO /object" and _is_new(server) else None
    with pytest.raises(kind, match=reply):
        storage.put(tmp_path / "file", server.url("object", WHO))
    assert contents(root) == {"object": "old"}
    moved = any(line.endswith(".old") for line in server.said)
    assert moved == (reply == "550 Rename failed.")
    assert "DELE /object" not in server.said


def test_an_old_file_that_cannot_have_its_name_back_is_named(
    server: FtpServer, storage: FtpStorage, root: Path, tmp_path: Path
) -> None:
    (root / "object").write_text("old")
    (tmp_path / "file").write_text("new")
    server.answer = lambda line: "550 Rename failed." if line == "RNTO /object" else None
    with pytest.raises(StorageError) as caught:
        storage.put(tmp_path / "file", server.url("object", WHO))
    ((name, content),) = contents(root).items()
    assert content == "old"
    assert str(caught.value).endswith(f"what was there may be /{name} now")


@pytest.mark.parametrize("losses", [1, 99])
def test_a_connection_lost_while_a_file_is_replaced(
    root: Path, storage: FtpStorage, tmp_path: Path, losses: int
) -> None:
    """The old file has another name then."""
    (root / "object").write_text("old")
    (tmp_path / "file").write_text("new")
    lost: list[str] = []

    def answer(line: str) -> str | None:
        if line != "RNTO /object" or (root / "object").exists() or not _is_new(server):
            return None
        lost.append(line)
        return "" if len(lost) <= losses else None

    with FtpServer(root, replaces=False) as server:
        server.answer = answer
        url = server.url("object", WHO)
        if losses == 1:
            storage.put(tmp_path / "file", url)
            assert contents(root) == {"object": "new"}
        else:
            with pytest.raises(StorageUnavailable):
                storage.put(tmp_path / "file", url)
            assert contents(root) == {"object": "old"}
    assert sum(line.startswith("STOR") for line in server.said) == 1


@pytest.mark.parametrize("lost", ["STOR", "RNTO"])
def test_an_upload_of_which_only_the_answer_was_lost_is_not_repeated(
    server: FtpServer, storage: FtpStorage, root: Path, tmp_path: Path, lost: str
) -> None:
    content = os.urandom(SIZE)
    (tmp_path / "file").write_bytes(content)
    server.lost = [lost]
    assert storage.put(tmp_path / "file", server.url("object", WHO)) == SIZE
    assert (root / "object").read_bytes() == content
    assert names(root) == ["object"]
    assert server.lost == []
    assert sum(line.startswith("STOR") for line in server.said) == 1


def test_an_upload_that_failed_leaves_nothing(
    server: FtpServer, storage: FtpStorage, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(os.urandom(SIZE))
    server.cuts = [1] * 50
    with pytest.raises(StorageUnavailable):
        storage.put(tmp_path / "file", server.url("object", WHO))
    assert names(root) == []


@pytest.mark.parametrize("without", [(), ("MLST", "MLSD")])
def test_what_a_killed_writer_left_is_not_listed(
    root: Path, storage: FtpStorage, without: tuple[str, ...]
) -> None:
    (root / "top/sub").mkdir(parents=True)
    (root / "top/file").write_text("x")
    for name in ("top/.tesazure-0123456789abcdef.part", "top/sub/.tesazure-0123456789abcdef.old"):
        (root / name).touch()
    with FtpServer(root, without=without) as server:
        found = list(storage.list(server.url("top", WHO)))
    assert sorted(found, key=lambda entry: entry.path) == [
        Entry("file", 1),
        Entry("sub", 0, is_directory=True),
    ]


@pytest.mark.parametrize("also", [(), ("MLST", "MLSD")])
def test_a_server_that_does_not_tell_where_home_is(
    root: Path, storage: FtpStorage, tmp_path: Path, also: tuple[str, ...]
) -> None:
    """Where paths of the user's home stay relative: nothing goes to the server's root."""
    (tmp_path / "file").write_text("x")
    with FtpServer(root, without=("PWD", "XPWD", *also)) as server:
        for path in ("object", "a/b/object"):
            storage.put(tmp_path / "file", server.url(path, WHO))
            storage.get(server.url(path, WHO), tmp_path / "got")
        found = set(storage.list(server.url("", WHO)))
        assert set(storage.list(server.url("a", WHO))) == {Entry("b/object", 1)}
    assert found == {Entry("object", 1), Entry("a/b/object", 1)}
    assert [line for line in server.said if " /" in line] == []


def contents(directory: Path) -> dict[str, str]:
    """Files in a directory."""
    return {place.name: place.read_text() for place in directory.iterdir()}


def _is_new(server: FtpServer) -> bool:
    """Whether it is the new file that is being renamed."""
    last = next(line for line in reversed(server.said) if line.startswith("RNFR"))
    return last.endswith(".part")


def names(directory: Path) -> list[str]:
    """What is in a directory."""
    return [place.name for place in directory.iterdir()]

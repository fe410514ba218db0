"""Azure Files, against a stand-in that checks signatures; Microsoft's SDK agrees with that one."""

from __future__ import annotations

import base64
import contextlib
import filecmp
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.storage.fileshare import ShareClient

from tesazure.errors import PermissionDenied, StorageError, StorageNotFound
from tesazure.storage.azure_files import AzureFilesStorage
from tesazure.storage.base import Entry
from tesazure.storage.parts import CONNECTIONS, PART
from tesazure.storage.transport import Patience, Transport
from tests.service.acts import do
from tests.services.azure_files_server import AzureFilesServer, Directory, File


@pytest.fixture
def server() -> Iterator[AzureFilesServer]:
    with AzureFilesServer() as server:
        server.make_share("share")
        server.make_share("other")
        yield server


@pytest.fixture
def storage(server: AzureFilesServer) -> Iterator[AzureFilesStorage]:
    with contextlib.closing(Transport(patience=Patience(attempts=2, pause_s=0.01))) as transport:
        yield AzureFilesStorage(transport, server.endpoints)


def children(server: AzureFilesServer, path: str) -> list[str]:
    """Names in a directory, temporary ones too."""
    found = server.found("share", path)
    assert isinstance(found, Directory)
    return [child.name for child in found.children.values()]


def test_the_stand_in_agrees_with_the_sdk(server: AzureFilesServer, file: Path) -> None:
    url = f"{server.endpoint}/share?{server.share_sas('share')}"
    with ShareClient.from_share_url(url) as share:
        directory = share.create_directory("dir")
        big = os.urandom(9 * 2**20)
        for name, content in (("a", b"abc"), ("big", big), ("empty", b"")):
            client = directory.get_file_client(name)
            client.upload_file(content, validate_content=True)
            assert client.download_file(max_concurrency=2).readall() == content
        directory.create_subdirectory("sub")
        listed = {item.name: item.is_directory for item in directory.list_directories_and_files()}
        assert listed == {"a": False, "big": False, "empty": False, "sub": True}
        directory.get_file_client("a").rename_file("dir/b")
        assert [server.found("share", "dir/a"), file.exists()] == [None, True]
        directory.get_file_client("big").delete_file()
        assert children(server, "dir") == ["empty", "sub", "b"]


REASONS = [
    # what is done, the SAS, what it is done to, the error, what its text says
    ("get", "expired", "dir/file", PermissionDenied, "AuthenticationFailed; the SAS expired at"),
    ("list", "expired", "dir", PermissionDenied, "AuthenticationFailed; the SAS expired at"),
    (
        "get",
        "cut short",
        "dir/file",
        PermissionDenied,
        "AuthenticationFailed; the SAS does not fit",
    ),
    ("stat", "of another share", "dir/file", PermissionDenied, "the SAS does not fit"),
    ("put", "read-only", "dir/new", PermissionDenied, "PermissionMismatch.*sp=rl"),
    ("list", "without list", "dir", PermissionDenied, "PermissionMismatch.*sp=rcwd"),
    ("put", "of the file", "dir/new", PermissionDenied, "the SAS does not fit"),
    ("get", "none", "dir/file", PermissionDenied, "HTTP 401 .*NoAuthenticationInformation.*SAS"),
    ("get", "good", "dir/missing", StorageNotFound, "HTTP 404 .*ResourceNotFound"),
    ("get", "good", "nowhere/missing", StorageNotFound, "ParentNotFound; there is no such direct"),
    ("stat", "good", "dir/missing", StorageNotFound, "ResourceNotFound"),
    ("list", "good", "dir/missing", StorageNotFound, "ResourceNotFound"),
    ("list", "good", "dir/file", StorageError, "ResourceTypeMismatch"),
    ("put", "good", "dir/sub", StorageError, "HTTP 409 .*ResourceTypeMismatch"),
    ("put", "good", "dir/file/below", StorageError, "dir/file is a file there, and"),
]


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: " ".join(reason[:3]))
def test_reasons_are_told_apart(
    reason: tuple[str, str, str, type[StorageError], str],
    server: AzureFilesServer,
    storage: AzureFilesStorage,
    file: Path,
    tmp_path: Path,
) -> None:
    act, signature, name, error, text = reason
    server.plant("share", "dir/file", b"x")
    server.plant("share", "dir/sub/file", b"x")
    made = {
        "expired": lambda: server.share_sas("share", minutes=-1),
        "cut short": lambda: server.share_sas("share")[:-8] + "AAAA%3D",
        "of another share": lambda: server.share_sas("other"),
        "read-only": lambda: server.share_sas("share", "rl"),
        "without list": lambda: server.share_sas("share", "rcwd"),
        "of the file": lambda: server.file_sas("share", name, "rcwd"),
        "good": lambda: server.share_sas("share"),
        "none": lambda: "",
    }
    plain = f"{server.endpoint}/share/{name}"
    url = f"{plain}?{made[signature]()}"
    before = children(server, "dir")
    with pytest.raises(error, match=text) as caught:
        do(storage, act, url, file)
    assert type(caught.value) is error
    assert plain in str(caught.value)
    assert "sig=" not in str(caught.value)
    assert not (tmp_path / "got").exists()
    assert children(server, "dir") == before


def test_one_file_may_be_read_by_its_own_sas_but_not_written(
    server: AzureFilesServer, storage: AzureFilesStorage, tmp_path: Path
) -> None:
    server.plant("share", "a dir/file", b"x")
    sas = server.file_sas("share", "a dir/file", "rcwd")
    url = f"{server.endpoint}/share/a%20dir/file?{sas}"
    storage.check(url, writing=False)
    assert storage.get(url, tmp_path / "got") == 1
    with pytest.raises(PermissionDenied, match=r"needs one of the share \(sr=s, sp=rcwd\)"):
        storage.check(url, writing=True)


@pytest.mark.parametrize("size", [0, 7, 4 * 2**20, 3 * PART + 5])
def test_files_go_up_and_come_down(
    size: int, server: AzureFilesServer, storage: AzureFilesStorage, tmp_path: Path
) -> None:
    content = os.urandom(size)
    (tmp_path / "reads.bam").write_bytes(content)
    url = f"{server.endpoint}/share/new/deeper/reads.bam?{server.share_sas('share', 'rcwd')}"
    for _ in range(2):  # the second time over what the first one wrote
        sent: list[int] = []
        assert storage.put(tmp_path / "reads.bam", url, sent.append) == sum(sent) == size
    found = server.found("share", "new/deeper/reads.bam")
    assert isinstance(found, File)
    assert found.content == content
    assert storage.stat(url).checksum == f"md5:{base64.b64decode(found.md5).hex()}"
    assert children(server, "new/deeper") == ["reads.bam"]
    assert storage.get(url, tmp_path / "got") == size
    assert (tmp_path / "got").read_bytes() == content


def test_answers_that_are_lost_do_no_harm(
    server: AzureFilesServer, storage: AzureFilesStorage, file: Path
) -> None:
    server.plant("share", "dir/file", b"before")
    url = f"{server.endpoint}/share/dir/file?{server.share_sas('share')}"
    for operation in ("create_file", "put_range", "rename_file"):
        server.lose = {operation}
        assert storage.put(file, url) == 7
        assert not server.lose
        assert children(server, "dir") == ["file"]
    below = url.replace("/dir/file?", "/new/dir?")
    server.lose = {"create_directory"}
    storage.make_directory(below)
    assert storage.stat(below).is_directory


def test_a_stopped_put_leaves_no_other_file(
    server: AzureFilesServer, storage: AzureFilesStorage, tmp_path: Path
) -> None:
    server.plant("share", "dir/file", b"before")
    (tmp_path / "file").write_bytes(bytes(20 * 2**20))

    def stop(moved: int) -> None:
        if moved:
            raise KeyboardInterrupt

    url = f"{server.endpoint}/share/dir/file?{server.share_sas('share')}"
    with pytest.raises(KeyboardInterrupt):
        storage.put(tmp_path / "file", url, stop)
    assert children(server, "dir") == ["file"]
    assert server.found("share", "dir/file").content == b"before"  # type: ignore[union-attr]


def test_a_file_that_is_being_written_is_not_listed(
    server: AzureFilesServer, storage: AzureFilesStorage
) -> None:
    server.plant("share", "dir/.tesazure-0123456789abcdef.part", b"")
    server.plant("share", "dir/file", b"x")
    url = f"{server.endpoint}/share/dir?{server.share_sas('share')}"
    assert list(storage.list(url)) == [Entry("file", 1)]


def test_a_wrong_checksum_is_not_accepted(
    server: AzureFilesServer, storage: AzureFilesStorage, tmp_path: Path
) -> None:
    server.plant("share", "file", b"content")
    found = server.found("share", "file")
    assert isinstance(found, File)
    found.content[0:1] = b"k"
    with pytest.raises(StorageError, match=r"md5 [0-9a-f]{32}\) does not fit"):
        storage.get(f"{server.endpoint}/share/file?{server.share_sas('share')}", tmp_path / "got")


def test_a_file_replaced_meanwhile_comes_as_one_version(
    server: AzureFilesServer, storage: AzureFilesStorage, tmp_path: Path
) -> None:
    new = os.urandom(2 * PART)
    (tmp_path / "new").write_bytes(new)
    server.plant("share", "file", os.urandom((CONNECTIONS + 4) * PART))
    replaced = threading.Event()

    def replace(moved: int) -> None:
        if moved and not replaced.is_set():
            replaced.set()
            server.plant("share", "file", new)

    url = f"{server.endpoint}/share/file?{server.share_sas('share')}"
    storage.get(url, tmp_path / "got", replace)
    # Not compared as bytes, whose difference pytest would try to show.
    assert filecmp.cmp(tmp_path / "got", tmp_path / "new", shallow=False)


def test_names_end_in_a_dot_if_they_are_written_so(
    server: AzureFilesServer, storage: AzureFilesStorage, file: Path
) -> None:
    storage.put(file, f"{server.endpoint}/share/v1.?{server.share_sas('share')}")
    assert children(server, "") == ["v1."]

"""Google Cloud Storage, against a stand-in that checks tokens and checksums."""

from __future__ import annotations

import contextlib
import gzip
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tesazure.errors import (
    PermissionDenied,
    StorageError,
    StorageNotFound,
    StorageUnavailable,
    UnsupportedUrl,
)
from tesazure.storage.base import Entry
from tesazure.storage.gcs import SINGLE, GcsStorage
from tesazure.storage.transport import Patience, Transport
from tests.clients import venvs
from tests.conftest import refuse
from tests.service.acts import do
from tests.services import base
from tests.services.gcs_server import TOKEN, GcsServer

SDK_SESSION = Path(venvs.__file__).parent / "scripts" / "gcs_session.py"
HASTY = Patience(attempts=4, pause_s=0.01)


@pytest.fixture
def server() -> Iterator[GcsServer]:
    with GcsServer() as server:
        yield server


@pytest.fixture
def bucket(server: GcsServer) -> str:
    return server.bucket()


@pytest.fixture
def transport() -> Iterator[Transport]:
    with contextlib.closing(Transport(patience=HASTY)) as transport:
        yield transport


@pytest.fixture
def storage(server: GcsServer, transport: Transport) -> GcsStorage:
    return GcsStorage(transport, server.endpoints, TOKEN)


REASONS = [
    # the token, the bucket, what is done, the error, what its text says
    (TOKEN, "bucket-1", "get", StorageNotFound, "HTTP 404 .*notFound"),
    (TOKEN, "bucket-1", "stat", StorageNotFound, "HTTP 404 .*notFound"),
    (TOKEN, "bucket-1", "list", StorageNotFound, "HTTP 404 .*notFound"),
    (TOKEN, "no-such-bucket", "get", StorageNotFound, "HTTP 404 .*notFound"),
    (TOKEN, "no-such-bucket", "put", StorageNotFound, "HTTP 404 .*notFound"),
    (TOKEN, "closed-bucket", "get", PermissionDenied, "HTTP 403 .*forbidden; .*GCS_CREDENTIALS_FI"),
    ("ya29.hunter2", "bucket-1", "get", PermissionDenied, "HTTP 401 .*authError; the access token"),
    ("ya29.hunter2", "bucket-1", "list", PermissionDenied, "HTTP 401 .*authError"),
    ("", "bucket-1", "get", PermissionDenied, "HTTP 401 .*required; .*without credentials"),
    ("", "bucket-1", "put", PermissionDenied, "HTTP 401 .*required; .*without credentials"),
]


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: "-".join(reason[:3]))
def test_reasons_are_told_apart(
    server: GcsServer,
    transport: Transport,
    file: Path,
    reason: tuple[str, str, str, type[StorageError], str],
) -> None:
    token, bucket, act, kind, text = reason
    server.bucket()
    server.bucket("closed-bucket")
    url = f"gs://{bucket}/some/missing"
    with pytest.raises(kind, match=text) as caught:
        do(GcsStorage(transport, server.endpoints, token), act, url, file)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"{url}: ")
    assert "ya29" not in str(caught.value)


def test_anonymous_reading(server: GcsServer, transport: Transport, tmp_path: Path) -> None:
    bucket = server.bucket("public-bucket")
    server.plant(bucket, "dir/object", b"for all")
    storage = GcsStorage(transport, server.endpoints, "")
    assert storage.get(f"gs://{bucket}/dir/object", tmp_path / "got") == 7
    assert list(storage.list(f"gs://{bucket}/dir")) == [Entry("object", 7)]


@pytest.mark.parametrize("size", [0, 1, SINGLE, SINGLE + 1])
def test_uploads_are_checked_and_typed(
    server: GcsServer, storage: GcsStorage, bucket: str, tmp_path: Path, size: int
) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    moved: list[int] = []
    storage.put(tmp_path / "file", f"gs://{bucket}/a dir/table.csv", moved.append)
    held = server.buckets[bucket]["a dir/table.csv"]
    assert held.content == content
    assert held.content_type == "text/csv"
    assert sum(moved) == size
    found = storage.stat(f"gs://{bucket}/a dir/table.csv")
    assert (found.size, found.version) == (size, str(held.generation))


def test_a_session_that_the_service_loses_is_begun_anew(
    server: GcsServer, storage: GcsStorage, bucket: str, tmp_path: Path
) -> None:
    content = os.urandom(12 * 2**20)
    (tmp_path / "file").write_bytes(content)
    server.cuts = [2**21]
    left = 1

    def lose(moved: int) -> None:
        nonlocal left
        if moved and left and server.sessions:
            left -= 1
            server.sessions.clear()

    storage.put(tmp_path / "file", f"gs://{bucket}/object", lose)
    assert server.buckets[bucket]["object"].content == content
    assert sum(asked.startswith("POST") for asked in server.asked) == 2
    server.cuts, left = [2**21] * 20, 20
    with pytest.raises(StorageUnavailable, match=r"lost the upload: HTTP 404 .*\(4 attempts\)"):
        storage.put(tmp_path / "file", f"gs://{bucket}/other", lose)
    assert "other" not in server.buckets[bucket]


def test_a_broken_upload_goes_on_where_it_broke(
    server: GcsServer, storage: GcsStorage, bucket: str, tmp_path: Path
) -> None:
    content = os.urandom(12 * 2**20)
    (tmp_path / "file").write_bytes(content)
    # More breaks than attempts: each of them came further.
    server.cuts = [2**20 + 5, 2**21, 17, 2**20, 2**21 + 1, 2**20]
    storage.put(tmp_path / "file", f"gs://{bucket}/object")
    assert server.buckets[bucket]["object"].content == content
    assert server.cuts == []
    assert len(server.sessions) == 0


def test_what_may_be_repeated_is(
    server: GcsServer, storage: GcsStorage, bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(bytes(SINGLE + 1))
    for statuses in ([503, 429], [500, 503]):
        server.statuses = statuses
        storage.put(tmp_path / "file", f"gs://{bucket}/object")
        server.statuses = statuses
        assert storage.get(f"gs://{bucket}/object", tmp_path / "got") == SINGLE + 1
    server.statuses = [503] * 4
    with pytest.raises(StorageUnavailable, match=r"HTTP 503 .*backendError \(4 attempts\)"):
        storage.stat(f"gs://{bucket}/object")


def test_a_stopped_upload_leaves_nothing(
    server: GcsServer, storage: GcsStorage, bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(bytes(2 * SINGLE))

    def stop(moved: int) -> None:
        if moved:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.put(tmp_path / "file", f"gs://{bucket}/object", stop)
    assert server.buckets[bucket] == {}
    assert server.sessions == {}


def test_a_session_is_a_secret(
    server: GcsServer, storage: GcsStorage, bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(bytes(SINGLE + 1))
    server.cuts = [5] * 8
    with pytest.raises(StorageUnavailable) as caught:
        storage.put(tmp_path / "file", f"gs://{bucket}/object")
    assert "secret-session" in "".join(server.asked)
    assert "secret-session" not in str(caught.value)
    assert "upload" in str(caught.value)


@pytest.mark.parametrize("composite", [False, True], ids=["md5", "crc32c"])
def test_damage_on_the_way_is_noticed(
    server: GcsServer, storage: GcsStorage, bucket: str, tmp_path: Path, composite: bool
) -> None:
    server.plant(bucket, "object", os.urandom(9 * 2**20), composite=composite)
    server.corrupts = True
    # The same damage twice is taken for what is stored.
    text = rf"checksum .*\({'crc32c' if composite else 'md5'} .*does not fit what it holds"
    with pytest.raises(StorageError, match=text):
        storage.get(f"gs://{bucket}/object", tmp_path / "got")
    assert not (tmp_path / "got").exists()
    server.corrupts = False
    assert storage.get(f"gs://{bucket}/object", tmp_path / "got") == 9 * 2**20


def test_an_object_replaced_meanwhile_is_old_or_new(
    server: GcsServer, storage: GcsStorage, bucket: str, tmp_path: Path
) -> None:
    old, new = os.urandom(30 * 2**20), os.urandom(30 * 2**20)
    server.plant(bucket, "object", old)
    done: list[int] = []

    def replace(moved: int) -> None:
        if moved and not done:
            done.append(moved)
            server.plant(bucket, "object", new)

    storage.get(f"gs://{bucket}/object", tmp_path / "got", replace)
    assert (tmp_path / "got").read_bytes() in (old, new)


def test_what_is_stored_compressed_comes_as_stored(
    server: GcsServer, storage: GcsStorage, bucket: str, tmp_path: Path
) -> None:
    packed = gzip.compress(b"text" * 1000)
    server.plant(bucket, "table.tsv", packed, encoding="gzip")
    storage.get(f"gs://{bucket}/table.tsv", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == packed


def test_lists_come_in_pages(server: GcsServer, storage: GcsStorage, bucket: str) -> None:
    server.page = 7
    names = {f"{n:03} ø" for n in range(50)}
    for name in names:
        server.plant(bucket, f"dir/{name}", b"")
    server.plant(bucket, "dir-beside", b"")
    assert {entry.path for entry in storage.list(f"gs://{bucket}/dir")} == names


def test_what_cannot_be_an_object(storage: GcsStorage, bucket: str, file: Path) -> None:
    for url in (f"gs://{bucket}", f"gs://{bucket}/", f"gs://{bucket}/dir/"):
        with pytest.raises(UnsupportedUrl, match="names a directory"):
            storage.put(file, url)
    assert storage.stat(f"gs://{bucket}/").is_directory


@pytest.mark.clients
@pytest.mark.timeout(300)
def test_googles_own_sdk_finds_the_stand_in_right(server: GcsServer, bucket: str) -> None:
    try:
        python = venvs.python("gcs-sdk")
    except base.Unavailable as error:
        refuse(str(error))
    server.page = 2
    command = [python, SDK_SESSION, server.origin, TOKEN, bucket]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["dir/pieces", "dir/small file", "dir/whole"]

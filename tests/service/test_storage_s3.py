"""Amazon S3, against Moto behind a check of signatures."""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from tesazure.access import Access, Endpoints, S3Key
from tesazure.errors import (
    PermissionDenied,
    StorageError,
    StorageNotFound,
    StorageUnavailable,
    UnsupportedUrl,
)
from tesazure.storage.base import Entry
from tesazure.storage.keys import Place
from tesazure.storage.registry import Storages
from tesazure.storage.s3 import PART_SIZE, SINGLE, S3Storage, crc_functions, part_size_of
from tesazure.storage.s3_requests import S3Requests
from tesazure.storage.transport import Patience, Transport
from tests.conftest import shared
from tests.service.acts import do
from tests.services.faulty_http import FaultyHttp, Handler
from tests.services.s3_server import KEY, S3Server

HASTY = Patience(attempts=4, pause_s=0.01)
KEYS = {
    "good": KEY,
    "none": None,
    "unknown": S3Key("AKIDUNKNOWN", KEY.secret),
    "wrong": S3Key(KEY.key_id, "hunter2-is-not-the-secret", KEY.session_token),
    "without session": S3Key(KEY.key_id, KEY.secret),
}


@pytest.fixture
def server() -> S3Server:
    return shared(S3Server)


@pytest.fixture
def bucket(server: S3Server) -> str:
    return server.bucket()


@pytest.fixture
def transport() -> Iterator[Transport]:
    with contextlib.closing(Transport(patience=HASTY)) as transport:
        yield transport


@pytest.fixture
def storage(server: S3Server, transport: Transport) -> S3Storage:
    return S3Storage(transport, server.endpoints, KEY)


REASONS = [
    # the key, what is done, the error, what its text says
    ("good", "get", StorageNotFound, "HTTP 404 .*NoSuchKey"),
    ("good", "stat", StorageNotFound, "HTTP 404 .*NoSuchKey"),
    (
        "none",
        "get",
        PermissionDenied,
        "HTTP 403 .*AccessDenied; .*without credentials.*S3_ACCESS_K",
    ),
    ("none", "put", PermissionDenied, "HTTP 403 .*AccessDenied; .*without credentials"),
    ("unknown", "get", PermissionDenied, "InvalidAccessKeyId; .*does not know.*S3_ACCESS_KEY_ID"),
    ("unknown", "stat", PermissionDenied, "InvalidAccessKeyId"),
    ("wrong", "get", PermissionDenied, "SignatureDoesNotMatch; .*S3_SECRET_ACCESS_KEY does not be"),
    ("wrong", "put", PermissionDenied, "SignatureDoesNotMatch"),
    ("wrong", "list", PermissionDenied, "SignatureDoesNotMatch"),
    ("without session", "get", PermissionDenied, "InvalidToken; .*S3_SESSION_TOKEN"),
]


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: f"{reason[0]} {reason[1]}")
def test_reasons_are_told_apart(
    server: S3Server,
    bucket: str,
    transport: Transport,
    file: Path,
    reason: tuple[str, str, type[StorageError], str],
) -> None:
    key, act, kind, text = reason
    url = f"s3://{bucket}/some/missing"
    storage = S3Storage(transport, server.endpoints, KEYS[key])
    with pytest.raises(kind, match=text) as caught:
        do(storage, act, url, file)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"{url}: ")
    for secret in (KEY.secret, KEY.session_token, "hunter2"):
        assert secret not in str(caught.value)


@pytest.mark.parametrize("act", ["get", "stat", "put", "list"])
def test_a_bucket_that_is_missing(storage: S3Storage, file: Path, act: str) -> None:
    with pytest.raises(StorageNotFound, match=r"HTTP 404 .*NoSuchBucket"):
        do(storage, act, "s3://there-is-no-such-bucket/object", file)


@pytest.mark.parametrize("act", ["get", "stat", "put", "list"])
def test_a_bucket_in_another_region(
    server: S3Server, storage: S3Storage, file: Path, act: str
) -> None:
    url = f"s3://{server.bucket('elsewhere-')}/object"
    text = "PermanentRedirect; the bucket is in the region eu-west-1, .*S3_REGION is us-east-1"
    with pytest.raises(StorageError, match=text):
        do(storage, act, url, file)


def test_the_wrong_region(
    server: S3Server, transport: Transport, bucket: str, tmp_path: Path
) -> None:
    endpoints = Endpoints(s3=server.endpoints.s3, s3_region="eu-north-1")
    storage = S3Storage(transport, endpoints, KEY)
    text = "AuthorizationHeaderMalformed; .*in the region us-east-1, .*S3_REGION is eu-north-1"
    with pytest.raises(StorageError, match=text):
        storage.get(f"s3://{bucket}/object", tmp_path / "got")


def test_anonymous_reading(server: S3Server, transport: Transport, tmp_path: Path) -> None:
    bucket = server.bucket("public-")
    server.plant(bucket, "dir/object", b"for all")
    storage = S3Storage(transport, server.endpoints, None)
    assert storage.get(f"s3://{bucket}/dir/object", tmp_path / "got") == 7
    assert list(storage.list(f"s3://{bucket}/dir")) == [Entry("object", 7)]
    assert storage.stat(f"s3://{bucket}").is_directory


def test_large_objects_go_in_parts(
    server: S3Server, storage: S3Storage, bucket: str, tmp_path: Path
) -> None:
    content = os.urandom(3 * PART_SIZE + 12345)
    (tmp_path / "file").write_bytes(content)
    moved: list[int] = []
    url = f"s3://{bucket}/dir/reads.fastq.gz"
    assert storage.put(tmp_path / "file", url, moved.append) == len(content)
    assert sum(moved) == len(content)
    headers = server.headers_of(bucket, "dir/reads.fastq.gz")
    assert headers["etag"].endswith('-4"')
    assert headers["content-type"] == "application/gzip"
    assert server.uploads(bucket) == 0
    assert storage.get(url, tmp_path / "got") == len(content)
    assert (tmp_path / "got").read_bytes() == content


def test_a_part_that_is_refused_leaves_nothing(
    server: S3Server, storage: S3Storage, bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(bytes(SINGLE + 1))
    server.fail(bucket, [["PUT", "partNumber=2", 403, "AccessDenied"]])
    with pytest.raises(PermissionDenied, match="object part 2: HTTP 403"):
        storage.put(tmp_path / "file", f"s3://{bucket}/object")
    assert server.uploads(bucket) == 0
    assert server.planted(bucket, "object") is None


def test_a_stopped_upload_leaves_no_parts(
    server: S3Server, storage: S3Storage, bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(bytes(2 * SINGLE))

    def stop(moved: int) -> None:
        if moved:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.put(tmp_path / "file", f"s3://{bucket}/object", stop)
    assert server.uploads(bucket) == 0
    assert server.planted(bucket, "object") is None


FAILURES = [
    [["PUT", "partNumber=1", 503, "SlowDown"], ["PUT", "partNumber=2", 503, "SlowDown"]],
    [["PUT", "partNumber=2", 400, "RequestTimeout"]],
    [["PUT", "partNumber=1", 400, "BadDigest"]],
    [["POST", "uploads", 500, "InternalError"]],
    [["POST", "uploadId", 503, "ServiceUnavailable"]],
    [["POST", "uploadId", 200, "InternalError"]],
    [["POST", "uploadId", 500, "lost"]],
    [["PUT", "partNumber=1", 500, "lost"]],
]


@pytest.mark.parametrize("failures", FAILURES)
def test_what_may_be_repeated_is(
    server: S3Server,
    storage: S3Storage,
    bucket: str,
    tmp_path: Path,
    failures: list[list[object]],
) -> None:
    content = os.urandom(SINGLE + 99)
    (tmp_path / "file").write_bytes(content)
    server.fail(bucket, failures)
    storage.put(tmp_path / "file", f"s3://{bucket}/object")
    assert server.planted(bucket, "object") == content
    assert server.uploads(bucket) == 0


@pytest.mark.parametrize(
    ("etag", "size", "age_s", "is_ours"),
    [
        ("other-2", 0, 0, True),
        ("other-2", 0, 100, False),
        ("other-2", 1, 0, False),
        ("other", 0, 0, False),
    ],
)
def test_a_lost_answer_about_an_encrypted_object(
    transport: Transport, tmp_path: Path, etag: str, size: int, age_s: int, is_ours: bool
) -> None:
    """With KMS no ETag is an MD5, so that the object is known by its parts, size and time."""
    (tmp_path / "file").touch()
    os.truncate(tmp_path / "file", SINGLE + 99)
    completions: list[str] = []

    def answer(handler: Handler) -> None:
        handler.rfile.read(int(handler.headers.get("Content-Length", "0")))
        body, status, headers = b"", 200, {"ETag": '"of a part"'}
        if handler.command == "HEAD":
            changed = formatdate(time.time() - age_s, usegmt=True)
            headers = {"ETag": f'"{etag}"', "Last-Modified": changed}
        elif "uploads=" in handler.path:
            body = b"<Result><UploadId>u</UploadId></Result>"
        elif handler.command == "POST":
            completions.append(handler.path)
            status = 500 if len(completions) == 1 else 404
            body = b"<Error><Code>NoSuchUpload</Code></Error>" if status == 404 else b""
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        length = SINGLE + 99 + size if handler.command == "HEAD" else len(body)
        handler.send_header("Content-Length", str(length))
        handler.end_headers()
        handler.write(body)

    with FaultyHttp() as server:
        server.answers["/bucket/object"] = answer
        storage = S3Storage(transport, Endpoints(s3=server.url("")), None)
        with (
            contextlib.nullcontext() if is_ours else pytest.raises(StorageNotFound, match="NoSuch")
        ):
            storage.put(tmp_path / "file", "s3://bucket/object")
    assert len(completions) == 2


def test_what_stays_unavailable(
    server: S3Server, storage: S3Storage, bucket: str, tmp_path: Path
) -> None:
    server.fail(bucket, [["GET", "object", 503, "SlowDown"]] * 4)
    with pytest.raises(StorageUnavailable, match=r"HTTP 503 .*SlowDown \(4 attempts\)"):
        storage.get(f"s3://{bucket}/object", tmp_path / "got")


@pytest.mark.parametrize("kind", ["md5", *crc_functions()])
def test_damage_on_the_way_is_noticed(
    server: S3Server,
    storage: S3Storage,
    bucket: str,
    tmp_path: Path,
    kind: str,
) -> None:
    headers = {}
    if kind != "md5":
        # Its ETag is none then, and what is left is the checksum that the service has stored.
        value = crc_functions()[kind](b"content", 0)
        told = base64.b64encode(value.to_bytes(8 if "64" in kind else 4, "big")).decode()
        headers["x_amz_server_side_encryption"] = "aws:kms"
        headers["x_amz_sdk_checksum_algorithm"] = kind.upper()
        headers[f"x_amz_checksum_{kind}"] = told
    server.plant(bucket, "object", b"content", **headers)
    url = f"s3://{bucket}/object"
    server.fail(bucket, [["GET", "object", 200, "corrupt"]])
    assert storage.get(url, tmp_path / "got") == 7
    assert (tmp_path / "got").read_bytes() == b"content"
    server.fail(bucket, [["GET", "object", 200, "corrupt"]] * 4)
    # The same damage twice is taken for what is stored.
    with pytest.raises(StorageError, match=r"checksum .*does not fit what it holds"):
        storage.get(url, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_an_object_replaced_meanwhile_is_old_or_new(
    server: S3Server, storage: S3Storage, bucket: str, tmp_path: Path
) -> None:
    old, new = os.urandom(20 * 2**20), os.urandom(20 * 2**20)
    server.plant(bucket, "object", old)
    done: list[int] = []

    def replace(moved: int) -> None:
        if moved and not done:
            done.append(moved)
            server.plant(bucket, "object", new)

    storage.get(f"s3://{bucket}/object", tmp_path / "got", replace)
    assert (tmp_path / "got").read_bytes() in (old, new)


def test_keys_that_are_no_paths(server: S3Server, storage: S3Storage, bucket: str) -> None:
    for key in ("dir/a//b", "up/../b", "marked/c/"):
        server.plant(bucket, key, b"something")
        with pytest.raises(StorageError, match="cannot be the path of a file"):
            list(storage.list(f"s3://{bucket}/{key.partition('/')[0]}"))


def test_a_file_and_a_directory_of_one_name(
    server: S3Server, storage: S3Storage, bucket: str
) -> None:
    server.plant(bucket, "both", b"file")
    server.plant(bucket, "both/below", b"")
    assert not storage.stat(f"s3://{bucket}/both").is_directory
    assert storage.stat(f"s3://{bucket}/both/").is_directory
    assert list(storage.list(f"s3://{bucket}/both")) == [Entry("below", 0)]
    with pytest.raises(UnsupportedUrl, match="names a directory"):
        storage.get(f"s3://{bucket}/both/", Path("nowhere"))


def test_a_configured_endpoint_may_be_private(server: S3Server, bucket: str, file: Path) -> None:
    """As the runner has it, where private addresses are closed to tasks."""
    options = {"endpoints": server.endpoints, "access": Access(s3=KEY)}
    with contextlib.closing(Storages([], allow_private=False, **options)) as storages:
        url = f"s3://{bucket}/object"
        assert storages.for_url(url).put(file, url) == 7
        with pytest.raises(PermissionDenied, match="private address"):
            storages.check_input("http://127.0.0.1:1/object")


def test_secrets_are_not_logged(
    storage: S3Storage, bucket: str, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    storage.put(file, f"s3://{bucket}/object")
    storage.get(f"s3://{bucket}/object", file)
    assert KEY.secret not in caplog.text
    assert KEY.session_token not in caplog.text


def test_botocore_is_imported_when_there_is_a_key() -> None:
    script = """
import sys
from tesazure.access import Access, Endpoints, S3Key
from tesazure.errors import UnsupportedUrl
from tesazure.storage.registry import Storages
from tesazure.storage.s3 import S3Storage
from tesazure.storage.transport import Transport
S3Storage(Transport(), Endpoints(), None)
assert not any(name.startswith(("botocore", "awscrt", "pycurl")) for name in sys.modules)
sys.modules["botocore.auth"] = None
try:
    S3Storage(Transport(), Endpoints(), S3Key("id", "secret"))
except UnsupportedUrl as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert "pip install 'tesazure[s3]'" in done.stdout


URLS = [
    ("", "us-east-1", "plain-bucket", "https://plain-bucket.s3.us-east-1.amazonaws.com/"),
    ("", "cn-north-1", "plain", "https://plain.s3.cn-north-1.amazonaws.com.cn/"),
    ("", "eu-west-1", "with.dots", "https://s3.eu-west-1.amazonaws.com/with.dots/"),
    ("", "us-east-1", "Old_Bucket", "https://s3.us-east-1.amazonaws.com/Old_Bucket/"),
    ("http://minio:9000/", "us-east-1", "plain", "http://minio:9000/plain/"),
]


@pytest.mark.parametrize(("endpoint", "region", "bucket", "expected"), URLS)
def test_where_buckets_are(endpoint: str, region: str, bucket: str, expected: str) -> None:
    requests = S3Requests(Transport(), Endpoints(s3=endpoint, s3_region=region), None)
    assert requests.url(Place(bucket, "a b/ø+c")) == f"{expected}a%20b/%C3%B8%2Bc"


def test_parts_grow_so_that_ten_thousand_suffice() -> None:
    assert part_size_of(SINGLE + 1) == PART_SIZE
    for size in (PART_SIZE * 10_000, PART_SIZE * 10_000 + 1, 5 * 2**40):
        assert -(-size // part_size_of(size)) <= 10_000
        assert part_size_of(size) <= 5 * 2**30

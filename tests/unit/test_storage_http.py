"""storage.http against a server that breaks in every way."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from tesazure.errors import (
    PermissionDenied,
    StorageError,
    StorageNotFound,
    StorageUnavailable,
)
from tesazure.storage.http import HttpStorage
from tesazure.storage.transport import Patience, Transport
from tests.services.base import nobodys_port
from tests.services.certificates import Certificate
from tests.services.faulty_http import FAULTS, FaultyHttp, Handler
from tests.services.loopback_http import LoopbackHttp, QuietHandler
from tests.unit.ranges import HASTY


@pytest.fixture
def storage() -> Iterator[HttpStorage]:
    with opened(HASTY) as made:
        yield made


@contextlib.contextmanager
def opened(patience: Patience | None = None) -> Iterator[HttpStorage]:
    with contextlib.closing(Transport(patience=patience)) as transport:
        yield HttpStorage(transport)


LASTING = sorted(
    # Alone, these do not keep an object from coming whole.
    set(FAULTS)
    - {"announce_more", "delay", "ignore_range", "wrong_range", "change_but_206", "other_etag"}
)


@pytest.mark.parametrize("fault", LASTING)
def test_what_never_gets_better_is_given_up(
    storage: HttpStorage, tmp_path: Path, fault: str
) -> None:
    with FaultyHttp(rate=1, faults=(fault,), in_a_row=10**6) as server:
        url = server.add("/object", os.urandom(50_000))
        with pytest.raises(StorageUnavailable, match=r"/object: .*\(\d+ attempts\)"):
            storage.get(f"{url}?sig=hunter2", tmp_path / "got")
        # Fifty kilobytes are no progress worth another round of attempts. What changes while it is
        # read is noticed by a second request each time.
        assert HASTY.attempts <= len(server.requests) <= 2 * HASTY.attempts
    assert names(tmp_path) == []
    assert StorageUnavailable.retryable


def test_a_broken_transfer_goes_on_where_it_broke(
    server: FaultyHttp, storage: HttpStorage, tmp_path: Path
) -> None:
    server.rate, server.faults = 1, ("cut",)
    content = os.urandom(2_000_000)
    url = server.add("/object", content)
    moved: list[int] = []
    storage.get(url, tmp_path / "got", moved.append)
    assert (tmp_path / "got").read_bytes() == content
    assert sum(moved) == len(content)  # not a byte twice
    assert len(server.requests) == 5
    _, _, headers = server.requests[1]
    assert headers["Range"].endswith("-1999999")
    assert headers["If-Range"] == headers["If-Match"] == '"v1"'
    assert headers["Accept-Encoding"] == "identity"


def test_progress_renews_the_attempts(tmp_path: Path) -> None:
    patience = Patience(attempts=2, pause_s=0.001, progress_bytes=1000)
    content = os.urandom(100_000)
    with FaultyHttp() as server, opened(patience) as storage:

        def a_little(handler: Handler) -> None:
            start = int(handler.headers["Range"].removeprefix("bytes=").partition("-")[0])
            handler.send_response(206)
            handler.send_header("ETag", '"x"')
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            handler.send_header("Content-Length", str(len(content) - start))
            handler.end_headers()
            handler.write(content[start : start + 9000])
            handler.close_connection = True

        server.answers["/slow"] = a_little
        storage.get(server.url("/slow"), tmp_path / "got")
        assert len(server.requests) == 12
    assert (tmp_path / "got").read_bytes() == content


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, PermissionDenied),
        (403, PermissionDenied),
        (404, StorageNotFound),
        (410, StorageNotFound),
        (400, StorageError),
        (418, StorageError),
        (501, StorageError),
    ],
)
def test_a_refusal_is_final(
    server: FaultyHttp,
    storage: HttpStorage,
    tmp_path: Path,
    status: int,
    error: type[StorageError],
) -> None:
    server.answers["/object"] = lambda handler: handler.send_plain(status)
    with pytest.raises(error, match=rf"GET .*/object: HTTP {status}") as caught:
        storage.get(server.url("/object?sig=hunter2"), tmp_path / "got")
    assert not caught.value.retryable
    assert "hunter2" not in str(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize("form", ["seconds", "date"])
@pytest.mark.parametrize(("told", "bound", "least"), [(60, 0.2, 0.2), (2, 60, 1.9)])
def test_retry_after_is_honoured_within_bounds(
    server: FaultyHttp, tmp_path: Path, told: int, bound: float, least: float, form: str
) -> None:
    times: list[float] = []

    def later(handler: Handler) -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            date = formatdate(time.time() + told + 1, usegmt=True)
            handler.send_plain(503, {"Retry-After": str(told) if form == "seconds" else date})
        else:
            handler.send_plain(200)

    server.answers["/object"] = later
    with opened(Patience(pause_s=0.01, retry_after_s=bound)) as storage:
        storage.get(server.url("/object"), tmp_path / "got")
    assert least <= times[1] - times[0] < 30


def test_waiting_can_be_stopped(server: FaultyHttp, tmp_path: Path) -> None:
    server.answers["/object"] = lambda handler: handler.send_plain(503, {"Retry-After": "60"})
    calls: list[int] = []

    def stop(moved: int) -> None:
        calls.append(moved)
        if len(calls) == 3:
            raise KeyboardInterrupt

    began = time.monotonic()
    with (
        opened() as storage,
        pytest.raises(KeyboardInterrupt),
    ):
        storage.get(server.url("/object"), tmp_path / "got", stop)
    assert time.monotonic() - began < 10
    assert calls == [0, 0, 0]


def test_a_compressed_object_stays_compressed(
    server: FaultyHttp, storage: HttpStorage, tmp_path: Path
) -> None:
    packed = gzip.compress(b"ACGT" * 1000)

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", str(len(packed)))
        handler.end_headers()
        handler.write(packed)

    server.answers["/reads.fq.gz"] = answer
    assert storage.get(server.url("/reads.fq.gz"), tmp_path / "got") == len(packed)
    assert (tmp_path / "got").read_bytes() == packed


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Content-MD5", base64.b64encode(hashlib.md5(b"right").digest()).decode()),
        ("Digest", "MD5=" + base64.b64encode(hashlib.md5(b"right").digest()).decode()),
        ("x-ms-blob-content-md5", base64.b64encode(hashlib.md5(b"right").digest()).decode()),
        (
            "Content-Digest",
            "sha-256=:" + base64.b64encode(hashlib.sha256(b"right").digest()).decode() + ":",
        ),
        (
            "Repr-Digest",
            "sha-512=:" + base64.b64encode(hashlib.sha512(b"right").digest()).decode() + ":",
        ),
    ],
)
def test_checksums_are_checked(
    server: FaultyHttp, storage: HttpStorage, tmp_path: Path, header: str, value: str
) -> None:
    bodies = [b"wrong", b"right"]

    def answer(handler: Handler) -> None:
        body = bodies.pop(0) if len(bodies) > 1 else bodies[0]
        handler.send_response(200)
        handler.send_header(header, value)
        handler.send_header("Content-Length", "5")
        handler.end_headers()
        handler.write(body)

    server.answers["/object"] = answer
    assert storage.get(server.url("/object"), tmp_path / "got") == 5
    assert (tmp_path / "got").read_bytes() == b"right"
    assert len(server.requests) == 2


def test_what_is_no_checksum_is_ignored(
    server: FaultyHttp, storage: HttpStorage, tmp_path: Path
) -> None:
    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-MD5", "not base64!")
        handler.send_header("Digest", "crc32c=AAAAAA==,md5=AAAA")
        handler.send_header("Content-Length", "1")
        handler.end_headers()
        if handler.command == "GET":
            handler.write(b"x")

    server.answers["/object"] = answer
    assert storage.get(server.url("/object"), tmp_path / "got") == 1
    assert storage.stat(server.url("/object")).checksum is None


def test_stat_where_head_is_not_served(server: FaultyHttp, storage: HttpStorage) -> None:
    for size in (0, 1, 1000):
        server.objects.clear()
        server.add("/real", b"x" * size)

        def get_only(handler: Handler) -> None:
            if handler.command == "HEAD":
                handler.send_plain(403)
                return
            handler.send_plain(302, {"Location": "/real"})

        server.answers["/object"] = get_only
        found = storage.stat(server.url("/object"))
        assert (found.size, found.version) == (size, '"v1"' if size else None)


def test_redirects_are_followed_within_limits(
    server: FaultyHttp, storage: HttpStorage, tmp_path: Path
) -> None:
    server.add("/real", b"x")
    server.answers["/a"] = to("/b")
    server.answers["/b"] = to(server.url("/real"))
    server.answers["/circle"] = to("/circle?sig=hunter2")
    server.answers["/file"] = to("file:///etc/passwd")
    server.answers["/ftp"] = to("ftp://127.0.0.1/x?sig=hunter2")
    assert storage.get(server.url("/a"), tmp_path / "got") == 1
    with pytest.raises(StorageError, match="/circle: redirected more than"):
        storage.get(server.url("/circle"), tmp_path / "got")
    for path in ("/file", "/ftp"):
        with pytest.raises(StorageError, match=f"{path}: not a URL of http") as caught:
            storage.get(server.url(path), tmp_path / "got")
        assert "hunter2" not in str(caught.value)


def test_a_password_is_sent_but_not_shown(
    server: FaultyHttp, storage: HttpStorage, tmp_path: Path
) -> None:
    url = server.add("/object", b"x").replace("://", "://user:hunter2@")
    storage.get(url, tmp_path / "got")
    _, _, headers = server.requests[0]
    assert headers["Authorization"] == "Basic " + base64.b64encode(b"user:hunter2").decode()


def test_secrets_are_not_logged(
    server: FaultyHttp, storage: HttpStorage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    url = server.add("/object", b"x").replace("://", "://user:hunter2@") + "?sig=hunter3"
    server.answers["/there"] = to(url)
    storage.get(server.url("/there?sig=hunter4"), tmp_path / "got")
    assert "hunter" not in caplog.text


def test_proxies_of_the_environment_are_not_used(
    server: FaultyHttp, storage: HttpStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert storage.get(server.add("/object", b"x"), tmp_path / "got") == 1


def test_nobody_listens(storage: HttpStorage, tmp_path: Path) -> None:
    refused = pytest.raises(StorageUnavailable, match=r"Connection refused \(8 attempts\)")
    with nobodys_port() as port, refused:
        storage.get(f"http://127.0.0.1:{port}/object", tmp_path / "got")


def test_no_such_host(storage: HttpStorage, tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailable, match=r"cannot resolve nowhere\.invalid"):
        storage.get("http://nowhere.invalid/x?sig=hunter2", tmp_path / "got")


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """URL of an object served over TLS, and the certificate, which only a private bundle has."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost"
        f" -addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}"
    )
    subprocess.run(command.split(), check=True, capture_output=True, timeout=60)
    made = Certificate(certificate, certificate, key)
    with LoopbackHttp(TlsHandler, made) as server:
        yield f"https://localhost:{server.port}/object", certificate


class TlsHandler(QuietHandler):
    """Serves one byte."""

    def do_GET(self) -> None:
        self.reply(200, b"x")


def test_a_certificate_that_nobody_vouches_for(
    storage: HttpStorage, tls_server: tuple[str, Path], tmp_path: Path
) -> None:
    url, certificate = tls_server
    got = tmp_path / "got"
    with pytest.raises(StorageError, match=r": the certificate is not valid: self.signed") as told:
        storage.get(f"{url}?sig=hunter2", got)
    assert not told.value.retryable
    assert "hunter" not in str(told.value)
    with contextlib.closing(Transport(ca_bundle=str(certificate))) as transport:
        assert HttpStorage(transport).get(url, got) == 1
        with pytest.raises(StorageError, match=r"not valid: .*does not match|no alternative"):
            HttpStorage(transport).get(url.replace("localhost", "127.0.0.1"), got)
    with contextlib.closing(Transport(ca_bundle="/nonexistent")) as transport:
        with pytest.raises(StorageError, match="file of trusted certificates") as told:
            HttpStorage(transport).get(url, got)
        assert not told.value.retryable


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", "text/plain"),
        ("a.vcf.gz", "application/gzip"),
        ("a.tar.xz", "application/x-xz"),
        ("a.json", "application/json"),
        ("noname", "application/octet-stream"),
    ],
)
def test_a_file_is_put_with_all_that_is_known_of_it(
    server: FaultyHttp, storage: HttpStorage, tmp_path: Path, name: str, kind: str
) -> None:
    content = os.urandom(1000)
    (tmp_path / "file").write_bytes(content)
    moved: list[int] = []
    url = server.url(f"/x.html/{name}?sig=hunter2")
    assert storage.put(tmp_path / "file", url, moved.append) == sum(moved) == 1000
    assert server.objects[f"/x.html/{name}"].content == content
    ((_, _, headers),) = server.requests
    assert headers["Content-Type"] == kind
    assert headers["Content-Length"] == "1000"
    assert headers["Content-MD5"] == base64.b64encode(hashlib.md5(content).digest()).decode()


@pytest.mark.parametrize(
    ("status", "error"),
    [(403, PermissionDenied), (404, StorageNotFound), (405, StorageError), (507, StorageError)],
)
def test_a_refused_put_is_final(
    server: FaultyHttp,
    storage: HttpStorage,
    tmp_path: Path,
    status: int,
    error: type[StorageError],
) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    server.answers["/object"] = lambda handler: handler.send_plain(status)
    with pytest.raises(error, match=rf"PUT .*/object: HTTP {status}") as caught:
        storage.put(tmp_path / "file", server.url("/object?sig=hunter2"))
    assert "hunter" not in str(caught.value)
    assert len(server.requests) == 1


def test_a_wrong_checksum_is_told_from_damage(storage: HttpStorage, tmp_path: Path) -> None:
    """Whoever stored the object has stored a wrong one with it: two downloads tell."""
    with FaultyHttp(wrong_checksum=True) as server:
        url = server.add("/object", b"x" * 50_000)
        text = r"the checksum stored with it \(sha256 [0-9a-f]{64}\) does not fit what it holds"
        with pytest.raises(StorageError, match=text) as caught:
            storage.get(url, tmp_path / "got")
        assert not caught.value.retryable
        assert len(server.requests) == 2
    assert names(tmp_path) == []


def to(location: str) -> Callable[[Handler], None]:
    """An answer that redirects."""
    return lambda handler: handler.send_plain(302, {"Location": location})


def names(directory: Path) -> list[str]:
    """What is in a directory, sorted."""
    return sorted(place.name for place in directory.iterdir())

"""GA4GH DRS, against a stand-in that checks tokens, and leads to other systems."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tesazure.access import Access, Endpoints
from tesazure.errors import (
    PermissionDenied,
    StorageError,
    StorageNotFound,
    StorageUnavailable,
    UnsupportedUrl,
)
from tesazure.storage.base import Entry, Storage
from tesazure.storage.drs import DrsStorage
from tesazure.storage.file import FileStorage
from tesazure.storage.gcs import GcsStorage
from tesazure.storage.http import HttpStorage
from tesazure.storage.registry import Storages
from tesazure.storage.transport import Patience, Transport
from tesazure.storage.urls import scheme_of
from tests.services import certificates
from tests.services.drs_server import TOKEN, DrsServer
from tests.services.gcs_server import TOKEN as GCS_TOKEN
from tests.services.gcs_server import GcsServer

HASTY = Patience(attempts=3, pause_s=0.01)


@pytest.fixture
def server() -> Iterator[DrsServer]:
    with DrsServer(TOKEN) as server:
        yield server


@pytest.fixture
def gcs() -> Iterator[GcsServer]:
    with GcsServer() as server:
        server.bucket()
        yield server


@pytest.fixture
def transport() -> Iterator[Transport]:
    with contextlib.closing(Transport(patience=HASTY)) as transport:
        yield transport


@pytest.fixture
def storage(server: DrsServer, gcs: GcsServer, transport: Transport, tmp_path: Path) -> DrsStorage:
    """Leads to http, to gs, and to files below `allowed`."""
    (tmp_path / "allowed").mkdir()
    systems: dict[str, Storage] = {
        "http": HttpStorage(transport),
        "gs": GcsStorage(transport, gcs.endpoints, GCS_TOKEN),
        "file": FileStorage([tmp_path / "allowed"]),
    }

    def for_url(url: str) -> Storage:
        if scheme_of(url) not in systems:
            raise UnsupportedUrl(f"no storage system serves {scheme_of(url)}://")
        return systems[scheme_of(url)]

    return DrsStorage(transport, {server.host: TOKEN}, for_url, scheme="http")


def led_to(*urls: str, **more: Any) -> dict[str, Any]:
    """A DrsObject with these ways of access."""
    methods = [{"type": scheme_of(url), "access_url": {"url": url}} for url in urls]
    return {"access_methods": methods, **more}


def test_access_by_id_with_headers(server: DrsServer, storage: DrsStorage, tmp_path: Path) -> None:
    content = os.urandom(100_000)
    assert storage.get(server.add("ab.1_2", content), tmp_path / "got") == len(content)
    assert (tmp_path / "got").read_bytes() == content
    assert server.asked == [
        "/ga4gh/drs/v1/objects/ab.1_2",
        "/ga4gh/drs/v1/objects/ab.1_2/access/ab.1_2",
        "/bytes/ab.1_2",
    ]


def test_https_comes_before_gs_and_gs_before_files(
    server: DrsServer, gcs: GcsServer, storage: DrsStorage, tmp_path: Path
) -> None:
    place = tmp_path / "allowed" / "object"
    place.write_bytes(b"from a file")
    gcs.plant("bucket-1", "object", b"from gs")
    server.objects["both"] = led_to(place.as_uri(), "gs://bucket-1/object")
    storage.get(server.url("both"), tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == b"from gs"
    server.add("all", b"from https")
    server.objects["all"]["access_methods"] += server.objects["both"]["access_methods"]
    storage.get(server.url("all"), tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == b"from https"


def test_another_way_is_taken_where_one_does_not_work(
    server: DrsServer, gcs: GcsServer, storage: DrsStorage, tmp_path: Path
) -> None:
    place = tmp_path / "allowed" / "object"
    place.write_bytes(b"right")
    gcs.plant("bucket-1", "wrong", b"wrong")
    sums = [{"type": "md5", "checksum": hashlib.md5(b"right").hexdigest()}]
    ways = (place.as_uri(), "gs://bucket-1/wrong", "s3://unserved/object")
    server.objects["object"] = led_to(*ways, checksums=sums)
    assert storage.get(server.url("object"), tmp_path / "got") == 5
    assert (tmp_path / "got").read_bytes() == b"right"


def test_all_ways_that_failed_are_named(server: DrsServer, storage: DrsStorage) -> None:
    server.objects["object"] = led_to("gs://bucket-1/none", "s3://unserved/none")
    with pytest.raises(StorageNotFound, match=r"no way .*gs://bucket-1/none.*404.*; .* s3://"):
        storage.get(server.url("object"), Path("nowhere"))


HEX = hashlib.sha256(b"expected").hexdigest()
BASE64 = base64.b64encode(hashlib.md5(b"expected").digest()).decode()
WRONG: list[dict[str, Any]] = [
    {"checksums": [{"type": "sha-256", "checksum": HEX}]},
    {"checksums": [{"type": "trunc512", "checksum": "0"}, {"type": "md5", "checksum": BASE64}]},
    {"size": 9, "checksums": []},
]


@pytest.mark.parametrize("told", WRONG)
def test_what_is_not_as_told_is_refused(
    server: DrsServer, storage: DrsStorage, tmp_path: Path, told: dict[str, Any]
) -> None:
    url = server.add("object", b"somewhat", **told)
    (tmp_path / "dir").mkdir()
    with pytest.raises(StorageError, match=r"(as|that) DRS says"):
        storage.get(url, tmp_path / "dir" / "got")
    assert list((tmp_path / "dir").iterdir()) == []
    server.contents["object"] = b"expected"
    server.objects["object"]["size"] = 8
    assert storage.get(url, tmp_path / "dir" / "got") == 8


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data",
        "http://[::ffff:169.254.169.254]/",
        "http://168.63.129.16/",
    ],
)
def test_a_server_cannot_lead_where_its_user_may_not_go(
    server: DrsServer, storage: DrsStorage, tmp_path: Path, url: str
) -> None:
    server.objects["object"] = led_to(url)
    if not url.startswith("file:"):
        server.objects["object"]["access_methods"][0]["type"] = "https"
    with pytest.raises(PermissionDenied):
        storage.get(server.url("object"), tmp_path / "got")
    server.objects["object"]["access_methods"][0]["access_url"]["headers"] = ["X-Some: header"]
    with pytest.raises(PermissionDenied):
        storage.get(server.url("object"), tmp_path / "got")
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize("url", ["/etc/passwd", "drs://127.0.0.1:1/again", "gopher://host/"])
def test_a_server_cannot_lead_to_what_is_no_system(
    server: DrsServer, storage: DrsStorage, tmp_path: Path, url: str
) -> None:
    server.objects["object"] = led_to(url)
    server.objects["object"]["access_methods"][0]["type"] = "https"
    with pytest.raises(UnsupportedUrl):
        storage.get(server.url("object"), tmp_path / "got")


@pytest.mark.parametrize(
    ("kind", "url"),
    [
        ("https", "file:///etc/hostname"),
        ("https", "gs://bucket/key"),
        ("https", "sftp://host/x"),
        ("gs", "s3://bucket/key"),
        ("ftp", "https://host/x"),
        ("file", "https://host/x"),
    ],
)
def test_a_way_of_access_leads_where_its_type_says(
    server: DrsServer, storage: DrsStorage, tmp_path: Path, kind: str, url: str
) -> None:
    server.objects["object"] = led_to(url)
    server.objects["object"]["access_methods"][0]["type"] = kind
    with pytest.raises(UnsupportedUrl, match=f"access by {kind} may lead to"):
        storage.get(server.url("object"), tmp_path / "got")


@pytest.mark.parametrize(
    "line",
    [
        *("X-A: 1\r\nX-Evil: 2", "X-A\r\nX-Evil: 2", "X-A: \x00", "X A: 1", ": 1", "\nX-A: 1"),
        *("Host: h", "content-length: 5", "Transfer-Encoding: chunked", "Connection: close"),
        *("Range: bytes=0-1", "X-A: \N{LATIN SMALL LETTER E WITH ACUTE}"),
    ],
)
def test_headers_that_would_make_another_request_are_refused(
    server: DrsServer, storage: DrsStorage, tmp_path: Path, line: str
) -> None:
    url = server.add("object", b"content")
    server.accesses["object"]["headers"].append(line)
    with pytest.raises(StorageError, match=r"header that it needs|set the header"):
        storage.get(url, tmp_path / "got")
    assert not [path for path in server.asked if path.startswith("/bytes/")]


def test_no_known_way(server: DrsServer, storage: DrsStorage, tmp_path: Path) -> None:
    server.objects["object"] = {"access_methods": [{"type": "globus"}, {"type": "htsget"}]}
    with pytest.raises(UnsupportedUrl, match=r"access are globus, htsget; .*https, gs, s3"):
        storage.get(server.url("object"), tmp_path / "got")


def test_tokens_go_to_their_server_alone(
    server: DrsServer, transport: Transport, storage: DrsStorage, tmp_path: Path
) -> None:
    url = server.add("object", b"content")
    without = DrsStorage(transport, {"127.0.0.1": TOKEN}, lambda _: storage, scheme="http")
    with pytest.raises(PermissionDenied, match=f"HTTP 401 .*no token for {server.host}.*DRS_TOKEN"):
        without.stat(url)
    wrong = DrsStorage(transport, {server.host: "hunter2"}, lambda _: storage, scheme="http")
    with pytest.raises(PermissionDenied, match=r"the token .* may not read it") as caught:
        wrong.get(url, tmp_path / "got")
    assert "hunter2" not in str(caught.value)


def test_a_signed_url_stays_secret(server: DrsServer, storage: DrsStorage, tmp_path: Path) -> None:
    url = server.add("object", b"content")
    server.accesses["object"]["headers"] = ["Authorization: hunter2"]
    with pytest.raises(PermissionDenied, match="/bytes/object: HTTP 403") as caught:
        storage.get(url, tmp_path / "got")
    assert "hunter2" not in str(caught.value)
    assert "a-secret" not in str(caught.value)


def test_a_server_may_ask_for_patience(
    server: DrsServer, storage: DrsStorage, tmp_path: Path
) -> None:
    url = server.add("object", b"content")
    server.statuses = [202, 503]
    assert storage.get(url, tmp_path / "got") == 7
    server.statuses = [202] * 3
    with pytest.raises(StorageUnavailable, match="HTTP 202"):
        storage.stat(url)


def test_a_bundle_is_a_directory(server: DrsServer, storage: DrsStorage, tmp_path: Path) -> None:
    server.add("r1", b"reads 1")
    server.add("r2", b"reads")
    server.add_bundle("none", {})
    server.add_bundle("run", {"r 1.fq": "r1", "empty": "none"})
    url = server.add_bundle("study", {"run#1": "run", "other.fq": "r2"})
    assert storage.stat(url).is_directory
    assert set(storage.list(url)) == {
        Entry("run#1/r 1.fq", 7),
        Entry("run#1/empty", 0, is_directory=True),
        Entry("other.fq", 5),
    }
    server.asked.clear()
    assert storage.get(f"{url}/run#1/r 1.fq", tmp_path / "got") == 7
    assert server.asked[0].endswith("/objects/r1")  # known from the list
    with pytest.raises(StorageError, match="is a bundle, not an object"):
        storage.get(f"{url}/run#1", tmp_path / "got")
    with pytest.raises(StorageNotFound, match=r"study.*the bundle run holds no r9\.fq"):
        storage.get(f"{url}/run#1/r9.fq", tmp_path / "got")


@pytest.mark.parametrize("name", ["..", "", "a/b", "."])
def test_names_that_would_lead_elsewhere(server: DrsServer, storage: DrsStorage, name: str) -> None:
    server.add("object", b"")
    url = server.add_bundle("bundle", {name: "object"})
    with pytest.raises(StorageError, match="no file's name"):
        list(storage.list(url))


def test_a_bundle_in_itself(server: DrsServer, storage: DrsStorage) -> None:
    server.add_bundle("inner", {"outer": "outer"})
    url = server.add_bundle("outer", {"inner": "inner"})
    with pytest.raises(StorageError, match="holds itself"):
        list(storage.list(url))


def test_a_bundle_may_name_objects_elsewhere(
    server: DrsServer, storage: DrsStorage, tmp_path: Path
) -> None:
    with DrsServer() as other:
        other.add("object", b"elsewhere")
        url = server.add_bundle("bundle", {"name": "ignored"})
        server.objects["bundle"]["contents"][0]["drs_uri"] = [
            "drs://compact:1",
            other.url("object"),
        ]
        assert list(storage.list(url)) == [Entry("name", 9)]
        assert storage.get(f"{url}/name", tmp_path / "got") == 9


FORMS = [
    ("drs://dg.4503:0000-abc", "compact identifiers"),
    ("drs://12345", "needs the form drs://host/id"),
    ("drs://user:hunter2@host/id", "needs the form"),
    ("drs:///id", "needs the form"),
    ("drs://host/", "needs the form"),
    ("drs://host/id?sig=hunter2", "needs the form"),
]


@pytest.mark.parametrize(("url", "text"), FORMS)
def test_urls_of_other_forms(storage: DrsStorage, url: str, text: str) -> None:
    with pytest.raises(UnsupportedUrl, match=text) as caught:
        storage.check(url, writing=False)
    assert "hunter2" not in str(caught.value)


def test_a_server_at_a_refused_address(storage: DrsStorage) -> None:
    with pytest.raises(PermissionDenied, match="metadata"):
        storage.check("drs://169.254.169.254/id", writing=False)
    with pytest.raises(PermissionDenied, match="metadata"):
        storage.stat("drs://169.254.169.254/id")


def test_what_is_no_drs(server: DrsServer, storage: DrsStorage) -> None:
    server.objects["object"] = {"size": "not a number"}
    with pytest.raises(StorageError, match=r"not a document of DRS 1\.x"):
        storage.stat(server.url("object"))


def test_as_the_runner_has_it(tmp_path: Path) -> None:
    """Over TLS, chosen by the registry, with the attempt's token; files only where allowed."""
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed" / "object").write_bytes(b"allowed")
    certificate = certificates.make(tmp_path, "127.0.0.1")
    endpoints = Endpoints(ca_bundle=str(certificate.authority))
    with DrsServer(TOKEN, certificate) as server:
        url = server.add("object", b"content")
        server.objects["allowed"] = led_to((tmp_path / "allowed" / "object").as_uri())
        server.objects["denied"] = led_to("file:///etc/passwd")
        access = Access(drs_tokens={server.host: TOKEN})
        storages = Storages([tmp_path / "allowed"], endpoints=endpoints, access=access)
        with contextlib.closing(storages):
            assert storages.for_url(url).get(url, tmp_path / "got") == 7
            url = server.url("allowed")
            assert storages.for_url(url).get(url, tmp_path / "got") == 7
            url = server.url("denied")
            with pytest.raises(PermissionDenied, match=r"(allowed|outside)"):
                storages.for_url(url).get(url, tmp_path / "got")

"""Transfers that are stopped while a system keeps them waiting, in whichever of their requests."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from tesazure.access import Endpoints
from tesazure.errors import StorageNotFound
from tesazure.storage.azure_files import AzureFilesStorage
from tesazure.storage.base import Storage
from tesazure.storage.blob import BlobStorage
from tesazure.storage.drs import DrsStorage
from tesazure.storage.gcs import GcsStorage
from tesazure.storage.s3 import S3Storage
from tesazure.storage.transport import Transport
from tests.services.faulty_http import FaultyHttp, Handler

SIZE = 17 * 2**20


class Unavailable:
    """A service of which one request, of this method and with this text in its URL, is never
    served; all others are as far as these tests need it."""

    def __init__(self, method: str, text: str) -> None:
        self.method = method
        self.text = text
        self.asked = False

    def __call__(self, handler: Handler) -> None:
        handler.rfile.read(int(handler.headers.get("Content-Length", "0")))
        method, url = handler.command, handler.path
        if method == self.method and self.text in url:
            self.asked = True
            handler.send_plain(503, {"Retry-After": "60"})
        elif method == "POST" and "uploads" in url:
            body = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></Initiate"
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(body) + 22))
            handler.end_headers()
            handler.write(body + b"MultipartUploadResult>")
        elif method == "GET" and "empty" in url:
            handler.send_plain(416, {"Content-Range": "bytes */0"})
        elif method == "GET":
            handler.send_response(206)
            handler.send_header("ETag", '"parts-2"')
            handler.send_header("Content-Range", "bytes 0-0/1")
            handler.send_header("Content-Length", "1")
            handler.end_headers()
            handler.write(b"x")
        else:
            handler.send_plain(200, {"ETag": '"part"', "x-ms-file-id": "1"})


class Everywhere(dict[str, Callable[[Handler], None]]):
    """The same answer for all paths."""

    def __init__(self, answer: Callable[[Handler], None]) -> None:
        super().__init__()
        self._answer = answer

    def __contains__(self, _: object) -> bool:
        return True

    def __getitem__(self, _: str) -> Callable[[Handler], None]:
        return self._answer


CASES = [
    ("s3", "put", "s3://bucket/object", "POST", "uploads"),
    ("s3", "put", "s3://bucket/object", "POST", "uploadId"),
    ("s3", "get", "s3://bucket/object", "HEAD", "object"),
    ("gs", "put", "gs://bucket/object", "POST", "resumable"),
    ("blob", "put", "{origin}/blobs/container/object", "PUT", "comp=blocklist"),
    ("blob", "get", "{origin}/blobs/container/empty", "HEAD", "empty"),
    ("files", "put", "{origin}/files/share/object", "PUT", "part"),
    ("files", "put", "{origin}/files/share/object", "PUT", "comp=properties"),
    ("files", "put", "{origin}/files/share/object", "PUT", "comp=rename"),
    ("drs", "get", "drs://{host}/object", "GET", "objects"),
]


class Stop(Exception):
    """Nobody wants it any more."""


@pytest.mark.parametrize(("system", "act", "url", "method", "text"), CASES)
def test_every_request_can_be_stopped(
    tmp_path: Path, system: str, act: str, url: str, method: str, text: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "file").open("r+b").truncate(SIZE)
    service = Unavailable(method, text)

    def progress(_: int) -> None:
        if service.asked:
            raise Stop

    with FaultyHttp() as server, contextlib.closing(Transport()) as transport:
        server.answers = Everywhere(service)
        url = url.format(origin=server.url(""), host=f"127.0.0.1:{server.port}")
        storage = made(system, server, transport)
        began = time.monotonic()
        with pytest.raises(Stop):
            if act == "get":
                storage.get(url, tmp_path / "got", progress)
            else:
                storage.put(tmp_path / "file", url, progress)
        assert time.monotonic() - began < 10
    assert [place.name for place in tmp_path.iterdir()] == ["file"]


def test_a_list_does_not_wait_for_what_is_not_wanted_any_more() -> None:
    """One member of a bundle is not there, another one's description is long in coming."""
    waits = threading.Event()
    contents = [{"name": "a", "id": "a"}, {"name": "b", "id": "b"}]

    def answer(handler: Handler) -> None:
        name = handler.path.rpartition("/")[2]
        if name == "a":
            waits.set()
            handler.send_plain(503, {"Retry-After": "60"})
        elif name == "b":
            waits.wait(10)
            handler.send_plain(404)
        else:
            body = json.dumps({"contents": contents}).encode()
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.write(body)

    with FaultyHttp() as server, contextlib.closing(Transport()) as transport:
        server.answers = Everywhere(answer)
        storage = DrsStorage(transport, {}, nowhere, scheme="http")
        began = time.monotonic()
        with pytest.raises(StorageNotFound, match="objects/b: HTTP 404"):
            list(storage.list(f"drs://127.0.0.1:{server.port}/bundle"))
        assert time.monotonic() - began < 10


def made(system: str, server: FaultyHttp, transport: Transport) -> Storage:
    """One of the systems, all of which are played by the server."""
    origin = server.url("")
    endpoints = Endpoints(s3=origin, gcs=origin, blob=f"{origin}/blobs", file=f"{origin}/files")
    match system:
        case "s3":
            return S3Storage(transport, endpoints, None)
        case "gs":
            return GcsStorage(transport, endpoints, "")
        case "blob":
            return BlobStorage(transport, endpoints)
        case "files":
            return AzureFilesStorage(transport, endpoints)
        case _:
            return DrsStorage(transport, {}, nowhere, scheme="http")


def nowhere(_: str) -> NoReturn:
    raise AssertionError("leads nowhere")

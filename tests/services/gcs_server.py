"""A stand-in for Google Cloud Storage's JSON API: buckets in memory, over HTTP on loopback.

It checks the bearer token of every request, stores what it is sent only if the announced MD5 is
right, and keeps to "JSON API: Objects", "Resumable uploads" and "Hashes and ETags".
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import re
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import google_crc32c

from tesazure.access import Endpoints
from tests.services.loopback_http import LoopbackHttp, QuietHandler

TOKEN = "ya29.a-token-for-tests"
_OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
_OBJECTS = re.compile(r"/storage/v1/b/([^/]+)/o")
_UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_CONTENT_RANGE = re.compile(r"bytes (?:\*|(\d+)-\d+)/(\d+|\*)")


class Held:
    """One version of an object. A `composite` one has no MD5; `encoding` is how it is stored."""

    def __init__(
        self, content: bytes, generation: int, *, composite: bool = False, encoding: str = ""
    ) -> None:
        self.content = content
        self.generation = generation
        self.composite = composite
        self.encoding = encoding
        self.content_type = "application/octet-stream"
        self.crc32c = base64.b64encode(google_crc32c.Checksum(content).digest()).decode()  # type: ignore[no-untyped-call]
        self.md5 = base64.b64encode(hashlib.md5(content).digest()).decode()

    @property
    def etag(self) -> str:
        """Without quotes, as this API has it."""
        return base64.b64encode(b"etag %d" % self.generation).decode()

    def described(self, bucket: str, name: str) -> dict[str, str]:
        """The object's resource; numbers of 64 bits are strings."""
        hashes = {"crc32c": self.crc32c} | ({} if self.composite else {"md5Hash": self.md5})
        return hashes | {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(self.content)),
            "generation": str(self.generation),
            "contentType": self.content_type,
            "etag": self.etag,
        }


class Session:
    """A resumable upload under way."""

    def __init__(self, bucket: str, described: Mapping[str, str]) -> None:
        self.bucket = bucket
        self.described = described
        self.content = b""


class GcsServer(LoopbackHttp):
    """The service, as a context manager.

    Buckets that begin with `public-` are readable for all. `page`: the most entries of a list's
    page. `cuts`: after how many bytes the connection of each of the next resumable uploads breaks.
    `statuses` are answered to the next requests.
    `corrupts`: whether media come with a wrong byte. `asked` is every request's method and URL.
    """

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.buckets: dict[str, dict[str, Held]] = {}
        self.sessions: dict[str, Session] = {}
        self.page = 1000
        self.cuts: list[int] = []
        self.statuses: list[int] = []
        self.corrupts = False
        self.asked: list[str] = []
        self.lock = threading.Lock()
        self.generations = itertools.count(1_700_000_000_000_001)

    @property
    def endpoints(self) -> Endpoints:
        """The settings with which the product finds it."""
        return Endpoints(gcs=self.origin)

    def bucket(self, name: str = "bucket-1") -> str:
        """Make a bucket; its name."""
        self.buckets[name] = {}
        return name

    def plant(self, bucket: str, name: str, content: bytes, **more: Any) -> Held:
        """Store a new version of an object."""
        held = Held(content, next(self.generations), **more)
        self.buckets[bucket][name] = held
        return held


class _Refused(Exception):
    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        self.reason = reason


class _Handler(QuietHandler):
    owner: GcsServer

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            super().handle_one_request()

    def _answer_all(self) -> None:
        parts = urlsplit(self.path)
        owner = self.owner
        query = dict(parse_qsl(parts.query))
        owner.asked.append(f"{self.command} {self.path}")
        try:
            if owner.statuses:
                self._read()
                raise _Refused(owner.statuses.pop(0), "backendError")
            if found := _UPLOAD.fullmatch(parts.path):
                if "upload_id" in query:  # the session's URL is what authenticates
                    self._resume(query["upload_id"])
                    return
                self._upload(self._objects(found[1]), found[1], query)
                return
            if found := _OBJECTS.fullmatch(parts.path):
                self._list(self._objects(found[1]), query)
            elif found := _OBJECT.fullmatch(parts.path):
                name = unquote(found[2])
                held = self._objects(found[1]).get(name)
                if held is None:
                    raise _Refused(404, "notFound")
                if query.get("alt") == "media":
                    self._send_media(held)
                else:
                    self._send_json(held.described(found[1], name))
            else:
                raise _Refused(404, "notFound")
        except _Refused as refused:
            error = {"errors": [{"reason": refused.reason}], "code": refused.status}
            self._send_json({"error": error}, refused.status)

    def __getattr__(self, name: str) -> Any:
        """`do_GET`, `do_POST` and so on: where a request goes depends on its path first."""
        if name.startswith("do_"):
            return self._answer_all
        raise AttributeError(name)

    def _objects(self, bucket: str) -> dict[str, Held]:
        """The objects of a bucket, if whoever asks may use it."""
        given = self.headers.get("Authorization")
        if given is None and not (bucket.startswith("public-") and self.command == "GET"):
            self._read()
            raise _Refused(401, "required")
        if given not in (None, f"Bearer {TOKEN}"):
            self._read()
            raise _Refused(401, "authError")
        if bucket not in self.owner.buckets:
            self._read()
            raise _Refused(404, "notFound")
        if bucket.startswith("closed-"):
            self._read()
            raise _Refused(403, "forbidden")
        return self.owner.buckets[bucket]

    def _list(self, objects: Mapping[str, Held], query: Mapping[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        names = sorted(
            {_cut(n, len(prefix), delimiter) for n in objects if n.startswith(prefix)},
            key=str.encode,
        )
        after = base64.b64decode(query.get("pageToken", "")).decode()
        rest = [name for name in names if name.encode() > after.encode()]
        size = min(self.owner.page, int(query.get("maxResults", 1000)))
        cut = [n for n in rest[:size] if delimiter and n.endswith(delimiter)]
        items = [
            {"name": n, "size": str(len(objects[n].content))} for n in rest[:size] if n not in cut
        ]
        answer: dict[str, object] = {"items": items} if items else {}
        if cut:
            answer["prefixes"] = cut
        if len(rest) > size:
            answer["nextPageToken"] = base64.b64encode(rest[size - 1].encode()).decode()
        self._send_json(answer)

    def _send_media(self, held: Held) -> None:
        content = held.content
        start, status = 0, 200
        if self.headers.get("If-Match") not in (None, held.etag):
            raise _Refused(412, "conditionNotMet")
        transcoded = held.encoding and "gzip" not in self.headers.get("Accept-Encoding", "")
        if transcoded:
            # What is decompressed on the way has neither ranges nor a length.
            raise _Refused(400, "thisClientMustNotAskSo")
        headers = {
            "ETag": held.etag,
            "x-goog-generation": str(held.generation),
            "x-goog-stored-content-encoding": held.encoding or "identity",
        }
        if held.encoding:
            headers["Content-Encoding"] = held.encoding
        hashes = [f"crc32c={held.crc32c}"] + ([] if held.composite else [f"md5={held.md5}"])
        if found := _RANGE.fullmatch(self.headers.get("Range", "")):
            start = int(found[1])
            if start >= len(content):
                self.reply(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                return
            content = content[start : int(found[2]) + 1 if found[2] else None]
            headers["Content-Range"] = f"bytes {start}-{start + len(content) - 1}/" + str(
                len(held.content)
            )
            status = 206
        if self.owner.corrupts and content:
            content = bytes([content[0] ^ 1]) + content[1:]
        self.send_response(status)
        for line in hashes:  # one header each
            self.send_header("x-goog-hash", line)
        headers |= {"Content-Type": held.content_type, "Content-Length": str(len(content))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _upload(self, objects: dict[str, Held], bucket: str, query: Mapping[str, str]) -> None:
        body = self._read()
        owner = self.owner
        if query["uploadType"] == "resumable":
            upload_id = f"secret-session-{len(owner.sessions)}"
            owner.sessions[upload_id] = Session(bucket, json.loads(body))
            path = f"/upload/storage/v1/b/{bucket}/o"
            where = f"{owner.origin}{path}?uploadType=resumable&upload_id={upload_id}"
            self.reply(200, b"", {"Location": where})
            return
        boundary = self.headers.get_param("boundary")
        _, described, content, end = body.split(f"--{boundary}".encode(), 3)
        if end.strip() != b"--":
            raise _Refused(400, "badContent")
        parsed = json.loads(described.partition(b"\r\n\r\n")[2])
        self._store(bucket, parsed, content.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n"))

    def _resume(self, upload_id: str) -> None:
        owner = self.owner
        session = owner.sessions.get(upload_id)
        if session is None:
            self._read()
            raise _Refused(404, "notFound")
        if self.command == "DELETE":
            del owner.sessions[upload_id]
            self.reply(499, reason="Client Closed Request")
            return
        found = _CONTENT_RANGE.fullmatch(self.headers["Content-Range"])
        assert found
        if found[1] is not None:
            if int(found[1]) != len(session.content):
                self._read()
                raise _Refused(503, "backendError")
            self._take(session)
        if found[2] == "*" or len(session.content) < int(found[2]):
            kept = {"Range": f"bytes=0-{len(session.content) - 1}"} if session.content else {}
            self.reply(308, b"", kept)
            return
        del owner.sessions[upload_id]
        self._store(session.bucket, session.described, session.content)

    def _take(self, session: Session) -> None:
        """Take the body in; no more than up to the next cut, in whole units of 256 KiB."""
        owner = self.owner
        length = int(self.headers["Content-Length"])
        cut = owner.cuts.pop(0) if owner.cuts else None
        if cut is None or cut >= length:
            session.content += self._read()
            return
        unit = 256 * 2**10
        session.content += self.rfile.read(cut)[: cut // unit * unit]
        self.close_connection = True
        raise ConnectionError

    def _store(self, bucket: str, described: Mapping[str, str], content: bytes) -> None:
        owner = self.owner
        with owner.lock:
            held = Held(content, next(owner.generations))
            right = {"md5Hash": held.md5, "crc32c": held.crc32c}
            if any(described.get(name, value) != value for name, value in right.items()):
                raise _Refused(400, "invalid")
            held.content_type = described.get("contentType", held.content_type)
            owner.buckets[bucket][described["name"]] = held
        self._send_json(held.described(bucket, described["name"]))

    def _read(self) -> bytes:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionError
        return body

    def _send_json(self, document: Mapping[str, object], status: int = 200) -> None:
        kind = {"Content-Type": "application/json; charset=UTF-8"}
        self.reply(status, json.dumps(document).encode(), kind)


def _cut(name: str, start: int, delimiter: str) -> str:
    """A name up to the first delimiter behind the prefix ("Objects: list", `delimiter`)."""
    end = name.find(delimiter, start) if delimiter else -1
    return name if end < 0 else name[: end + len(delimiter)]

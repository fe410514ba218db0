"""`gs://bucket/key`: Google Cloud Storage, over its JSON API.

Sources: "JSON API: Objects", "Resumable uploads", "Hashes and ETags", "Transcoding of
gzip-compressed files" (Google Cloud Storage).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlencode

import msgspec

from tesazure.access import Endpoints
from tesazure.errors import StorageError
from tesazure.storage.base import Progress, Stat, waiting
from tesazure.storage.buckets import BucketStorage
from tesazure.storage.content_types import content_type
from tesazure.storage.digests import Digest
from tesazure.storage.keys import Place
from tesazure.storage.parts import download
from tesazure.storage.sources import Source
from tesazure.storage.transport import Transport
from tesazure.storage.wire import (
    Again,
    Answer,
    FilePart,
    location,
    require,
    service_code,
    status_of,
)

T = TypeVar("T")

SINGLE = 4 * 2**20
"""Bytes up to which an upload is one request, whose body is held in memory."""
_HASH = re.compile(r"(md5|crc32c)=([A-Za-z0-9+/]+=*)")
_KEPT = re.compile(r"bytes=0-(\d+)")
_FIELDS = "size,md5Hash,crc32c,generation"
_HINTS = {
    "authError": "the access token has expired or is none of Google's",
    "forbidden": "the account of GCS_CREDENTIALS_FILE may not do this",
    "userProjectMissing": "the bucket's owner has who reads it pay, which is not supported",
}


class _Object(msgspec.Struct, rename="camel"):
    name: str = ""
    size: int = 0
    md5_hash: str = ""
    crc32c: str = ""
    generation: str = ""


class _Page(msgspec.Struct, rename="camel"):
    items: tuple[_Object, ...] = ()
    prefixes: tuple[str, ...] = ()
    next_page_token: str = ""


class GcsStorage(BucketStorage):
    """Objects of Google Cloud Storage.

    Downloads are verified by MD5, or by CRC32C for composite objects where google-crc32c is
    installed. What is stored compressed comes as it is stored. Uploads name their MD5 before they
    begin, and the service keeps nothing else; those of more than 4 MiB go on where they broke.
    """

    def __init__(
        self, transport: Transport, endpoints: Endpoints, token: str, *, page: int = 1000
    ) -> None:
        """`token`: an OAuth 2 access token; empty: requests are anonymous. `page`: how many keys a
        list asks for at a time."""
        super().__init__(page)
        self._transport = transport
        self._endpoint = endpoints.gcs.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def _url(self, place: Place) -> str:
        return f"{self._objects(place)}/{quote(place.key, safe='')}"

    def _objects(self, place: Place, api: str = "storage/v1") -> str:
        return f"{self._endpoint}/{api}/b/{quote(place.bucket, safe='')}/o"

    def _find(self, place: Place) -> Stat:
        url = self._url(place)
        answer = self._transport.ask("GET", f"{url}?fields={_FIELDS}", headers=self._headers)
        require(answer, f"GET {url}", hint=self._hint)
        found = _decoded(answer, _Object, f"GET {url}")
        hashes = {"md5": found.md5_hash, "crc32c": found.crc32c}
        checksum = next((f"{name}:{_bytes(v).hex()}" for name, v in hashes.items() if v), None)
        return Stat(
            is_directory=False, size=found.size, checksum=checksum, version=found.generation
        )

    def _keys(
        self, place: Place, page: int, start: str = "", delimiter: str = ""
    ) -> Iterator[tuple[str, int]]:
        url = self._objects(place)
        query = {"prefix": place.prefix + start, "maxResults": str(page)}
        query["fields"] = "nextPageToken,items(name,size)"
        if delimiter:
            query |= {"delimiter": delimiter, "fields": f"{query['fields']},prefixes"}
        while True:
            asked = f"{url}?{urlencode(query)}"
            answer = self._transport.ask("GET", asked, headers=self._headers)
            require(answer, f"GET {url}", hint=self._hint)
            listed = _decoded(answer, _Page, f"GET {url}")
            for item in listed.items:
                yield item.name, item.size
            yield from ((prefix, 0) for prefix in listed.prefixes)
            if not listed.next_page_token:
                return
            query["pageToken"] = listed.next_page_token

    def _fetch(self, place: Place, path: Path, progress: Progress | None) -> int:
        # Without this, Google decompresses what is stored compressed, and then knows no ranges.
        headers = {**self._headers, "Accept-Encoding": "gzip"}
        return download(
            self._transport,
            f"{self._url(place)}?alt=media",
            path,
            progress,
            headers=lambda: headers,
            digest=_digest_of,
            hint=self._hint,
        )

    def _send(self, source: Source, place: Place, progress: Progress | None) -> None:
        if source.size <= SINGLE:
            self._put_whole(place, _content(source), progress)
        else:
            self._put_resumable(place, source, progress)

    def _mark(self, place: Place) -> None:
        self._put_whole(place, b"", None)

    def _put_whole(self, place: Place, content: bytes, progress: Progress | None) -> None:
        md5 = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
        boundary = secrets.token_hex(16)
        body = b"".join(
            (
                f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n".encode(),
                _metadata(place, md5),
                f"\r\n--{boundary}\r\nContent-Type: {content_type(place.key)}\r\n\r\n".encode(),
                content,
                f"\r\n--{boundary}--\r\n".encode(),
            )
        )
        url = self._objects(place, "upload/storage/v1")
        kind = {"Content-Type": f"multipart/related; boundary={boundary}"}
        answer = self._transport.ask(
            "POST",
            f"{url}?uploadType=multipart",
            headers={**self._headers, **kind},
            body=body,
            # The body is longer than the file.
            progress=waiting(progress),
        )
        require(answer, f"POST {url}", hint=self._hint)
        if progress:
            progress(len(content))

    def _put_resumable(self, place: Place, source: Source, progress: Progress | None) -> None:
        size = source.size
        # Named before the first byte is sent: an object with another one never comes to be.
        md5 = source.md5(0, size, lambda: _goes_on(progress))
        url = self._objects(place, "upload/storage/v1")

        def begin() -> str:
            answer = self._transport.ask(
                "POST",
                f"{url}?uploadType=resumable",
                headers={
                    **self._headers,
                    "Content-Type": "application/json; charset=UTF-8",
                    "X-Upload-Content-Type": content_type(place.key),
                    "X-Upload-Content-Length": str(size),
                },
                body=_metadata(place, md5),
                progress=waiting(progress),
            )
            require(answer, f"POST {url}", hint=self._hint)
            session = location(answer)
            if not session:
                raise StorageError(f"POST {url}: the answer names no session for the upload")
            return session

        upload = _Upload(self._transport, begin, source.part(0, size))
        what = f"PUT {url}"
        try:
            answer = self._transport.persist(
                what, lambda: upload.send(progress), progress, lambda: upload.furthest
            )
            require(answer, what, hint=self._hint)
        except BaseException:
            upload.cancel()
            raise

    def _hint(self, answer: Answer) -> str:
        """What a refusal means, and what can be done; empty when there is nothing to add."""
        if answer.status in (401, 403) and not self._headers:
            return (
                "it was asked for without credentials, because there is no setting"
                " GCS_CREDENTIALS_FILE"
            )
        code = service_code(answer) or {401: "authError", 403: "forbidden"}.get(answer.status, "")
        return _HINTS.get(code, "")


class _Upload:
    """A resumable upload. Its session's URL, which `begin` asks for, is a secret of its own, and
    all that it needs."""

    def __init__(self, transport: Transport, begin: Callable[[], str], body: FilePart) -> None:
        self._transport = transport
        self._begin = begin
        self._session = ""
        self._body = body
        self._is_begun = False
        self._kept = self.furthest = 0
        """Bytes that the service has stored, as far as known; the most of any session."""

    def send(self, progress: Progress | None) -> Answer:
        """The answer to the last byte. Raises Again when fewer were taken, or the session is
        lost, after which the next one begins anew."""
        size = self._body.length
        if not self._session:
            self._session, self._is_begun = self._begin(), False
            self._keep(0)
        if self._is_begun:
            answer = self._put(f"bytes */{size}", b"", waiting(progress))
            if answer.status != 308:
                return answer
            self._keep(_kept(answer))
        self._is_begun = True
        rest = FilePart(self._body.descriptor, self._kept, size - self._kept)
        answer = self._put(f"bytes {self._kept}-{size - 1}/{size}", rest, progress)
        if answer.status == 308:
            self._keep(_kept(answer))
            raise Again(f"{self._kept} bytes were taken of {size}")
        return answer

    def cancel(self) -> None:
        """One try to have the service forget what it has; it does so by itself after a week."""
        if self._session:
            with contextlib.suppress(Again, StorageError):
                self._transport.send("DELETE", self._session)

    def _keep(self, kept: int) -> None:
        self._kept = kept
        self.furthest = max(self.furthest, kept)

    def _put(self, part: str, body: bytes | FilePart, progress: Progress | None) -> Answer:
        headers = {"Content-Range": part}
        answer = self._transport.send(
            "PUT", self._session, headers=headers, body=body, progress=progress
        )
        if answer.status in (404, 410):
            # "Resumable uploads", error handling: to be begun anew.
            self._session = ""
            raise Again(f"the service has lost the upload: {status_of(answer)}")
        return answer


def _content(source: Source) -> bytes:
    part = source.part(0, source.size)
    content = os.pread(part.descriptor, part.length, part.offset)
    source.check_unchanged()
    return content


def _goes_on(progress: Progress | None) -> bool:
    if progress:
        progress(0)
    return True


def _kept(answer: Answer) -> int:
    found = _KEPT.fullmatch(answer.headers.get("range", ""))
    return int(found[1]) + 1 if found else 0


def _metadata(place: Place, md5: str) -> bytes:
    described = {
        "name": place.key,
        "contentType": content_type(place.key),
        "md5Hash": md5,
    }
    return msgspec.json.encode(described)


def _decoded(answer: Answer, kind: type[T], what: str) -> T:
    """The document in an answer; StorageError if it is none of this kind."""
    try:
        # Google writes 64-bit numbers as strings.
        return msgspec.json.decode(answer.body, type=kind, strict=False)
    except msgspec.MsgspecError as error:
        raise StorageError(f"{what}: the answer is not what Google writes: {error}") from error


def _bytes(text: str) -> bytes:
    """Empty for what is not base64."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _digest_of(answer: Answer) -> Digest | None:
    """The checksum of a whole object, which Google tells with every part of it."""
    stored = answer.headers.get("x-goog-stored-content-encoding", "identity")
    if stored != answer.headers.get("content-encoding", "identity"):
        return None  # it is of the compressed bytes, and these are not
    found = {
        name: _bytes(text) for name, text in _HASH.findall(answer.headers.get("x-goog-hash", ""))
    }
    if len(found.get("md5", b"")) == 16:
        return Digest("md5", found["md5"])
    if len(found.get("crc32c", b"")) == 4:
        with contextlib.suppress(ImportError):
            return _Crc32c(found["crc32c"])
    return None


class _Crc32c(Digest):
    """All that composite objects have. Raises ImportError without google-crc32c."""

    def __init__(self, expected: bytes) -> None:
        import google_crc32c

        super().__init__("md5", expected)
        self.algorithm = "crc32c"
        self._crc = google_crc32c.Checksum()  # type: ignore[no-untyped-call]

    def update(self, data: bytes) -> None:
        """Take in the next bytes."""
        self._crc.update(data)  # type: ignore[no-untyped-call]

    def value(self) -> bytes:
        """The checksum of the bytes so far."""
        return bytes(self._crc.digest())  # type: ignore[no-untyped-call]

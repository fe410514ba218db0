"""`s3://bucket/key`: Amazon S3, and services that speak its protocol (MinIO, Ceph, …)."""

from __future__ import annotations

import contextlib
import hashlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote_plus
from xml.sax.saxutils import escape

from tesazure.access import Endpoints, S3Key
from tesazure.errors import StorageError
from tesazure.storage.base import Progress, Stat, waiting
from tesazure.storage.buckets import BucketStorage
from tesazure.storage.content_types import content_type
from tesazure.storage.digests import Digest
from tesazure.storage.keys import Place
from tesazure.storage.parts import download, in_parts
from tesazure.storage.s3_requests import S3Requests, base64_of, checksums, text_of, xml_of
from tesazure.storage.sources import Source
from tesazure.storage.transport import Transport
from tesazure.storage.wire import (
    Again,
    Answer,
    FilePart,
    content_length,
    content_range,
    date,
    require,
    service_code,
)

_MD5_ETAG = re.compile(r'"?([0-9a-f]{32})"?')
_MIB = 2**20
SINGLE = 16 * _MIB
"""Bytes up to which an upload is one request."""
PART_SIZE = 16 * _MIB
"""Bytes of a part of a larger upload, at least."""
_CLOCK_S = 10
"""Within which a service's times of one moment are."""
_MOST_PARTS = 10_000
"""Amazon S3, "Multipart upload limits"."""


class S3Storage(BucketStorage):
    """Objects of S3.

    Downloads are verified by MD5 where the ETag is one (objects written in one piece, not
    encrypted with KMS or a customer's key), else by a whole-object CRC where the service keeps
    one. Uploads of up to 16 MiB are one request, larger ones go in parallel parts that become an
    object at the end; each carries its MD5. One that fails or is stopped deletes its parts; those
    of a process that is killed, or of an endpoint that cannot be reached by then, stay, unseen and
    at the owner's expense, until the bucket's lifecycle rule AbortIncompleteMultipartUpload.
    """

    def __init__(
        self, transport: Transport, endpoints: Endpoints, key: S3Key | None, *, page: int = 1000
    ) -> None:
        """Without a key, requests are anonymous. `page`: how many keys a list asks for at a time.
        Raises UnsupportedUrl when there is a key but botocore is not installed."""
        super().__init__(page)
        self._requests = S3Requests(transport, endpoints, key)

    def _find(self, place: Place) -> Stat:
        target = self._requests.url(place)
        answer = self._requests.ask("HEAD", target)
        if not answer.succeeded:
            # A refusal of HEAD has no body that says why.
            answer = self._requests.ask("GET", target, {"Range": "bytes=0-0"})
            require(answer, f"GET {target}", hint=self._requests.hint)
        return _stat_of(answer)

    def _keys(
        self, place: Place, page: int, start: str = "", delimiter: str = ""
    ) -> Iterator[tuple[str, int]]:
        # Escaped, because XML cannot hold every character that a key can.
        query = {"list-type": "2", "encoding-type": "url", "max-keys": str(page)}
        query["prefix"] = place.prefix + start
        if delimiter:
            query["delimiter"] = delimiter
        bucket = Place(place.bucket, "")
        what = f"GET {self._requests.url(bucket)}"
        while True:
            answer = self._requests.ask("GET", self._requests.url(bucket, query))
            require(answer, what, hint=self._requests.hint)
            listed = xml_of(answer, what)
            is_escaped = text_of(listed, "EncodingType") == "url"
            for item in listed.iterfind("{*}Contents"):
                key = text_of(item, "Key")
                yield unquote_plus(key) if is_escaped else key, int(text_of(item, "Size"))
            for item in listed.iterfind("{*}CommonPrefixes"):
                key = text_of(item, "Prefix")
                yield unquote_plus(key) if is_escaped else key, 0
            token = text_of(listed, "NextContinuationToken")
            if not token:
                return
            query["continuation-token"] = token

    def _fetch(self, place: Place, path: Path, progress: Progress | None) -> int:
        target = self._requests.url(place)
        return download(
            self._requests.transport,
            target,
            path,
            progress,
            # Every try has a signature of its own.
            headers=lambda: self._requests.headers("GET", target),
            digest=lambda answer: self._digest(target, answer, waiting(progress)),
            hint=self._requests.hint,
        )

    def _send(self, source: Source, place: Place, progress: Progress | None) -> None:
        if source.size <= SINGLE:
            self._put_whole(source.part(0, source.size), place, progress)
        else:
            self._put_parts(source, place, progress)

    def _mark(self, place: Place) -> None:
        self._put_whole(b"", place, None)

    def _digest(self, target: str, answer: Answer, progress: Progress | None) -> Digest:
        md5 = _md5_of(answer)
        if md5:
            return Digest("md5", md5)
        etag = answer.headers.get("etag", "")
        return _StoredCrc(lambda: self._stored_checksums(target, etag, progress))

    def _stored_checksums(
        self, target: str, etag: str, progress: Progress | None
    ) -> Mapping[str, str]:
        """Headers with the checksums of a whole object; a GET of a range does not tell them, or
        tells others ("Checking object integrity")."""
        headers = {"x-amz-checksum-mode": "ENABLED", **({"If-Match": etag} if etag else {})}
        answer = self._requests.ask("HEAD", target, headers, progress=progress)
        return answer.headers if answer.succeeded else {}

    def _put_whole(self, body: FilePart | bytes, place: Place, progress: Progress | None) -> None:
        target = self._requests.url(place)
        headers = {"Content-Type": content_type(place.key)}
        answer = self._requests.ask("PUT", target, headers, body, progress)
        require(answer, f"PUT {target}", hint=self._requests.hint)

    def _put_parts(self, source: Source, place: Place, progress: Progress | None) -> None:
        target = self._requests.url(place)
        headers = {"Content-Type": content_type(place.key)}
        asked = waiting(progress)
        url = self._requests.url(place, {"uploads": ""})
        answer = self._requests.ask("POST", url, headers, progress=asked)
        require(answer, f"POST {target}", hint=self._requests.hint)
        begun = date(answer.headers.get("date", ""))
        upload = text_of(xml_of(answer, f"POST {target}"), "UploadId")
        part_size = part_size_of(source.size)
        etags = [""] * -(-source.size // part_size)
        md5s = [b""] * len(etags)

        def send(index: int, offset: int, length: int, moved: Progress | None) -> None:
            body = source.part(offset, length)
            sums = checksums(body)
            query = {"partNumber": str(index + 1), "uploadId": upload}
            answer = self._requests.ask(
                "PUT", self._requests.url(place, query), None, body, moved, sums
            )
            require(answer, f"PUT {target} part {index + 1}", hint=self._requests.hint)
            etags[index], md5s[index] = answer.headers.get("etag", ""), sums.md5

        def has_become(found: Answer) -> bool:
            told = found.headers.get("etag", "").strip('"')
            if [etag.strip('"') for etag in etags] == [md5.hex() for md5 in md5s]:
                whole = hashlib.md5(b"".join(md5s), usedforsecurity=False).hexdigest()
                return told == f"{whole}-{len(etags)}"
            # Encrypted, so that ETags say nothing of what is in it.
            changed = date(found.headers.get("last-modified", ""))
            is_new = begun is not None and changed is not None and changed >= begun - _CLOCK_S
            is_as_long = content_length(found) == source.size
            return is_new and is_as_long and told.endswith(f"-{len(etags)}")

        try:
            in_parts(source.size, part_size, send, progress)
            source.check_unchanged()
            self._complete(place, upload, etags, has_become, asked)
        except BaseException:
            self._abort(place, upload)
            raise

    def _complete(
        self,
        place: Place,
        upload: str,
        etags: Sequence[str],
        has_become: Callable[[Answer], bool],
        progress: Progress | None,
    ) -> None:
        """Make the parts an object. `has_become`: whether an object's HEAD is of theirs."""
        target = self._requests.url(place)
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(part)}</ETag></Part>"
            for number, part in enumerate(etags, 1)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        url = self._requests.url(place, {"uploadId": upload})
        kind = {"Content-Type": "application/xml"}
        answer = self._requests.ask("POST", url, kind, body, progress)
        if service_code(answer) == "NoSuchUpload":
            # An earlier try may have succeeded, and its answer been lost.
            found = self._requests.ask("HEAD", target, progress=progress)
            if found.succeeded and has_become(found):
                return
        require(answer, f"POST {target}", hint=self._requests.hint)

    def _abort(self, place: Place, upload: str) -> None:
        """One try to delete the parts; the bucket's life cycle rules may do it later."""
        url = self._requests.url(place, {"uploadId": upload})
        with contextlib.suppress(Again, StorageError):
            self._requests.transport.send(
                "DELETE", url, headers=self._requests.headers("DELETE", url)
            )


class _StoredCrc(Digest):
    """The CRC that a service has stored of an object: which kind is asked at the end only, and
    without one the bytes pass."""

    def __init__(self, ask: Callable[[], Mapping[str, str]]) -> None:
        self._ask = ask
        self._functions = crc_functions()
        self._values = dict.fromkeys(self._functions, 0)
        super().__init__("md5", b"")
        self.algorithm = "CRC"

    def update(self, data: bytes) -> None:
        """Take in the next bytes."""
        for name, function in self._functions.items():
            self._values[name] = function(data, self._values[name])

    def value(self) -> bytes:
        """The checksums of the bytes so far."""
        return repr(self._values).encode()

    def matches(self) -> bool:
        """Whether the bytes so far have every whole-object CRC that the service tells."""
        headers = self._ask()
        kind = headers.get("x-amz-checksum-type", "")
        if kind not in ("", "FULL_OBJECT"):
            return True
        for name, value in self._values.items():
            offered = headers.get(f"x-amz-checksum-{name}", "")
            # With a hyphen and a number it is a checksum of the parts' checksums.
            if offered and "-" not in offered:
                bits = 64 if name == "crc64nvme" else 32
                return base64_of(value.to_bytes(bits // 8, "big")) == offered
        return True


def crc_functions() -> dict[str, Callable[[bytes, int], int]]:
    """The CRCs of S3 that can be computed here, by the end of their headers' names. Those that
    need awscrt, which the extra `s3` installs, come first: they are what AWS stores itself."""
    functions: dict[str, Callable[[bytes, int], int]] = {}
    with contextlib.suppress(ImportError):
        from awscrt import checksums as crt  # type: ignore[import-untyped]

        functions = {"crc64nvme": crt.crc64nvme, "crc32c": crt.crc32c}
    return {**functions, "crc32": zlib.crc32}


def part_size_of(size: int) -> int:
    """Bytes of each part of an upload: 16 MiB, or as many whole MiB as 10,000 parts need."""
    return max(PART_SIZE, -(-size // (_MOST_PARTS * _MIB)) * _MIB)


def _md5_of(answer: Answer) -> bytes:
    """The MD5 that an ETag is, empty if it is none ("Common response headers", ETag)."""
    found = _MD5_ETAG.fullmatch(answer.headers.get("etag", ""))
    kms = answer.headers.get("x-amz-server-side-encryption", "").startswith("aws:kms")
    own_key = "x-amz-server-side-encryption-customer-algorithm" in answer.headers
    return bytes.fromhex(found[1]) if found and not kms and not own_key else b""


def _stat_of(answer: Answer) -> Stat:
    md5 = _md5_of(answer)
    _, total = content_range(answer)
    return Stat(
        is_directory=False,
        size=content_length(answer) if answer.status == 200 else total,
        checksum=f"md5:{md5.hex()}" if md5 else None,
        version=answer.headers.get("etag"),
    )

"""Requests to S3: their URLs, signatures, and what its refusals mean.

Sources: "Signature Version 4", "Error Responses", "Virtual hosting of buckets", "Endpoints and
quotas" (Amazon S3 and AWS General Reference).
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote
from xml.etree import ElementTree as ET

import msgspec

from tesazure.access import Endpoints, S3Key
from tesazure.errors import StorageError, UnsupportedUrl
from tesazure.storage.base import Progress
from tesazure.storage.keys import Place
from tesazure.storage.transport import Transport
from tesazure.storage.urls import redact
from tesazure.storage.wire import Again, Answer, FilePart, service_code

if TYPE_CHECKING:
    from botocore.auth import S3SigV4Auth  # type: ignore[import-untyped]
    from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]

_AS_HOST = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
"""Buckets that can be part of a host's name. One with a dot cannot: no certificate covers it."""
_NO_BODY = hashlib.sha256().hexdigest()
_UNSIGNED = "UNSIGNED-PAYLOAD"
_BLOCK = 2**20
_REPEATABLE = frozenset({"RequestTimeout", "BadDigest", "InternalError", "SlowDown", "Throttling"})
"""Refusals with a status that says otherwise, and which another try may not meet."""
_REGION = re.compile(rb"<Region>([a-z0-9-]{1,40})</Region>")
_HINTS = {
    "AccessDenied": "these credentials may not do this; where they may not list the bucket, this"
    " is also the answer for an object that is not there",
    "AllAccessDisabled": "the bucket's owner or AWS has closed it",
    "ExpiredToken": "the session has ended: renew S3_SESSION_TOKEN and its keys",
    "InvalidAccessKeyId": "the service does not know the key of the setting S3_ACCESS_KEY_ID",
    "InvalidObjectState": "the object is archived: restore it first",
    "InvalidToken": "the setting S3_SESSION_TOKEN is not a token of this key",
    "RequestTimeTooSkewed": "the clock of this machine is wrong by more than 15 minutes",
    "SignatureDoesNotMatch": "the setting S3_SECRET_ACCESS_KEY does not belong to the key of"
    " S3_ACCESS_KEY_ID",
}


class Checksums(msgspec.Struct, frozen=True):
    """What a request says of its body."""

    md5: bytes
    sha256: str
    """In hex."""


def checksums(body: bytes | FilePart) -> Checksums:
    """Both checksums of a request's body; reads it in blocks of 1 MiB."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    if isinstance(body, bytes):
        md5.update(body)
        sha256.update(body)
        return Checksums(md5.digest(), sha256.hexdigest())
    offset, left = body.offset, body.length
    while left and (data := os.pread(body.descriptor, min(left, _BLOCK), offset)):
        md5.update(data)
        sha256.update(data)
        offset += len(data)
        left -= len(data)
    return Checksums(md5.digest(), sha256.hexdigest())


class S3Requests:
    """Asks one S3 service: AWS's own of a region, or that at `endpoints.s3`. Thread-safe."""

    def __init__(self, transport: Transport, endpoints: Endpoints, key: S3Key | None) -> None:
        self.transport = transport
        self._endpoint = endpoints.s3.rstrip("/")
        self._region = endpoints.s3_region
        self._signer = _signer(key, self._region) if key else None

    def url(self, place: Place, query: Mapping[str, str] | None = None) -> str:
        """The https URL of an object; of its bucket where the key is empty."""
        path = quote(place.key, safe="/-_.~")
        if self._endpoint:
            url = f"{self._endpoint}/{place.bucket}/{path}"
        else:
            domain = "amazonaws.com.cn" if self._region.startswith("cn-") else "amazonaws.com"
            host = f"s3.{self._region}.{domain}"
            if _AS_HOST.fullmatch(place.bucket):
                url = f"https://{place.bucket}.{host}/{path}"
            else:
                url = f"https://{host}/{place.bucket}/{path}"
        if not query:
            return url
        pairs = sorted((quote(k, safe="-_.~"), quote(v, safe="-_.~")) for k, v in query.items())
        return f"{url}?{'&'.join(f'{name}={value}' for name, value in pairs)}"

    def headers(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        sha256: str = _NO_BODY,
    ) -> dict[str, str]:
        """`headers` with a signature of this moment, good for 15 minutes; as they are when there
        is no key. `sha256` is the body's, in hex."""
        headers = dict(headers or {})
        if self._signer is None:
            return headers
        from botocore.awsrequest import AWSRequest

        request = AWSRequest(method=method, url=url, headers=headers)
        request.context["sha256"] = sha256
        self._signer.add_auth(request)
        return dict(request.headers.items())

    def ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | FilePart | None = None,
        progress: Progress | None = None,
        sums: Checksums | None = None,
    ) -> Answer:
        """The service's answer, whatever its status, once it is none that may be repeated. `sums`
        are the body's, if they are known already."""
        sent = dict(headers or {})
        sha256 = _NO_BODY
        if body is not None:
            sums = sums or checksums(body)
            sent["Content-MD5"] = base64_of(sums.md5)
            # Over TLS the MD5 is protected with all else; without, the body has to be signed too.
            sha256 = _UNSIGNED if url.startswith("https:") else sums.sha256

        def once() -> Answer:
            signed = self.headers(method, url, sent, sha256)
            answer = self.transport.send(method, url, headers=signed, body=body, progress=progress)
            code = service_code(answer)
            # Some operations begin a 200 before they know that they fail.
            failed = answer.status >= 300 or answer.body.lstrip().startswith(b"<Error")
            if code in _REPEATABLE or (failed and answer.status < 300):
                raise Again(f"HTTP {answer.status} {answer.reason} {code}".rstrip())
            return answer

        return self.transport.persist(f"{method} {redact(url)}", once, progress)

    def hint(self, answer: Answer) -> str:
        """What a refusal means, and what can be done; empty when there is nothing to add."""
        region = answer.headers.get("x-amz-bucket-region", "")
        found = _REGION.search(answer.body)
        if found and not region:
            region = found[1].decode()
        if region and region != self._region and answer.status in (301, 307, 400, 403):
            return (
                f"the bucket is in the region {region}, but the setting S3_REGION is {self._region}"
            )
        if answer.status == 403 and self._signer is None:
            return (
                "it was asked for without credentials, because there are none in the settings"
                " S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY"
            )
        return _HINTS.get(service_code(answer), "")


def base64_of(data: bytes) -> str:
    """Base64, as headers carry checksums."""
    return base64.b64encode(data).decode()


def xml_of(answer: Answer, what: str) -> ET.Element:
    """The document in an answer; StorageError if there is none."""
    try:
        # Expat limits how far entities expand, and resolves none that lie elsewhere.
        return ET.fromstring(answer.body)  # noqa: S314
    except ET.ParseError as error:
        raise StorageError(f"{what}: the answer is not XML as S3 writes it: {error}") from error


def text_of(element: ET.Element, name: str) -> str:
    """Text of a child element in any namespace; empty when there is none."""
    return element.findtext(f"{{*}}{name}") or ""


def _signer(key: S3Key, region: str) -> S3SigV4Auth:
    """Signs requests. Raises UnsupportedUrl where botocore is not installed."""
    try:
        from botocore.auth import S3SigV4Auth
        from botocore.credentials import Credentials  # type: ignore[import-untyped]
    except ImportError as error:
        raise UnsupportedUrl(
            "s3:// with credentials needs botocore: pip install 'tesazure[s3]'"
        ) from error

    class Signer(S3SigV4Auth):  # type: ignore[misc]
        def payload(self, request: AWSRequest) -> str:
            """The checksum of the body, known from before: bodies are parts of files."""
            return str(request.context["sha256"])

    # It logs what it signs, with the session token in it.
    logging.getLogger("botocore.auth").setLevel(logging.WARNING)
    return Signer(Credentials(key.key_id, key.secret, key.session_token or None), "s3", region)

"""What is said over HTTP: requests' bodies, answers, and what answers mean. Pure."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Callable
from urllib.parse import quote

import msgspec

from tesazure.errors import PermissionDenied, StorageError, StorageNotFound, UnsupportedUrl
from tesazure.storage.patience import Again
from tesazure.storage.urls import redact, require_host_name

RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""

_DENIED = frozenset({401, 403, 407})
_MISSING = frozenset({404, 410})
_NUMBER = re.compile(r"[0-9]{1,18}")
_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-[0-9]{1,18}|\*)/([0-9]{1,18}|\*)")
_URL = re.compile(r"(https?)://([^/?#]*)([^?#]*)(\?[^#]*)?(?:#.*)?", re.IGNORECASE | re.DOTALL)
_AUTHORITY = re.compile(
    r"(?:([^\x00-\x20\x7f\\]*)@)?(\[[0-9a-f:.]+(?:%25[a-z0-9_.~-]+)?\]|[^\[\]@:]+)(?::([0-9]{0,9}))?",
    re.IGNORECASE | re.ASCII,
)
_SAFE = "%/:?@!$&'()*+,;=~"
_PORTS = {"http": 80, "https": 443}
_XML_CODE = re.compile(rb"<Code>\s*([^<>]{1,100}?)\s*</Code>")
_CODE = re.compile(r"[\w.:-]{1,100}", re.ASCII)


__all__ = [
    "RETRYABLE",
    "Again",
    "Answer",
    "FilePart",
    "Sink",
    "Target",
    "content_length",
    "content_range",
    "date",
    "location",
    "require",
    "retry_after",
    "service_code",
    "status_of",
    "target_of",
]


class FilePart(msgspec.Struct, frozen=True):
    """A request's body that is read from an open file, whose position is left alone. Bytes."""

    descriptor: int
    offset: int
    length: int


class Answer(msgspec.Struct, frozen=True):
    """A server's answer. Names of headers are in lower case. `body` is empty when a sink took it,
    and no more than the beginning of a long one when `status` is not of success. `url` is the one
    that answered, after redirects, with its secrets."""

    status: int
    reason: str
    headers: dict[str, str]
    body: bytes
    url: str

    @property
    def succeeded(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300


Sink = Callable[[Answer], Callable[[bytes], None]]
"""Called once, when the headers of a 2xx answer are complete; returns what takes the body's bytes.
Either may raise, which ends the exchange."""


class Target(msgspec.Struct, frozen=True):
    """A URL taken apart: `url` has no user information, and only characters that a URL may."""

    url: str
    origin: str
    host: str
    port: int
    user: str | None = None


def target_of(url: str) -> Target:
    """Raises UnsupportedUrl for what is not a URL of http or https."""
    found = _URL.fullmatch(url)
    authority = _AUTHORITY.fullmatch(found[2]) if found else None
    if not found or not authority:
        raise UnsupportedUrl(f"{redact(url)}: not a URL of http or https")
    scheme, host = found[1].lower(), authority[2].lower()
    if not host.startswith("["):
        require_host_name(authority[2], url)
    port = int(authority[3] or _PORTS[scheme])
    if not 0 < port < 65536:
        raise UnsupportedUrl(f"{redact(url)}: not a port: {port}")
    rest = _escaped(found[3] or "/") + _escaped(found[4] or "")
    user = found[2].rpartition("@")[0] if authority[1] is not None else None
    origin = f"{scheme}://{host}:{port}"
    return Target(f"{origin}{rest}", origin, host.strip("[]"), port, user)


def _escaped(text: str) -> str:
    return quote(text.encode("utf-8", "surrogateescape"), safe=_SAFE)


def service_code(answer: Answer) -> str:
    """The service's own name for what went wrong, empty without one.

    Sources: "Status and error codes" of Azure Storage (x-ms-error-code), "Error responses" of
    Amazon S3 (XML), "HTTP status and error codes for JSON" of Google Cloud Storage.
    """
    code = answer.headers.get("x-ms-error-code", "")
    if not code and (found := _XML_CODE.search(answer.body)):
        code = found[1].decode("utf-8", "replace")
    if not code and answer.body.lstrip()[:1] == b"{":
        code = _json_code(answer.body)
    return code if _CODE.fullmatch(code) else ""


def _json_code(body: bytes) -> str:
    try:
        error = msgspec.json.decode(body).get("error")
    except msgspec.MsgspecError:
        return ""
    if isinstance(error, dict):
        details = error.get("errors")
        if isinstance(details, list) and details and isinstance(details[0], dict):
            error = details[0].get("reason")
        else:
            error = error.get("status") or error.get("code")
    return error if isinstance(error, str) else ""


def status_of(answer: Answer) -> str:
    """`HTTP 404 Not Found BlobNotFound`."""
    return " ".join(f"HTTP {answer.status} {answer.reason} {service_code(answer)}".split())


def require(answer: Answer, what: str, *, hint: Callable[[Answer], str] | None = None) -> None:
    """Raises the error of an answer that is not 2xx: StorageNotFound (404, 410), PermissionDenied
    (401, 403, 407), else StorageError; `what: HTTP 404 Not Found BlobNotFound; hint`."""
    if answer.succeeded:
        return
    more = hint(answer) if hint else ""
    message = f"{what}: {status_of(answer)}{f'; {more}' if more else ''}"
    if answer.status in _MISSING:
        raise StorageNotFound(message)
    if answer.status in _DENIED:
        raise PermissionDenied(message)
    raise StorageError(message)


def content_length(answer: Answer) -> int | None:
    """Bytes of the body as announced."""
    text = answer.headers.get("content-length", "")
    return int(text) if _NUMBER.fullmatch(text) else None


def content_range(answer: Answer) -> tuple[int | None, int | None]:
    """First byte and whole size that a Content-Range tells (RFC 9110, 14.4)."""
    found = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", "").strip())
    if not found:
        return None, None
    start, total = found.groups()
    return (int(start) if start else None), (int(total) if total != "*" else None)


def retry_after(answer: Answer) -> float:
    """Seconds of Retry-After, a number or a date (RFC 9110, 10.2.3); 0 without one."""
    text = answer.headers.get("retry-after", "").strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    moment = date(text)
    return 0.0 if moment is None else max(0.0, moment - time.time())


def date(text: str) -> float | None:
    """Seconds since the epoch of a header's date (RFC 9110, 5.6.7); None if it is none."""
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None


def location(answer: Answer) -> str:
    """Where an answer points to (RFC 9110, 10.2.2), with the bytes that the server sent, which may
    be UTF-8 that it has not escaped; empty without one."""
    sent = answer.headers.get("location", "").encode("latin-1")
    return sent.decode("utf-8", "surrogateescape")

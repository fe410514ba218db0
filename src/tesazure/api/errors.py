"""The one shape of every error reply."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http import HTTPStatus

import msgspec

from tesazure.api.replies import Headers, Reply
from tesazure.errors import (
    BackendUnavailable,
    Conflict,
    FieldError,
    InvalidInput,
    NotAllowed,
    NotFound,
    NotSignedIn,
    SignInUnavailable,
    StoreUnavailable,
    TooLarge,
)

MAX_FIELDS = 100
"""Field errors in one reply; a hostile body could have millions."""
_MAX_TEXT = 1000
RETRY_AFTER_S = 2

_ABSENT = {
    StoreUnavailable: "database",
    BackendUnavailable: "backend",
    SignInUnavailable: "issuer of tokens",
}

_log = logging.getLogger(__name__)
_HEADERS: Headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]


class HttpError(Exception):
    """An error that only HTTP knows: no such route, wrong method, unsatisfiable range."""

    def __init__(
        self, status: int, code: str, message: str, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        self.status = status
        self.code = code
        self.headers = headers
        super().__init__(message)


def body(
    status: int, code: str, message: str, request_id: bytes, fields: Sequence[FieldError] = ()
) -> bytes:
    """The error document. `message` is also on top, where some clients look for it."""
    message = _short(message)
    error: dict[str, object] = {"code": code, "status": status, "message": message}
    if fields:
        error["fields"] = [
            {"field": _short(f.field), "message": _short(f.message)} for f in fields[:MAX_FIELDS]
        ]
    if request_id:
        error["request_id"] = request_id.decode("ascii")
    return msgspec.json.encode({"message": message, "error": error})


def reply_to(error: Exception, request_id: bytes) -> Reply:
    """The reply to an exception. Never says more than the package's own errors say."""
    if isinstance(error, NotSignedIn):
        error = _as_http(error)
    elif isinstance(error, Conflict):
        error = HttpError(409, "conflict", str(error))
    match error:
        case TooLarge():
            made = _reply(413, "too_large", str(error), request_id)
            made.headers.append((b"connection", b"close"))
            made.lingers = True
            return made
        case InvalidInput(errors=fields):
            return _reply(400, "invalid_input", _summary(fields), request_id, fields)
        case NotFound():
            return _reply(404, "not_found", str(error), request_id)
        case HttpError():
            made = _reply(error.status, error.code, str(error), request_id)
            made.headers.extend(error.headers)
            return made
        case StoreUnavailable() | BackendUnavailable() | SignInUnavailable():
            _log.warning("unavailable: %s", error)
            text = f"the {_ABSENT[type(error)]} cannot answer now; try again later"
            made = _reply(503, "unavailable", text, request_id)
            made.headers.append((b"retry-after", b"%d" % RETRY_AFTER_S))
            return made
    _log.error("a request failed", exc_info=error)
    text = "the server failed; its log has the reason under this request id"
    return _reply(500, "internal", text, request_id)


def _as_http(error: NotSignedIn) -> HttpError:
    headers = [(b"www-authenticate", each.encode("ascii")) for each in error.challenges]
    if isinstance(error, NotAllowed):
        return HttpError(403, "forbidden", str(error), headers)
    return HttpError(401, "unauthenticated", str(error), headers)


def raw(
    status: int, code: str, message: str, request_id: bytes, headers: Headers | None = None
) -> bytes:
    """A whole HTTP/1.1 response, for refusals below ASGI; the connection ends after it."""
    content = body(status, code, message, request_id)
    lines = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode())]
    lines += [b"%s: %s" % pair for pair in (*_HEADERS, *(headers or ()))]
    lines += [b"x-request-id: %b" % request_id, b"content-length: %d" % len(content)]
    lines += [b"connection: close", b"", content]
    return b"\r\n".join(lines)


def _reply(
    status: int, code: str, message: str, request_id: bytes, fields: Sequence[FieldError] = ()
) -> Reply:
    return Reply(status, body(status, code, message, request_id, fields), list(_HEADERS))


def _summary(fields: Sequence[FieldError]) -> str:
    shown = "; ".join(str(f) for f in fields[:10])
    return f"{shown}; and {len(fields) - 10} more" if len(fields) > 10 else shown


def _short(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"

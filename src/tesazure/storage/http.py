"""`http://` and `https://`: reading. Resumes, retries what may be retried, checks what it got."""

from __future__ import annotations

import contextlib
import email.utils
import logging
import os
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from tesazure.errors import (
    PermissionDenied,
    StorageError,
    StorageNotFound,
    StorageUnavailable,
    UnsupportedUrl,
)
from tesazure.storage.addresses import check_host
from tesazure.storage.base import Entry, Progress, Stat
from tesazure.storage.digests import Digest, offered_digest
from tesazure.storage.local import opened_directory, os_errors, whole_file, write_all
from tesazure.storage.urls import host_of, redact, scheme_of

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

_RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
_DENIED = frozenset({401, 403, 407})
_MISSING = frozenset({404, 410})
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
_TICK_S = 0.2


class Patience(msgspec.Struct, frozen=True):
    """How long to wait and how often to try. All times in seconds.

    The pause before the n-th retry is random, between half of and all of `pause_s` * 2^(n-1), at
    most `longest_pause_s`; a server's Retry-After counts up to `retry_after_s`. A transfer that
    came `progress_bytes` further has its `attempts` anew.
    """

    attempts: int = 7
    connect_s: float = 15
    read_s: float = 60
    """Without a single byte: the connection has stalled."""
    pause_s: float = 0.5
    longest_pause_s: float = 30
    retry_after_s: float = 120
    progress_bytes: int = 2**20


class HttpStorage:
    """Objects at http and https URLs, read-only. Proxies named in the environment are not used.

    Bytes are taken as the server stores them: no content encoding is asked for or undone.
    Link-local and instance metadata addresses are refused always, private ones unless
    `allow_private`.
    """

    has_directories = False

    def __init__(self, *, allow_private: bool = True, patience: Patience | None = None) -> None:
        self._allow_private = allow_private
        self._patience = patience or Patience()
        self._lock = threading.Lock()
        self._made: httpx.Client | None = None

    def check(self, url: str, *, writing: bool) -> None:
        """Raises UnsupportedUrl for writing, PermissionDenied for a refused IP address."""
        host = host_of(url)
        if writing:
            raise self._read_only(url)
        try:
            check_host(host, allow_private=self._allow_private)
        except PermissionDenied as error:
            raise PermissionDenied(f"{redact(url)}: {error}") from None

    def stat(self, url: str) -> Stat:
        """Asks by HEAD, and by GET of the first byte where HEAD is not served."""

        def by_head() -> Stat | None:
            with self._response("HEAD", url, {}) as response:
                return _stat_of(response) if response.status_code < 300 else None

        def by_get() -> Stat:
            with self._response("GET", url, {"Range": "bytes=0-0"}) as response:
                if response.status_code != 416:  # the range of an empty object
                    _require_success("GET", url, response)
                return _stat_of(response)

        return self._persist("HEAD", url, by_head) or self._persist("GET", url, by_get)

    def list(self, url: str) -> Iterator[Entry]:
        """Raises UnsupportedUrl: HTTP knows no directories."""
        raise UnsupportedUrl(
            f"{redact(url)}: a directory cannot be read by {scheme_of(url)}; name each file as an"
            " input of its own"
        )

    def get(self, url: str, path: Path, progress: Progress | None = None) -> int:
        """A broken transfer goes on where it broke if the server still has the same version."""
        with (
            os_errors(f"{redact(url)} to {path}"),
            opened_directory(path.parent) as directory,
            whole_file(directory, path.name, 0o666) as target,
        ):
            download = _Download(url, target, progress)

            def once() -> int:
                with self._response("GET", url, download.request_headers()) as response:
                    return download.receive(response)

            return self._persist("GET", url, once, progress, lambda: download.furthest)

    def put(self, path: Path, url: str, progress: Progress | None = None) -> int:
        """Raises UnsupportedUrl."""
        raise self._read_only(url)

    def make_directory(self, url: str) -> None:
        """Does nothing: HTTP knows no directories."""

    def close(self) -> None:
        """Close idle connections."""
        with self._lock:
            client, self._made = self._made, None
        if client is not None:
            client.close()

    def _read_only(self, url: str) -> UnsupportedUrl:
        return UnsupportedUrl(
            f"{redact(url)}: nothing can be written to {scheme_of(url)} URLs; outputs go to file://"
            " URLs or paths in an allowed directory"
        )

    def _client(self) -> httpx.Client:
        """One client for all threads, made when first needed: httpx takes 0.1 s to import."""
        with self._lock:
            if self._made is None:
                import httpx

                from tesazure.storage.guard import GuardedTransport

                for name in ("httpx", "httpcore"):
                    # They log whole URLs and headers, with the signatures in them.
                    logging.getLogger(name).setLevel(logging.WARNING)
                p = self._patience
                self._made = httpx.Client(
                    transport=GuardedTransport(allow_private=self._allow_private),
                    timeout=httpx.Timeout(
                        connect=p.connect_s, read=p.read_s, write=p.read_s, pool=None
                    ),
                    headers={"Accept-Encoding": "identity", "User-Agent": "tesazure"},
                    follow_redirects=True,
                    max_redirects=10,
                    trust_env=False,
                )
            return self._made

    @contextlib.contextmanager
    def _response(self, method: str, url: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """The answer to one request. Raises _Again for what may be retried."""
        client = self._client()
        import httpcore
        import httpx

        what = f"{method} {redact(url)}"
        try:
            with client.stream(method, url, headers=headers) as response:
                if response.status_code in _RETRYABLE:
                    raise _Again(_status_of(response), _retry_after(response))
                yield response
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
            source = error.args[0] if error.args else None
            if isinstance(source, ssl.SSLCertVerificationError):
                reason = source.verify_message
                raise StorageError(f"{what}: the certificate is not valid: {reason}") from error
            raise _Again(_in_words(error)) from error
        except httpx.TooManyRedirects:
            raise StorageError(f"{what}: redirected more than 10 times") from None
        except (httpx.InvalidURL, httpx.TransportError, httpcore.UnsupportedProtocol):
            # Their texts may quote a URL with its secrets.
            raise StorageError(
                f"{what}: not a URL of http or https, or redirected to one"
            ) from None
        except PermissionDenied as error:
            raise PermissionDenied(f"{what}: {error}") from None

    def _persist(
        self,
        method: str,
        url: str,
        once: Callable[[], T],
        progress: Progress | None = None,
        furthest: Callable[[], int] = lambda: 0,
    ) -> T:
        """The result of `once`, called again after a pause while it raises _Again."""
        patience = self._patience
        failures, reached = 0, 0
        while True:
            try:
                return once()
            except _Again as again:
                if furthest() - reached >= patience.progress_bytes:
                    failures = 0
                reached = furthest()
                failures += 1
                if failures >= patience.attempts:
                    raise StorageUnavailable(
                        f"{method} {redact(url)}: {again.reason} ({failures} attempts)"
                    ) from again
                pause = min(patience.pause_s * 2 ** (failures - 1), patience.longest_pause_s)
                pause *= random.uniform(0.5, 1)  # noqa: S311 - spreads retries, protects nothing
                pause = max(pause, min(again.retry_after_s, patience.retry_after_s))
            _sleep(pause, progress)


class _Again(Exception):
    """One attempt failed in a way that another may not."""

    def __init__(self, reason: str, retry_after_s: float = 0) -> None:
        self.reason = reason
        self.retry_after_s = retry_after_s
        super().__init__(reason)


class _Download:
    """What is known of an object while it comes in, over as many responses as it takes."""

    def __init__(self, url: str, target: int, progress: Progress | None) -> None:
        self._url = url
        self._target = target
        self._progress = progress
        self._offset = 0
        self._validator = ""
        self._etag: str | None = None
        self._digest: Digest | None = None
        self.furthest = 0

    def request_headers(self) -> dict[str, str]:
        """Asks for the rest if the object can be recognised, else for all of it."""
        if self._offset and self._validator:
            return {"Range": f"bytes={self._offset}-", "If-Range": self._validator}
        self._restart()
        return {}

    def receive(self, response: httpx.Response) -> int:
        """Take in a response; the object's size once it is whole. Raises _Again."""
        total = self._begin(response)
        if response.status_code != 416:
            for chunk in response.iter_raw():
                self._take(chunk)
        if total is not None and self._offset != total:
            got = self._offset
            if got > total:
                self._restart()
            raise _Again(f"{got} bytes came of {total} announced")
        if self._digest and not self._digest.matches():
            reason = f"what came does not have the announced {self._digest.algorithm} checksum"
            self._restart()
            raise _Again(reason)
        return self._offset

    def _take(self, chunk: bytes) -> None:
        write_all(self._target, chunk)
        if self._digest:
            self._digest.update(chunk)
        self._offset += len(chunk)
        self.furthest = max(self.furthest, self._offset)
        if self._progress:
            self._progress(len(chunk))

    def _begin(self, response: httpx.Response) -> int | None:
        """Make ready for a response's body (none with 416); the object's announced size."""
        status = response.status_code
        if status == 206 and self._offset:
            start, total = _content_range(response)
            etag = response.headers.get("ETag")
            if start == self._offset and etag in (None, self._etag):
                return total
            self._restart()
            raise _Again("the object changed, or the server sent another part than asked for")
        if status in (412, 416) and self._offset:
            if status == 416 and _content_range(response) == (None, self._offset):
                return self._offset  # it broke after the last byte
            self._restart()
            raise _Again(_status_of(response))
        _require_success("GET", self._url, response)
        if status != 200:
            raise StorageError(f"GET {redact(self._url)}: unexpected {_status_of(response)}")
        self._restart()
        headers = response.headers
        self._etag = headers.get("ETag")
        # RFC 9110, 13.1.5: a weak ETag must not be used in If-Range.
        strong = self._etag if self._etag and not self._etag.startswith("W/") else None
        self._validator = strong or headers.get("Last-Modified", "")
        self._digest = offered_digest(headers, whole=True)
        return _length(response)

    def _restart(self) -> None:
        if self._offset:
            os.ftruncate(self._target, 0)
            os.lseek(self._target, 0, os.SEEK_SET)
        self._offset = 0
        self._validator = ""
        self._etag = None
        self._digest = None


def _require_success(method: str, url: str, response: httpx.Response) -> None:
    status = response.status_code
    if status < 300:
        return
    what = f"{method} {redact(url)}: {_status_of(response)}"
    if status in _MISSING:
        raise StorageNotFound(what)
    if status in _DENIED:
        raise PermissionDenied(what)
    raise StorageError(what)


def _status_of(response: httpx.Response) -> str:
    code = response.headers.get("x-ms-error-code", "")
    return f"HTTP {response.status_code} {response.reason_phrase} {code}".rstrip()


def _in_words(error: Exception) -> str:
    import httpcore

    if isinstance(error, httpcore.ReadTimeout):
        return "the connection stalled"
    if isinstance(error, httpcore.ConnectTimeout):
        return "no connection within the time limit"
    return str(error) or type(error).__name__


def _stat_of(response: httpx.Response) -> Stat:
    size = _length(response)
    if response.status_code in (206, 416):
        _, size = _content_range(response)
    digest = offered_digest(response.headers, whole=response.status_code == 200)
    return Stat(
        is_directory=False,
        size=size,
        checksum=f"{digest.algorithm}:{digest.expected.hex()}" if digest else None,
        version=response.headers.get("ETag") or response.headers.get("Last-Modified"),
    )


def _length(response: httpx.Response) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() else None


def _content_range(response: httpx.Response) -> tuple[int | None, int | None]:
    """First byte and whole size that a Content-Range tells (RFC 9110, 14.4)."""
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if not found:
        return None, None
    start, total = found.groups()
    return (int(start) if start else None), (int(total) if total != "*" else None)


def _retry_after(response: httpx.Response) -> float:
    """Seconds of Retry-After, a number or a date (RFC 9110, 10.2.3); 0 without one."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0


def _sleep(seconds: float, progress: Progress | None) -> None:
    """Sleep, giving `progress` the chance to stop the transfer."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if progress:
            progress(0)
        time.sleep(min(left, _TICK_S))

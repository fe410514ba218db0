"""HTTP for all storage systems that speak it: guarded, patient, from several threads at once.

What others need of its companions can be imported from here; libcurl is loaded with the first
request.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urljoin

import msgspec

from tesazure.errors import PermissionDenied, StorageError, UnsupportedUrl
from tesazure.storage.base import Progress
from tesazure.storage.guard import Guard
from tesazure.storage.patience import Again, Patience, persist
from tesazure.storage.urls import redact
from tesazure.storage.wire import (
    RETRYABLE,
    Answer,
    FilePart,
    Sink,
    Target,
    location,
    require,
    retry_after,
    service_code,
    status_of,
    target_of,
)
from tesazure.trust import authorities

if TYPE_CHECKING:
    from tesazure.storage.exchange import Line, Manner

__all__ = [
    "Again",
    "Answer",
    "FilePart",
    "Patience",
    "Sink",
    "Transport",
    "require",
    "service_code",
    "status_of",
]

T = TypeVar("T")

MOST_CONNECTIONS = 32
"""Open at once in a process."""

_MOST_REDIRECTS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_FOR_ANYONE = frozenset(
    {"accept", "range", "if-match", "if-none-match", "if-range", "if-unmodified-since"}
)
"""Headers that a server which another one redirects to may see: they hold no secrets."""
_TICK_S = 0.2


class Transport:
    """Requests over http and https, HTTP/1.1, on connections that are kept.

    Proxies named in the environment are not used. Bytes are taken as the server stores them: no
    content encoding is asked for or undone. Link-local and instance metadata addresses are never
    connected to, private ones only with `allow_private` or for a `trusted` host.
    """

    def __init__(
        self,
        *,
        allow_private: bool = True,
        trusted: Collection[str] = (),
        ca_bundle: str = "",
        names: Mapping[str, str] | None = None,
        patience: Patience | None = None,
    ) -> None:
        """`trusted`: `host:port` of configured endpoints. `ca_bundle`: a file of certificates (PEM)
        to trust; empty: the system's. `names`: `host:port` -> IP addresses, separated by commas,
        that are used in place of a name server's."""
        self.patience = patience or Patience()
        self._guard = Guard(allow_private=allow_private, trusted=trusted)
        self._ca_bundle = ca_bundle
        self._names = dict(names or {})
        self._places = threading.Semaphore(MOST_CONNECTIONS)
        self._lock = threading.Lock()
        self._idle: list[Line] = []
        self._lent = 0
        self._closed = 0
        self._manner: Manner | None = None

    def check(self, url: str) -> None:
        """Raises PermissionDenied when the URL's host is a refused IP address, UnsupportedUrl when
        it is none of http or https; asks no network."""
        target = target_of(url)
        try:
            self._guard.check(target.host, target.port)
        except PermissionDenied as error:
            raise PermissionDenied(f"{redact(url)}: {error}") from None

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | FilePart | None = None,
        sink: Sink | None = None,
        progress: Progress | None = None,
    ) -> Answer:
        """The answer to one request; GET and HEAD follow redirects. Never repeats it.

        `progress` gets the bytes of a request's body and those that a sink took. Raises Again for
        what another try may mend (no connection, a stalled or broken one, the statuses RETRYABLE),
        PermissionDenied for a refused address, StorageError for a certificate that nobody vouches
        for, a malformed URL, too many redirects. All other statuses are returned.
        """
        from tesazure.storage.exchange import Request

        what = f"{method} {redact(url)}"
        sent = dict(headers or {})
        target = target_of(url)
        for _ in range(_MOST_REDIRECTS + 1):
            request = Request(method, target, sent, body, what)
            with self._line(target.origin, progress) as line:
                answer = line.exchange(request, self._make_manner(), sink, progress)
            if answer.status in RETRYABLE:
                is_refusal = answer.status in (429, 503)
                raise Again(status_of(answer), retry_after(answer), is_refusal=is_refusal)
            leads_to = location(answer)
            if answer.status not in _REDIRECTS or not leads_to or method not in ("GET", "HEAD"):
                return answer
            target, before = _redirected(target, leads_to, what), target
            if target.origin != before.origin:
                sent = {name: sent[name] for name in sent if name.lower() in _FOR_ANYONE}
        raise StorageError(f"{what}: redirected more than {_MOST_REDIRECTS} times")

    def persist(
        self,
        what: str,
        once: Callable[[], T],
        progress: Progress | None = None,
        furthest: Callable[[], int] = lambda: 0,
    ) -> T:
        """The result of `once`, called again after a pause while it raises Again.

        `furthest`: bytes that the transfer has come; progress renews the attempts. Raises
        StorageUnavailable, which begins with `what`, when they are spent.
        """
        return persist(self.patience, what, once, progress, furthest)

    def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | Callable[[], Mapping[str, str]] | None = None,
        body: bytes | FilePart | None = None,
        progress: Progress | None = None,
    ) -> Answer:
        """The answer, after as many tries as patience has. `headers` may be a function, which is
        called for each try: signatures hold the time. Raises as `send` and `persist` do."""

        def once() -> Answer:
            made = headers() if callable(headers) else headers
            return self.send(method, url, headers=made, body=body, progress=progress)

        return self.persist(f"{method} {redact(url)}", once, progress)

    def close(self) -> None:
        """Close connections: idle ones now, others when their requests end. May be called twice;
        a closed transport may be used again."""
        with self._lock:
            self._closed += 1
            idle, self._idle = self._idle, []
        for line in idle:
            line.close()

    @contextlib.contextmanager
    def _line(self, origin: str, progress: Progress | None) -> Iterator[Line]:
        """A line of one's own, if possible one that is connected to the origin already."""
        while not self._places.acquire(timeout=_TICK_S):
            if progress:
                progress(0)
        try:
            line, closed = self._borrow(origin)
            is_good = False
            try:
                yield line
                is_good = True
            finally:
                with self._lock:
                    self._lent -= 1
                    is_good = is_good and closed == self._closed
                    if is_good:
                        self._idle.append(line)
                if not is_good:
                    line.close()
        finally:
            self._places.release()

    def _borrow(self, origin: str) -> tuple[Line, int]:
        """A line, and how often this transport had been closed by then."""
        from tesazure.storage.exchange import Line

        with self._lock:
            closed = self._closed
            self._lent += 1
            for position in range(len(self._idle) - 1, -1, -1):
                if self._idle[position].origin == origin:
                    return self._idle.pop(position), closed
            if self._idle and self._lent + len(self._idle) > MOST_CONNECTIONS:
                return self._idle.pop(0), closed
        return Line(), closed

    def _make_manner(self) -> Manner:
        with self._lock:
            if self._manner is None:
                from tesazure.storage.exchange import Manner

                trusted = authorities(self._ca_bundle)
                is_directory = Path(trusted).is_dir()
                self._manner = Manner(
                    guard=self._guard,
                    connect_s=self.patience.connect_s,
                    read_s=self.patience.read_s,
                    ca_file="" if is_directory else trusted,
                    ca_directory=trusted if is_directory else "",
                    names=self._names,
                )
            return self._manner


def _redirected(target: Target, leads_to: str, what: str) -> Target:
    try:
        found = target_of(urljoin(target.url, leads_to))
    except (UnsupportedUrl, ValueError):
        # Their texts would show where it leads, which is not what the user named.
        raise StorageError(
            f"{what}: not a URL of http or https, or redirected to one that is not"
        ) from None
    if found.user is None and found.origin == target.origin:
        return msgspec.structs.replace(found, user=target.user)
    return found

"""Connections of systems that do not speak HTTP: made to no refused address, waited for with
patience, kept for the next file."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from tesazure.errors import PermissionDenied
from tesazure.storage.addresses import refusal
from tesazure.storage.base import Progress
from tesazure.storage.patience import Again

T = TypeVar("T")
Key = TypeVar("Key", bound=Hashable)

TICK_S = 0.2
"""The timeout of sockets used with `patiently`: how soon a Progress can end a wait."""

_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 20),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6),
)
"""FTP's control connection is silent while a file goes by another one: firewalls and load balancers
(Azure's after 4 minutes) forget what is silent for long. Times in seconds."""

_KEPT_S = 15
_KEPT_MOST = 16

Resolve = Callable[[str, int], list[str]]
"""The IP addresses of a host, for a port. Raises Again."""


def resolve(host: str, port: int) -> list[str]:
    """What the machine's resolver says."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Again(f"cannot resolve {host}: {error}") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def connect(
    host: str,
    port: int,
    *,
    allow_private: bool,
    timeout_s: float,
    resolve: Resolve = resolve,
) -> socket.socket:
    """A TCP connection to the first address of `host` that answers, with a timeout of TICK_S.

    The name is resolved once, all its addresses are looked at, and the connection goes to one that
    was looked at. Raises PermissionDenied when any of them is refused, Again when none answers
    within `timeout_s`.
    """
    addresses = resolve(host, port)
    for address in addresses:
        reason = refusal(address, allow_private=allow_private)
        if reason:
            raise PermissionDenied(reason if address == host else f"{host}: {reason}")
    failure: Exception | None = None
    for address in addresses:
        try:
            connected = socket.create_connection((address, port), timeout_s)
        except OSError as error:
            failure = error
            continue
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in _KEEPALIVE:
            connected.setsockopt(*option)
        connected.settimeout(TICK_S)
        return connected
    raise Again(_in_words(failure) if failure else f"{host} has no address") from failure


def patiently(step: Callable[[], T], stall_s: float, progress: Progress | None) -> T:
    """What `step` returns, begun anew whenever it raises TimeoutError, while `progress` does not
    end it. Raises Again after `stall_s` seconds, and for any other OSError of the connection."""
    deadline = time.monotonic() + stall_s
    while True:
        try:
            return step()
        except TimeoutError:
            if time.monotonic() >= deadline:
                raise Again("the connection stalled") from None
        except (OSError, EOFError) as error:
            raise Again(_in_words(error)) from error
        if progress:
            progress(0)


def _in_words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no connection within the time limit"
    text = error.strerror if isinstance(error, OSError) else None
    return text or str(error) or "the connection was closed"


def is_silent(connected: socket.socket) -> bool:
    """Whether a connection has nothing to say: not even that the other side has closed it."""
    try:
        return not select.select([connected], [], [], 0)[0]
    except (OSError, ValueError):
        return False


class Session(Protocol):
    """A connection that has been logged in."""

    def is_alive(self) -> bool:
        """Whether it can be used, as far as is known without asking the server."""
        ...

    def close(self) -> None:
        """Close the connection without waiting for the server; never raises."""
        ...


S = TypeVar("S", bound=Session)


class Idle(Generic[Key, S]):
    """Sessions that are kept a while for whoever needs the same next."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[tuple[float, Key, S]] = []

    def take(self, key: Key) -> S | None:
        """A live session for `key`, the one used last; it is the caller's now."""
        with self._lock:
            self._expire()
            for position in range(len(self._kept) - 1, -1, -1):
                if self._kept[position][1] == key:
                    session = self._kept.pop(position)[2]
                    if session.is_alive():
                        return session
                    session.close()
        return None

    def keep(self, key: Key, session: S) -> None:
        """Take a session that is in order, and close those that nobody has wanted for long."""
        with self._lock:
            self._kept.append((time.monotonic() + _KEPT_S, key, session))
            self._expire()

    def close(self) -> None:
        """Close all that are kept."""
        with self._lock:
            kept, self._kept = self._kept, []
        for _, _, session in kept:
            session.close()

    def _expire(self) -> None:
        now = time.monotonic()
        while self._kept and (self._kept[0][0] < now or len(self._kept) > _KEPT_MOST):
            self._kept.pop(0)[2].close()

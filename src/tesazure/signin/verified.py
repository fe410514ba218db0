"""Bearer tokens that were found good a moment ago: a client sends the same one again and again, and
checking one costs more than accepting a task."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

from tesazure.callers import Caller

LONGEST_S = 60.0
"""A token whose key was withdrawn is taken for so long at most."""
_MOST = 10_000


class Verified:
    """Callers by their Authorization headers, of which only the digests are kept. Bounded: the
    oldest entry gives way."""

    def __init__(self, most: int = _MOST, clock: Callable[[], float] = time.time) -> None:
        self._most = most
        self._clock = clock
        self._callers: dict[bytes, tuple[Caller, float]] = {}

    def get(self, header: bytes) -> Caller | None:
        """Whose header this is, if that is still certain."""
        name = _digest(header)
        found = self._callers.get(name)
        if found is None:
            return None
        caller, until = found
        if self._clock() < until:
            return caller
        del self._callers[name]
        return None

    def keep(self, header: bytes, caller: Caller, expires: float) -> None:
        """Note whose header this is; its token expires then, in seconds since the epoch."""
        while len(self._callers) >= self._most:
            del self._callers[next(iter(self._callers))]
        self._callers[_digest(header)] = caller, min(expires, self._clock() + LONGEST_S)

    def __len__(self) -> int:
        return len(self._callers)


def _digest(header: bytes) -> bytes:
    return hashlib.sha256(header).digest()

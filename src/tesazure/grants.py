"""What the server does with its own credentials for storage before an attempt starts: it makes the
attempt's secrets, and looks into directories.

Both in threads, each of a kind: a service that does not answer one holds up none of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from tesazure.access import Access
from tesazure.daemon_threads import DaemonThreads
from tesazure.errors import StorageNotFound, StorageUnavailable
from tesazure.plan import Plan
from tesazure.storage.grant import Granter
from tesazure.storage.patience import Patience
from tesazure.storage.registry import Storages

T = TypeVar("T")

LISTING = Patience(attempts=2, read_s=10)
"""For storages that are looked into while a task waits to be placed, which is then tried again."""
_GRANT_THREADS = 4
_GRANT_S = 90.0
"""Seconds in which Azure or Google must have given what an attempt needs."""
_LISTING_THREADS = 2
_LISTING_S = 60.0
"""Seconds in which a directory must have been listed."""
_SIGNED_S = 3600.0
"""Seconds that a signature is good for with which the server itself looks into a directory."""
_ENTRIES = 10
"""Entries that are looked at for each name that is wanted: the others are directories."""


class Threads:
    """In which Grants work: they outlive these, and stay as few."""

    def __init__(self) -> None:
        self.grants = DaemonThreads("grant", _GRANT_THREADS, _GRANT_S)
        self.listings = DaemonThreads("listing", _LISTING_THREADS, _LISTING_S)


class Grants:
    """Makes the secrets of attempts, off the event loop where a service may have to be asked; and
    looks into directories in `storages`, which should be of LISTING's patience."""

    def __init__(self, granter: Granter, storages: Storages, threads: Threads) -> None:
        self.granter = granter
        """Of the attempts from now on."""
        self._storages = storages
        self._threads = threads

    async def grant(self, plan: Plan, whole: Mapping[str, str]) -> Access:
        """See scheduler.granting.Grant."""
        granter = self.granter
        if granter.is_quick(plan):
            return granter.access(plan, whole)
        return await _patiently(self._threads.grants, lambda: granter.access(plan, whole))

    async def names(self, url: str, most: int) -> Sequence[str]:
        """See scheduler.adapting.Names."""
        granter = self.granter

        def look() -> Sequence[str]:
            signed = granter.resolve(url, writing=False, directory=True, lifetime_s=_SIGNED_S)
            entries = islice(self._storages.for_url(signed).list(signed), _ENTRIES * most)
            try:
                return list(islice((e.path for e in entries if not e.is_directory), most))
            except StorageNotFound:
                return ()

        return await _patiently(self._threads.listings, look)


async def _patiently(threads: DaemonThreads, work: Callable[[], T]) -> T:
    try:
        return await threads.run(work)
    except TimeoutError:
        text = "storage, or whoever issues credentials for it, does not answer"
        raise StorageUnavailable(text) from None

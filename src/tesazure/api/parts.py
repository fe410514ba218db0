"""What the handlers stand on. `compose` fills it in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tesazure.api.audit import Audit
from tesazure.backends.base import Backend
from tesazure.budgets import Budgets
from tesazure.plan import Defaults
from tesazure.sealing import Seal
from tesazure.settings import Settings
from tesazure.signin.gate import Gate
from tesazure.store.base import Store
from tesazure.submitters.cromwell_paths import PathMapping


class UrlCheck(Protocol):
    """Says at submission whether a URL can be used at all. Does no network I/O, but the two checks
    ask the file system, which may hang: not to be called in the event loop then."""

    def check_input(self, url: str) -> None:
        """Raises StorageError with the reason when no task may read from `url`."""
        ...

    def check_output(self, url: str) -> None:
        """Raises StorageError with the reason when no task may write to `url`."""
        ...

    def refused_mounts(self, wanted: Iterable[tuple[int, str, str]]) -> Mapping[int, Exception]:
        """Of inputs of type DIRECTORY (index, URL, container path): which are to be mounted and
        cannot be, with the reason."""
        ...

    def checks_at_once(self, urls: Iterable[str]) -> bool:
        """Whether the two checks of `urls` can be called in the event loop now: no file system that
        may hang is asked."""
        ...

    def schemes(self) -> Sequence[str]:
        """URLs for service-info: where files may lie."""
        ...


class Pulse(Protocol):
    """The scheduler, as far as the API knows it."""

    lag_s: float
    """Seconds from the first signal that the last tick served to its end."""
    last_tick: float
    """When the last tick ended well, on the monotonic clock; ticks come at least once a second."""
    last_error: str
    """What the last tick failed with; empty if it ended well."""
    placed: int
    finished: int
    retries: int

    def wake(self) -> None:
        """Something changed: look at the queue now."""
        ...

    def waiting_for(self, task_id: str) -> str | None:
        """Why a queued task waits, in words; None if nothing is known."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything a handler may use. `pulse` is None where this process only answers HTTP."""

    settings: Settings
    store: Store
    backend: Backend
    gate: Gate
    """Who may call."""
    audit: Audit
    urls: UrlCheck
    cromwell: PathMapping
    """What URLs the paths of Cromwell's tasks mean."""
    seal: Seal
    """Seals what is secret in the URLs of a task that is to be stored."""
    pulse: Pulse | None
    budgets: Budgets
    identity: str
    """A random word that the database keeps: page tokens are good for this installation alone."""
    created: float
    """When this installation was made, in seconds since the epoch."""
    started: float
    """When this server started."""
    closing: asyncio.Event
    """Set when the server stops: streams end."""
    clock: Callable[[], float]
    """Seconds since the epoch."""

    @property
    def defaults(self) -> Defaults:
        """What a task gets that does not say."""
        s = self.settings
        return Defaults(s.default_cpu_cores, s.default_ram_gb, s.default_disk_gb, s.max_runtime_s)

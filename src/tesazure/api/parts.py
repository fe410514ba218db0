"""What the handlers stand on. `compose` fills it in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

from tesazure.api.audit import Audit
from tesazure.backends.base import Backend
from tesazure.budgets import Budgets
from tesazure.model import State
from tesazure.plan import Defaults
from tesazure.provisioning import DryRun, Request, ServicePrincipal, StoredRun
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


class Station(Protocol):
    """Where attempts are placed, and what submissions are checked against there."""

    @property
    def backend(self) -> Backend:
        """Started."""
        ...

    @property
    def urls(self) -> UrlCheck:
        """Of its nodes."""
        ...

    @property
    def cromwell(self) -> PathMapping:
        """What URLs the paths of Cromwell's tasks mean."""
        ...


class Stations(Protocol):
    """The backends of a running server, whose settings may change."""

    @property
    def current(self) -> Station:
        """That of the attempts from now on."""
        ...

    @property
    def engines(self) -> Set[str]:
        """What runs containers: of the current one, and of those whose attempts are not over."""
        ...

    def backend_of(self, scope: str | None) -> Backend:
        """The one that reaches the attempts of a scope. Raises NotFound with the reason."""
        ...


class Pulse(Protocol):
    """The scheduler, as far as the API knows it."""

    @property
    def lag_s(self) -> float:
        """Seconds from the first signal that the last tick served to its end."""
        ...

    @property
    def last_tick(self) -> float:
        """When the last tick ended well, on the monotonic clock; ticks come at least once a
        second."""
        ...

    @property
    def last_error(self) -> str:
        """What the last tick failed with; empty if it ended well."""
        ...

    @property
    def placed(self) -> int:
        """Attempts, since the server started; so with the next two."""
        ...

    @property
    def retries(self) -> int:
        """Attempts that were followed by others."""
        ...

    @property
    def ends(self) -> Mapping[tuple[State, str], int]:
        """How many tasks have ended here, by state and by why they failed; empty: they did not."""
        ...

    def wake(self) -> None:
        """Something changed: look at the queue now."""
        ...

    def waiting_for(self, task_id: str) -> str | None:
        """Why a queued task waits, in words; None if nothing is known."""
        ...


class Provisioner(Protocol):
    """What makes a backend in Azure; see provision.conductor for what each raises."""

    async def dry_run(self, request: Request) -> DryRun:
        """What a run would find and make."""
        ...

    async def begin(self, request: Request) -> StoredRun:
        """Begin a run; continue or join the one of the same request."""
        ...

    async def remove(self, run_id: str, principal: ServicePrincipal | None) -> StoredRun | None:
        """Begin to remove what a run made; None: there is no such run."""
        ...

    async def run(self, run_id: str) -> StoredRun | None:
        """How far it is."""
        ...

    async def runs(self) -> list[StoredRun]:
        """All, the newest first."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything a handler may use. `pulse` is None where this process only answers HTTP."""

    settings: Settings
    store: Store
    stations: Stations
    gate: Gate
    """Who may call."""
    audit: Audit
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
    provisioner: Provisioner | None = None
    """None: there is nothing below /provision."""

    @property
    def defaults(self) -> Defaults:
        """What a task gets that does not say."""
        s = self.settings
        return Defaults(s.default_cpu_cores, s.default_ram_gb, s.default_disk_gb, s.max_runtime_s)

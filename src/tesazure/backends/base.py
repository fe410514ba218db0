"""The Backend Protocol: where attempts are placed and watched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from tesazure.access import Access
from tesazure.lifecycle import Handle, Observation
from tesazure.plan import Plan

Stream = Literal["stdout", "stderr"]


class Capacity(msgspec.Struct, frozen=True):
    """What a backend can run at once: cores, and bytes of memory and disk."""

    cpu_cores: float
    ram_bytes: int
    disk_bytes: int


class Capabilities(msgspec.Struct, frozen=True):
    """What a backend is. Constant while the server runs."""

    name: str
    """`local`, `batch`, …"""
    scope: str
    """Which attempts this server can reach: the node's name for local, the account for Batch.
    A server takes over only attempts of its own scope."""
    capacity: Capacity | None
    """What tasks may ever use together, which the scheduler accounts for: one that needs more can
    never run. See `Backend.room`. None when the backend queues by itself."""
    backend_parameters: tuple[str, ...]
    """Supported keys of tesResources.backend_parameters, in the spelling to show."""
    engine: str
    """For service-info and logs: docker, podman, sandbox, batch."""
    warnings: tuple[str, ...] = ()
    """Said at start and in service-info."""


class LogChunk(msgspec.Struct, frozen=True):
    """Bytes of a stream from `offset`; `size` is the stream's length now; `ended`: no more come."""

    data: bytes
    offset: int
    size: int
    ended: bool


class Check(msgspec.Struct, frozen=True):
    """One verdict of `check`: what was looked at, whether it is well, and the remedy if not."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


class Gauge(msgspec.Struct, frozen=True):
    """One value for /metrics; its name says the unit."""

    name: str
    help: str
    value: float
    labels: dict[str, str] = {}


class Backend(Protocol):
    """Places attempts and watches them.

    Every method may raise BackendUnavailable: a transient failure that changes no task. All of them
    may be called again after any failure, by this server or by another one of the same scope.
    """

    @property
    def capabilities(self) -> Capabilities:
        """Known once `start` has returned."""
        ...

    async def start(self) -> None:
        """Make ready; raises ConfigurationError when the backend can never work as configured."""
        ...

    async def stop(self) -> None:
        """Let go of local resources. Attempts keep running. May be called twice."""
        ...

    async def check(self) -> Sequence[Check]:
        """Readiness now, for /readyz and `tesazure doctor`. Never raises, never changes a task."""
        ...

    def gauges(self) -> Sequence[Gauge]:
        """What operators watch, as last seen, also before `start` and after `stop`; all of a name
        have the same labels. Does no I/O."""
        ...

    def admit(self, plan: Plan) -> None:
        """Raises Unplaceable when this plan can never run here. Does no I/O."""
        ...

    async def room(self, closely: bool = False) -> Capacity | None:
        """What the reservations of live attempts may add up to at this moment: `capacity`, or less
        while something else is in the way, such as other people's files. `closely`: look as closely
        as it takes not to call room short that live attempts have taken of their own reservation.
        None when the backend queues by itself."""
        ...

    async def submit(self, plan: Plan, key: str, access: Access) -> Handle:
        """Start the attempt `key`. Idempotent on `key`: a second call starts nothing and returns
        a handle to what the first one started. `access` is for the attempt alone: it is neither
        kept nor logged, and not part of the handle. Raises Unplaceable, BackendUnavailable."""
        ...

    async def find(self, key: str) -> Handle | None:
        """The handle of what an interrupted `submit` left behind under `key`, if anything."""
        ...

    async def observe(self, handles: Mapping[str, Handle]) -> Mapping[str, Observation]:
        """How the attempts (by key) stand. One that was not looked at yet, or cannot be, is
        left out, and of the latter the log says why: it must not hide the others. The returned
        Reports are the callers' to read, not to change; a later call may return the same
        objects."""
        ...

    async def changed(self, timeout_s: float) -> bool:
        """Waits until an attempt may have changed, at most `timeout_s`; True if one may have."""
        ...

    async def cancel(self, handle: Handle) -> None:
        """Ask the attempt to stop. A request: `observe` tells when it has. Idempotent."""
        ...

    async def release(self, handle: Handle) -> None:
        """Ends whatever still runs and deletes the backend's native objects (processes,
        containers, jobs); keeps streams and work files for `discard`. When it returns, nothing of
        the attempt runs any more. Idempotent; succeeds if all is gone."""
        ...

    async def discard(self, handle: Handle) -> None:
        """Delete the work files of a released attempt, and its streams when `release`d long ago.
        Idempotent; succeeds if all is gone."""
        ...

    async def held(self, begun_before: float) -> Mapping[str, Handle]:
        """Key and handle of every attempt that this server's backend holds anything of and that
        began before then, in seconds since the epoch. For finding what no task knows any more."""
        ...

    async def read_stream(
        self, handle: Handle, executor: int, stream: Stream, offset: int, limit: int
    ) -> LogChunk:
        """At most `limit` bytes of an executor's stream from `offset` (negative: from its end).
        Works while the attempt runs and until `discard`. Raises NotFound when there is none."""
        ...

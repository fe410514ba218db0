"""What the Conductor needs of a cloud, and of the server whose settings follow.

Everything of a Ground and its Steps blocks, as Microsoft's SDKs do, and is called in threads, one
at a time for a run. Everything that they raise or say is without secrets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from tesazure.errors import FieldError
from tesazure.provisioning import IdleCost, Request

Tell = Callable[[str], None]
"""Says in a few words what is being waited for; may be called from any thread."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What there is where a step is to make something.

    `missing`: nothing. `ours`: what carries the tags of this run, whole or half made. `right`:
    as it should be, and somebody else's, or of a kind that carries no tags. `foreign`: there, and
    not to be used or changed; `problem` says why, with the field of the request that avoids it.
    """

    state: Literal["missing", "ours", "foreign", "right"]
    resource_id: str = ""
    detail: str = ""
    problem: FieldError | None = None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a step did. `made`: it was not there before this run, so its removal removes it."""

    resource_id: str = ""
    made: bool = False
    detail: str = ""


class Step(Protocol):
    """One thing that is to be there. All methods raise ProvisionFailed."""

    @property
    def name(self) -> str:
        """Unique among the steps and kept forever: records refer to it."""
        ...

    @property
    def title(self) -> str:
        """For people, such as "Storage account tesazure1a2b3c4d5e6f"."""
        ...

    def look(self) -> Found:
        """What is there now. Changes nothing."""
        ...

    def make(self, tell: Tell, is_ours: bool) -> Outcome:
        """Make it, wait for it, or complete what is half made; changes nothing that is right.
        Idempotent: a server killed in the middle calls it again. Called when `look` has just said
        `missing` or `ours`. `is_ours`: it said `ours`, or this run's record has it that this run
        made it."""
        ...

    def remove(self) -> str:
        """Delete what `make` made, and only that: by its tags where it can carry some. Idempotent:
        succeeds if it is gone. Returns "" once it is gone; what stays and why, where others have
        put something into it. Called when `look` says `ours`, or the record that this run made it;
        in the reverse order of the steps."""
        ...


class Ground(Protocol):
    """An Azure subscription, as one request sees it."""

    def problems(self) -> list[FieldError]:
        """Everything in the way that can be known before anything is made: no such location, names
        taken, a SKU not offered there, no quota, no rights, no identity. Empty: none. Raises
        ProvisionFailed if Azure cannot be asked."""
        ...

    def idle_cost(self) -> Sequence[IdleCost]:
        """What the resources of the request cost while no task runs."""
        ...

    def steps(self) -> Sequence[Step]:
        """What to make, in order. The same for the same request."""
        ...

    def values(self) -> Mapping[str, str]:
        """The settings with which a server uses what the steps made, by lower-case name. Called
        once all steps are done. Holds keys only where no identity is used; empty ones where there
        must be none. Raises ProvisionFailed."""
        ...

    def close(self) -> None:
        """Give up its connections. A call that nobody waits for any more, as when the server stops,
        may still run, and fail by this."""
        ...


GroundOf = Callable[[Request, str], Ground]
"""The ground for a request with all its names and its principal's secret, and for a run's GUID.
Asks nobody yet. Called in a thread."""


class Settling(Protocol):
    """This server and the others of the installation, whose settings follow. All methods raise
    ProvisionFailed and may be called again."""

    async def problems(self, request: Request) -> list[FieldError]:
        """What is in the way on this server, and can be known before anything is made: settings
        that are missing, or that other sources hold to what they are. Empty: nothing."""
        ...

    async def test(self, values: Mapping[str, str], tell: Tell) -> str:
        """Run a real task with the settings that are to be, and say what ran. No server uses them
        yet."""
        ...

    async def publish(self, values: Mapping[str, str], request: Request) -> str:
        """Keep the settings where all servers find them, have this one take them up, and say what
        is in effect."""
        ...

    async def withdraw(self, request: Request) -> str:
        """Take back what `publish` has kept, before the resources are removed, and say what is in
        effect then. Raises ProvisionFailed while tasks run there. Succeeds if nothing is kept."""
        ...

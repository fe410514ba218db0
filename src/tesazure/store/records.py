"""What the store takes and gives: plain values, no SQL."""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from tesazure.callers import EVERYTHING, Visibility
from tesazure.lifecycle import Handle
from tesazure.model import State

T = TypeVar("T")


class Reservation(msgspec.Struct, frozen=True):
    """What a task occupies while an attempt of it lives: cores, and bytes."""

    cpu_cores: float
    ram_bytes: int
    disk_bytes: int


class WorkflowName(msgspec.Struct, frozen=True):
    """The workflow that a task says it is part of."""

    id: str
    name: str
    """Empty if unknown; so is `submitter`."""
    submitter: str
    """The engine."""


class NewTask(msgspec.Struct, frozen=True):
    """One task to be made durable. `document` is the encoded `model.Task`."""

    id: str
    document: bytes
    name: str
    owner: str | None
    tags: dict[str, str | None]
    reservation: Reservation
    max_runtime_s: float
    notes: list[str]
    """Warnings for system_logs."""
    created: float
    """Seconds since the epoch."""
    sealed: bytes | None = None
    """The secrets of its URLs, kept until it has ended, as `sealing` made them."""
    tenant: str | None = None
    """The owner's."""
    workflow: WorkflowName | None = None


class AttemptRecord(msgspec.Struct, frozen=True):
    """One attempt. `log` is the encoded `model.TaskLog`. Times in seconds since the epoch."""

    number: int
    key: str
    handle: Handle | None
    released: bool
    discarded: bool
    log: bytes
    seen_events: int
    started: float
    scope: str | None = None
    """Where it was placed; None: it was never to run anywhere."""


class TaskRecord(msgspec.Struct, frozen=True):
    """One task with all that is kept of it. `version` grows with every write."""

    seq: int
    id: str
    state: State
    version: int
    owner: str | None
    tenant: str | None
    created: float
    max_runtime_s: float
    document: bytes
    notes: list[str]
    attempts: list[AttemptRecord]


class _Tagged(msgspec.Struct):
    tags: dict[str, str | None] | None = None


_tagged = msgspec.json.Decoder(_Tagged).decode


def tags_of(document: bytes) -> dict[str, str | None]:
    """The tags in an encoded `model.Task`; the rest of it is passed over."""
    return _tagged(document).tags or {}


class TaskBrief(msgspec.Struct, frozen=True):
    """What a MINIMAL list needs."""

    seq: int
    id: str
    state: State


class ListQuery(msgspec.Struct, frozen=True):
    """Filters of a list, all ANDed. Newest first; `before` is the last seq of the page before."""

    limit: int
    before: int | None = None
    states: tuple[State, ...] = ()
    """Empty: any."""
    name_prefix: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    """(key, value); an empty value matches any value of an existing key."""
    visibility: Visibility = EVERYTHING


class Page(msgspec.Struct, Generic[T], frozen=True):
    """Part of a list. `next_before` is None on the last page."""

    items: list[T]
    next_before: int | None


class Workflow(msgspec.Struct, frozen=True):
    """The tasks of one workflow that a caller sees, together. Times in seconds since the epoch."""

    id: str
    name: str
    submitter: str
    states: dict[State, int]
    """How many tasks are in each state that there are any in."""
    first_activity: float
    """When the first task was created."""
    last_activity: float
    """When a task was created, or changed its state, most lately."""
    cost_usd: str | None
    """What all its attempts are estimated to cost, as a decimal number; None if that is known of
    none. Tasks whose records are gone have cost what they cost."""


class Costs(msgspec.Struct, frozen=True):
    """What the tasks in a part of a list are estimated to cost together."""

    tasks: int
    cost: int | None
    """In billionths of a US dollar; None if it is known of none."""
    next_before: int | None
    """None: this was the last part."""


class StateEvent(msgspec.Struct, frozen=True):
    """One state change. `number` grows in the order in which changes became visible."""

    number: int
    task_id: str
    state: State
    time: float
    owner: str | None
    tenant: str | None


class Queued(msgspec.Struct, frozen=True):
    """A task that waits for placement."""

    seq: int
    id: str
    version: int
    created: float
    reservation: Reservation


class Watched(msgspec.Struct, frozen=True):
    """A task that this server looks after, with its newest attempt (None: it has none)."""

    seq: int
    id: str
    state: State
    version: int
    max_runtime_s: float
    attempt: AttemptRecord | None


class Change(msgspec.Struct, frozen=True):
    """One compare-and-set write on a task and its newest attempt. None: unchanged."""

    task_id: str
    version: int
    """The version read; another one in the store refuses the change."""
    state: State | None = None
    via: State | None = None
    """A state that the task passes on its way to `state`, with an event of its own."""
    log: bytes | None = None
    seen_events: int | None = None
    handle: Handle | None = None
    released: bool | None = None
    document: bytes | None = None
    retry_at: float | None = None
    """With state QUEUED: not to be placed again before this time."""


class ApiToken(msgspec.Struct, frozen=True):
    """One token of a user. Times in seconds since the epoch."""

    id: str
    user: str
    hash: bytes
    """SHA-256 of the whole token: of its 256 random bits no dictionary has a part, so a slow hash
    would protect nothing."""
    roles: tuple[str, ...]
    created: float
    expires: float | None
    """None: never."""
    last_used: float | None = None
    """The beginning of the day (UTC) on which it was last used; None: never."""

    def __repr__(self) -> str:
        return f"ApiToken({self.id} of {self.user})"


class KeptSetting(msgspec.Struct, frozen=True):
    """A setting of all servers on the database: its value, or that sealed; neither to forget it."""

    name: str
    value: str | None = None
    sealed: bytes | None = None

    def __repr__(self) -> str:
        return f"KeptSetting({self.name})"

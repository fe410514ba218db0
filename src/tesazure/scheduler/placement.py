"""Which queued tasks to place now: pure.

What needs more than there can ever be is refused, the rest waits for room. Oldest first. While the
oldest task that does not fit has to wait, younger ones that fit may pass it; after `backfill_s`
seconds only those that cannot delay it. So the machine stays busy, and a large task waits for what
ran before it, never for an endless stream of small ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tesazure.backends.base import Capacity
from tesazure.store.records import Queued, Reservation

GB = 10**9
_ROUNDING = 1e-10
"""Sums of fractions of cores such as 0.1 miss the whole number by less; a byte is 1e-9 GB."""


class Blocked(msgspec.Struct, frozen=True):
    """The oldest task that did not fit, since when (seconds since the epoch), and what the tasks
    that passed it after its patience had run out reserve together."""

    task_id: str
    since: float
    passed: Reservation = Reservation(0.0, 0, 0)


class Choice(msgspec.Struct, frozen=True):
    """What to do with the queue."""

    place: list[str]
    """Ids of the tasks to place now."""
    reject: list[tuple[Queued, str]]
    """Tasks that can never run here, with the reason in words."""
    blocked: Blocked | None
    """To be given to the next call."""
    used: Reservation
    """What is reserved once the chosen tasks are placed."""


def choose(
    queue: Sequence[Queued],
    used: Reservation,
    capacity: Capacity | None,
    now: float,
    backfill_s: float,
    blocked: Blocked | None = None,
    room: Capacity | None = None,
) -> Choice:
    """Choose from `queue` (oldest first) what fits beside `used`; all of it without a capacity.

    `capacity` is what there can ever be, `room` what there is now (None: the same). `now` in
    seconds since the epoch; `blocked` is what the previous call returned.
    """
    if capacity is None:
        return Choice([task.id for task in queue], [], None, used)
    room = room or capacity
    place: list[str] = []
    reject: list[tuple[Queued, str]] = []
    head: Queued | None = None
    passed = Reservation(0.0, 0, 0)
    patient = True
    for task in queue:
        need = task.reservation
        if not fits(need, capacity):
            reject.append((task, too_large(need, capacity)))
            continue
        total = plus(used, need)
        if not fits(total, room):
            # What does not even fit an empty machine now waits for something else than the end of
            # tasks: it holds up no others.
            if head is None and fits(need, room):
                head = task
                if blocked is None or blocked.task_id != task.id:
                    blocked = Blocked(task.id, now)
                passed = blocked.passed
                patient = now < blocked.since + backfill_s
            continue
        if head is not None and not patient:
            # Even if none of those that passed ever ends, the head still fits beside them.
            beside = plus(passed, need)
            if not fits(plus(beside, head.reservation), room):
                continue
            passed = beside
        place.append(task.id)
        used = total
    if head is None or blocked is None:
        return Choice(place, reject, None, used)
    return Choice(place, reject, Blocked(head.id, blocked.since, passed), used)


def plus(a: Reservation, b: Reservation) -> Reservation:
    """Both together."""
    return Reservation(
        a.cpu_cores + b.cpu_cores, a.ram_bytes + b.ram_bytes, a.disk_bytes + b.disk_bytes
    )


def fits(need: Reservation, capacity: Capacity) -> bool:
    """Whether `need` fits an empty machine."""
    return (
        need.cpu_cores <= capacity.cpu_cores + _ROUNDING
        and need.ram_bytes <= capacity.ram_bytes
        and need.disk_bytes <= capacity.disk_bytes
    )


def too_large(need: Reservation, capacity: Capacity) -> str:
    """Why a task can never run here: 'needs 64 cores, this machine has 2'."""
    lacks = [
        f"needs {_shown(n, c)} {unit}, this machine has {_shown(c, n)}"
        for n, _, c, unit in _amounts(need, Reservation(0.0, 0, 0), capacity)
        if n > c + _ROUNDING
    ]
    return "can never run here: " + "; ".join(lacks)


def short_of_disk(need: Reservation, used: Reservation, room: Capacity) -> bool:
    """Whether a task waits for disk, whatever else it waits for: once cores and memory are free, it
    has to be known how much disk there is."""
    return plus(used, need).disk_bytes > room.disk_bytes


def waits_for(need: Reservation, used: Reservation, room: Capacity) -> str | None:
    """What a task waits for: '8 cores; 2 of 16 are free'; None if it fits now."""
    for n, u, c, unit in _amounts(need, used, room):
        if u + n > c + _ROUNDING:
            return f"{n:.4g} {unit}; {max(c - u, 0):.4g} of {c:.4g} are free"
    return None


def _amounts(
    need: Reservation, used: Reservation, capacity: Capacity
) -> tuple[tuple[float, float, float, str], ...]:
    """(needed, used, there, unit) of cores, memory and disk."""
    return (
        (need.cpu_cores, used.cpu_cores, capacity.cpu_cores, "cores"),
        (need.ram_bytes / GB, used.ram_bytes / GB, capacity.ram_bytes / GB, "GB of memory"),
        (need.disk_bytes / GB, used.disk_bytes / GB, capacity.disk_bytes / GB, "GB of disk"),
    )


def _shown(amount: float, other: float) -> str:
    """An amount in as many digits as tell it from the other."""
    short = f"{amount:.4g}"
    return short if short != f"{other:.4g}" else f"{amount:.12g}"

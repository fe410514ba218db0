"""When a pool is told to have more nodes than its formula would give it by itself. Pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import msgspec

from tesazure.backends.azure_batch.pool_words import Look, is_of_formula

FLOOR = timedelta(minutes=15)
"""How long the server's word counts: until samples tell of the queue, some minutes, and nodes have
come."""
SHORT = timedelta(minutes=15)
"""How long Spot nodes are not tried again that could not be had."""
STALLED = timedelta(minutes=20)
"""After so long without an evaluation, while tasks wait, a formula is given anew: Batch has been
seen to forget a pool's after its quota was reached."""
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a pool's formula was last told beside settings."""

    floor: int = 0
    """Nodes at least."""
    floor_until: datetime = LONG_AGO
    dedicated_until: datetime = LONG_AGO
    """Until then a Spot pool has dedicated nodes."""
    tries_one: bool = False
    """Every node has failed: there is to be one, until one works."""


def begin(now: datetime) -> Told:
    """A pool is made because there is a task for it."""
    return Told(floor=1, floor_until=now + FLOOR)


def is_short(look: Look) -> bool:
    """Whether there are no Spot nodes to be had: Batch said why, and none is here or coming."""
    # An error of the formula is none of Azure's.
    refused = any(not is_of_formula(code) for code, _ in look.obstacles)
    return look.spot and refused and look.good == 0


def grow(
    told: Told,
    look: Look,
    *,
    waiting: int,
    slots: int,
    fallback: bool,
    fails: bool,
    now: datetime,
) -> Told | None:
    """What to tell a pool in which so many tasks wait; None: nothing new. `fallback`: dedicated
    nodes are to be taken while there are no Spot ones. `fails`: nodes have not worked for long.

    Nodes that run something count as full, those that are idle or coming as free.
    """
    works = look.idle + look.running > 0
    # What breaks every node, such as a wrong password of the registry, is not paid for many times.
    tries_one = not works and (look.tries_one or (fails and look.good == 0))
    maximum = 1 if tries_one else look.maximum
    free = (look.idle + look.starting) * slots
    missing = max(0, math.ceil((waiting - free) / slots))
    floor = min(maximum, look.good + missing)
    stands = told.floor_until > now + FLOOR / 3 and told.floor >= floor
    stalls = waiting > 0 and LONG_AGO < look.evaluated < now - STALLED
    switches = fallback and is_short(look) and told.dedicated_until <= now
    asks = missing > 0 and not stands and look.target < floor
    if not (stalls or switches or asks or tries_one != look.tries_one or not look.scales):
        return None
    return Told(
        floor=max(1, floor) if waiting else 0,
        floor_until=now + FLOOR,
        dedicated_until=now + SHORT if switches else told.dedicated_until,
        tries_one=tries_one,
    )

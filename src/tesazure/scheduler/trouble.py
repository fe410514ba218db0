"""What failed, and how long it is left alone before the next try."""

from __future__ import annotations

import msgspec


class Trouble(msgspec.Struct, frozen=True):
    """A task whose action failed: how often in a row, why, and when it is tried again on the
    monotonic clock."""

    failures: int = 0
    ungranted: int = 0
    """Of these, how many in which there was no access to its files."""
    reason: str = ""
    due: float = 0.0


NO_TROUBLE = Trouble()


def pause_after(failures: int, first_s: float, longest_s: float) -> float:
    """Seconds until the next try after so many failures in a row, at least one: each pause is twice
    the one before, up to the longest."""
    # An outage of a weekend is thousands of failures, and no float holds 2 to the power of 1024.
    return min(first_s * 2.0 ** min(failures - 1, 64), longest_s)

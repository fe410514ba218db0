"""What attempts are estimated to cost, as their logs say."""

from __future__ import annotations

import msgspec

from tesazure.money import billionths

_KEY = "estimated_cost_usd"
"""Of an attempt's metadata: a decimal number of US dollars, where a backend knows one."""


class _Logged(msgspec.Struct):
    metadata: dict[str, str] = {}


_logged = msgspec.json.Decoder(_Logged).decode


def cost_of(log: bytes) -> int | None:
    """What the attempt with this encoded log costs, in billionths of a US dollar; None if its
    metadata has no such number."""
    if _KEY.encode() not in log:
        return None
    return billionths(_logged(log).metadata.get(_KEY, ""))

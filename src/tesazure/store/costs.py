"""What attempts are estimated to cost, as their logs say."""

from __future__ import annotations

import msgspec

from tesazure.money import billionths

_KEY = "estimated_cost_usd"
"""Of an attempt's metadata: a decimal number of US dollars, where a backend knows one."""
_MOST = 10**6 * 10**9
"""Billionths of a US dollar that no attempt costs more than: the sums of many must fit into what
the databases can hold, or nothing more could be written of their tasks."""


class _Logged(msgspec.Struct):
    metadata: dict[str, str] = {}


_logged = msgspec.json.Decoder(_Logged).decode


def cost_of(log: bytes) -> int | None:
    """What the attempt with this encoded log costs, in billionths of a US dollar; None if its
    metadata has no such number, or one above a million dollars."""
    if _KEY.encode() not in log:
        return None
    cost = billionths(_logged(log).metadata.get(_KEY, ""))
    return cost if cost is not None and cost <= _MOST else None

"""What attempts are estimated to cost, as whole numbers that databases add up without rounding."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

import msgspec

_KEY = "estimated_cost_usd"
"""Of an attempt's metadata: a decimal number of US dollars, where a backend knows one."""
_MOST = Decimal(10) ** 9
"""US dollars that no attempt costs; a billion billionths of them is what the databases can hold."""
_DIGITS = 9


class _Logged(msgspec.Struct):
    metadata: dict[str, str] = {}


_logged = msgspec.json.Decoder(_Logged).decode


def cost_of(log: bytes) -> int | None:
    """What the attempt with this encoded log costs, in billionths of a US dollar; None if its
    metadata has no such number."""
    if _KEY.encode() not in log:
        return None
    try:
        dollars = Decimal(_logged(log).metadata.get(_KEY, ""))
    except InvalidOperation:
        return None
    if not dollars.is_finite() or not 0 <= dollars < _MOST:
        return None
    return int(dollars.scaleb(_DIGITS).to_integral_value())


def dollars(cost: int) -> str:
    """Billionths of a US dollar as a decimal number of them, without needless zeros."""
    whole, part = divmod(cost, 10**_DIGITS)
    return f"{whole}.{part:0{_DIGITS}}".rstrip("0").rstrip(".")

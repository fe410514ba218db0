"""US dollars as whole billionths of them: numbers that databases add up without rounding. Pure."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

_DIGITS = 9
_MOST = Decimal(10) ** 9
"""US dollars that nothing costs; a billion billionths of them is what the databases can hold."""


def billionths(text: str) -> int | None:
    """A decimal number of US dollars, below a billion and not negative; None if it is none."""
    if "_" in text:  # which Decimal takes between digits
        return None
    try:
        amount = Decimal(text)
    except InvalidOperation:
        return None
    if not amount.is_finite() or not 0 <= amount < _MOST:
        return None
    return int(amount.scaleb(_DIGITS).to_integral_value())


def estimate(seconds: float, per_hour: float) -> str:
    """What so much time costs at that many US dollars an hour, as `dollars` has it: what takes
    milliseconds, too, costs something."""
    return dollars(round(seconds / 3600 * per_hour * 10**_DIGITS))


def dollars(amount: int) -> str:
    """Billionths of a US dollar as a decimal number of them, without needless zeros. What
    a month has spent is below 0 when an estimate of an earlier one was corrected in it."""
    sign = "-" if amount < 0 else ""
    whole, part = divmod(abs(amount), 10**_DIGITS)
    return f"{sign}{whole}.{part:0{_DIGITS}}".rstrip("0").rstrip(".")

"""The language of autoscale formulas, as far as the Batch stand-in knows it.

Statements, doubles, vectors of doubles, times and intervals, `? :`, comparisons, the functions
below and the samples of service-defined variables. Values keep their types as documented: what
Batch would not add or compare is an error here, too. Source: "Create a formula to automatically
scale compute nodes in a Batch pool".
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.services.batch_wire import TICKS_PER_SECOND, parse_time

TARGETS = ("$TargetDedicatedNodes", "$TargetLowPriorityNodes", "$NodeDeallocationOption")
OPTIONS = ("requeue", "terminate", "taskcompletion", "retaineddata")
_TOKEN = re.compile(
    r"""\s+|//[^\n]*|/\*.*?\*/
    |(?P<number>\d+(?:\.\d+)?)
    |(?P<text>"[^"]*")
    |(?P<name>\$?[A-Za-z_]\w*)
    |(?P<sign><=|>=|==|!=|&&|\|\||[-+*/<>=!?:;,.()])""",
    re.VERBOSE | re.DOTALL,
)
_SECONDS = {
    "TimeInterval_Zero": 0.0,
    "TimeInterval_Second": 1.0,
    "TimeInterval_Minute": 60.0,
    "TimeInterval_Hour": 3600.0,
    "TimeInterval_Day": 86400.0,
    "TimeInterval_Week": 604800.0,
    "TimeInterval_100ns": 1e-7,
}
_PRECEDENCE = {
    "||": 1,
    "&&": 2,
    **dict.fromkeys(("==", "!="), 3),
    **dict.fromkeys(("<", "<=", ">", ">="), 4),
    **dict.fromkeys(("+", "-"), 5),
    **dict.fromkeys(("*", "/"), 6),
}
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_REDUCE: dict[str, Callable[[Sequence[float]], float]] = {
    "avg": lambda numbers: sum(numbers) / len(numbers),
    "max": max,
    "min": min,
    "sum": sum,
    "len": len,
}
_ROUND: dict[str, Callable[[float], float]] = {
    "ceil": math.ceil,
    "floor": math.floor,
    "round": round,
}


class FormulaError(Exception):
    """Batch would not take the formula, or not be able to evaluate it."""


@dataclass(frozen=True, order=True)
class Time:
    """A timestamp: seconds since the epoch."""

    seconds: float


@dataclass(frozen=True, order=True)
class Interval:
    """A timeinterval."""

    seconds: float


@dataclass(frozen=True)
class Samples:
    """A service-defined variable that is sampled: its values, newest last. Here a sample is taken
    at the moment of the evaluation, and stands for any interval; `percent`: GetSamplePercent."""

    values: tuple[float, ...]
    percent: float = 100.0


Value = float | str | list[float] | Time | Interval | Samples


def evaluate(text: str, variables: Mapping[str, Value], now_s: float) -> dict[str, Value]:
    """What the formula assigns to variables that begin with `$`. Raises FormulaError."""
    reader = _Reader(text, variables, now_s)
    reader.run()
    found = {name: value for name, value in reader.assigned.items() if name.startswith("$")}
    unknown = set(found) - {*TARGETS, "$TargetDedicated", "$TargetLowPriority"}
    if unknown:
        raise FormulaError(f"{', '.join(sorted(unknown))} cannot be assigned")
    targets = [value for name, value in found.items() if name.startswith("$Target")]
    if not targets:
        raise FormulaError("no target is assigned")
    if any(isinstance(value, float) and math.isnan(value) for value in targets):
        raise FormulaError("a target is a mean of nothing: there are no samples")
    return found


class _Reader:
    """Reads and evaluates at once: a formula has no loops."""

    def __init__(self, text: str, variables: Mapping[str, Value], now_s: float) -> None:
        self.assigned: dict[str, Value] = {}
        self._given, self._now_s = variables, now_s
        self._tokens = _tokens(text)
        self._next = 0

    def run(self) -> None:
        while self._next < len(self._tokens):
            name = self._name()
            self._demand("=")
            self.assigned[name] = self._choice()
            self._demand(";")

    def _choice(self) -> Value:
        condition = self._binary(1)
        if not self._accept("?"):
            return condition
        yes = self._choice()
        self._demand(":")
        no = self._choice()
        return yes if _number(condition) else no

    def _binary(self, least: int) -> Value:
        left = self._unary()
        while _PRECEDENCE.get(sign := self._peek(), 0) >= least:
            self._next += 1
            left = _operate(sign, left, self._binary(_PRECEDENCE[sign] + 1))
        return left

    def _unary(self) -> Value:
        if self._accept("!"):
            return float(not _number(self._unary()))
        if self._accept("-"):
            return -_number(self._unary())
        return self._suffixed()

    def _suffixed(self) -> Value:
        value = self._primary()
        while self._accept("."):
            method = self._name()
            arguments = self._arguments()
            value = _sample(value, method, arguments)
        return value

    def _primary(self) -> Value:
        if self._accept("("):
            inside = self._choice()
            self._demand(")")
            return inside
        kind, text = self._take()
        match kind:
            case "number":
                return float(text)
            case "text":
                return text[1:-1]
            case "name" if self._peek() == "(":
                return self._call(text, self._arguments())
            case "name":
                return self._variable(text)
        raise FormulaError(f"a value was expected, not {text}")

    def _variable(self, name: str) -> Value:
        constants: dict[str, Value] = {each: each for each in OPTIONS}
        constants |= {each: Interval(seconds) for each, seconds in _SECONDS.items()}
        for known in (self.assigned, self._given, constants):
            if name in known:
                return known[name]
        raise FormulaError(f"there is no variable {name}")

    def _call(self, name: str, arguments: list[Value]) -> Value:
        if name in _REDUCE:
            numbers = [number for argument in arguments for number in _vector(argument)]
            if name == "avg" and not numbers:
                return math.nan  # no error unless it is chosen, as Microsoft's examples have it
            if not numbers and name != "len":
                raise FormulaError(f"{name} of nothing: there are no samples")
            return float(_REDUCE[name](numbers))
        if name in _ROUND and len(arguments) == 1:
            return float(_ROUND[name](_number(arguments[0])))
        if name == "time" and len(arguments) < 2:
            return self._time(arguments)
        if name == "val" and len(arguments) == 2:
            return _vector(arguments[0])[int(_number(arguments[1]))]
        raise FormulaError(f"there is no function {name} of {len(arguments)} values")

    def _time(self, arguments: list[Value]) -> Value:
        if not arguments:
            return Time(self._now_s)
        try:
            return Time(parse_time(str(arguments[0])) / TICKS_PER_SECOND)
        except ValueError as error:
            raise FormulaError(str(error)) from error

    def _arguments(self) -> list[Value]:
        self._demand("(")
        found: list[Value] = []
        while not self._accept(")"):
            if found:
                self._demand(",")
            found.append(self._choice())
        return found

    def _peek(self) -> str:
        return self._tokens[self._next][1] if self._next < len(self._tokens) else ""

    def _accept(self, sign: str) -> bool:
        if self._peek() != sign:
            return False
        self._next += 1
        return True

    def _take(self) -> tuple[str, str]:
        if self._next == len(self._tokens):
            raise FormulaError("it ends too early")
        self._next += 1
        return self._tokens[self._next - 1]

    def _name(self) -> str:
        kind, text = self._take()
        if kind != "name":
            raise FormulaError(f"a name was expected, not {text}")
        return text

    def _demand(self, sign: str) -> None:
        found = self._take()[1]
        if found != sign:
            raise FormulaError(f"{sign} was expected, not {found}")


def _tokens(text: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise FormulaError(f"{text[position : position + 10]} cannot be read")
        position = match.end()
        if match.lastgroup is not None:
            found.append((match.lastgroup, match.group()))
    return found


def _operate(sign: str, left: Value, right: Value) -> Value:  # noqa: PLR0911 - a table of types
    if sign in ("&&", "||"):
        pair = bool(_number(left)), bool(_number(right))
        return float(all(pair) if sign == "&&" else any(pair))
    if sign in _COMPARE:
        if type(left) is not type(right) or isinstance(left, list | Samples):
            raise _mismatch(sign, left, right)
        return float(_COMPARE[sign](left, right))
    match left, right:
        case float(), float():
            return _arithmetic(sign, left, right)
        case list(), float():
            return [_arithmetic(sign, each, right) for each in left]
        case list(), list() if len(left) == len(right):
            return [_arithmetic(sign, *pair) for pair in zip(left, right, strict=True)]
        case Interval(), float() if sign in "*/":
            return Interval(_arithmetic(sign, left.seconds, right))
        case float(), Interval() if sign == "*":
            return Interval(left * right.seconds)
        case Interval(), Interval() if sign in "+-":
            return Interval(_arithmetic(sign, left.seconds, right.seconds))
        case Time(), Interval() if sign in "+-":
            return Time(_arithmetic(sign, left.seconds, right.seconds))
        case Time(), Time() if sign == "-":
            return Interval(left.seconds - right.seconds)
    raise _mismatch(sign, left, right)


def _arithmetic(sign: str, left: float, right: float) -> float:
    if sign == "/" and right == 0:
        raise FormulaError("division by zero")
    act = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}[sign]
    return float(act(left, right))


def _sample(value: Value, method: str, arguments: list[Value]) -> Value:
    if not isinstance(value, Samples):
        raise FormulaError(f"only a service-defined variable has {method}")
    match method, arguments:
        case "GetSample", [float(count)]:
            # Those that there are: Microsoft's examples take max(0, $PendingTasks.GetSample(1))
            # when there are few.
            return list(value.values[-int(count) :])
        case "GetSample", [Interval(), *rest]:
            if rest and value.percent < _number(rest[-1]):
                raise FormulaError("there are not enough samples")
            return list(value.values)
        case "GetSamplePercent", [Interval(), *_]:
            return value.percent
        case "GetSamplePeriod", []:
            return Interval(30.0)
        case "Count", []:
            return float(len(value.values))
    raise FormulaError(f"there is no {method} of these values")


def _number(value: Value) -> float:
    if not isinstance(value, float):
        raise FormulaError(f"{value} is no double")
    return value


def _vector(value: Value) -> list[float]:
    return value if isinstance(value, list) else [_number(value)]


def _mismatch(sign: str, left: Value, right: Value) -> FormulaError:
    return FormulaError(f"{type(left).__name__} {sign} {type(right).__name__} is not defined")

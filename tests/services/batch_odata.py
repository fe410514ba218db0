"""What lists of the Batch stand-in are asked with: $filter, $select, pages.

Sources: "OData filters in Batch", "Create queries to list Batch resources efficiently": names are
case-sensitive, values are not, times are written DateTime'…', and what is not known is refused.
"""

from __future__ import annotations

import base64
import operator
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from tests.services.batch_wire import TICKS_PER_SECOND, Refused, parse_time

MOST_PER_PAGE = 1000
_TOKEN = re.compile(
    r"\s*(?:(?P<time>datetime'(?P<when>[^']*)')|(?P<text>'(?:[^']|'')*')|(?P<number>-?\d+)"
    r"|(?P<word>[A-Za-z_][\w/.]*)|(?P<sign>[(),]))",
    re.IGNORECASE,
)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "ge": operator.ge,
    "lt": operator.lt,
    "le": operator.le,
}
_ALL = frozenset({*_COMPARE, "startswith"})
_ORDERED = frozenset(_COMPARE)
_EQUALITY = frozenset({"eq", "ne"})


@dataclass(frozen=True)
class Column:
    """A property that can be filtered on: how to read it, and which comparisons it knows."""

    kind: Literal["text", "state", "time", "number"]
    read: Callable[[Any], Any]

    @property
    def operators(self) -> frozenset[str]:
        """As documented for this kind."""
        return {"text": _ALL, "state": _EQUALITY, "time": _ORDERED, "number": _ORDERED}[self.kind]


Columns = Mapping[str, Column]
Predicate = Callable[[Any], bool]


def compile_filter(text: str, columns: Columns) -> Predicate:
    """A function that tells whether an object passes. Raises Refused."""
    parser = _Parser(text, columns)
    predicate = parser.either()
    parser.expect_end()
    return predicate


class _Parser:
    """Recursive descent over `or`, `and`, comparisons, startswith and parentheses."""

    def __init__(self, text: str, columns: Columns) -> None:
        self._text, self._columns = text, columns
        self._tokens = list(self._read(text))
        self._next = 0

    def either(self) -> Predicate:
        parts = [self._both()]
        while self._word() == "or":
            self._next += 1
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else lambda it: any(part(it) for part in parts)

    def expect_end(self) -> None:
        if self._next < len(self._tokens):
            raise self._refusal("there is more after the expression's end")

    def _both(self) -> Predicate:
        parts = [self._one()]
        while self._word() == "and":
            self._next += 1
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else lambda it: all(part(it) for part in parts)

    def _one(self) -> Predicate:
        kind, value = self._take()
        if (kind, value) == ("sign", "("):
            inside = self.either()
            self._demand(")")
            return inside
        if kind != "word":
            raise self._refusal(f"a property was expected, not {value}")
        if value.lower() == "startswith":
            return self._prefix()
        column = self._column(value)
        named = self._take()[1].lower()
        if named not in _COMPARE or named not in column.operators:
            raise self._refusal(f"{value} does not know the operator {named}")
        compare, wanted, read = _COMPARE[named], self._literal(column), column.read
        if wanted is None:
            return lambda it: compare(read(it), None)
        return lambda it: (found := read(it)) is not None and compare(found, wanted)

    def _prefix(self) -> Predicate:
        self._demand("(")
        name = self._take()[1]
        column = self._column(name)
        if "startswith" not in column.operators:
            raise self._refusal(f"{name} does not know startswith")
        self._demand(",")
        wanted, read = str(self._literal(column)), column.read
        self._demand(")")
        return lambda it: str(read(it) or "").lower().startswith(wanted)

    def _column(self, name: str) -> Column:
        if name not in self._columns:
            raise self._refusal(f"{name} cannot be filtered on")
        return self._columns[name]

    def _literal(self, column: Column) -> Any:
        kind, value = self._take()
        match column.kind, kind:
            case "time", "time":
                return self._time(value)
            case "number", "number":
                return int(value)
            case (("text" | "state"), "text"):
                return value[1:-1].replace("''", "'").lower()
            case _, "word" if value.lower() == "null":
                return None
        raise self._refusal(f"{value} is no {column.kind}")

    def _time(self, value: str) -> int:
        try:
            return parse_time(value)
        except ValueError:
            pass
        try:
            return int(parsedate_to_datetime(value).timestamp() * TICKS_PER_SECOND)
        except ValueError:
            raise self._refusal(f"{value} is no time") from None

    def _word(self) -> str:
        if self._next < len(self._tokens) and self._tokens[self._next][0] == "word":
            return self._tokens[self._next][1].lower()
        return ""

    def _take(self) -> tuple[str, str]:
        if self._next == len(self._tokens):
            raise self._refusal("it ends too early")
        self._next += 1
        return self._tokens[self._next - 1]

    def _demand(self, sign: str) -> None:
        if self._take() != ("sign", sign):
            raise self._refusal(f"{sign} was expected")

    def _read(self, text: str) -> Iterable[tuple[str, str]]:
        position = 0
        while text[position:].strip():
            found = _TOKEN.match(text, position)
            if found is None:
                raise self._refusal(f"{text[position:]} cannot be read")
            position = found.end()
            if found["time"]:
                yield "time", found["when"]
            else:
                yield str(found.lastgroup), found[str(found.lastgroup)]

    def _refusal(self, reason: str) -> Refused:
        return bad_query("$filter", self._text, reason)


def bad_query(name: str, value: str, reason: str) -> Refused:
    """A parameter of the URL that the service does not take."""
    said = "Value for one of the query parameters specified in the request URI is invalid"
    values = {"QueryParameterName": name, "QueryParameterValue": value, "Reason": reason}
    return Refused(400, "InvalidQueryParameterValue", said, values)


def select(document: dict[str, Any], names: Sequence[str] | None) -> dict[str, Any]:
    """The named properties of a document; all without names."""
    if names is None:
        return document
    return {name: document[name] for name in names if name in document}


def selected(query: Mapping[str, str], known: str) -> list[str] | None:
    """The names in $select. Raises Refused for one that is not among the words of `known`."""
    text = query.get("$select")
    if text is None:
        return None
    names, allowed = [name.strip() for name in text.split(",")], set(known.split())
    for name in names:
        if name not in allowed:
            raise bad_query("$select", text, f"there is no property {name}")
    return names


def page(
    ids: Sequence[str], query: Mapping[str, str], passes: Callable[[str], bool], size: int
) -> tuple[list[str], str | None]:
    """Which of the sorted `ids` come in this page, and the next page's token. A page begins after
    the last id of the one before: what came or went meanwhile before that is not noticed."""
    given = query.get("maxresults", str(size))
    if not given.isdigit() or not 0 < int(given) <= MOST_PER_PAGE:
        raise bad_query("maxresults", given, f"between 1 and {MOST_PER_PAGE}")
    most = min(int(given), size)
    start = 0
    if "$skiptoken" in query:
        start = bisect_right(ids, base64.urlsafe_b64decode(query["$skiptoken"]).decode())
    found: list[str] = []
    for position in range(start, len(ids)):
        if not passes(ids[position]):
            continue
        if len(found) == most:
            return found, base64.urlsafe_b64encode(found[-1].encode()).decode()
        found.append(ids[position])
    return found, None

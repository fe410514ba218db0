"""Which trace a task belongs to, and the ids of its spans. Pure.

Ids follow from names: a task's trace from its id, an attempt's spans from its key. So nothing of a
trace is kept, servers and runners agree on ids without asking, and a node needs no library for it.
Source: W3C Trace Context, level 1.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import msgspec

TAG = "traceparent"
"""Tag of a task, and key of an attempt's metadata: the context that its spans are below."""
VARIABLE = "TRACEPARENT"
"""Where programs look for the context that they run in. Source: OpenTelemetry, "Environment
Variables as Context Propagation Carriers"."""
_OURS = "7e5a"
"""Begins the trace of a task that its client gave none; the task's id ends it."""
_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_ID = re.compile("[0-9a-f]{28}")
_RANDOM_DIGITS = 14
"""At the end of a task's id, which W3C wants random of a trace's, too."""


class Context(msgspec.Struct, frozen=True):
    """A place in a trace: 32 and 16 hexadecimal digits, and whether spans below it are wanted."""

    trace_id: str
    span_id: str
    sampled: bool

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"

    def at(self, span_id: str) -> Context:
        """The place of another span of this trace."""
        return Context(self.trace_id, span_id, self.sampled)


def parse(text: str) -> Context | None:
    """The context in a `traceparent`; None for what is none."""
    found = _FORM.fullmatch(text)
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    is_empty = not (int(trace_id, 16) and int(span_id, 16))
    if version == "ff" or (version == "00" and more) or is_empty:
        return None
    return Context(trace_id, span_id, bool(int(flags, 16) & 1))


def of_tags(tags: Mapping[str, str | None] | None) -> Context | None:
    """The context that a task's tags name, if they name one."""
    return parse((tags or {}).get(TAG) or "")


def of_task(task_id: str, ratio: float) -> Context:
    """The place of the request that made a task whose client gave no context. Of all such traces
    the share `ratio`, from 0 to 1, is wanted: the same ones by every server."""
    digits = _digits(task_id)
    chance = int(digits[-_RANDOM_DIGITS:], 16) / 16**_RANDOM_DIGITS
    return Context(_OURS + digits, digits[-16:], chance < ratio)


def submission(task_id: str) -> str:
    """Id of the span of the request that made a task."""
    return _digits(task_id)[-16:]


def _digits(task_id: str) -> str:
    """Our ids are such digits; what else a backend may hold has others."""
    if _ID.fullmatch(task_id):
        return task_id
    return hashlib.blake2b(task_id.encode(), digest_size=14).hexdigest()


def span_of(key: str, name: str) -> str:
    """Id of the span `name` of the attempt `key`."""
    return hashlib.blake2b(f"{key} {name}".encode(), digest_size=8).hexdigest()


def executor_span(key: str, index: int) -> str:
    """Id of the span of an attempt's executor."""
    return span_of(key, f"executor {index}")

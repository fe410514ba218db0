"""A Backend whose attempts are traced."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from tesazure.access import Access
from tesazure.backends.base import Backend, Capabilities, Capacity, Check, Gauge, LogChunk, Stream
from tesazure.lifecycle import Handle, Observation
from tesazure.plan import Plan
from tesazure.telemetry.spans import LONGEST_TEXT, Span, about, attempt_span, is_over, spans_of
from tesazure.trace import TAG, Context, of_task, parse, span_of

_MOST_LIVE = 65536
"""Attempts that are kept in mind. One that another server has taken over is never released here."""
_name = msgspec.json.Encoder(order="sorted").encode


@dataclass(slots=True)
class _Live:
    """An attempt that was not released yet, as far as this server has to do with it."""

    key: str
    context: Context
    begun: float | None
    told: bool = False


class TracedBackend:
    """Does as another one; see `Backend`. Tells `record` the spans of each attempt when its report
    is whole. Another server that takes over may tell them again, under the same ids. `ratio` of the
    traces that are ours are wanted. Of more than `most` attempts the oldest are forgotten, and have
    spans all the same when their report is whole."""

    def __init__(
        self,
        backend: Backend,
        record: Callable[[Span], None],
        ratio: float,
        most: int = _MOST_LIVE,
    ) -> None:
        self._backend = backend
        self._record = record
        self._ratio = ratio
        self._most = most
        self._live: dict[bytes, _Live] = {}
        """By handle, encoded: `release` is given nothing else."""

    async def submit(self, plan: Plan, key: str, access: Access) -> Handle:
        """The same, with a place in the trace in the plan."""
        context = parse(plan.trace) or of_task(plan.task_id, self._ratio)
        plan = msgspec.structs.replace(plan, trace=str(context))
        begun, error = time.time(), "it was interrupted"
        try:
            handle = await self._backend.submit(plan, key, access)
            error = ""
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"[:LONGEST_TEXT]
            raise
        finally:
            if context.sampled:
                self._record(
                    Span(
                        name="place",
                        context=context.at(span_of(key, f"place {begun}")),
                        parent=context.at(span_of(key, "attempt")).span_id,
                        start=begun,
                        end=time.time(),
                        kind="producer",
                        attributes=about(key),
                        error=error,
                    )
                )
        self._keep(_name(handle), _Live(key, context, begun))
        return handle

    def _keep(self, name: bytes, live: _Live) -> _Live:
        while len(self._live) >= self._most:
            del self._live[next(iter(self._live))]  # the oldest
        return self._live.setdefault(name, live)

    async def observe(self, handles: Mapping[str, Handle]) -> Mapping[str, Observation]:
        """The same."""
        found = await self._backend.observe(handles)
        for key, seen in found.items():
            if is_over(seen):
                self._tell(key, handles[key], seen)
        return found

    def _tell(self, key: str, handle: Handle, seen: Observation) -> None:
        name = _name(handle)
        live = self._live.get(name)
        if live is None:  # an attempt of another server, or of before a restart
            told = parse(seen.report.log.metadata.get(TAG, ""))
            context = told or of_task(key.rpartition("-")[0], self._ratio)
            live = self._keep(name, _Live(key, context, None))
        if not live.told and live.context.sampled:
            for span in spans_of(key, live.context, live.begun, seen, time.time()):
                self._record(span)
        live.told = True

    async def release(self, handle: Handle) -> None:
        """The same. What ends without a whole report has a span all the same."""
        await self._backend.release(handle)
        live = self._live.pop(_name(handle), None)
        if live and live.begun is not None and not live.told and live.context.sampled:
            now, why = time.time(), "ended by the server"
            self._record(attempt_span(live.key, live.context, live.begun, now, "RELEASED", why))

    # -- what is passed on as it is -------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        """The same."""
        return self._backend.capabilities

    async def start(self) -> None:
        """The same."""
        await self._backend.start()

    async def stop(self) -> None:
        """The same."""
        await self._backend.stop()

    async def check(self) -> Sequence[Check]:
        """The same."""
        return await self._backend.check()

    def gauges(self) -> Sequence[Gauge]:
        """The same."""
        return self._backend.gauges()

    def admit(self, plan: Plan) -> None:
        """The same."""
        self._backend.admit(plan)

    async def room(self, closely: bool = False) -> Capacity | None:
        """The same."""
        return await self._backend.room(closely)

    async def find(self, key: str) -> Handle | None:
        """The same."""
        return await self._backend.find(key)

    async def changed(self, timeout_s: float) -> bool:
        """The same."""
        return await self._backend.changed(timeout_s)

    async def cancel(self, handle: Handle) -> None:
        """The same."""
        await self._backend.cancel(handle)

    async def discard(self, handle: Handle) -> None:
        """The same."""
        await self._backend.discard(handle)

    async def held(self, begun_before: float) -> Mapping[str, Handle]:
        """The same."""
        return await self._backend.held(begun_before)

    async def read_stream(
        self, handle: Handle, executor: int, stream: Stream, offset: int, limit: int
    ) -> LogChunk:
        """The same."""
        return await self._backend.read_stream(handle, executor, stream, offset, limit)

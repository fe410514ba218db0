"""What running executors have written so far, for FULL views."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import get_args

import msgspec

from tesazure.api.parts import Stations
from tesazure.backends.base import Stream
from tesazure.errors import TesazureError
from tesazure.model import State
from tesazure.store.records import AttemptRecord, TaskRecord

LIVE = frozenset({State.INITIALIZING, State.RUNNING, State.CANCELING})
"""States in which an executor may run."""
_PATIENCE_S = 1.0
_MAX_BYTES = 8 * 2**20
"""Tails in one reply, all together: with very many running executors each one is shorter."""
_STREAMS: tuple[Stream, ...] = get_args(Stream)
_log = logging.getLogger(__name__)

Texts = dict[tuple[int, str], str]
"""Text by executor index and stream."""


class _Entry(msgspec.Struct):
    exit_code: int | None = None


class _Log(msgspec.Struct):
    logs: list[_Entry] = []


_decoder = msgspec.json.Decoder(_Log)


class Tails:
    """Reads the ends of live streams from their backends. A view is never refused for lack of
    them."""

    def __init__(self, stations: Stations, size: int) -> None:
        self._stations = stations
        self._size = size

    async def read(self, records: Sequence[TaskRecord]) -> dict[str, Texts]:
        """The tails by task id, of those tasks whose newest attempt has a running executor."""
        found: dict[str, Texts] = {}
        wanted: list[tuple[AttemptRecord, int, Stream, Texts]] = []
        for record in records:
            attempt = record.attempts[-1] if record.attempts else None
            if record.state not in LIVE or attempt is None or attempt.handle is None:
                continue
            texts = found.setdefault(record.id, {})
            for index, entry in enumerate(_decoder.decode(attempt.log).logs):
                if entry.exit_code is None:
                    wanted += [(attempt, index, stream, texts) for stream in _STREAMS]
        if wanted:
            size = min(self._size, _MAX_BYTES // len(wanted))
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    await asyncio.gather(*(self._one(*what, size) for what in wanted))
            except TimeoutError:
                _log.warning("the backend did not give the live logs within %g s", _PATIENCE_S)
        return found

    async def _one(
        self, attempt: AttemptRecord, index: int, stream: Stream, texts: Texts, size: int
    ) -> None:
        try:
            backend = self._stations.backend_of(attempt.scope)
            chunk = await backend.read_stream(attempt.handle or {}, index, stream, -size, size)
        except TesazureError as error:
            _log.debug("no live %s: %s", stream, error)
            return
        texts[index, stream] = text(chunk.data, whole=chunk.offset == 0)


def text(data: bytes, *, whole: bool) -> str:
    """Bytes as text. Unless `whole`, the front may be cut inside a character: that is left out."""
    if not whole:
        cut = 0
        while cut < min(3, len(data)) and data[cut] & 0xC0 == 0x80:
            cut += 1
        data = data[cut:]
    return data.decode("utf-8", errors="replace")

"""The server's end of `tesazure.runner.spawner`, the warm process that forks runners."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tesazure.access import Access
from tesazure.errors import BackendUnavailable
from tesazure.runner.spawner import Reply, Request

log = logging.getLogger(__name__)

READY_S = 30.0
"""How long the process may take to start, in seconds."""
REPLY_S = 30.0
"""How long it may take to fork a runner, in seconds; it takes milliseconds."""


_decoder = msgspec.json.Decoder(Reply)


class Spawner:
    """Keeps the process, and asks it. One that died is started again with the next request."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """`environment` is that of the runners; None: this process's own."""
        self._environment = environment
        self._engine = ""
        self._process: asyncio.subprocess.Process | None = None
        self._asked: deque[asyncio.Future[Reply]] = deque()
        self._reader: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """Process id of the spawner that runs now."""
        return self._process.pid if self._process else None

    async def start(self, engine: str) -> None:
        """Have it ready for runners that use `engine`. Raises BackendUnavailable."""
        self._engine = engine
        async with self._starting:
            if self._process is None:
                await self._start()

    async def stop(self) -> None:
        """End it; runners live on. May be called twice."""
        process, reader = self._process, self._reader
        self._process = self._reader = None
        if process is None or reader is None:
            return
        _close(process)
        try:
            async with asyncio.timeout(READY_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        await reader

    async def spawn(self, directory: Path, access: Access) -> None:
        """Have a runner begin the attempt in `directory`, unless one has: returns when it has.
        Raises BackendUnavailable when none did."""
        await self.start(self._engine)
        process = self._process
        if process is None or process.stdin is None:
            raise BackendUnavailable("the process that starts runners is being stopped")
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._asked.append(reply)
        process.stdin.write(msgspec.json.encode(Request(str(directory), access)) + b"\n")
        try:
            async with asyncio.timeout(REPLY_S):
                said = await reply
        except TimeoutError:
            _kill(process)
            raise BackendUnavailable("the process that starts runners does not answer") from None
        if said.error:
            raise BackendUnavailable(f"no runner could begin: {said.error}")

    async def _start(self) -> None:
        arguments = ["-m", "tesazure.runner.spawner", "--preload", self._engine]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=self._environment,
            start_new_session=True,
        )
        assert process.stdout is not None  # noqa: S101 - as asked for
        line = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_S):
                line = await process.stdout.readline()
        if not line:
            _kill(process)
            raise BackendUnavailable("the process that starts runners did not start")
        self._process = process
        self._reader = asyncio.create_task(self._read(process, process.stdout))

    async def _read(
        self, process: asyncio.subprocess.Process, replies: asyncio.StreamReader
    ) -> None:
        """Hand each reply to who asked, in order; at the end, fail those who still wait."""
        while line := await replies.readline():
            reply = _decoder.decode(line)
            if self._asked:
                asked = self._asked.popleft()
                if not asked.done():
                    asked.set_result(reply)
        code = await process.wait()
        if self._process is process:
            log.warning("the process that starts runners ended (%d): it is started again", code)
            self._process = None
        died = BackendUnavailable("the process that starts runners ended")
        asked_in_vain, self._asked = self._asked, deque()
        for waiting in asked_in_vain:
            if not waiting.done():
                waiting.set_exception(died)


def _close(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()

"""Waking those who wait for events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tesazure.errors import StoreUnavailable

POLL_S = 0.08
"""How often other servers' events are looked for while somebody waits."""


class Newest:
    """The number of the newest event that this process knows of. Used in the event loop alone."""

    def __init__(self, number: int, ask: Callable[[], Awaitable[int]] | None = None) -> None:
        """`ask` reads the newest number from the database, where other processes write too."""
        self.number = number
        self._ask = ask
        self._waiters = 0
        self._moved: asyncio.Future[None] | None = None
        self._poller: asyncio.Task[None] | None = None
        self._asked_at = 0.0

    def raise_to(self, number: int) -> None:
        """Wake everybody if there is something new."""
        if number > self.number:
            self.number = number
            moved, self._moved = self._moved, None
            if moved is not None and not moved.done():
                moved.set_result(None)

    async def wait(self, after: int, timeout_s: float) -> bool:
        """True once there is an event above `after`, False after `timeout_s`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        self._waiters += 1
        try:
            while self.number <= after:
                left = deadline - loop.time()
                if left <= 0:
                    return False
                if self._moved is None:
                    self._moved = loop.create_future()
                if self._ask is not None and self._poller is None:
                    self._poller = loop.create_task(self._poll(self._ask))
                await asyncio.wait([self._moved], timeout=left)
            return True
        finally:
            self._waiters -= 1

    async def close(self) -> None:
        """Stop asking."""
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.wait([self._poller])

    async def _poll(self, ask: Callable[[], Awaitable[int]]) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiters:
                await asyncio.sleep(max(0.0, self._asked_at + POLL_S - loop.time()))
                self._asked_at = loop.time()
                try:
                    self.raise_to(await ask())
                except StoreUnavailable:
                    continue  # the waiters' time runs out, or the database comes back
        finally:
            self._poller = None

"""HTTP's side of the process: its socket, uvicorn, signals, what the kernel and libc grant it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import uvicorn

from tesazure.api.limits import ConnectionLimits, protocol
from tesazure.api.threshold import Threshold
from tesazure.errors import ConfigurationError
from tesazure.home import Occupied
from tesazure.settings import Settings

_BACKLOG = 1024
_DRAIN_S = 5
"""Seconds that requests under way get to end when the server stops."""
LEAVE_S = 8.0
"""Seconds after a signal in which the process has ended: Docker kills after 10. What still hangs
then waits for others, such as an Azure that does not answer."""
_M_MMAP_THRESHOLD = -3
"""Of mallopt(3)."""
_LARGE_MEMORY = 2**20
"""Bytes from which on memory is asked of the system and given back, whatever was freed before."""
_SPARE_FILES = 1024
"""File descriptors beside those of connections: database, attempts, libraries."""
_log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """uvicorn beside the start of all else, with our idea of signals.

    The first SIGTERM or SIGINT ends the server in order, the second one at once: nothing is lost by
    that, the next server takes up what it finds. SIGHUP has the settings read again.
    """

    def __init__(self, settings: Settings, threshold: Threshold) -> None:
        self._limits = ConnectionLimits(settings.request_timeout_s, settings.max_connections)
        config = uvicorn.Config(
            threshold,
            interface="asgi3",
            http=protocol(self._limits, threshold.refused),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=_DRAIN_S,
        )
        super().__init__(config)
        self.limit(settings)
        self._threshold = threshold
        self._reload: Callable[[], None] | None = None
        """None: the server is still starting."""
        self._serving: asyncio.Task[None] | None = None

    def limit(self, settings: Settings) -> None:
        """Have connections keep to these settings from now on: more of them are known once the
        database is there."""
        self._limits.request_timeout_s = settings.request_timeout_s
        self._limits.max_connections = settings.max_connections
        _raise_file_limit(settings.max_connections)

    @contextlib.asynccontextmanager
    async def answering(self, listener: socket.socket) -> AsyncIterator[None]:
        """Answer requests until the body has ended. A signal ends a body that has not come to
        `until_told` as if it were canceled; that error goes no further."""
        body = asyncio.current_task()
        assert body is not None  # noqa: S101 - in a coroutine
        self._handle_signals(body)
        self._serving = serving = asyncio.create_task(self.serve(sockets=[listener]), name="http")
        try:
            yield
        except asyncio.CancelledError:
            if not self.should_exit:
                raise
        finally:
            self.should_exit = True
            await serving

    async def until_told(self, reload: Callable[[], None]) -> None:
        """Returns after a signal, once requests under way have ended; SIGHUP calls `reload`."""
        assert self._serving is not None  # noqa: S101 - in the body of `answering`
        self._reload = reload
        await asyncio.shield(self._serving)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Not uvicorn's way."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, end the streams, wait for the other requests."""
        self._threshold.close()
        await super().shutdown(sockets)

    def _handle_signals(self, body: asyncio.Task[None]) -> None:
        def stop(number: int) -> None:
            if self.should_exit:
                os._exit(128 + number)
            self.should_exit = True
            # Of a thread: also what comes after the event loop may hang.
            last = threading.Timer(LEAVE_S, _leave)
            last.daemon = True
            last.start()
            if self._reload is None:
                body.cancel()

        # The kernel, too, sends SIGHUP: when the terminal that we were started from goes away.
        in_terminal = os.isatty(0) and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN

        def hang_up() -> None:
            if in_terminal and not os.isatty(0):
                stop(signal.SIGHUP)
            elif self._reload is not None:
                self._reload()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop, number)
        loop.add_signal_handler(signal.SIGHUP, hang_up)


def _leave() -> None:
    _log.warning("ended while calls of others were under way; no task is lost by that")
    os._exit(0)


@contextlib.contextmanager
def listening(settings: Settings) -> Iterator[socket.socket]:
    """The server's socket, listening: connections wait in its queue until they are answered.

    Raises Occupied when the port is taken, ConfigurationError for an unusable address.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, number)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no host name"
        raise ConfigurationError([f"HOST: {reason}; name an address of this machine"]) from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            where = f"{settings.host} port {settings.port}"
            text = f"cannot listen on {where}: {error.strerror}"
            if isinstance(error, PermissionError):
                raise ConfigurationError([f"PORT: {text}; choose one above 1023"]) from error
            raise Occupied(f"{text}; choose another --port (0: any that is free)") from error
        listener.setblocking(False)
        yield listener


def give_memory_back() -> None:
    """Keep what large bodies took from staying with this process: glibc would, after the first of
    them was freed, cut the next ones out of heaps that seldom shrink."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_MEMORY)


def _raise_file_limit(connections: int) -> None:
    """Have as many file descriptors as these need, and all else, or as many as may be had."""
    wanted = connections + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))

"""Puts the server together: the only server file that names concrete classes.

Exit codes of `serve`:

| code | meaning |
|---|---|
| 0 | stopped by SIGTERM or SIGINT; running tasks keep running, the next server takes them up |
| 1 | a fault of the program; the log has it |
| 2 | a setting is wrong, or names something that cannot be used |
| 3 | the port or the data directory is in use, or the database or the Key Vault cannot be reached |
| 128 + n | ended at once by a second signal n |
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import uvicorn
import uvloop

from tesazure import __version__, json_log
from tesazure.api.access_log import AccessLog
from tesazure.api.app import Application
from tesazure.api.audit import Audit
from tesazure.api.daemon_threads import DaemonThreads
from tesazure.api.limits import ConnectionLimits, protocol
from tesazure.api.lines import Lines
from tesazure.api.parts import Parts
from tesazure.backends.base import Backend
from tesazure.backends.local import LocalBackend, LocalConfig
from tesazure.budgets import Budgets
from tesazure.errors import ConfigurationError, StoreUnavailable
from tesazure.grants import LISTING, Grants
from tesazure.home import Home, Occupied, make_private, opened
from tesazure.lifecycle import Policy
from tesazure.plan import GB, Defaults, contains
from tesazure.runner.engines.choose import EngineChoice, find_engine
from tesazure.scheduler.adapting import Adapting
from tesazure.scheduler.config import SchedulerConfig
from tesazure.scheduler.granting import Granting
from tesazure.scheduler.loop import Scheduler
from tesazure.scheduler.retention import Kept
from tesazure.sealing import find_seal
from tesazure.settings import Effective, Settings, passed_on
from tesazure.settings.reloading import Reloader
from tesazure.signin.configured import sign_in_of
from tesazure.signin.gate import Gate
from tesazure.signin.ledger import Ledger
from tesazure.signin.tokens import TokenSource
from tesazure.storage.configured import Account, accounts_of, endpoints_of, grant_config_of
from tesazure.storage.grant import Granter
from tesazure.storage.mounted import MountDirs
from tesazure.storage.registry import Storages
from tesazure.storage.shared import SharedStorage
from tesazure.store.belonging import belong
from tesazure.store.examine import examine
from tesazure.store.sql_store import open_store
from tesazure.submitters.cromwell_paths import PathMapping

_BACKLOG = 1024
_DATABASE = "tesazure.db"
_DRAIN_S = 5
"""Seconds that requests under way get to end when the server stops."""
_SETTINGS_S = 180.0
"""Seconds in which the settings must have been read again, Key Vault and all."""
_YOUNG = 20_000
"""Objects made between two looks of the collector: requests leave no cycles behind."""
_M_MMAP_THRESHOLD = -3
"""Of mallopt(3)."""
_LARGE_MEMORY = 2**20
"""Bytes from which on memory is asked of the system and given back, whatever was freed before."""
_SPARE_FILES = 1024
"""File descriptors beside those of connections: database, attempts, libraries."""
_log = logging.getLogger(__name__)

EngineName = Literal["docker", "podman", "sandbox"]


def serve(effective: Effective, again: Callable[[], Effective]) -> int:
    """Run the server until it is told to stop; returns its exit code (see above). `again` reads the
    settings once more, as settings.Sources.again."""
    settings = effective.settings
    json_log.configure(settings.log_level)
    try:
        with opened(settings.data_dir) as home, _listening(settings) as listener:
            _raise_file_limit(settings.max_connections + _SPARE_FILES)
            _give_memory_back()
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_serve(effective, again, home, listener))
        return 0
    except ConfigurationError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)  # noqa: T201 - to whoever started us
        return 2
    except (Occupied, StoreUnavailable) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 3


def engine_of(settings: Settings, wanted: EngineName | None = None) -> EngineChoice:
    """The engine that a server with these settings would take, or would if it had to be `wanted`.
    Raises ConfigurationError with what was tried. For the command line."""
    hosts = settings.docker_host, settings.podman_host
    return find_engine(wanted or settings.local_engine, *hosts, _runtime_dir())


def database_of(settings: Settings) -> str:
    """How the database is that a server with these settings would open, in words; nothing is
    changed. Raises ConfigurationError, StoreUnavailable. For the command line."""
    return examine(settings.database_url, settings.data_dir.absolute() / _DATABASE)


def storage_accounts_of(settings: Settings) -> list[Account]:
    """The storage systems that the settings have credentials for. For the command line."""
    return accounts_of(settings)


@dataclass(frozen=True, slots=True)
class Assembled:
    """A server that runs, but for its socket."""

    application: Application
    grants: Grants
    gate: Gate
    budgets: Budgets
    scheduler: Scheduler | None
    access_log: AccessLog

    async def apply(self, settings: Settings) -> None:
        """See settings.reloading.Apply."""
        granter = _granter(settings)
        await self.gate.use(sign_in_of(settings))
        self.grants.granter = granter
        self.budgets.use(settings.budgets, settings.budget_action)
        if self.scheduler is not None:
            self.scheduler.keep(_kept(settings))
        json_log.use(settings.log_level)
        self.access_log.enabled = _logs_requests(settings)


@contextlib.asynccontextmanager
async def token_ledger(settings: Settings) -> AsyncIterator[Ledger]:
    """The API tokens of a server with these settings, whether it runs or not; makes the database if
    need be. Raises ConfigurationError, StoreUnavailable. For the command line."""
    home = settings.data_dir.absolute()
    if not settings.database_url:
        make_private(home)
    store = await open_store(settings.database_url, home / _DATABASE)
    try:
        if not settings.database_url:
            # A server that keeps its tasks in PostgreSQL has such a directory, too.
            belong(home, await store.identity())
        yield Ledger(store)
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def assembled(settings: Settings, home: Home) -> AsyncIterator[Assembled]:
    """The whole server but for its socket: store, backend, scheduler and application, running.

    Raises ConfigurationError, StoreUnavailable.
    """
    _check_allowed(settings, home)
    async with contextlib.AsyncExitStack() as stack:
        store = await open_store(settings.database_url, home.path / _DATABASE)
        stack.push_async_callback(store.close)
        identity = await store.identity()
        belong(home.path, identity)
        seal = find_seal(settings.secrets_key, home.path / "secrets.key")
        seal.check(await store.sealing_key(seal.names))
        backend = _backend(settings, home, identity)
        stack.push_async_callback(backend.stop)
        await backend.start()
        urls = _urls(settings, home, backend)
        stack.callback(urls.close)
        listed = Storages(
            (),
            allow_private=settings.allow_private_addresses,
            endpoints=endpoints_of(settings),
        )
        listed.wait(LISTING)
        stack.callback(listed.close)
        scheduler, grants = None, Grants(_granter(settings), listed)
        mapping = _mapping(settings)
        budgets = Budgets(settings.budgets, settings.budget_action)
        if settings.scheduler:
            adapting = Adapting(mapping, grants.names)
            granting = Granting(store, seal, grants.grant, adapting.adapt)
            config = _scheduler_config(settings, budgets)
            scheduler = Scheduler(store, backend, granting, config, home.server)
            stack.push_async_callback(scheduler.stop)
            await scheduler.start()
        lines = Lines(sys.stderr.fileno())
        stack.callback(lines.flush)
        audit = Audit(lines)
        tokens = TokenSource(
            store, changed=lambda change, token: audit.note_token(change, token.id, token.user)
        )
        gate = Gate(sign_in_of(settings), tokens)
        await stack.enter_async_context(gate.standing())
        parts = Parts(
            settings=settings,
            store=store,
            backend=backend,
            gate=gate,
            audit=audit,
            urls=urls,
            seal=seal,
            pulse=scheduler,
            budgets=budgets,
            identity=identity,
            created=home.created,
            started=time.time(),
            closing=asyncio.Event(),
            clock=time.time,
            cromwell=mapping,
        )
        access_log = AccessLog(lines, _logs_requests(settings))
        application = Application(parts, access_log)
        stack.callback(application.close)
        _warn(backend)
        yield Assembled(application, grants, gate, budgets, scheduler, access_log)


def _check_allowed(settings: Settings, home: Home) -> None:
    """Raises ConfigurationError for an allowed directory that tasks could never use."""
    data = os.path.realpath(home.path)
    problems = [
        f"ALLOW_DIR: entry {number} is in the data directory {home.path}, which is closed to all"
        " tasks; name another one with --allow-dir"
        for number, directory in enumerate(settings.allow_dir, 1)
        if contains(data, os.path.realpath(directory))
    ]
    if problems:
        raise ConfigurationError(problems)


async def _serve(
    effective: Effective, again: Callable[[], Effective], home: Home, listener: socket.socket
) -> None:
    settings = effective.settings
    threads = DaemonThreads("settings", 1, _SETTINGS_S)
    async with contextlib.AsyncExitStack() as stack:
        whole = await stack.enter_async_context(assembled(settings, home))
        reloader = Reloader(effective, lambda: threads.run(again), whole.apply)
        stack.push_async_callback(reloader.stop)
        await reloader.start()
        # What has been made by now stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG)
        server = _Server(_uvicorn_config(settings, whole.application), whole.application)
        _handle_signals(server, reloader)
        _announce(settings, home, listener)
        await server.serve(sockets=[listener])
        _log.info("stopping; running tasks keep running")


def _logs_requests(settings: Settings) -> bool:
    return settings.log_level in ("debug", "info")


class _Server(uvicorn.Server):
    """uvicorn, with streams that end when it stops, and without its own idea of signals."""

    def __init__(self, config: uvicorn.Config, application: Application) -> None:
        super().__init__(config)
        self._application = application

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are handled by `_handle_signals`."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, end the streams, wait for the other requests."""
        self._application.close()
        await super().shutdown(sockets)


def _uvicorn_config(settings: Settings, application: Application) -> uvicorn.Config:
    limits = ConnectionLimits(settings.request_timeout_s, settings.max_connections)
    return uvicorn.Config(
        application.asgi,
        http=protocol(limits, application.refused),
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


def _handle_signals(server: uvicorn.Server, reloader: Reloader) -> None:
    """The first signal ends the server in order, the second one at once: nothing is lost by that,
    the next server takes up what it finds. SIGHUP has the settings read again."""

    def stop(number: int) -> None:
        if server.should_exit:
            os._exit(128 + number)
        server.should_exit = True

    # The kernel, too, sends SIGHUP: when the terminal that we were started from goes away.
    in_terminal = os.isatty(0) and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN

    def hang_up() -> None:
        if in_terminal and not os.isatty(0):
            stop(signal.SIGHUP)
        else:
            reloader.ask()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    loop.add_signal_handler(signal.SIGHUP, hang_up)


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    """The server's socket, listening: connections wait in its queue until the server is ready.

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


def _give_memory_back() -> None:
    """Keep what large bodies took from staying with this process: glibc would, after the first of
    them was freed, cut the next ones out of heaps that seldom shrink."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_MEMORY)


def _raise_file_limit(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _backend(s: Settings, home: Home, identity: str) -> Backend:
    """Raises ConfigurationError."""
    if s.compute_backend == "local":
        return LocalBackend(_local_config(s, home))
    from tesazure.backends.azure_batch.backend import AzureBatchBackend
    from tesazure.backends.azure_batch.configured import config_of

    try:
        return AzureBatchBackend(config_of(s, identity, home.path / "azure-batch"))
    except OSError as error:
        raise ConfigurationError([f"Azure Batch: {error}"]) from error


def _urls(s: Settings, home: Home, backend: Backend) -> Storages:
    """What checks the URLs of tasks. Nodes elsewhere have none of this machine's files."""
    local = backend if isinstance(backend, LocalBackend) else None
    hidden = local.data_dirs() if local else ()
    urls = Storages(
        s.allow_dir if local else (),
        hidden,
        allow_private=s.allow_private_addresses,
        endpoints=endpoints_of(s),
    )
    if local:
        urls.mount(MountDirs(s.mount_dir, hidden))
    if local or s.batch_file_share:
        urls.serve_shared(SharedStorage(Path(s.shared_global_dir or home.path)))
    return urls


def _local_config(s: Settings, home: Home) -> LocalConfig:
    return LocalConfig(
        data_dir=home.path,
        engine=s.local_engine,
        docker_host=s.docker_host,
        podman_host=s.podman_host,
        runtime_dir=_runtime_dir(),
        cpu_cores=s.local_cpu_cores,
        ram_bytes=int(s.local_ram_gb * GB),
        disk_bytes=int(s.local_disk_gb * GB),
        allow_dirs=s.allow_dir,
        mount_dirs=s.mount_dir,
        shared_global=s.shared_global_dir,
        allow_private=s.allow_private_addresses,
        endpoints=endpoints_of(s),
        cache_bytes=int(s.input_cache_gb * GB),
        network=s.task_network,
        tail_bytes=s.log_tail_bytes,
        environment=passed_on(),
    )


def _runtime_dir() -> str:
    """Where systemd puts XDG_RUNTIME_DIR: a user's Podman has its socket there."""
    return f"/run/user/{os.geteuid()}"


def _scheduler_config(s: Settings, budgets: Budgets) -> SchedulerConfig:
    return SchedulerConfig(
        policy=Policy(
            max_retries=s.max_retries,
            retry_delay_s=s.retry_delay_s,
            credential_s=s.credential_hours * 3600 if s.compute_backend == "batch" else 0,
        ),
        defaults=Defaults(
            s.default_cpu_cores, s.default_ram_gb, s.default_disk_gb, s.max_runtime_s
        ),
        kept=_kept(s),
        budgets=budgets,
        backfill_s=s.backfill_s,
        lease_s=s.lease_s,
    )


def _kept(s: Settings) -> Kept:
    return Kept(work_s=s.work_retention_hours * 3600, records_s=s.task_retention_days * 86400)


def _mapping(s: Settings) -> PathMapping:
    name = s.cromwell_storage_container_name
    container = f"{endpoints_of(s).blob}/{name}" if name else ""
    return PathMapping(container, s.cromwell_map_shared_global)


def _granter(s: Settings) -> Granter:
    """Raises ConfigurationError."""
    try:
        return Granter(grant_config_of(s))
    except OSError as error:
        raise ConfigurationError([f"credentials for storage: {error.strerror}"]) from error


def _announce(settings: Settings, home: Home, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    store = "SQLite" if not settings.database_url else "PostgreSQL"
    if settings.database_url:
        parts = urlsplit(settings.database_url)
        store = f"{store} at {parts.hostname}{parts.path}"
    line = f"tesazure {__version__} listening on http://{shown}:{port}"
    print(f"{line} (data in {home.path}, {store})", flush=True)  # noqa: T201


def _warn(backend: Backend) -> None:
    capabilities = backend.capabilities
    _log.info("tasks run on %s by %s", capabilities.name, capabilities.engine)
    for warning in capabilities.warnings:
        print(f"WARNING: {warning}", file=sys.stderr, flush=True)  # noqa: T201

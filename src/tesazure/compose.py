"""Puts the server together: the only server file that names concrete classes.

Exit codes of `serve`:

| code | meaning |
|---|---|
| 0 | stopped by SIGTERM or SIGINT; running tasks keep running, the next server takes them up |
| 1 | a fault of the program; the log has it |
| 2 | a setting is wrong, or names something that cannot be used |
| 3 | the port or the data directory is in use, or the Key Vault cannot be reached |
| 128 + n | ended at once by a second signal n |
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol
from urllib.parse import urlsplit

import uvloop

from tesazure import __version__, json_log
from tesazure.api.access_log import AccessLog
from tesazure.api.app import Application
from tesazure.api.audit import Audit
from tesazure.api.lines import Lines
from tesazure.api.parts import Parts
from tesazure.api.threshold import BEGINS, Threshold
from tesazure.backends.base import Backend, Check
from tesazure.budgets import Budgets
from tesazure.daemon_threads import DaemonThreads
from tesazure.database_settings import DatabaseSettings
from tesazure.database_settings import opened as opened_settings
from tesazure.errors import ConfigurationError, StoreUnavailable, VaultUnavailable
from tesazure.grants import Threads
from tesazure.home import Home, Occupied, make_private, opened
from tesazure.key_vault import START_S
from tesazure.plan import contains
from tesazure.provision.azure_ground import azure_grounds
from tesazure.provision.base import Ground
from tesazure.provision.conductor import Conductor, Place
from tesazure.provisioning import Request
from tesazure.runner.engines.choose import EngineChoice, find_engine
from tesazure.sealing import Seal, find_seal
from tesazure.serving import Server, give_memory_back, listening
from tesazure.settings import Effective, Settings
from tesazure.settings.reloading import Reloader
from tesazure.settling import Settling
from tesazure.signin.configured import sign_in_of
from tesazure.signin.gate import Gate
from tesazure.signin.ledger import Ledger
from tesazure.signin.tokens import TokenSource
from tesazure.stations.configured import runtime_dir
from tesazure.stations.station import Footing
from tesazure.stations.switching import Stations
from tesazure.storage.configured import Account, accounts_of
from tesazure.store.base import Store
from tesazure.store.belonging import belong
from tesazure.store.entra import EntraSignIn, database_sign_in_of
from tesazure.store.examine import examine, kept_settings
from tesazure.store.records import KeptSetting
from tesazure.store.sql_store import open_store
from tesazure.telemetry.configured import telemetry_of

_DATABASE = "tesazure.db"
_SETTINGS_S = 180.0
"""Seconds in which the settings must have been read again, Key Vault and all."""
_YOUNG = 20_000
"""Objects made between two looks of the collector: requests leave no cycles behind."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
"""Between looks at whether the database answers by now."""
_NO_DATABASE = Check(
    "store",
    False,
    "the database does not answer; the server begins its work once it does",
    "see the server's log",
)
_NO_BACKEND = Check(
    "backend",
    False,
    "it is being made ready, which takes minutes when Azure does not answer",
    "wait; the server's log says what fails",
)
_log = logging.getLogger(__name__)

EngineName = Literal["docker", "podman", "sandbox"]


class Again(Protocol):
    """Reads all settings once more; see settings.Sources.again."""

    def __call__(
        self,
        kept: Mapping[str, str],
        patience_s: float = 0.0,
        say: Callable[[str], None] | None = None,
    ) -> Effective:
        """As that."""
        ...


def serve(effective: Effective, again: Again) -> int:
    """Run the server until it is told to stop; returns its exit code (see above). `effective` is as
    of settings.Sources.begin."""
    settings = effective.settings
    json_log.configure(settings.log_level)
    try:
        _demand_sound(effective)
        with opened(settings.data_dir) as home, listening(settings) as listener:
            give_memory_back()
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_serve(effective, again, home, listener))
        return 0
    except ConfigurationError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)  # noqa: T201 - to whoever started us
        return 2
    except (Occupied, VaultUnavailable) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 3


def engine_of(settings: Settings, wanted: EngineName | None = None) -> EngineChoice:
    """The engine that a server with these settings would take, or would if it had to be `wanted`.
    Raises ConfigurationError with what was tried. For the command line."""
    hosts = settings.docker_host, settings.podman_host
    return find_engine(wanted or settings.local_engine, *hosts, runtime_dir())


def database_of(settings: Settings) -> str:
    """How the database is that a server with these settings would open, in words; nothing is
    changed. Raises ConfigurationError, StoreUnavailable. For the command line."""
    file = settings.data_dir.absolute() / _DATABASE
    return examine(settings.database_url, file, sign_in=database_sign_in_of(settings))


def storage_accounts_of(settings: Settings) -> list[Account]:
    """The storage systems that the settings have credentials for. For the command line."""
    return accounts_of(settings)


@contextlib.asynccontextmanager
async def token_ledger(settings: Settings) -> AsyncIterator[Ledger]:
    """The API tokens of a server with these settings, whether it runs or not; makes the database if
    need be. Raises ConfigurationError, StoreUnavailable. For the command line."""
    async with _store_of(settings) as store:
        yield Ledger(store)


@contextlib.asynccontextmanager
async def _store_of(settings: Settings) -> AsyncIterator[Store]:
    home = settings.data_dir.absolute()
    if not settings.database_url:
        make_private(home)
    sign_in = database_sign_in_of(settings)
    store = await open_store(settings.database_url, home / _DATABASE, sign_in)
    try:
        if not settings.database_url:
            # A server that keeps its tasks in PostgreSQL has such a directory, too.
            belong(home, await store.identity())
        yield store
    finally:
        await store.close()


def database_settings_of(settings: Settings) -> dict[str, str]:
    """What the database of a server with these settings holds of further ones, by lower-case name.
    Raises ConfigurationError, StoreUnavailable. For the command line."""
    home = settings.data_dir.absolute()
    kept = kept_settings(settings.database_url, home / _DATABASE, database_sign_in_of(settings))
    return (
        opened_settings(kept, find_seal(settings.secrets_key, home / "secrets.key")) if kept else {}
    )


async def forget_settings(settings: Settings, names: Sequence[str]) -> None:
    """Have that database hold these settings, by lower-case name, no more. Its servers take that up
    within seconds. Raises ConfigurationError, also for one that it does not hold, and
    StoreUnavailable. For the command line."""
    async with _store_of(settings) as store:
        held = {one.name for one in (await store.settings())[1]}
        if unknown := [name.upper() for name in names if name not in held]:
            raise ConfigurationError([f"{name}: is not in the database" for name in unknown])
        await store.keep_settings([KeptSetting(name) for name in names])


@dataclass(frozen=True, slots=True)
class Assembled:
    """A server that runs, but for its socket."""

    application: Application
    reloader: Reloader


@dataclass(frozen=True, slots=True)
class _Live:
    """What follows the settings of a running server."""

    stations: Stations
    gate: Gate
    budgets: Budgets
    access_log: AccessLog
    database_sign_in: EntraSignIn | None

    async def apply(self, settings: Settings) -> None:
        """See settings.reloading.Apply."""
        database = self.database_sign_in
        changing = contextlib.nullcontext() if database is None else database.changing(settings)
        async with self.stations.changing(settings), changing:
            await self.gate.use(sign_in_of(settings))
        self.stations.keep(settings)
        self.budgets.use(settings.budgets, settings.budget_action)
        json_log.use(settings.log_level)
        self.access_log.enabled = _logs_requests(settings)


@contextlib.asynccontextmanager
async def _assembled(
    effective: Effective, again: Again, home: Home, threshold: Threshold
) -> AsyncIterator[Assembled]:
    """The whole server but for its socket: store, backend, scheduler and application, running.
    `threshold` is told what that waits for.

    Raises ConfigurationError, StoreUnavailable, VaultUnavailable.
    """
    threads = DaemonThreads("settings", 1, _SETTINGS_S)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(threads.close)
        settings = effective.settings
        sign_in = database_sign_in_of(settings)
        store = await open_store(settings.database_url, home.path / _DATABASE, sign_in)
        stack.push_async_callback(store.close)
        threshold.missing = BEGINS
        belong(home.path, identity := await store.identity())
        seal = await _seal_of(settings, home, store)
        shared = DatabaseSettings(store, seal)
        await shared.reseal()

        async def load(patience_s: float = 0.0) -> Effective:
            kept = await shared.take()
            return await threads.run(lambda: again(kept, patience_s, _log.warning))

        async def preview(values: Mapping[str, str]) -> Effective:
            merged = {**await shared.read(), **values}
            kept = {name: value for name, value in merged.items() if value}
            return await threads.run(lambda: again(kept))

        if effective.problems or await shared.changed():
            effective = await load(START_S)
            settings = effective.settings
            json_log.use(settings.log_level)
        _check_allowed(settings, home)
        telemetry = await stack.enter_async_context(telemetry_of(settings))
        threshold.missing = _NO_BACKEND
        budgets = Budgets(settings.budgets, settings.budget_action)
        footing = Footing(store, identity, seal, home, budgets, Threads(), telemetry.of_attempts)
        stations = Stations(footing)
        stack.push_async_callback(stations.stop)
        await stations.start(settings)
        lines = Lines(sys.stderr.fileno())
        stack.callback(lines.flush)
        audit = Audit(lines)
        gate = Gate(
            sign_in_of(settings),
            TokenSource(
                store, changed=lambda change, token: audit.note_token(change, token.id, token.user)
            ),
        )
        await stack.enter_async_context(gate.standing())
        access_log = AccessLog(lines, _logs_requests(settings))
        live = _Live(stations, gate, budgets, access_log, sign_in)
        reloader = Reloader(effective, load, live.apply, shared.changed)

        def ground_of(request: Request, run_id: str) -> Ground:
            return azure_grounds(reloader.settings, identity)(request, run_id)

        conductor = Conductor(
            store,
            ground_of,
            Settling(footing, shared, preview, reloader),
            Place(home.server, identity, settings.lease_s),
        )
        parts = Parts(
            settings=settings,
            store=store,
            stations=stations,
            gate=gate,
            audit=audit,
            seal=seal,
            pulse=stations if settings.scheduler else None,
            budgets=budgets,
            identity=identity,
            created=home.created,
            started=time.time(),
            closing=asyncio.Event(),
            clock=time.time,
            provisioner=conductor,
        )
        application = Application(parts, access_log)
        telemetry.serve(application)
        stack.callback(application.close)
        _warn(stations.current.backend)
        stack.push_async_callback(reloader.stop)
        await reloader.start()
        stack.push_async_callback(conductor.stop)
        await conductor.start()
        yield Assembled(application, reloader)


async def _seal_of(settings: Settings, home: Home, store: Store) -> Seal:
    """Raises ConfigurationError when it is not that of the store's other servers."""
    seal = find_seal(settings.secrets_key, home.path / "secrets.key")
    seal.check(await store.sealing_key(seal.names))
    return seal


def _demand_sound(effective: Effective) -> None:
    """Raises ConfigurationError for settings that no database can mend, before anything is made."""
    s = effective.settings
    if effective.problems and not s.database_url and not (s.data_dir / _DATABASE).exists():
        raise ConfigurationError(effective.problems)


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


async def _serve(effective: Effective, again: Again, home: Home, listener: socket.socket) -> None:
    """Answer from now on, do the work once all is there, and end when told to."""
    threshold = Threshold()
    server = Server(effective.settings, threshold)
    async with (
        server.answering(listener),
        _begun(effective, again, home, threshold, listener) as whole,
    ):
        # What has been made by now stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG)
        server.limit(whole.reloader.settings)
        threshold.open(whole.application)
        _announce(whole.reloader.settings, home, _url(listener))
        await server.until_told(whole.reloader.ask)
        _log.info("stopping; running tasks keep running")


@contextlib.asynccontextmanager
async def _begun(
    effective: Effective, again: Again, home: Home, threshold: Threshold, listener: socket.socket
) -> AsyncIterator[Assembled]:
    """`_assembled`, once the database answers. Raises ConfigurationError, VaultUnavailable."""
    async with contextlib.AsyncExitStack() as stack:
        whole, told, pause_s = None, "", _FIRST_PAUSE_S
        while whole is None:
            try:
                whole = await stack.enter_async_context(
                    _assembled(effective, again, home, threshold)
                )
            except StoreUnavailable as error:
                threshold.missing = _NO_DATABASE
                if told != str(error):
                    told = str(error)
                    where = f"{_url(listener)}/readyz tells when"
                    _log.warning("work begins once the database answers (%s): %s", where, told)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        yield whole


def _logs_requests(settings: Settings) -> bool:
    return settings.log_level in ("debug", "info")


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _announce(settings: Settings, home: Home, url: str) -> None:
    store = "SQLite" if not settings.database_url else "PostgreSQL"
    if settings.database_url:
        parts = urlsplit(settings.database_url)
        store = f"{store} at {parts.hostname}{parts.path}"
    line = f"tesazure {__version__} listening on {url}"
    print(f"{line} (data in {home.path}, {store})", flush=True)  # noqa: T201


def _warn(backend: Backend) -> None:
    capabilities = backend.capabilities
    _log.info("tasks run on %s by %s", capabilities.name, capabilities.engine)
    for warning in capabilities.warnings:
        _log.warning("%s", warning)

"""One place where attempts are placed: a backend, and all that stands on it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from tesazure.backends.azure_batch.config import BatchConfig
from tesazure.backends.base import Backend
from tesazure.backends.local import LocalBackend, LocalConfig
from tesazure.budgets import Budgets
from tesazure.errors import ConfigurationError
from tesazure.grants import LISTING, Grants, Threads
from tesazure.home import Home
from tesazure.scheduler.adapting import Adapting
from tesazure.scheduler.granting import Granting
from tesazure.scheduler.loop import Scheduler
from tesazure.sealing import Seal
from tesazure.settings import Settings
from tesazure.stations.configured import (
    backend_config,
    granter_of,
    mapping_of,
    scheduler_config,
    urls_of,
)
from tesazure.storage.configured import endpoints_of
from tesazure.storage.registry import Storages
from tesazure.store.base import Store
from tesazure.submitters.cromwell_paths import PathMapping

READY_S = 90.0
"""Seconds that a new backend has to become ready."""


@dataclass(frozen=True, slots=True)
class Footing:
    """What all stations of a server stand on."""

    store: Store
    identity: str
    """The store's."""
    seal: Seal
    home: Home
    budgets: Budgets
    threads: Threads
    traced: Callable[[Backend], Backend] = lambda backend: backend
    """A backend whose attempts are traced, from one whose are not."""


@dataclass(frozen=True, slots=True, eq=False)
class Station:
    """Made by `make`. Its backend is started, its scheduler is not."""

    config: LocalConfig | BatchConfig
    backend: Backend
    urls: Storages
    cromwell: PathMapping
    grants: Grants
    scheduler: Scheduler | None
    """None: this process only answers HTTP."""
    listed: Storages

    @property
    def scope(self) -> str:
        """Of its attempts."""
        return self.backend.capabilities.scope

    @property
    def local(self) -> LocalBackend | None:
        """Its backend, if that is this machine."""
        return self.backend if isinstance(self.backend, LocalBackend) else None

    @property
    def idle_s(self) -> float:
        """How long its machines are kept without attempts, in seconds."""
        return self.config.idle_s if isinstance(self.config, BatchConfig) else 0.0

    async def rest(self) -> None:
        """Stop looking after attempts, which keep running. May be called twice."""
        if self.scheduler is not None:
            await self.scheduler.stop()

    async def demand_ready(self) -> None:
        """Raises ConfigurationError with all that its backend lacks."""
        try:
            async with asyncio.timeout(READY_S):
                checks = await self.backend.check()
        except TimeoutError:
            problems = [f"the new backend did not answer within {READY_S:g} s"]
        else:
            problems = [
                f"{check.name}: {check.detail}" + (f"; {check.remedy}" if check.remedy else "")
                for check in checks
                if not check.ok
            ]
        if problems:
            raise ConfigurationError(problems)

    def close(self) -> None:
        """Let go of all but the backend."""
        self.listed.close()
        self.urls.close()


async def make(settings: Settings, footing: Footing, local: LocalBackend | None) -> Station:
    """The station that the settings make. `local` is the backend of this machine, where it has been
    started: a data directory has but one. Raises ConfigurationError."""
    config = backend_config(settings, footing.identity, footing.home)
    granter = granter_of(settings)
    async with contextlib.AsyncExitStack() as stack:
        backend: Backend
        if isinstance(config, LocalConfig) and local is not None:
            backend = local
        else:
            backend = _backend(config)
            stack.push_async_callback(backend.stop)
            await backend.start()
        here = backend if isinstance(backend, LocalBackend) else None
        urls = urls_of(settings, footing.home, here)
        stack.callback(urls.close)
        private, endpoints = settings.allow_private_addresses, endpoints_of(settings)
        listed = Storages((), allow_private=private, endpoints=endpoints)
        listed.wait(LISTING)
        stack.callback(listed.close)
        grants, cromwell = Grants(granter, listed, footing.threads), mapping_of(settings)
        scheduler = None
        if settings.scheduler:
            adapting = Adapting(cromwell, grants.names)
            granting = Granting(footing.store, footing.seal, grants.grant, adapting.adapt)
            # Each scope is looked after under a name of its own; that for this machine's is as old
            # as the installation.
            server = footing.home.server
            name = server if here else f"{server}/{backend.capabilities.scope}"
            how = scheduler_config(settings, footing.budgets)
            scheduler = Scheduler(footing.store, footing.traced(backend), granting, how, name)
        stack.pop_all()
        return Station(config, backend, urls, cromwell, grants, scheduler, listed)


def _backend(config: LocalConfig | BatchConfig) -> Backend:
    if isinstance(config, LocalConfig):
        return LocalBackend(config)
    from tesazure.backends.azure_batch.backend import AzureBatchBackend

    return AzureBatchBackend(config)

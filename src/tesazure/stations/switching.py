"""From one station to another while the server runs.

| the new settings | what happens |
|---|---|
| make the same station | it is kept, and signs with the new credentials |
| lead to the same attempts, by another key or endpoint | the new station takes them over |
| lead elsewhere (another account, `COMPUTE_BACKEND`) | the former station ends what it began |

A new backend is started and has to be ready before anything changes. Nothing changes, either, while
attempts of the same account report to another storage than the new settings name.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping

import msgspec

from tesazure.backends import local_machine
from tesazure.backends.azure_batch.config import BatchConfig
from tesazure.backends.azure_batch.names import account_of, installation_of, scope_of
from tesazure.backends.base import Backend
from tesazure.backends.local import LocalBackend, LocalConfig
from tesazure.errors import BackendError, ConfigurationError, NotFound, StoreError
from tesazure.model import State
from tesazure.scheduler.loop import Scheduler
from tesazure.settings import Settings
from tesazure.settings.checks import conflicts
from tesazure.stations.configured import backend_config, granter_of, kept_of, mapping_of
from tesazure.stations.station import Footing, Station, make

LOOK_S = 5.0
"""Seconds between looks at whether a former station has nothing left."""
KEPT_S = 120.0
"""Seconds for which a former station stays without attempts. One whose task has another attempt
elsewhere counts for nothing until the task has ended."""

_log = logging.getLogger(__name__)


class Stations:
    """The stations of a running server: the current one, and former ones that end what they began.

    Also its `api.parts.Pulse`, where it has schedulers: the current one's, and the counts of all.
    """

    def __init__(self, footing: Footing, *, look_s: float = LOOK_S, kept_s: float = KEPT_S) -> None:
        self._footing = footing
        self._look_s, self._kept_s = look_s, kept_s
        self._current: Station | None = None
        self._former: list[Station] = []
        self._empty_since: dict[Station, float] = {}
        """Since when former ones have no attempts, on the monotonic clock."""
        self._unopened: dict[str, Settings] = {}
        """Scope -> settings that lead to what this server ran there before it was started."""
        self._told = ""
        """Why one of these could not be opened."""
        self._switching = asyncio.Lock()
        self._ending: asyncio.Task[None] | None = None
        self._past: Counter[str] = Counter()
        self._past_ends: Counter[tuple[State, str]] = Counter()
        """What schedulers that are no more have counted."""

    # -- for the API ----------------------------------------------------------------------------

    @property
    def current(self) -> Station:
        """That of the attempts from now on. Once `start` has returned."""
        assert self._current is not None  # noqa: S101 - as it says
        return self._current

    @property
    def engines(self) -> set[str]:
        """Of all, by name."""
        return {station.backend.capabilities.engine for station in self._all()}

    def backend_of(self, scope: str | None) -> Backend:
        """The one that reaches the attempts of a scope, or one of the same kind: it may know what
        was begun before its machine was renamed. Raises NotFound."""
        for same in (lambda of: of == scope, lambda of: _kind(of) == _kind(scope or "")):
            for station in self._all():
                if same(station.scope):
                    return station.backend
        raise NotFound(f"it ran on {_kind(scope or '')}, which this server does not reach now")

    @property
    def lag_s(self) -> float:
        """Of the current scheduler."""
        return self._scheduler.lag_s

    @property
    def last_tick(self) -> float:
        """Of the current scheduler."""
        return self._scheduler.last_tick

    @property
    def last_error(self) -> str:
        """Of the current scheduler."""
        return self._scheduler.last_error

    @property
    def placed(self) -> int:
        """Of all schedulers."""
        return self._past["placed"] + sum(each.placed for each in self._schedulers())

    @property
    def ends(self) -> Mapping[tuple[State, str], int]:
        """Of all schedulers."""
        ends = self._past_ends.copy()
        for each in self._schedulers():
            ends.update(each.ends)  # `+` would leave out what is 0
        return ends

    @property
    def retries(self) -> int:
        """Of all schedulers."""
        return self._past["retries"] + sum(each.retries for each in self._schedulers())

    def wake(self) -> None:
        """A task was submitted or is to be canceled."""
        for scheduler in self._schedulers():
            scheduler.wake()

    def waiting_for(self, task_id: str) -> str | None:
        """Why a queued task waits, in words."""
        said = (scheduler.waiting_for(task_id) for scheduler in self._schedulers())
        return next((text for text in said if text), None)

    # -- for whoever puts the server together ---------------------------------------------------

    async def start(self, settings: Settings) -> None:
        """Begin with the station of these settings; what was begun under others, and can still be
        reached, is ended by a former one. Raises ConfigurationError, StoreUnavailable."""
        self._current = await make(settings, self._footing, None)
        await _start(self._current)
        for scope, others in self._elsewhere(settings):
            if await self._footing.store.holds(scope):
                self._unopened[scope] = others
        await self._reopen()
        await self._tell_of_lost()
        self._ending = asyncio.create_task(self._end_empty(), name="stations")

    async def stop(self) -> None:
        """End; attempts keep running. May be called twice."""
        ending, self._ending = self._ending, None
        if ending is not None:
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)
        stations = [*self._all()]
        await asyncio.gather(*(station.rest() for station in stations))
        await asyncio.gather(*(station.backend.stop() for station in stations))
        for station in stations:
            station.close()

    @contextlib.asynccontextmanager
    async def changing(self, settings: Settings) -> AsyncIterator[None]:
        """Within, what the settings make is ready and not used yet. Left in order, attempts are
        placed by it from then on: what was placed in the same scope is looked after by it, what was
        placed elsewhere is looked after there. Left by an exception, nothing has changed. Raises
        ConfigurationError, with all reasons why it is not ready, and StoreUnavailable."""
        config = backend_config(settings, self._footing.identity, self._footing.home)
        if (config, mapping_of(settings)) == (self.current.config, self.current.cromwell):
            granter = granter_of(settings)
            yield
            self.current.grants.granter = granter
            return
        async with self._switching:
            await self._demand_same_storage(config)
            station = await make(settings, self._footing, self._local())
            try:
                await station.demand_ready()
                yield
            except BaseException:
                await self._discard(station)
                raise
            switch = asyncio.create_task(self._use(station))
            try:
                await asyncio.shield(switch)
            except asyncio.CancelledError:
                await switch  # half of it would leave tasks that nobody looks after
                raise

    async def _demand_same_storage(self, config: LocalConfig | BatchConfig) -> None:
        """A station of the same scope takes attempts over, and has to find what they report."""
        for of in (station.config for station in self._all()):
            if not isinstance(of, BatchConfig) or not isinstance(config, BatchConfig):
                continue
            same = (of.storage_url, of.container) == (config.storage_url, config.container)
            scope = scope_of(config.account, config.installation)
            if of.account != config.account or same:
                continue
            if await self._footing.store.holds(scope, live=True):
                where = f"{of.storage_url}/{of.container}"
                problem = (
                    "STORAGE_ACCOUNT_NAME, BATCH_STORAGE_CONTAINER: attempts that are not over in"
                    f" the Batch account {of.account} report to {where}; wait until they have ended"
                )
                raise ConfigurationError([problem])

    async def _use(self, station: Station) -> None:
        before = self.current
        replaced = [each for each in self._all() if each.scope == station.scope]
        if before not in replaced:
            _drain(before)
        for each in replaced:
            await each.rest()
        if station.local is not None:
            station.local.endpoints = station.config.endpoints
        self._current = station
        await _start(station)
        if before not in replaced:
            self._former.append(before)
            _log.info("what runs on %s is looked after there", _kind(before.scope))
        for each in replaced:
            await self._end(each)
        of = station.backend.capabilities
        _log.info("tasks run on %s by %s from now on", of.name, of.engine)

    async def _discard(self, station: Station) -> None:
        """Let go of one that is not used, or not any more."""
        station.close()
        if station.backend not in [each.backend for each in self._all()]:
            await station.backend.stop()

    def keep(self, settings: Settings) -> None:
        """Keep what has ended for as long as these settings say."""
        for scheduler in self._schedulers():
            scheduler.keep(kept_of(settings))

    # -- former ones ----------------------------------------------------------------------------

    def _elsewhere(self, settings: Settings) -> Iterator[tuple[str, Settings]]:
        """Scopes that the settings still lead to, though `compute_backend` is another one."""
        here = msgspec.structs.replace(settings, compute_backend="local")
        yield local_machine.node_name(), here
        if account := settings.batch_account_name:
            scope = scope_of(account, installation_of(self._footing.identity))
            yield scope, msgspec.structs.replace(settings, compute_backend="batch")

    async def _reopen(self) -> None:
        """Take up what this server ran before the settings led elsewhere."""
        for scope, settings in list(self._unopened.items()):
            if scope not in [station.scope for station in self._all()]:
                try:
                    if problems := conflicts(settings):
                        raise ConfigurationError(problems)
                    station = await make(settings, self._footing, None)
                except (ConfigurationError, BackendError) as error:
                    if self._told != str(error):
                        kind = _kind(scope)
                        _log.error("what ran on %s cannot be looked after yet: %s", kind, error)
                    self._told = str(error)
                    continue
                self._former.append(station)
                _drain(station)
                await _start(station)
                _log.info("what runs on %s is looked after; new tasks run elsewhere", _kind(scope))
            del self._unopened[scope]

    async def _tell_of_lost(self) -> None:
        """What runs where no setting leads any more cannot be asked after, nor be canceled."""
        led_to = {*self._unopened, *(station.scope for station in self._all())}
        for scope, attempts in sorted((await self._footing.store.live_attempts()).items()):
            if (account := account_of(scope)) and scope not in led_to:
                _log.warning(
                    "attempts of tasks in the Batch account %s that this server does not look"
                    " after, as no setting leads there any more: %d; to have them end, set"
                    " BATCH_ACCOUNT_NAME=%s, with the other BATCH_* and STORAGE_* settings of that"
                    " time, and start the server again: with COMPUTE_BACKEND=local it begins no"
                    " more there",
                    account,
                    attempts,
                    account,
                )

    async def _end_empty(self) -> None:
        """End former stations that have nothing left, now and then."""
        while True:
            await asyncio.sleep(self._look_s)
            try:
                async with self._switching:
                    await self._reopen()
                    for station in list(self._former):
                        if await self._is_done(station):
                            kind = _kind(station.scope)
                            await self._end(station)
                            _log.info("nothing is left of what ran on %s", kind)
            except StoreError:
                pass  # others say that the database is away
            except Exception:
                _log.exception("looking after former backends failed")

    async def _is_done(self, station: Station) -> bool:
        """Whether a former station has had no attempts for long enough."""
        if await self._footing.store.holds(station.scope):
            self._empty_since.pop(station, None)
            return False
        since = self._empty_since.setdefault(station, time.monotonic())
        # It deletes its pools, too, once they have been idle for so long.
        return time.monotonic() >= since + self._kept_s + station.idle_s

    async def _end(self, station: Station) -> None:
        """Have done with a station that is not the current one any more."""
        await station.rest()
        if (gone := station.scheduler) is not None:
            self._past.update(placed=gone.placed, retries=gone.retries)
            self._past_ends.update(gone.ends)
        self._empty_since.pop(station, None)
        if station in self._former:
            self._former.remove(station)
        await self._discard(station)

    def _all(self) -> Iterator[Station]:
        if self._current is not None:
            yield self._current
        yield from self._former

    def _schedulers(self) -> Iterator[Scheduler]:
        return (station.scheduler for station in self._all() if station.scheduler is not None)

    @property
    def _scheduler(self) -> Scheduler:
        assert self.current.scheduler is not None  # noqa: S101 - else this is nobody's Pulse
        return self.current.scheduler

    def _local(self) -> LocalBackend | None:
        return next((each.local for each in self._all() if each.local is not None), None)


async def _start(station: Station) -> None:
    if station.scheduler is not None:
        await station.scheduler.start()


def _drain(station: Station) -> None:
    if station.scheduler is not None:
        station.scheduler.drain()


def _kind(scope: str) -> str:
    """What a scope is part of, in words that name no machine."""
    return "Azure Batch" if scope.startswith("batch/") else "a server's own machine"

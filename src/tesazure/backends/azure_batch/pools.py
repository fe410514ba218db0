"""Pools that live and die by themselves: made for a shape when an attempt needs it, grown at once,
watched while attempts wait, and deleted when idle.

Nothing here is only in memory: pools and jobs are found again by their names.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec

from tesazure.backends.azure_batch import (
    autoscale,
    growth,
    names,
    pool_form,
    pool_words,
)
from tesazure.backends.azure_batch.account import Account, Gone, Refused
from tesazure.backends.azure_batch.autoscale import Scale
from tesazure.backends.azure_batch.catalog import Catalog
from tesazure.backends.azure_batch.config import BatchConfig
from tesazure.backends.azure_batch.growth import Told
from tesazure.backends.azure_batch.pool_look import look_at, text_of
from tesazure.backends.azure_batch.pool_maker import PoolMaker
from tesazure.backends.azure_batch.pool_words import Look
from tesazure.backends.azure_batch.shapes import Placement, Shape
from tesazure.errors import BackendError, BackendUnavailable

log = logging.getLogger(__name__)

LOOK_S = 10.0
"""Seconds between looks at a pool at least."""
RECENT_S = 60.0
"""How old a look may be that is told to operators."""
BETWEEN_FORMULAS_S = 35.0
"""Batch takes a new formula every 30 seconds at most ("Pool - Enable Auto Scale")."""
TOO_SOON = ("TooManyEnableAutoScaleRequests", "AutoScaleTooManyRequestsToEnable")
"""Batch's codes for that: another server of this installation was faster."""
BAD_FOR = timedelta(minutes=10)
"""How long a node may be unusable before it is removed: some recover by themselves."""
MOST_REMOVED = 10
"""Nodes of a pool removed in an hour: what breaks every node is not mended by new ones."""
ADOPT_S = 600.0
"""Seconds between looks for pools and jobs of ours that are not known."""
CROWDED_IDLE_S = 60.0
"""How long an idle pool is kept while others cannot be made."""
CROWDED_S = 300.0
"""For how long that is believed: tasks that need another pool ask again within minutes."""
MOST_NODES_KNOWN = 1000


@dataclass(slots=True)
class _Pool:
    """A pool of ours with its job, or our job in somebody's pool."""

    id: str
    job: str
    shape: Shape | None = None
    """None: not read yet."""
    ready: bool = False
    """Pool and job were there when last looked for, and a formula of today's settings was given."""
    halted: bool = False
    """Its formula is not evaluated, since nodes were removed: it has to be given again."""
    made: float = 0.0
    used: float = field(default_factory=time.monotonic)
    look: Look | None = None
    looked: float = -math.inf
    waiting: int = 0
    told: Told = field(default_factory=Told)
    told_at: float = -math.inf
    removed: list[float] = field(default_factory=list)
    """When nodes were removed."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    refusal: BackendError | None = None
    """Why it could not be made, the last time that was tried."""
    refused: float = -math.inf

    @property
    def is_foreign(self) -> bool:
        """Whether only the job is ours."""
        return self.id != self.job


class Pools:
    """The pools of one installation in one account. On the event loop."""

    def __init__(
        self,
        config: BatchConfig,
        account: Account,
        catalog: Catalog,
        *,
        look_s: float = LOOK_S,
        between_s: float = BETWEEN_FORMULAS_S,
    ) -> None:
        self._config = config
        self._account = account
        self._catalog = catalog
        self._maker = PoolMaker(config, account, catalog)
        self._look_s, self._between_s = look_s, between_s
        self._pools: dict[str, _Pool] = {}
        """By job."""
        self._short: dict[Shape, datetime] = {}
        self._bad_nodes: dict[tuple[str, str], str] = {}
        self._crowded = -math.inf
        """When there were too many pools."""
        self._adopted = -math.inf
        self._adopting = asyncio.Lock()

    async def start(self) -> None:
        """Find the pools that are there already. An account that does not answer now is asked
        again later."""
        try:
            await self._adopt()
        except BackendUnavailable as error:
            log.warning("pools on Azure Batch cannot be listed now: %s", error)

    def looks(self) -> list[Look]:
        """At pools that are watched, since attempts wait for them."""
        recent = time.monotonic() - RECENT_S
        pools = self._pools.values()
        return [p.look for p in pools if p.look and p.waiting and p.looked > recent]

    async def ensure(self, shape: Shape, again: bool = False) -> str:
        """The job for attempts of a shape; it and its pool are there. `again`: somebody deleted
        them, so look.

        Raises Unplaceable when an existing pool was named that cannot be used, BackendUnavailable
        when there can be no pool now.
        """
        begun = time.monotonic()
        id_ = pool_form.pool_id(self._config, shape)
        pool = self._pools.get(id_)
        if pool is None:
            if not shape.pool:
                await self._make_room(id_)
            pool = self._pools.setdefault(id_, _Pool(shape.pool or id_, id_, shape))
        pool.used = begun
        async with pool.lock:
            if not pool.ready or (again and pool.made < begun):
                if pool.refusal is not None and pool.refused > begun:
                    # Thousands may have waited: one try counts for all of them.
                    raise pool.refusal.with_traceback(None)
                pool.ready = False
                pool.shape = shape
                try:
                    if shape.pool:
                        await self._maker.check_pool(pool.id)
                    else:
                        await self._make(pool, shape)
                    await self._maker.make_job(pool.job, pool.id, shape)
                except BackendError as error:
                    pool.refusal, pool.refused = error, time.monotonic()
                    if not pool.made:
                        self._pools.pop(id_, None)
                    raise
                pool.ready, pool.made = True, time.monotonic()
            self._pools[id_] = pool
            pool.used = time.monotonic()
        return id_

    async def look(self, waiting: Mapping[str, int]) -> None:
        """See what the pools are about in whose jobs attempts wait (job -> how many), have them
        grow, and note what hinders them. One that cannot be seen keeps its last words."""
        if not waiting.keys() <= self._pools.keys():
            await self._adopt(LOOK_S)
        now, due = time.monotonic(), []
        for pool in self._pools.values():
            pool.waiting = waiting.get(pool.job, 0)
            if pool.waiting:
                pool.used = now
            if pool.job in waiting and now - pool.looked >= self._look_s:
                due.append(pool)
        await self._look_at_all(due)

    async def look_for_failures(self, job: str) -> None:
        """See what is wrong with nodes of a job's pool, as attempts have lost theirs. If the pool
        cannot be seen, or is not known, nothing is known of them."""
        pool = self._pools.get(job)
        if pool is not None:
            await self._look_at_all([pool])

    def reason(self, job: str) -> str:
        """What an attempt that waits in a job waits for, as of the last look."""
        pool = self._pools.get(job)
        if pool is None:
            return pool_words.waiting(job, None)
        return pool_words.waiting(pool.id, pool.look)

    def placement(self, job: str, slots: int) -> Placement | None:
        """Where an attempt that takes so many slots is, by its job; None: not known."""
        pool = self._pools.get(job)
        if pool is None or pool.shape is None:
            return None
        shape = pool.shape
        size = self._catalog.sizes.find(shape.vm_size)
        price = size.price(shape.spot) if size is not None else None
        return Placement(shape=shape, slots=slots, price_per_hour_usd=price)

    def is_lost(self, job: str) -> bool:
        """Whether the pool of a job was gone at the last look, and is not ours to make again:
        attempts that wait in it would do so for ever."""
        pool = self._pools.get(job)
        if pool is None or pool.look is None or pool.look.state != "gone":
            return False
        return pool.is_foreign or pool.shape is None

    def short(self) -> frozenset[Shape]:
        """Spot shapes of which Azure has no nodes at the moment."""
        now = datetime.now(UTC)
        self._short = {shape: until for shape, until in self._short.items() if until > now}
        return frozenset(self._short)

    def failed_node(self, job: str, node: str) -> str:
        """What was wrong with a node, in words; empty: nothing is known."""
        return self._bad_nodes.get((job, node), "")

    async def tidy(self, live: Collection[str], waiting: Mapping[str, int] = {}) -> None:
        """Delete the pools and jobs of ours that no attempt has used for long. `live`: jobs that
        attempts of this server are in, of which so many may be `waiting`."""
        await self._adopt()
        # Where nobody waits nobody looks: a pool without its formula does not shrink, and Batch may
        # leave what runs on a node that cannot be used any more there, until the node is removed.
        late = time.monotonic() - self._look_s
        due = [
            pool
            for pool in self._pools.values()
            if pool.halted or (pool.job in live and not pool.is_foreign and pool.looked <= late)
        ]
        for pool in due:
            pool.waiting = waiting.get(pool.job, 0)
        await self._look_at_all(due)
        idle_s = self._config.idle_s
        if time.monotonic() - self._crowded < CROWDED_S:
            idle_s = min(idle_s, CROWDED_IDLE_S)
        for pool in list(self._pools.values()):
            if pool.job in live:
                pool.used = time.monotonic()
            elif time.monotonic() - pool.used >= idle_s:
                try:
                    await self._delete_idle(pool, idle_s)
                except BackendUnavailable as error:
                    log.warning("pool %s is idle and cannot be deleted: %s", pool.id, error)

    # -- finding and making ---------------------------------------------------------------------

    async def _adopt(self, every_s: float = ADOPT_S) -> None:
        """Learn of the pools and jobs that bear our name, if that was long ago."""
        async with self._adopting:
            if time.monotonic() - self._adopted < every_s:
                return
            own = names.prefix(self._config.installation)
            text = f"startswith(id, '{own}')"
            found = await self._account.call(
                "list pools",
                lambda client: list(
                    client.list_pools(
                        filter=text, select=["id", "state", "metadata", "enableAutoScale"]
                    )
                ),
            )
            jobs = await self._account.call(
                "list jobs",
                lambda client: list(
                    client.list_jobs(filter=text, select=["id", "state", "poolInfo", "metadata"])
                ),
            )
            self._adopted = time.monotonic()
        for each in found:
            if text_of(each.state) == "active":
                pool = self._pools.setdefault(each.id, _Pool(each.id, each.id))
                pool.shape = pool.shape or pool_form.shape_in(each.metadata)
                pool.halted = each.enable_auto_scale is False
        for job in jobs:
            id_ = (job.pool_info.pool_id if job.pool_info else "") or job.id
            if job.id and id_ and text_of(job.state) != "deleting":
                pool = self._pools.setdefault(job.id, _Pool(id_, job.id))
                pool.shape = pool.shape or pool_form.shape_in(job.metadata)

    async def _make_room(self, id_: str) -> None:
        """Raises BackendUnavailable when there are as many pools as settings allow."""
        await self._adopt()
        most = self._config.max_pools
        mine = [pool for pool in self._pools.values() if not pool.is_foreign]
        if id_ in self._pools or len(mine) < most:
            return
        self._crowded = time.monotonic()
        raise BackendUnavailable(
            f"this installation has {len(mine)} pools, and BATCH_MAX_POOLS is {most}; the task"
            " waits until one is idle and is deleted"
        )

    async def _make(self, pool: _Pool, shape: Shape) -> None:
        """Make the pool, or take the one that is there, with a formula of today's settings."""
        told = growth.begin(datetime.now(UTC))
        found = await self._maker.make_pool(pool.id, shape, self._scale(shape, told))
        if found is None:
            pool.told = told
            return
        tries_one = pool.told.tries_one or autoscale.tries_one(found.auto_scale_formula or "")
        await self._tell(pool, shape, msgspec.structs.replace(told, tries_one=tries_one))

    # -- growing --------------------------------------------------------------------------------

    def _scale(self, shape: Shape, told: Told) -> Scale:
        return Scale(
            minimum=self._config.min_nodes,
            maximum=self._maximum(shape),
            slots=shape.slots,
            spot=shape.spot,
            floor=told.floor,
            floor_until=told.floor_until,
            dedicated_until=told.dedicated_until,
            tries_one=told.tries_one,
        )

    def _maximum(self, shape: Shape) -> int:
        """Nodes of one pool: not more than settings and quotas allow, though all pools together
        may want more than the quotas; then Batch says so."""
        sizes = self._catalog.sizes
        size = sizes.find(shape.vm_size)
        allowed = sizes.quotas.nodes(size, shape.spot) if size is not None else None
        most = self._config.max_nodes
        return most if allowed is None else max(1, min(most, allowed))

    async def _tell(self, pool: _Pool, shape: Shape, told: Told) -> None:
        """Give a pool its formula. With the interval, Batch begins its evaluations anew ("Pool -
        Enable Auto Scale"). One that refuses it keeps the one that it has: tasks can run."""
        from azure.batch import models

        options = models.BatchPoolEnableAutoScaleOptions(
            auto_scale_formula=autoscale.formula(self._scale(shape, told)),
            auto_scale_evaluation_interval=autoscale.INTERVAL,
        )
        pool.told_at = time.monotonic()
        try:
            await self._account.call(
                "change a pool's formula",
                lambda client: client.enable_pool_auto_scale(pool.id, options),
            )
            pool.told, pool.halted = told, False
        except Gone:
            raise
        except Refused as error:
            if error.code not in TOO_SOON:
                log.warning("pool %s keeps its formula: %s", pool.id, error)

    async def _grow(self, pool: _Pool, shape: Shape, look: Look, fails: bool) -> bool:
        """Ask for the nodes that what waits needs; whether it was needed. `fails`: nodes have not
        worked for long."""
        now = datetime.now(UTC)
        if growth.is_short(look) and pool.told.dedicated_until <= now:
            self._short[shape] = now + growth.SHORT
        told = growth.grow(
            pool.told,
            look,
            waiting=pool.waiting,
            slots=shape.slots,
            fallback=self._config.spot_fallback,
            fails=fails,
            now=now,
        )
        if pool.halted and look.resizing:  # Batch would refuse
            return False
        if told is None or time.monotonic() - pool.told_at < self._between_s:
            return False
        await self._tell(pool, shape, told)
        return True

    # -- looking --------------------------------------------------------------------------------

    async def _look_at_all(self, pools: Collection[_Pool]) -> None:
        """One that cannot be seen is logged, and keeps what is known."""
        looks = await asyncio.gather(*map(self._look_at, pools), return_exceptions=True)
        for pool, error in zip(pools, looks, strict=True):
            if isinstance(error, BackendError):
                log.warning("pool %s cannot be looked at: %s", pool.id, error)
            elif error is not None:
                raise error

    async def _look_at(self, pool: _Pool) -> None:
        pool.looked = time.monotonic()
        try:
            seen = await look_at(self._account, pool.id)
        except Gone:
            await self._bring_back(pool)
            return
        for node, words in seen.bad.items():
            self._bad_nodes[pool.job, node] = words
        while len(self._bad_nodes) > MOST_NODES_KNOWN:
            del self._bad_nodes[next(iter(self._bad_nodes))]
        look = seen.look
        if pool.waiting and look.idle:  # why does nothing begin?
            look = msgspec.structs.replace(look, job=await self._maker.job_state(pool.job))
        pool.shape = shape = pool.shape or pool_form.shape_in(seen.pool.metadata)
        if pool.is_foreign or shape is None:
            pool.look = pool_words.after(pool.look, look)
            return
        look = msgspec.structs.replace(look, maximum=self._maximum(shape), spot=shape.spot)
        if look.scales:
            pool.told = msgspec.structs.replace(pool.told, tries_one=look.tries_one)
        else:  # Batch has forgotten the formula
            look = msgspec.structs.replace(look, tries_one=pool.told.tries_one)
        # Before anything is asked for, which may fail.
        was_halted = pool.halted
        pool.look, pool.halted = pool_words.after(pool.look, look), not look.scales
        # Another server has just halted it, and knows better what it needs; unless that server has
        # ended, which the next look shows.
        is_others = pool.halted and not (was_halted or pool.waiting)
        if look.state == "active" and not is_others:
            bad = seen.long_bad(BAD_FOR)
            if not await self._grow(pool, shape, look, bool(bad)):
                await self._remove(pool, look, bad)

    async def _bring_back(self, pool: _Pool) -> None:
        """Somebody deleted a pool; its job may still be there, and attempts wait in it."""
        pool.look, pool.ready, pool.halted = Look(state="gone"), False, False
        # It has its id, though today's settings may have another for its shape.
        if pool.waiting and pool.shape is not None and not pool.is_foreign:
            async with pool.lock:
                await self._make(pool, pool.shape)
                pool.look = None

    async def _remove(self, pool: _Pool, look: Look, nodes: Iterable[str]) -> None:
        """Have others in place of nodes that stay unusable. Batch removes none while it evaluates
        the pool's formula, which the next look gives anew, of whatever server."""
        now = time.monotonic()
        pool.removed = [at for at in pool.removed if at > now - 3600]
        chosen = list(nodes)[: MOST_REMOVED - len(pool.removed)]
        if not chosen or look.resizing:
            return
        pool.removed += [now] * len(chosen)
        try:
            if not pool.halted:
                await self._maker.stop_scaling(pool.id)
                pool.halted = True
            await self._maker.remove_nodes(pool.id, chosen)
            log.warning("removed from pool %s: %s", pool.id, ", ".join(chosen))
        except Refused as error:
            log.warning("nodes of pool %s that cannot be used stay: %s", pool.id, error)

    # -- deleting -------------------------------------------------------------------------------

    async def _delete_idle(self, pool: _Pool, idle_s: float) -> None:
        """Delete the job, if it has no task, not of another server either; then the pool."""
        async with pool.lock:
            if time.monotonic() - pool.used < idle_s:
                return
            if await self._maker.has_tasks(pool.job):
                pool.used = time.monotonic()
                return
            await self._maker.delete_job(pool.job)
            if not pool.is_foreign:
                await self._maker.delete_pool(pool.id)
            pool.ready, pool.made = False, 0.0
            self._pools.pop(pool.job, None)
            log.info("deleted job %s, which was idle, and its pool if it was ours", pool.job)

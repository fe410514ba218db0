"""The Azure Batch backend: an attempt is a Batch task whose runner reports by way of storage."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Mapping, Sequence

import msgspec

from tesazure.access import Access
from tesazure.backends.azure_batch import tasks
from tesazure.backends.azure_batch.account import Account, Gone, Refused
from tesazure.backends.azure_batch.bill import facts_of
from tesazure.backends.azure_batch.catalog import Catalog
from tesazure.backends.azure_batch.config import BatchConfig
from tesazure.backends.azure_batch.files import AttemptFiles
from tesazure.backends.azure_batch.gauges import gauges
from tesazure.backends.azure_batch.known import Known
from tesazure.backends.azure_batch.names import scope_of
from tesazure.backends.azure_batch.pools import Pools
from tesazure.backends.azure_batch.shapes import Placement, place
from tesazure.backends.azure_batch.watch import Pace, Watch
from tesazure.backends.base import Capabilities, Capacity, Check, Gauge, LogChunk, Stream
from tesazure.errors import BackendError, BackendUnavailable
from tesazure.lifecycle import Handle, Observation, Phase
from tesazure.plan import Plan
from tesazure.report import Report
from tesazure.runner.node import NodeAttempt

log = logging.getLogger(__name__)

LOOK_PATIENCE_S = 4.0
"""How long `observe` waits for the first look at an attempt, in seconds: the scheduler does nothing
else meanwhile, and must renew its lease."""
STOP_S = 60.0
"""How long a Batch task may take to end once it is terminated, in seconds."""
CHECK_S = 10.0
"""How long a verdict of `check` stands, in seconds: anybody may ask /readyz, however often."""

PARAMETERS = ("max_runtime_s", "vm_size", "pool_id")


class AzureBatchBackend:
    """Runs attempts on Azure Batch; see `Backend` for what each method promises.

    All that it needs to know of an attempt again is its Batch task, which is found by the handle,
    and its blobs, which are found by the key: a server that starts anew, or another one of the
    installation, goes on from these.
    """

    def __init__(self, config: BatchConfig, pace: Pace = Pace()) -> None:  # noqa: B008 - frozen
        self._config = config
        self.account = Account(config)
        self._files = AttemptFiles(config)
        self._catalog = Catalog(config)
        self._pools = Pools(config, self.account, self._catalog, look_s=pace.pool_s)
        self._watch = Watch(self.account, self._files, self._pools, pace)
        self._adder = tasks.Adder(self.account)
        self._checking: asyncio.Task[list[Check]] | None = None
        self._check_due = 0.0
        self._capabilities: Capabilities | None = None

    @property
    def capabilities(self) -> Capabilities:
        """Known once `start` has returned."""
        if self._capabilities is None:
            raise BackendUnavailable("the Batch backend has not been started")
        return self._capabilities

    async def start(self) -> None:
        """Make ready. Neither Batch nor storage that is away now keeps the server from starting:
        tasks wait."""
        if self._capabilities is not None:
            return
        config = self._config
        try:
            await self.account.start()
            await self._catalog.start()
            await self._look_around()
            await self._watch.start()
        except BaseException:
            await self.stop()
            raise
        self._capabilities = Capabilities(
            name="batch",
            scope=scope_of(config.account, config.installation),
            capacity=None,
            backend_parameters=PARAMETERS,
            engine="batch",
        )

    async def _look_around(self) -> None:
        """At storage and at Batch, at once: each may take its time to not answer."""

        async def open_files() -> None:
            try:
                await self._files.start()
            except BackendUnavailable as error:
                log.warning("attempts cannot be handed to Azure Batch for now: %s", error)

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(open_files())
                group.create_task(self._pools.start())
        except ExceptionGroup as errors:
            first = errors.exceptions[0]
            raise first from first.__cause__

    async def stop(self) -> None:
        """Let go; tasks keep running, and a later server finds them."""
        checking, self._checking = self._checking, None
        if checking is not None:
            checking.cancel()
        await self._watch.stop()
        await self._catalog.stop()
        await self._files.stop()
        await self.account.stop()
        self._capabilities = None

    async def check(self) -> Sequence[Check]:
        """The Batch account, and the storage by which nodes report; asked once for all who want to
        know at nearly the same time."""
        checking = self._checking
        if checking is None or (checking.done() and time.monotonic() >= self._check_due):
            checking = self._checking = asyncio.create_task(self._check())
        return await asyncio.shield(checking)

    async def _check(self) -> list[Check]:
        config = self._config
        checks = [
            await _checked(
                "batch account",
                self.account.call(
                    "list pools", lambda c: next(iter(c.list_pools(max_results=1)), 0)
                ),
                f"{config.account} answers",
                "check BATCH_ACCOUNT_URL, BATCH_ACCOUNT_KEY or the identity's role on the account",
            ),
            await _checked(
                "batch storage",
                self._files.check(),
                f"container {config.container} of {config.storage_account} can be used",
                "check STORAGE_ACCOUNT_NAME, STORAGE_ACCOUNT_KEY or the identity's role on it",
            ),
        ]
        self._check_due = time.monotonic() + CHECK_S
        return checks

    def gauges(self) -> Sequence[Gauge]:
        """Quotas, and what stands in the way of more nodes."""
        return list(gauges(self._catalog.sizes, self._pools.looks()))

    def admit(self, plan: Plan) -> None:
        """Raises Unplaceable for a plan that no size of VM fits which may be used."""
        self._place(plan)

    async def room(self, closely: bool = False) -> Capacity | None:
        """None: Batch queues by itself."""
        del closely
        return self.capabilities.capacity

    async def submit(self, plan: Plan, key: str, access: Access) -> Handle:
        """What the node needs goes to storage first, then the task to its job: what a crash between
        the two leaves is found, and runs nothing."""
        job = await self._files.job_of(key)
        if job is not None and await self._has_begun(job, key):
            return _handle(job, key)
        placement = self._place(plan)
        job = await self._pools.ensure(placement.shape)
        if not await self._add(plan, key, access, placement, job):
            job = await self._files.job_of(key) or ""
        return _handle(job, key)

    async def _has_begun(self, job: str, key: str) -> bool:
        """Whether an earlier call has submitted the attempt, or it must not begin any more."""
        if not job or await self._files.is_released(key):
            return True
        if await self._watch.ask(job, key) is None:
            return False
        self._watch.begin(key, job)
        return True

    async def find(self, key: str) -> Handle | None:
        """The handle of what there is; if nothing is, of an attempt that cannot begin any more:
        whoever is still about to submit it does not."""
        await self._files.fence(key)
        return _handle(await self._files.job_of(key) or "", key)

    async def observe(self, handles: Mapping[str, Handle]) -> Mapping[str, Observation]:
        """From what passes beside the scheduler have found."""
        attempts, seen = {}, {}
        for key, handle in handles.items():
            job = handle.get("job")
            if not isinstance(job, str):
                text = "an attempt cannot be looked at: its handle names no job"
                log.warning(text, extra={"attempt": key})
            elif job:
                attempts[key] = job
            else:
                seen[key] = Observation(Phase.EXITED, Report(), "it was given up before it began")
        if attempts:
            seen |= await self._watch.observe(attempts, LOOK_PATIENCE_S)
        return seen

    async def changed(self, timeout_s: float) -> bool:
        """Whether a pass found something new."""
        return await self._watch.changed(timeout_s)

    async def cancel(self, handle: Handle) -> None:
        """Batch tells the runner, which ends what it started and reports."""
        job, key = _ids(handle)
        if job:
            await self._terminate(job, key)
            self._watch.hurry()

    async def release(self, handle: Handle) -> None:
        """Ends the Batch task and deletes it, and what the node could begin anew with."""
        job, key = _ids(handle)
        known = self._watch.find(key)
        if job:
            if known is None or not _is_over(known):
                await self._terminate(job, key)
                await self._wait_for_end(job, key)
            with contextlib.suppress(Gone):
                await self.account.call(
                    "delete a task", lambda client: client.delete_task(job, key)
                )
        await self._files.bury(key)
        self._watch.drop(key)

    async def discard(self, handle: Handle) -> None:
        """Deletes what is left of a released attempt in storage."""
        await self._files.forget(_ids(handle)[1])

    async def held(self, begun_before: float) -> Mapping[str, Handle]:
        """By the attempts' blobs."""
        held = await self._files.held(begun_before)
        return {key: _handle(job, key) for key, job in held.items()}

    async def read_stream(
        self, handle: Handle, executor: int, stream: Stream, offset: int, limit: int
    ) -> LogChunk:
        """From the blob that the node appends to."""
        key = _ids(handle)[1]
        known = self._watch.find(key)
        # Before the stream: what is read after its end is all of it.
        if known is None:
            ended = await self._files.is_released(key)
        else:
            ended = _is_over(known) or _has_ended(known, executor)
        part = await self._files.read_stream(key, executor, stream, offset, limit)
        return LogChunk(part.data, part.offset, part.size, ended)

    def _place(self, plan: Plan) -> Placement:
        return place(plan, self._catalog.sizes, self._config, self._pools.short())

    async def _add(
        self, plan: Plan, key: str, access: Access, placement: Placement, job: str
    ) -> bool:
        """Have the attempt run in the job; False if it must not begin any more."""
        url = await self._hand_over(plan, key, access, placement, job)
        if url is None:
            return False
        try:
            await self._adder.add(job, tasks.describe(self._config, key, url, placement.slots))
        except Gone:
            # Somebody deleted the job, or another server did as nothing ran in it. Its id is as
            # before, so that the node is handed the same.
            await self._pools.ensure(placement.shape, again=True)
            await self._adder.add(job, tasks.describe(self._config, key, url, placement.slots))
        self._watch.begin(key, job)
        return True

    async def _hand_over(
        self, plan: Plan, key: str, access: Access, placement: Placement, job: str
    ) -> str | None:
        """Put the attempt where its node finds it; the signed URL of it."""
        config = self._config
        # However short the task: nobody knows how long it waits for a node before.
        lifetime_s = config.credential_s
        dedicated_price, dedicated_cost = self._dedicated(placement)
        attempt = NodeAttempt(
            key=key,
            plan=msgspec.structs.replace(plan, limits=placement.bounded(plan.limits)),
            access=access,
            channel=await self._files.channel(key, len(plan.steps), lifetime_s),
            engine=config.node_engine,
            endpoints=config.endpoints,
            allow_private=config.allow_private,
            network=config.network,
            tail_bytes=config.tail_bytes,
            shared_global=config.file_share,
            registry_identity=config.registry_identity,
            facts=facts_of(placement, job),
            cost_per_hour_usd=_cost_per_hour(placement.price_per_hour_usd, placement),
            dedicated_price_per_hour_usd=dedicated_price,
            dedicated_cost_per_hour_usd=dedicated_cost,
        )
        return await self._files.put(attempt, job, lifetime_s)

    def _dedicated(self, placement: Placement) -> tuple[float | None, float | None]:
        """Price of the VM, and cost of the attempt's share, per hour in USD where a Spot pool has a
        dedicated node."""
        size = self._catalog.sizes.find(placement.shape.vm_size)
        price = size.price(spot=False) if size is not None and placement.shape.spot else None
        return price, _cost_per_hour(price, placement)

    async def _terminate(self, job: str, key: str) -> None:
        try:
            await self.account.call(
                "terminate a task", lambda client: client.terminate_task(job, key)
            )
        except Gone:
            return
        except Refused as error:
            if error.code != "TaskCompleted":
                raise

    async def _wait_for_end(self, job: str, key: str) -> None:
        """Until the Batch task runs no more. Raises BackendUnavailable when that takes too long."""
        deadline, pause = time.monotonic() + STOP_S, 0.2
        while time.monotonic() < deadline:
            with contextlib.suppress(Gone):  # which its whole job is about to be
                row = await self._watch.ask(job, key)
                if row is None or row.completed:
                    return
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 5.0)
        raise BackendUnavailable(f"its Batch task has not ended in {STOP_S:g} s; it is asked again")


def _handle(job: str, key: str) -> Handle:
    """`job` is empty for an attempt that was given up before it had one."""
    return {"job": job, "task": key}


def _ids(handle: Handle) -> tuple[str, str]:
    """Job and task. Raises BackendUnavailable for what is no handle of ours."""
    job, key = handle.get("job"), handle.get("task")
    if not isinstance(job, str) or not isinstance(key, str) or not key:
        raise BackendUnavailable("the attempt's handle is not of Azure Batch")
    return job, key


def _is_over(known: Known) -> bool:
    return known.report.ended is not None or (known.row is not None and known.row.completed)


def _has_ended(known: Known, executor: int) -> bool:
    logs = known.report.log.logs
    return executor < len(logs) and logs[executor].exit_code is not None


def _cost_per_hour(price: float | None, placement: Placement) -> float | None:
    return None if price is None else price * placement.share


async def _checked(name: str, look: Awaitable[object], detail: str, remedy: str) -> Check:
    try:
        await look
    except BackendError as error:
        return Check(name, ok=False, detail=str(error), remedy=remedy)
    return Check(name, ok=True, detail=detail)

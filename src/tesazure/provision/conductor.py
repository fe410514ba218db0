"""Conducts the runs of the provisioner on this server, and takes up those of servers that died."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import msgspec

from tesazure.daemon_threads import in_thread
from tesazure.errors import (
    ConfigurationError,
    Conflict,
    FieldError,
    InvalidInput,
    StaleVersion,
    StoreUnavailable,
)
from tesazure.provision import passages
from tesazure.provision.base import Ground, GroundOf, Settling
from tesazure.provision.logbook import Logbook, Lost, where
from tesazure.provisioning import (
    UNENDED,
    DryRun,
    Failure,
    FoundStep,
    ProvisionFailed,
    Request,
    Run,
    ServicePrincipal,
    StoredRun,
    demand_no_rival,
    fingerprint,
    named,
    run_id_of,
    under_way,
    without_secret,
)
from tesazure.store.base import Store

INTERRUPTED = "interrupted: post the same request again"
"""The note of a run whose service principal's secret went with the server that had it."""
_STOPPED = "interrupted: ask for the removal again"
_CHECKS_S = 120.0
"""How long a request may wait for what Azure says of it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a Conductor works: its server's name, the identity of its installation, the seconds of
    a lease, and a clock in seconds since the epoch."""

    server: str
    installation: str
    lease_s: float = 30.0
    clock: Callable[[], float] = time.time


@dataclass(slots=True)
class _Work:
    """A run that is worked on here."""

    logbook: Logbook
    request: Request
    """With its principal's secret."""
    task: asyncio.Task[None] | None = None


class Conductor:
    """Begins runs and removals, and carries them out side by side."""

    def __init__(self, store: Store, ground_of: GroundOf, settling: Settling, place: Place) -> None:
        self._store = store
        self._ground_of = ground_of
        self._settling = settling
        self._place = place
        self._working: dict[str, _Work] = {}
        self._patrol: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take up what servers have left, this one before it stopped among them, and go on doing
        so. May be called twice."""
        if self._patrol is None:
            self._patrol = asyncio.create_task(self._look_after(), name="provision")

    async def stop(self) -> None:
        """Give up what is under way: another server, or this one when it starts again, goes on, or
        says that it was interrupted. May be called twice."""
        patrol, self._patrol = self._patrol, None
        if patrol is not None:
            patrol.cancel()
            await asyncio.wait([patrol])
        tasks = [work.task for work in self._working.values() if work.task is not None]
        for work in self._working.values():
            work.logbook.over()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def dry_run(self, request: Request) -> DryRun:
        """What a run of the request would find and make. Raises InvalidInput with everything that
        is in its way, ProvisionFailed."""
        run_id = self._run_id(request)
        whole = named(request, run_id)
        ground = await self._checked(whole, run_id)
        try:
            async with _patience():
                return await in_thread(lambda: _look(ground, run_id, without_secret(whole)))
        finally:
            ground.close()

    async def begin(self, request: Request) -> StoredRun:
        """Begin a run, continue one that has ended, or join one that is under way: the same request
        means the same run. Raises InvalidInput with everything that Azure says is in its way,
        ProvisionFailed when it cannot be asked, Conflict, StoreUnavailable."""
        run_id = self._run_id(request)
        whole = named(request, run_id)
        stored = await self._free(run_id, whole, "INPROGRESS")
        if stored is not None and self._is_held(stored):
            return stored
        try:
            ground = await self._checked(whole, run_id)
        except InvalidInput:
            # What a run that has begun since then makes may look like somebody else's.
            joined = await self._free(run_id, whole, "INPROGRESS")
            if joined is None or not self._is_held(joined):
                raise
            return joined
        now = self._place.clock()
        run = Run(
            id=run_id,
            fingerprint=fingerprint(request),
            request=without_secret(whole),
            created=now,
            updated=now,
            server=self._place.server,
        )
        if stored is not None and stored.run.state != "DELETED":
            run.created, run.steps = stored.run.created, stored.run.steps
            for record in run.steps:
                record.state, record.started, record.ended = "waiting", None, None
                record.detail, record.failure = "", None
        return await self._open(run, stored, whole, ground)

    async def remove(self, run_id: str, principal: ServicePrincipal | None) -> StoredRun | None:
        """Begin the removal of what a run made, or join one that is under way; None if there is no
        such run. `principal`: in whose name, where the run had one. Raises InvalidInput, Conflict,
        ProvisionFailed, StoreUnavailable."""
        stored = await self._store.provision_run(run_id)
        if stored is None or _is_gone(stored.run):
            return stored
        stored = await self._free(run_id, stored.run.request, "DELETING")
        if stored is None or self._is_held(stored):
            return stored
        if principal is None and stored.run.request.service_principal is not None:
            text = "is required: a principal made this run, and its secret is not kept"
            raise InvalidInput([FieldError("service_principal", text)])
        run = msgspec.structs.replace(
            stored.run,
            state="DELETING",
            note="",
            server=self._place.server,
            request=msgspec.structs.replace(stored.run.request, service_principal=principal),
        )
        whole = run.request
        run.request = without_secret(whole)
        for record in run.steps:
            record.state, record.failure = "waiting", None
        ground = await in_thread(lambda: self._ground_of(whole, run_id))
        return await self._open(run, stored, whole, ground)

    async def run(self, run_id: str) -> StoredRun | None:
        """How far a run is; None if there is no such run."""
        stored = await self._store.provision_run(run_id)
        return None if stored is None else self._seen(stored)

    async def runs(self) -> list[StoredRun]:
        """All runs, the newest first."""
        return [self._seen(stored) for stored in await self._store.provision_runs()]

    def _run_id(self, request: Request) -> str:
        return run_id_of(self._place.installation, fingerprint(request))

    def _is_held(self, stored: StoredRun) -> bool:
        """Whether a server works on it. What this server once worked on and does no more, it did
        before it was started again."""
        if stored.run.state not in UNENDED:
            return False
        is_others = stored.run.server != self._place.server
        return stored.run.id in self._working or (stored.held and is_others)

    def _seen(self, stored: StoredRun) -> StoredRun:
        return msgspec.structs.replace(stored, held=self._is_held(stored))

    async def _free(self, run_id: str, request: Request, state: str) -> StoredRun | None:
        """The run, if there is one. Raises Conflict when it is on its way to another state than
        this one, or another run is at the same things."""
        runs = await self._store.provision_runs()
        stored = next((each for each in runs if each.run.id == run_id), None)
        if stored is not None and self._is_held(stored):
            if stored.run.state != state:
                raise Conflict(under_way(stored.run))
            return stored
        demand_no_rival(run_id, request, [each.run for each in runs])
        return stored

    async def _checked(self, request: Request, run_id: str) -> Ground:
        """The ground for a request that nothing is in the way of."""
        ground = await in_thread(lambda: self._ground_of(request, run_id))
        try:
            async with _patience():
                problems = await self._settling.problems(request)
                problems += await in_thread(ground.problems)
            if problems:
                raise InvalidInput(problems)
            return ground
        except BaseException:
            ground.close()
            raise

    async def _open(
        self, run: Run, stored: StoredRun | None, request: Request, ground: Ground
    ) -> StoredRun:
        """Keep the run and work on it, unless somebody else was quicker."""
        try:
            version = await self._store.put_provision_run(
                run, stored.version if stored else 0, self._place.lease_s
            )
        except StaleVersion:
            ground.close()
            other = await self._free(run.id, request, run.state)
            if other is None:
                raise StoreUnavailable(f"run {run.id} has vanished") from None
            return other
        except BaseException:
            ground.close()
            raise
        opened = StoredRun(run, version, True)
        self._work_on(opened, request, ground)
        return opened

    def _work_on(self, stored: StoredRun, request: Request, ground: Ground) -> None:
        logbook = Logbook(self._store, stored, self._place.lease_s, self._place.clock)
        if request.service_principal is not None:
            logbook.hide([request.service_principal.secret])
        work = self._working[stored.run.id] = _Work(logbook, request)
        work.task = asyncio.create_task(self._carry_out(work, ground), name=f"run {stored.run.id}")

    async def _carry_out(self, work: _Work, ground: Ground) -> None:
        run_id = work.logbook.run.id
        passing = asyncio.current_task()
        keeping = asyncio.create_task(work.logbook.keep(), name=f"lease of {run_id}")
        keeping.add_done_callback(
            lambda ended: passing.cancel() if passing and _failed(ended) else None
        )
        try:
            await self._pass(work, ground)
        except asyncio.CancelledError:
            if not (keeping.done() and _failed(keeping)):
                await self._leave(work)
        except Lost:
            _log.warning("another server works on provisioning run %s now", run_id)
        except StoreUnavailable as error:
            _log.warning("provisioning run %s is left as it is: %s", run_id, error)
        finally:
            work.logbook.over()
            await asyncio.wait([keeping])
            if self._working.get(run_id) is work:
                del self._working[run_id]
            ground.close()

    async def _pass(self, work: _Work, ground: Ground) -> None:
        logbook, run = work.logbook, work.logbook.run
        removing = run.state == "DELETING"
        _log.info("provisioning run %s: %s begins", run.id, "removal" if removing else "making")
        try:
            if removing:
                note = await passages.remove(logbook, ground, self._settling, work.request)
            else:
                note = await passages.make(logbook, ground, self._settling, work.request)
        except ProvisionFailed as error:
            again = "ask for the removal" if removing else "post the same request"
            await logbook.end("ERROR", f"{error}; {again} again to go on")
        except (Lost, StoreUnavailable):
            raise
        except Exception as error:
            _log.error("provisioning run %s failed:\n%s", run.id, where(error))
            await logbook.end("ERROR", f"the server failed ({type(error).__name__}); see its log")
        else:
            await logbook.end("DELETED" if removing else "CREATED", note)
        _log.info("provisioning run %s: %s", run.id, run.state)

    async def _leave(self, work: _Work) -> None:
        """This server stops in the middle of it."""
        run = work.logbook.run
        if run.state not in UNENDED:
            return  # just when its end had been written
        with contextlib.suppress(Lost, StoreUnavailable):
            if work.request.service_principal is None:
                await work.logbook.end(run.state)
            else:
                await work.logbook.end_as(lambda run: interrupt(run, self._place.clock()))

    async def _look_after(self) -> None:
        while True:
            try:
                for stored in await self._store.provision_runs():
                    if stored.run.state in UNENDED:
                        await self._take_up(stored)
            except StoreUnavailable as error:
                _log.warning("runs of the provisioner cannot be looked after: %s", error)
            except Exception:
                _log.exception("looking after the runs of the provisioner failed")
            await asyncio.sleep(self._place.lease_s / 3)

    async def _take_up(self, stored: StoredRun) -> None:
        """Go on with what a server has left, or say that it was interrupted."""
        run = stored.run
        if self._is_held(stored) or run.id in self._working:
            return
        with contextlib.suppress(StaleVersion):  # somebody else was quicker
            if run.request.service_principal is not None:
                interrupt(run, self._place.clock())
                await self._store.put_provision_run(run, stored.version, 0)
                _log.warning("provisioning run %s was interrupted", run.id)
                return
            run.server, run.note = self._place.server, "taken up after an interruption"
            version = await self._store.put_provision_run(run, stored.version, self._place.lease_s)
            taken = StoredRun(run, version, True)
            try:
                ground = await in_thread(lambda: self._ground_of(run.request, run.id))
            except (ConfigurationError, InvalidInput, ProvisionFailed) as error:
                run.state, run.note = "ERROR", str(error)
                await self._store.put_provision_run(run, version, 0)
            else:
                if run.id in self._working:  # somebody asked for it meanwhile, and goes on with it
                    ground.close()
                else:
                    self._work_on(taken, run.request, ground)


def interrupt(run: Run, now: float) -> None:
    """Note that a run cannot go on by itself, and what it was at."""
    removing = run.state == "DELETING"
    run.state, run.updated = "ERROR", now
    run.note = _STOPPED if removing else INTERRUPTED
    for record in run.steps:
        if record.state == "running":
            text = "the server was stopped while this step ran"
            again = "ask for the removal again" if removing else "post the same request again"
            record.state, record.ended = "failed", now
            record.failure = Failure("Interrupted", text, again)


def _is_gone(run: Run) -> bool:
    return run.state == "DELETED" and not any(record.made for record in run.steps)


@contextlib.asynccontextmanager
async def _patience() -> AsyncIterator[None]:
    """Raises ProvisionFailed when what is inside takes too long."""
    try:
        async with asyncio.timeout(_CHECKS_S):
            yield
    except TimeoutError:
        text = f"Azure has not answered within {_CHECKS_S:.0f} seconds"
        raise ProvisionFailed(Failure("Timeout", text, "try again later")) from None


def _look(ground: Ground, run_id: str, request: Request) -> DryRun:
    steps: list[FoundStep] = []
    for step in ground.steps():
        found = step.look()
        steps.append(
            FoundStep(
                name=step.name,
                title=step.title,
                found=found.state,
                resource_id=found.resource_id,
                detail=found.detail or (str(found.problem) if found.problem else ""),
            )
        )
    return DryRun(id=run_id, request=request, steps=steps, idle_cost=list(ground.idle_cost()))


def _failed(task: asyncio.Task[None]) -> bool:
    return not task.cancelled() and task.exception() is not None

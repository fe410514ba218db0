"""The record of a run while a server works on it: kept before and after each step."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from urllib.parse import quote, quote_plus

import msgspec

from tesazure.errors import StaleVersion, StoreUnavailable, TesazureError
from tesazure.provision.base import Tell
from tesazure.provisioning import Failure, ProvisionFailed, Run, RunState, StepRecord, StoredRun
from tesazure.secrecy import Censor
from tesazure.store.base import Store

_AGAIN_S = 1.0
"""Between tries to write to a database that does not answer, and between two details of a step."""
_MOST_TEXT = 2000
"""Characters of a text that is kept."""

_log = logging.getLogger(__name__)


class Lost(TesazureError):
    """Another server works on this run: this one's lease had run out."""


class Logbook:
    """One run that this server works on. Everything is called in one event loop, but for what
    `tell` returns."""

    def __init__(
        self, store: Store, stored: StoredRun, lease_s: float, clock: Callable[[], float]
    ) -> None:
        self.run = stored.run
        self._version = stored.version
        self._store = store
        self._lease_s = lease_s
        self._clock = clock
        self._secrets: set[str] = set()
        self._censor = Censor()
        self._writing = asyncio.Lock()
        self._changed = asyncio.Event()
        self._over = asyncio.Event()
        self._ended = False
        """The run's end is being written, or is: nothing is written after it."""

    def hide(self, secrets: Iterable[str]) -> None:
        """Keep these out of every text of the run from now on."""
        for secret in secrets:
            self._secrets |= {secret, quote(secret, safe=""), quote_plus(secret)}
        self._censor = Censor(others=self._secrets)

    def expect(self, steps: Sequence[tuple[str, str]]) -> None:
        """The steps to come, by name and title; what is known of them stays known."""
        known = {record.name: record for record in self.run.steps}
        records = []
        for name, title in steps:
            record = known.pop(name) if name in known else StepRecord(name=name, title=title)
            record.title = title
            records.append(record)
        # Steps of another version of this program, which may have made something.
        self.run.steps = [*records, *(old for old in known.values() if old.made)]

    def record(self, name: str) -> StepRecord:
        """Of one of the steps."""
        return next(record for record in self.run.steps if record.name == name)

    @contextlib.asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[StepRecord]:
        """Inside, the step runs; afterwards it is done, or failed with the ProvisionFailed that is
        raised on. Both are on disk by then. Raises Lost."""
        record = self.record(name)
        record.state, record.started, record.ended = "running", self._clock(), None
        record.detail, record.failure = "", None
        await self.save()
        try:
            yield record
        except Lost:
            raise
        except ProvisionFailed as error:
            await self._fail(record, error.failure)
            raise
        except Exception as error:
            # Neither the log nor the record gets the error's text, which may quote a request.
            _log.error("run %s, step %s failed:\n%s", self.run.id, name, where(error))
            failure = Failure(
                "Internal",
                f"the server failed ({type(error).__name__}); its log says where",
                "post the same request again; if it fails again, report it with the log",
            )
            await self._fail(record, failure)
            raise ProvisionFailed(failure) from None
        else:
            record.detail = self._clean(record.detail)
            record.ended = self._clock()
            if record.state == "running":
                record.state = "done"
            await self.save()

    def tell(self, record: StepRecord) -> Tell:
        """Notes what a step waits for."""
        loop = asyncio.get_running_loop()

        def note(text: str) -> None:
            if record.state == "running":
                record.detail = self._clean(text)
                self._changed.set()

        def told(text: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(note, text)

        return told

    async def end(self, state: RunState, note: str = "") -> None:
        """The run's end, or with INPROGRESS or DELETING its release to other servers: the last that
        is written. Whoever reads it may continue the run from then on."""

        def ended(run: Run) -> None:
            run.state, run.note = state, self._clean(note)

        await self.end_as(ended)

    async def end_as(self, ended: Callable[[Run], None]) -> None:
        """As `end`, by what `ended` does to the record: nothing of that is written before."""
        async with self._writing:
            self._ended = True
            ended(self.run)
            await self._write(0)

    async def save(self) -> None:
        """Commit the record and renew the lease, however long the database is away. Raises Lost."""
        async with self._writing:
            if not self._ended:
                await self._write(self._lease_s)

    async def _write(self, lease_s: float) -> None:
        write = asyncio.ensure_future(self._put(lease_s))
        try:
            await asyncio.shield(write)
        except asyncio.CancelledError:
            # What is written next must know the version that this makes.
            await write
            raise

    async def keep(self) -> None:
        """Renew the lease and write details, until `over` is called. Raises Lost."""
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self._lease_s / 3)
            self._changed.clear()
            if not self._over.is_set():
                await self.save()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), _AGAIN_S)

    def over(self) -> None:
        """Let `keep` end."""
        self._over.set()
        self._changed.set()

    async def _put(self, lease_s: float) -> None:
        self.run.updated = self._clock()
        while True:
            try:
                self._version = await self._store.put_provision_run(
                    self.run, self._version, lease_s
                )
                return
            except StaleVersion:
                raise Lost(f"another server works on run {self.run.id}") from None
            except StoreUnavailable:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._over.wait(), _AGAIN_S)
                if self._over.is_set():
                    raise

    async def _fail(self, record: StepRecord, failure: Failure) -> None:
        texts = {name: self._clean(text) for name, text in msgspec.structs.asdict(failure).items()}
        record.state, record.ended, record.failure = "failed", self._clock(), Failure(**texts)
        await self.save()

    def _clean(self, text: str) -> str:
        shown = self._censor(text)
        return shown if len(shown) <= _MOST_TEXT else f"{shown[:_MOST_TEXT]}…"


def where(error: BaseException) -> str:
    """The kind of an error and the lines that it passed, also of those that caused it."""
    lines = [type(error).__name__, *traceback.format_tb(error.__traceback__)]
    cause = error.__cause__ or error.__context__
    return "\n".join(lines) + (f"\ncaused by {where(cause)}" if cause else "")

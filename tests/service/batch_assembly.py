"""A scheduler on a real store and the Batch backend, in the test's own process."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from tesazure.backends.azure_batch.backend import AzureBatchBackend
from tesazure.lifecycle import Handle
from tesazure.model import TaskLog
from tesazure.scheduler.config import SchedulerConfig
from tesazure.store.records import TaskRecord
from tesazure.store.sql_store import open_store
from tests.conftest import need_sandbox, shared
from tests.service.assembly import Assembly
from tests.services.azurite import Azurite
from tests.services.batch_lab import QUICK, BatchLab, batch_lab


class BatchAssembly(Assembly):
    """One server. Several may share an account, and then a database."""

    backend: AzureBatchBackend

    def __init__(self, directory: Path, lab: BatchLab, name: str = "one", url: str = "") -> None:
        super().__init__(directory, name, url)
        self.lab = lab
        self.marks = lab.marks
        self.pace = QUICK

    async def start(self, scheduler: SchedulerConfig | None = None, **changes: Any) -> None:
        """Start everything; `changes` are of the backend's configuration."""
        self.store = await open_store(self.url, self.directory / f"{self.name}.db")
        self.backend = AzureBatchBackend(self.lab.config(**changes), self.pace)
        await self.backend.start()
        self.begin(scheduler)
        await self.scheduler.start()

    def node(self, record: TaskRecord) -> str:
        """Id of the node that a task's newest attempt is on."""
        handle = record.attempts[-1].handle
        assert handle is not None
        return self.lab.batch.node_of(handle["job"], handle["task"])

    def kill_runner(self, handle: Handle) -> None:
        """Kill the process of an attempt on its node."""
        self.signal_runner(handle, signal.SIGKILL)

    def signal_runner(self, handle: Handle, number: signal.Signals) -> None:
        """Send a signal to that."""
        report = self.lab.work_of(handle["job"], handle["task"]) / "report.jsonl"
        first = report.read_bytes().splitlines()[0]
        os.kill(int(first.split(b'"pid":')[1].split(b",")[0]), number)

    def tasks(self) -> list[str]:
        """Ids of all Batch tasks that there are."""
        with self.lab.batch.world.lock:
            return [task.id for job in self.lab.batch.world.jobs for task in job.tasks]

    def blobs(self) -> dict[str, int]:
        """Names, without the installation, and sizes of all blobs of attempts."""
        with self.lab.azurite.client() as client:
            container = client.get_container_client(self.lab.container)
            own = f"{self.lab.installation}/"
            return {
                blob.name.removeprefix(own): blob.size
                for blob in container.list_blobs(name_starts_with=own)
            }


@contextlib.asynccontextmanager
async def running_on_batch(directory: Path) -> AsyncIterator[BatchAssembly]:
    """A started server with an account of its own, and nothing left of it afterwards."""
    need_sandbox()
    with batch_lab(directory / "batch", shared(Azurite)) as lab:
        assembly = BatchAssembly(directory, lab)
        await assembly.start()
        yield assembly
        await assembly.close()


def said(record: TaskRecord) -> str:
    """All that its system_logs say."""
    begun = [attempt.log for attempt in record.attempts if attempt.log]
    found = [msgspec.json.decode(log, type=TaskLog) for log in begun]
    return "\n".join(line for log in found for line in log.system_logs)

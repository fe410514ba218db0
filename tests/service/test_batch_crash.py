"""kill -9 of the server while tasks go to Azure Batch: nothing is lost, nothing runs twice."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import need_sandbox, shared
from tests.service.crash import Crash
from tests.service.server import until
from tests.service.test_backend_switch import batch_settings
from tests.services.azurite import Azurite
from tests.services.batch_lab import BatchLab, batch_lab

SEED = int(os.environ.get("CRASH_SEED", "20261122"))
KILLS = 8
TASKS = 3
"""Before each kill."""


class CrashOnBatch(Crash):
    """Tasks run in an account; there is nothing of them beside the server."""

    def __init__(self, directory: Path, lab: BatchLab) -> None:
        super().__init__(directory, SEED, "unused", **batch_settings(lab))
        self.lab, self.marks = lab, lab.marks
        self.outputs = f"{lab.azurite.endpoint}/{lab.container}/out"

    def output(self, name: str) -> bytes:
        """From the blob."""
        with self.lab.azurite.client() as client:
            return (
                client.get_blob_client(self.lab.container, f"out/{name}").download_blob().readall()
            )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kill_the_server_while_tasks_go_to_batch(short_dir: Path) -> None:
    need_sandbox()
    with batch_lab(short_dir / "batch", shared(Azurite)) as lab:
        crash = CrashOnBatch(short_dir, lab)
        with contextlib.closing(crash):
            crash.start()
            for _ in range(KILLS):
                crash.submit(len(crash.accepted) + TASKS)
                # From the first blob of an attempt to looks at what runs.
                time.sleep(crash.chance.random() * 1.2)
                crash.kill_server()
            counts = crash.check(crash.settled())
            assert counts["attempts"] >= KILLS * TASKS
            assert counts["whole outputs"] >= 2
            until(lambda: not tasks_of(lab), 60)
            crash.end(signal.SIGTERM)


def tasks_of(lab: BatchLab) -> list[str]:
    """Ids of what is still in the account."""
    with lab.batch.world.lock:
        return [task.id for job in lab.batch.world.jobs for task in job.tasks]

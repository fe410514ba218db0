"""A Batch account and its storage, and the backend's configuration for them: nodes are directories
of this machine, on which the real runner runs with the sandbox engine."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from azure.batch import BatchClient
from azure.core.credentials import AzureNamedKeyCredential

from tesazure.access import Endpoints
from tesazure.azure_identity import Identity
from tesazure.backends.azure_batch.config import BatchConfig
from tesazure.backends.azure_batch.watch import Pace
from tests.services.azurite import Azurite
from tests.services.batch_nodes import Simulation
from tests.services.batch_server import BatchServer

SHARE = "marks"
QUICK = Pace(soon_s=0.05, late_s=0.5, tasks_s=0.1, whole_s=1.0, pool_s=0.2)
"""For real accounts far too often."""


class BatchLab:
    """`batch` and `azurite` are the services; `marks` is the file share that all tasks see."""

    def __init__(self, batch: BatchServer, azurite: Azurite, container: str, marks: Path) -> None:
        self.batch, self.azurite, self.container, self.marks = batch, azurite, container, marks
        self.installation = secrets.token_hex(4)
        self.identity = Identity()
        """Whom servers are to be, where the account takes no key."""

    def client(self) -> BatchClient:
        """Of a person with the account's key."""
        return BatchClient(
            self.batch.url, AzureNamedKeyCredential(self.batch.account, self.batch.key)
        )

    def config(self, **changes: Any) -> BatchConfig:
        """Of one installation's servers."""
        fields: dict[str, Any] = {
            "installation": self.installation,
            "account": self.batch.account,
            "url": self.batch.url,
            "key": self.batch.key,
            "storage_url": self.azurite.endpoint,
            "storage_account": self.azurite.account,
            "storage_key": self.azurite.key,
            "container": self.container,
            "runner_image": "runner:1",
            "file_share": SHARE,
            "file_share_url": share_url(self.azurite),
            "endpoints": Endpoints(blob=self.azurite.endpoint),
            "node_engine": "sandbox",
            "network": False,
            "region": "westeurope",
            "prices_url": "",
            **changes,
        }
        return BatchConfig(**fields)

    def work_of(self, job: str, key: str) -> Path:
        """The directory of an attempt that runs, on its node."""
        task = self.batch.task(job, key)
        assert task is not None
        assert task.execution is not None
        assert task.execution.working is not None
        return task.execution.working / "attempt"


def share_url(azurite: Azurite) -> str:
    """Of the file share `SHARE`, which no service stands for: nodes find a directory."""
    return f"https://{azurite.account}.file.core.windows.net/{SHARE}"


@contextlib.contextmanager
def batch_lab(
    directory: Path, azurite: Azurite, simulation: Simulation | None = None, **options: Any
) -> Iterator[BatchLab]:
    """A new account on `azurite`, with a directory of its own."""
    with (
        azurite.container() as container,
        BatchServer(directory, simulation=simulation, **options) as batch,
    ):
        marks = directory / "marks"
        if simulation is None:
            marks = batch.machine.share(share_url(azurite))  # type: ignore[attr-defined]
            marks.chmod(0o777)
        yield BatchLab(batch, azurite, container, marks)

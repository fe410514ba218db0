"""A Batch account of the stand-in, and pools of one installation on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from azure.batch import BatchClient, models
from azure.core.credentials import AzureNamedKeyCredential

from tesazure.backends.azure_batch.account import Account
from tesazure.backends.azure_batch.catalog import Catalog
from tesazure.backends.azure_batch.config import BatchConfig
from tesazure.backends.azure_batch.pools import BETWEEN_FORMULAS_S, Pools
from tesazure.backends.azure_batch.shapes import Shape
from tests.services.batch_nodes import SimulatedTask
from tests.services.batch_server import BatchServer

D2 = Shape(vm_size="Standard_D2ads_v5", slots=2)
SPOT = Shape(vm_size="Standard_D2ads_v5", slots=2, spot=True)


def until_killed(task: SimulatedTask) -> int:
    """Runs until somebody ends it."""
    return int(task.killed.wait(30))


class Site:
    """An account with one installation on it."""

    def __init__(self, server: BatchServer, directory: Path) -> None:
        self.server, self.directory = server, directory
        self.client = BatchClient(
            server.url,
            AzureNamedKeyCredential(server.account, server.key),
            connection_verify=server.ca_bundle or True,
        )
        self.more: dict[str, Any] = {}
        """Of every configuration."""
        self._accounts: list[Account] = []
        self._catalogs: list[Catalog] = []

    def config(self, **more: Any) -> BatchConfig:
        """Of the installation."""
        usual = {
            "installation": "abcdefgh",
            "account": self.server.account,
            "url": self.server.url,
            "key": self.server.key,
            "storage_url": "https://st.blob.core.windows.net",
            "storage_account": "st",
            "runner_image": "reg.azurecr.io/tesazure/runner:1",
            "prices_url": "",
            "idle_s": 0.0,
            "max_nodes": 5,
            "cache_dir": self.directory / "cache",
        }
        return msgspec.convert(usual | self.more | more, BatchConfig)

    async def pools(self, *, between_s: float = BETWEEN_FORMULAS_S, **more: Any) -> Pools:
        """As of a server that starts."""
        config = self.config(**more)
        account = await self.account()
        catalog = Catalog(config)
        self._catalogs.append(catalog)
        found = Pools(config, account, catalog, look_s=0, between_s=between_s)
        await found.start()
        return found

    async def account(self) -> Account:
        """Started; `close` ends it."""
        found = Account(self.config())
        await found.start()
        self._accounts.append(found)
        return found

    async def close(self) -> None:
        """Let go of all."""
        for each in (*self._accounts, *self._catalogs):
            await each.stop()
        self.client.close()

    def add(self, job: str, *tasks: str) -> None:
        """Tasks that run until they are ended."""
        group = [
            models.BatchTaskCreateOptions(
                id=each,
                command_line="python -c 0",
                container_settings=models.BatchTaskContainerSettings(image_name="i"),
            )
            for each in tasks
        ]
        self.client.create_task_collection(job, models.BatchTaskGroup(task_values=group))

    def pool(self, id_: str) -> models.BatchPool:
        """As Batch tells of it."""
        return self.client.get_pool(id_)

    def state(self, job: str) -> str:
        """Of a job; `gone`."""
        found = self.server.world.jobs.get(job)
        return found.state if found else "gone"


async def until(
    condition: Callable[[], bool], act: Callable[[], Awaitable[object]] | None = None
) -> None:
    """Within 20 seconds, or the test fails."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        if act is not None:
            await act()
        await asyncio.sleep(0.02)

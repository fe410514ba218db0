"""Pools, jobs and tasks in the Batch stand-in, made with Microsoft's SDK, for tests of it."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from azure.batch import BatchClient, models
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import HttpResponseError
from azure.core.pipeline.policies import RetryPolicy
from azure.core.rest import HttpRequest, HttpResponse

from tests.services.batch_nodes import SimulatedTask
from tests.services.batch_server import BatchServer

VERSION = "2025-06-01"
MEDIA_TYPE = "application/json; odata=minimalmetadata"


class BatchAccount:
    """A stand-in and a client of it, which tries nothing twice."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.server = BatchServer(directory, **options)
        self.client = client_of(self.server)

    def __enter__(self) -> Self:
        self.server.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self.client.close()
        self.server.__exit__(*raised)

    def pool(self, id_: str = "p", **more: Any) -> None:
        """A pool of one dedicated node and a job of the same id."""
        usual: dict[str, Any] = {
            "vm_size": "Standard_D2s_v5",
            "virtual_machine_configuration": machine(),
        }
        if "auto_scale_formula" in more:
            usual |= {
                "enable_auto_scale": True,
                "auto_scale_evaluation_interval": dt.timedelta(minutes=5),
            }
        elif "target_low_priority_nodes" not in more:
            usual["target_dedicated_nodes"] = 1
        self.client.create_pool(models.BatchPoolCreateOptions(id=id_, **usual | more))
        info = models.BatchPoolInfo(pool_id=id_)
        self.client.create_job(models.BatchJobCreateOptions(id=id_, pool_info=info))

    def run(self, *commands: str, job: str = "p", **more: Any) -> list[str]:
        """Ids of new tasks, one for each command line."""
        start = len(self.server.world.jobs.get(job).tasks)  # type: ignore[union-attr]
        ids = [f"t{start + number}" for number in range(len(commands))]
        for id_, command in zip(ids, commands, strict=True):
            task = models.BatchTaskCreateOptions(id=id_, command_line=command, **more)
            self.client.create_task(job, task)
        return ids

    def wait(self, ids: Iterable[str], state: str = "completed", job: str = "p") -> None:
        """Until all are in a state."""
        found = [self.server.task(job, id_) for id_ in ids]
        self.server.wait_for(lambda _: all(task and task.state == state for task in found))

    def text(self, task: str, name: str = "stdout.txt", job: str = "p", **more: Any) -> str:
        """A file of a task."""
        return b"".join(self.client.download_task_file(job, task, name, **more)).decode()

    def info(self, task: str, job: str = "p") -> models.BatchTaskExecutionInfo:
        """A task's executionInfo."""
        found = self.client.get_task(job, task).execution_info
        assert found is not None
        return found

    def failure(self, task: str, job: str = "p") -> str:
        """The code of a task's failure; empty without one."""
        found = self.info(task, job).failure_info
        return "" if found is None else str(found.code)

    def wait_for_file(self, task: str, name: str) -> None:
        """Until the task has made a file, below its directory."""

        def is_there(server: BatchServer) -> bool:
            found = server.task("p", task)
            execution = None if found is None else found.execution
            directory = None if execution is None else execution.directory
            return directory is not None and (directory / name).exists()

        self.server.wait_for(is_there)

    def send(self, method: str, path: str, body: Any = None) -> HttpResponse:
        """A request as it stands, signed."""
        mark = "&" if "?" in path else "?"
        request = HttpRequest(
            method,
            f"{self.server.url}{path}{mark}api-version={VERSION}",
            content=None if body is None else json.dumps(body),
            headers={"content-type": MEDIA_TYPE} if body is not None else None,
        )
        return self.client.send_request(request)


def client_of(server: BatchServer, key: str | None = None) -> BatchClient:
    """Microsoft's client, with the account's key or another one."""
    credential = AzureNamedKeyCredential(server.account, server.key if key is None else key)
    return BatchClient(server.url, credential, retry_policy=RetryPolicy(retry_total=0))


def machine(containers: bool = False) -> models.VirtualMachineConfiguration:
    """What runs on nodes."""
    return models.VirtualMachineConfiguration(
        image_reference=models.BatchVmImageReference(
            publisher="microsoft-dsvm", offer="ubuntu-hpc", sku="2404", version="latest"
        ),
        node_agent_sku_id="batch.node.ubuntu 24.04",
        container_configuration=models.BatchContainerConfiguration(type="dockerCompatible")
        if containers
        else None,
    )


def at_once(_: SimulatedTask) -> int:
    """A task that ends as it begins."""
    return 0


def until_killed(task: SimulatedTask) -> int:
    """A task that runs until it is ended."""
    task.killed.wait(20)
    return 137


def code_of(error: HttpResponseError) -> str:
    """Batch's own code."""
    return str(error.model.code)  # type: ignore[union-attr]


def script(text: str) -> str:
    """A command line of Python."""
    return f"python -c {json.dumps(text)}"

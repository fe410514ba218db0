"""Attempts as Batch tasks: how one is described, and how many are added with few calls."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tesazure.access import is_of_registry
from tesazure.backends.azure_batch.account import Account, Gone, Refused, told
from tesazure.backends.azure_batch.config import BatchConfig
from tesazure.errors import BackendUnavailable

if TYPE_CHECKING:
    from azure.batch import models

MOST = 100
"""Tasks in a collection ("Task - Add Task Collection")."""
GATHER_S = 0.05
"""How long the last task of a collection waits for another one, in seconds."""
LONGEST_S = 0.5
"""How long the first one does, in seconds, while others keep coming."""
COMMAND = "python -m tesazure.runner.node"
ATTEMPT_FILE = "attempt.json"
CLOSED = frozenset(
    {"JobBeingDeleted", "JobBeingTerminated", "JobCompleted", "JobNotFound", "JobTerminating"}
)
"""Batch's codes of a job that takes no tasks any more, said of the collection or of each task."""
RUN_OPTIONS = "--rm --init --user 0 -v /var/run/docker.sock:/var/run/docker.sock"
"""The runner is root, as the node's Docker wants, and starts executors beside itself by it."""
NODES_NETWORK = "--network host"
"""For a runner that asks for tokens of the node's identity: from a container's own network nothing
reaches the metadata service, see `pool_form.GUARD`. Executors have theirs as ever."""


def describe(
    config: BatchConfig, key: str, attempt_url: str, slots: int
) -> models.BatchTaskCreateOptions:
    """The Batch task of an attempt. `attempt_url`: where the node finds it, signed."""
    from azure.batch import models

    return models.BatchTaskCreateOptions(
        id=key,
        command_line=COMMAND,
        container_settings=models.BatchTaskContainerSettings(
            image_name=config.runner_image,
            container_run_options=(
                f"{RUN_OPTIONS} {NODES_NETWORK}" if config.registry_identity else RUN_OPTIONS
            ),
            registry=registry_of(config),
            working_directory="taskWorkingDirectory",
        ),
        resource_files=[
            models.ResourceFile(http_url=attempt_url, file_path=ATTEMPT_FILE, file_mode="0600")
        ],
        # What failed is tried again as another attempt, with a log of its own.
        constraints=models.BatchTaskConstraints(max_task_retry_count=0),
        required_slots=slots,
        user_identity=models.UserIdentity(
            auto_user=models.AutoUserSpecification(scope="pool", elevation_level="admin")
        ),
    )


def registry_of(config: BatchConfig) -> models.ContainerRegistryReference | None:
    """The login that the runner's own image needs; None where it is not the private registry's."""
    from azure.batch import models

    host = config.registry_host
    if not host or not is_of_registry(config.runner_image, host):
        return None
    if config.registry_identity is not None:
        identity = models.BatchNodeIdentityReference(resource_id=config.pool_identity)
        return models.ContainerRegistryReference(registry_server=host, identity_reference=identity)
    if not config.registry_password:
        return None
    return models.ContainerRegistryReference(
        registry_server=host, username=config.registry_user, password=config.registry_password
    )


class Adder:
    """Adds tasks, those asked for at nearly the same time with one call."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._gathered: dict[str, list[_Wish]] = {}
        self._sending: set[asyncio.Task[None]] = set()

    async def add(self, job: str, task: models.BatchTaskCreateOptions) -> None:
        """Returns once the job has the task, be it from an earlier call. Raises Gone when there is
        no such job, or none that takes tasks; Refused, BackendUnavailable."""
        loop = asyncio.get_running_loop()
        wish = _Wish(task, loop.create_future())
        gathered = self._gathered.setdefault(job, [])
        gathered.append(wish)
        if len(gathered) == 1:
            loop.call_later(LONGEST_S, self._send, job, gathered)
        if len(gathered) == MOST:
            self._send(job, gathered)
        else:
            loop.call_later(GATHER_S, self._send_unless_grown, job, gathered, len(gathered))
        await wish.done

    def _send_unless_grown(self, job: str, gathered: list[_Wish], size: int) -> None:
        if len(gathered) == size:
            self._send(job, gathered)

    def _send(self, job: str, gathered: list[_Wish]) -> None:
        if self._gathered.get(job) is not gathered:
            return  # it went before its time
        del self._gathered[job]
        sending = asyncio.get_running_loop().create_task(self._add(job, gathered))
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)

    async def _add(self, job: str, wishes: Sequence[_Wish]) -> None:
        from azure.batch import models

        group = models.BatchTaskGroup(task_values=[wish.task for wish in wishes])
        try:
            done = await self._account.call(
                "add tasks", lambda client: client.create_task_collection(job, group)
            )
        except Refused as error:
            if error.code == "RequestBodyTooLarge" and len(wishes) > 1:
                half = len(wishes) // 2
                await asyncio.gather(self._add(job, wishes[:half]), self._add(job, wishes[half:]))
            elif error.code in CLOSED:
                _fail(wishes, Gone(str(error), error.code, error.status))
            else:
                _fail(wishes, error)
        except Exception as error:  # whoever waits must hear of it
            _fail(wishes, error)
        else:
            _settle(wishes, {result.task_id: result for result in done.result_values or ()})


class _Wish:
    def __init__(self, task: models.BatchTaskCreateOptions, done: asyncio.Future[None]) -> None:
        self.task, self.done = task, done


def _settle(wishes: Iterable[_Wish], results: dict[str, models.BatchTaskCreateResult]) -> None:
    for wish in wishes:
        if wish.done.done():
            continue  # who waited was cancelled
        result = results.get(wish.task.id)
        error = result.error if result is not None else None
        if result is None:
            text = "Azure Batch did not say whether it added the task"
            wish.done.set_exception(BackendUnavailable(text))
        elif result.status == "success" or (error and error.code == "TaskExists"):
            wish.done.set_result(None)
        else:
            code, said = told(error)
            text = f"Azure Batch would not add the task: {said} ({code})"
            wish.done.set_exception((Gone if code in CLOSED else Refused)(text, code, 0))


def _fail(wishes: Iterable[_Wish], error: Exception) -> None:
    for wish in wishes:
        if not wish.done.done():
            wish.done.set_exception(error)

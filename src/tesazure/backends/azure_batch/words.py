"""What Batch says of a task, in words that a scientist understands, with Batch's own code. Pure."""

from __future__ import annotations

import msgspec

from tesazure.runner.node import ExitCode

_RUNNER_ENDS = {
    ExitCode.UNREADABLE: "the node was given no attempt, or one that its runner does not understand"
    ": check that FILETRANSFER_CONTAINER_IMAGE is of this server's version",
    ExitCode.NOT_BEGUN: "the runner cannot reach the storage that it reports to from its node",
    ExitCode.DIED: "the process that ran the attempt died on its node, such as for lack of memory",
    ExitCode.UNDELIVERED: "the node could not deliver the attempt's report to storage",
    ExitCode.ALREADY_BEGUN: "its runner found that it was begun before, or released",
}
"""What exit codes of the runner mean where its report has no end."""

_MEANINGS = {
    "BlobAccessDenied": (
        "the node may not read the attempt's plan: its signature has expired, or the storage"
        " account's firewall keeps nodes out"
    ),
    "BlobDownloadMiscError": "the node could not read the attempt's plan from storage",
    "BlobDownloadTimedOut": "the node could not read the attempt's plan from storage in time",
    "BlobNotFound": "the attempt's plan is gone from storage",
    "CommandLaunchFailed": "the runner could not be started from its image",
    "CommandProgramNotFound": (
        "the runner's image has no runner: check FILETRANSFER_CONTAINER_IMAGE"
    ),
    "ContainerInvalidImage": (
        "the runner's image cannot be pulled: check FILETRANSFER_CONTAINER_IMAGE, and"
        " PRIVATE_DOCKER_REGISTRY_* if its registry is private"
    ),
    "ContainerInvalidRegistry": "the registry of the runner's image cannot be used",
    "ContainerPoolNotSupported": "the pool's nodes run no containers: it needs another image",
    "ContainerRegistryAuthenticationFailed": (
        "the registry of the runner's image refuses the login: check PRIVATE_DOCKER_REGISTRY_*, or"
        " the role AcrPull of BATCH_POOL_IDENTITY_ID"
    ),
    "DiskFull": "the node's disk is full; ask for more disk_gb",
    "JobDisabled": "the Batch job was disabled by somebody",
    "JobTerminated": "the Batch job was terminated by somebody",
    "NodePreempted": "Azure took the Spot node away",
    "ResourceFileTooLarge": "the attempt's plan is too large for a node",
    "TaskEnded": "the Batch task was terminated, not by this server",
}
"""Batch's code -> what it means. Sources: the Batch service's task failure codes
("TaskFailureInformationCodes"), "Azure Batch job and task errors" and "Azure Batch pool and node
errors" (Microsoft)."""


class Row(msgspec.Struct, frozen=True):
    """What one list of tasks says of one."""

    state: str
    """active, preparing, running, completed."""
    exit_code: int | None = None
    code: str = ""
    """Batch's code of what failed; empty: nothing did."""
    message: str = ""
    requeues: int = 0
    """How often somebody had Batch queue it again; whether the loss of a node counts is not
    documented ("BatchTaskExecutionInfo.RequeueCount")."""
    node: str = ""
    """Id of the node that has or had it."""
    previous: str = ""
    """Its state before; empty: it had none."""
    started: float | None = None
    """When it began to run the last time; None: it has not ("BatchTaskExecutionInfo.StartTime")."""
    changed: float | None = None
    """When it came into its state. Both in seconds since the epoch."""
    slots: int = 1
    """That it takes on its node."""

    @property
    def completed(self) -> bool:
        """Whether the task runs no more."""
        return self.state == "completed"

    @property
    def queued_again(self) -> bool:
        """Whether it waits for a node once more. A task in its first active state has no previous
        one ("Task - Get", previousState)."""
        return self.state == "active" and bool(self.previous)

    def is_taken(self, begun: bool) -> bool:
        """Whether its node was taken from a task that is over: there is no other one, or the runner
        that Batch started there has left the attempt alone, as it had `begun`."""
        again = begun and self.exit_code == ExitCode.ALREADY_BEGUN
        return self.completed and (again or self.code == "NodePreempted")


def loss(row: Row, node: str = "") -> str:
    """Why an attempt has to begin anew whose node was taken away. `node`: what is known of it."""
    said = "its node was taken away or failed"
    if row.code not in ("", "FailureExitCode"):
        said += f" ({row.code})"
    elif row.requeues:
        said += f", and Batch queued it again (requeueCount {row.requeues})"
    else:
        said += ", and Batch queued it again"
    return "; ".join(filter(None, (said, node)))


def failure(row: Row, node: str = "") -> str:
    """Why a task is over whose runner reported no end."""
    own = row.code in ("", "FailureExitCode")
    if own and row.exit_code in _RUNNER_ENDS:
        what = f"{_RUNNER_ENDS[ExitCode(row.exit_code)]} (exit code {row.exit_code})"
    elif own and row.exit_code is not None:
        what = f"the runner ended with exit code {row.exit_code}, and reported no end"
    elif row.code in _MEANINGS:
        what = f"{_MEANINGS[row.code]} ({row.code})"
        what += row.message and f"; {row.message}"
    elif row.code:
        what = f"{row.message or 'Batch ended the task'} ({row.code})"
    else:
        what = "Batch ended the task and says nothing more"
    return "; ".join(filter(None, (what, node)))


def progress(row: Row | None, pool: str) -> str:
    """What an attempt waits for whose runner has not begun; `pool`: what its pool waits for."""
    if row is None or row.state == "active":
        return pool
    if row.state == "preparing":
        return f"node {row.node} gets the runner ready"
    return ""

"""The TES documents as msgspec Structs, with the standard's names.

Source: GA4GH Task Execution Service 1.1.0. An absent optional field is None and is not encoded; a
null in a request reads as absent. Only `tags` keeps nulls, as Cromwell sends them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec


class State(StrEnum):
    """tesState. Only `lifecycle` decides a task's state."""

    UNKNOWN = "UNKNOWN"
    QUEUED = "QUEUED"
    INITIALIZING = "INITIALIZING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    COMPLETE = "COMPLETE"
    EXECUTOR_ERROR = "EXECUTOR_ERROR"
    SYSTEM_ERROR = "SYSTEM_ERROR"
    CANCELED = "CANCELED"
    CANCELING = "CANCELING"
    PREEMPTED = "PREEMPTED"


TERMINAL = frozenset(
    {
        State.COMPLETE,
        State.EXECUTOR_ERROR,
        State.SYSTEM_ERROR,
        State.CANCELED,
        State.PREEMPTED,
    }
)


class View(StrEnum):
    """Which fields of a task a reply holds."""

    MINIMAL = "MINIMAL"
    BASIC = "BASIC"
    FULL = "FULL"


class FileType(StrEnum):
    """tesFileType."""

    FILE = "FILE"
    DIRECTORY = "DIRECTORY"


class Document(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Base of every TES document: absent fields are not encoded."""


class Input(Document):
    """tesInput. One of `url` and `content` is set; `content` wins."""

    path: str
    url: str | None = None
    content: str | None = None
    name: str | None = None
    description: str | None = None
    type: FileType | None = None
    streamable: bool | None = None


class Output(Document):
    """tesOutput. `path` may hold POSIX wildcards, then `path_prefix` is set."""

    path: str
    url: str
    path_prefix: str | None = None
    name: str | None = None
    description: str | None = None
    type: FileType | None = None


class Executor(Document):
    """tesExecutor: one command, as argv, in one image."""

    image: str
    command: list[str]
    workdir: str | None = None
    stdin: str | None = None
    stdout: str | None = None
    stderr: str | None = None
    env: dict[str, str] | None = None
    ignore_error: bool | None = None


class Resources(Document):
    """tesResources. Sizes are in GB (10^9 bytes); `cpu_cores` may be fractional (TES 1.2 draft)."""

    cpu_cores: int | float | None = None
    ram_gb: int | float | None = None
    disk_gb: int | float | None = None
    preemptible: bool | None = None
    zones: list[str] | None = None
    backend_parameters: Mapping[str, str | None] | None = None
    backend_parameters_strict: bool | None = None


class ExecutorLog(Document):
    """tesExecutorLog. Present once the executor has started; `exit_code` once it has ended."""

    start_time: str | None = None
    end_time: str | None = None
    stdout: str | None = None
    stderr: str | None = None
    exit_code: int | None = None


class OutputFileLog(Document):
    """tesOutputFileLog: one file; `size_bytes` is a decimal string, as the standard wants."""

    url: str
    path: str
    size_bytes: str


class TaskLog(msgspec.Struct, kw_only=True):
    """tesTaskLog: one attempt. The standard requires `logs` and `outputs`: always encoded."""

    logs: list[ExecutorLog] = []
    outputs: list[OutputFileLog] = []
    metadata: dict[str, str] = {}
    system_logs: list[str] = []
    start_time: str | msgspec.UnsetType = msgspec.UNSET
    end_time: str | msgspec.UnsetType = msgspec.UNSET


class Task(Document):
    """tesTask as submitted: without the fields that only the server sets."""

    executors: list[Executor]
    name: str | None = None
    description: str | None = None
    inputs: list[Input] | None = None
    outputs: list[Output] | None = None
    resources: Resources | None = None
    volumes: list[str] | None = None
    tags: dict[str, str | None] | None = None


SERVER_FIELDS = frozenset({"id", "state", "logs", "creation_time"})
"""Fields of tesTask that only the server sets; ignored in a request."""

WILDCARDS = frozenset("*?[")
"""Characters that make an output path a pattern (IEEE Std 1003.1-2017, 2.13)."""


def is_pattern(path: str) -> bool:
    """Whether an output path holds wildcards."""
    return not WILDCARDS.isdisjoint(path)

"""The Engine Protocol: runs one executor in one container on this node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from tesazure.access import RegistryLogin
from tesazure.plan import Step

Say = Callable[[str, str], None]
"""Writes a line of system_logs: level (info, warning, error) and message."""


class Mount(msgspec.Struct, frozen=True):
    """A host path seen at a container path. `is_directory` tells which of the two it is."""

    source: Path
    target: str
    read_only: bool = False
    is_directory: bool = True


class Container(msgspec.Struct, frozen=True):
    """What an engine needs to run one step.

    `root` is the task's own tree on the host: the container path `/a/b` lies at `root/a/b`.
    Directories in `shared` (absolute container paths, none below another) are to be visible in the
    container at their own path, writable, backed by `root`, and are so in every executor of the
    task. Where the image itself has files in such a directory, those stay visible as well.
    """

    key: str
    """The attempt's key; labels whatever the engine makes, so that all of it can be found again."""
    index: int
    step: Step
    root: Path
    shared: tuple[str, ...]
    mounts: tuple[Mount, ...]
    """Further host paths, such as /tes-wd/shared-global."""
    stdin: Path | None
    """Host file, opened read-only."""
    stdout: Path
    stderr: Path
    """Host files, opened for appending, written as the command writes."""
    cpu_cores: float | None
    ram_bytes: int | None
    network: bool


Login = Callable[[str], RegistryLogin | None]
"""The login that an image is to be pulled with, asked for right before; None: without one. Raises
ImageUnavailable, EngineUnavailable."""


def nobody(_image: str) -> None:
    """The Login of whoever has none."""


class Exit(msgspec.Struct, frozen=True):
    """How a container ended. 127: command not found; 126: not executable; 137 with `out_of_memory`:
    killed for exceeding its memory. `detail` is the engine's own words, if any."""

    exit_code: int
    out_of_memory: bool = False
    detail: str = ""


class Engine(Protocol):
    """Runs containers. One call at a time per attempt; `kill` may come from a signal handler or
    another thread."""

    name: str

    def prepare(self, image: str, say: Say, login: Login = nobody) -> None:
        """Have the image here, pulling it if need be, with progress through `say`. What `login`
        gives is kept nowhere.
        Raises ImageUnavailable (final) or EngineUnavailable (retryable)."""
        ...

    def run(self, container: Container, started: Callable[[], None], say: Say) -> Exit:
        """Run to the end and remove the container. Calls `started` once the command runs (also
        when it then proves not startable: exit 127/126). When it returns, nothing of the container
        is left, and what it wrote under `root` can be read and deleted by this process's user.
        Raises EngineError only for failures of the engine."""
        ...

    def kill(self) -> None:
        """End the running container at once, if there is one; `run` then returns. Idempotent."""
        ...

    def sweep(self, key: str, root: Path | None, settle_s: float = 0.0) -> None:
        """Remove every container that carries `key`, and make what was written below `root`
        deletable by this process's user. For attempts whose runner is gone. Idempotent.

        A runner that was killed may have asked the engine for a container that is not there yet:
        returns only when none has been found for `settle_s` seconds."""
        ...

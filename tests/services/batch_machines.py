"""Nodes of the Batch stand-in that really run command lines: as containers, or as processes.

Sources: "Files and directories in Azure Batch", "Use Azure Batch to run container workloads".
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.services import base
from tests.services.batch_files import Failed, Transfers
from tests.services.batch_nodes import Command, Execution, Machine
from tests.services.batch_state import Node

_EXIT_S = 10.0
_SOCKET = "/var/run/docker.sock"


class RealMachine(Machine):
    """Nodes that are directories below `root`, and run command lines as processes of this machine:
    `python` is this interpreter, and a container task runs so, too, without its image. With a
    `docker` URL, container tasks are containers of that engine. `environment` is added to that of
    processes, as an image would."""

    def __init__(
        self,
        root: Path,
        transfers: Transfers,
        docker: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(transfers)
        self.root, self.docker = root, docker
        self.mounted: Callable[[Mapping[str, Any]], Path] = self._any_share
        """What an azureFileShareConfiguration leads to. Raises Failed."""
        self.missing_images: set[str] = set()
        """Which no registry has."""
        self._environment = dict(environment or {})

    def share(self, url: str) -> Path:
        """The directory that stands for an Azure Files share, seen by every node that mounts it."""
        parts = [part for part in url.partition("://")[2].split("/") if part]
        directory = self.root / "shares" / "-".join(parts)
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def _any_share(self, mount: Mapping[str, Any]) -> Path:
        return self.share(mount["azureFileUrl"])

    def prepare(self, node: Node) -> None:
        """As Machine."""
        if node.root is not None:  # it was only rebooted
            return
        node.starts += 1
        node.root = self.root / "nodes" / f"{node.id}-{node.starts}"
        for name in ("shared", "startup/wd", "fsmounts", "volatile", "applications", "workitems"):
            (node.root / name).mkdir(parents=True, exist_ok=True)
        for relative, share in self._mounts(node):
            (node.root / "fsmounts" / relative).symlink_to(share)

    def discard(self, root: Path) -> None:
        """As Machine; containers that tasks started beside themselves go with the node."""
        if self.docker:
            for found in self._docker("ps", "--all", "--quiet", "--no-trunc").split():
                mounts = self._docker("inspect", "--format", "{{json .Mounts}}", found)
                if f'"{root}' in mounts:
                    self._docker("rm", "--force", "--volumes", found)
        super().discard(root)

    def begin(self, execution: Execution, environment: dict[str, str]) -> Command:
        """As Machine."""
        directory, working = execution.directory, execution.working
        assert directory is not None
        assert working is not None
        settings = execution.task.given.get("containerSettings")
        words = shlex.split(execution.task.given["commandLine"])
        if settings is not None:
            image = settings["imageName"]
            if image in self.missing_images or (self.docker and not self._has(image)):
                raise Failed(
                    "ContainerInvalidImage",
                    "The container image was invalid",
                    details={"Message": f"pull access denied for {image}: it does not exist"},
                )
        if settings is not None and self.docker:
            return self._begin_container(execution, words, environment)
        if words[0] in ("python", "python3"):
            words[0] = sys.executable
        usual = {"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8", "HOME": "/tmp"}
        command = _Process(words, directory, working, usual | self._environment | environment)
        if settings is not None:
            command.container = _container_info(secrets.token_hex(32))
        return command

    def _begin_container(
        self, execution: Execution, words: list[str], environment: dict[str, str]
    ) -> Command:
        node, settings = execution.node, execution.task.given["containerSettings"]
        socket = self.docker.removeprefix("unix://")
        options = settings.get("containerRunOptions", "").replace(f"{_SOCKET}:", f"{socket}:")
        name = f"batch-{uuid.uuid4().hex}"
        mounts = [str(execution.root), *(str(share) for _, share in self._mounts(node))]
        arguments = ["docker", "--host", self.docker, "run", "--name", name]
        arguments += [word for path in mounts for word in ("--volume", f"{path}:{path}")]
        arguments += [
            word for key, each in environment.items() for word in ("--env", f"{key}={each}")
        ]
        if (
            settings.get("workingDirectory", "taskworkingdirectory").lower()
            != "containerimagedefault"
        ):
            arguments += ["--workdir", str(execution.working)]
        arguments += [*shlex.split(options), settings["imageName"], *words]
        assert execution.directory is not None
        return _Container(arguments, execution.directory, self.docker, name)

    def _mounts(self, node: Node) -> Iterator[tuple[str, Path]]:
        for each in node.pool.given.get("mountConfiguration", []):
            share = each.get("azureFileShareConfiguration")
            if share is not None:
                yield share["relativeMountPath"], self.mounted(share)

    def _has(self, image: str) -> bool:
        asked = ["docker", "--host", self.docker, "image", "inspect", image]
        return subprocess.run(asked, capture_output=True, check=False).returncode == 0

    def _docker(self, *words: str) -> str:
        asked = ["docker", "--host", self.docker, *words]
        return subprocess.run(asked, capture_output=True, check=False, text=True).stdout


class _Process(Command):
    """A program in a session of its own, its output in stdout.txt and stderr.txt."""

    def __init__(
        self, words: list[str], directory: Path, working: Path, environment: dict[str, str] | None
    ) -> None:
        self._marker = f"AZ_BATCH_TASK_DIR={directory}".encode()
        with (
            (directory / "stdout.txt").open("wb") as output,
            (directory / "stderr.txt").open("wb") as errors,
        ):
            try:
                self._process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=errors,
                    cwd=working,
                    env=environment,
                    start_new_session=True,
                )
            except FileNotFoundError as error:
                said = "The program specified in the task's command line was not found."
                raise Failed("CommandProgramNotFound", said) from error
            except OSError as error:
                said = "An error occurred when launching the task's command line."
                raise Failed("CommandLaunchFailed", said) from error

    def wait(self) -> int:
        code = self._process.wait()
        self._end_rest()
        return code if code >= 0 else 128 - code

    def terminate(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _end_rest(self) -> None:
        """When a container's first process ends, so do the others."""
        deadline = time.monotonic() + _EXIT_S
        while time.monotonic() < deadline:
            left = [pid for pid in self._family() if base.is_alive(pid)]
            if not left:
                return
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def _family(self) -> Iterator[int]:
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                same = int(fields[3]) == self._process.pid
                if same or self._marker in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


class _Container(_Process):
    """`docker run`, which passes SIGTERM on to its container, but cannot pass SIGKILL."""

    def __init__(self, arguments: list[str], directory: Path, docker: str, name: str) -> None:
        super().__init__(arguments, directory, directory, None)
        self._docker, self._name = docker, name
        self.container = _container_info(name)

    def wait(self) -> int:
        """As Command. Batch removes its containers."""
        code = super().wait()
        asked = ["docker", "--host", self._docker, "rm", "--force", "--volumes", self._name]
        subprocess.run(asked, capture_output=True, check=False)
        return code

    def kill(self) -> None:
        """As Command, without waiting for it."""
        asked = ["docker", "--host", self._docker, "kill", self._name]
        threading.Thread(
            target=subprocess.run, args=(asked,), kwargs={"capture_output": True}, daemon=True
        ).start()


def _container_info(container: str) -> dict[str, Any]:
    return {"containerId": container, "state": "running", "error": ""}

"""What the engine is asked to create, and what its refusals mean. Pure."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from typing import Any

from tesazure.runner.engines.base import Container, Exit, Mount

LABEL_ATTEMPT = "tesazure.attempt"
LABEL_EXECUTOR = "tesazure.executor"

PIDS_LIMIT = 32768
"""Stops a fork bomb before it takes the machine; no honest tool comes near."""

SMALLEST_RAM = 6 * 2**20
"""Bytes; Docker refuses to set less."""


def container_name(key: str, index: int) -> str:
    """The same for the same executor of the same attempt, so that a leftover is a loud conflict."""
    digest = hashlib.sha256(key.encode()).hexdigest()[:24]
    return f"tesazure-{digest}-{index}"


def labels(key: str, role: str) -> dict[str, str]:
    """By which `sweep` finds what was made for the attempt `key`."""
    return {LABEL_ATTEMPT: key, LABEL_EXECUTOR: role}


def bind(mount: Mount) -> dict[str, Any]:
    """A Mount as the API wants it. Unlike a "bind string" it holds any character, and a missing
    source is an error, not a directory made by root."""
    return {
        "Type": "bind",
        "Source": str(mount.source),
        "Target": mount.target,
        "ReadOnly": mount.read_only,
    }


def create_body(container: Container, mounts: Iterable[Mount]) -> dict[str, Any]:
    """The body of "Create a container". The command's first word replaces the image's ENTRYPOINT,
    the others its CMD. The image's user and, unless the step has its own, working directory hold.
    """
    step = container.step
    body: dict[str, Any] = {
        "Image": step.image,
        "Entrypoint": step.command[:1],
        "Cmd": step.command[1:],
        "Env": [f"{name}={value}" for name, value in step.env.items()],
        "Labels": labels(container.key, str(container.index)),
        "AttachStdin": container.stdin is not None,
        "AttachStdout": True,
        "AttachStderr": True,
        "OpenStdin": container.stdin is not None,
        "StdinOnce": container.stdin is not None,
        # An image's HEALTHCHECK would run commands nobody asked for.
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "Mounts": [bind(mount) for mount in mounts],
            # The streams are read as they come: the engine need not keep them a second time.
            "LogConfig": {"Type": "none"},
            "SecurityOpt": ["no-new-privileges"],
            "PidsLimit": PIDS_LIMIT,
            **_limits(container),
        },
    }
    if step.workdir is not None:
        body["WorkingDir"] = step.workdir
    if not container.network:
        body["HostConfig"]["NetworkMode"] = "none"
    return body


def _limits(container: Container) -> dict[str, int]:
    """Memory without swap on top of it. As many cores as there are need no limit, and more are
    refused by Docker."""
    limits = {}
    if container.ram_bytes is not None:
        limits["Memory"] = limits["MemorySwap"] = max(container.ram_bytes, SMALLEST_RAM)
    if container.cpu_cores is not None and container.cpu_cores < (os.cpu_count() or 1):
        limits["NanoCpus"] = max(int(container.cpu_cores * 10**9), 10**7)
    return limits


_NOT_FOUND = re.compile(
    r"""exec: ".*": executable file not found"""
    r"""|exec: ".*": (stat .*: )?no such file or directory"""
    r"""|executable file `.*` not found"""  # crun
)
_NOT_EXECUTABLE = re.compile(
    r"""exec: ".*": (permission denied|is a directory|exec format error)"""
    r"""|exec container process .*: Exec format error|open executable: Permission denied"""  # crun
    r"""|Cannot mkdir: .* is not a directory"""  # the working directory, in Docker
    r"""|mkdir .*: not a directory"""
    r"""|workdir ".*" .*is not a directory"""  # in Podman
    r"""|chdir to cwd .*: permission denied"""
)


def start_failure(words: str) -> Exit | None:
    """Of an engine's refusal to start a container: the Exit, if it is for the command's sake.

    127 and 126 as a shell would say (POSIX, Shell Command Language, 2.8.2): not found, found but
    not to be executed.
    """
    for exit_code, pattern in ((127, _NOT_FOUND), (126, _NOT_EXECUTABLE)):
        if found := pattern.search(words):
            return Exit(exit_code, detail=found[0])
    return None


_INIT_COMPLAINT = re.compile(
    rb"(?:standard_init_linux\.go:\d+: exec user process caused: |exec \S[^\n]*: )"
    rb"(exec format error|no such file or directory|permission denied)\n?"
)


def exec_failure(exit_code: int, stderr: bytes) -> Exit | None:
    """Of a container that ended with nothing but `stderr`: the Exit, if what it says is runc's
    own complaint, which comes too late for the API when the kernel refuses the file only when it
    is executed (another architecture, a script without its interpreter)."""
    if exit_code not in (1, 255) or not (found := _INIT_COMPLAINT.fullmatch(stderr)):
        return None
    code = 127 if found[1].startswith(b"no such") else 126
    return Exit(code, detail=stderr.decode("utf-8", "replace").strip())

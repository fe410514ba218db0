"""Podman's Docker-compatible service for tests, on a Unix socket of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

from tests.services import base, images
from tests.services.docker_engine import require_answer

# Debian 12's Podman 4.3 raises rlimits beyond what a container host may allow, and its default
# runtime, crun, fails under hybrid cgroups.
CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
log_driver = "k8s-file"

[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""


class PodmanService(base.Service):
    """`podman system service`; `url` is what DOCKER_HOST would hold.

    Storage, state and networks are its own. `environment` is what a `podman` command needs to
    behave the same way; `command` is that command's beginning.
    """

    name = "podman"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.socket = root / "podman.sock"
        self.url = f"unix://{self.socket}"
        self.environment = {"CONTAINERS_CONF": str(root / "containers.conf")}

    @property
    def command(self) -> list[str]:
        """`podman` with the options that select this storage."""
        options = {
            "--root": self.root / "storage",
            "--runroot": self.root / "run",
            "--tmpdir": self.root / "tmp",
            "--network-config-dir": self.root / "networks",
        }
        podman = base.require_program("podman", "podman")
        return [podman, *(str(word) for pair in options.items() for word in pair)]

    def start(self) -> None:
        """Start the service (about 1 s)."""
        base.require_program("runc", "runc")
        command = self.command
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "containers.conf").write_text(CONTAINERS_CONF)
        log = self.root / "podman.log"
        base.spawn([*command, "system", "service", "--time=0", self.url], log, self.environment)
        base.wait_until(lambda: base.answers(self.socket), "podman system service", log)
        require_answer(self.url)

    def stop(self) -> None:
        """Remove every container, end the service, delete its data."""
        if not self.root.exists():
            return
        with contextlib.suppress(base.Unavailable, subprocess.TimeoutExpired):
            subprocess.run(
                [*self.command, "rm", "--all", "--force", "--time=0"],
                check=False,
                capture_output=True,
                timeout=30,
                env={**os.environ, **self.environment},
            )
        base.end_processes_naming(self.root)
        base.remove_tree(self.root)

    def image(self, name: str) -> str:
        """Reference of a test image (a key of `images.RECIPES`), loaded if it is not there."""
        return images.load(self.url, name)

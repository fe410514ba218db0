"""Docker and Podman, through the HTTP API that both speak."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Literal

import docker

from tesazure.runner.engines import images
from tesazure.runner.engines.base import Container, Exit, Login, Say, nobody
from tesazure.runner.engines.docker_client import connect, remove, speaking
from tesazure.runner.engines.docker_create import LABEL_ATTEMPT
from tesazure.runner.engines.docker_run import Run
from tesazure.runner.engines.ownership import take_over

_LOOK_AGAIN_S = 0.25


class DockerEngine:
    """See base.Engine. `host` is the URL of the engine's socket: unix:// or tcp://."""

    def __init__(self, host: str, name: Literal["docker", "podman"] = "docker") -> None:
        self.host = host
        self.name: str = name
        self._run: Run | None = None

    @cached_property
    def _client(self) -> docker.APIClient:
        return connect(self.host, self.name)

    def prepare(self, image: str, say: Say, login: Login = nobody) -> None:
        """See base.Engine."""
        images.prepare(self._client, self.name, image, say, login)

    def run(self, container: Container, started: Callable[[], None], say: Say) -> Exit:
        """See base.Engine. Waits `AWAY_S` for an engine that is being restarted."""
        images.check_reference(container.step.image)
        with Run(self._client, self.name, container, say) as run:
            self._run = run
            try:
                return run.to_the_end(started)
            finally:
                self._run = None

    def kill(self) -> None:
        """See base.Engine. Only tells `run`, by a write to a pipe: safe in a signal handler."""
        if run := self._run:
            run.kill()

    def sweep(self, key: str, root: Path | None, settle_s: float = 0.0) -> None:
        """See base.Engine."""
        wanted = {"label": [f"{LABEL_ATTEMPT}={key}"]}
        with speaking(self.name, f"removing what is left of {key}"):
            quiet_until = time.monotonic() + settle_s
            while True:
                for found in self._client.containers(all=True, filters=wanted):
                    remove(self._client, found["Id"], running=True)
                    quiet_until = time.monotonic() + settle_s
                if time.monotonic() >= quiet_until:
                    break
                time.sleep(_LOOK_AGAIN_S)
            if root is not None and root.exists():
                take_over(self._client, self.name, root, key)

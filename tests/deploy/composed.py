"""Compose files of the project, brought up by Debian's real docker-compose on the tests' engine."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.docs.blocks import ROOT, blocks
from tests.service.server import until
from tests.services import base
from tests.services.docker_engine import DockerEngine

UP_S = 240
"""Seconds in which services come up, on a busy machine."""


@dataclass
class Composed:
    """A compose file's services. `files`: the compose file and what is laid over it."""

    directory: Path
    engine: DockerEngine
    files: tuple[str, ...]
    environment: dict[str, str]
    env_file: str = ""
    name: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:8]}")

    def run(self, *words: str, timeout_s: float = UP_S, check: bool = True) -> str:
        """What docker-compose prints; AssertionError with its complaints if it fails."""
        program = base.require_program("docker-compose", "docker-compose")
        options = [word for file in self.files for word in ("--file", file)]
        options += ["--env-file", self.env_file] if self.env_file else []
        done = subprocess.run(
            [program, *options, "--project-name", self.name, *words],
            cwd=self.directory,
            env={
                **os.environ,
                # It builds by itself, not with the docker command, which need not be there.
                "COMPOSE_DOCKER_CLI_BUILD": "0",
                "DOCKER_HOST": self.engine.url,
                **self.environment,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        if check:
            assert done.returncode == 0, f"{done.stderr[-3000:]}\n{done.stdout[-3000:]}"
        return done.stdout

    def type(self, line: str, *here: tuple[str, str]) -> str:
        """What a command of the documentation prints, with other words in the places of some. If it
        is docker compose's, it names the files that this has."""
        for written, meant in here:
            assert written in line, line
            line = line.replace(written, meant)
        match shlex.split(line):
            case ["docker", "compose", *words]:
                given: dict[str, list[str]] = {"-f": [], "--env-file": []}
                while words[0].startswith("-"):
                    given[words[0]].append(words[1])
                    words = words[2:]
                assert tuple(given["-f"] or ["compose.yaml"]) == self.files[:-1]
                assert "".join(given["--env-file"]) == self.env_file
                if words[0] == "exec":
                    words.insert(1, "-T")
                return self.run(*words, timeout_s=900)
            case ["curl", *words]:
                return base.run(["curl", "--silent", "--show-error", *words], timeout=UP_S)
        raise AssertionError(f"nobody runs: {line}")

    def client(self) -> httpx.Client:
        """Of the server, which is published to this machine."""
        port = self.environment["TESAZURE_PORT"]
        return httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)

    def wait_ready(self, timeout_s: float = UP_S) -> None:
        """Until the server says so."""
        with self.client() as client:

            def ready() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return client.get("/readyz").status_code == 200
                return False

            try:
                until(ready, timeout_s)
            except AssertionError as error:
                raise AssertionError(self.run("logs", "--tail", "60", check=False)) from error

    def container(self, service: str) -> str:
        """Its container's id."""
        return self.run("ps", "--quiet", service).strip()


def documented(page: str) -> list[str]:
    """The command lines that a page says the tests of compose files run."""
    marked = [block for block in blocks(ROOT / page, "sh") if "test_compose.py" in block.remark]
    return [line for block in marked for line in block.text.splitlines()]


@contextlib.contextmanager
def composed(site: Composed, arguments: dict[str, str], *services: str) -> Iterator[Composed]:
    """`services` are built here: without a network, with these arguments. Everything is removed at
    the end."""
    build = {"args": arguments, "network": "none"}
    bridge = {"driver_opts": {"com.docker.network.bridge.name": site.name}}
    overlay = {
        "services": {service: {"build": build} for service in services},
        "networks": {"default": bridge},
    }
    # JSON is YAML.
    (site.directory / "here.yaml").write_text(json.dumps(overlay))
    site.files = (*site.files, "here.yaml")
    try:
        with forwarded(site.name):
            yield site
    finally:
        site.run("down", "--volumes", "--remove-orphans", "--timeout", "10", check=False)


@contextlib.contextmanager
def forwarded(bridge: str) -> Iterator[None]:
    """Lets a bridge's containers reach each other: the tests' engine makes no firewall rules, and
    an engine of the machine's, or Podman, may have the machine drop what is not theirs."""
    iptables = base.require_program("iptables", "iptables")
    rule = ["FORWARD", "--in-interface", bridge, "--out-interface", bridge, "--jump", "ACCEPT"]
    base.run([iptables, "--wait", "--insert", *rule])
    try:
        yield
    finally:
        base.run([iptables, "--wait", "--delete", *rule])

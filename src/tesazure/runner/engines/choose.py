"""Which engine a node has, and how to get at it.

Every runner comes through here, so nothing is imported that only some of them need.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import msgspec

from tesazure.errors import ConfigurationError
from tesazure.runner.engines.base import Engine

if TYPE_CHECKING:
    from http.client import HTTPConnection

Name = Literal["docker", "podman", "sandbox"]

TIMEOUT_S = 2.0
DOCKER_SOCKET = "unix:///var/run/docker.sock"
PODMAN_SOCKET = "unix:///run/podman/podman.sock"
SANDBOX_TRIES, SANDBOX_S = 3, 10.0
"""For a sandbox to be made, and seconds for each. The host's files may change while they are being
shown."""

_REMEDIES = {
    "docker": "start Docker, join the group of its socket, or set APP_DOCKER_HOST",
    "podman": "start `podman system service`, or set APP_PODMAN_HOST to its socket",
    "sandbox": "apt install bubblewrap",
}


class EngineChoice(msgspec.Struct, frozen=True):
    """An engine that answers. `host` is the URL of its API (empty for sandbox), `detail` its own
    words about itself."""

    name: Name
    host: str
    detail: str


def find_engine(
    wanted: Literal["auto", "docker", "podman", "sandbox"],
    docker_host: str,
    podman_host: str,
    runtime_dir: str = "",
) -> EngineChoice:
    """The engine wanted, or the first that answers of docker, podman, sandbox.

    Empty hosts mean the usual sockets; `runtime_dir` is XDG_RUNTIME_DIR, where a user's podman has
    its socket. Raises ConfigurationError saying what was tried, and the remedy. Takes at most
    `TIMEOUT_S` for each socket tried, and `SANDBOX_S` for each of SANDBOX_TRIES.
    """
    hosts: dict[Name, list[str]] = {
        "docker": [docker_host or DOCKER_SOCKET],
        "podman": [podman_host] if podman_host else [PODMAN_SOCKET],
    }
    if not podman_host and runtime_dir:
        hosts["podman"].append(f"unix://{runtime_dir}/podman/podman.sock")
    names: tuple[Name, ...] = ("docker", "podman", "sandbox") if wanted == "auto" else (wanted,)
    tried = []
    for name in names:
        for host in hosts.get(name, [""]):
            try:
                detail = ping(host) if name != "sandbox" else try_sandbox()
                return EngineChoice(name, host, detail)
            except (OSError, ValueError) as error:
                place = f" at {host}" if host else ""
                tried.append(f"{name}{place}: {error}; {_REMEDIES[name]}")
    raise ConfigurationError(["no engine to run containers with:", *tried])


def make_engine(name: str, host: str, hidden: Sequence[str] = ()) -> Engine:
    """The engine itself. Imports an SDK only for those that need one. `hidden` as in `NodeConfig`,
    for the sandbox: in containers nothing of the host is seen anyway."""
    if name == "sandbox":
        from tesazure.runner.engines.sandbox import SandboxEngine

        return SandboxEngine(hidden)
    from tesazure.runner.engines.docker import DockerEngine

    return DockerEngine(host, "podman" if name == "podman" else "docker")


def ping(host: str) -> str:
    """What answers at a Docker-compatible API. Raises OSError or ValueError."""
    from http.client import HTTPException

    connection = _connect(host)
    try:
        connection.request("GET", "/_ping", headers={"Host": "localhost"})
        reply = connection.getresponse()
        reply.read()
        if reply.status != 200:
            raise ValueError(f"answered {reply.status} {reply.reason}")
        return reply.getheader("Server") or "answers"
    except HTTPException as error:
        raise ValueError(f"does not speak HTTP: {error!r}") from error
    finally:
        connection.close()


def _connect(host: str) -> HTTPConnection:
    from http.client import HTTPConnection

    url = urlsplit(host)
    if url.scheme == "unix":
        connection = HTTPConnection("localhost", timeout=TIMEOUT_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(TIMEOUT_S)
        try:
            connection.sock.connect(url.path)
        except OSError:
            connection.close()
            raise
        return connection
    if url.scheme in ("tcp", "http") and url.hostname:
        return HTTPConnection(url.hostname, url.port or 2375, timeout=TIMEOUT_S)
    raise ValueError(f"{host!r} is neither unix://PATH nor tcp://HOST:PORT")


def try_sandbox() -> str:
    """bubblewrap's version, if it can make a sandbox here. Raises OSError or ValueError."""
    program = shutil.which("bwrap")
    if program is None:
        raise FileNotFoundError("there is no program bwrap")
    view = ["--ro-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "--dev", "/dev"]
    said = ""
    for _ in range(SANDBOX_TRIES):
        try:
            done = subprocess.run(
                [program, *view, "--", program, "--version"],
                capture_output=True,
                text=True,
                timeout=SANDBOX_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            said = f"it does not answer in {SANDBOX_S:g} s"
            continue
        if done.returncode == 0:
            return done.stdout.strip()
        said = done.stderr.strip()
    raise ValueError(f"{program} cannot make a sandbox here: {said}")

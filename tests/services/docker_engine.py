"""A Docker engine for tests: a `dockerd` of our own beside any other, or the one in DOCKER_HOST."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import subprocess
from pathlib import Path

import docker
from docker.errors import DockerException

from tests.services import base, images


class DockerEngine(base.Service):
    """A Docker engine; `url` is what DOCKER_HOST would hold.

    As root a private `dockerd` is started: own socket, data, containerd namespace and bridge,
    and no firewall rules, so that an engine which runs already is not disturbed. Its containers
    reach this machine (at `gateway`) and each other, not the internet.
    If DOCKER_HOST is set, that engine is used and never stopped; so is the system's one
    when this process is not root.
    """

    name = "docker"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.socket = root / "docker.sock"
        self.offered = os.environ.get("DOCKER_HOST")
        if self.offered is None and os.geteuid() != 0:
            self.offered = "unix:///var/run/docker.sock"
        self.url = self.offered or f"unix://{self.socket}"

    @property
    def log(self) -> Path:
        """What the daemon printed."""
        return self.root / "dockerd.log"

    @property
    def gateway(self) -> str:
        """Address of this machine as containers on the default network see it."""
        with contextlib.closing(docker.DockerClient(self.url)) as client:
            config = client.networks.get("bridge").attrs["IPAM"]["Config"][0]
        return str(config["Gateway"])

    def start(self) -> None:
        """Use the engine that is offered, or start one (about 3 s)."""
        if self.offered is not None:
            require_answer(self.url)
            return
        dockerd = base.require_program("dockerd", "docker.io")
        self.root.mkdir(parents=True, exist_ok=True)
        bridge = self._make_bridge()
        arguments = {
            "--host": self.url,
            "--data-root": self.root / "data",
            "--exec-root": self.root / "exec",
            "--pidfile": self.root / "pid",
            "--bridge": bridge,
            "--containerd-namespace": bridge,
            "--containerd-plugins-namespace": f"{bridge}-plugins",
            "--config-file": self.root / "daemon.json",
        }
        (self.root / "daemon.json").write_text("{}")
        flags = ["--iptables=false", "--ip-masq=false", "--ip-forward=false"]
        words = [str(word) for pair in arguments.items() for word in pair]
        base.spawn([dockerd, *words, *flags, "--shutdown-timeout=3"], self.log)
        base.wait_until(lambda: base.answers(self.socket), "dockerd", self.log)
        require_answer(self.url)

    def stop(self) -> None:
        """Kill the containers, end the daemon, delete its data; an offered engine is left alone."""
        if not self.root.exists():
            return
        with contextlib.suppress(DockerException):
            self._kill_containers()
        with contextlib.suppress(OSError, ValueError):
            base.end_process(int((self.root / "pid").read_text()))
        base.end_processes_naming(self.root)
        with contextlib.suppress(OSError):
            bridge = (self.root / "bridge").read_text()
            subprocess.run(["ip", "link", "delete", bridge], check=False, capture_output=True)
        base.remove_tree(self.root)

    def image(self, name: str) -> str:
        """Reference of a test image (a key of `images.RECIPES`), loaded if it is not there."""
        return images.load(self.url, name)

    def _kill_containers(self) -> None:
        if not base.answers(self.socket):
            return
        with contextlib.closing(docker.DockerClient(f"unix://{self.socket}", timeout=10)) as client:
            for container in client.containers.list(ignore_removed=True):
                container.remove(force=True)

    def _make_bridge(self) -> str:
        """Create a bridge with a subnet that no other interface uses; its name."""
        ip = base.require_program("ip", "iproute2")
        interfaces = json.loads(base.run([ip, "-json", "-4", "address"]))
        taken = [
            ipaddress.ip_interface(f"{address['local']}/{address['prefixlen']}").network
            for interface in interfaces
            for address in interface["addr_info"]
        ]
        names = {interface["ifname"] for interface in interfaces}
        for number in range(256):
            subnet = ipaddress.ip_network(f"10.213.{number}.0/24")
            name = f"tesazure{number}"
            if name in names or any(subnet.overlaps(other) for other in taken):
                continue
            with contextlib.suppress(base.StartFailed):  # another run was faster: the next one
                base.run([ip, "link", "add", name, "type", "bridge"])
                (self.root / "bridge").write_text(name)
                base.run([ip, "address", "add", f"10.213.{number}.1/24", "dev", name])
                base.run([ip, "link", "set", name, "up"])
                return name
        raise base.StartFailed("no free subnet in 10.213.0.0/16 for the test engine's bridge")


def require_answer(url: str) -> None:
    """Raises Unavailable unless a Docker engine answers at `url`."""
    try:
        with contextlib.closing(docker.DockerClient(url, timeout=20)) as client:
            client.ping()
    except DockerException as error:
        raise base.Unavailable(f"no Docker engine answers at {url}: {error}") from error

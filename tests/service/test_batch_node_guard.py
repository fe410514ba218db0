"""The start task of nodes: its shell lines, run for real between network namespaces."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tesazure.backends.azure_batch.pool_form import GUARD
from tests.conftest import refuse

METADATA, WIRE, ELSEWHERE = "169.254.169.254", "168.63.129.16", "203.0.113.7"
DEADLINE_S = 30

SERVER = """
import selectors, socket
kinds = [(socket.SOCK_STREAM, 80), (socket.SOCK_STREAM, 53), (socket.SOCK_STREAM, 32526),
         (socket.SOCK_DGRAM, 53), (socket.SOCK_DGRAM, 67)]
selector = selectors.DefaultSelector()
for kind, port in kinds:
    server = socket.socket(socket.AF_INET, kind)
    server.bind(("0.0.0.0", port))
    if kind == socket.SOCK_STREAM:
        server.listen()
    selector.register(server, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in selector.select():
        if key.fileobj.type == socket.SOCK_STREAM:
            key.fileobj.accept()[0].close()
        else:
            key.fileobj.sendto(*key.fileobj.recvfrom(100))
"""
"""In place of the world: answers on these ports of every address."""

PROBE = """
import socket, sys
from concurrent.futures import ThreadPoolExecutor
def answers(place):
    kind, address, port = place.split(":")
    with socket.socket(type=socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as probe:
        probe.settimeout(2)
        try:
            if kind == "tcp":
                probe.connect((address, int(port)))
            else:
                probe.sendto(b"x", (address, int(port)))
                probe.recvfrom(1)
        except OSError:
            return False
    return True
places = sys.argv[1:]
with ThreadPoolExecutor(len(places)) as threads:
    found = list(threads.map(answers, places))
print(*(place for place, answer in zip(places, found) if answer))
"""

OPEN = {
    f"tcp:{ELSEWHERE}:80",
    f"udp:{ELSEWHERE}:67",
    f"tcp:{WIRE}:53",
    f"udp:{WIRE}:53",
}
"""What containers need, such as the names that Azure's networks resolve at this address."""
CLOSED = {f"tcp:{METADATA}:80", f"tcp:{WIRE}:80", f"tcp:{WIRE}:32526", f"udp:{WIRE}:67"}


class Namespace:
    """A network namespace, held by a process that ends with its standard input."""

    def __init__(self, stack: ExitStack, *command: str) -> None:
        self.process = stack.enter_context(
            subprocess.Popen(
                ["unshare", "--net", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        )
        stack.callback(self.process.kill)
        assert self.process.stdout is not None
        if self.process.stdout.readline() != b"ready\n":
            refuse("no network namespace can be made here")

    def run(self, *command: str) -> str:
        """What the command prints, which must succeed."""
        inside = ["nsenter", f"--net=/proc/{self.process.pid}/ns/net", *command]
        return subprocess.run(
            inside, check=True, stdout=subprocess.PIPE, text=True, timeout=DEADLINE_S
        ).stdout


class Node:
    """A node between a container and the world."""

    def __init__(self, stack: ExitStack) -> None:
        hold = ("sh", "-c", "echo ready; exec cat")
        self._container, self.host = Namespace(stack, *hold), Namespace(stack, *hold)
        world = Namespace(stack, sys.executable, "-c", SERVER)
        for name, peer, net in (("c0", self._container, "172.17.0"), ("w0", world, "10.0.0")):
            self.host.run(
                *("ip", "link", "add", name, "type", "veth"),
                *("peer", "name", "eth0", "netns", str(peer.process.pid)),
            )
            self.host.run("ip", "address", "add", f"{net}.1/24", "dev", name)
            self.host.run("ip", "link", "set", name, "up")
            peer.run("ip", "address", "add", f"{net}.2/24", "dev", "eth0")
            peer.run("ip", "link", "set", "eth0", "up")
            peer.run("ip", "route", "add", "default", "via", f"{net}.1")
        for address in (METADATA, WIRE, ELSEWHERE):
            world.run("ip", "address", "add", f"{address}/32", "dev", "eth0")
            self.host.run("ip", "route", "add", f"{address}/32", "dev", "w0")
        self.host.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")

    def reached(self) -> set[str]:
        """What a container can talk to."""
        return set(self._container.run(sys.executable, "-c", PROBE, *OPEN, *CLOSED).split())

    def reached_by_itself(self) -> set[str]:
        """What the node can."""
        return set(self.host.run(sys.executable, "-c", PROBE, *OPEN, *CLOSED).split())

    def rules(self) -> list[str]:
        """Of forwarding."""
        return self.host.run("iptables", "-t", "mangle", "-S", "FORWARD").splitlines()


@pytest.fixture
def node() -> Iterator[Node]:
    if os.geteuid() != 0:
        refuse("network namespaces need root")
    for program in ("unshare", "nsenter", "ip", "iptables"):
        if shutil.which(program) is None:
            refuse(f"there is no program {program}")
    with ExitStack() as stack:
        yield Node(stack)


def test_containers_reach_names_and_the_world_but_no_metadata(node: Node) -> None:
    assert node.reached() == OPEN | CLOSED
    node.host.run(*shlex.split(GUARD))
    assert node.reached() == OPEN
    assert node.reached_by_itself() == OPEN | CLOSED
    rules = node.rules()
    assert len(rules) == 4  # with the policy
    node.host.run(*shlex.split(GUARD))
    assert node.rules() == rules


def test_the_guard_holds_before_whatever_docker_lets_pass(node: Node) -> None:
    node.host.run(*shlex.split(GUARD))
    for rule in ("-N DOCKER-USER", "-I FORWARD -j DOCKER-USER", "-I FORWARD -i c0 -j ACCEPT"):
        node.host.run("iptables", *rule.split())
    assert node.reached() == OPEN


def test_a_guard_that_cannot_be_set_fails() -> None:
    """So does the start task then, and the node takes no tasks."""
    if os.geteuid() != 0:
        refuse("needs another user than this one")
    nobody = 65534
    done = subprocess.run(
        shlex.split(GUARD),
        check=False,
        user=nobody,
        group=nobody,
        capture_output=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode != 0
    assert done.stderr

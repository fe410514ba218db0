"""An attempt's directory and the engine to run executors in it, for the tests of real engines."""

from __future__ import annotations

import contextlib
import io
import json
import secrets
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import docker
import msgspec

from tesazure.plan import Step
from tesazure.runner.engines.base import Container, Exit
from tesazure.runner.engines.docker import DockerEngine
from tesazure.runner.tree import remove_tree
from tests.services import images

DEADLINE_S = 40.0


@dataclass
class Attempt:
    """One attempt on one engine; its containers carry its own key."""

    path: Path
    url: str
    image: str
    engine: DockerEngine
    key: str = field(default_factory=lambda: f"test/{secrets.token_hex(8)}")
    said: list[tuple[str, str]] = field(default_factory=list)
    index: int = 0

    def __post_init__(self) -> None:
        self.root = self.path / "root"
        self.stdout, self.stderr = self.path / "stdout", self.path / "stderr"
        self.root.mkdir(mode=0o755)
        self.directory("/tmp").chmod(0o1777)
        self.directory("/tes-wd")

    def directory(self, container_path: str) -> Path:
        """A directory of the task's tree, open to all as the runner makes them."""
        made = self.root
        for part in container_path.strip("/").split("/"):
            made /= part
            if not made.exists():
                made.mkdir()
                made.chmod(0o777)
        return made

    def say(self, level: str, message: str) -> None:
        self.said.append((level, message))

    def container(self, *command: str, **changes: object) -> Container:
        """The next executor. `changes` are fields of Container, or `image`, `workdir`, `env` of its
        Step and `streams`, that one's `stdout` and `stderr`."""
        step = Step(self.image, list(command))
        of_step = {n: changes.pop(n) for n in ("image", "workdir", "env") if n in changes}
        of_step |= changes.pop("streams", {})  # type: ignore[call-overload, operator]
        container = Container(
            key=self.key,
            index=self.index,
            step=msgspec.structs.replace(step, **of_step),
            root=self.root,
            shared=("/tes-wd", "/tmp"),
            mounts=(),
            stdin=None,
            stdout=self.stdout,
            stderr=self.stderr,
            cpu_cores=None,
            ram_bytes=None,
            network=False,
        )
        self.index += 1
        return msgspec.structs.replace(container, **changes)

    def run(
        self, *command: str, started: Callable[[], None] = lambda: None, **changes: object
    ) -> Exit:
        """Run one executor; its streams are in `out` and `err`."""
        self.stdout.write_bytes(b"")
        self.stderr.write_bytes(b"")
        return self.engine.run(self.container(*command, **changes), started, self.say)

    def sh(self, script: str, **changes: object) -> str:
        """Standard output of a script that is to succeed."""
        exit_ = self.run("sh", "-c", script, **changes)
        assert exit_ == Exit(0), (exit_, self.err)
        return self.out

    @property
    def out(self) -> str:
        return self.stdout.read_text()

    @property
    def err(self) -> str:
        return self.stderr.read_text()

    def left(self) -> list[str]:
        """Names of the containers that carry the attempt's key, in any state."""
        with contextlib.closing(docker.APIClient(self.url)) as client:
            wanted = {"label": [f"tesazure.attempt={self.key}"]}
            return [c["Names"][0] for c in client.containers(all=True, filters=wanted)]

    def mounted(self) -> set[str]:
        """Names of the volumes that the attempt's containers have now."""
        with contextlib.closing(docker.APIClient(self.url)) as client:
            wanted = {"label": [f"tesazure.attempt={self.key}"]}
            mounts = [m for c in client.containers(all=True, filters=wanted) for m in c["Mounts"]]
            return {mount["Name"] for mount in mounts if mount["Type"] == "volume"}

    def volumes(self) -> set[str]:
        """Names of all volumes of the engine, also those of other tests."""
        with contextlib.closing(docker.APIClient(self.url)) as client:
            return {volume["Name"] for volume in client.volumes()["Volumes"] or ()}


def attempt_on(engine: DockerEngine, image: str, path: Path) -> Iterator[Attempt]:
    """For a fixture: an attempt, swept and checked to have left nothing."""
    made = Attempt(path, engine.host, image, engine)
    yield made
    made.engine.sweep(made.key, made.root)
    assert made.left() == []
    remove_tree(made.root)


def wait_for(condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    """Returns once the condition holds; fails after the deadline."""
    until = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


@contextlib.contextmanager
def in_background(call: Callable[[], object]) -> Iterator[list[object]]:
    """Makes the call in a thread; the list gets its result or exception. Waits for it."""
    results: list[object] = []

    def target() -> None:
        try:
            results.append(call())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    yield results
    thread.join(DEADLINE_S * 2)
    assert not thread.is_alive()


@contextlib.contextmanager
def image_with(url: str, files: dict[str, str], changes: tuple[str, ...] = ()) -> Iterator[str]:
    """An image of busybox with more files (path -> content; a path that ends in / is a directory)
    and Dockerfile instructions; removed afterwards."""
    base = images.root_filesystem(images.RECIPES["busybox"]).read_bytes()
    packed = io.BytesIO(base)
    with tarfile.open(fileobj=packed, mode="a") as tar:
        for path, content in files.items():
            member = tarfile.TarInfo(path.strip("/"))
            member.mode = 0o755
            if path.endswith("/"):
                member.type = tarfile.DIRTYPE
            elif content.startswith("-> "):
                member.type, member.linkname = tarfile.SYMTYPE, content.removeprefix("-> ")
            else:
                member.size = len(content.encode())
            tar.addfile(member, io.BytesIO(content.encode()) if member.isfile() else None)
    repository, tag = f"tesazure-test/{secrets.token_hex(6)}", "1"
    with contextlib.closing(docker.APIClient(url, timeout=120)) as client:
        answer = client.import_image_from_data(
            packed.getvalue(), repository, tag, changes=list(changes)
        )
        client.tag(json.loads(answer.splitlines()[-1])["status"], repository, tag)
        try:
            yield f"{repository}:{tag}"
        finally:
            client.remove_image(f"{repository}:{tag}", force=True)

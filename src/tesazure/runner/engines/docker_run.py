"""One container of Docker or Podman, from its creation to its removal."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import datetime
from typing import Any, Self

import docker
from docker.errors import APIError, NotFound

from tesazure.errors import EngineUnavailable
from tesazure.plan import contains
from tesazure.runner.engines.base import Container, Exit, Mount, Say
from tesazure.runner.engines.docker_client import (
    LOST,
    attach,
    create,
    remove,
    speaking,
    words,
)
from tesazure.runner.engines.docker_copy import Merged, has_files
from tesazure.runner.engines.docker_create import (
    container_name,
    create_body,
    exec_failure,
    labels,
    start_failure,
)
from tesazure.runner.engines.docker_paths import Layout, lay_out
from tesazure.runner.engines.docker_streams import STDERR, STDOUT, Demultiplexer, Feed, serve
from tesazure.runner.engines.oom import OomWatch
from tesazure.runner.engines.ownership import take_over
from tesazure.runner.tree import make_directories

KILLED = 137
"""128 + SIGKILL."""

TERMINATED = 143
"""128 + SIGTERM."""

AWAY_S = 60.0
"""How long an engine that went away is waited for."""

_ATTACH_AGAIN_S = 2.0
_ENDED = ("exited", "dead")
_ALMOST = "stopped"
"""Podman's: the exit code is known, but the file system cannot be read until it has cleaned up."""


class Run:
    """One container. `to_the_end` does it all, in one thread; `kill` may come from another one or
    from a signal handler. To be used as a context manager, once."""

    def __init__(
        self, client: docker.APIClient, engine: str, container: Container, say: Say
    ) -> None:
        self._client = client
        self._engine = engine
        self._container = container
        self._say = say
        self._id = ""
        self._begun = time.time()
        self._killed = False
        self._lost = False
        self._over = False
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._mounts: list[Mount] = []
        self._merged: list[Merged] = []
        self._output = Demultiplexer({})
        self._oom: OomWatch | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._woken.close()
        self._waker.close()

    def kill(self) -> None:
        """End it at once. A socket, not a lock, so that a signal handler cannot wait for itself."""
        self._killed = True
        with suppress(OSError):
            self._waker.send(b"!")

    def to_the_end(self, started: Callable[[], None]) -> Exit:
        """See Engine.run."""
        container = self._container
        with speaking(self._engine, f"running executor {container.index}"):
            with ExitStack() as stack:
                exit_ = self._created_to_ended(stack, started)
            take_over(self._client, self._engine, container.root, container.key)
            return exit_

    def _created_to_ended(self, stack: ExitStack, started: Callable[[], None]) -> Exit:
        """The container is removed when the stack unwinds."""
        stdin = self._open_streams(stack)
        if not self._container.step.command[0]:  # to the engines that is no command at all
            started()
            return Exit(127, detail="the command's first word is empty")
        layout = self._lay_out()
        self._mounts = self._make_mounts(layout)
        try:
            self._create(stack, volumes=not layout.merged)
            self._put(layout)
            # Attached before the start, so that no byte is missed.
            connection = self._attach(stack)
            feed = self._attach_stdin(stack, stdin)
            if self._engine == "podman":  # attached, it has made the cgroup already
                self._watch_memory(stack)
            if self._killed:
                return Exit(KILLED)
            self._client.start(self._id)
        except APIError as error:
            failure = start_failure(words(error))
            if failure is None:
                raise
            started()
            return failure
        started()
        if self._engine != "podman":
            self._watch_memory(stack)
        details, streams_ended = self._follow(stack, connection, feed)
        self._take(details)
        return self._judge(details["State"], streams_ended)

    def _open_streams(self, stack: ExitStack) -> int | None:
        targets = {}
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        for number, path in ((STDOUT, self._container.stdout), (STDERR, self._container.stderr)):
            targets[number] = os.open(path, flags, 0o644)
            stack.callback(os.close, targets[number])
        self._output = Demultiplexer(targets)
        if self._container.stdin is None:
            return None
        stdin = os.open(self._container.stdin, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, stdin)
        return stdin

    def _lay_out(self) -> Layout:
        container = self._container
        image = self._client.inspect_image(container.step.image)
        volumes = (image.get("Config") or {}).get("Volumes") or {}
        with ExitStack() as stack:
            probe = ""

            def filled(directory: str) -> bool:
                nonlocal probe
                if not probe:
                    name = f"{container_name(container.key, container.index)}-probe"
                    body = {
                        "Image": container.step.image,
                        "Entrypoint": ["/never/started"],
                        "Labels": labels(container.key, "probe"),
                    }
                    probe = create(self._client, self._engine, body, name, volumes=False)
                    stack.callback(remove, self._client, probe)
                return has_files(self._client, probe, directory)

            with os.scandir(container.root) as found:
                top = [entry.name for entry in found if entry.is_dir(follow_symlinks=False)]
            return lay_out(container.shared, top, volumes, filled)

    def _make_mounts(self, layout: Layout) -> list[Mount]:
        """What to bind. Mount points that lie in bound directories are made here, lest the engine
        makes them as root."""
        root = self._container.root
        mounts = [Mount(make_directories(root, path), path) for path in layout.bound]
        for mount in self._container.mounts:
            if any(contains(directory, mount.target) for directory in layout.bound):
                parent, _, name = mount.target.rpartition("/")
                point = make_directories(root, parent) / name
                if not os.path.lexists(point):
                    point.mkdir() if mount.is_directory else point.touch()
        return [*mounts, *self._container.mounts]

    def _create(self, stack: ExitStack, *, volumes: bool) -> None:
        container = self._container
        body = create_body(container, self._mounts)
        name = container_name(container.key, container.index)
        self._id = create(self._client, self._engine, body, name, volumes=volumes)
        stack.callback(self._remove)

    def _put(self, layout: Layout) -> None:
        step, root = self._container.step, self._container.root
        streams = [path for path in (step.stdout, step.stderr) if path]
        for directory in layout.merged:
            merged = Merged(self._client, self._id, directory, root, streams)
            merged.put()
            self._merged.append(merged)

    def _attach(self, stack: ExitStack) -> socket.socket:
        connection = attach(self._client, self._id, "stdout", "stderr")
        stack.callback(connection.close)
        return connection

    def _attach_stdin(self, stack: ExitStack, stdin: int | None) -> Feed | None:
        if stdin is None:
            return None
        if self._engine == "podman":
            # It stops the container unless all who are attached take its output.
            connection = attach(self._client, self._id, "stdin", "stdout", "stderr")
        else:
            connection = attach(self._client, self._id, "stdin")
        feed = Feed(connection, stdin)
        stack.callback(feed.close)
        return feed

    def _watch_memory(self, stack: ExitStack) -> None:
        """Neither engine tells of each kill: Docker on a busy machine missed one in sixty."""
        if self._container.ram_bytes is None:
            return
        with suppress(APIError, *LOST):  # what is wrong shows soon enough
            pid = self._client.inspect_container(self._id)["State"]["Pid"]
            self._oom = OomWatch.open(pid)
            if self._oom is not None:
                stack.callback(self._oom.close)

    def _follow(
        self, stack: ExitStack, connection: socket.socket, feed: Feed | None
    ) -> tuple[dict[str, Any], float]:
        """Wait for the end, moving bytes: what the engine says then, and when the streams ended
        (seconds since the epoch). The connection may end before the command does, either because
        that has closed its streams or because the engine went away."""
        others = {self._woken.fileno(): self._wake}
        received = self._output.received
        serve(connection, self._output, feed, others)
        while True:
            streams_ended = time.time()
            details = self._wait_for_end()
            if details is not None:
                return details, streams_ended
            before = sum(received.values())
            with suppress(*LOST, APIError):
                serve(self._attach(stack), self._output, feed, others)
            # There was more to come: the first connection did not end by itself.
            self._lost |= sum(received.values()) > before

    def _wait_for_end(self) -> dict[str, Any] | None:
        """What the engine says of the container when it has ended; None if it still runs after a
        while. Waits for an engine that is away."""
        begun = time.monotonic()
        pause = 0.002
        while True:
            if self._oom is not None:
                self._oom.look()
            try:
                if self._killed:
                    self._kill()
                details: dict[str, Any] = self._client.inspect_container(self._id)
                status = details["State"]["Status"]
                if status in _ENDED or (status == _ALMOST and not self._merged):
                    self._over = True
                    return details
                if time.monotonic() - begun > _ATTACH_AGAIN_S:
                    return None
            except NotFound as error:
                raise EngineUnavailable(f"{self._engine} lost the container") from error
            except LOST:
                self._lost = True
                if time.monotonic() - begun > AWAY_S:
                    raise
            select.select([self._woken], [], [], pause)
            pause = min(2 * pause, 0.25)

    def _wake(self) -> None:
        with suppress(BlockingIOError):
            self._woken.recv(64)
        with suppress(*LOST):
            self._kill()

    def _kill(self) -> None:
        with suppress(APIError):  # it is not running any more
            self._client.kill(self._id)

    def _take(self, details: dict[str, Any]) -> None:
        if not self._merged or self._killed:
            return
        changes = [(item["Path"], item["Kind"]) for item in self._client.diff(self._id) or ()]
        bound = [mount.target for mount in self._mounts]
        volumes = [m["Destination"] for m in details["Mounts"] if m["Type"] == "volume"]
        for merged in self._merged:
            merged.take(changes, bound, volumes, self._say)

    def _judge(self, state: dict[str, Any], streams_ended: float) -> Exit:
        """The Exit, or EngineUnavailable if the command was not given its chance by the engine."""
        code: int = state["ExitCode"]
        if self._killed:
            return Exit(code)
        out_of_memory = code != 0 and (
            bool(state["OOMKilled"]) or (self._oom is not None and self._oom.killed)
        )
        if out_of_memory:
            return Exit(code, out_of_memory=True, detail=state.get("Error", ""))
        if code in (KILLED, TERMINATED) and (self._lost or self._was_stopped()):
            raise EngineUnavailable(f"{self._engine} ended the command, and not for us")
        if self._lost and _seconds(state["FinishedAt"]) > streams_ended:
            self._judge_streams(code)
        if code != 0 and not self._output.received[STDOUT]:
            head = bytes(self._output.stderr_head)
            if self._output.received[STDERR] == len(head):
                return exec_failure(code, head) or Exit(code)
        return Exit(code)

    def _was_stopped(self) -> bool:
        """Whether Docker ended the container: it was told to, or is going down itself. Podman has
        no daemon that could go down and take its containers along."""
        if self._engine != "docker":
            return False
        # As text, for a resolution that the SDK's own types do not offer.
        span: dict[str, Any] = {"since": f"{self._begun:.6f}", "until": f"{time.time():.6f}"}
        wanted = {"container": [self._id], "event": ["kill"]}
        events = self._client.events(**span, filters=wanted, decode=True)
        return any(True for _ in events)

    def _judge_streams(self, code: int) -> None:
        """The command ran on after the engine had let go of its streams. Raises EngineUnavailable
        if the task is to find them as files: half a file is no result."""
        step = self._container.step
        if code == 0 and (step.stdout or step.stderr):
            raise EngineUnavailable(
                f"{self._engine} went away while the command ran: what it wrote is not whole"
            )
        self._say(
            "warning",
            f"{self._engine} went away for a while; stdout and stderr may lack what the command"
            " wrote meanwhile",
        )

    def _remove(self) -> None:
        """Waits for an engine that is away: nothing is to be left."""
        deadline = time.monotonic() + AWAY_S
        while True:
            try:
                remove(self._client, self._id, running=not self._over)
                return
            except LOST:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)


def _seconds(timestamp: str) -> float:
    """RFC 3339, as the engine writes it, to seconds since the epoch."""
    return datetime.fromisoformat(timestamp).timestamp()

"""The local backend: attempts are processes of this machine, each below its own directory."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from tesazure.access import Access, Endpoints
from tesazure.backends import local_machine
from tesazure.backends.base import Capabilities, Capacity, Check, Gauge, LogChunk, Stream
from tesazure.backends.local_files import Attempts, Follower, clean_up, fence, is_alive, last_words
from tesazure.backends.local_room import Room
from tesazure.backends.local_spawner import Spawner
from tesazure.backends.local_streams import read_stream
from tesazure.backends.local_wakeup import LONGEST, Wakeup
from tesazure.errors import (
    BackendError,
    BackendUnavailable,
    ConfigurationError,
    EngineError,
    Unplaceable,
)
from tesazure.lifecycle import Handle, Observation, Phase
from tesazure.plan import Plan
from tesazure.report import Report
from tesazure.runner.config import AttemptDir, NodeConfig
from tesazure.runner.engines.choose import find_engine
from tesazure.runner.tree import remove_tree

log = logging.getLogger(__name__)

BEGIN_S = 30.0
"""How long a runner may take to begin, in seconds; it takes milliseconds."""
STOP_S = 10.0
"""How long a runner may take to stop after SIGTERM, in seconds, before SIGKILL."""
LEAVE_S = 2.0
"""How long a runner may take to leave after its last event, in seconds."""
TOLD_S = 2.0
"""How long to wait for a runner that has the lock to tell its process id, in seconds."""
LONG_REPORT = 256 * 1024
"""Bytes of a report from which on it is read for the first time beside the event loop."""
LOW_DISK_BYTES = 100 * 10**6
"""Free space below which the backend calls itself not ready."""

SANDBOX_WARNING = (
    "no container engine: commands run in a sandbox over this machine's own programs, and the"
    " executors' images are not used"
)

SETUID_WARNING = (
    "SHARED_GLOBAL_DIR {}: users of this machine can enter it, and a task can leave a program there"
    " that gives them the rights of the task's user, with docker root's (setuid); chmod 700 a"
    " directory above it, or put it on a file system mounted nosuid"
)


class LocalConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the local backend needs of the settings. 0 for an amount: all that the machine has."""

    data_dir: Path
    engine: Literal["auto", "docker", "podman", "sandbox"] = "auto"
    docker_host: str = ""
    podman_host: str = ""
    runtime_dir: str = ""
    """XDG_RUNTIME_DIR, where a user's podman has its socket."""
    cpu_cores: float = 0
    ram_bytes: int = 0
    disk_bytes: int = 0
    allow_dirs: tuple[Path, ...] = ()
    mount_dirs: tuple[Path, ...] = ()
    shared_global: str = ""
    """Directory that all tasks see as /tes-wd/shared-global; empty: one in the data directory."""
    allow_private: bool = True
    """Whether URLs may lead to private network addresses."""
    endpoints: Endpoints = Endpoints()
    """Where the storage systems are."""
    cache_bytes: int = 0
    """For inputs that tasks have in common; 0: each task gets its own."""
    network: bool = True
    tail_bytes: int = 65536
    environment: dict[str, str] | None = None
    """Of the runners; None: this process's own."""
    register: Path = Path(f"/var/tmp/tesazure-{os.geteuid()}")  # noqa: S108 - checked to be ours
    """Where this user's servers on this machine find each other's data directories."""


class LocalBackend:
    """Runs attempts on this machine; see `Backend` for what each method promises."""

    def __init__(self, config: LocalConfig) -> None:
        self._config = config
        self.endpoints = config.endpoints
        """Of the attempts from now on."""
        self._attempts = Attempts(config.data_dir.absolute(), config.register)
        self._spawner = Spawner(config.environment)
        self._wakeup = Wakeup()
        self._shared = Path(config.shared_global or config.data_dir / "shared-global").absolute()
        self._capabilities: Capabilities | None = None
        self._engine_host = ""
        self._followed: dict[str, Follower] = {}
        self._submitted: dict[str, float] = {}
        """When a runner was asked for, or first missed, by key, on the monotonic clock."""
        self._unseen: dict[str, str] = {}
        """Why the attempt with this key could not be looked at the last time."""
        self._room = Room(self._attempts.path)

    @property
    def capabilities(self) -> Capabilities:
        """Known once `start` has returned."""
        if self._capabilities is None:
            raise BackendUnavailable("the local backend has not been started")
        return self._capabilities

    async def start(self) -> None:
        """Find the engine, take stock of the machine, and be ready to begin attempts."""
        if self._capabilities is None:
            try:
                self._capabilities = await self._open()
            except BaseException:
                await self.stop()
                raise

    async def _open(self) -> Capabilities:
        config = self._config
        try:
            await asyncio.to_thread(self._attempts.open)
            await asyncio.to_thread(self._make_shared)
            self._wakeup.open(self._socket_path())
        except OSError as error:
            remedy = "make it writable for this server's user, or set APP_DATA_DIR"
            problem = f"{config.data_dir}: cannot be used for tasks: {error}; {remedy}"
            raise ConfigurationError([problem]) from error
        choice = await asyncio.to_thread(
            find_engine, config.engine, config.docker_host, config.podman_host, config.runtime_dir
        )
        self._engine_host = choice.host
        capacity = local_machine.capacity(
            self._attempts.path, config.cpu_cores, config.ram_bytes, config.disk_bytes
        )
        try:
            await self._spawner.start(choice.name)
        except BackendUnavailable as error:
            raise ConfigurationError([f"{error}; it printed why"]) from error
        return Capabilities(
            name="local",
            scope=local_machine.node_name(),
            capacity=capacity,
            backend_parameters=("max_runtime_s",),
            engine=choice.name,
            warnings=tuple(self._warnings(choice.name)),
        )

    def _warnings(self, engine: str) -> Iterator[str]:
        if engine == "sandbox":
            yield SANDBOX_WARNING
        if local_machine.lets_others_gain_rights(self._shared):
            yield SETUID_WARNING.format(self._shared)

    def data_dirs(self) -> tuple[str, ...]:
        """The data directories of this user's servers on this machine, closed to all tasks. Once
        `start` has returned."""
        return self._attempts.data_dirs()

    async def stop(self) -> None:
        """Let go; runners keep running, and a later server finds them."""
        await self._spawner.stop()
        self._wakeup.close()
        self._capabilities = None
        self._followed.clear()

    async def check(self) -> Sequence[Check]:
        """Engine, directory, disk."""
        return await asyncio.to_thread(self._check)

    def _check(self) -> list[Check]:
        config, path = self._config, self._attempts.path
        engine = self._capabilities.engine if self._capabilities else config.engine
        checks = []
        try:
            choice = find_engine(
                engine,  # type: ignore[arg-type]  # one of its own names
                config.docker_host,
                config.podman_host,
                config.runtime_dir,
            )
            checks.append(Check("engine", ok=True, detail=f"{choice.name}: {choice.detail}"))
        except ConfigurationError as error:
            remedy = "start the engine, or choose another one with APP_LOCAL_ENGINE"
            checks.append(
                Check("engine", ok=False, detail="; ".join(error.problems), remedy=remedy)
            )
        writable = os.access(path, os.W_OK | os.X_OK)
        detail = f"{path} is {'' if writable else 'not '}writable"
        checks.append(Check("work directory", writable, detail, "" if writable else "chown it"))
        try:
            free = shutil.disk_usage(path).free
        except OSError as error:
            checks.append(Check("disk", ok=False, detail=str(error), remedy="make the directory"))
        else:
            detail = f"{free / 10**9:.2f} GB are free in {path}"
            remedy = "make room, or lower APP_WORK_RETENTION_HOURS"
            well = free >= LOW_DISK_BYTES
            checks.append(Check("disk", well, detail, "" if well else remedy))
        return checks

    def gauges(self) -> Sequence[Gauge]:
        """What tasks may use together."""
        known = self._capabilities
        return local_machine.gauges(known.capacity if known else None)

    def admit(self, plan: Plan) -> None:
        """Raises Unplaceable for a plan that needs more than the whole machine."""
        capacity, limits = self.capabilities.capacity, plan.limits
        if capacity is None:
            return
        for need, there, unit in (
            (limits.reserved_cpu_cores, capacity.cpu_cores, "cores"),
            (limits.reserved_ram_bytes, capacity.ram_bytes, "bytes of memory"),
            (limits.reserved_disk_bytes, capacity.disk_bytes, "bytes of disk"),
        ):
            if need > there + 1e-9:
                raise Unplaceable(f"needs {need:g} {unit}, this machine has {there:g}")

    async def room(self, closely: bool = False) -> Capacity | None:
        """The machine, with no more disk than is free at this moment."""
        capacity = self.capabilities.capacity
        if capacity is None:
            return None
        try:
            if closely:
                live = [follower.attempt for follower in self._followed.values()]
                disk = await asyncio.to_thread(self._room.closely, live)
            else:
                disk = self._room.free()
        except OSError as error:
            raise BackendUnavailable(f"{self._attempts.path}: {error.strerror}") from error
        return msgspec.structs.replace(capacity, disk_bytes=min(capacity.disk_bytes, disk))

    def _make_shared(self) -> None:
        """What all tasks share, whatever user their images name."""
        if not self._shared.exists():
            self._shared.mkdir(parents=True)
            self._shared.chmod(0o1777)

    # -- attempts -------------------------------------------------------------------------------

    async def submit(self, plan: Plan, key: str, access: Access) -> Handle:
        """Make the attempt's directory, unless there is one, and have a runner begin in it. Two
        runners are no harm: one directory is begun once."""
        try:
            attempt = await asyncio.to_thread(self._begin, plan, key)
        except OSError as error:
            raise BackendUnavailable(f"the attempt's directory cannot be made: {error}") from error
        if not attempt.report.exists():
            self._submitted[key] = time.monotonic()
            await self._spawner.spawn(attempt.path, access)
        return self._handle(attempt)

    def _begin(self, plan: Plan, key: str) -> AttemptDir:
        node = NodeConfig(
            key=key,
            engine=self.capabilities.engine,  # type: ignore[arg-type]  # one of its own names
            engine_host=self._engine_host,
            allow_dirs=tuple(str(path) for path in self._config.allow_dirs),
            mount_dirs=tuple(map(str, self._config.mount_dirs)),
            shared_global=str(self._shared),
            hidden=self.data_dirs(),
            allow_private=self._config.allow_private,
            endpoints=self.endpoints,
            cache_dir=str(self._config.data_dir.absolute() / "input-cache"),
            cache_bytes=self._config.cache_bytes,
            network=self._config.network,
            tail_bytes=self._config.tail_bytes,
            notify=self._wakeup.address,
        )
        return self._attempts.begin(plan, node)

    async def find(self, key: str) -> Handle | None:
        """The handle of what there is; if nothing is, of a place where nothing can begin."""
        try:
            return self._handle(await asyncio.to_thread(self._attempts.claim, key))
        except OSError as error:
            raise BackendUnavailable(f"the attempt {key} cannot be looked for: {error}") from error

    def _handle(self, attempt: AttemptDir) -> Handle:
        return {"dir": str(attempt.path), "node": self.capabilities.scope}

    async def observe(self, handles: Mapping[str, Handle]) -> Mapping[str, Observation]:
        """Look at locks and reports: some ten microseconds for each attempt."""
        seen: dict[str, Observation] = {}
        for key, handle in handles.items():
            try:
                attempt = self._attempt(key, handle)
                await self._adopt(key, attempt)
                seen[key] = self._look(key, attempt)
            except (BackendError, OSError) as error:
                if self._unseen.get(key) != str(error):
                    self._unseen[key] = str(error)
                    log.warning("cannot be looked at: %s", error, extra={"attempt": key})
            else:
                if self._unseen.pop(key, None):
                    log.info("can be looked at again", extra={"attempt": key})
        return seen

    async def _adopt(self, key: str, attempt: AttemptDir) -> None:
        """Read what a long report holds so far without stopping the event loop."""
        if key in self._followed or not _is_long(attempt.report):
            return
        # Not shared before it has been read: others may look at the same attempt meanwhile.
        follower = Follower(attempt)
        await asyncio.to_thread(follower.read)
        self._followed.setdefault(key, follower)

    def _attempt(self, key: str, handle: Handle) -> AttemptDir:
        follower = self._followed.get(key)
        if follower is not None and str(follower.attempt.path) == handle.get("dir"):
            return follower.attempt
        return _attempt(handle)

    def _look(self, key: str, attempt: AttemptDir) -> Observation:
        if not attempt.report.exists():
            return self._look_unbegun(key, attempt)
        self._submitted.pop(key, None)
        # Life before report: a runner that is gone by now has written all it ever will.
        alive = is_alive(attempt)
        follower = self._follow(key, attempt)
        report = follower.report
        if alive:
            if follower.pid and not self._wakeup.is_watched(key):
                self._wakeup.watch(key, follower.pid)
                if not is_alive(attempt):  # what is watched may be another process by now
                    self._wakeup.unwatch(key)
                    self._wakeup.knock()
            return Observation(Phase.RUNNING if report.started else Phase.PENDING, report)
        self._wakeup.unwatch(key)
        reason = "" if report.ended else follower.spoilt or last_words(attempt)
        if not report.started:
            reason = reason or "it never began"
        return Observation(Phase.EXITED, report, reason)

    def _look_unbegun(self, key: str, attempt: AttemptDir) -> Observation:
        if not attempt.path.is_dir():
            self._forget(key)
            return Observation(Phase.MISSING, Report(), f"{attempt.path} is gone")
        since = self._submitted.setdefault(key, time.monotonic())
        if time.monotonic() < since + BEGIN_S:
            return Observation(Phase.PENDING, Report())
        reason = last_words(attempt) or f"its runner did not begin within {BEGIN_S:g} s"
        return Observation(Phase.EXITED, Report(), reason)

    def _follow(self, key: str, attempt: AttemptDir) -> Follower:
        """The report, up to date."""
        follower = self._followed.get(key)
        if follower is None:
            follower = self._followed[key] = Follower(attempt)
        try:
            follower.read()
        except OSError as error:
            raise BackendUnavailable(f"{attempt.report} cannot be read: {error}") from error
        return follower

    async def changed(self, timeout_s: float) -> bool:
        """Runners knock after each event, and the kernel tells of their end."""
        return await self._wakeup.wait(timeout_s)

    async def cancel(self, handle: Handle) -> None:
        """SIGTERM for the runner; one that has not begun never does."""
        key, attempt = _key(handle), _attempt(handle)
        if not attempt.path.is_dir():
            return
        fence(attempt)
        await self._adopt(key, attempt)
        if await self._identify(key, attempt):
            self._wakeup.send(key, signal.SIGTERM)
        self._wakeup.knock()

    async def _identify(self, key: str, attempt: AttemptDir) -> bool:
        """Know the process of a runner that lives; False if none does."""
        deadline = time.monotonic() + TOLD_S
        while self._look(key, attempt).phase in (Phase.PENDING, Phase.RUNNING):
            if self._wakeup.is_watched(key):
                return True
            if time.monotonic() > deadline:
                raise BackendUnavailable(f"the runner of {key} does not tell its process id")
            await asyncio.sleep(0.01)
        return False

    async def release(self, handle: Handle) -> None:
        """End the runner and what the engine has of it, and delete what may hold secrets."""
        key, attempt = _key(handle), _attempt(handle)
        if not attempt.path.is_dir():
            self._forget(key)
            return
        fence(attempt)
        await self._adopt(key, attempt)
        await self._end(key, attempt)
        try:
            await asyncio.to_thread(clean_up, attempt, self._follow(key, attempt).report)
        except (EngineError, OSError) as error:
            raise BackendUnavailable(f"{key} cannot be cleaned up: {error}") from error
        self._forget(key)

    async def _end(self, key: str, attempt: AttemptDir) -> None:
        """See the runner off; returns when it is gone."""
        if not await self._identify(key, attempt):
            return
        if self._followed[key].report.ended and await self._gone(key, attempt, LEAVE_S):
            return
        for sign, patience in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
            self._wakeup.send(key, sign)
            if await self._gone(key, attempt, patience):
                return
        raise BackendUnavailable(f"the runner of {key} does not end")

    async def _gone(self, key: str, attempt: AttemptDir, patience_s: float) -> bool:
        """Whether the runner is gone within that many seconds."""
        deadline, pause = time.monotonic() + patience_s, 0.001
        while is_alive(attempt):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.05)
        self._wakeup.unwatch(key)
        return True

    def _forget(self, key: str) -> None:
        self._wakeup.unwatch(key)
        self._followed.pop(key, None)
        self._submitted.pop(key, None)
        self._unseen.pop(key, None)

    # -- files ----------------------------------------------------------------------------------

    async def discard(self, handle: Handle) -> None:
        """Delete the attempt's directory."""
        attempt = _attempt(handle)
        if attempt.report.exists() and is_alive(attempt):
            raise BackendUnavailable(f"{attempt.path} is in use: release it first")
        try:
            await asyncio.to_thread(remove_tree, attempt.path)
        except OSError as error:
            raise BackendUnavailable(f"{attempt.path} cannot be deleted: {error}") from error
        self._forget(_key(handle))

    async def held(self, begun_before: float) -> Mapping[str, Handle]:
        """The attempts below this server's data directory."""
        found = await asyncio.to_thread(self._attempts.begun_before, begun_before)
        return {key: self._handle(attempt) for key, attempt in found.items()}

    async def read_stream(
        self, handle: Handle, executor: int, stream: Stream, offset: int, limit: int
    ) -> LogChunk:
        """Read the file in which the runner keeps the stream."""
        return await asyncio.to_thread(
            read_stream, _attempt(handle), executor, stream, offset, limit
        )

    def _socket_path(self) -> Path:
        """Where runners knock: in the data directory unless the path would be too long."""
        path = self._attempts.path.parent / "runners.sock"
        if len(os.fsencode(path)) <= LONGEST:
            return path
        name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        return self._config.register / f"{name}.sock"


def _key(handle: Handle) -> str:
    return _attempt(handle).path.name


def _attempt(handle: Handle) -> AttemptDir:
    named = handle.get("dir")
    path = Path(named) if isinstance(named, str) else Path()
    if not path.is_absolute() or path.parent.name != "attempts":
        raise BackendUnavailable(f"{named} is no attempt's directory")
    return AttemptDir(path)


def _is_long(report: Path) -> bool:
    try:
        return report.stat().st_size > LONG_REPORT
    except OSError:
        return False  # whoever reads it is told why it cannot be read

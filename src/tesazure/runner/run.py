"""The pipeline of one attempt, from its Plan to the end of its Report.

Stage in, run the executors in order, stage out. The semantics are those of GA4GH TES 1.1.0,
tesExecutor and tesState; docs/design.md says what holds where the standard is silent.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from tesazure.access import Access, RegistryLogin, is_of_registry
from tesazure.errors import EngineError, StorageError, StorageUnavailable, TesazureError
from tesazure.model import FileType, State
from tesazure.money import estimate
from tesazure.plan import GB, SHARED_GLOBAL, Plan, Step, contains
from tesazure.report import (
    Ended,
    ExecutorEnded,
    ExecutorStarted,
    Noted,
    Passed,
    Started,
    Typed,
    Uploaded,
)
from tesazure.runner import stage
from tesazure.runner.config import AttemptDir, NodeConfig
from tesazure.runner.engines.base import Container, Engine, Exit, Login, Mount
from tesazure.runner.engines.choose import make_engine
from tesazure.runner.interrupt import Interrupted, Interruption
from tesazure.runner.journal import Journal, now
from tesazure.runner.streams import StdinError, Stream, open_streams, opened_stdin
from tesazure.runner.tree import Tree, prepare
from tesazure.secrecy import Censor, censor_of
from tesazure.storage.local import FULL
from tesazure.storage.mounted import MountDirs
from tesazure.storage.registry import Storages
from tesazure.storage.shared import SharedStorage
from tesazure.trace import TAG, VARIABLE, executor_span, parse

Begun = Literal["running", "ran"]

# Made once, so that runners forked from a warm process have them.
_plans = msgspec.json.Decoder(Plan)
_nodes = msgspec.json.Decoder(NodeConfig)

_NONE = Access()

_CAUSES = {
    "stage_in_s": "stage_in",
    "pull_s": "image",
    "run_s": "engine",
    "stage_out_s": "stage_out",
}
"""Stage -> what its failure is sorted under (`report.CAUSES`); an executor's own is not the
engine's."""
_MOVED = {"stage_in_s": "bytes_downloaded", "pull_s": "", "stage_out_s": "bytes_uploaded"}
"""Stages that a trace shows, and where it is kept how much they moved; executors have their own."""

OUT_OF_MEMORY = 137
"""128 + SIGKILL: the exit code of a command that exceeded its memory."""


def run_attempt(directory: AttemptDir, access: Access = _NONE) -> None:
    """Run the attempt to its end, unless another runner has begun it: then do nothing."""
    attempt = begin(directory)
    if isinstance(attempt, Attempt):
        attempt.run(access)


def begin(directory: AttemptDir) -> Attempt | Begun:
    """Take the attempt: lock it and begin its report. At most one caller ever gets an Attempt.

    The others learn whether its runner lives (`running`) or has come to an end (`ran`).
    Raises OSError when the directory cannot be written.
    """
    lock = os.open(directory.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return Attempt(directory, Journal(directory.report), lock)
    except BlockingIOError:
        os.close(lock)
        return "running"
    except FileExistsError:
        os.close(lock)
        return "ran"


class Attempt:
    """One attempt that this process has taken. Must live in the process's main thread."""

    def __init__(self, directory: AttemptDir, journal: Journal, lock: int) -> None:
        self._directory = directory
        self._journal = journal
        self._lock = lock
        self._tree = Tree(directory.root)
        self._access = _NONE
        self._censor = Censor()
        self._calls = stage.Calls(self._say, self._typed, self._uploaded)
        self._begun = time.monotonic()
        self._spent: dict[str, float] = {}
        self._moved: dict[str, int] = {}
        self._cost_per_hour_usd: float | None = None
        self._limit_s = 0.0
        self._is_traced = False
        self._failing = "node"
        """What it is if it fails now: one of `report.CAUSES`."""
        self._interruption = Interruption(self._leave)
        journal.write(Started(time=now(), pid=os.getpid(), host=os.uname().nodename))

    def run(self, access: Access) -> None:
        """Everything, to the last event. Raises OSError only when that cannot be written."""
        self._access, self._censor = access, censor_of(access)
        ended = self._outcome()
        if ended.reason:
            level = "info" if ended.state is State.CANCELED else "error"
            self._journal.say(level, ended.reason)
        self._journal.write(Noted(time=now(), metadata=self._bill()))
        self._journal.end(ended)
        self._interruption.finish()
        os.close(self._lock)

    def _bill(self) -> dict[str, str]:
        """For the metadata: seconds of each stage, bytes moved, and what the time may have cost."""
        bill = {name: f"{seconds:.3f}" for name, seconds in self._spent.items()}
        bill |= {name: str(size) for name, size in self._moved.items()}
        if self._cost_per_hour_usd is not None:
            took = time.monotonic() - self._begun
            bill["estimated_cost_usd"] = estimate(took, self._cost_per_hour_usd)
        return bill

    def _outcome(self) -> Ended:
        """How the pipeline ended, whatever happened in it."""
        try:
            try:
                return self._pipeline()
            finally:
                self._interruption.disarm()
        except Interrupted:
            return self._interrupted()
        except Exception as error:
            self._log()
            if self._interruption.cause is not None:
                return self._interrupted()  # what failed did so because it was interrupted
            retryable = isinstance(error, TesazureError) and error.retryable
            reason = self._censor(self._explain(error))
            return _system_error(reason, self._failing, retryable=retryable)

    def _pipeline(self) -> Ended:
        plan = _plans.decode(self._directory.plan.read_bytes())
        node = _nodes.decode(self._directory.node.read_bytes())
        self._limit_s = plan.max_runtime_s
        self._cost_per_hour_usd = node.cost_per_hour_usd
        self._journal.notify(node.notify)
        if plan.trace:
            self._is_traced = True
            self._journal.write(Noted(time=now(), metadata={TAG: plan.trace}))
        if node.facts:
            self._journal.write(Noted(time=now(), metadata=node.facts))
        for note in (*plan.notes, *self._access.notes):
            self._journal.say("warning", note)
        engine = make_engine(node.engine, node.engine_host, node.hidden)
        if node.registry_identity is not None and node.network and engine.name == "sandbox":
            raise EngineError(
                "the sandbox engine runs no executors on a node with an identity: they would be in"
                " the runner's network, where its tokens can be had; use Docker, or no network"
            )
        self._journal.write(Noted(time=now(), metadata={"engine": engine.name}))
        self._failing = "stage_in"
        plan, mounted = self._mounted(plan, node)
        self._failing = "node"
        self._tree = Tree(self._directory.root, (*_mounts(node), *mounted))
        storages = Storages(
            node.allow_dirs,
            node.hidden,
            allow_private=node.allow_private,
            endpoints=node.endpoints,
            access=self._access,
            say=lambda text: self._say("warning", text),
        )
        for mount in (m for m in self._tree.mounts if m.target == SHARED_GLOBAL):
            storages.serve_shared(SharedStorage(mount.source, self._tree.real))

        prepare(self._tree, plan)
        self._interruption.limit(plan.max_runtime_s)
        self._stage_in(plan, node, storages)
        try:
            failure = self._run_steps(plan, node, engine)
        except Interrupted:
            self._rescue_streams(plan, storages)
            raise
        self._interruption.lift()
        cause = self._failing
        self._stage_out(plan, storages, failure)
        if failure:
            return Ended(time=now(), state=State.EXECUTOR_ERROR, reason=failure, cause=cause)
        return Ended(time=now(), state=State.COMPLETE)

    def _mounted(self, plan: Plan, node: NodeConfig) -> tuple[Plan, list[Mount]]:
        """The directories that are mounted for the task, and the Plan without them."""
        directories = {
            download.index: download
            for download in plan.downloads
            if download.type is FileType.DIRECTORY and download.content is None
        }
        found, refused = MountDirs(node.mount_dirs, node.hidden).find(
            (index, d.url or "", d.path) for index, d in directories.items()
        )
        for index, error in sorted(refused.items()):
            raise type(error)(f"inputs[{index}]: {error}") from error
        mounts = [Mount(source, directories[index].path) for index, source in found.items()]
        for index, mount in zip(found, mounts, strict=True):
            text = f"inputs[{index}]: the task works in {mount.source} itself"
            self._journal.say("info", text)
        targets = {mount.target for mount in mounts}
        without = msgspec.structs.replace(
            plan,
            downloads=[d for d in plan.downloads if d.index not in found],
            shared=[path for path in plan.shared if path not in targets],
        )
        return without, mounts

    def _stage_in(self, plan: Plan, node: NodeConfig, storages: Storages) -> None:
        cache = None
        if node.cache_bytes:
            from tesazure.runner.input_cache import InputCache

            cache = InputCache(Path(node.cache_dir), node.cache_bytes)
        with self._timed("stage_in_s"):
            size = stage.stage_in(plan, self._access, self._tree, storages, self._calls, cache)
            self._moved["bytes_downloaded"] = size

    def _run_steps(self, plan: Plan, node: NodeConfig, engine: Engine) -> str:
        """Run the executors in order; why they failed, or nothing."""
        prepared: set[str] = set()
        login = self._login(node)
        for index, step in enumerate(plan.steps):
            if step.image not in prepared:
                with self._timed("pull_s"):
                    engine.prepare(step.image, self._say, login)
                prepared.add(step.image)
            with self._timed("run_s"):
                failure = self._run_step(index, plan, node, engine)
            if failure and not step.ignore_error:
                return failure
            if failure:
                self._journal.say("warning", f"{failure}; ignored, as ignore_error says")
        return ""

    def _login(self, node: NodeConfig) -> Login:
        """By the password of the private registry, or by the node's identity."""
        own, identity = self._access.registry, node.registry_identity

        def login(image: str) -> RegistryLogin | None:
            if own is not None:
                return own if own.serves(image) else None
            if identity is None or not is_of_registry(image, identity.host):
                return None
            from tesazure.runner.registry_login import login_by

            return login_by(identity, node.endpoints.ca_bundle)

        return login

    def _run_step(self, index: int, plan: Plan, node: NodeConfig, engine: Engine) -> str:
        step = _placed_in_trace(plan, node.key, index)
        with ExitStack() as stack:
            stdin, refused = None, None
            if step.stdin is not None:
                try:
                    stdin = stack.enter_context(opened_stdin(self._tree, step.stdin))
                except StdinError as error:
                    refused = Exit(error.exit_code, detail=str(error))
            streams = open_streams(self._directory, self._tree, index, step)
            stdout, stderr = stack.enter_context(streams)
            container = Container(
                key=node.key,
                index=index,
                step=step,
                root=self._tree.root,
                shared=tuple(plan.shared),
                mounts=self._tree.mounts,
                stdin=stdin,
                stdout=stdout.path,
                stderr=stderr.path,
                cpu_cores=plan.limits.cpu_cores,
                ram_bytes=plan.limits.ram_bytes,
                network=node.network,
            )
            if refused is None:
                exit_ = self._run_container(container, engine)
            else:
                exit_ = self._refuse(container, refused)
            failure = _failure(index, exit_, plan)
            over = index == len(plan.steps) - 1 or (bool(failure) and not step.ignore_error)
            last = over and self._interruption.cause is None
            if failure:
                self._failing = "out_of_memory" if exit_.out_of_memory else "executor"
            self._end_executor(index, exit_, stdout, stderr, tail_bytes=node.tail_bytes, last=last)
        self._interruption.check()
        return failure

    def _refuse(self, container: Container, exit_: Exit) -> Exit:
        """An executor that ends before it begins, as one whose command is not found."""
        self._journal.write(ExecutorStarted(time=now(), index=container.index))
        container.stderr.write_text(f"{exit_.detail}\n")
        return exit_

    def _run_container(self, container: Container, engine: Engine) -> Exit:
        started = False

        def on_start() -> None:
            nonlocal started
            started = True
            self._journal.write(ExecutorStarted(time=now(), index=container.index))
            if self._interruption.cause is not None:  # it came before there was what to kill
                engine.kill()

        with self._interruption.killing(engine.kill):
            exit_ = engine.run(container, on_start, self._say)
        if not started:
            on_start()
        return exit_

    def _end_executor(
        self,
        index: int,
        exit_: Exit,
        stdout: Stream,
        stderr: Stream,
        *,
        tail_bytes: int,
        last: bool,
    ) -> None:
        event = ExecutorEnded(
            time=now(),
            index=index,
            exit_code=OUT_OF_MEMORY if exit_.out_of_memory else exit_.exit_code,
            stdout=stdout.tail(tail_bytes),
            stderr=stderr.tail(tail_bytes),
            last=last,
        )
        self._journal.write(event)

    def _stage_out(self, plan: Plan, storages: Storages, failure: str) -> None:
        """Collect the outputs, also after an executor failed: then the failure stays the reason."""
        tree, access, succeeded = self._tree, self._access, not failure
        self._moved["bytes_uploaded"] = 0
        with self._timed("stage_out_s"):
            try:
                stage.stage_out(plan, access, tree, storages, self._calls, succeeded=succeeded)
            except StorageError as error:
                if succeeded:
                    raise
                self._say("error", f"not all outputs were collected: {error}")

    def _rescue_streams(self, plan: Plan, storages: Storages) -> None:
        """What the executors of an attempt that timed out had printed, where it is an output: it
        tells why. For as long as the interruption's grace lasts."""
        if self._interruption.cause != "timed out":
            return
        printed = {path for step in plan.steps for path in (step.stdout, step.stderr)}
        uploads = [upload for upload in plan.uploads if upload.path in printed]
        self._stage_out(msgspec.structs.replace(plan, uploads=uploads), storages, "timed out")

    def _explain(self, error: Exception) -> str:
        if isinstance(error, TesazureError):
            return str(error)
        if not isinstance(error, OSError):
            return f"unexpected {type(error).__name__}: {error}"
        reason = "the disk is full" if error.errno in FULL else error.strerror
        name = self._shown(str(error.filename or ""))
        return f"{reason or type(error).__name__}{name and f': {name}'}"

    def _shown(self, place: str) -> str:
        """A path of the host for the task's owner: as the task names it, and nothing of where the
        server keeps its own files."""
        path = self._tree.container_path(place)
        if path is not None:
            return path
        ours = (str(self._directory.path.parent), "/proc/self/fd")
        return "" if any(contains(directory, place) for directory in ours) else place

    def _interrupted(self) -> Ended:
        if self._interruption.cause == "timed out":
            return _system_error(f"timed out after {self._limit_s:g} s", "time_limit")
        return Ended(time=now(), state=State.CANCELED, reason="canceled")

    def _leave(self) -> None:
        """The attempt was interrupted and does not come to its end: end it here and now."""
        self._journal.end(self._interrupted())
        os._exit(1)

    def _say(self, level: str, message: str) -> None:
        self._journal.say(level, self._censor(message))

    def _log(self) -> None:
        """The exception being handled, with its traceback, for the operator: into runner.log."""
        import traceback

        print(self._censor(traceback.format_exc()), end="", file=sys.stderr, flush=True)  # noqa: T201

    def _typed(self, field: str, index: int, kind: FileType) -> None:
        self._journal.write(Typed(time=now(), field=field, index=index, type=kind))

    def _uploaded(self, url: str, path: str, size: int) -> None:
        self._moved["bytes_uploaded"] += size
        self._journal.write(Uploaded(time=now(), url=url, path=path, size=size))

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began, start = now(), time.monotonic()
        self._failing = _CAUSES[name]
        try:
            yield
        finally:
            self._spent[name] = self._spent.get(name, 0.0) + time.monotonic() - start
            if self._is_traced and name in _MOVED:
                size = self._moved.get(_MOVED[name], 0)
                stage = name.removesuffix("_s")
                self._journal.write(Passed(time=now(), stage=stage, began=began, size=size))


def _placed_in_trace(plan: Plan, key: str, index: int) -> Step:
    """A step whose command finds its place in the trace, if there is one and it names none."""
    step, context = plan.steps[index], parse(plan.trace)
    if context is None:
        return step
    env = {VARIABLE: str(context.at(executor_span(key, index))), **step.env}
    return msgspec.structs.replace(step, env=env)


def _mounts(node: NodeConfig) -> tuple[Mount, ...]:
    if not node.shared_global:
        return ()
    shared = Path(node.shared_global)
    # A link is no place to mount at: whoever made it knows where it leads.
    is_there = shared.is_mount() or shared.is_symlink() or not node.shared_is_mounted
    if not (shared.is_dir() and is_there):
        raise StorageUnavailable(f"{SHARED_GLOBAL}: {shared.name} is not mounted on this node")
    return (Mount(shared.resolve(), SHARED_GLOBAL),)


def _failure(index: int, exit_: Exit, plan: Plan) -> str:
    if exit_.out_of_memory:
        limit = plan.limits.ram_bytes
        allowed = f"its limit of {limit / GB:g} GB" if limit else "what the machine has"
        return f"executor {index} was killed: out of memory, it exceeded {allowed}"
    if exit_.exit_code == 0:
        return ""
    if exit_.exit_code in (126, 127) and exit_.detail:
        return f"executor {index} could not be started: {exit_.detail}"
    detail = f": {exit_.detail}" if exit_.detail else ""
    return f"executor {index} ended with exit code {exit_.exit_code}{detail}"


def _system_error(reason: str, cause: str, *, retryable: bool = False) -> Ended:
    state = State.SYSTEM_ERROR
    return Ended(time=now(), state=state, reason=reason, retryable=retryable, cause=cause)

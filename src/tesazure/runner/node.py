"""The runner on a node that the server cannot reach, such as Azure Batch's.

    python -m tesazure.runner.node

The working directory holds `attempt.json`, the whole attempt (`NodeAttempt`). It is deleted, the
attempt is run by a process of its own, and this one brings what it reports to storage. An attempt
is run once, whoever starts it how often: only who creates its report may. Standard error tells the
operator what went wrong, without secrets; exit codes are those of `ExitCode`.

Of the environment, whose names are Azure Batch's ("Environment variables for Batch tasks"):
AZ_BATCH_TASK_WORKING_DIR, the directory (else the current one), which has the same path on the
node, where container engines look for it; AZ_BATCH_NODE_SHARED_DIR, where runners of the node learn
of each other; AZ_BATCH_NODE_MOUNTS_DIR, with the file shares; AZ_BATCH_NODE_IS_DEDICATED.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Literal

import msgspec

from tesazure.access import Access, Endpoints, RegistryIdentity
from tesazure.errors import ConfigurationError, EngineError, StorageError
from tesazure.model import State
from tesazure.plan import Plan
from tesazure.report import Ended, Started, decode, encode
from tesazure.runner.append_blob import PATIENCE, VERSION, AppendBlob, Undeliverable, claim
from tesazure.runner.config import AttemptDir, NodeConfig
from tesazure.runner.courier import ENDED, Courier
from tesazure.runner.engines.choose import DOCKER_SOCKET, PODMAN_SOCKET, find_engine, make_engine
from tesazure.runner.interrupt import GRACE_S
from tesazure.runner.journal import now
from tesazure.runner.remains import Remains
from tesazure.runner.spawner import spawn
from tesazure.runner.tree import remove_tree
from tesazure.secrecy import censor_of
from tesazure.storage.transport import Transport
from tesazure.storage.wire import content_length, require, target_of

LARGEST = 128 * 2**20
"""Bytes of an `attempt.json` that are read."""
KILL_S = GRACE_S + 3.0
"""How long after SIGTERM the attempt's process may take to end, in seconds, before SIGKILL."""
SETTLE_S = 1.5
"""How long a container that a killed process asked for may take to appear, in seconds."""
SWEEP_S = 10.0
"""How often what killed runners of this node left is looked for, in seconds."""

_USUAL = {
    "auto": ("docker", DOCKER_SOCKET),
    "docker": ("docker", DOCKER_SOCKET),
    "podman": ("podman", PODMAN_SOCKET),
    "sandbox": ("sandbox", ""),
}
"""Engine that is wanted -> which one it is where none answers, and at what host."""
_CLEAN = frozenset({State.COMPLETE, State.EXECUTOR_ERROR})
"""Ends after which the engine has nothing left: `Engine.run` promised that."""
_END = 2**20
"""Bytes at the end of a file that are looked at."""


class ExitCode(IntEnum):
    """How this program ends."""

    ENDED = 0
    """The attempt has ended, however it did, and its report is in storage."""
    UNREADABLE = 65
    """There is no attempt.json, or it cannot be understood. Nothing ran."""
    NOT_BEGUN = 69
    """The report cannot be created. Nothing ran."""
    DIED = 70
    """The attempt's process died: its report has no end."""
    UNDELIVERED = 74
    """The attempt has ended, or had to; its report in storage has no end."""
    ALREADY_BEGUN = 75
    """The attempt was begun before, or is not to begin any more. Nothing ran."""


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """Where the runner reports: signed URLs of single blobs. Secret."""

    report: str
    """Created by the runner that begins, exclusively: it exists, so the attempt has begun."""
    streams: dict[str, str] = {}
    """`0.stdout`, `0.stderr`, … -> URL."""
    attempt: str = ""
    """Where the attempt came from, to be read once more by the runner that has begun: it is empty
    when the attempt was released meanwhile, and its report may have been deleted by then."""

    def __repr__(self) -> str:
        return "Channel(…)"


class NodeAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt, complete. Secret; deleted from the node before the first executor runs."""

    key: str
    plan: Plan
    access: Access
    channel: Channel
    endpoints: Endpoints = Endpoints()
    certificates: str = ""
    """PEM text of the authorities that TLS trusts, in place of a file `endpoints.ca_bundle`, which
    no node has; empty: the image's."""
    engine: Literal["auto", "docker", "podman", "sandbox"] = "auto"
    allow_private: bool = True
    network: bool = True
    tail_bytes: int = 65536
    shared_global: str = ""
    """Directory below AZ_BATCH_NODE_MOUNTS_DIR seen as /tes-wd/shared-global; empty: none."""
    registry_identity: RegistryIdentity | None = None
    """An identity of this node that pulls the private registry's images, if there is one."""
    facts: dict[str, str] = {}
    """For the attempt's metadata, noted first: vm_size, vm_price_per_hour_usd, …"""
    cost_per_hour_usd: float | None = None
    """Of the attempt's share of the node, for `estimated_cost_usd` at its end."""
    dedicated_price_per_hour_usd: float | None = None
    """`vm_price_per_hour_usd` in place of that in `facts`, where these say `vm_kind` spot and the
    node is a dedicated one, as Spot pools have them while Azure has no Spot nodes."""
    dedicated_cost_per_hour_usd: float | None = None
    """`cost_per_hour_usd` there."""
    deliver_s: float = 600.0
    """How long storage that is away is waited for once the attempt has ended, in seconds."""

    def __repr__(self) -> str:
        return f"NodeAttempt({self.key})"


def main() -> ExitCode:
    """Run the attempt of this directory."""
    environ = os.environ  # noqa: TID251 - Batch's, which knows nothing of our settings
    directory = Path(environ.get("AZ_BATCH_TASK_WORKING_DIR") or Path.cwd()).absolute()
    try:
        attempt = _take(directory / "attempt.json")
    except (OSError, ValueError) as error:
        _warn(f"attempt.json: {error}")
        return ExitCode.UNREADABLE
    if attempt is None:
        return ExitCode.ALREADY_BEGUN
    return Node(attempt, directory, environ).run()


def _take(file: Path) -> NodeAttempt | None:
    """The attempt, whose file is deleted; None where it has begun before, or is released. Raises
    OSError, ValueError."""
    with file.open("rb") as opened:
        data = opened.read(LARGEST + 1)
    file.unlink()
    if len(data) > LARGEST:
        raise ValueError(f"it is longer than {LARGEST} bytes")
    return msgspec.json.decode(data, type=NodeAttempt | None) if data else None


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - kept by Batch, as stderr.txt


class Node:
    """One attempt on this node. To be used in a process's main thread, once."""

    def __init__(self, attempt: NodeAttempt, directory: Path, environ: Mapping[str, str]) -> None:
        self._attempt = attempt
        self._place = directory
        self._environ = environ
        self._directory = AttemptDir(directory / "attempt")
        self._remains: Remains | None = None
        self._engine = _USUAL[attempt.engine]
        self._process = -1
        """pidfd of the attempt's process."""
        self._is_asked_to_stop = False
        self._swept = time.monotonic()

    def run(self) -> ExitCode:
        """Everything."""
        signal.signal(signal.SIGALRM, self._kill)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        channel = self._attempt.channel
        try:
            transport = self._connect()
            report = AppendBlob(transport, channel.report, "the report")
            if not claim(report, transport):
                return _turn_back("the attempt was begun before")
        except (OSError, StorageError, Undeliverable) as error:
            _warn(f"the attempt cannot begin: {error}")
            return ExitCode.NOT_BEGUN
        try:
            if self._is_released(transport):
                return _turn_back("the attempt is released")
            pid = self._begin()
        except (OSError, StorageError) as error:
            return self._tell_failure(report, transport, f"the node cannot begin it: {error}")
        streams = {
            name: AppendBlob(transport, url, _named(name)) for name, url in channel.streams.items()
        }
        courier = Courier(self._directory, report, streams, _warn)
        courier.follow(self._is_over, self._stop)
        return self._conclude(courier, pid)

    def _connect(self) -> Transport:
        """For the channel alone, whose place somebody configured."""
        attempt = self._attempt
        if attempt.certificates:
            self._authorities.write_text(attempt.certificates, "utf-8")
        targets = [target_of(attempt.channel.report)]
        return Transport(
            allow_private=attempt.allow_private,
            trusted=[f"{target.host}:{target.port}" for target in targets],
            ca_bundle=str(self._authorities) if attempt.certificates else "",
            patience=PATIENCE,
        )

    def _is_released(self, transport: Transport) -> bool:
        url = self._attempt.channel.attempt
        if not url:
            return False
        answer = transport.ask("HEAD", url, headers=VERSION)
        if answer.status == 404:
            return True
        require(answer, "the attempt's blob")
        return not content_length(answer)

    @property
    def _authorities(self) -> Path:
        return self._place / "authorities.pem"

    def _begin(self) -> int:
        """Prepare the directory, end what others left here, and fork. Raises OSError."""
        attempt = self._attempt
        try:
            choice = find_engine(attempt.engine, "", "")
            self._engine = choice.name, choice.host
        except ConfigurationError as error:  # it may answer by the time that the attempt asks it
            _warn(str(error))
            self._engine = _USUAL[attempt.engine]
        if shared := self._environ.get("AZ_BATCH_NODE_SHARED_DIR"):
            self._remains = Remains(Path(shared) / "tesazure")
            self._remains.enter(attempt.key)
            self._remains.sweep(self._sweep, _warn)
        self._directory.path.mkdir(mode=0o700)
        self._directory.plan.write_bytes(msgspec.json.encode(attempt.plan))
        self._directory.node.write_bytes(msgspec.json.encode(self._config()))
        begun = spawn(self._directory, attempt.access, tied=True)
        if not begun.pid:
            raise OSError(begun.error or begun.begun)
        self._process = os.pidfd_open(begun.pid)
        if self._is_asked_to_stop:
            self._stop()
        return begun.pid

    def _config(self) -> NodeConfig:
        attempt, environ = self._attempt, self._environ
        shared = ""
        if attempt.shared_global:
            shared = str(Path(environ.get("AZ_BATCH_NODE_MOUNTS_DIR", "/"), attempt.shared_global))
        bundle = str(self._authorities) if attempt.certificates else ""
        name, host = self._engine
        facts, cost = self._terms()
        return NodeConfig(
            key=attempt.key,
            engine=name,  # type: ignore[arg-type]  # one of its own names
            engine_host=host,
            shared_global=shared,
            shared_is_mounted="AZ_BATCH_NODE_MOUNTS_DIR" in environ,
            hidden=(environ.get("AZ_BATCH_NODE_ROOT_DIR") or str(self._place),),
            allow_private=attempt.allow_private,
            endpoints=msgspec.structs.replace(attempt.endpoints, ca_bundle=bundle),
            network=attempt.network,
            tail_bytes=attempt.tail_bytes,
            registry_identity=attempt.registry_identity,
            facts=facts,
            cost_per_hour_usd=cost,
        )

    def _terms(self) -> tuple[dict[str, str], float | None]:
        """Facts and cost of the node that it came to be: a pool may have both kinds."""
        attempt = self._attempt
        is_dedicated = self._environ.get("AZ_BATCH_NODE_IS_DEDICATED", "").lower()
        kind = {"true": "dedicated", "false": "spot"}.get(is_dedicated, "")
        planned = attempt.facts.get("vm_kind", "")
        if not kind or kind == planned:
            return attempt.facts, attempt.cost_per_hour_usd
        facts = {**attempt.facts, "vm_kind": kind}
        if not planned:  # a pool of which nothing is known
            return facts, attempt.cost_per_hour_usd
        facts.pop("vm_price_per_hour_usd", None)
        if kind == "spot":  # somebody changed the pool: at what price is not known
            return facts, None
        if attempt.dedicated_price_per_hour_usd is not None:
            facts["vm_price_per_hour_usd"] = f"{attempt.dedicated_price_per_hour_usd:.6g}"
        return facts, attempt.dedicated_cost_per_hour_usd

    def _tell_failure(self, report: AppendBlob, transport: Transport, reason: str) -> ExitCode:
        """A report of an attempt that this node could not begin."""
        _warn(reason)
        ended = Ended(
            time=now(), state=State.SYSTEM_ERROR, reason=reason, retryable=True, cause="node"
        )
        lines = encode(Started(time=now(), host=os.uname().nodename)) + encode(ended)
        try:
            transport.persist(report.what, lambda: report.append(lines))
        except (StorageError, Undeliverable) as error:
            _warn(f"the report cannot be delivered: {error}")
            return ExitCode.UNDELIVERED
        return ExitCode.ENDED

    def _conclude(self, courier: Courier, pid: int) -> ExitCode:
        """The attempt's process is gone: end what it left, and send the rest."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        ended = _last_event(self._directory.report)
        is_clean = ended is not None and ended.state in _CLEAN
        if is_clean or self._end_containers(SETTLE_S if ended is None else 0):
            self._leave()
        if ended is None:
            why = self._cause_of_death(code)
            _warn(why)
            courier.say("error", why)
        problem = courier.finish(self._attempt.deliver_s)
        with contextlib.suppress(OSError):
            remove_tree(self._directory.path)  # others on this node need the room
        if problem:
            _warn(f"the report in storage is not whole: {problem}")
        if ended is None:
            return ExitCode.DIED
        return ExitCode.UNDELIVERED if problem else ExitCode.ENDED

    def _cause_of_death(self, code: int) -> str:
        if self._is_asked_to_stop and code == -signal.SIGKILL:
            return f"the runner did not stop within {KILL_S:g} s and was killed"
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        with contextlib.suppress(OSError):
            lines = _end_of(self._directory.output).decode("utf-8", "replace").split("\n")
            words = next((line.strip() for line in reversed(lines) if line.strip()), "")
            how += words and f": {censor_of(self._attempt.access)(words)[:300]}"
        return f"the runner {how}"

    def _end_containers(self, settle_s: float) -> bool:
        """Whether nothing of the attempt is left."""
        try:
            self._sweep(self._attempt.key, self._directory.root, settle_s)
        except EngineError as error:
            _warn(f"what is left of the attempt cannot be ended: {error}")
            return False
        return True

    def _sweep(self, key: str, root: Path | None = None, settle_s: float = 0.0) -> None:
        make_engine(*self._engine).sweep(key, root, settle_s)

    def _leave(self) -> None:
        if self._remains is not None:
            self._remains.leave()

    def _is_over(self, timeout_s: float) -> bool:
        """Whether the attempt's process is gone, or goes within so many seconds. Now and then ends
        what killed runners of the node left, which else went on until another one begins here."""
        if self._remains is not None and time.monotonic() - self._swept > SWEEP_S:
            with contextlib.suppress(OSError):
                self._remains.sweep(self._sweep, _warn)
            self._swept = time.monotonic()
        poll = select.poll()
        poll.register(self._process, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    # Signals. The attempt has a session of its own: whoever stops this process does not reach it.

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        if not self._is_asked_to_stop:
            self._is_asked_to_stop = True
            self._stop()

    def _stop(self) -> None:
        if self._process >= 0:
            signal.setitimer(signal.ITIMER_REAL, KILL_S)
            self._signal(signal.SIGTERM)

    def _kill(self, number: int, frame: FrameType | None) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process, number)


def _turn_back(why: str) -> ExitCode:
    _warn(f"{why}: nothing is done")
    return ExitCode.ALREADY_BEGUN


def _named(stream: str) -> str:
    executor, _, name = stream.partition(".")
    return f"{name} of executor {executor}"


def _end_of(path: Path) -> bytes:
    """Raises OSError."""
    with path.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - _END, 0))
        return file.read(_END)


def _last_event(report: Path) -> Ended | None:
    """The report's last event, if it is the one that ends it."""
    line = _end_of(report).rpartition(b"\n")[0].rpartition(b"\n")[2]
    last = decode(line + b"\n")[0] if line.startswith(ENDED) else None
    return last if isinstance(last, Ended) else None


if __name__ == "__main__":
    sys.exit(main())

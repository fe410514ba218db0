"""A warm process that forks runners: a fork takes milliseconds, starting an interpreter many.

    python -m tesazure.runner.spawner [--preload docker|podman|sandbox]

Protocol, JSON lines over standard input and output, one reply for each request and in their order:

    → {"directory": "/data/K", "access": {…}}        `access.Access`: secrets, kept in memory only
    ← {"directory": "/data/K", "pid": 4711}          a runner has begun: it has the lock and the
                                                     report, and SIGTERM cancels the attempt
    ← {"directory": "/data/K", "begun": "running"}   another runner has it
    ← {"directory": "/data/K", "begun": "ran"}       it was run before, or must not begin
    ← {"directory": "/data/K", "error": "…"}         it has not begun; nothing runs

Before these comes `{"ready": PID}`. When standard input ends, so does this process. Runners live in
sessions of their own, outlive it and its parent, and write what they print to `runner.log`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import msgspec

from tesazure.access import Access
from tesazure.runner.config import AttemptDir
from tesazure.runner.run import Attempt, begin

_MODULES = {
    "docker": "tesazure.runner.engines.docker",
    "podman": "tesazure.runner.engines.docker",
    "sandbox": "tesazure.runner.engines.sandbox",
}

_SECRETS = "tesazure.runner.engines.sandbox_secrets"
"""Takes long to find what a runner forked from here then knows."""

_PR_SET_PDEATHSIG = 1
"""prctl(2)."""

_IN_ANSWER_TO = 3
"""File descriptor on which a new runner says whether it has begun."""


class Request(msgspec.Struct, omit_defaults=True, frozen=True):
    """Begin the attempt in this directory."""

    directory: str
    access: Access = Access()


class Reply(msgspec.Struct, omit_defaults=True, frozen=True):
    """Exactly one of `pid`, `begun`, `error`, `ready` is set."""

    directory: str = ""
    pid: int = 0
    begun: str = ""
    error: str = ""
    ready: int = 0


def main(arguments: list[str]) -> None:
    """Serve until standard input ends."""
    look: Callable[[], object] | None = None
    if arguments[:1] == ["--preload"] and len(arguments) == 2 and arguments[1] in _MODULES:
        import_module(_MODULES[arguments[1]])
        if arguments[1] == "sandbox":
            look = import_module(_SECRETS).private_paths
            look()
    elif arguments:
        sys.exit(__doc__)
    with contextlib.suppress(PermissionError):  # already the leader of a session
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the runners
    gc.collect()
    gc.freeze()  # so that runners share this process's memory
    _write(Reply(ready=os.getpid()))
    for line in sys.stdin.buffer:
        if look is not None:
            look()
        _write(_answered(line))


def _answered(line: bytes) -> Reply:
    try:
        request = msgspec.json.decode(line, type=Request)
    except msgspec.MsgspecError as error:
        return Reply(error=f"not a request: {error}")
    try:
        return spawn(AttemptDir(Path(request.directory)), request.access)
    except OSError as error:
        return Reply(request.directory, error=str(error))


def _write(reply: Reply) -> None:
    try:
        os.write(1, msgspec.json.encode(reply) + b"\n")
    except BrokenPipeError:
        sys.exit(0)


def spawn(directory: AttemptDir, access: Access, *, tied: bool = False) -> Reply:
    """Fork a runner, and wait until it has begun or given up. With `tied` it is cancelled when this
    thread ends. Raises OSError."""
    if not directory.path.is_absolute():
        return Reply(str(directory.path), error="the directory must be an absolute path")
    reader, writer = os.pipe()
    parent = os.getpid()
    try:
        pid = os.fork()
        if pid == 0:
            _become_runner(directory, access, writer, parent if tied else 0)
    except OSError:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    with open(reader, "rb") as answers:  # noqa: PTH123
        answer = answers.read()
    name = str(directory.path)
    if not answer:
        return Reply(name, error="the runner died before it began")
    said = msgspec.json.decode(answer, type=Reply)
    return Reply(
        name, pid=0 if said.begun or said.error else pid, begun=said.begun, error=said.error
    )


def _become_runner(directory: AttemptDir, access: Access, writer: int, tie: int) -> NoReturn:
    """`tie`: the process to die with; 0: none."""
    code = 1
    try:
        try:
            _leave_parent(directory, writer)
            if tie:
                _tie_to(tie)
            attempt = begin(directory)
        except OSError as error:
            _answer(Reply(error=str(error)))
            raise
        _answer(Reply(begun=attempt if isinstance(attempt, str) else ""))
        if isinstance(attempt, Attempt):
            attempt.run(access)
        code = 0
    except BaseException:  # whatever it is, this is not the spawner any more
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _answer(reply: Reply) -> None:
    with contextlib.suppress(BrokenPipeError):  # whoever asked is gone: the report says it all
        os.write(_IN_ANSWER_TO, msgspec.json.encode(reply))
    os.close(_IN_ANSWER_TO)


def _leave_parent(directory: AttemptDir, writer: int) -> None:
    """Have a session, files, and signals of our own, as if started by hand."""
    os.setsid()
    if writer != _IN_ANSWER_TO:
        os.dup2(writer, _IN_ANSWER_TO, inheritable=False)
    os.closerange(_IN_ANSWER_TO + 1, os.sysconf("SC_OPEN_MAX"))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    log = os.open(directory.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 2)
    os.close(log)
    # Whatever a shell in the background, or this process, had ignored. SIGPIPE and SIGXFSZ are the
    # interpreter's own, and are given back to each program it starts.
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    os.umask(0o022)
    _give_up_protection()


def _tie_to(parent: int) -> None:
    import ctypes

    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # until the attempt has a handler of its own
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before this process could notice
        os._exit(1)


def _give_up_protection() -> None:
    """A server that the OOM killer is told to spare must not hand that on to its tasks."""
    file = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        if int(file.read_text()) < 0:
            file.write_text("0")


if __name__ == "__main__":
    main(sys.argv[1:])

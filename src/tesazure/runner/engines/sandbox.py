"""The engine for machines without one: bubblewrap over the host's own programs. No image is used.

Source: bwrap(1). A sandbox has its own processes, mounts and, if wanted, no network; it dies with
the runner. Its environment is a default PATH, HOME=/tmp, what the executor sets, and PWD, which
bubblewrap sets itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import select
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from tesazure.errors import EngineError, EngineUnavailable
from tesazure.runner.engines import cgroup
from tesazure.runner.engines.base import Container, Exit, Login, Say, nobody
from tesazure.runner.engines.sandbox_view import View
from tesazure.runner.tree import make_readable

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_POWERS = ("CAP_CHOWN", "CAP_FOWNER", "CAP_DAC_OVERRIDE")
"""What root keeps in a sandbox: to unpack a tar whose members belong to others, and then to work
with these files, as in docker. All it can write to is the task's own; of the host it can read more
than permissions would let it, and so what these protect is covered, see `sandbox_secrets`."""
_NAMESPACES = ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
_MOST_ARGUMENTS = 4000
"""bubblewrap refuses more than 9,000 words, its own options included."""
_OOM_SCORE = "500"
"""When the machine itself runs out of memory, tasks go first: proc_pid_oom_score_adj(5)."""
_PATIENCE_MS = 10_000
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl
_WITHOUT = {
    "memory": "a process that exceeds its limit gets an allocation error",
    "cpu": "the limit is not enforced",
}

NOT_FOUND = 127
NOT_EXECUTABLE = 126
KILLED = 128 + signal.SIGKILL


_TRIES = 6


class _NotMade(EngineError):
    """bubblewrap did not come to execute the command."""


class SandboxEngine:
    """Runs executors in bubblewrap sandboxes."""

    name = "sandbox"

    def __init__(self, hidden: Sequence[str] = ()) -> None:
        """`hidden`: directories of the host that no task may see, see `NodeConfig`."""
        self._hidden = hidden
        self._mounts = cgroup.mounted(
            Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text()
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._init: int | None = None
        """pidfd of the first process in the running sandbox: when it goes, all go."""
        self._killed = False
        """`kill` came during this `run`, which may be between two tries to make the sandbox."""
        self._warned: set[str] = set()

    def prepare(self, image: str, say: Say, login: Login = nobody) -> None:
        """Nothing to have here, but the user must know. Raises EngineUnavailable."""
        if shutil.which("bwrap") is None:
            raise EngineUnavailable("there is no program bwrap; apt install bubblewrap")
        text = f"the image {image} is not used: the sandbox engine runs this machine's own programs"
        say("warning", text)

    def run(self, container: Container, started: Callable[[], None], say: Say) -> Exit:
        """As Engine.run. The host's files may change while they are being shown: then again."""
        told = False
        self._killed = False

        def once() -> None:
            nonlocal told
            if not told:
                told = True
                started()

        for _ in range(_TRIES - 1):
            with contextlib.suppress(_NotMade):
                return self._run(container, once, say)
            if self._killed:
                return Exit(KILLED)
        return self._run(container, once, say)

    def _run(self, container: Container, started: Callable[[], None], say: Say) -> Exit:
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(make_readable, container.root)
            view = View(container, self._hidden)
            cleanup.callback(view.remove)
            group = self._group(container, say)
            cleanup.callback(group.remove)
            cleanup.callback(self._end, container.key)
            return self._supervise(container, view, group, started)

    def kill(self) -> None:
        """As Engine.kill."""
        self._killed = True
        self._end_now()

    def sweep(self, key: str, root: Path | None, settle_s: float = 0.0) -> None:
        """As Engine.sweep. A sandbox dies with its runner; this waits until it has."""
        _end_processes(_title(key))
        cgroup.sweep(self._mounts, key)
        if root is not None and root.is_dir():
            make_readable(root)

    def _group(self, container: Container, say: Say) -> cgroup.Group:
        asked = {"memory": container.ram_bytes, "cpu": container.cpu_cores}
        name = f"{container.key}-{container.index}"
        where = cgroup.find(self._mounts)
        group = cgroup.Group(where, name, container.cpu_cores, container.ram_bytes)
        for controller, value in asked.items():
            if value is not None and controller not in group.limited | self._warned:
                self._warned.add(controller)
                effect = _WITHOUT[controller]
                say("warning", f"no control group for {controller} can be made here: {effect}")
        return group

    def _supervise(
        self, container: Container, view: View, group: cgroup.Group, started: Callable[[], None]
    ) -> Exit:
        address_space = container.ram_bytes if "memory" not in group.limited else None
        with contextlib.ExitStack() as files:
            stderr = files.enter_context(container.stderr.open("ab"))
            before = os.fstat(stderr.fileno()).st_size
            runner = os.getpid()
            try:
                status = self._start(
                    container, view, stderr, lambda: _enter(runner, group, address_space), files
                )
            except FileNotFoundError as error:
                raise EngineUnavailable(f"cannot start bubblewrap: {error}") from error
            except OSError as error:
                if error.errno != errno.E2BIG:
                    raise
                started()
                return Exit(NOT_EXECUTABLE, detail="its arguments are too long for this system")
            except subprocess.SubprocessError as error:
                raise EngineError(f"cannot enter the control group: {error}") from error
            exit_code = self._follow(status, started)
            return self._judge(container, group, exit_code, stderr, before)

    def _start(
        self,
        container: Container,
        view: View,
        stderr: BinaryIO,
        enter: Callable[[], None],
        files: contextlib.ExitStack,
    ) -> BinaryIO:
        """Start bubblewrap; where it tells its status."""
        stdin = files.enter_context((container.stdin or Path(os.devnull)).open("rb"))
        stdout = files.enter_context(container.stdout.open("ab"))
        inherited = [files.enter_context(_memory_file(_options(container, view)))]
        command = container.step.command
        if len(command) > _MOST_ARGUMENTS:
            script = f"exec {shlex.join(command)}\n"
            inherited.append(files.enter_context(_memory_file(os.fsencode(script))))
            command = ["/bin/sh", f"/proc/self/fd/{inherited[-1]}"]
        reader, writer = os.pipe()
        status = files.enter_context(os.fdopen(reader, "rb"))
        options = ["--args", str(inherited[0]), "--json-status-fd", str(writer)]
        try:
            self._process = subprocess.Popen(
                [f"{_title(container.key)}{container.index}", *options, "--", *command],
                executable=shutil.which("bwrap") or "bwrap",
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd="/",
                env={},
                pass_fds=[*inherited, writer],
                preexec_fn=enter,  # noqa: PLW1509 - no other thread runs by now
            )
        finally:
            os.close(writer)
        return status

    def _follow(self, status: BinaryIO, started: Callable[[], None]) -> int | None:
        """Watch the sandbox to its end; the command's exit code, None if it was never executed or
        bubblewrap was killed."""
        exit_code = None
        for line in status:
            event = json.loads(line)
            if "child-pid" in event:
                with contextlib.suppress(OSError):  # gone already, or a kernel before 5.3
                    self._init = os.pidfd_open(event["child-pid"])
                started()
                if self._killed:  # before there was a process
                    self._end_now()
            exit_code = event.get("exit-code", exit_code)
        return exit_code

    def _judge(
        self,
        container: Container,
        group: cgroup.Group,
        exit_code: int | None,
        stderr: BinaryIO,
        before: int,
    ) -> Exit:
        assert self._process is not None  # noqa: S101 - _start has set it
        ended = self._process.wait()
        # A command that coped with the loss of a process has succeeded, as with other engines.
        if exit_code != 0 and group.ran_out_of_memory():
            return Exit(KILLED, out_of_memory=True)
        if exit_code is not None:
            return Exit(exit_code)
        if ended != 1:
            return Exit(ended if ended > 0 else 128 - ended)
        return _refused(container, stderr.fileno(), before)

    def _end_now(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._init is not None:
                signal.pidfd_send_signal(self._init, signal.SIGKILL)
            elif self._process is not None:
                self._process.kill()

    def _end(self, key: str) -> None:
        """Wait until nothing of the sandbox is left, killing it if an exception came in between."""
        if self._process is None:
            return
        self._end_now()
        self._process.wait()
        self._process = None
        init, self._init = self._init, None
        if init is None:
            _end_processes(_title(key))
        else:
            _wait_for_exit(init)
            os.close(init)


def _title(key: str) -> str:
    """What the arguments of an attempt's bubblewraps begin with, in front of a number."""
    return f"tesazure-{key}-"


def _end_processes(title: str) -> None:
    """Kill the processes with this title and wait until they are gone. The first process of a
    sandbox is bubblewrap too, and has the title as well; with it go all others of the sandbox."""
    wanted = os.fsencode(title)
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                name = Path(entry.path, "cmdline").read_bytes().partition(b"\0")[0]
                if name.startswith(wanted) and name[len(wanted) :].isdigit():
                    process = os.pidfd_open(int(entry.name))
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                    _wait_for_exit(process)
                    os.close(process)


def _wait_for_exit(process: int) -> None:
    """Until the process of a pidfd has ended, or cannot be expected to any more."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    poll.poll(_PATIENCE_MS)


def _options(container: Container, view: View) -> bytes:
    """bubblewrap's own words, each ended by NUL."""
    step = container.step
    words = [*_NAMESPACES, "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    if os.geteuid() == 0:
        for power in _POWERS:
            words += ["--cap-add", power]
    if not container.network:
        words.append("--unshare-net")
    for name, value in {"PATH": PATH, "HOME": "/tmp", **step.env}.items():  # noqa: S108
        words += ["--setenv", name, value]
    words += [*view.arguments, "--chdir", view.workdir(step.workdir)]
    return b"".join(os.fsencode(word) + b"\0" for word in words)


@contextlib.contextmanager
def _memory_file(content: bytes) -> Iterator[int]:
    """A file descriptor from which `content` can be read."""
    file = os.memfd_create("tesazure")
    try:
        os.write(file, content)
        os.lseek(file, 0, os.SEEK_SET)
        yield file
    finally:
        os.close(file)


def _enter(runner: int, group: cgroup.Group, address_space: int | None) -> None:
    """In the child, before it becomes bubblewrap, which only later sees to its own death."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != runner:  # it died before this child could notice
        os._exit(1)
    group.enter()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    if address_space is not None:
        resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))


def _refused(container: Container, stderr: int, before: int) -> Exit:
    """bubblewrap ended before it executed the command; what it wrote says why.

    Nothing else can have been written then. Its words give way to ours in the executor's stderr.
    """
    with contextlib.closing(_reopened(stderr)) as file:
        file.seek(before)
        text = file.read().decode("utf-8", "replace").strip()
    os.ftruncate(stderr, before)
    said, _, reason = text.rpartition(": ")
    program = container.step.command[0]
    if said.startswith("bwrap: execvp ") and reason == os.strerror(errno.ENOENT):
        what = "no such file, or no interpreter for it" if "/" in program else "command not found"
        exit_ = Exit(NOT_FOUND, detail=f"{program}: {what}")
    elif said.startswith("bwrap: execvp "):
        exit_ = Exit(NOT_EXECUTABLE, detail=f"{program}: {reason}")
    elif said.startswith("bwrap: Can't chdir to "):
        exit_ = Exit(NOT_EXECUTABLE, detail=f"workdir {container.step.workdir}: {reason}")
    else:
        raise _NotMade(f"bubblewrap cannot make a sandbox: {text}")
    os.write(stderr, f"{exit_.detail}\n".encode())
    return exit_


def _reopened(file: int) -> BinaryIO:
    return open(f"/proc/self/fd/{file}", "rb")  # noqa: PTH123 - ours is for writing only

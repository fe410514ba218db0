"""What a task sees in a sandbox of this machine, and what it must not see or change."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tesazure.model import Input, Output, Resources, State
from tesazure.runner.engines import cgroup, sandbox, sandbox_view
from tesazure.runner.run import run_attempt
from tesazure.runner.tree import remove_tree
from tests.contract.node import wait_for
from tests.service.runner_bench import (
    RunnerBench,
    ended,
    executor,
    folded,
    lines,
    open_bench,
    shell,
    wait_for_exit,
)

assert sandbox  # imported while modules can be read: a process of user nobody may not find them

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only as root is there a difference")
NOBODY = 65534


@pytest.fixture(scope="module")
def bench() -> Iterator[RunnerBench]:
    with open_bench() as bench:
        yield bench


def stdout(bench: RunnerBench, script: str, **fields: object) -> str:
    """What a script prints in a sandbox."""
    found = bench.run(shell(script), **fields)
    assert ended(found).state is State.COMPLETE, lines(found) + repr(found.log.logs)
    return found.log.logs[0].stdout or ""


def test_the_machine_cannot_be_changed(bench: RunnerBench) -> None:
    script = "for d in /usr /etc /bin /opt; do touch $d/tesazure-was-here && echo $d; done; true"
    assert stdout(bench, script) == ""


def test_only_programs_and_configuration_are_seen(bench: RunnerBench) -> None:
    seen = set(stdout(bench, "ls /").split())
    assert {"usr", "etc", "tmp", "proc", "dev", "tes-wd"} <= seen
    assert not seen & {"home", "root", "var", "srv", "mnt", "media", "boot", "sys"}
    assert stdout(bench, "ls -A /tmp /run /home 2>/dev/null; true") == "/run:\n\n/tmp:\n"


@needs_root
def test_roots_secrets_are_covered(bench: RunnerBench) -> None:
    secrets = sandbox_view.unreadable("/etc")
    assert "/etc/shadow" in [path for path, _ in secrets]
    for path, is_directory in secrets:
        command = f"ls -A {path}" if is_directory else f"cat {path} 2>/dev/null"
        assert stdout(bench, f"{command}; true") == "", path


@needs_root
def test_secrets_stay_covered_beside_the_tasks_own_files(bench: RunnerBench) -> None:
    inputs = [Input(path="/etc/mine", content="mine"), Input(path="/etc/ssl/x", content="x")]
    script = "cat /etc/mine /etc/ssl/x; cat /etc/shadow 2>/dev/null; ls -A /etc/ssl/private; true"
    assert stdout(bench, script, inputs=inputs) == "minex"


@needs_root
def test_root_has_no_powers(bench: RunnerBench) -> None:
    script = "grep -E 'Cap(Eff|Prm|Inh)|NoNewPrivs' /proc/self/status"
    assert {line.split()[1] for line in stdout(bench, script).splitlines()} == {"0" * 16, "1"}
    assert stdout(bench, "mount -t tmpfs x /tmp 2>/dev/null || echo no") == "no\n"


def test_other_processes_are_not_seen(bench: RunnerBench) -> None:
    assert int(stdout(bench, "ls /proc | grep -c '^[0-9]'")) < 8


def test_nothing_of_the_runner_is_open(bench: RunnerBench) -> None:
    assert stdout(bench, "ls /proc/self/fd").split() == ["0", "1", "2", "3"]  # 3: ls's own
    assert "SigIgn:\t0000000000000000" in stdout(bench, "cat /proc/self/status")


def test_the_environment_is_small(bench: RunnerBench) -> None:
    names = {line.split("=")[0] for line in stdout(bench, "env").splitlines()}
    assert names == {"PATH", "HOME", "PWD"}


def test_network(bench: RunnerBench) -> None:
    names = "sed 's/:.*//' /proc/net/dev | tail -n +3"
    assert stdout(bench, names, node={"network": False}).split() == ["lo"]
    assert set(stdout(bench, names).split()) > {"lo"}
    assert stdout(bench, "cat /etc/resolv.conf") == Path("/etc/resolv.conf").read_text()


def test_files_in_the_machines_own_directories(bench: RunnerBench) -> None:
    """Inputs and outputs may be anywhere; what the machine has there stays visible."""
    script = """
        cat /etc/foo/in.txt /etc/in2.txt /usr/share/deep/er/in.txt; mine
        echo 1 > /usr/local/out/x; echo 2 > /etc/foo/y; echo 3 > /lib/z
        test -e /etc/passwd && test -d /usr/share/doc && test -e /usr/local/bin && echo all
        touch /usr/share/doc/x 2>/dev/null || echo read-only
    """
    program = "#!/bin/sh\necho program\n"
    inputs = [
        Input(path="/etc/foo/in.txt", content="1 "),
        Input(path="/etc/in2.txt", content="2 "),
        Input(path="/usr/share/deep/er/in.txt", content="3 "),
        Input(path="/usr/local/bin/mine", content=program),
    ]
    outputs = [
        Output(path="/usr/local/out/x", url=f"file://{bench.files}/x"),
        Output(path="/etc/foo/y", url=f"file://{bench.files}/y"),
        Output(path="/lib/z", url=f"file://{bench.files}/z"),
    ]
    chmod = shell("chmod +x /usr/local/bin/mine")
    found = bench.run(chmod, shell(script), inputs=inputs, outputs=outputs)
    assert ended(found).state is State.COMPLETE, lines(found)
    assert found.log.logs[1].stdout == "1 2 3 program\nall\nread-only\n"
    assert [(bench.files / name).read_text() for name in "xyz"] == ["1\n", "2\n", "3\n"]


def test_an_input_takes_the_place_of_the_machines_file(bench: RunnerBench) -> None:
    inputs = [Input(path="/etc/hosts", content="mine")]
    assert stdout(bench, "cat /etc/hosts; test -e /etc/passwd", inputs=inputs) == "mine"


def test_shared_memory_is_there_and_can_be_an_output(bench: RunnerBench) -> None:
    outputs = [Output(path="/dev/shm/x", url=f"file://{bench.files}/shm")]
    stdout(bench, "echo x > /dev/shm/x", outputs=outputs)
    assert (bench.files / "shm").read_text() == "x\n"


def test_no_mount_points_are_left_among_the_outputs(bench: RunnerBench) -> None:
    inputs = [Input(path="/etc/foo", content="x")]
    outputs = [Output(path="/etc/*", path_prefix="/etc/", url=f"file://{bench.files}/etc/")]
    stdout(bench, "echo x > /etc/new", inputs=inputs, outputs=outputs)
    assert sorted(path.name for path in (bench.files / "etc").iterdir()) == ["foo", "new"]
    assert {path.name for path in bench.last.root.iterdir()} == {"etc", "tmp", "tes-wd"}


def test_limits_are_set_while_the_command_runs(bench: RunnerBench) -> None:
    where = cgroup.find(
        cgroup.mounted(
            Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text()
        )
    )
    if where.keys() != {"memory", "cpu"}:
        pytest.skip("this user cannot make control groups")
    plan = bench.plan(
        shell("until [ -e /tmp/go ]; do sleep 0.02; done"),
        resources=Resources(cpu_cores=0.25, ram_gb=0.1),
    )
    attempt = bench.attempt(plan)
    pid = bench.begin(attempt)
    wait_for(lambda: folded(attempt).executor_started)
    group = f"tesazure-{attempt.path.name}-0"
    cpu, memory = (where[name].parent / group for name in ("cpu", "memory"))
    if where["cpu"].version == 1:
        assert (cpu / "cpu.cfs_quota_us").read_text() == "25000\n"
        assert (cpu / "cpu.cfs_period_us").read_text() == "100000\n"
        assert int((memory / "memory.limit_in_bytes").read_text()) == 10**8 // 4096 * 4096
    else:
        assert (cpu / "cpu.max").read_text() == "25000 100000\n"
        assert int((memory / "memory.max").read_text()) == 10**8 // 4096 * 4096
    (attempt.root / "tmp/go").touch()
    wait_for_exit(pid)
    assert not cpu.exists()
    assert not memory.exists()


# -- as an ordinary user ------------------------------------------------------------------------


def as_nobody(action: Callable[[], None]) -> None:
    """Run an action in a child process of user nobody; needs root."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            action()
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@needs_root
def test_an_ordinary_user_can_run_and_clean_up(bench: RunnerBench) -> None:
    """Unprivileged: user namespaces, no control groups, and files that deny their owner."""
    plan = bench.plan(
        shell("id -u; echo x > /work/f; chmod 0 /work/f; mkdir /work/d; chmod 0 /work/d"),
        shell("cat /etc/shadow || touch /usr/x || exit 7", ignore_error=True),
        shell("mkdir -p /work/e/f; touch /work/e/f/g; chmod 555 /work/e/f; chmod 0 /work/e"),
        executor("no-such", ignore_error=True),
        volumes=["/work"],
        outputs=[Output(path="/work/f", url=f"file://{bench.files}/nobody/f")],
        resources=Resources(ram_gb=1, cpu_cores=1),
    )
    attempt = bench.attempt(plan)
    (bench.files / "nobody").mkdir()
    for path in (attempt.path, attempt.plan, attempt.node, bench.files / "nobody"):
        os.chown(path, NOBODY, NOBODY)
    bench.path.chmod(0o755)

    def run() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        run_attempt(attempt)

    as_nobody(run)
    found = folded(attempt)
    assert ended(found).state is State.COMPLETE, lines(found)
    assert [log.exit_code for log in found.log.logs] == [0, 7, 0, 127]
    assert found.log.logs[0].stdout == f"{NOBODY}\n"
    assert "no control group for memory can be made here" in lines(found)
    assert lines(found).count("control group for memory") == 1
    assert (bench.files / "nobody/f").read_text() == "x\n"
    as_nobody(lambda: remove_tree(attempt.root))
    assert not attempt.root.exists()


@needs_root
def test_an_ordinary_user_is_told_when_memory_runs_out(bench: RunnerBench) -> None:
    """Without a control group it is an allocation error of the command, as the warning says."""
    plan = bench.plan(executor("tail", "/dev/zero"), resources=Resources(ram_gb=0.1))
    attempt = bench.attempt(plan)
    for path in (attempt.path, attempt.plan, attempt.node):
        os.chown(path, NOBODY, NOBODY)
    bench.path.chmod(0o755)
    as_nobody(lambda: run_attempt(attempt))
    assert ended(folded(attempt)).state is State.EXECUTOR_ERROR
    assert "memory exhausted" in (folded(attempt).log.logs[0].stderr or "")

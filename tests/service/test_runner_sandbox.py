"""What a task sees in a sandbox of this machine, and what it must not see or change."""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
import tarfile
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tesazure.model import Input, Output, Resources, State
from tesazure.runner.engines import cgroup, sandbox
from tesazure.runner.engines.sandbox_secrets import Secrets
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

# Imported while modules can be read: a process of user nobody may not find them.
_ = sandbox

pytestmark = pytest.mark.xdist_group("host-software")
"""They put private files into /opt, which the others would see for up to a second."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only as root is there a difference")
NOBODY = 65534


@pytest.fixture
def software() -> Iterator[Path]:
    """A directory of this machine's own software, which every sandbox shows."""
    with tempfile.TemporaryDirectory(prefix="tz-", dir="/opt") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def stdout(bench: RunnerBench, script: str, **fields: object) -> str:
    """What a script prints in a sandbox."""
    found = bench.run(shell(script), **fields)
    assert ended(found).state is State.COMPLETE, lines(found) + repr(found.log.logs)
    return found.log.logs[0].stdout or ""


def test_the_machine_cannot_be_changed(bench: RunnerBench) -> None:
    script = "for d in /usr /etc /bin /opt; do touch $d/tesazure-was-here && echo $d; done; true"
    assert stdout(bench, script) == ""


@needs_root
def test_secrets_that_come_and_go_stop_no_task(bench: RunnerBench, software: Path) -> None:
    over = threading.Event()

    def churn() -> None:
        secret = software / "a/b/secret"
        while not over.is_set():
            secret.parent.mkdir(parents=True, exist_ok=True)
            secret.touch(0o600)
            time.sleep(0.002)
            shutil.rmtree(software / "a")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(40):
            assert stdout(bench, "echo here") == "here\n"
    finally:
        over.set()
        thread.join()


def test_only_programs_and_configuration_are_seen(bench: RunnerBench) -> None:
    seen = set(stdout(bench, "ls /").split())
    assert {"usr", "etc", "tmp", "proc", "dev", "tes-wd"} <= seen
    assert not seen & {"home", "root", "var", "srv", "mnt", "media", "boot", "sys"}
    assert stdout(bench, "ls -A /tmp /run /home 2>/dev/null; true") == "/run:\n\n/tmp:\n"


@needs_root
def test_roots_secrets_are_covered(bench: RunnerBench) -> None:
    secrets = Secrets().paths()
    assert "/etc/shadow" in secrets
    for path, is_directory in secrets.items():
        command = f"ls -A {path}" if is_directory else f"cat {path} 2>/dev/null"
        assert stdout(bench, f"{command}; true") == "", path


@needs_root
def test_an_input_inside_a_secret_directory_uncovers_nothing(
    bench: RunnerBench, software: Path
) -> None:
    (software / "keys/more").mkdir(parents=True)
    (software / "keys").chmod(0o700)
    (software / "keys/a.key").write_text("secret")
    (software / "keys/more/b.key").write_text("secret")
    (software / "open").write_text("open")
    inputs = [Input(path=f"{software}/keys/more/mine", content="mine")]
    script = f"cd {software}; cat open keys/more/mine; find keys -type f; cat keys/*.key; true"
    expected = "openminekeys/more/mine\n"
    wait_for(lambda: stdout(bench, script, inputs=inputs) == expected)  # found within a second


@needs_root
def test_private_files_of_installed_software_are_covered(
    bench: RunnerBench, software: Path
) -> None:
    (software / "a/b").mkdir(parents=True)
    for name, owner, mode in (("own", 0, 0o600), ("group", 0, 0o640), ("other", NOBODY, 0o600)):
        path = software / "a/b" / name
        path.write_text("secret")
        os.chown(path, owner, owner)
        path.chmod(mode)
    (software / "a/b/open").write_text("open")
    wait_for(lambda: stdout(bench, f"cat {software}/a/b/*; true") == "open")
    mine = [Input(path=f"{software}/a/b/own", content="mine")]
    assert stdout(bench, f"cat {software}/a/b/*; true", inputs=mine) == "openmine"


@needs_root
def test_data_directories_are_hidden(software: Path) -> None:
    """Reached through a link, with a task's own files in it, and another server's."""
    (software / "data").mkdir()
    (software / "other").mkdir()
    (software / "other/file").write_text("secret")
    (software / "alias").symlink_to("data")
    node = {"hidden": (f"{software}/data", f"{software}/other")}
    with open_bench() as bench:
        bench.path, real = software / "alias", bench.path
        try:
            script = f"cat {software}/*/*; find {software} -type f; true"
            assert stdout(bench, script, node=node) == ""
            mine = [
                Input(path=f"{software}/{name}/mine", content="mine") for name in ("data", "other")
            ]
            script = f"cd {software}; cat alias/mine other/mine; find . -type f | sort"
            found = stdout(bench, script, node=node, inputs=mine)
            assert found == "minemine./data/mine\n./other/mine\n"
            # Its own attempt is hidden even from a runner that was told of nothing.
            script = f"find {software}/data/ -name plan.json"
            found = stdout(bench, script)
            assert f"{bench.made - 1}/plan.json" in found
            assert f"{bench.made}/plan.json" not in found
        finally:
            remove_tree(software / "data")
            bench.path = real


def test_what_is_hidden_is_hidden_at_each_of_its_paths(bench: RunnerBench) -> None:
    """/lib leads to /usr/lib; where the task has files in /lib, its entries are shown there."""
    if not Path("/lib").is_symlink():
        pytest.skip("/lib is a directory of its own here")
    assert any(Path("/usr/lib/dpkg").iterdir())
    node = {"hidden": ("/usr/lib/dpkg",)}
    outputs = [Output(path="/lib/z", url=f"file://{bench.files}/z")]
    script = "touch /lib/z; ls -A /usr/lib/dpkg /lib/dpkg 2>/dev/null; true"
    assert stdout(bench, script, outputs=outputs, node=node) in ("", "/usr/lib/dpkg:\n")
    assert stdout(bench, "ls -A /usr/lib/dpkg /lib/dpkg", node=node).split() == [
        "/lib/dpkg:",
        "/usr/lib/dpkg:",
    ]


@needs_root
def test_secrets_stay_covered_beside_the_tasks_own_files(bench: RunnerBench) -> None:
    inputs = [Input(path="/etc/mine", content="mine"), Input(path="/etc/ssl/x", content="x")]
    script = "cat /etc/mine /etc/ssl/x; cat /etc/shadow 2>/dev/null; ls -A /etc/ssl/private; true"
    assert stdout(bench, script, inputs=inputs) == "minex"


@needs_root
def test_root_has_few_powers(bench: RunnerBench) -> None:
    script = "grep -E 'Cap(Eff|Prm)|NoNewPrivs' /proc/self/status"
    # CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER: bits 0, 1, 3
    assert {line.split()[1] for line in stdout(bench, script).splitlines()} == {f"{0xB:016x}", "1"}
    assert stdout(bench, "mount -t tmpfs x /tmp 2>/dev/null || echo no") == "no\n"
    # None of these takes a cover away, or makes what is shown writable.
    script = """
        umount /etc/shadow; cat /etc/shadow; chmod 777 /etc/ssl/private; ls /etc/ssl/private
        chown 1:1 /etc/passwd; echo x >> /etc/passwd; touch /etc/ssl/private/x; mknod /tmp/d c 1 5
        echo 1 > /proc/sys/kernel/sysrq; echo x > /proc/sysrq-trigger
    """
    before = Path("/etc/passwd").stat()
    assert stdout(bench, f"({script}) 2>/dev/null; true") == ""
    assert Path("/etc/passwd").stat() == before
    assert not (bench.last.root / "tmp/d").exists()


@needs_root
def test_root_can_unpack_and_use_files_of_others(bench: RunnerBench) -> None:
    """As in docker: root unpacks with the archive's owners, and may work with what is theirs."""
    archive = bench.files / "in.tar"
    with tarfile.open(archive, "w") as tar:
        for name, kind, mode in (("d", tarfile.DIRTYPE, 0o700), ("d/f", tarfile.REGTYPE, 0o640)):
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.uid, member.gid = kind, mode, 1234, 5678
            member.size = 4 if member.isfile() else 0
            tar.addfile(member, io.BytesIO(b"text"))
    script = """
        tar xf /job/in.tar && stat -c '%n %u %g %a' d d/f
        cat d/f; echo more >> d/f; touch d/new; chown 42:43 d/new; chmod 600 d/new
        stat -c ' %u:%g %a' d/new; mkdir d/e; touch d/e/x; chown -R 99 d/e; rm -r d/e
    """
    inputs = [Input(path="/job/in.tar", url=f"file://{archive}")]
    outputs = [Output(path="/job/d/f", url=f"file://{bench.files}/f")]
    found = bench.run(
        shell(f"set -e; {script}", workdir="/job"),
        shell("cat /job/d/f; rm -r /job/d/new"),
        inputs=inputs,
        outputs=outputs,
    )
    assert ended(found).state is State.COMPLETE, lines(found) + repr(found.log.logs)
    assert found.log.logs[0].stdout == "d 1234 5678 700\nd/f 1234 5678 640\ntext 42:43 600\n"
    assert (bench.files / "f").read_text() == "textmore\n"
    remove_tree(bench.last.root)
    assert not bench.last.root.exists()


def test_other_processes_are_not_seen(bench: RunnerBench) -> None:
    assert int(stdout(bench, "ls /proc | grep -c '^[0-9]'")) < 8


def test_nothing_of_the_runner_is_open(bench: RunnerBench) -> None:
    assert stdout(bench, "ls /proc/self/fd").split() == ["0", "1", "2", "3"]  # 3: ls's own
    ignored = int(stdout(bench, "grep SigIgn /proc/self/status").split()[1], 16)
    of_the_c_library = 1 << 31 | 1 << 32  # 32 and 33: no program can set these
    assert not ignored & ~of_the_c_library


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


def test_shared_memory_can_hold_an_input(bench: RunnerBench) -> None:
    inputs = [Input(path="/dev/shm/in", content="1"), Input(path="/dev/shm/a/b/in", content="2")]
    script = "cat /dev/shm/in /dev/shm/a/b/in; echo 3 > /dev/shm/a/b/new; test -c /dev/null"
    found = bench.run(shell(script), shell("cat /dev/shm/a/b/new"), inputs=inputs)
    assert ended(found).state is State.COMPLETE, lines(found) + repr(found.log.logs)
    assert [log.stdout for log in found.log.logs] == ["12", "3\n"]
    deep = [Input(path="/dev/shm/a/b/in", content="x")]
    assert stdout(bench, "cat /dev/shm/a/b/in; echo > /dev/shm/y", inputs=deep) == "x"


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
        shell("id -u; echo x > /job/f; chmod 0 /job/f; mkdir /job/d; chmod 0 /job/d"),
        shell("cat /etc/shadow || touch /usr/x || exit 7", ignore_error=True),
        shell("mkdir -p /job/e/f; touch /job/e/f/g; chmod 555 /job/e/f; chmod 0 /job/e"),
        executor("no-such", ignore_error=True),
        volumes=["/job"],
        outputs=[Output(path="/job/f", url=f"file://{bench.files}/nobody/f")],
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
def test_an_ordinary_users_own_rights_are_not_the_tasks(bench: RunnerBench, software: Path) -> None:
    """What the server's user may read as the owner, or in a group, not everybody may."""
    for name, owner, mode in (("own", NOBODY, 0o600), ("group", 0, 0o640), ("open", 0, 0o644)):
        (software / name).write_text(f"{name} ")
        os.chown(software / name, owner, NOBODY)
        (software / name).chmod(mode)
    bench.path.chmod(0o755)

    def seen() -> str | None:
        attempt = bench.attempt(bench.plan(shell(f"cat {software}/*; true")))
        for path in (attempt.path, attempt.plan, attempt.node):
            os.chown(path, NOBODY, NOBODY)
        as_nobody(lambda: run_attempt(attempt))
        assert ended(folded(attempt)).state is State.COMPLETE, lines(folded(attempt))
        return folded(attempt).log.logs[0].stdout

    wait_for(lambda: seen() == "open ")


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

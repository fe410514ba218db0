"""What every engine promises: one suite, run on each of them with real containers.

The commands are those that both busybox and this machine have.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from tesazure.plan import Step
from tesazure.runner.engines.base import Container, Engine, Exit, Mount
from tesazure.runner.engines.choose import make_engine
from tesazure.runner.tree import remove_tree
from tests.contract.node import processes_with, wait_for

MB = 10**6

NASTY = [
    "two words",
    " ",
    "",
    "line\nbreak",
    "tab\there",
    "'single'",
    '"double"',
    "back\\slash",
    "$HOME `id` $(id)",
    "*",
    "~",
    "--flag",
    "-",
    "ünïcödé 日本語 🧬",
    "a=b",
    "{}",
    "%s",
    "!#&|;<>",
]


@dataclass
class Case:
    """An engine at hand, and an image with sh and the usual small programs."""

    name: str
    host: str
    image: str

    def make(self) -> Engine:
        return make_engine(self.name, self.host)


@pytest.fixture(
    scope="module",
    params=[
        "sandbox",
        pytest.param("docker", marks=pytest.mark.docker),
        pytest.param("podman", marks=pytest.mark.podman),
    ],
)
def case(request: pytest.FixtureRequest) -> Case:
    if request.param == "sandbox":
        return Case("sandbox", "", "not/used:1")
    service = request.getfixturevalue(f"{request.param}_engine")
    return Case(request.param, service.url, service.image("busybox"))


@dataclass
class Bench:
    """Runs steps on one engine, in one task's tree."""

    case: Case
    path: Path
    key: str = field(default_factory=lambda: secrets.token_hex(8))
    said: list[tuple[str, str]] = field(default_factory=list)
    starts: int = 0

    def __post_init__(self) -> None:
        self.engine = self.case.make()
        self.root = self.path / "root"
        for name in ("", "tmp", "job"):
            (self.root / name).mkdir()
            (self.root / name).chmod(0o777)
        self.stdout = self.path / "stdout"
        self.stderr = self.path / "stderr"
        self.reset()
        self.engine.prepare(self.case.image, lambda *said: self.said.append(said))

    def reset(self) -> None:
        self.stdout.write_bytes(b"")
        self.stderr.write_bytes(b"")

    def container(self, *command: str, **changes: object) -> Container:
        step = Step(self.case.image, list(command))
        for name in ("env", "workdir"):
            if name in changes:
                step = msgspec.structs.replace(step, **{name: changes.pop(name)})
        container = Container(
            key=self.key,
            index=0,
            step=step,
            root=self.root,
            shared=("/tmp", "/job"),
            mounts=(),
            stdin=None,
            stdout=self.stdout,
            stderr=self.stderr,
            cpu_cores=None,
            ram_bytes=None,
            network=False,
        )
        return msgspec.structs.replace(container, **changes)

    def run(self, *command: str, **changes: object) -> Exit:
        self.reset()
        self.starts = 0

        def started() -> None:
            self.starts += 1

        return self.engine.run(
            self.container(*command, **changes), started, lambda *said: self.said.append(said)
        )

    def output(self, *command: str, **changes: object) -> str:
        exit_ = self.run(*command, **changes)
        assert exit_ == Exit(0), self.stderr.read_text()
        return self.stdout.read_text()


@pytest.fixture
def bench(case: Case, short_dir: Path) -> Iterator[Bench]:
    path = short_dir / "attempt"
    path.mkdir()
    bench = Bench(case, path)
    yield bench
    bench.engine.sweep(bench.key, bench.root)
    remove_tree(path)


def test_argv_arrives_exactly(bench: Bench) -> None:
    script = 'printf "<%s>" "$@"'
    expected = "".join(f"<{word}>" for word in NASTY)
    assert bench.output("sh", "-c", script, "sh", *NASTY) == expected


def test_many_arguments_arrive(bench: Bench) -> None:
    words = [f"w{n} 'x'" for n in range(12_000)]
    script = 'echo $#; shift 11999; printf %s "$1"'
    assert bench.output("sh", "-c", script, "sh", *words) == "12000\nw11999 'x'"


@pytest.mark.parametrize("code", [0, 1, 3, 125, 126, 127, 255])
def test_exit_code_is_the_commands(bench: Bench, code: int) -> None:
    exit_ = bench.run("sh", "-c", f"exit {code}")
    assert (exit_.exit_code, exit_.out_of_memory) == (code, False)
    assert bench.starts == 1


def test_a_missing_command_is_127(bench: Bench) -> None:
    exit_ = bench.run("no-such-program", "x")
    assert exit_.exit_code == 127
    assert "no-such-program" in exit_.detail
    assert bench.starts == 1


def test_a_missing_path_is_127(bench: Bench) -> None:
    exit_ = bench.run("/job/no/such/program")
    assert exit_.exit_code == 127
    assert "/job/no/such/program" in exit_.detail


def test_a_file_that_is_not_executable_is_126(bench: Bench) -> None:
    (bench.root / "job/data").write_text("text")
    exit_ = bench.run("/job/data")
    assert exit_.exit_code == 126
    assert "/job/data" in exit_.detail
    assert bench.starts == 1


def test_a_script_of_the_task_runs(bench: Bench) -> None:
    script = bench.root / "job/script"
    script.write_text('#!/bin/sh\necho "$0 $1"\n')
    script.chmod(0o755)
    assert bench.output("/job/script", "a b") == "/job/script a b\n"


def test_environment_is_what_the_step_says(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESAZURE_SECRET_OF_THE_HOST", "x")
    wanted = {
        "EMPTY": "",
        "SPACES": " a  b ",
        "LINES": "1\n2=3",
        "UNI": "é🧬",
        "dotted.name-x": "y",
    }
    text = bench.output("sh", "-c", "cat /proc/self/environ", env=wanted)
    found = dict(entry.split("=", 1) for entry in text.split("\0") if entry)
    shown = bench.output("env", env=wanted)
    assert {name: found[name] for name in ("EMPTY", "SPACES", "LINES", "UNI")} == {
        name: wanted[name] for name in ("EMPTY", "SPACES", "LINES", "UNI")
    }
    assert "dotted.name-x=y" in shown
    assert "/bin" in found["PATH"]
    # What engines and shells add; nothing comes from the host.
    own = {"PATH", "HOME", "PWD", "HOSTNAME", "TERM", "container", "SHLVL", "OLDPWD", "_"}
    assert found.keys() - wanted.keys() <= own


def test_path_of_the_step_is_used(bench: Bench) -> None:
    tool = bench.root / "job/my-tool"
    tool.write_text("#!/bin/sh\necho mine\n")
    tool.chmod(0o755)
    assert bench.output("my-tool", env={"PATH": "/job:/bin:/usr/bin"}) == "mine\n"


def test_workdir(bench: Bench) -> None:
    (bench.root / "job/sub dir").mkdir()
    assert bench.output("pwd", workdir="/job/sub dir") == "/job/sub dir\n"


def test_a_workdir_that_is_not_there_is_made(bench: Bench) -> None:
    assert bench.output("sh", "-c", "pwd; touch x", workdir="/new/dir") == "/new/dir\n"


def test_stdin_is_the_file(bench: Bench) -> None:
    source = bench.root / "job/in"
    data = bytes(range(256)) * 1000
    source.write_bytes(data)
    assert bench.run("cat", stdin=source) == Exit(0)
    assert bench.stdout.read_bytes() == data


def test_without_stdin_there_is_nothing_to_read(bench: Bench) -> None:
    assert bench.output("cat") == ""


def test_stdout_and_stderr_are_kept_apart_and_appended(bench: Bench) -> None:
    command = ("sh", "-c", "printf out; printf err >&2")
    bench.run(*command)
    bench.engine.run(bench.container(*command), lambda: None, lambda *_: None)
    assert bench.stdout.read_bytes() == b"outout"
    assert bench.stderr.read_bytes() == b"errerr"


def test_large_binary_output_is_exact(bench: Bench) -> None:
    source = bench.root / "job/in"
    data = os.urandom(8 * MB)
    source.write_bytes(data)
    assert bench.run("cat", "/job/in") == Exit(0)
    assert bench.stdout.read_bytes() == data


def test_output_is_there_while_the_command_runs(bench: Bench) -> None:
    with running(bench, "sh", "-c", "echo begun; until [ -e /job/go ]; do sleep 0.05; done"):
        wait_for(lambda: bench.stdout.read_bytes() == b"begun\n")
        assert bench.starts == 1
        (bench.root / "job/go").touch()


def test_shared_directories_outlive_the_container(bench: Bench) -> None:
    (bench.root / "job/in").write_text("input")
    bench.output("sh", "-c", "cp /job/in /job/out; echo kept > /tmp/kept; mkdir /job/d")
    assert (bench.root / "job/out").read_text() == "input"
    assert (bench.root / "tmp/kept").read_text() == "kept\n"
    assert bench.output("cat", "/job/out", "/tmp/kept") == "inputkept\n"


def test_shared_directories_with_odd_names(bench: Bench) -> None:
    name = "dä ta:x,y=z"
    (bench.root / name / "sub").mkdir(parents=True)
    shared = ("/tmp", f"/{name}/sub")
    bench.output("sh", "-c", f"echo x > '/{name}/sub/f'", shared=shared)
    assert (bench.root / name / "sub/f").read_text() == "x\n"


def test_shared_directory_below_a_directory_of_the_image(bench: Bench) -> None:
    (bench.root / "etc/tool").mkdir(parents=True)
    (bench.root / "etc/tool/conf").write_text("mine")
    script = "cat /etc/tool/conf; echo out > /etc/tool/out; ls /etc/passwd /bin/sh"
    text = bench.output("sh", "-c", script, shared=("/tmp", "/etc/tool"))
    assert text.startswith("mine/")
    assert (bench.root / "etc/tool/out").read_text() == "out\n"


def test_mounts(bench: Bench) -> None:
    outside = bench.path / "outside"
    (outside / "rw").mkdir(parents=True)
    (outside / "ro").mkdir()
    (outside / "ro/file").write_text("content")
    (outside / "one").write_text("single")
    mounts = (
        Mount(outside / "rw", "/job/rw"),
        Mount(outside / "ro", "/opt/ro", read_only=True),
        Mount(outside / "one", "/data/one", read_only=True, is_directory=False),
    )
    script = "cat /opt/ro/file /data/one; echo x > /job/rw/x; ! touch /opt/ro/y 2>/dev/null"
    assert bench.output("sh", "-c", script, mounts=mounts) == "contentsingle"
    assert (outside / "rw/x").read_text() == "x\n"
    assert not (outside / "ro/y").exists()


def test_no_network(bench: Bench) -> None:
    text = bench.output("cat", "/proc/net/dev")
    assert {line.split(":")[0].strip() for line in text.splitlines()[2:]} <= {"lo"}


def test_network(bench: Bench) -> None:
    text = bench.output("cat", "/proc/net/dev", network=True)
    assert {line.split(":")[0].strip() for line in text.splitlines()[2:]} - {"lo"}


def test_exceeding_memory_is_named(bench: Bench) -> None:
    exit_ = bench.run("tail", "/dev/zero", ram_bytes=64 * MB)
    if any("no control group for memory" in message for _, message in bench.said):
        assert exit_.exit_code not in (0, 137)  # a sandbox of an ordinary user: allocation fails
    else:
        assert (exit_.exit_code, exit_.out_of_memory) == (137, True)
        assert bench.run("sh", "-c", "tail /dev/zero; exit 3", ram_bytes=64 * MB).out_of_memory


def test_a_command_that_copes_with_a_lost_child_succeeds(bench: Bench) -> None:
    script = "tail /dev/zero && exit 9; echo coped"
    assert bench.output("sh", "-c", script, ram_bytes=64 * MB) == "coped\n"


def test_memory_within_the_limit(bench: Bench) -> None:
    assert bench.run("true", ram_bytes=64 * MB, cpu_cores=0.5) == Exit(0)


def test_kill_ends_the_container_at_once(bench: Bench) -> None:
    marker = f"1000{secrets.randbelow(10**9)}"
    with running(bench, "sh", "-c", f"sleep {marker} & sleep {marker}") as exits:
        wait_for(lambda: len(processes_with(marker)) >= 2)
        bench.engine.kill()
        wait_for(lambda: bool(exits))
    assert exits[0].exit_code == 137
    assert not exits[0].out_of_memory
    assert processes_with(marker) == []
    bench.engine.kill()
    assert bench.output("echo", "again") == "again\n"


def test_daemons_end_with_the_command(bench: Bench) -> None:
    marker = f"1000{secrets.randbelow(10**9)}"
    script = f"(setsid sleep {marker} >/dev/null 2>&1 &); sleep 0.2; echo done"
    assert bench.output("sh", "-c", script) == "done\n"
    assert processes_with(marker) == []


def test_what_the_task_wrote_can_be_read_and_deleted(bench: Bench) -> None:
    script = "mkdir -p /job/a/b; echo x > /job/a/b/f; chmod 400 /job/a/b/f; chmod 0 /job/a/b"
    bench.output("sh", "-c", script)
    assert (bench.root / "job/a/b/f").read_text() == "x\n"
    remove_tree(bench.root)
    assert not bench.root.exists()


def test_an_archive_can_be_unpacked_and_used(bench: Bench) -> None:
    with tarfile.open(bench.root / "job/in.tar", "w") as tar:
        for name, kind in (("d", tarfile.DIRTYPE), ("d/f", tarfile.REGTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.uid, member.gid = kind, 0o755, 1234, 5678
            tar.addfile(member)
    script = "tar xf in.tar && echo x >> d/f && touch d/new && cat d/f"
    assert bench.output("sh", "-c", script, workdir="/job") == "x\n"
    assert bench.output("sh", "-c", "cat /job/d/f && rm /job/d/new") == "x\n"
    assert (bench.root / "job/d/f").read_text() == "x\n"
    remove_tree(bench.root)
    assert not bench.root.exists()


def test_nothing_but_the_tasks_files_is_left_in_the_tree(bench: Bench) -> None:
    (bench.root / "etc").mkdir()
    bench.output("touch", "/job/f")
    left = {str(path.relative_to(bench.root)) for path in bench.root.rglob("*")}
    assert left == {"tmp", "job", "job/f", "etc"}


def test_sweep_ends_what_a_dead_runner_left(bench: Bench) -> None:
    marker = f"1000{secrets.randbelow(10**9)}"
    container = bench.container("sh", "-c", f"echo x > /job/f; sleep {marker}", ram_bytes=64 * MB)
    runner = subprocess.Popen(
        [sys.executable, "-m", "tests.contract.node", bench.case.name, bench.case.host],
        stdin=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert runner.stdin is not None
    runner.stdin.write(msgspec.json.encode(container, enc_hook=str))
    runner.stdin.close()
    try:
        wait_for(lambda: bool(processes_with(marker)))
    finally:
        runner.kill()
        runner.wait()
    bench.engine.sweep(bench.key, bench.root)
    assert processes_with(marker) == []
    assert (bench.root / "job/f").read_text() == "x\n"
    bench.engine.sweep(bench.key, bench.root)
    bench.engine.sweep(bench.key, None)


class running:  # noqa: N801 - reads as a statement
    """Runs a step in a thread for as long as the body lasts; its Exit, once it has ended."""

    def __init__(self, bench: Bench, *command: str) -> None:
        self._bench = bench
        self._exits: list[Exit] = []
        self._thread = threading.Thread(target=lambda: self._exits.append(bench.run(*command)))

    def __enter__(self) -> list[Exit]:
        self._thread.start()
        wait_for(lambda: self._bench.starts > 0)
        return self._exits

    def __exit__(self, *error: object) -> None:
        if any(error):
            self._bench.engine.kill()
        self._thread.join(30)
        assert not self._thread.is_alive()


def test_kill_without_a_container_does_nothing(bench: Bench) -> None:
    bench.engine.kill()
    assert bench.output("echo", "well") == "well\n"

"""The Docker engine on a real dockerd, beyond what every engine promises (tests/contract)."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import msgspec
import pytest

from tesazure.errors import EngineError
from tesazure.runner.engines.base import Exit, Mount
from tesazure.runner.engines.docker import DockerEngine
from tesazure.runner.tree import remove_tree
from tests.conftest import refuse
from tests.service.engine_case import Attempt, attempt_on, image_with, in_background, wait_for
from tests.services import docker_engine as service

pytestmark = pytest.mark.docker

SHARED = ("/tes-wd", "/tmp")
NOBODY = 54321


@pytest.fixture
def attempt(
    docker_engine: service.DockerEngine, busybox_image: str, short_dir: Path
) -> Iterator[Attempt]:
    yield from attempt_on(DockerEngine(docker_engine.url), busybox_image, short_dir)


def test_the_images_entrypoint_is_overridden(
    docker_engine: service.DockerEngine, attempt: Attempt
) -> None:
    assert attempt.sh("echo x", image=docker_engine.image("entrypoint")) == "x\n"


def test_the_images_user_workdir_and_environment_hold(
    docker_engine: service.DockerEngine, attempt: Attempt
) -> None:
    image = docker_engine.image("configured")
    script = 'id -u; pwd; echo "$FROM_IMAGE"; echo x > /tes-wd/out; echo y > /tmp/t'
    assert attempt.sh(script, image=image) == "1000\n/srv\nyes\n"
    assert (attempt.root / "tes-wd/out").read_text() == "x\n"
    # The next executor, as the same user or another, goes on with the file.
    attempt.sh("echo more >> /tes-wd/out", image=image)
    attempt.sh("echo root >> /tes-wd/out")
    assert (attempt.root / "tes-wd/out").read_text() == "x\nmore\nroot\n"


def test_volumes_of_the_image_leave_nothing(attempt: Attempt) -> None:
    changes = ("VOLUME /vol", "VOLUME /tes-wd/data")
    script = "cat /vol/from-image; echo x > /vol/new; echo kept > /tes-wd/data/f"
    script += "; until [ -e /tes-wd/go ]; do sleep 0.02; done"
    with image_with(attempt.url, {"vol/from-image": "v"}, changes) as image:
        with in_background(lambda: attempt.sh(script, image=image)) as printed:
            wait_for((attempt.root / "tes-wd/data/f").exists)
            made = attempt.mounted()
            (attempt.root / "tes-wd/go").touch()
        assert printed == ["v"]
        assert made
        assert not made & attempt.volumes()
    # A VOLUME in a shared directory does not swallow what is written there.
    assert (attempt.root / "tes-wd/data/f").read_text() == "kept\n"


def test_containers_have_no_privileges_to_gain(attempt: Attempt) -> None:
    text = attempt.sh("cat /proc/self/status /proc/self/mountinfo")
    assert "NoNewPrivs:\t1" in text
    assert "docker.sock" not in text


def test_a_large_output_takes_little_memory(attempt: Attempt) -> None:
    attempt.run("true")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    exit_ = attempt.run("sh", "-c", "yes 0123456789 | head -c 104857600; echo end >&2")
    assert exit_ == Exit(0)
    assert attempt.stdout.stat().st_size == 104857600
    assert attempt.err == "end\n"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 32 * 1024  # KiB


def test_a_command_may_leave_its_stdin_unread(attempt: Attempt, short_dir: Path) -> None:
    source = short_dir / "in"
    with source.open("wb") as file:
        file.truncate(64 * 2**20)
    assert attempt.run("head", "-c", "3", stdin=source) == Exit(0)
    assert attempt.stdout.read_bytes() == bytes(3)
    assert attempt.run("false", stdin=source) == Exit(1)
    assert attempt.run("wc", "-c", stdin=source) == Exit(0)
    assert attempt.out == f"{64 * 2**20}\n"


def test_a_command_may_close_its_streams_early(attempt: Attempt) -> None:
    assert attempt.run("sh", "-c", "echo x; exec >&- 2>&-; sleep 3; exit 7") == Exit(7)
    assert attempt.out == "x\n"


def test_a_script_without_its_interpreter_and_a_foreign_file(attempt: Attempt) -> None:
    for name, content in (("script", "#!/no/such/interpreter\n"), ("foreign", "no program")):
        (attempt.root / "tes-wd" / name).write_text(content)
        (attempt.root / "tes-wd" / name).chmod(0o755)
    assert attempt.run("/tes-wd/script").exit_code == 127
    exit_ = attempt.run("/tes-wd/foreign")
    assert (exit_.exit_code, "exec format error" in exit_.detail) == (126, True)


def test_a_workdir_that_is_a_file_is_126(attempt: Attempt) -> None:
    exit_ = attempt.run("pwd", workdir="/etc/passwd")
    assert exit_.exit_code == 126
    assert "/etc/passwd" in exit_.detail
    assert attempt.left() == []


def test_an_empty_word_is_no_command(attempt: Attempt) -> None:
    assert attempt.run("").exit_code == 127


def test_a_container_of_the_same_name_is_a_loud_conflict(attempt: Attempt) -> None:
    with in_background(lambda: attempt.run("sleep", "600", index=7)) as results:
        wait_for(attempt.left)
        other = DockerEngine(attempt.url)
        with pytest.raises(EngineError, match="in use"):
            other.run(attempt.container("true", index=7), lambda: None, attempt.say)
        assert len(attempt.left()) == 1
        attempt.engine.kill()
    assert results == [Exit(137)]


def test_a_killed_child_is_named_as_out_of_memory(attempt: Attempt) -> None:
    script = "tail /dev/zero; exit 3"
    assert attempt.run("sh", "-c", script, ram_bytes=32 * 2**20) == Exit(3, out_of_memory=True)
    assert attempt.run("sh", "-c", "exit 137", ram_bytes=32 * 2**20) == Exit(137)


def test_kill_at_random_moments_leaves_nothing(attempt: Attempt) -> None:
    moments = random.Random(20)
    # A command that were only asked to end, and killed later, would end with 3.
    command = ("sh", "-c", "trap 'exit 3' TERM; sleep 600 & wait")
    for _ in range(20):
        with in_background(lambda: attempt.run(*command, shared=(*SHARED, "/etc"))) as done:
            wait = moments.uniform(0, 0.6)
            until = time.monotonic() + wait
            wait_for(lambda until=until: time.monotonic() > until)  # type: ignore[misc]
            attempt.engine.kill()
            if wait < 0.02:  # perhaps before there was anything to kill: as the pipeline, again
                wait_for(lambda: attempt.left() or done)
                attempt.engine.kill()
            wait_for(lambda: done)
        assert [getattr(result, "exit_code", result) for result in done] == [137]
        assert attempt.left() == []


def test_kill_from_a_signal_handler(attempt: Attempt) -> None:
    signal.signal(signal.SIGALRM, lambda *_: attempt.engine.kill())
    try:
        exit_ = attempt.run(
            "sleep", "600", started=lambda: signal.setitimer(signal.ITIMER_REAL, 0.2) and None
        )
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert exit_ == Exit(137)


def test_an_ordinary_user_owns_what_containers_left(attempt: Attempt) -> None:
    if os.geteuid() != 0:
        refuse("becoming another user needs root")
    attempt.sh("true")  # loads all modules: the child may not read them
    for path in [attempt.path, *attempt.path.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)
    mount = attempt.path / "global"
    mount.mkdir()
    os.chown(mount, NOBODY, NOBODY)
    group = Path(attempt.url.removeprefix("unix://")).stat().st_gid

    def as_nobody() -> None:
        engine = attempt.engine = DockerEngine(attempt.url)
        mounts = (Mount(mount, "/tes-wd/shared-global"),)
        script = """
            umask 077; mkdir -p /tes-wd/a/b; echo x > /tes-wd/a/b/f; ln -s /etc/passwd /tes-wd/l
            chmod 0 /tes-wd/a/b; cp /bin/busybox /tes-wd/suid; chmod 4755 /tes-wd/suid
            chown 1234 /tes-wd/a; echo x > /tmp/x; echo x > /etc/new
        """
        attempt.sh(script, mounts=mounts, shared=(*SHARED, "/etc"))
        owners = {path.lstat().st_uid for path in attempt.root.rglob("*")}
        assert owners == {NOBODY}, owners
        assert (attempt.root / "tes-wd/a/b/f").read_text() == "x\n"
        assert not (attempt.root / "tes-wd/suid").stat().st_mode & stat.S_ISUID
        assert attempt.sh("cat /tes-wd/a/b/f /etc/new", shared=(*SHARED, "/etc")) == "x\nx\n"
        attempt.run("true")
        engine.sweep(attempt.key, attempt.root)
        remove_tree(attempt.root)

    attempt.directory("/etc")
    os.chown(attempt.root / "etc", NOBODY, NOBODY)
    assert in_child(as_nobody, NOBODY, group) == ""
    assert not attempt.root.exists()
    assert Path("/etc/passwd").stat().st_uid == 0
    attempt.root.mkdir()


def in_child(call: Callable[[], None], user: int, group: int) -> str:
    """Make the call in a forked process as that user; what went wrong, or nothing."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        problem = ""
        try:
            os.setgroups([group])
            os.setgid(user)
            os.setuid(user)
            call()
        except BaseException as error:
            problem = f"{type(error).__name__}: {error}"
        os.write(writer, problem.encode()[:4000])
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:  # noqa: PTH123 - a descriptor
        problem = file.read().decode()
    os.waitpid(child, 0)
    return problem


def test_sweep_removes_containers_in_every_state(attempt: Attempt) -> None:
    labels = {"tesazure.attempt": attempt.key}
    with contextlib.closing(docker.APIClient(attempt.url)) as client:
        made = [client.create_container(attempt.image, "sleep 600", labels=labels) for _ in "abc"]
        other = client.create_container(attempt.image, "true", labels={"tesazure.attempt": "other"})
        client.start(made[0])
        client.start(made[1])
        client.pause(made[1])
        try:
            attempt.engine.sweep(attempt.key, attempt.root)
            attempt.engine.sweep(attempt.key, None)
            assert attempt.left() == []
            client.inspect_container(other)
        finally:
            client.remove_container(other)


def test_the_runner_of_a_dead_process_is_swept(attempt: Attempt) -> None:
    container = attempt.container("sleep", "600")
    runner = subprocess.Popen(
        [sys.executable, "-m", "tests.contract.node", "docker", attempt.url],
        stdin=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert runner.stdin is not None
    runner.stdin.write(msgspec.json.encode(container, enc_hook=str))
    runner.stdin.close()
    wait_for(attempt.left)
    runner.kill()
    runner.wait()
    attempt.engine.sweep(attempt.key, attempt.root)
    assert attempt.left() == []

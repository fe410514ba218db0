"""The runner when something of the node fails: what its report says, and what it does not."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tesazure.errors import EngineUnavailable
from tesazure.model import Input, State
from tests.service.runner_bench import (
    RunnerBench,
    ended,
    events,
    executor,
    folded,
    lines,
    shell,
    wait_for_exit,
)

MB = 10**6


def test_a_vanished_engine_may_be_tried_again(bench: RunnerBench) -> None:
    node = {"engine": "docker", "engine_host": f"unix://{bench.path}/no-engine.sock"}
    found = bench.run(executor("true"), node=node)
    assert ended(found).state is State.SYSTEM_ERROR
    assert ended(found).retryable
    assert EngineUnavailable.__name__ not in ended(found).reason


def test_storage_that_fails_may_be_tried_again(bench: RunnerBench) -> None:
    with socket.socket() as nobody:  # bound, but it does not listen
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/x"
        found = bench.run(executor("true"), inputs=[Input(path="/in/x", url=url)])
    assert ended(found).state is State.SYSTEM_ERROR
    assert ended(found).retryable
    missing = Input(path="/in/x", url=f"file://{bench.files}/no-such")
    assert not ended(bench.run(executor("true"), inputs=[missing])).retryable


def test_failures_do_not_name_the_servers_own_paths(bench: RunnerBench) -> None:
    found = bench.run(
        executor("true"),
        inputs=[Input(path="/in", content="x"), Input(path="/out/deep", content="x")],
        volumes=["/in/dir"],
    )
    assert ended(found).state is State.SYSTEM_ERROR
    assert "/in" in ended(found).reason
    attempt = bench.attempt(bench.plan(executor("true"), volumes=["/vol"]))
    (attempt.root).mkdir()
    (attempt.root / "vol").touch()
    wait_for_exit(bench.begin(attempt))
    assert ended(folded(attempt)).reason == "Not a directory: /vol"
    attempt = bench.attempt(bench.plan(executor("true")))
    attempt.plan.unlink()
    wait_for_exit(bench.begin(attempt))
    assert ended(folded(attempt)).reason == "No such file or directory"
    for told in (found, folded(attempt)):
        assert str(bench.path) not in lines(told)


def test_an_unexpected_failure_is_reported_without_a_traceback(bench: RunnerBench) -> None:
    attempt = bench.attempt(bench.plan(executor("true")))
    attempt.plan.write_bytes(b'{"task_id": 1}')
    wait_for_exit(bench.begin(attempt))
    found = folded(attempt)
    assert ended(found).state is State.SYSTEM_ERROR
    assert "ValidationError" in ended(found).reason
    assert "Traceback" not in attempt.report.read_text()
    assert "Traceback" in attempt.output.read_text()


@pytest.fixture
def small_disk(bench: RunnerBench) -> Iterator[RunnerBench]:
    """The attempts on a disk of 2 MB. Only root can mount one."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    small = RunnerBench(bench.path / "small", bench.spawner, bench.files)
    small.path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small.path], check=True)
    try:
        yield small
    finally:
        subprocess.run(["umount", "--lazy", small.path], check=True)
        small.path.rmdir()


def test_a_full_disk_at_stage_in_is_named(small_disk: RunnerBench) -> None:
    (small_disk.files / "large").write_bytes(b"x" * 3 * MB)
    large = Input(path="/in", url=f"file://{small_disk.files}/large")
    found = small_disk.run(executor("true"), inputs=[large])
    assert ended(found).state is State.SYSTEM_ERROR
    assert any(text in ended(found).reason.lower() for text in ("no space left", "disk is full"))
    assert not ended(found).retryable
    assert str(small_disk.path) not in lines(found)


def test_a_full_disk_does_not_lose_the_end(small_disk: RunnerBench) -> None:
    script = "echo before; cat /dev/zero > /tmp/fill; echo after; exit 5"
    found = small_disk.run(shell(script))
    assert ended(found).state is State.EXECUTOR_ERROR
    assert found.log.logs[0].exit_code == 5


def test_each_event_is_notified(bench: RunnerBench) -> None:
    path = bench.path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(10)
        bench.run(executor("true"), node={"notify": str(path)})
        # The one before the node's configuration is read is not.
        for _ in events(bench.last)[1:]:
            assert listener.recv(16) == b""
    found = bench.run(executor("true"), node={"notify": str(path)})  # nobody listens any more
    assert ended(found).state is State.COMPLETE

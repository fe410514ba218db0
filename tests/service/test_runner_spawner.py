"""The spawner's protocol, and what the runners that it forks are like."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tesazure.model import State
from tests.contract.node import processes_with, wait_for
from tests.service.runner_bench import (
    RunnerBench,
    SpawnerProcess,
    descriptors,
    ended,
    executor,
    folded,
    open_bench,
    shell,
    wait_for_exit,
)


@pytest.fixture
def bench() -> Iterator[RunnerBench]:
    with open_bench() as bench:
        yield bench


def test_the_reply_comes_when_the_attempt_has_begun(bench: RunnerBench) -> None:
    assert bench.spawner.ready == {"ready": bench.spawner.process.pid}
    attempt = bench.attempt(bench.plan(executor("true")))
    reply = bench.spawner.ask(attempt.path)
    assert folded(attempt).started
    assert reply == {"directory": str(attempt.path), "pid": reply["pid"]}
    wait_for_exit(reply["pid"])
    assert ended(folded(attempt)).state is State.COMPLETE


def test_requests_that_cannot_be_met_are_answered(bench: RunnerBench) -> None:
    assert "No such file" in bench.spawner.ask(bench.path / "none")["error"]
    assert "absolute" in bench.spawner.ask("relative")["error"]
    assert bench.spawner.process.stdin is not None
    bench.spawner.process.stdin.write(b'{"dir": 1}\nnonsense\n')
    bench.spawner.process.stdin.flush()
    assert "not a request" in bench.spawner.read()["error"]
    assert "not a request" in bench.spawner.read()["error"]
    attempt = bench.attempt(bench.plan(executor("true")))
    wait_for_exit(bench.begin(attempt))


def test_an_attempt_that_is_fenced_off_does_not_begin(bench: RunnerBench) -> None:
    attempt = bench.attempt(bench.plan(executor("true")))
    attempt.report.touch()
    assert bench.spawner.ask(attempt.path)["begun"] == "ran"
    assert attempt.report.read_bytes() == b""


def test_requests_sent_together_are_answered_in_order(bench: RunnerBench) -> None:
    attempts = [bench.attempt(bench.plan(executor("true"))) for _ in range(10)]
    assert bench.spawner.process.stdin is not None
    for attempt in attempts:
        line = json.dumps({"directory": str(attempt.path)}).encode()
        bench.spawner.process.stdin.write(line + b"\n")
    bench.spawner.process.stdin.flush()
    replies = [bench.spawner.read() for _ in attempts]
    assert [reply["directory"] for reply in replies] == [str(a.path) for a in attempts]
    for reply in replies:
        wait_for_exit(reply["pid"])
    assert {ended(folded(attempt)).state for attempt in attempts} == {State.COMPLETE}


def test_runners_outlive_the_spawner_and_the_terminal(bench: RunnerBench) -> None:
    spawner = SpawnerProcess()
    attempt = bench.attempt(bench.plan(shell("until [ -e /tmp/go ]; do sleep 0.02; done")))
    pid = spawner.ask(attempt.path)["pid"]
    bench.pids.append(pid)
    wait_for(lambda: folded(attempt).executor_started)
    assert os.getsid(pid) == pid
    assert os.getsid(spawner.process.pid) == spawner.process.pid
    os.kill(spawner.process.pid, signal.SIGINT)
    os.kill(spawner.process.pid, signal.SIGHUP)
    assert "error" in spawner.ask("relative")
    assert spawner.close() == 0
    (attempt.root / "tmp/go").touch()
    wait_for_exit(pid)
    assert ended(folded(attempt)).state is State.COMPLETE


def test_a_killed_spawner_leaves_its_runners_alone(bench: RunnerBench) -> None:
    spawner = SpawnerProcess("--preload", "sandbox")
    attempt = bench.attempt(bench.plan(shell("until [ -e /tmp/go ]; do sleep 0.02; done")))
    pid = spawner.ask(attempt.path)["pid"]
    bench.pids.append(pid)
    spawner.process.kill()
    spawner.process.wait()
    wait_for(lambda: folded(attempt).executor_started)
    (attempt.root / "tmp/go").touch()
    wait_for_exit(pid)
    assert ended(folded(attempt)).state is State.COMPLETE


def test_a_runner_has_nothing_of_its_parents(bench: RunnerBench, marker: str) -> None:
    attempt = bench.attempt(bench.plan(executor("sleep", marker)))
    pid = bench.begin(attempt)
    wait_for(lambda: bool(processes_with(marker)))
    pipes = {os.readlink(f"/proc/{bench.spawner.process.pid}/fd/{n}") for n in (0, 1)}  # noqa: PTH115
    assert not pipes & set(descriptors(pid))
    names = {number: os.readlink(f"/proc/{pid}/fd/{number}") for number in (0, 1, 2)}  # noqa: PTH115
    assert names == {0: os.devnull, 1: os.devnull, 2: str(attempt.output)}
    status = Path(f"/proc/{pid}/status").read_text()
    ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGTERM):
        assert not ignored >> (number - 1) & 1
    os.kill(pid, signal.SIGTERM)
    wait_for_exit(pid)


def test_dead_runners_are_reaped(bench: RunnerBench) -> None:
    for _ in range(3):
        wait_for_exit(bench.begin(bench.attempt(bench.plan(executor("true")))))
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in bench.pids))


@pytest.mark.serial
def test_overhead_of_a_task(bench: RunnerBench) -> None:
    """Request to end for `true`, beside the same program in a bare sandbox. The goal for all of a
    task's overhead, the server's included, is 150 ms."""
    bare, begun, done = [], [], []
    view = ["--ro-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "--dev", "/dev"]
    deadline = time.monotonic() + 60

    def is_quick() -> bool:
        """The quickest counts: the machine may have other things to do."""
        return min(done) < min(bare) + 0.1

    while len(done) < 20 or (not is_quick() and time.monotonic() < deadline):
        start = time.monotonic()
        subprocess.run(["bwrap", *view, "--", "true"], check=True)
        bare.append(time.monotonic() - start)
        attempt = bench.attempt(bench.plan(executor("true")))
        start = time.monotonic()
        pid = bench.begin(attempt)
        begun.append(time.monotonic() - start)
        wait_for_exit(pid)
        done.append(time.monotonic() - start)
    medians = [f"{statistics.median(times) * 1000:.1f} ms" for times in (bare, begun, done)]
    print("bare sandbox {}, begun after {}, ended after {}".format(*medians))
    assert is_quick()

"""Runners that are cancelled or killed, at any moment: what is left, and what the report says."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tesazure.model import Input, Output, State
from tesazure.report import Ended
from tesazure.runner.engines.choose import make_engine
from tests.contract.node import processes_with, wait_for
from tests.service.runner_bench import (
    RunnerBench,
    descriptors,
    ended,
    events,
    executor,
    folded,
    lines,
    shell,
    wait_for_exit,
)


def test_cancel_kills_the_container_and_says_canceled(bench: RunnerBench, marker: str) -> None:
    script = f"echo begun; (setsid sleep {marker} &); sleep {marker}"
    attempt = bench.attempt(bench.plan(shell(script), executor("true")))
    pid = bench.begin(attempt)
    wait_for(lambda: len(processes_with(marker)) == 2)
    os.kill(pid, signal.SIGTERM)
    wait_for_exit(pid)  # long before the command would end by itself
    found = folded(attempt)
    assert ended(found).state is State.CANCELED
    assert "INFO canceled" in lines(found)
    assert [(log.exit_code, log.stdout) for log in found.log.logs] == [(137, "begun\n")]
    assert processes_with(marker) == []


def test_cancel_at_any_moment(bench: RunnerBench, marker: str) -> None:
    """Through all of the pipeline: the first moments, stage in, two executors, stage out."""
    (bench.files / "source").write_bytes(b"x" * 20_000_000)
    plan = bench.plan(
        shell(f"cp /in/source /out/copy; sleep {marker} & sleep 0.05"),
        shell("sleep 0.05"),
        inputs=[Input(path="/in/source", url=f"file://{bench.files}/source")],
        outputs=[Output(path="/out/copy", url=f"file://{bench.files}/copy")],
    )
    began = time.monotonic()
    wait_for_exit(bench.begin(bench.attempt(plan)))
    whole = time.monotonic() - began
    chance = random.Random(7)
    states = set()
    for _ in range(25):
        attempt = bench.attempt(plan)
        pid = bench.begin(attempt)
        delay = chance.uniform(0, whole)
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGTERM)
        wait_for_exit(pid)
        last = events(attempt)[-1]
        assert isinstance(last, Ended), (delay, attempt.output.read_text())
        states.add(last.state)
        assert processes_with(marker) == [], delay
    assert states <= {State.CANCELED, State.COMPLETE}
    assert State.CANCELED in states
    left = {path.name for path in bench.files.iterdir()}
    assert left <= {"source", "copy"}  # no half of an output


@pytest.fixture
def silent_server() -> Iterator[str]:
    """URL of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/never"


def test_cancel_during_a_download_that_hangs(bench: RunnerBench, silent_server: str) -> None:
    plan = bench.plan(executor("true"), inputs=[Input(path="/in", url=silent_server)])
    attempt = bench.attempt(plan)
    pid = bench.begin(attempt)
    # The download has begun once the runner has a connection.
    wait_for(lambda: any("socket:" in name for name in descriptors(pid)))
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGTERM)
    wait_for_exit(pid)
    assert ended(folded(attempt)).state is State.CANCELED


def test_a_killed_runner_takes_its_sandbox_with_it(bench: RunnerBench, marker: str) -> None:
    script = f"(setsid sleep {marker} &); sleep {marker}"
    attempt = bench.attempt(bench.plan(shell(script)))
    pid = bench.begin(attempt)
    wait_for(lambda: len(processes_with(marker)) == 2)
    os.kill(pid, signal.SIGKILL)
    wait_for_exit(pid)
    wait_for(lambda: processes_with(marker) == [])
    make_engine("sandbox", "").sweep(attempt.path.name, attempt.root)
    assert folded(attempt).ended is None
    assert bench.spawner.ask(attempt.path)["begun"] == "ran"


def test_a_killed_runner_at_any_moment(bench: RunnerBench, marker: str) -> None:
    plan = bench.plan(shell(f"sleep {marker} & sleep 0.02"), shell(f"sleep {marker} & :"))
    chance = random.Random(11)
    for _ in range(15):
        attempt = bench.attempt(plan)
        pid = bench.begin(attempt)
        delay = chance.uniform(0, 0.1)
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_for_exit(pid)
        make_engine("sandbox", "").sweep(attempt.path.name, attempt.root)
        wait_for(lambda: processes_with(marker) == [])


def test_a_second_runner_does_nothing(bench: RunnerBench) -> None:
    script = "echo x >> /tmp/count; until [ -e /tmp/go ]; do sleep 0.02; done"
    attempt = bench.attempt(bench.plan(shell(script)))
    pid = bench.begin(attempt)
    wait_for(lambda: folded(attempt).executor_started)
    assert bench.spawner.ask(attempt.path) == {"directory": str(attempt.path), "begun": "running"}
    command = [sys.executable, "-m", "tesazure.runner", str(attempt.path)]
    subprocess.run(command, check=True, timeout=30)
    (attempt.root / "tmp/go").touch()
    wait_for_exit(pid)
    report = attempt.report.read_bytes()
    assert bench.spawner.ask(attempt.path) == {"directory": str(attempt.path), "begun": "ran"}
    subprocess.run(command, check=True, timeout=30)
    assert attempt.report.read_bytes() == report
    assert (attempt.root / "tmp/count").read_text() == "x\n"


def test_many_runners_for_one_attempt_run_it_once(bench: RunnerBench) -> None:
    attempt = bench.attempt(bench.plan(shell("echo x >> /tmp/count")))
    command = [sys.executable, "-m", "tesazure.runner", str(attempt.path)]
    runners = [subprocess.Popen(command) for _ in range(6)]
    assert [runner.wait(60) for runner in runners] == [0] * 6
    assert (attempt.root / "tmp/count").read_text() == "x\n"
    assert [type(event) for event in events(attempt)].count(Ended) == 1

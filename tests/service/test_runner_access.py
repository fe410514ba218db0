"""Runners and their secrets: handed over in memory, and kept out of all that is written."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from tesazure.access import Access
from tesazure.model import FileType, Input, Output, State
from tesazure.runner.config import AttemptDir
from tests.service.runner_bench import RunnerBench, ended, folded, lines, shell, wait_for_exit
from tests.service.server import contents
from tests.services.faulty_http import FaultyHttp, Handler
from tests.services.locked_http import LockedHttp

SECRET = "Pl4nted-signature"
HIDDEN = "http://{}/{}?sig=***"


def plan_of(bench: RunnerBench, host: str) -> AttemptDir:
    plan = bench.plan(
        shell("cat /in/x /in/x > /out/y"),
        inputs=[Input(path="/in/x", url=HIDDEN.format(host, "x"), type=FileType.FILE)],
        outputs=[Output(path="/out/y", url=HIDDEN.format(host, "y"), type=FileType.FILE)],
    )
    return bench.attempt(plan)


def access_to(host: str, secret: str = SECRET) -> bytes:
    whole = {name: f"http://{host}/{name}?sig={secret}" for name in "xy"}
    return msgspec.json.encode(Access(inputs={0: whole["x"]}, outputs={0: whole["y"]}))


@pytest.fixture
def locked() -> object:
    with LockedHttp() as server:
        server.objects["/x"] = b"content"
        server.signatures |= {"/x": SECRET, "/y": SECRET}
        yield server


def holds_none(attempt: AttemptDir) -> bool:
    files = dict(contents(attempt.path))
    return bool(files) and not any(b"Pl4nted" in content for content in files.values())


def test_a_runner_by_hand_reads_them_from_its_input(bench: RunnerBench, locked: LockedHttp) -> None:
    attempt = plan_of(bench, locked.host)
    command = [sys.executable, "-m", "tesazure.runner", "--access", str(attempt.path)]
    subprocess.run(command, input=access_to(locked.host), check=True, timeout=60)
    assert ended(folded(attempt)).state is State.COMPLETE
    assert locked.objects["/y"] == b"contentcontent"
    assert holds_none(attempt)


def test_a_spawned_runner_gets_them_with_the_request(
    bench: RunnerBench, locked: LockedHttp
) -> None:
    attempt = plan_of(bench, locked.host)
    reply = bench.spawner.ask(attempt.path, access=msgspec.json.decode(access_to(locked.host)))
    wait_for_exit(reply["pid"])
    assert ended(folded(attempt)).state is State.COMPLETE
    assert locked.objects["/y"] == b"contentcontent"
    assert holds_none(attempt)


def test_without_them_the_refusal_is_told(bench: RunnerBench, locked: LockedHttp) -> None:
    attempt = plan_of(bench, locked.host)
    wait_for_exit(bench.begin(attempt))
    end = ended(folded(attempt))
    assert end.state is State.SYSTEM_ERROR
    assert f"inputs[0] (/in/x): GET http://{locked.host}/x: HTTP 403" in end.reason


def test_a_server_that_quotes_them_is_censored(bench: RunnerBench, locked: LockedHttp) -> None:
    """The stand-in's reason phrase holds the request with its signature."""
    attempt = plan_of(bench, locked.host)
    wrong = access_to(locked.host, secret="Pl4nted-but-wrong")
    reply = bench.spawner.ask(attempt.path, access=msgspec.json.decode(wrong))
    wait_for_exit(reply["pid"])
    end = ended(folded(attempt))
    assert end.state is State.SYSTEM_ERROR
    assert "HTTP 403" in end.reason
    assert "Traceback" in attempt.output.read_text()
    assert holds_none(attempt)


def test_what_is_no_access_is_refused(bench: RunnerBench) -> None:
    attempt = bench.attempt(bench.plan(shell("true")))
    command = [sys.executable, "-m", "tesazure.runner", "--access", str(attempt.path)]
    said = subprocess.run(
        command, input=b'{"inputs":"Pl4nted"}', check=False, timeout=60, capture_output=True
    )
    assert said.returncode == 1
    assert b"standard input is no Access" in said.stderr
    assert b"Pl4nted" not in said.stderr
    assert not attempt.report.exists()


def test_what_an_input_waits_for_is_in_the_logs(bench: RunnerBench) -> None:
    refused: list[str] = []

    def busy_at_first(handler: Handler) -> None:
        if not refused:
            refused.append(handler.path)
            handler.send_plain(503)
            return
        handler.send_response(200)
        handler.send_header("Content-Length", "7")
        handler.end_headers()
        handler.write(b"content")

    with FaultyHttp() as server:
        server.answers["/x"] = busy_at_first
        shown = server.url("/x")
        item = Input(path="/in/x", url=f"{shown}?sig=***", type=FileType.FILE)
        attempt = bench.attempt(bench.plan(shell("cat /in/x"), inputs=[item]))
        access = Access(inputs={0: f"{shown}?sig={SECRET}"})
        reply = bench.spawner.ask(attempt.path, access=msgspec.to_builtins(access))
        wait_for_exit(reply["pid"])
    found = folded(attempt)
    assert ended(found).state is State.COMPLETE
    waits = [line for line in lines(found).splitlines() if "tried again" in line]
    assert len(waits) == len(refused) == 1
    assert f"GET {shown}: HTTP 503" in waits[0]
    assert holds_none(attempt)

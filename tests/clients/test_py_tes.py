"""The real py-tes, both lines of it, against a running server.

py-tes 0.4 knows TES 1.0 alone: it refuses the states CANCELING and PREEMPTED, so it is pointed at
the server's root, whose `/v1` speaks 1.0.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import ClientPython, Server
from tests.clients.documented import snippet

SCRIPT = Path(__file__).parent / "scripts" / "py_tes_session.py"
READS = "".join(f"@r{i}\n{'ACGT' * 20}\n+\n{'I' * 80}\n" for i in range(250))
STATES = ["QUEUED", "INITIALIZING", "RUNNING"]

pytestmark = [pytest.mark.clients, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(params=["py-tes", "py-tes-0.4"])
def session(
    request: pytest.FixtureRequest, client_python: ClientPython, server: Server
) -> dict[str, Any]:
    """What a py-tes user saw; its files are in `session["directory"]`."""
    python = client_python(request.param)
    (server.allowed / "reads.fq").write_text(READS)
    done = subprocess.run(
        [python, SCRIPT, server.url, server.image, server.allowed],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr + server.account()
    seen: dict[str, Any] = json.loads(done.stdout)
    seen["client"] = request.param
    seen["directory"] = server.allowed
    return seen


def test_py_tes_session(session: dict[str, Any]) -> None:
    """One session shows all; each part of it is checked by a function of its own."""
    check_service_info(session["service_info"], session["client"])
    check_files(session["directory"])
    check_views(session["count"])
    check_failure(session["fails"])
    check_cancel(session["sleeps"])
    check_pages(session)
    assert session["unknown"] == 404
    status, reply = session["refused"]
    assert status == 400
    assert "executors[0].command" in json.dumps(reply)


@pytest.mark.parametrize("client", ["py-tes", "py-tes-0.4"])
def test_the_documented_example_works(
    client: str, client_python: ClientPython, server: Server
) -> None:
    """The Python example of docs/clients.md, with this server's address, image and directory."""
    here = {
        "http://127.0.0.1:8000": server.url,
        "alpine:3.20": server.image,
        "/srv/results": str(server.allowed),
    }
    example = snippet("py-tes", "import tes", here)
    done = subprocess.run(
        [client_python(client), "-c", example], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + server.account()
    assert done.stdout.startswith("COMPLETE\n")
    assert f"{server.allowed}/sum" in done.stdout
    digest = hashlib.md5(b"hello\n").hexdigest()
    assert (server.allowed / "sum").read_text() == f"{digest}  /data/in.txt\n"


def check_service_info(info: dict[str, Any], client: str) -> None:
    assert info["name"] == "tesazure"
    assert isinstance(info["storage"], list)
    if client == "py-tes":
        assert info["type"] == {"group": "org.ga4gh", "artifact": "tes", "version": "1.1.0"}
        assert info["organization"]["url"].startswith("https://")
    else:
        assert info["doc"]


def check_files(directory: Path) -> None:
    """What the two executors wrote lies at the outputs' URLs."""
    sums = {
        name: hashlib.md5(text.encode()).hexdigest()
        for name, text in {"greeting.txt": "hello tes\n", "reads.fq": READS}.items()
    }
    written = (directory / "out" / "sums").read_text().splitlines()
    assert written == [f"{sums[name]}  {name}" for name in sorted(sums)]
    assert (directory / "out" / "lines").read_text().split() == ["1000"]
    assert (directory / "out" / "more" / "deep" / "f").read_text() == "x\n"


def check_views(count: dict[str, Any]) -> None:
    assert count["states"][-1] == count["waited"] == "COMPLETE"
    assert is_subsequence(count["states"][:-1], STATES)
    assert count["MINIMAL"] == {"id": count["id"], "state": "COMPLETE"}
    basic, full = count["BASIC"], count["FULL"]
    for view in (basic, full):
        assert view["name"] == "py-tes count"
        assert view["tags"] == {"project": "lambda", "empty": ""}
        assert view["volumes"] == ["/scratch"]
        assert view["creation_time"]
        assert view["executors"][0]["env"] == {"LABEL": "läbel with $HOME and 'quotes'"}
        (log,) = view["logs"]
        assert [step["exit_code"] for step in log["logs"]] == [0, 0]
        sizes = {entry["path"]: entry["size_bytes"] for entry in log["outputs"]}
        assert sizes.keys() == {"/data/out/sums", "/data/out/lines", "/data/more/deep/f"}
        assert sizes["/data/more/deep/f"] == 2
    assert "content" not in basic["inputs"][0]
    assert full["inputs"][0]["content"] == "hello tes\n"
    assert "system_logs" not in basic["logs"][0]
    assert "stderr" not in basic["logs"][0]["logs"][0]
    assert full["logs"][0]["logs"][0]["stderr"] == "läbel with $HOME and 'quotes'\n"


def check_failure(task: dict[str, Any]) -> None:
    assert task["states"][-1] == "EXECUTOR_ERROR"
    (step,) = task["FULL"]["logs"][0]["logs"]
    assert (step["exit_code"], step["stderr"]) == (3, "why\n")


def check_cancel(task: dict[str, Any]) -> None:
    assert task["states"][-1] == "CANCELED"


def check_pages(session: dict[str, Any]) -> None:
    """Pages of three, newest first, each task once."""
    newest = [*reversed(session["trivial"]), *(session[n]["id"] for n in ("sleeps", "fails"))]
    found = [task_id for page in session["pages"] for task_id in page]
    assert found == [*newest, session["count"]["id"]]
    assert [len(page) for page in session["pages"]] == [3, 3, 2]


def is_subsequence(part: list[str], whole: list[str]) -> bool:
    """Whether `part` is `whole` with some left out: a poller may miss a state."""
    rest = iter(whole)
    return all(any(state == other for other in rest) for state in part)

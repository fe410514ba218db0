"""The command line as a program, against a real server with the sandbox engine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tesazure.cli.exits import Code
from tesazure.cli.process import ServerProcess
from tests.conftest import need_sandbox
from tests.service.tool import Tool
from tests.services import base

IMAGE = "debian:stable-slim"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_sandbox()
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[ServerProcess]:
    for name in ("files", "global"):
        (home / name).mkdir()
    flags = [
        *("--engine", "sandbox", "--data-dir", str(home / "data")),
        *("--allow-dir", str(home / "files"), "--set", f"SHARED_GLOBAL_DIR={home / 'global'}"),
    ]
    with ServerProcess(flags, home / "server.log") as process:
        yield process


@pytest.fixture
def tool(server: ServerProcess, home: Path, request: pytest.FixtureRequest) -> Tool:
    here = home / "files" / request.node.name.replace("/", "_")
    here.mkdir()
    return Tool(server.root, here)


def sentences(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What was said on standard error."""
    return [line.strip() for line in done.stderr.splitlines()]


def test_run_brings_files_there_and_back(tool: Tool) -> None:
    (tool.here / "in ü%20.txt").write_text("b\na\n")
    done = tool(
        *("run", "--wait", "-i", "/in/words=in ü%20.txt", "-o", "/out/*.txt=results"),
        *("--stdout", "/out/sorted file.txt", "--name", "sort", IMAGE, "--", "sort", "/in/words"),
    )
    assert (tool.here / "results/sorted file.txt").read_text() == "a\nb\n"
    (task_id,) = done.stdout.splitlines()
    assert tool.task(task_id)["name"] == "sort"
    states = [line.split()[-1] for line in sentences(done) if task_id in line]
    assert states == ["QUEUED", "INITIALIZING", "RUNNING", "COMPLETE"]
    assert any(line.startswith("4 B") for line in sentences(done))


def test_run_tells_how_a_task_failed(tool: Tool) -> None:
    script = "echo this went wrong >&2; exit 3"
    done = tool("run", "--wait", IMAGE, "--", "sh", "-c", script, code=Code.NOT_COMPLETE)
    assert "executor 0 ended with exit code 3" in sentences(done)
    assert "this went wrong" in sentences(done)


def test_run_passes_arguments_exactly(tool: Tool) -> None:
    words = ["-i", "--", "a b", "$HOME", "'", "", "ü"]
    done = tool("run", "--follow", IMAGE, "--", "printf", "[%s]", *words)
    assert done.stdout == "".join(f"[{word}]" for word in words)


def test_run_follows_while_the_command_runs(tool: Tool, home: Path) -> None:
    gate = home / "global" / "gate"
    script = "echo before; while ! test -e /tes-wd/shared-global/gate; do sleep 0.01; done"
    with tool.start("run", "--follow", IMAGE, "--", "sh", "-c", f"{script}; echo after") as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "before\n"
        gate.touch()
        assert run.stdout.read() == "after\n"
        assert run.wait(30) == Code.OK


def test_an_interrupted_run_lets_the_task_go_on(tool: Tool) -> None:
    with tool.start("run", "--wait", IMAGE, "--", "sleep", "600") as run:
        assert run.stderr is not None
        line = ""
        while not line.endswith("RUNNING\n"):
            line = run.stderr.readline()
        task_id = line.split()[1]
        run.send_signal(signal.SIGINT)
        said = run.stderr.read()
        assert run.wait(30) == Code.INTERRUPTED
    assert f"tesazure cancel {task_id}" in said
    assert "Traceback" not in said
    assert tool.task(task_id)["state"] == "RUNNING"
    tool("cancel", task_id)
    done = tool("wait", task_id, code=Code.NOT_COMPLETE)
    assert done.stdout == f"{task_id}\tCANCELED\n"


def test_a_dry_run_submits_nothing(tool: Tool) -> None:
    document = json.loads(tool("run", "--dry-run", "--tag", "a=b", IMAGE, "--", "true").stdout)
    assert document == {"executors": [{"image": IMAGE, "command": ["true"]}], "tags": {"a": "b"}}


def test_create_takes_documents_one_a_line(tool: Tool) -> None:
    document = json.dumps({"executors": [{"image": IMAGE, "command": ["true"]}]})
    ids = tool("create", "-", stdin=f"{document}\n{document}\n").stdout.split()
    assert len(set(ids)) == 2
    done = tool("wait", *ids)
    assert sorted(done.stdout.splitlines()) == sorted(f"{key}\tCOMPLETE" for key in ids)


def test_a_refused_task_is_explained_field_by_field(tool: Tool) -> None:
    document = {"executors": [{"image": "", "command": []}]}
    done = tool("create", "-", stdin=json.dumps(document), code=Code.REFUSED)
    assert "executors[0].image: must not be empty" in sentences(done)
    assert any(line.startswith("executors[0].command: must") for line in sentences(done))
    done = tool("run", "-i", "/in=/etc/passwd", IMAGE, "--", "true", code=Code.REFUSED)
    assert any(
        line.startswith("inputs[0].url: ") and "ALLOW_DIR" in line for line in sentences(done)
    )


def test_list_filters_and_pages(tool: Tool) -> None:
    tags = ["--tag", f"test={tool.here.name}"]
    ids = [tool.submit(*tags, "--name", f"n{i}", IMAGE, "--", "true") for i in range(3)]
    tool("wait", *ids)
    every = json.loads(tool("list", *tags, "--all", "--page-size", "1", "--json").stdout)
    assert [task["id"] for task in every] == ids[::-1]
    done = tool("list", *tags, "--page-size", "2")
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ids[:0:-1]
    token = done.stderr.split()[-1]
    rest = tool("list", *tags, "--page-size", "2", "--page-token", token)
    assert rest.stdout.startswith(f"{ids[0]}\tCOMPLETE\t")
    named = tool("list", *tags, "--name-prefix", "n1", "--state", "complete")
    assert named.stdout.startswith(ids[1])
    assert json.loads(tool("list", "--tag", "no=such", "--json").stdout) == []


def test_logs_are_whole_and_apart(tool: Tool) -> None:
    script = "yes abcdefg | head -n 20000; echo complaint >&2"
    task_id = tool.submit(IMAGE, "--", "sh", "-c", script)
    followed = tool("logs", "-f", task_id)
    assert followed.stdout == "abcdefg\n" * 20000
    assert followed.stderr == "complaint\n"
    assert tool("logs", "--stdout", task_id).stdout == followed.stdout
    assert tool("logs", "--stderr", task_id).stdout == ""
    assert "image" in tool("logs", "--system", "--attempt", "1", task_id).stdout
    tool("logs", "--executor", "1", task_id, code=Code.NOT_FOUND)


def test_wait_ends_in_time_and_the_task_goes_on(tool: Tool) -> None:
    task_id = tool.submit(IMAGE, "--", "sleep", "600")
    done = tool("wait", "--timeout", "0.2", task_id, code=Code.TIMED_OUT)
    assert task_id in done.stderr
    assert tool("cancel", task_id).stdout.startswith(f"{task_id}\tCANCEL")
    tool("wait", task_id, code=Code.NOT_COMPLETE)


def test_what_is_not_there_has_a_code_of_its_own(tool: Tool) -> None:
    for verb in ("get", "wait", "cancel", "logs"):
        assert "nonsense" in tool(verb, "nonsense", code=Code.NOT_FOUND).stderr
    tool("list", "--state", "nonsense", code=Code.USAGE)
    tool("get", "--nonsense", code=Code.USAGE)
    tool("create", "no-such-file", code=Code.USAGE)
    tool("--server", "ftp://host", "list", code=Code.USAGE)


def test_nobody_there_is_one_clear_message(home: Path) -> None:
    here = home / "nobody"
    here.mkdir()
    done = Tool("http://127.0.0.1:1", here)("list", code=Code.UNREACHABLE)
    assert "no server answers at http://127.0.0.1:1" in done.stderr
    assert "tesazure serve" in done.stderr


def test_tables_and_colours_are_for_terminals(tool: Tool) -> None:
    task_id = tool.submit("--name", "pretty", IMAGE, "--", "true")
    tool("wait", task_id)
    green = "\x1b[32mCOMPLETE"
    for arguments in (("list", "--name-prefix", "pretty"), ("get", task_id)):
        shown = tool.on_terminal(*arguments)
        assert green in shown
        assert task_id in shown
        assert "\x1b" not in tool(*arguments).stdout
    assert "org.ga4gh" in tool.on_terminal("service-info")


def test_doctor_gives_verdicts_and_remedies(tool: Tool) -> None:
    findings = json.loads(tool("doctor", "--json").stdout)
    by_name = {finding["name"]: finding for finding in findings}
    for name in ("python", "database", "sandbox", "data directory", "server", "server: store"):
        assert by_name[name]["ok"] is True
    bad = tool("doctor", "--data-dir", "/dev/null/data", "--json", code=Code.NOT_COMPLETE)
    (directory,) = [f for f in json.loads(bad.stdout) if f["name"] == "data directory"]
    assert directory["ok"] is False
    assert directory["remedy"]
    (tool.here / "tesazure.db").write_bytes(os.urandom(50_000))
    bad = tool("doctor", "--data-dir", ".", "--json", code=Code.NOT_COMPLETE)
    (database,) = [f for f in json.loads(bad.stdout) if f["name"] == "database"]
    assert database["ok"] is False
    assert "not a database" in database["detail"]
    assert "backup" in database["remedy"]
    assert "ok\tpython\t" in tool("doctor").stdout
    assert "sandbox" in tool.on_terminal("doctor")
    assert "storage\tno credentials" in tool("doctor").stdout
    (tool.here / "storage.toml").write_text("""
        storage_account_name = "acct"
        storage_account_key = "aHVudGVyMg=="
        s3_access_key_id = "id"
        s3_secret_access_key = "hunter2"
    """)
    told = tool("doctor", "--config", "storage.toml").stdout
    assert "ok\tstorage: Azure\tthe key of account acct" in told
    assert "ok\tstorage: S3\tan access key" in told
    assert "hunter" not in told
    (tool.here / "identity.toml").write_text('azure_identity = "default"\n')
    told = tool("doctor", "--config", "identity.toml").stdout
    assert "note\tsettings\tAZURE_IDENTITY: if this machine has a managed identity" in told


def test_config_shows_sources_and_hides_secrets(tool: Tool) -> None:
    (tool.here / "c.toml").write_text(
        'database_url = "postgresql://me:hunter2@host/db"\nlog_level = "debug"\n'
    )
    done = tool("config", "--config", "c.toml", "--allow-dir", ".", "--json")
    assert "hunter2" not in done.stdout
    shown = json.loads(done.stdout)
    assert shown["LOG_LEVEL"] == {"value": "debug", "source": "file"}
    assert shown["DATABASE_URL"] == {"value": "***", "source": "file"}
    assert shown["ALLOW_DIR"] == {"value": str(tool.here), "source": "command line"}


def test_serve_says_what_keeps_it_from_serving(tool: Tool, home: Path) -> None:
    done = tool("serve", "--engine", "dokcer", "--set", "LEASE_S=0", code=Code.USAGE)
    assert "did you mean docker?" in done.stderr
    assert "LEASE_S: must be at least 1" in done.stderr
    done = tool("serve", "--port", "0", "--data-dir", str(home / "data"), code=Code.UNREACHABLE)
    assert "another server" in done.stderr
    host = 70 * "h"  # longer than any part of a name may be
    done = tool("serve", "--host", host, "--port", "0", "--data-dir", "other", code=Code.USAGE)
    assert done.stderr == "error: HOST: no host name; name an address of this machine\n"
    port = tool.root.rpartition(":")[2]
    done = tool("serve", "--port", port, "--data-dir", "other", code=Code.UNREACHABLE)
    assert f"port {port}" in done.stderr


def test_waiting_survives_a_restart_of_the_server(home: Path) -> None:
    here = home / "restart"
    here.mkdir()
    (here / "global").mkdir()
    flags = ["--engine", "sandbox", "--data-dir", str(here / "data")]
    flags += ["--set", f"SHARED_GLOBAL_DIR={here / 'global'}"]
    # One that nobody gets meanwhile.
    flags += ["--port", str(base.free_port())]
    script = "while ! test -e /tes-wd/shared-global/gate; do sleep 0.01; done"
    with contextlib.ExitStack() as stack:
        with ServerProcess(flags, here / "first.log") as first:
            tool = Tool(first.root, here)
            done = tool.submit(IMAGE, "--", "true")
            gated = tool.submit(IMAGE, "--", "sh", "-c", script)
            waiting = stack.enter_context(tool.start("wait", done, gated))
            assert waiting.stdout is not None
            assert waiting.stdout.readline() == f"{done}\tCOMPLETE\n"
        with ServerProcess(flags, here / "second.log"):
            (here / "global" / "gate").touch()
            assert waiting.stdout.read() == f"{gated}\tCOMPLETE\n"
            assert waiting.wait(30) == Code.OK


def test_help_and_version_are_quick_because_they_import_little() -> None:
    heavy = {"httpx", "rich", "sqlalchemy", "starlette", "uvicorn", "asyncio"}
    script = (
        "import sys; sys.argv = ['tesazure', 'version']\n"
        "from tesazure.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.splitlines()[1] == "[]"


def test_shells_can_complete_verbs() -> None:
    environment = {
        **os.environ,
        "_TESAZURE_COMPLETE": "complete_bash",
        "COMP_WORDS": "tesazure ser",
        "COMP_CWORD": "1",
    }
    script = "from tesazure.cli.main import app; app(prog_name='tesazure')"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["serve", "service-info"]

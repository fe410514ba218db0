"""`tesazure provision`: what it asks, shows and prints, and where the secret comes from."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tesazure.cli.exits import Code
from tests.service.provision_server import PRINCIPAL, SUBSCRIPTION, Server, provision_server
from tests.service.provision_site import BATCH_KEY, SECRET, TOKEN
from tests.service.tool import PROGRAM, Tool

BY_SECRET = {"TESAZURE_PRINCIPAL_SECRET": SECRET}
AS_PRINCIPAL = ["--client-id", PRINCIPAL["client_id"], "--tenant", PRINCIPAL["tenant"]]
AZURE = ["provision", "azure", "--subscription", SUBSCRIPTION]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with provision_server(tmp_path / "site") as running:
        running.start()
        yield running


@pytest.fixture
def tool(server: Server, tmp_path: Path) -> Tool:
    return Tool(server.url, tmp_path)


def tool_with(server: Server, here: Path, **environment: str) -> Tool:
    return Tool(server.url, here, environment)


def test_from_nothing_to_a_backend_and_back(server: Server, tool: Tool, tmp_path: Path) -> None:
    planned = tool(*AZURE, "--dry-run").stdout.splitlines()
    assert planned[0] == "group\tmissing\tThe group\t"
    assert planned[-2:] == ["idle-cost\t1.50\tstorage\tby use", "idle-cost\t\tbatch\t"]
    assert server.cloud.journal() == []
    done = tool(*AZURE, "--tag", "team=genomics")
    lines = done.stdout.splitlines()
    assert "settings\tdone\tSettings of the servers" in lines
    guid, status, note = lines[-1].split("\t")
    assert (status, note) == ("CREATED", "in effect: COMPUTE_BACKEND=batch")
    assert "The storage" in tool("provision", "status", guid).stdout
    run = json.loads(tool("provision", "status", guid, "--json").stdout)
    assert run["request"]["tags"] == {"team": "genomics"}
    assert tool("provision", "list").stdout.startswith(f"{guid}\tCREATED\t")
    assert json.loads(tool("provision", "list", "--json").stdout)[0]["guid"] == guid
    refused = tool("provision", "delete", guid, code=Code.USAGE)
    assert "--yes" in refused.stderr
    gone = tool("provision", "delete", guid, "--yes", "--json")
    assert json.loads(gone.stdout)["status"] == "DELETED"
    assert server.cloud.read("group") is None
    unknown = tool("provision", "status", SUBSCRIPTION, code=Code.NOT_FOUND)
    assert "no provisioning run" in unknown.stderr


def test_a_step_that_fails_is_shown_with_its_remedy(server: Server, tool: Tool) -> None:
    server.cloud.fault("storage.begin", "fail")
    failed = tool(*AZURE, code=Code.NOT_COMPLETE)
    assert "storage\tfailed\tThe storage" in failed.stdout
    assert "The storage: QuotaExceeded: quota of 0" in failed.stderr
    assert "remedy: ask for more" in failed.stderr
    guid = failed.stdout.splitlines()[-1].split("\t")[0]
    shown = tool("provision", "status", guid, code=Code.NOT_COMPLETE)
    assert "remedy: ask for more" in shown.stderr
    again = tool(*AZURE)
    assert again.stdout.splitlines()[-1].startswith(f"{guid}\tCREATED")


def test_what_is_wrong_is_told_by_field(tool: Tool) -> None:
    wrong = tool(*AZURE, "--storage-sku", "Fast", "--batch-account", "NO", code=Code.REFUSED)
    assert "storage_sku: must be one of" in wrong.stderr
    assert "batch_account_name: must be" in wrong.stderr


def test_detached_it_prints_the_guid_alone(server: Server, tool: Tool) -> None:
    server.cloud.fault("group.half", "hold")
    guid = tool(*AZURE, "--detach").stdout.strip()
    assert tool("provision", "status", guid).stdout.splitlines()[-1] == f"{guid}\tINPROGRESS\t"
    with tool.start("provision", "status", guid, "--wait") as waiting:
        server.cloud.release("group.half")
        assert waiting.wait(60) == Code.OK
    begun = json.loads(tool("provision", "delete", guid, "--yes", "--detach", "--json").stdout)
    assert begun["guid"] == guid


def test_the_secret_comes_by_environment_file_or_standard_input(
    server: Server, tool: Tool, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    by_environment = tool_with(server, tmp_path, **BY_SECRET)
    done = by_environment(*AZURE, *AS_PRINCIPAL)
    guid = done.stdout.splitlines()[-1].split("\t")[0]
    tool(*AZURE, *AS_PRINCIPAL, "--secret-file", str(file))
    tool(*AZURE, *AS_PRINCIPAL, "--secret-file", "-", stdin=SECRET)
    for missing in ([], ["--secret-file", "/dev/null"]):
        said = tool(*AZURE, *AS_PRINCIPAL, *missing, code=Code.USAGE).stderr
        assert "secret" in said
    assert "--client-id and --tenant" in tool(*AZURE, "--tenant", "x", code=Code.USAGE).stderr
    assert tool(*AZURE, "--tag", "x", code=Code.USAGE).stderr.endswith("NAME=VALUE\n")
    tool("provision", "delete", guid, "--yes", code=Code.USAGE)
    gone = tool("provision", "delete", guid, "--yes", "--secret-file", str(file))
    assert gone.stdout.splitlines()[-1].startswith(f"{guid}\tDELETED")
    for text in (done.stdout, done.stderr, gone.stdout, server.log.read_text()):
        assert SECRET not in text
        assert BATCH_KEY not in text


def test_the_secret_is_not_sent_in_the_clear(tmp_path: Path) -> None:
    """Also not to a name that is none: it is refused before anything is sent."""
    tool = Tool("http://tes.invalid:8000", tmp_path, {"TESAZURE_PRINCIPAL_SECRET": SECRET})
    for more in ([], ["--dry-run"]):
        said = tool(*AZURE, *AS_PRINCIPAL, *more, code=Code.USAGE).stderr
        assert "is not https" in said


def test_the_token_lets_in_from_elsewhere(server: Server, tmp_path: Path) -> None:
    with_token = tool_with(server, tmp_path, TESAZURE_PROVISION_TOKEN=TOKEN)
    with_token("provision", "list")
    wrong = tool_with(server, tmp_path, TESAZURE_PROVISION_TOKEN="no")
    assert "PROVISION_TOKEN" in wrong("provision", "list", code=Code.DENIED).stderr


def test_on_a_terminal_the_steps_and_a_summary_are_drawn(server: Server, tool: Tool) -> None:
    shown = tool.on_terminal(*AZURE)
    for text in ("The storage", "done", "settings", "CREATED", "resource group", "eastus"):
        assert text.lower() in shown.lower()
    assert BATCH_KEY not in shown
    assert "WHILE NO TASK RUNS" in tool.on_terminal(*AZURE, "--dry-run")
    assert "CREATED" in tool.on_terminal("provision", "list")


def test_at_a_terminal_it_asks(server: Server, tool: Tool, tmp_path: Path) -> None:
    """For the secret, which it does not show, and before it deletes."""
    shown = dialogue(server, tmp_path, [*AZURE, *AS_PRINCIPAL], [("not shown", SECRET)])
    assert "CREATED" in shown
    assert SECRET not in shown
    guid = tool("provision", "list").stdout.split("\t")[0]
    shown = dialogue(server, tmp_path, ["provision", "delete", guid], [("[y/N]", "n")])
    assert "nothing was deleted" in shown
    answers = [("[y/N]", "y"), ("not shown", SECRET)]
    shown = dialogue(server, tmp_path, ["provision", "delete", guid], answers)
    assert "DELETED" in shown


def dialogue(
    server: Server, here: Path, arguments: list[str], answers: list[tuple[str, str]]
) -> str:
    """What the program shows to somebody who answers its questions at a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TESAZURE_SERVER": server.url, "TERM": "dumb", "COLUMNS": "200"}
    process = subprocess.Popen(
        [*PROGRAM, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=here,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    shown = ""
    try:
        for question, answer in answers:
            while question not in shown:
                shown += os.read(ours, 65536).decode()
            os.write(ours, f"{answer}\n".encode())
        while chunk := os.read(ours, 65536):
            shown += chunk.decode()
    except OSError:  # how Linux says that the other side has closed
        pass
    finally:
        os.close(ours)
        process.wait(60)
    return shown

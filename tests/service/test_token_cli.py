"""`tesazure token` and `login` beside a real server that takes API tokens."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tesazure.cli.exits import Code
from tests.conftest import refuse
from tests.service.server import RunningServer, create, start_server, task, until
from tests.service.tool import PROGRAM, Tool, api_token

TOKEN = re.compile(r"tesz_[0-9a-f]{16}_[0-9a-f]{64}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with API tokens; the first of them was made before it began."""
    directory = tmp_path_factory.mktemp("tokens")
    api_token(directory / "data", "first")
    with start_server(
        directory, api_tokens=True, task_access_restrictions="per-user", log_level="info"
    ) as running:
        yield running


@pytest.fixture
def tool(server: RunningServer, tmp_path: Path) -> Tool:
    state = {"XDG_STATE_HOME": str(tmp_path / "state"), "APP_DATA_DIR": str(server.data)}
    return Tool(server.url, tmp_path, state | {"APP_API_TOKENS": "true"})


def status(server: RunningServer, token: str, user: str = "") -> int:
    """What a list is answered with."""
    with server.client() as client:
        given = (user, token) if user else None
        headers = {} if user else {"Authorization": f"Bearer {token}"}
        return client.get("/ga4gh/tes/v1/tasks", auth=given, headers=headers).status_code


def test_a_token_made_beside_the_server_counts_at_once(server: RunningServer, tool: Tool) -> None:
    done = tool("token", "create", "ann")
    token = done.stdout.strip()
    assert TOKEN.fullmatch(token)
    assert done.stderr == ""
    assert status(server, token) == 200
    assert status(server, token, "ann") == 200
    assert status(server, token, "bob") == 401
    assert status(server, token[:-1] + ("0" if token[-1] != "0" else "1")) == 401
    assert status(server, "x", "ann") == 401


def test_its_secret_is_nowhere(server: RunningServer, tool: Tool) -> None:
    token = tool("token", "create", "ann").stdout.strip()
    assert status(server, token) == 200
    shown = tool("token", "list").stdout + tool("token", "list", "--json").stdout
    assert token.split("_")[1] in shown
    secret = token.rpartition("_")[2]
    assert secret not in shown + server.log.read_text()
    for file in server.data.glob("tesazure.db*"):
        assert secret.encode() not in file.read_bytes()


def test_a_revoked_token_is_refused_within_seconds(server: RunningServer, tool: Tool) -> None:
    token = tool("token", "create", "ann").stdout.strip()
    assert status(server, token) == 200
    tool("token", "revoke", token)
    until(lambda: status(server, token) == 401, 10)
    note = f'"action":"token.revoke","token":"{token.split("_")[1]}","user":"ann"}}'
    until(lambda: note in server.log.read_text())
    assert "there is no token" in tool("token", "revoke", token, code=Code.NOT_FOUND).stderr


def test_what_is_known_of_tokens(tool: Tool) -> None:
    made = json.loads(tool("token", "create", "ann", "--expires", "1.5", "--json").stdout)
    assert TOKEN.fullmatch(made.pop("token"))
    assert (made["user"], made["roles"], made["last_used"]) == ("ann", ["Tasks.Write"], None)
    assert made in json.loads(tool("token", "list", "--json").stdout)
    roles = ["--role", "read", "--role", "Tasks.Admin", "--expires", "0"]
    made = json.loads(tool("token", "create", "ops@example.org", *roles, "--json").stdout)
    assert (made["roles"], made["expires"]) == (["Tasks.Admin", "Tasks.Read"], None)
    assert (
        f"{made['id']}\tops@example.org\tTasks.Admin Tasks.Read\t" in tool("token", "list").stdout
    )
    assert made["id"] in tool.on_terminal("token", "list")


def test_roles_hold(server: RunningServer, tool: Tool) -> None:
    reader = tool("token", "create", "ann", "--role", "read").stdout.strip()
    reading = Tool(server.url, tool.here, {"TESAZURE_TOKEN": reader})
    reading("list")
    done = reading("run", "any", "--", "true", code=Code.DENIED)
    assert "Tasks.Write" in done.stderr


def test_users_see_their_own_tasks(server: RunningServer) -> None:
    ann, bob = (api_token(server.data, user) for user in ("ann-own", "bob-own"))
    admin = api_token(server.data, "ops", "--role", "admin")
    headers = [{"Authorization": f"Bearer {token}"} for token in (ann, bob, admin)]
    with server.client(headers=headers[0]) as client:
        task_id = create(client, task())
    seen = []
    for each in headers:
        with server.client(headers=each) as client:
            seen.append(client.get(f"/ga4gh/tes/v1/tasks/{task_id}").status_code)
    assert seen == [200, 404, 200]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a:b"], "USER: must be 1 to 64 letters"),
        (["ann", "--role", "owner"], "--role owner: must be one of read, write, admin"),
        (["ann", "--expires", "-1"], "--expires"),
    ],
)
def test_what_cannot_be_is_refused(tool: Tool, arguments: list[str], said: str) -> None:
    done = tool("token", "create", *arguments, code=Code.USAGE)
    assert said in done.stderr


def test_the_servers_url_may_hold_user_and_password(server: RunningServer, tool: Tool) -> None:
    token = tool("token", "create", "ann").stdout.strip()
    url = server.url.replace("://", f"://ann:{token}@")
    Tool(url, tool.here, {"XDG_STATE_HOME": str(tool.here)})("list")
    wrong = Tool(url.replace("ann:", "bob:"), tool.here, {"XDG_STATE_HOME": str(tool.here)})
    done = wrong("list", code=Code.SIGN_IN)
    assert "user or password in the server's URL" in done.stderr
    assert token not in done.stderr


def test_login_by_an_api_token_until_logout(tool: Tool) -> None:
    token = tool("token", "create", "ann").stdout.strip()
    done = tool("list", code=Code.SIGN_IN)
    assert "sign in: tesazure login" in done.stderr
    done = tool("login", stdin=f"{token}\n")
    assert done.stderr == f"signed in at {tool.root}\n"
    (file,) = (tool.here / "state/tesazure/logins").glob("*.json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    tool("list")
    tool("run", "--wait", "any", "--", "true")
    assert "signed out" in tool("logout").stderr
    assert "there was no login" in tool("logout").stderr
    tool("list", code=Code.SIGN_IN)


def test_login_keeps_only_what_the_server_takes(tool: Tool) -> None:
    done = tool("login", stdin="tesz_nonsense\n", code=Code.SIGN_IN)
    assert "does not take this token" in done.stderr
    assert "no token was given" in tool("login", stdin="\n", code=Code.USAGE).stderr
    done = tool("login", "--device", code=Code.SIGN_IN)
    assert "names no application to sign in with" in done.stderr
    assert not list((tool.here / "state/tesazure").rglob("*.json"))
    tool("login", "--device", "--api-token", code=Code.USAGE)


def test_curl_signs_in(server: RunningServer, tool: Tool) -> None:
    if not shutil.which("curl"):
        refuse("curl is not installed")
    token = tool("token", "create", "ann").stdout.strip()
    url = f"{server.url}/ga4gh/tes/v1/tasks"
    for option in (f'user = "ann:{token}"', f'header = "Authorization: Bearer {token}"'):
        command = ["curl", "--silent", "--fail", "--noproxy", "*", "--config", "-", url]
        done = subprocess.run(command, input=option.encode(), capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "tasks" in json.loads(done.stdout)


def test_a_server_that_asks_nobody(short_dir: Path) -> None:
    with start_server(short_dir / "open") as running:
        tool = Tool(running.url, short_dir, {"XDG_STATE_HOME": str(short_dir)})
        assert "asks nobody to sign in" in tool("login").stderr
        done = subprocess.run(
            [*PROGRAM, "token", "create", "ann", "--data-dir", running.data],
            capture_output=True,
            text=True,
            check=True,
            env={k: v for k, v in os.environ.items() if not k.startswith("APP_")},
        )
        assert "API_TOKENS" in done.stderr
        # py-tes 0.4 sends user and password None to everybody.
        assert status(running, "None", "None") == 200


@pytest.mark.postgres
def test_tokens_in_postgresql(postgres_url: str, tmp_path: Path) -> None:
    tool = Tool("http://127.0.0.1:1", tmp_path, {"APP_DATABASE_URL": postgres_url})
    token_id = json.loads(tool("token", "create", "ann", "--json").stdout)["id"]
    assert token_id in tool("token", "list").stdout
    tool("token", "revoke", token_id)
    assert tool("token", "list").stdout == ""
    assert not (tmp_path / "tesazure-data").exists()


def test_another_databases_directory_is_refused(tmp_path: Path) -> None:
    tool = Tool("http://127.0.0.1:1", tmp_path)
    data = tmp_path / "data"
    tool("token", "create", "ann", "--data-dir", "data")
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    (data / "store-id").write_text("of-the-postgresql-database\n")
    done = tool("token", "create", "ann", "--data-dir", "data", code=Code.USAGE)
    assert "belongs to the database with id of-the-postgresql-database" in done.stderr

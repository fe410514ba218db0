"""Real clients that sign in with an API token: as a password, and as a bearer token."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import ClientPython
from tests.service.server import RunningServer, start_server
from tests.service.tool import api_token

SCRIPT = Path(__file__).parent / "scripts" / "signed_in_session.py"

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]


@pytest.fixture
def server(short_dir: Path) -> Iterator[RunningServer]:
    with start_server(
        short_dir / "server", api_tokens=True, task_access_restrictions="per-user"
    ) as running:
        yield running


def session(python: Path, name: str, url: str, sign_in: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [python, SCRIPT, name],
        input=json.dumps({"url": url, "sign_in": sign_in}),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


@pytest.mark.parametrize("venv", ["py-tes", "py-tes-0.4"])
def test_py_tes(venv: str, client_python: ClientPython, server: RunningServer) -> None:
    python = client_python(venv)
    for user in ("ann", "bob"):
        token = api_token(server.data, user)
        by_password = session(python, "py-tes", server.url, {"user": user, "password": token})
        by_token = session(python, "py-tes", server.url, {"token": token})
        for seen in (by_password, by_token):
            assert (seen["state"], seen["stdout"]) == ("COMPLETE", "signed in\n")
        # Both are the same user, who sees no task of another one.
        assert by_token["listed"] == [by_token["id"], by_password["id"]]
        for wrong in ({"user": "eve", "password": token}, {"user": user, "password": "x"}, {}):
            assert "401" in session(python, "py-tes", server.url, wrong)["refused"]


def test_pydantic_tes(client_python: ClientPython, server: RunningServer) -> None:
    python = client_python("galaxy")
    token = api_token(server.data, "galaxy")
    url = f"{server.url}/"
    with_password = url.replace("://", f"://galaxy:{token}@")
    by_password = session(python, "pydantic-tes", with_password, {})
    headers = {"Authorization": f"Bearer {token}"}
    by_token = session(python, "pydantic-tes", url, {"headers": headers})
    assert [seen["state"] for seen in (by_password, by_token)] == ["COMPLETE"] * 2
    assert by_token["listed"] == [by_token["id"], by_password["id"]]
    assert "401" in session(python, "pydantic-tes", url, {})["refused"]

"""Callers of a server that asks who they are, and such a server's settings."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.service.server import (
    environment,
    task,
)
from tests.services.entra_server import (
    AUDIENCE,
    OTHER_TENANT,
    TENANT,
    EntraServer,
)


@pytest.fixture(scope="module")
def entra(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EntraServer]:
    with EntraServer(tmp_path_factory.mktemp("entra")) as running:
        yield running


def settings(entra: EntraServer, **more: object) -> dict[str, object]:
    return {
        "aad_verify": "True",
        "aad_tenant_id": f"{TENANT},{OTHER_TENANT}",
        "aad_audience": AUDIENCE,
        "aad_authority": entra.authority,
        "ca_bundle": entra.ca_bundle,
        "api_tokens": "true",
        **more,
    }


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def api_token(data: Path, user: str, role: str) -> str:
    """A new API token, made beside the running server."""
    made = subprocess.run(
        [
            *(sys.executable, "-m", "tesazure.cli.main", "token", "create", user),
            *("--role", role.rpartition(".")[2].lower(), "--data-dir", str(data), "--json"),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return str(json.loads(made.stdout)["token"])


def ask(client: httpx.Client, method: str, path: str) -> httpx.Response:
    """The reply's head, with the body of what is not endless."""
    body = {"json": task("true")} if method == "POST" and path.endswith("/tasks") else {}
    with client.stream(method, path, **body) as reply:  # type: ignore[arg-type]
        if reply.headers.get("content-type", "").startswith("text/event-stream"):
            return reply
        reply.read()
    return reply

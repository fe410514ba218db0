"""What `tesazure login` does not do, whatever a server announces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tesazure.cli.exits import Code, Failure
from tesazure.cli.login import login
from tesazure.cli.logins import Logins
from tesazure.settings import Client
from tests.service.server import start_server
from tests.service.tool import Tool
from tests.services.entra_server import AUDIENCE, CLIENT, TENANT, EntraServer

OIDC = "openid profile email offline_access"
GRAPH = "00000003-0000-0000-c000-000000000000"


@pytest.fixture
def entra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EntraServer]:
    with EntraServer(tmp_path / "entra") as server:
        monkeypatch.setenv("SSL_CERT_FILE", server.ca_bundle)
        yield server


@contextmanager
def announcing(
    entra: EntraServer, scope: str, client_id: str = AUDIENCE, host: str = "127.0.0.1"
) -> Iterator[str]:
    """URL of a server that wants users to sign in by this scope."""
    issuer = f"{entra.authority}/{TENANT}/v2.0"
    said = {"required": True, "issuer": issuer, "client_id": client_id, "scope": scope}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/api/v1/sign-in"
            assert "Authorization" not in self.headers
            body = json.dumps(said).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer((host, 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://{host}:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def refusal(root: str, logins: Logins, audience: str = "") -> Failure:
    with pytest.raises(Failure) as caught:
        login(Client(server=root), logins, device=False, api_token=False, audience=audience)
    assert caught.value.code == Code.SIGN_IN
    return caught.value


@pytest.mark.parametrize(
    "foreign",
    [
        "https://management.azure.com/.default",
        "https://graph.microsoft.com/User.Read",
        f"{GRAPH}/.default",
        "api://payroll/.default",
        "User.Read",  # without a resource it is Microsoft Graph's
        f"api://{AUDIENCE}.evil/.default",
        f"https://127.0.0.1@{GRAPH}/.default",
        "https://[/.default",
        "/.default",
    ],
)
@pytest.mark.parametrize("audience", ["", AUDIENCE])
def test_a_token_for_another_service_is_not_asked_for(
    entra: EntraServer, tmp_path: Path, foreign: str, audience: str
) -> None:
    logins = Logins(tmp_path / "logins")
    with announcing(entra, f"{foreign} {OIDC}") as root:
        said = refusal(root, logins, audience)
        assert f"wants a token for {foreign}, which may be another service's" in str(said)
        [remedy] = said.details
        assert remedy.endswith("tesazure login --audience ID")
        assert logins.of(root) is None
    assert entra.asked == []


def test_nobody_is_signed_in_over_plain_http(entra: EntraServer, tmp_path: Path) -> None:
    """127.0.0.2 is none of the names by which a server of this machine is known."""
    scope = f"{AUDIENCE}/.default {OIDC}"
    with announcing(entra, scope, host="127.0.0.2") as root:
        said = refusal(root, Logins(tmp_path / "logins"))
        assert "is not https" in str(said)
        port = root.rpartition(":")[2]
        https, tunnel = said.details
        assert https == "give its https URL"
        assert f"ssh -L 8000:127.0.0.1:{port} 127.0.0.2, and --server http://127.0" in tunnel
    assert entra.asked == []


@pytest.mark.parametrize(
    ("scope", "audience"),
    [
        (f"{AUDIENCE}/.default", ""),
        (f"api://{AUDIENCE.upper()}/.default", ""),
        ("api://127.0.0.1/tes/access", ""),
        ("https://127.0.0.1/.default", ""),
        ("api://tes/.default", "api://tes"),
        (f"{GRAPH}/.default", f"api://{GRAPH}"),
        ("", ""),
    ],
)
def test_a_token_for_the_server_itself_is(
    entra: EntraServer, tmp_path: Path, scope: str, audience: str
) -> None:
    entra.tenants.clear()  # how far it goes: the issuer is asked, and knows no such tenant
    with announcing(entra, f"{scope} {OIDC}") as root:
        said = refusal(root, Logins(tmp_path / "logins"), audience)
    assert "answered HTTP 400" in str(said)


def test_a_server_that_another_application_signs_in_to(entra: EntraServer, tmp_path: Path) -> None:
    with start_server(
        tmp_path / "server",
        aad_verify=True,
        aad_authority=entra.authority,
        aad_tenant_id=TENANT,
        aad_audience=AUDIENCE,
        aad_client_id=CLIENT,
        ca_bundle=entra.ca_bundle,
    ) as server:
        tool = Tool(server.url, tmp_path, {"XDG_STATE_HOME": str(tmp_path / "state")})
        assert "--audience ID" in tool("login", code=Code.SIGN_IN).stderr
        with tool.start("login", "--audience", AUDIENCE) as signing_in:
            assert signing_in.stderr is not None
            said = [signing_in.stderr.readline() for _ in range(4)]
            assert said[1] == f"  for the application {CLIENT}, {AUDIENCE}/.default\n"
            entra.approve(said[3].split()[-1])
            assert signing_in.wait(30) == Code.OK
        tool("list")

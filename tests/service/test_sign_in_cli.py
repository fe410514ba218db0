"""Signing in by a code and staying so, at a stand-in for Entra ID over TLS."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from tesazure.cli import oidc
from tesazure.cli.client import TesClient
from tesazure.cli.credentials import with_tokens
from tesazure.cli.exits import Code, Failure
from tesazure.cli.login import logout
from tesazure.cli.logins import Login, Logins
from tesazure.settings import Client
from tests.service.server import RunningServer, start_server
from tests.service.tool import Tool
from tests.services.entra_server import AUDIENCE, TENANT, EntraServer
from tests.services.loopback_http import LoopbackHttp, QuietHandler
from tests.services.tls_server import Request

SCOPE = f"{AUDIENCE}/.default openid profile offline_access"


class Hesitant(EntraServer):
    """Renews tokens only while it may."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.renewing, self.may_renew = threading.Event(), threading.Event()
        self.may_renew.set()

    def answer(self, request: Request) -> Any:
        if request.form.get("grant_type") == "refresh_token":
            self.renewing.set()
            assert self.may_renew.wait(60)
        return super().answer(request)


@pytest.fixture
def entra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EntraServer]:
    with Hesitant(tmp_path / "entra") as server:
        monkeypatch.setenv("SSL_CERT_FILE", server.ca_bundle)
        yield server


@pytest.fixture
def http(entra: EntraServer) -> Iterator[httpx.Client]:
    with httpx.Client() as client:
        yield client


@pytest.fixture
def logins(tmp_path: Path) -> Logins:
    return Logins(tmp_path / "logins")


class Api(LoopbackHttp):
    """A TES server that takes the tokens in `good` alone, or all when `takes_all`."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.good: set[str] = set()
        self.takes_all = False
        self.shown: list[str] = []


class _Handler(QuietHandler):
    owner: Api

    def do_GET(self) -> None:
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        self.owner.shown.append(token)
        good = self.owner.takes_all or token in self.owner.good
        body = json.dumps({"state": "QUEUED"} if good else {"message": "who?"}).encode()
        # Its clients are left open.
        headers = {"Content-Type": "application/json", "Connection": "close"}
        self.reply(200 if good else 401, body, headers)


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as api:
        yield api


def signed_in(entra: EntraServer, http: httpx.Client, root: str) -> Login:
    """A login by a code that a user has approved."""
    provider = oidc.discover(http, f"{entra.authority}/{TENANT}/v2.0")
    code = oidc.ask_for_code(http, provider.device_authorization_endpoint, AUDIENCE, SCOPE)
    entra.approve(code.user_code)
    tokens = oidc.wait_for_user(http, provider.token_endpoint, AUDIENCE, code, lambda _: None)
    bare = Login(
        server=root,
        token="",
        name="ann",
        client_id=AUDIENCE,
        scope=SCOPE,
        token_endpoint=provider.token_endpoint,
    )
    return with_tokens(bare, tokens)


def ending(login: Login, in_s: float) -> Login:
    return Login(
        **{name: getattr(login, name) for name in login.__struct_fields__ if name != "expires"},
        expires=time.time() + in_s,
    )


def test_a_code_becomes_a_token_for_the_server(entra: EntraServer, http: httpx.Client) -> None:
    login = signed_in(entra, http, "http://server")
    claims = jwt.decode(login.token, options={"verify_signature": False})
    assert claims["aud"] == AUDIENCE
    assert oidc.name_in(login.token) == "user@example.org"
    assert login.refresh_token
    assert login.expires == pytest.approx(time.time() + entra.lifetime_s, abs=30)


def test_it_is_asked_again_until_the_user_is_done(entra: EntraServer, http: httpx.Client) -> None:
    provider = oidc.discover(http, f"{entra.authority}/{TENANT}/v2.0")
    where = provider.device_authorization_endpoint
    code = oidc.ask_for_code(http, where, AUDIENCE, SCOPE)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            entra.approve(code.user_code)

    assert oidc.wait_for_user(http, provider.token_endpoint, AUDIENCE, code, pause).access_token
    assert pauses == [1.0] * 3


def test_a_user_who_declines_ends_it(entra: EntraServer, http: httpx.Client) -> None:
    provider = oidc.discover(http, f"{entra.authority}/{TENANT}/v2.0")
    where = provider.device_authorization_endpoint
    code = oidc.ask_for_code(http, where, AUDIENCE, SCOPE)
    entra.decline(code.user_code)
    with pytest.raises(Failure, match="declined") as caught:
        oidc.wait_for_user(http, provider.token_endpoint, AUDIENCE, code, lambda _: None)
    assert caught.value.code == Code.SIGN_IN


def test_a_service_that_stumbles_is_asked_on(entra: EntraServer, http: httpx.Client) -> None:
    provider = oidc.discover(http, f"{entra.authority}/{TENANT}/v2.0")
    where = provider.device_authorization_endpoint
    code = oidc.ask_for_code(http, where, AUDIENCE, SCOPE)
    entra.approve(code.user_code)
    entra.down(503)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            entra.up()

    assert oidc.wait_for_user(http, provider.token_endpoint, AUDIENCE, code, pause).access_token
    assert pauses == [1.0, 2.0]


@pytest.mark.parametrize(
    ("issuer", "said"),
    [("{authority}/nobody/v2.0", "HTTP 400"), ("http://issuer.example", "not over https")],
)
def test_what_is_no_issuer(entra: EntraServer, http: httpx.Client, issuer: str, said: str) -> None:
    with pytest.raises(Failure, match=said):
        oidc.discover(http, issuer.format(authority=entra.authority))


def test_an_issuer_that_is_away_is_one_clear_message(
    entra: EntraServer, http: httpx.Client
) -> None:
    entra.down()
    with pytest.raises(Failure, match="cannot be reached") as caught:
        oidc.discover(http, f"{entra.authority}/{TENANT}/v2.0")
    assert caught.value.code == Code.UNREACHABLE


def test_a_token_that_ends_is_renewed_first(
    entra: EntraServer, http: httpx.Client, api: Api, logins: Logins
) -> None:
    old = ending(signed_in(entra, http, api.origin), 30)
    logins.keep(old)
    client = TesClient(Client(server=api.origin), logins)
    with pytest.raises(Failure):  # the stand-in has not been told of the new one
        client.state("t")
    kept = logins.of(api.origin)
    assert kept is not None
    assert kept.token != old.token
    assert kept.refresh_token not in ("", old.refresh_token)
    api.good.add(kept.token)
    api.shown.clear()
    assert client.state("t") == "QUEUED"
    assert api.shown == [kept.token]


def test_a_token_that_is_refused_is_renewed_once(
    entra: EntraServer, http: httpx.Client, api: Api, logins: Logins
) -> None:
    """The server's clock may be another."""
    old = signed_in(entra, http, api.origin)
    logins.keep(old)
    with pytest.raises(Failure, match="who") as caught:
        TesClient(Client(server=api.origin), logins).state("t")
    assert caught.value.code == Code.SIGN_IN
    assert caught.value.details == ("sign in again: tesazure login",)
    kept = logins.of(api.origin)
    assert kept is not None
    assert api.shown == [old.token, kept.token]


def test_many_renew_it_once(
    entra: EntraServer, http: httpx.Client, api: Api, logins: Logins
) -> None:
    """A refresh token is good for one use: programs that start together share what it brings."""
    old = ending(signed_in(entra, http, api.origin), 5)
    logins.keep(old)
    api.takes_all = True
    with ThreadPoolExecutor(8) as pool:
        clients = [TesClient(Client(server=api.origin), logins) for _ in range(8)]
        assert list(pool.map(lambda client: client.state("t"), clients)) == ["QUEUED"] * 8
    kept = logins.of(api.origin)
    assert kept is not None
    assert set(api.shown) == {kept.token} != {old.token}


def test_a_login_that_has_ended_says_so(
    entra: EntraServer, http: httpx.Client, api: Api, logins: Logins
) -> None:
    logins.keep(ending(signed_in(entra, http, api.origin), -1))
    entra.forget_refresh_tokens()
    with pytest.raises(Failure, match=r"the sign-in of ann at .* has ended: AADSTS70043") as caught:
        TesClient(Client(server=api.origin), logins).state("t")
    assert caught.value.code == Code.SIGN_IN
    assert caught.value.details == ("sign in again: tesazure login",)
    assert api.shown == []


def test_an_outage_of_the_issuer_is_ridden_out_while_the_token_lasts(
    entra: EntraServer, http: httpx.Client, api: Api, logins: Logins
) -> None:
    login = ending(signed_in(entra, http, api.origin), 30)
    logins.keep(login)
    api.good.add(login.token)
    entra.down()
    assert TesClient(Client(server=api.origin), logins).state("t") == "QUEUED"
    logins.keep(ending(login, -1))
    with pytest.raises(Failure, match="cannot be reached") as caught:
        TesClient(Client(server=api.origin), logins).state("t")
    assert caught.value.code == Code.UNREACHABLE


def test_who_has_signed_out_is_not_signed_in_again(
    entra: EntraServer, http: httpx.Client, api: Api, logins: Logins
) -> None:
    """By a program that still runs, when its token ends."""
    logins.keep(ending(signed_in(entra, http, api.origin), 5))
    client = TesClient(Client(server=api.origin), logins)
    logout(Client(server=api.origin), logins)
    issued = entra.issued
    with pytest.raises(Failure, match=r"ann at .* has ended: signed out meanwhile") as caught:
        client.state("t")
    assert caught.value.code == Code.SIGN_IN
    assert (entra.issued, api.shown, logins.of(api.origin)) == (issued, [], None)


@pytest.mark.parametrize("locked", [True, False])
def test_signing_out_while_a_token_is_renewed_holds(
    entra: Hesitant, http: httpx.Client, api: Api, logins: Logins, locked: bool
) -> None:
    """By `logout`, or by who deletes the file."""
    logins.keep(ending(signed_in(entra, http, api.origin), 5))
    api.takes_all = True
    entra.may_renew.clear()
    with ThreadPoolExecutor(2) as pool:
        try:
            state = pool.submit(TesClient(Client(server=api.origin), logins).state, "t")
            assert entra.renewing.wait(30)
            leave = logout if locked else (lambda client, _: logins.forget(client.server))
            left = pool.submit(leave, Client(server=api.origin), logins)
            if not locked:
                left.result(10)
        finally:
            entra.may_renew.set()
        assert state.result(30) == "QUEUED"
        left.result(30)
    assert logins.of(api.origin) is None


def test_what_is_shown_comes_in_order(api: Api, logins: Logins) -> None:
    """The token given, the URL's user and password, the login, nothing."""
    with_password = f"http://ann:p%40ss@{api.origin.removeprefix('http://')}"
    logins.keep(Login(server=api.origin, token="kept", name="ann"))
    for client in (
        TesClient(Client(server=with_password, token="given"), logins),
        TesClient(Client(server=with_password), logins),
        TesClient(Client(server=api.origin), logins),
        TesClient(Client(server=api.origin)),
    ):
        with pytest.raises(Failure):
            client.state("t")
    assert api.shown == ["given", "Basic YW5uOnBAc3M=", "kept", ""]


@pytest.mark.parametrize("token", ["", "a.b", "a.!.c", "a.e30.c", "a.W10.c"])
def test_a_token_need_not_name_anybody(token: str) -> None:
    assert oidc.name_in(token) == ""


@pytest.fixture
def server(entra: EntraServer, tmp_path: Path) -> Iterator[RunningServer]:
    """A server that takes the tokens of one tenant."""
    with start_server(
        tmp_path / "server",
        aad_verify=True,
        aad_authority=entra.authority,
        aad_tenant_id=TENANT,
        aad_audience=AUDIENCE,
        ca_bundle=entra.ca_bundle,
    ) as running:
        yield running


@pytest.fixture
def tool(server: RunningServer, tmp_path: Path) -> Tool:
    return Tool(server.url, tmp_path, {"XDG_STATE_HOME": str(tmp_path / "state")})


def enter_code(entra: EntraServer, login: subprocess.Popen[str], **claims: object) -> list[str]:
    """Do what `tesazure login` says; what it said."""
    assert login.stderr is not None
    said = [login.stderr.readline() for _ in range(4)]
    assert said[1] == f"  for the application {AUDIENCE}, {AUDIENCE}/.default\n"
    assert f"{entra.url}/device" in said[2]
    entra.approve(said[3].split()[-1], claims)
    return said


def test_login_by_a_code_until_logout(entra: EntraServer, tool: Tool) -> None:
    tool("list", code=Code.SIGN_IN)
    with tool.start("login") as login:
        said = enter_code(entra, login)
        assert said[0] == f"to sign in at {tool.root} with 127.0.0.1:\n"
        assert login.stderr is not None
        done = login.stderr.read()
        assert login.wait(30) == Code.OK
    assert done == f"signed in at {tool.root} as user@example.org\n"
    tool("run", "--wait", "any", "--", "true")
    tool("logout")
    tool("list", code=Code.SIGN_IN)


def test_a_login_lasts_beyond_its_first_token(entra: EntraServer, tool: Tool) -> None:
    entra.lifetime_s = 30  # which is less than what a token must last to be used
    with tool.start("login") as login:
        enter_code(entra, login)
        assert login.wait(30) == Code.OK
    entra.lifetime_s = 3600
    issued = entra.issued
    tool("list")
    assert entra.issued > issued
    issued = entra.issued
    tool("list")
    assert entra.issued == issued
    entra.forget_refresh_tokens()
    tool("list")


def test_a_login_without_rights_is_not_kept(entra: EntraServer, tool: Tool) -> None:
    with tool.start("login") as login:
        enter_code(entra, login, scp=None, roles=None)
        assert login.stderr is not None
        said = login.stderr.read()
        assert login.wait(30) == Code.DENIED
    assert "Tasks.Read" in said
    tool("list", code=Code.SIGN_IN)


def test_an_interrupted_login_keeps_nothing(tool: Tool) -> None:
    with tool.start("login") as login:
        assert login.stderr is not None
        for _ in range(3):
            login.stderr.readline()
        login.send_signal(signal.SIGINT)
        assert "Traceback" not in login.stderr.read()
        assert login.wait(30) == Code.INTERRUPTED
    tool("list", code=Code.SIGN_IN)


def test_a_login_by_api_token_where_none_are_taken(tool: Tool) -> None:
    done = tool("login", "--api-token", code=Code.SIGN_IN)
    assert "takes no API tokens" in done.stderr

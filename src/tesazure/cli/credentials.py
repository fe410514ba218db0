"""What the client shows a server: a token, a login that renews itself, or user and password."""

from __future__ import annotations

import threading
import time
from base64 import b64encode
from collections.abc import Generator
from urllib.parse import unquote, urlsplit, urlunsplit

import httpx
import msgspec

from tesazure.cli import oidc
from tesazure.cli.exits import Code, Failure
from tesazure.cli.logins import Login, Logins
from tesazure.settings import Client

EARLY_S = 60.0
"""A token that ends so soon is renewed before it is used."""


class Credentials(httpx.Auth):
    """Puts the `Authorization` header on each request. This one: none."""

    remedy = "sign in: tesazure login; or give a token by --token or TESAZURE_TOKEN"
    """What to do when the server answers 401."""

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """Called by httpx for each request. Raises Failure."""
        yield request


class Fixed(Credentials):
    """The same header on each request."""

    def __init__(self, header: str, remedy: str) -> None:
        self._header = header
        self.remedy = remedy

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """Add it."""
        request.headers["Authorization"] = self._header
        yield request


class SignedIn(Credentials):
    """The token of a login, renewed shortly before it ends. Used by several threads."""

    remedy = "sign in again: tesazure login"

    def __init__(self, logins: Logins, login: Login) -> None:
        self._logins = logins
        self._login = login
        self._lock = threading.Lock()

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """Add the token; another one if the server refuses it, whose clock may be another."""
        token = self._token()
        request.headers["Authorization"] = f"Bearer {token}"
        response = yield request
        if response.status_code == 401 and self._login.refresh_token:
            request.headers["Authorization"] = f"Bearer {self._token(refused=token)}"
            yield request

    def _token(self, refused: str = "") -> str:
        with self._lock:
            if self._is_good(refused):
                return self._login.token
            with self._logins.alone(self._login.server):
                # Another process may have renewed it, or signed in as somebody else, or out.
                found = self._logins.of(self._login.server)
                if found is None:
                    raise _ended(self._login, "signed out meanwhile")
                self._login = found
                if not self._is_good(refused):
                    self._renew()
            return self._login.token

    def _is_good(self, refused: str) -> bool:
        login = self._login
        lasting = login.expires is None or login.expires - time.time() > EARLY_S
        return lasting and login.token != refused

    def _renew(self) -> None:
        login = self._login
        if not login.refresh_token:
            if login.expires is not None and login.expires > time.time():
                return
            raise _ended(login)
        try:
            with httpx.Client() as http:
                tokens = oidc.renew(
                    http, login.token_endpoint, login.client_id, login.scope, login.refresh_token
                )
        except oidc.OAuthError as error:
            raise _ended(login, str(error)) from error
        except Failure:
            if login.expires is not None and login.expires > time.time():
                return
            raise
        self._login = with_tokens(login, tokens)
        # Somebody may have deleted the file by hand, whom no lock stops.
        if self._logins.of(login.server) == login:
            self._logins.keep(self._login)


def with_tokens(login: Login, tokens: oidc.Tokens) -> Login:
    """The login with new tokens; a provider that sends no new refresh token means the old one."""
    return msgspec.structs.replace(
        login,
        token=tokens.access_token,
        expires=time.time() + tokens.expires_in,
        refresh_token=tokens.refresh_token or login.refresh_token,
    )


def choose(client: Client, root: str, userinfo: str, logins: Logins | None) -> Credentials:
    """The first there is of: the token given, `user:password` of the server's URL, the login at
    this server. Raises Failure."""
    if client.token:
        remedy = "the token of --token or TESAZURE_TOKEN is not good here, or no longer"
        return Fixed(f"Bearer {client.token}", remedy)
    if userinfo:
        user, _, password = userinfo.partition(":")
        encoded = b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
        return Fixed(f"Basic {encoded}", "user or password in the server's URL are not good")
    login = logins.of(root) if logins else None
    return SignedIn(logins, login) if logins and login else Credentials()


def without_userinfo(url: str) -> tuple[str, str]:
    """A URL without `user:password@`, and that."""
    parts = urlsplit(url)
    userinfo, at, host = parts.netloc.rpartition("@")
    return (urlunsplit(parts._replace(netloc=host)), userinfo) if at else (url, "")


def _ended(login: Login, why: str = "") -> Failure:
    said = f"the sign-in of {login.name} at {login.server} has ended"
    return Failure(Code.SIGN_IN, f"{said}: {why}" if why else said, SignedIn.remedy)

"""`login` and `logout`: a token for a server, got once and renewed as needed."""

from __future__ import annotations

import getpass
import sys
import time
from urllib.parse import urlsplit

import httpx
import msgspec

from tesazure.cli import oidc, show
from tesazure.cli.client import TesClient, root_of, split
from tesazure.cli.credentials import with_tokens
from tesazure.cli.exits import Code, Failure
from tesazure.cli.logins import Login, Logins
from tesazure.settings import Client

_OF_EVERY_PROVIDER = frozenset({"openid", "profile", "email", "offline_access"})
"""Scopes that give no right at any API (OpenID Connect Core 1.0, sections 5.4 and 11)."""


class Announced(msgspec.Struct, frozen=True):
    """What a server says about signing in (`/api/v1/sign-in`)."""

    required: bool = False
    api_tokens: bool = False
    issuer: str = ""
    """The OpenID provider whose tokens it takes; empty: none, or none that this program can ask."""
    client_id: str = ""
    scope: str = ""


def login(
    client: Client, logins: Logins, *, device: bool, api_token: bool, audience: str = ""
) -> None:
    """Sign in at the server and keep what that gave. `audience`: as of --audience. Raises
    Failure."""
    root = root_of(client.server)
    announced = _announced(root)
    if not announced.required:
        show.say(f"{root} asks nobody to sign in")
        return
    can_ask = bool(announced.issuer and announced.client_id)
    if device and not can_ask:
        said = f"{root} names no application to sign in with"
        raise Failure(Code.SIGN_IN, said, "its administrator sets AAD_CLIENT_ID or AAD_AUDIENCE")
    if api_token or not can_ask:
        if not announced.api_tokens:
            said = f"{root} takes no API tokens" if api_token else f"{root} says not how to sign in"
            raise Failure(Code.SIGN_IN, said, "give a token by --token or TESAZURE_TOKEN")
        if _in_the_clear(root):
            show.say(f"WARNING: {root} is not https: whoever sees the traffic sees the token")
        made = _by_api_token(root)
    else:
        _check(root, announced, audience)
        made = _by_device(root, announced)
    _try(made)
    with logins.alone(root):
        logins.keep(made)
    until = "" if made.expires is None or made.refresh_token else f" until {_clock(made.expires)}"
    show.say(f"signed in at {root}{f' as {made.name}' if made.name else ''}{until}")
    if client.token:
        show.say("commands show the token of --token or TESAZURE_TOKEN instead, while there is one")
    elif split(client.server)[1]:
        show.say("commands show user and password of the server's URL instead, while it has some")


def logout(client: Client, logins: Logins) -> None:
    """Forget the login at the server."""
    root = root_of(client.server)
    with logins.alone(root):
        done = logins.forget(root)
    show.say(f"signed out of {root}" if done else f"there was no login at {root}")


def _announced(root: str) -> Announced:
    asking = TesClient(Client(server=root))
    try:
        document = asking.sign_in()
    finally:
        asking.close()
    if document is None:
        said = f"{root} does not say how to sign in"
        raise Failure(Code.SIGN_IN, said, "give a token by --token or TESAZURE_TOKEN")
    try:
        return msgspec.convert(document, Announced)
    except msgspec.ValidationError as error:
        said = f"{root} does not say how to sign in in a way known here: {error}"
        raise Failure(Code.UNREACHABLE, said, "is this program older than the server?") from error


def _in_the_clear(root: str) -> bool:
    return urlsplit(root).scheme == "http" and urlsplit(root).hostname not in oidc.LOOPBACK


def _check(root: str, announced: Announced, audience: str) -> None:
    """Refuse what is plainly a sign-in to something else: it is the server, or whoever sits
    between, that says what to sign in to. A server that lies can still name another application,
    and that one's scopes: so both are shown beside the code. Raises Failure."""
    if _in_the_clear(root):
        said = f"{root} is not https: whoever sits between could sign you in to something else"
        tunnel = f"ssh -L 8000:127.0.0.1:{urlsplit(root).port or 80} {urlsplit(root).hostname}"
        remedy = f"or go through a tunnel: {tunnel}, and --server http://127.0.0.1:8000"
        raise Failure(Code.SIGN_IN, said, "give its https URL", remedy)
    own = {_bare(announced.client_id), _bare(audience)} - {""}
    for scope in _rights(announced.scope):
        resource = scope.rpartition("/")[0].lower()
        host = resource.partition("://")[2].partition("/")[0]
        if _bare(resource) not in own and host != urlsplit(root).hostname:
            said = f"{root} wants a token for {_printable(scope)}, which may be another service's"
            remedy = "if it is the server's own, as its administrator knows: tesazure login"
            raise Failure(Code.SIGN_IN, said, f"{remedy} --audience ID")


def _rights(scope: str) -> list[str]:
    return sorted(set(scope.split()) - _OF_EVERY_PROVIDER)


def _bare(application: str) -> str:
    return application.lower().removeprefix("api://").rstrip("/")


def _by_device(root: str, announced: Announced) -> Login:
    scope, client_id = announced.scope, announced.client_id
    with httpx.Client() as http:
        provider = oidc.discover(http, announced.issuer)
        where = provider.device_authorization_endpoint
        if not where:
            said = f"{announced.issuer} has no device code flow"
            raise Failure(Code.SIGN_IN, said, "give a token by --token or TESAZURE_TOKEN")
        code = oidc.ask_for_code(http, where, client_id, scope)
        show.say(f"to sign in at {root} with {urlsplit(announced.issuer).hostname}:")
        shown = ", ".join([f"application {client_id}", *_rights(scope)])
        show.say(f"  for the {_printable(shown)}")
        show.say(f"  open {_printable(code.verification_uri)} in a browser, on any machine")
        show.say(f"  and enter {_printable(code.user_code)}")
        tokens = oidc.wait_for_user(http, provider.token_endpoint, client_id, code)
    bare = Login(
        server=root,
        token="",
        name=oidc.name_in(tokens.access_token),
        client_id=client_id,
        scope=scope,
        token_endpoint=provider.token_endpoint,
    )
    return with_tokens(bare, tokens)


def _by_api_token(root: str) -> Login:
    if sys.stdin.isatty():
        token = getpass.getpass(f"API token for {root} (tesz_…, not shown): ")
    else:
        token = sys.stdin.readline()
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable():
        raise Failure(Code.USAGE, "no token was given")
    return Login(server=root, token=token, name="")


def _try(made: Login) -> None:
    """See that the server takes the token, before it is kept. Raises Failure."""
    client = TesClient(Client(server=made.server, token=made.token))
    try:
        client.page([("page_size", "1")], None)
    except Failure as failure:
        if failure.code == Code.SIGN_IN:
            said = f"{made.server} does not take this token: {failure}"
            raise Failure(failure.code, said) from failure
        raise
    finally:
        client.close()


def _clock(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))


def _printable(text: str) -> str:
    """What a provider wants shown, without what could paint over the terminal."""
    return "".join(char for char in text if char.isprintable())[:500]

"""`login` and `logout`: a token for a server, got once and renewed as needed."""

from __future__ import annotations

import getpass
import sys
import time
from urllib.parse import urlsplit

import httpx
import msgspec

from tesazure.cli import oidc, show
from tesazure.cli.client import TesClient, root_of
from tesazure.cli.credentials import with_tokens
from tesazure.cli.exits import Code, Failure
from tesazure.cli.logins import Login, Logins
from tesazure.settings import Client


class Announced(msgspec.Struct, frozen=True):
    """What a server says about signing in (`/api/v1/sign-in`)."""

    required: bool = False
    api_tokens: bool = False
    issuer: str = ""
    """The OpenID provider whose tokens it takes; empty: none, or none that this program can ask."""
    client_id: str = ""
    scope: str = ""


def login(client: Client, logins: Logins, *, device: bool, api_token: bool) -> None:
    """Sign in at the server and keep what that gave. Raises Failure."""
    root = root_of(client.server)
    announced = _announced(root)
    if not announced.required:
        show.say(f"{root} asks nobody to sign in")
        return
    if urlsplit(root).scheme == "http" and urlsplit(root).hostname not in oidc.LOOPBACK:
        show.say(f"WARNING: {root} is not https: whoever sees the traffic sees the token")
    can_ask = bool(announced.issuer and announced.client_id)
    if device and not can_ask:
        said = f"{root} names no application to sign in with"
        raise Failure(Code.SIGN_IN, said, "its administrator sets AAD_CLIENT_ID or AAD_AUDIENCE")
    if api_token or not can_ask:
        if not announced.api_tokens:
            said = f"{root} takes no API tokens" if api_token else f"{root} says not how to sign in"
            raise Failure(Code.SIGN_IN, said, "give a token by --token or TESAZURE_TOKEN")
        made = _by_api_token(root)
    else:
        made = _by_device(root, announced)
    _try(made)
    logins.keep(made)
    until = "" if made.expires is None or made.refresh_token else f" until {_clock(made.expires)}"
    show.say(f"signed in at {root}{f' as {made.name}' if made.name else ''}{until}")
    if client.token:
        show.say("commands show the token of --token or TESAZURE_TOKEN instead, while there is one")


def logout(client: Client, logins: Logins) -> None:
    """Forget the login at the server."""
    root = root_of(client.server)
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

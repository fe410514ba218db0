"""Signing in at an OpenID provider without a browser here, and staying so.

OpenID Connect Discovery 1.0; OAuth 2.0 Device Authorization Grant (RFC 8628); refresh tokens
(RFC 6749, section 6). Certificates are checked against those of SSL_CERT_FILE, else certifi's.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec

from tesazure.cli.exits import Code, Failure

T = TypeVar("T")
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_PATIENCE_S = 20.0
_MOST_BYTES = 256 * 1024
_SLOWER_S = 5.0
"""By how much slow_down lengthens the interval (RFC 8628, section 3.5)."""
_DECLINED = frozenset({"access_denied", "authorization_declined"})


class Provider(msgspec.Struct, frozen=True):
    """The endpoints of an OpenID provider."""

    token_endpoint: str
    device_authorization_endpoint: str = ""


class DeviceCode(msgspec.Struct, frozen=True):
    """What a user must do, and how to ask whether it is done. Times in seconds."""

    device_code: str
    user_code: str
    verification_uri: str
    expires_in: float
    interval: float = 5.0


class Tokens(msgspec.Struct, frozen=True):
    """The answer of a token endpoint."""

    access_token: str
    expires_in: float = 3600.0
    refresh_token: str = ""

    def __repr__(self) -> str:
        return "Tokens(…)"


class OAuthError(Exception):
    """The provider's refusal, by its code (RFC 6749, section 5.2)."""

    def __init__(self, code: str, description: str) -> None:
        super().__init__(description or code)
        self.code = code


def discover(http: httpx.Client, issuer: str) -> Provider:
    """The provider's endpoints. Raises Failure."""
    url = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
    _check_secure(url)
    with _failures(url):
        response = http.get(url, timeout=_PATIENCE_S)
    found = _decoded(response, Provider, f"{url} answered HTTP {response.status_code}")
    for endpoint in (found.token_endpoint, found.device_authorization_endpoint):
        if endpoint:
            _check_secure(endpoint)
    return found


def ask_for_code(http: httpx.Client, url: str, client_id: str, scope: str) -> DeviceCode:
    """Begin a sign-in. Raises Failure."""
    try:
        return _post(http, url, {"client_id": client_id, "scope": scope}, DeviceCode)
    except OAuthError as error:
        said = f"{urlsplit(url).hostname} refuses to begin a sign-in: {error}"
        remedy = "may the application use public client flows? its administrator knows"
        raise Failure(Code.SIGN_IN, said, remedy) from error


def wait_for_user(
    http: httpx.Client,
    url: str,
    client_id: str,
    code: DeviceCode,
    sleep: Callable[[float], None] = time.sleep,
) -> Tokens:
    """Ask until the user has signed in. Raises Failure when they decline, or their time is up."""
    form = {"grant_type": _DEVICE_GRANT, "device_code": code.device_code, "client_id": client_id}
    deadline = time.monotonic() + code.expires_in
    interval = max(code.interval, 1.0)
    while time.monotonic() + interval < deadline:
        sleep(interval)
        try:
            return _post(http, url, form, Tokens)
        except OAuthError as error:
            if error.code == "slow_down":
                interval += _SLOWER_S
            elif error.code in _DECLINED:
                raise Failure(Code.SIGN_IN, "the sign-in was declined") from error
            elif error.code == "expired_token":
                break
            elif error.code != "authorization_pending":
                raise Failure(Code.SIGN_IN, f"the sign-in failed: {error}") from error
        except Failure as failure:
            if failure.code != Code.UNREACHABLE:
                raise
            # It was there a moment ago (RFC 8628, section 3.5: ask less often after a timeout).
            interval *= 2
    raise Failure(Code.SIGN_IN, "nobody signed in while the code was good", "try again")


def renew(http: httpx.Client, url: str, client_id: str, scope: str, refresh_token: str) -> Tokens:
    """New tokens for a refresh token. Raises OAuthError when it is no longer good, Failure when the
    provider does not answer."""
    form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
    return _post(http, url, form | {"client_id": client_id, "scope": scope}, Tokens)


def name_in(token: str) -> str:
    """Whom a token names, to show; not verified. Empty if it does not say."""
    parts = token.split(".")
    if len(parts) != 3:
        return ""
    try:
        padded = parts[1] + "=" * (-len(parts[1]) % 4)
        claims = msgspec.json.decode(base64.urlsafe_b64decode(padded), type=dict[str, Any])
    except (ValueError, msgspec.DecodeError):
        return ""
    names = (claims.get(key) for key in ("preferred_username", "upn", "email", "name", "sub"))
    found = next((name for name in names if isinstance(name, str) and name.isprintable()), "")
    return found[:200]


def _post(http: httpx.Client, url: str, form: dict[str, str], kind: type[T]) -> T:
    with _failures(url):
        response = http.post(url, data=form, timeout=_PATIENCE_S)
    if response.status_code in (400, 401, 403):
        refused = _decoded(response, dict[str, Any], f"{url} answered something strange")
        said = str(refused.get("error_description") or "").partition("\n")[0]
        raise OAuthError(str(refused.get("error", "")), said[:500])
    return _decoded(response, kind, f"{url} answered HTTP {response.status_code}")


def _decoded(response: httpx.Response, kind: type[T], said: str) -> T:
    if len(response.content) > _MOST_BYTES or response.status_code >= 500:
        raise Failure(Code.UNREACHABLE, said)
    try:
        return msgspec.json.decode(response.content, type=kind, strict=False)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Failure(Code.SIGN_IN, f"{said}, which is no OpenID provider's answer") from error


def _check_secure(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise Failure(Code.SIGN_IN, f"not over https: {url}", "tokens are not sent in the clear")


@contextmanager
def _failures(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.TransportError, httpx.InvalidURL) as error:
        said = f"the sign-in service at {urlsplit(url).netloc} cannot be reached"
        raise Failure(Code.UNREACHABLE, f"{said}: {str(error) or type(error).__name__}") from error

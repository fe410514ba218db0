"""Whether a request to the Batch stand-in comes from someone who may make it.

Sources: "Authenticate requests to the Azure Batch service", "Authenticate Azure Batch services with
Microsoft Entra ID".
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Collection
from email.utils import parsedate_to_datetime
from urllib.parse import parse_qs, urlsplit

import jwt

from tests.services.batch_wire import TICKS_PER_SECOND, Clock, Refused, Request
from tests.services.entra_server import TENANT, EntraServer

RESOURCE = "https://batch.core.windows.net/"
"""Of the public cloud; other clouds' have others."""
SIGNED = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
)
_PATIENCE_S = 15 * 60


class Doorkeeper:
    """Checks the Authorization header. `forbids_keys`: as an account whose allowed authentication
    modes lack shared keys. `members`: object ids that have a role on the account; None: everyone
    with a token of the issuer."""

    def __init__(self, account: str, key: str, clock: Clock, issuer: EntraServer | None) -> None:
        self.account, self.key = account, key
        self.second_key = ""
        self.forbids_keys = False
        self.resource = RESOURCE
        """What tokens must be for."""
        self.members: Collection[str] | None = None
        self._clock = clock
        self._issuer = issuer

    def admit(self, request: Request) -> None:
        """Raises Refused."""
        scheme, _, proof = request.headers.get("authorization", "").partition(" ")
        match scheme:
            case "SharedKey":
                self._check_signature(request, proof)
            case "Bearer":
                self._check_token(proof)
            case _:
                authority = self._issuer.url if self._issuer else "https://login.windows.net"
                challenge = f'Bearer authorization_uri="{authority}/{TENANT}"'
                said = "Server failed to authenticate the request. Authorization is missing."
                raise Refused(401, "AuthenticationFailed", said, None, _challenge(challenge))

    def _check_signature(self, request: Request, proof: str) -> None:
        if self.forbids_keys:
            raise _failed("The account does not allow authentication with shared keys.")
        account, _, signature = proof.partition(":")
        if account != self.account:
            raise _failed(f"The account {account} is not the one of this endpoint.")
        self._check_date(request)
        text = string_to_sign(request, account)
        keys = [key for key in (self.key, self.second_key) if key]
        if not any(hmac.compare_digest(_signed(text, key), signature) for key in keys):
            raise _failed(
                f"The MAC signature found in the HTTP request '{signature}' is not the same as any"
                f" computed signature. Server used following string to sign: '{text}'."
            )

    def _check_date(self, request: Request) -> None:
        given = request.headers.get("ocp-date") or request.headers.get("date", "")
        try:
            seconds = parsedate_to_datetime(given).timestamp()
        except ValueError:
            raise _failed(f"The date header in the request is incorrect: '{given}'.") from None
        if abs(seconds - self._clock.now() / TICKS_PER_SECOND) > _PATIENCE_S:
            raise _failed(f"Request date header too old or too new: '{given}'.")

    def _check_token(self, token: str) -> None:
        if self._issuer is None:
            raise _failed("This stand-in was given no issuer of tokens.")
        try:
            claims = self._issuer.verify(token, self.resource)
        except jwt.PyJWTError as error:
            said = "Server failed to authenticate the request."
            values = {"AuthenticationErrorDetail": f"The token is not valid: {error}"}
            header = _challenge('Bearer error="invalid_token"')
            raise Refused(401, "AuthenticationFailed", said, values, header) from error
        if self.members is not None and claims["oid"] not in self.members:
            said = "The caller has no permission on this account."
            raise Refused(403, "InsufficientAccountPermissions", said)


def string_to_sign(request: Request, account: str) -> str:
    """What a request's signature is made of."""
    parts = urlsplit(request.target)
    headers = request.headers
    lines = [request.method, *(headers.get(name, "") for name in SIGNED)]
    lines += [f"{name}:{headers[name]}" for name in sorted(headers) if name.startswith("ocp-")]
    lines.append(f"/{account}{parts.path}")
    query = parse_qs(parts.query)
    lines += [f"{name}:{query[name][0]}" for name in sorted(query) if query[name][0]]
    return "\n".join(lines)


def _signed(text: str, key: str) -> str:
    digest = hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


def _failed(detail: str) -> Refused:
    said = (
        "Server failed to authenticate the request. Make sure the value of Authorization header is"
        " formed correctly including the signature."
    )
    return Refused(403, "AuthenticationFailed", said, {"AuthenticationErrorDetail": detail})


def _challenge(text: str) -> dict[str, str]:
    return {"WWW-Authenticate": text}

"""Checks SAS tokens of Azure Files as Azure does: by computing their signatures anew.

Sources: "Create a service SAS", "Create an account SAS", "Create a user delegation SAS"
(Microsoft). Stored access policies are not known here, and refused.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal(Exception):
    """An answer other than success, as Azure words it."""

    status: int
    code: str
    message: str
    detail: str = ""


_FAILED = (
    "Server failed to authenticate the request. Make sure the value of Authorization header is"
    " formed correctly including the signature."
)
_SERVICE = ("si", "sip", "spr", "sv", "rscc", "rscd", "rsce", "rscl", "rsct")
_DELEGATED = ("skoid", "sktid", "skt", "ske", "sks", "skv", "skdutid", "sduoid", "sip", "spr", "sv")
_OVERRIDES = ("rscc", "rscd", "rsce", "rscl", "rsct")
_ACCOUNT = ("sp", "ss", "srt", "st", "se", "sip", "spr", "sv", "ses")


def check(
    query: Mapping[str, str],
    *,
    account: str,
    key: str,
    delegation_key: str = "",
    share: str,
    path: str,
    needs: str,
    scheme: str,
) -> None:
    """Raises Refusal unless the query holds a SAS for `path` of `share` that permits one of
    `needs`, letters of `sp`. `delegation_key`: the value of the user delegation key that was given
    out, if one was."""
    if "sig" not in query:
        raise Refusal(
            401,
            "NoAuthenticationInformation",
            "Server failed to authenticate the request. Please refer to the information in the"
            " www-authenticate header.",
        )
    if "ss" in query:
        signed = [account, *(query.get(name, "") for name in _ACCOUNT), ""]
    else:
        resource = f"/file/{account}/{share}"
        if query.get("sr") == "f":
            resource += f"/{path}"
        elif query.get("sr") != "s":
            raise Refusal(403, "AuthenticationFailed", _FAILED, "sr is mandatory: s or f")
        times = [query.get(name, "") for name in ("sp", "st", "se")]
        names = (*_DELEGATED, *_OVERRIDES) if "skoid" in query else _SERVICE
        signed = [*times, resource, *(query.get(name, "") for name in names)]
        if "skoid" in query:
            key = delegation_key
            early = query["sv"] < "2026-02-06"
            if not key or early or query.get("se", "") > query.get("ske", ""):
                raise Refusal(403, "AuthenticationFailed", _FAILED, "No such delegation.")
    right = hmac.new(base64.b64decode(key), "\n".join(signed).encode(), hashlib.sha256).digest()
    given = query["sig"].encode()
    if not hmac.compare_digest(base64.b64encode(right), given):
        raise Refusal(403, "AuthenticationFailed", _FAILED, "Signature did not match.")
    _check_times(query)
    _check_scope(query, needs, scheme)


def _check_times(query: Mapping[str, str]) -> None:
    now = dt.datetime.now(dt.UTC)
    start, expiry = query.get("st", ""), query.get("se", "")
    early = start and now < dt.datetime.fromisoformat(start)
    if early or not expiry or now > dt.datetime.fromisoformat(expiry):
        raise Refusal(
            403,
            "AuthenticationFailed",
            _FAILED,
            f"Signature not valid in the specified time frame: Start [{start}] - Expiry [{expiry}]"
            f" - Current [{now:%a, %d %b %Y %H:%M:%S GMT}]",
        )


def _check_scope(query: Mapping[str, str], needs: str, scheme: str) -> None:
    if scheme not in query.get("spr", "https,http").split(","):
        raise _not_authorized("AuthorizationProtocolMismatch", "protocol")
    if "ss" in query and "f" not in query["ss"]:
        raise _not_authorized("AuthorizationServiceMismatch", "service")
    if "ss" in query and "o" not in query.get("srt", ""):
        raise _not_authorized("AuthorizationResourceTypeMismatch", "resource type")
    if not set(needs) & set(query.get("sp", "")):
        raise _not_authorized("AuthorizationPermissionMismatch", "permission")


def _not_authorized(code: str, what: str) -> Refusal:
    message = f"This request is not authorized to perform this operation using this {what}."
    return Refusal(403, code, message)

"""Shared access signatures of Azure Blob and Azure Files: one place, some rights, a time. Pure.

Of one version of the service, which all clouds and the emulator know: the SDKs sign with their
newest one, which older services refuse, and importing them takes longer than all else that the
server does for a task. Tests compare the two.

Sources: "Create a service SAS", "Create a user delegation SAS" (Microsoft).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime
from urllib.parse import quote, urlencode

import msgspec

VERSION = "2025-07-05"
FILES_BY_IDENTITY = "2026-02-06"
"""The first that has user delegation for Azure Files."""


class Place(msgspec.Struct, frozen=True):
    """What is signed for. An empty `path` means the whole container or share."""

    service: str
    """`blob` or `file`."""
    account: str
    container: str
    path: str = ""

    @property
    def resource(self) -> str:
        """The parameter `sr`."""
        if self.service == "blob":
            return "b" if self.path else "c"
        return "f" if self.path else "s"


class Grant(msgspec.Struct, frozen=True):
    """Rights as in `sp`, in the service's order, and from when to when."""

    rights: str
    start: datetime
    expiry: datetime
    protocol: str = "https"


class DelegationKey(msgspec.Struct, frozen=True):
    """A user delegation key as the service gave it; its texts are signed as they are."""

    oid: str
    tid: str
    start: str
    expiry: str
    service: str
    version: str
    value: str

    def __repr__(self) -> str:
        return "DelegationKey(…)"


def service_sas(place: Place, grant: Grant, key: str, version: str = VERSION) -> str:
    """The query of a SAS signed with an account's key (base64)."""
    fields = _fields(place, grant, version)
    lines = [grant.rights, fields["st"], fields["se"], _canonical(place), "", "", grant.protocol]
    lines.append(version)
    if place.service == "blob":
        lines += [place.resource, "", ""]
    return _signed(fields, [*lines, *_OVERRIDES], key)


def delegation_sas(place: Place, grant: Grant, key: DelegationKey, version: str = "") -> str:
    """The query of a SAS signed with a user delegation key."""
    version = version or (VERSION if place.service == "blob" else FILES_BY_IDENTITY)
    fields = _fields(place, grant, version)
    fields |= {"skoid": key.oid, "sktid": key.tid, "skt": key.start, "ske": key.expiry}
    fields |= {"sks": key.service, "skv": key.version}
    lines = [grant.rights, fields["st"], fields["se"], _canonical(place)]
    lines += [key.oid, key.tid, key.start, key.expiry, key.service, key.version]
    if place.service == "blob":
        lines += ["", "", ""]  # authorized and unauthorized user, correlation id
    lines += ["", "", "", grant.protocol, version]  # delegated user's tenant and id, IP addresses
    if place.service == "blob":
        lines += [place.resource, "", ""]  # snapshot time, encryption scope
    return _signed(fields, [*lines, *_OVERRIDES], key.value)


_OVERRIDES = ("", "", "", "", "")
"""Cache-Control, Content-Disposition, -Encoding, -Language and -Type of answers."""


def time_text(moment: datetime) -> str:
    """As signatures have it: UTC, in whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _fields(place: Place, grant: Grant, version: str) -> dict[str, str]:
    return {
        "sv": version,
        "st": time_text(grant.start),
        "se": time_text(grant.expiry),
        "sr": place.resource,
        "sp": grant.rights,
        "spr": grant.protocol,
    }


def _canonical(place: Place) -> str:
    path = f"/{place.path}" if place.path else ""
    return f"/{place.service}/{place.account}/{place.container}{path}"


def _signed(fields: dict[str, str], lines: list[str], key: str) -> str:
    text = "\n".join(lines)
    digest = hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()
    return urlencode({**fields, "sig": base64.b64encode(digest).decode()}, quote_via=quote, safe="")

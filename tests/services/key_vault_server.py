"""A stand-in for an Azure Key Vault's secrets, over TLS.

It asks for a token of the Entra ID stand-in by a challenge, checks it, and keeps versions of
secrets. Sources: "Azure Key Vault REST API reference": Get Secrets, Get Secret, Get Secret
Versions, Set Secret, Update Secret; "Key Vault soft-delete overview"; "Authentication, requests and
responses"; "Azure Key Vault REST API error codes".
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jwt

from tests.services.entra_server import TENANT, EntraServer
from tests.services.tls_server import Refusal, Request, TlsServer

RESOURCE = "https://vault.azure.net"
_API_VERSIONS = re.compile(r"7\.[0-6]|20\d\d-\d\d-\d\d")
_NAME = re.compile(r"[0-9a-zA-Z-]{1,127}")
_PAGE = 25
_LONGEST_PAGE = 25
_LONGEST_VALUE = 25 * 1024


@dataclass
class _Version:
    value: str
    enabled: bool
    expires: int | None
    not_before: int | None
    tags: dict[str, str] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))
    number: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def attributes(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "enabled": self.enabled,
            "nbf": self.not_before,
            "exp": self.expires,
            "created": self.created,
            "updated": self.created,
            "recoveryLevel": "Recoverable+Purgeable",
            "recoverableDays": 90,
        }
        return {name: value for name, value in found.items() if value is not None}


class KeyVaultServer(TlsServer):
    """One vault. `readers` are the object ids that may read, `writers` those that may read and
    write; None: whoever has a token. With
    `page`, lists come in pages of that many. `exchanges` has every request with its answer."""

    def __init__(self, directory: Path, entra: EntraServer, page: int = _PAGE) -> None:
        super().__init__(directory)
        self.readers: set[str] | None = None
        self.writers: set[str] | None = None
        self.deleted: set[str] = set()
        """Names, in lower case, of secrets that can still be recovered."""
        self.challenges = 0
        self.exchanges: list[tuple[Request, int, Any]] = []
        self._entra = entra
        self._page = page
        self._secrets: dict[str, list[_Version]] = {}
        self._lock = threading.Lock()

    def set(
        self,
        name: str,
        value: str,
        *,
        enabled: bool = True,
        expires: float | None = None,
        not_before: float | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        """A new version of a secret. Times since the epoch."""
        assert _NAME.fullmatch(name), name
        assert len(value) <= _LONGEST_VALUE
        version = _Version(value, enabled, _whole(expires), _whole(not_before), tags or {})
        with self._lock:
            kept = next((key for key in self._secrets if key.lower() == name.lower()), name)
            self._secrets.setdefault(kept, []).append(version)

    def value(self, name: str) -> str | None:
        """Of the newest version; None if that is disabled, or there is none."""
        with self._lock:
            versions = self._secrets.get(name, [])
            return versions[-1].value if versions and versions[-1].enabled else None

    def versions(self, name: str) -> list[str]:
        """Values of all versions, the oldest first."""
        with self._lock:
            return [version.value for version in self._secrets.get(name, [])]

    def remove(self, name: str) -> None:
        """Delete a secret."""
        with self._lock:
            del self._secrets[name]

    def answer(self, request: Request) -> Any:
        """See TlsServer."""
        try:
            reply = self._answer(request)
        except Refusal as refusal:
            self.exchanges.append((request, refusal.status, refusal.document))
            raise
        self.exchanges.append((request, 200, reply))
        return reply

    def _answer(self, request: Request) -> Any:
        self._authorize(request)
        if not _API_VERSIONS.fullmatch(request.query.get("api-version", "")):
            raise _refusal(400, "BadParameter", "api-version must be specified")
        match request.path.strip("/").split("/"):
            case ["secrets"] if request.method == "GET":
                return self._list(request)
            case ["secrets", name, "versions"] if request.method == "GET":
                return self._versions(name)
            case ["secrets", name, *version] if request.method == "GET" and len(version) < 2:
                return self._get(name, version[0] if version else "")
            case ["secrets", name] if request.method == "PUT":
                return self._put(name, json.loads(request.body))
            case ["secrets", name, *version] if request.method == "PATCH" and len(version) < 2:
                return self._patch(name, version[0] if version else "", json.loads(request.body))
            case _:
                raise _refusal(404, "NotFound", "no such operation")

    def _authorize(self, request: Request) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        challenge = {
            "WWW-Authenticate": f'Bearer authorization="{self._entra.url}/{TENANT}",'
            f' resource="{RESOURCE}"'
        }
        if scheme != "Bearer":
            self.challenges += 1
            said = "AKV10000: Request is missing a Bearer or PoP token."
            raise _refusal(401, "Unauthorized", said, headers=challenge)
        try:
            claims = self._entra.verify(token, RESOURCE)
        except jwt.PyJWTError as error:
            said = f"AKV10032: Invalid issuer, audience or signature. {error}"
            raise _refusal(401, "Unauthorized", said, headers=challenge) from error
        may = self.writers
        if request.method == "GET":
            may = None if self.readers is None else self.readers | (self.writers or set())
        if may is not None and claims["oid"] not in may:
            said = "Caller is not authorized to perform action on resource."
            raise _refusal(403, "Forbidden", said, "ForbiddenByRbac")

    def _list(self, request: Request) -> Any:
        size = min(int(request.query.get("maxresults", self._page)), self._page, _LONGEST_PAGE)
        start = int(request.query.get("$skiptoken", "0"))
        with self._lock:
            names = sorted(self._secrets)
            value = [self._item(name) for name in names[start : start + size]]
        if start + size >= len(names):
            return {"value": value}
        version = quote(request.query["api-version"])
        following = f"{self.url}/secrets?api-version={version}&$skiptoken={start + size}"
        return {"value": value, "nextLink": following}

    def _item(self, name: str) -> Any:
        newest = self._secrets[name][-1]
        return {"id": self._id(name), "attributes": newest.attributes, "tags": newest.tags}

    def _versions(self, name: str) -> Any:
        with self._lock:
            versions = self._named(name)[1]
        value = [{"id": self._id(name, v.number), "attributes": v.attributes} for v in versions]
        return {"value": value}

    def _get(self, name: str, number: str, *, disabled: bool = False) -> Any:
        with self._lock:
            name, versions = self._named(name)
            version = next((v for v in versions if v.number == number), versions[-1])
        if number and version.number != number:
            raise _refusal(404, "SecretNotFound", f"{name} has no version {number}")
        if not version.enabled and not disabled:
            said = "Operation get is not allowed on a disabled secret."
            raise _refusal(403, "Forbidden", said, "SecretDisabled")
        where = self._id(name, version.number)
        told = {"id": where, "attributes": version.attributes, "tags": version.tags}
        return {"value": version.value, **told}

    def _put(self, name: str, body: Any) -> Any:
        """Set Secret: a new version."""
        if not _NAME.fullmatch(name) or not isinstance(body.get("value"), str):
            raise _refusal(400, "BadParameter", "The request has no value, or a bad name.")
        if len(body["value"]) > _LONGEST_VALUE:
            raise _refusal(400, "BadParameter", "The value is too long.")
        if name.lower() in self.deleted:
            said = f"Secret {name} is currently in a deleted but recoverable state."
            raise _refusal(409, "Conflict", said, "ObjectIsDeletedButRecoverable")
        attributes = body.get("attributes") or {}
        self.set(
            name,
            body["value"],
            enabled=attributes.get("enabled", True),
            expires=attributes.get("exp"),
            not_before=attributes.get("nbf"),
            tags=body.get("tags"),
        )
        return self._get(name, "", disabled=True)

    def _patch(self, name: str, number: str, body: Any) -> Any:
        """Update Secret: attributes and tags of a version, of the newest one if none is named."""
        with self._lock:
            name, versions = self._named(name)
            version = next((v for v in versions if v.number == number), None)
            if number and version is None:
                raise _refusal(404, "SecretNotFound", f"{name} has no version {number}")
            version = version or versions[-1]
            given = body.get("attributes") or {}
            version.enabled = given.get("enabled", version.enabled)
            version.expires = given.get("exp", version.expires)
            version.not_before = given.get("nbf", version.not_before)
            version.tags = body.get("tags", version.tags)
        where = self._id(name, version.number)
        return {"id": where, "attributes": version.attributes, "tags": version.tags}

    def _named(self, name: str) -> tuple[str, list[_Version]]:
        for kept, versions in self._secrets.items():
            if kept.lower() == name.lower():
                return kept, versions
        said = f"A secret with (name/id) {name} was not found in this key vault."
        raise _refusal(404, "SecretNotFound", said)

    def _id(self, name: str, version: str = "") -> str:
        return f"{self.url}/secrets/{name}" + (f"/{version}" if version else "")


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)


def _refusal(
    status: int, code: str, said: str, inner: str = "", headers: dict[str, str] | None = None
) -> Refusal:
    error: dict[str, Any] = {"code": code, "message": said}
    if inner:
        error["innererror"] = {"code": inner}
    return Refusal(status, {"error": error}, headers)

"""A stand-in for an Azure Container Registry that takes managed identities, over TLS.

Sources: "Azure Container Registry integration with Microsoft Entra ID" (its OAuth endpoints), the
distribution project's "Token Authentication Specification".
"""

from __future__ import annotations

import base64
import json
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.services import certificates
from tests.services.loopback_http import QuietHandler
from tests.services.metadata_service import POOL_IDENTITY, MetadataService
from tests.services.registry import Registry

AUDIENCE = "https://containerregistry.azure.net"
_NOBODY = "00000000-0000-0000-0000-000000000000"
_FORM = {"grant_type", "service", "access_token"}


class AzureRegistry(Registry):
    """For identities whose tokens come from `metadata`, and who are among `pullers` (AcrPull)."""

    def __init__(self, layer: Path, directory: Path, metadata: MetadataService) -> None:
        directory.mkdir(parents=True)
        made = certificates.make(directory, "127.0.0.1")
        super().__init__(layer, certificate=made)
        self.ca_bundle = str(made.authority)
        self.pullers = {POOL_IDENTITY}
        self.troubles: list[tuple[int, bytes]] = []
        """Status and body of the next answers of the exchange."""
        self._metadata = metadata
        self._refresh: dict[str, str] = {}
        self._access: dict[str, str] = {}
        """Token -> scope."""

    @property
    def tokens(self) -> list[str]:
        """All that were given."""
        return [*self._refresh, *self._access]

    def answer(self, request: QuietHandler) -> None:
        path = urlsplit(request.path).path
        if path == "/oauth2/token":
            self.asked.append(path)
            self._json(request, *self._token(request))
        else:
            super().answer(request)

    def is_known(self, request: QuietHandler) -> bool:
        scheme, _, token = (request.headers["Authorization"] or "").partition(" ")
        if scheme != "Bearer" or token not in self._access:
            return False
        repository = request.path.removeprefix("/v2/").partition("/manifests/")[0]
        repository = repository.partition("/blobs/")[0]
        scope = self._access[token]
        return not repository or scope == f"repository:{repository}:pull"

    def challenge(self, request: QuietHandler) -> str:
        realm = f'Bearer realm="{self.origin}/oauth2/token",service="{self.host}"'
        repository = request.path.removeprefix("/v2/").partition("/manifests/")[0]
        repository = repository.partition("/blobs/")[0]
        return f'{realm},scope="repository:{repository}:pull"' if repository else realm

    def exchange(self, request: QuietHandler) -> None:
        """Answer a POST."""
        self.asked.append(request.path)
        body = request.rfile.read(int(request.headers["Content-Length"] or 0)).decode()
        if self.troubles:
            request.reply(*self.troubles.pop(0))
            return
        form = {name: values[0] for name, values in parse_qs(body).items()}
        kind = request.headers["Content-Type"]
        if request.path != "/oauth2/exchange" or kind != "application/x-www-form-urlencoded":
            self._json(request, 404, _error("NOT_FOUND"))
        elif form.keys() != _FORM or form["grant_type"] != "access_token":
            self._json(request, 400, _error("BAD_REQUEST"))
        elif form["service"] != self.host:
            self._json(request, 400, _error("SERVICE_MISMATCH"))
        elif self._metadata.holder(form["access_token"], AUDIENCE) not in self.pullers:
            self._json(request, 401, _error("UNAUTHORIZED"))
        else:
            token = f"acr-refresh.{secrets.token_hex(24)}"
            self._refresh[token] = form["access_token"]
            self._json(request, 200, {"refresh_token": token})

    def _token(self, request: QuietHandler) -> tuple[int, dict[str, Any]]:
        """An access token for a scope, for who shows a refresh token as a password."""
        query = {n: values[0] for n, values in parse_qs(urlsplit(request.path).query).items()}
        scheme, _, given = (request.headers["Authorization"] or "").partition(" ")
        user, _, password = base64.b64decode(given).decode().partition(":")
        if scheme != "Basic" or user != _NOBODY or password not in self._refresh:
            return 401, _error("UNAUTHORIZED")
        if query.get("service") != self.host:
            return 400, _error("SERVICE_MISMATCH")
        token = f"acr-access.{secrets.token_hex(24)}"
        self._access[token] = query.get("scope", "")
        return 200, {"access_token": token}

    def _json(self, request: QuietHandler, status: int, document: dict[str, Any]) -> None:
        kind = {"Content-Type": "application/json"}
        request.reply(status, json.dumps(document).encode(), kind)


def _error(code: str) -> dict[str, Any]:
    return {"errors": [{"code": code, "message": "it is refused, see the documentation"}]}

"""A stand-in for the instance metadata service of an Azure VM, as far as it gives tokens.

Source: "How to use managed identities for Azure resources on an Azure VM to acquire an access
token": the request, its errors, and which of them pass.
"""

from __future__ import annotations

import json
import secrets
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.services.loopback_http import LoopbackHttp, QuietHandler

POOL_IDENTITY = (
    "/subscriptions/99999999-2222-3333-4444-555555555555/resourceGroups/lab/providers"
    "/Microsoft.ManagedIdentity/userAssignedIdentities/puller"
)
_PATH = "/metadata/identity/oauth2/token"
_VERSION = "2018-02-01"
_PROPERTIES = frozenset({"api-version", "resource", "msi_res_id"})


class MetadataService(LoopbackHttp):
    """Of a node with one user-assigned identity. A context manager."""

    def __init__(self, identity: str = POOL_IDENTITY) -> None:
        super().__init__(_Handler)
        self.identity = identity
        self.troubles: list[int | None] = []
        """Statuses of the next answers, 400 being that of an identity that the node does not have;
        None: the connection is closed without one."""
        self.asked = 0
        self._tokens: dict[str, tuple[str, str]] = {}

    def holder(self, token: str, audience: str) -> str:
        """The identity that a token of here is for; empty if it is none, or for somebody else."""
        identity, resource = self._tokens.get(token, ("", ""))
        return identity if resource.rstrip("/") == audience else ""

    @property
    def tokens(self) -> list[str]:
        """All that were given."""
        return list(self._tokens)

    def answer(self, request: QuietHandler) -> tuple[int, dict[str, Any]] | None:
        """To a GET; None: the connection is to be closed."""
        self.asked += 1
        trouble = self.troubles.pop(0) if self.troubles else 0
        if trouble is None:
            return None
        if trouble not in (0, 400):
            return trouble, {"error": "unavailable"}
        parts = urlsplit(request.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        said = ""
        if request.headers["Metadata"] != "true":
            said = "Required metadata header not specified"
        elif request.headers["X-Forwarded-For"]:
            said = "Requests must not be forwarded"
        elif parts.path != _PATH or query.get("api-version") != _VERSION:
            said = "The requested path and version are not supported"
        elif query.keys() != _PROPERTIES:
            said = f"The query must have {', '.join(sorted(_PROPERTIES))}"
        elif trouble or query["msi_res_id"].lower() != self.identity.lower():
            said = "Identity not found"
        if said:
            return 400, {"error": "invalid_request", "error_description": said}
        token = f"aad.{secrets.token_hex(24)}"
        self._tokens[token] = (self.identity, query["resource"])
        now = int(time.time())
        return 200, {
            "access_token": token,
            "client_id": "11111111-aaaa-4bbb-8ccc-222222222222",
            "expires_in": "86399",
            "expires_on": str(now + 86399),
            "ext_expires_in": "86399",
            "not_before": str(now - 300),
            "resource": query["resource"],
            "token_type": "Bearer",
        }


class _Handler(QuietHandler):
    owner: MetadataService

    def do_GET(self) -> None:
        found = self.owner.answer(self)
        if found is None:
            self.close_connection = True
            return
        status, document = found
        kind = {"Content-Type": "application/json; charset=utf-8", "Server": "IMDS/150.870.65.1854"}
        self.reply(status, json.dumps(document).encode(), kind)

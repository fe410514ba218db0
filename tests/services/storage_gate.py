"""The Blob service of one storage account in the stand-in for Azure: an Azurite, behind a gate that
checks what Azurite does not.

Azurite knows no roles, verifies no bearer's signature, and has no account that forbids keys. The
gate does, and passes on what it lets through, word for word. The Azurite starts when it is first
needed. Sources: "Authorize with Microsoft Entra ID (REST API)", "Prevent Shared Key authorization
for an Azure Storage account", "Blob service REST API: permissions for calling data operations".
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import jwt

from tests.services.azurite import AzuriteTls
from tests.services.certificates import Certificate
from tests.services.entra_server import TENANT, EntraServer
from tests.services.loopback_http import LoopbackHttp, QuietHandler

AUDIENCE = "https://storage.azure.com"
_BLOBS = "Microsoft.Storage/storageAccounts/blobServices"
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}
May = Callable[[str, str, str, bool], bool]
"""principal, action, container (empty: the account), whether it is about data -> allowed."""


class _AccountsAzurite(AzuriteTls):
    """An Azurite of an account that is not the usual one."""

    def __init__(self, root: Path, account: str, keys: list[str]) -> None:
        super().__init__(root)
        self.account, self.key = account, ":".join(keys)


class StorageGate(LoopbackHttp):
    """Serves one account's blobs over TLS. `allows_keys`: asked for each request."""

    def __init__(
        self,
        directory: Path,
        certificate: Certificate,
        account: str,
        keys: list[str],
        entra: EntraServer,
        may: May,
        allows_keys: Callable[[], bool],
    ) -> None:
        super().__init__(_Handler, certificate)
        self.account, self.keys = account, keys
        self.endpoint = f"{self.origin}/{account}"
        self.refusals: list[str] = []
        """What was refused here: method, path and code."""
        self.entra, self.may, self.allows_keys = entra, may, allows_keys
        self._azurite = _AccountsAzurite(directory, account, keys)
        self._runs = False
        self._lock = threading.Lock()
        self._containers: list[str] = []
        self.__enter__()

    def close(self) -> None:
        """End the service; its blobs are gone."""
        self.__exit__()
        if self._runs:
            self._azurite.stop()

    def create_container(self, name: str) -> None:
        """As Azure Resource Manager does it."""
        self._containers.append(name)
        if self._runs:
            self._client_call("create_container", name)

    def delete_container(self, name: str) -> None:
        """As Azure Resource Manager does it."""
        self._containers.remove(name)
        if self._runs:
            self._client_call("delete_container", name)

    def _client_call(self, method: str, name: str) -> None:
        from azure.core.exceptions import ResourceExistsError, ResourceNotFoundError
        from azure.storage.blob import BlobServiceClient

        azurite = self._azurite
        credential = {"account_name": self.account, "account_key": self.keys[0]}
        ended = contextlib.suppress(ResourceExistsError, ResourceNotFoundError)
        with (
            BlobServiceClient(
                azurite.endpoint, credential, connection_verify=str(azurite.ca)
            ) as client,
            ended,
        ):
            getattr(client, method)(name)

    def connection(self) -> http.client.HTTPSConnection:
        """To the Azurite, which is started now if it does not run yet."""
        with self._lock:
            if not self._runs:
                self._azurite.start()
                self._runs = True
                for name in self._containers:
                    self._client_call("create_container", name)
        trusted = ssl.create_default_context(cafile=str(self._azurite.ca))
        return http.client.HTTPSConnection(
            "127.0.0.1", self._azurite.port, timeout=60, context=trusted
        )


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(code)
        self.status, self.code, self.message = status, code, message


class _Handler(QuietHandler):
    owner: StorageGate
    _onward: http.client.HTTPSConnection | None = None

    def do_GET(self) -> None:
        """Check, pass on, pass back."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self._body(headers)
        try:
            self._admit(headers)
        except _Refused as refused:
            said = f"{refused.message}\nRequestId:0\nTime:0"
            text = (
                f'\ufeff<?xml version="1.0" encoding="utf-8"?><Error><Code>{refused.code}</Code>'
                f"<Message>{said}</Message></Error>"
            )
            self.owner.refusals.append(f"{self.command} {self.path.split('?')[0]} {refused.code}")
            kind = {"x-ms-error-code": refused.code, "Content-Type": "application/xml"}
            if refused.status == 401:
                where = f"{self.owner.entra.url}/{TENANT}/oauth2/authorize"
                kind["WWW-Authenticate"] = (
                    f"Bearer authorization_uri={where} resource_id={AUDIENCE}"
                )
            self.reply(refused.status, text.encode(), kind)
            return
        self._pass_on(body)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = do_OPTIONS = do_GET

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        found = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _pass_on(self, body: bytes) -> None:
        if self._onward is None:
            self._onward = self.owner.connection()
        kept = {k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding",)}
        kept["Content-Length"] = str(len(body))
        if self.command in ("GET", "HEAD") and not body:
            del kept["Content-Length"]
        # The signed host is not part of what is signed, but Azurite makes links of it.
        self._onward.request(self.command, self.path, body or None, kept)
        reply = self._onward.getresponse()
        content = reply.read()
        with contextlib.suppress(OSError):
            self.send_response(reply.status, reply.reason)
            length = reply.getheader("Content-Length")
            for name, value in reply.getheaders():
                if name.lower() not in _HOP:
                    self.send_header(name, value)
            is_head = self.command == "HEAD"
            self.send_header("Content-Length", length or "0" if is_head else str(len(content)))
            self.end_headers()
            if not is_head:
                self.wfile.write(content)

    def finish(self) -> None:
        """The connection ends, and the one behind it."""
        if self._onward is not None:
            self._onward.close()
        super().finish()

    # ------------------------------------------------------------------ who may

    def _admit(self, headers: dict[str, str]) -> None:
        query = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        scheme, _, proof = headers.get("authorization", "").partition(" ")
        by_key = scheme == "SharedKey" or ("sig" in query and "skoid" not in query)
        if by_key and not self.owner.allows_keys():
            said = "Key based authentication is not permitted on this storage account."
            raise _Refused(403, "KeyBasedAuthenticationNotPermitted", said)
        if scheme == "Bearer":
            self._check(self._claims(proof)["oid"], query)
        elif "skoid" in query:
            # What its signer may no longer do, nobody may with its signature.
            self._check(query["skoid"], query)

    def _claims(self, token: str) -> dict[str, Any]:
        try:
            return self.owner.entra.verify(token, AUDIENCE)
        except jwt.PyJWTError as error:
            said = f"Server failed to authenticate the request. {error}"
            raise _Refused(401, "InvalidAuthenticationInfo", said) from error

    def _check(self, principal: str, query: dict[str, str]) -> None:
        parts = [each for each in urlsplit(self.path).path.split("/") if each][1:]
        container = parts[0] if parts else ""
        actions, data = _needed(self.command, len(parts), query)
        if not any(self.owner.may(principal, each, container, data) for each in actions):
            said = "This request is not authorized to perform this operation using this permission."
            raise _Refused(403, "AuthorizationPermissionMismatch", said)


def _needed(method: str, depth: int, query: dict[str, str]) -> tuple[tuple[str, ...], bool]:
    """Actions of which one is needed, and whether they are data actions."""
    containers, blobs = f"{_BLOBS}/containers", f"{_BLOBS}/containers/blobs"
    what = query.get("comp", "")
    if depth == 0:
        if what == "userdelegationkey":
            return (f"{_BLOBS}/generateUserDelegationKey/action",), False
        return (f"{containers}/read",), False
    if depth == 1 and what != "list":
        verb = {"GET": "read", "HEAD": "read", "DELETE": "delete"}.get(method, "write")
        return (f"{containers}/{verb}",), False
    if method in ("GET", "HEAD", "OPTIONS"):
        return (f"{blobs}/read",), True
    if method == "DELETE":
        return (f"{blobs}/delete",), True
    return (f"{blobs}/write", f"{blobs}/add/action"), True

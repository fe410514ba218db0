"""A login at an Azure Container Registry by a managed identity of the node that this runs on.

Sources: "How to use managed identities for Azure resources on an Azure VM to acquire an access
token" (the request, and what is to be tried again), "Azure Container Registry integration with
Microsoft Entra ID" (the exchange), "Authenticate with an Azure container registry" (the user).
"""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Sequence
from typing import TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec

from tesazure.access import RegistryIdentity, RegistryLogin
from tesazure.errors import EngineUnavailable, ImageUnavailable, StorageError
from tesazure.storage.transport import Patience, Transport

USER = "00000000-0000-0000-0000-000000000000"
"""Whose password is a registry's refresh token."""
AUDIENCE = "https://containerregistry.azure.net"
"""For whom the identity's tokens are: registries take them also where they refuse those for Azure
Resource Manager ("Disable authentication as ARM")."""
VERSION = "2018-02-01"
"""Of the instance metadata service."""
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Before another try, in seconds. A node that has just started may not know its identity yet."""
TIMEOUT_S = 10.0
_T = TypeVar("_T")

LARGEST = 2**20
"""Bytes of an answer that are read."""
_PATIENCE = Patience(attempts=5)
_AGAIN = frozenset({404, 410, 429})
_NOT_YET = 400
"""Of an identity that the node does not have ("Identity not found"), nor one that it is about to be
given: its last answer counts."""
_REMEDIES = {
    401: "give it the role AcrPull there",
    403: "give it the role AcrPull there, and let the nodes' network through its firewall",
}
_IS_ANOTHER = "check that PRIVATE_DOCKER_REGISTRY_URL is an Azure Container Registry"


class _Token(msgspec.Struct):
    access_token: str


class _Refresh(msgspec.Struct):
    refresh_token: str


class _Refusal(msgspec.Struct):
    error_description: str = ""


def login_by(
    identity: RegistryIdentity, ca_bundle: str, pauses_s: Sequence[float] = PAUSES_S
) -> RegistryLogin:
    """A login that is good for some hours. `ca_bundle`: as Endpoints has it. `pauses_s`: before
    another try at the node, in seconds. Takes a minute and a half at most when it does not answer.

    Raises ImageUnavailable for an identity that the node does not have, or that the registry does
    not know; EngineUnavailable when they do not answer.
    """
    token = _exchange(identity, _token_of(identity, pauses_s), ca_bundle)
    return RegistryLogin(identity.host, USER, token)


def _token_of(identity: RegistryIdentity, pauses_s: Sequence[float]) -> str:
    """Of the node's identity, for registries. The address is reached by no URL of a task, whose
    connections refuse it."""
    query = {"api-version": VERSION, "resource": AUDIENCE, "msi_res_id": identity.id}
    where = f"/metadata/identity/oauth2/token?{urlencode(query)}"
    reason, refusal = "", None
    for pause in (*pauses_s, 0.0):
        refusal = None
        try:
            status, body = _ask(urlsplit(identity.metadata).netloc, where)
        except (OSError, http.client.HTTPException) as error:
            reason = f"it does not answer: {error}"
        else:
            if status == 200:
                return _read(body, _Token, "the node's metadata service").access_token
            reason = f"status {status}"
            if status not in _AGAIN and status < 500:
                refusal = body
                if status != _NOT_YET:
                    break
        time.sleep(pause)
    if refusal is None:
        raise EngineUnavailable(
            f"{identity.host}: the node's metadata service gives no token for its login: {reason}"
        )
    said = ""
    with contextlib.suppress(msgspec.MsgspecError):
        said = msgspec.json.decode(refusal, type=_Refusal).error_description[:300]
    raise ImageUnavailable(
        f"{identity.host}: the node has no token of the identity {identity.id} for it:"
        f" {said or reason}; check BATCH_POOL_IDENTITY_ID, and that the pool has it"
    )


def _ask(host: str, where: str) -> tuple[int, bytes]:
    """Status and body. Proxies are not used."""
    connection = http.client.HTTPConnection(host, timeout=TIMEOUT_S)
    try:
        connection.request("GET", where, headers={"Metadata": "true"})
        answer = connection.getresponse()
        return answer.status, answer.read(LARGEST)
    finally:
        connection.close()


def _exchange(identity: RegistryIdentity, token: str, ca_bundle: str) -> str:
    """The registry's refresh token."""
    transport = Transport(
        allow_private=True,  # the operator named it
        ca_bundle=ca_bundle,
        patience=_PATIENCE,
    )
    form = {"grant_type": "access_token", "service": identity.host, "access_token": token}
    try:
        answer = transport.ask(
            "POST",
            f"https://{identity.host}/oauth2/exchange",
            headers={"Content-Type": "application/x-www-form-urlencoded"},
            body=urlencode(form).encode(),
        )
    except StorageError as error:
        kind = EngineUnavailable if error.retryable else ImageUnavailable
        raise kind(f"the registry cannot be logged in to: {error}") from error
    finally:
        transport.close()
    if not answer.succeeded:
        raise ImageUnavailable(
            f"{identity.host}: the registry does not take the identity {identity.id} (status"
            f" {answer.status}): {_REMEDIES.get(answer.status, _IS_ANOTHER)}"
        )
    return _read(answer.body, _Refresh, "the registry").refresh_token


def _read(body: bytes, kind: type[_T], whose: str) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError:  # whose text may show a part of it
        raise ImageUnavailable(f"{whose} answers a login with what is no token") from None

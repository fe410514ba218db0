"""Pools that the stand-in for Azure Resource Manager makes, as it alone makes those that have an
identity. From then on they are the Batch service's.

Sources: "Pool - Create", "Configure managed identities in Batch pools"; the 2024-02-01 definition.
What is said of an identity that may not be assigned is as users report.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

from tests.services import batch_wire as wire
from tests.services.azure_cloud_batch import KIND as ACCOUNT
from tests.services.azure_cloud_batch import BatchAccounts
from tests.services.azure_cloud_rights import Rights
from tests.services.azure_cloud_state import Call, Refused, Reply, Route, State

KIND = f"{ACCOUNT}/pools"
_ASSIGN = "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action"
_SPELLINGS = {
    "Admin": "admin",
    "DockerCompatible": "dockerCompatible",
    "NoPublicIPAddresses": "nopublicipaddresses",
    "Pack": "pack",
    "Pool": "pool",
    "StandardSSD_LRS": "standardssd_lrs",
    "Zonal": "zonal",
    "nodeAgentSkuId": "nodeAgentSKUId",
}
"""Resource Manager's spelling of properties and values -> the Batch service's."""


class Pools:
    """Of all accounts: such as scale by a formula, and have user-assigned identities."""

    def __init__(self, state: State, rights: Rights, accounts: BatchAccounts) -> None:
        self._state, self._rights, self._accounts = state, rights, accounts

    def routes(self) -> list[Route]:
        """What clients ask for."""
        account = f"/subscriptions/{{subscription}}/resourceGroups/{{group}}/providers/{ACCOUNT}"
        one = f"{account}/{{account}}/pools/{{pool}}"
        return [Route("PUT", one, "Pool_Create", f"{KIND}/write", self._put)]

    def _put(self, call: Call) -> Reply:
        account, name, pool = self._accounts.found(call), call["pool"], call.body
        identities = pool["identity"]["userAssignedIdentities"]
        self._check_assignable(call, identities)
        server = self._accounts.servers[account.name]
        with server.world.lock:
            if call.request.headers.get("if-none-match") == "*" and server.world.pools.get(name):
                raise Refused(412, "PreconditionFailed", "The pool exists.")
            try:
                server.pools.add(_of_service(name, pool))
            except wire.Refused as refused:
                raise Refused(refused.status, refused.code, refused.said) from refused
            server.world.changed.notify_all()
        told = {
            "id": f"{account.id}/pools/{name}",
            "name": name,
            "type": KIND,
            "etag": 'W/"0x8D4EDFEBFADF4AB"',
            "identity": pool["identity"],
            "properties": pool["properties"] | {"provisioningState": "Succeeded"},
        }
        return Reply(200, told)

    def _check_assignable(self, call: Call, identities: Mapping[str, Any]) -> None:
        for each in identities:
            if self._state.get(each) and self._rights.may(call.caller, _ASSIGN, each):
                continue
            said = (
                f"The client '{call.caller}' with object id '{call.caller}' has permission to"
                f" perform action '{KIND}/write' on scope '{call.request.path}'; however, it does"
                f" not have permission to perform action '{_ASSIGN}' on the linked scope(s)"
                f" '{each}' or the linked scope(s) are invalid."
            )
            raise Refused(403, "LinkedAuthorizationFailed", said)


def _of_service(name: str, pool: Mapping[str, Any]) -> dict[str, Any]:
    """A pool of Resource Manager's as the Batch service has it: with its own names of places, and
    its spelling of values."""
    properties = dict(pool["properties"])
    scale = properties.pop("scaleSettings")["autoScale"]
    deployment = properties.pop("deploymentConfiguration")
    text = json.dumps(deployment | properties)
    for theirs, own in _SPELLINGS.items():
        text = text.replace(json.dumps(theirs), json.dumps(own))
    identities = [
        {"resourceId": each, "clientId": str(uuid.uuid4()), "principalId": str(uuid.uuid4())}
        for each in pool["identity"]["userAssignedIdentities"]
    ]
    return dict(json.loads(text)) | {
        "id": name,
        "enableAutoScale": True,
        "autoScaleFormula": scale["formula"],
        "autoScaleEvaluationInterval": scale["evaluationInterval"],
        "identity": {"type": pool["identity"]["type"], "userAssignedIdentities": identities},
    }

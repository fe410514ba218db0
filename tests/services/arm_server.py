"""A stand-in for Azure Resource Manager, as far as a Batch account's quotas and sizes are read from
it and its pools made. Over TLS.

Sources: "Batch Account - Get", "Location - List Supported Virtual Machine Skus" (2024-07-01),
"Pool - Create", "Configure managed identities in Batch pools", "Resource Skus - List". What is told
of Batch, and what is asked of it, is held against Microsoft's published definition, where that is
there (see `batch_definition`).
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema_rs

from tests.services import batch_wire as wire
from tests.services.batch_definition import definition_file
from tests.services.batch_server import BatchServer
from tests.services.entra_server import EntraServer
from tests.services.metadata_service import POOL_IDENTITY
from tests.services.tls_server import Refusal, Request, TlsServer

SUBSCRIPTION = "99999999-2222-3333-4444-555555555555"
GROUP = "lab"
ACCOUNT = "acc"
REGION = "eastus"
_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}(-preview)?")


def sku(name: str, family: str, **capabilities: object) -> dict[str, Any]:
    """A SupportedSku."""
    told = [{"name": each, "value": str(value)} for each, value in capabilities.items()]
    return {"name": name, "familyName": family, "capabilities": told}


def usual_skus() -> list[dict[str, Any]]:
    """Three sizes, and one of another architecture."""
    usual = {"HyperVGenerations": "V1,V2", "LowPriorityCapable": "True"}
    d, e = "standardDADSv5Family", "standardEADSv5Family"
    arm = {"CpuArchitectureType": "Arm64"}
    return [
        sku("Standard_D2ads_v5", d, vCPUs=2, MemoryGB=8, MaxResourceVolumeMB=76800, **usual),
        sku("Standard_D4ads_v5", d, vCPUs=4, MemoryGB=16, MaxResourceVolumeMB=153600, **usual),
        sku("Standard_E2ads_v5", e, vCPUs=2, MemoryGB=16, MaxResourceVolumeMB=76800, **usual),
        sku("Standard_D2ps_v5", "standardDPSv5Family", vCPUs=2, MemoryGB=8, **usual, **arm),
    ]


class ArmServer(TlsServer):
    """One subscription with one Batch account, for those whom `entra` gave a token."""

    def __init__(self, directory: Path, entra: EntraServer, batch: BatchServer | None = None):
        """`batch`: the account's service, for making pools."""
        super().__init__(directory)
        self._entra, self._batch = entra, batch
        self._account = batch.account if batch is not None else ACCOUNT
        self.skus = usual_skus()
        self.zones = {"Standard_D2ads_v5": ["1", "2", "3"]}
        self.restricted: set[str] = set()
        """Sizes that are NotAvailableForSubscription."""
        self.forbidden: set[str] = set()
        """Providers (`Microsoft.Compute`) that may not be read."""
        self.quotas: dict[str, Any] = {
            "dedicatedCoreQuota": 100,
            "lowPriorityCoreQuota": 50,
            "dedicatedCoreQuotaPerVMFamily": [{"name": "standardDADSv5Family", "coreQuota": 20}],
            "dedicatedCoreQuotaPerVMFamilyEnforced": True,
            "poolQuota": 40,
            "activeJobAndJobScheduleQuota": 60,
        }
        self.page = 3
        self.assignable = {POOL_IDENTITY.lower()}
        """Identities that the caller may give to pools (Managed Identity Operator)."""
        self.violations: list[str] = []
        self._schemas = _schemas()

    def answer(self, request: Request) -> Any:
        self._admit(request)
        if not _VERSION.fullmatch(request.query.get("api-version", "")):
            raise _refused(400, "MissingApiVersionParameter", "api-version is missing")
        root = f"/subscriptions/{SUBSCRIPTION}"
        path = request.path
        for provider in self.forbidden:
            if provider in path:
                raise _refused(403, "AuthorizationFailed", f"{provider} may not be read")
        account = f"{root}/resourceGroups/{GROUP}/providers/Microsoft.Batch/batchAccounts"
        account = f"{account}/{self._account}"
        if path == account:
            return self._checked("BatchAccount", self._describe(account))
        if path.startswith(f"{account}/pools/") and request.method == "PUT":
            return self._make_pool(account, path.removeprefix(f"{account}/pools/"), request)
        if path == f"{root}/providers/Microsoft.Batch/locations/{REGION}/virtualMachineSkus":
            return self._checked("SupportedSkusResult", self._supported(request))
        if path == f"{root}/providers/Microsoft.Compute/skus":
            return self._resource_skus(request)
        raise _refused(404, "ResourceNotFound", f"The Resource '{path}' was not found.")

    def _admit(self, request: Request) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        try:
            if scheme != "Bearer":
                raise ValueError("no bearer token")
            self._entra.verify(token, self.url)
        except Exception as error:
            raise _refused(401, "InvalidAuthenticationToken", str(error)) from error

    def _describe(self, path: str) -> dict[str, Any]:
        properties = {
            "accountEndpoint": f"{self._account}.{REGION}.batch.azure.com",
            "provisioningState": "Succeeded",
            "poolAllocationMode": "BatchService",
        }
        return {
            "id": path,
            "name": self._account,
            "type": "Microsoft.Batch/batchAccounts",
            "location": REGION,
            "identity": {"type": "None"},
            "properties": properties | self.quotas,
        }

    def _make_pool(self, account: str, name: str, request: Request) -> dict[str, Any]:
        """Of the Batch service's account, where it is seen from then on."""
        assert self._batch is not None
        pool = json.loads(request.body)
        before = len(self.violations)
        self._checked("Pool", pool)
        if request.headers.get("content-type") != "application/json":
            self.violations.append("Pool: its content type")
        if pool.keys() & {"id", "name", "type", "etag"}:
            self.violations.append("Pool: properties that are read only")
        if len(self.violations) > before:
            raise _refused(400, "InvalidRequestBody", "; ".join(self.violations[before:]))
        wanted = pool["identity"].get("userAssignedIdentities", {})
        if denied := [each for each in wanted if each.lower() not in self.assignable]:
            said = f"no permission to perform userAssignedIdentities/assign/action on {denied[0]}"
            raise _refused(403, "LinkedAuthorizationFailed", said)
        if request.headers.get("if-none-match") == "*" and self._batch.world.pools.get(name):
            raise _refused(412, "PreconditionFailed", "The pool exists.")
        try:
            with self._batch.world.lock:
                self._batch.pools.add(_of_service(name, pool))
                self._batch.world.changed.notify_all()
        except wire.Refused as refused:
            raise _refused(refused.status, refused.code, refused.said) from refused
        made = pool["properties"] | {"provisioningState": "Succeeded"}
        own = {"id": f"{account}/pools/{name}", "name": name, "etag": 'W/"0x8D4EDFEBFADF4AB"'}
        kind = {"type": "Microsoft.Batch/batchAccounts/pools"}
        return self._checked(
            "Pool", own | kind | {"identity": pool["identity"], "properties": made}
        )

    def _supported(self, request: Request) -> dict[str, Any]:
        at = int(request.query.get("skip", 0))
        found: dict[str, Any] = {"value": self.skus[at : at + self.page]}
        if at + self.page < len(self.skus):
            version = request.query["api-version"]
            following = f"{self.url}{request.path}?api-version={version}&skip={at + self.page}"
            found["nextLink"] = following
        return found

    def _resource_skus(self, request: Request) -> dict[str, Any]:
        if request.query.get("$filter") != f"location eq '{REGION}'":
            raise _refused(400, "InvalidFilter", request.query.get("$filter", "no $filter"))
        value: list[dict[str, Any]] = [{"resourceType": "disks", "name": "Premium_LRS"}]
        for each in self.skus:
            closed = {
                "type": "Location",
                "values": [REGION],
                "reasonCode": "NotAvailableForSubscription",
            }
            value.append(
                {
                    "resourceType": "virtualMachines",
                    "name": each["name"],
                    "family": each["familyName"],
                    "locations": [REGION],
                    "locationInfo": [
                        {"location": REGION, "zones": self.zones.get(each["name"], [])}
                    ],
                    "capabilities": [{"name": "EncryptionAtHostSupported", "value": "True"}],
                    "restrictions": [closed] if each["name"] in self.restricted else [],
                }
            )
        return {"value": value}

    def _checked(self, name: str, document: dict[str, Any]) -> dict[str, Any]:
        schema = self._schemas.get(name)
        if schema is not None:
            errors = schema.iter_errors(json.loads(json.dumps(document)))
            self.violations += [f"{name}: {error.message}" for error in errors]
        return document


def _refused(status: int, code: str, message: str) -> Refusal:
    return Refusal(status, {"error": {"code": code, "message": message}})


def _of_service(name: str, pool: Mapping[str, Any]) -> dict[str, Any]:
    """A pool of Resource Manager's as the Batch service has it: with its own names of places, and
    its spelling of values."""
    properties = dict(pool["properties"])
    scale = properties.pop("scaleSettings")["autoScale"]
    deployment = properties.pop("deploymentConfiguration")
    text = json.dumps(deployment | properties)
    for theirs, own in _SPELLINGS.items():
        text = text.replace(json.dumps(theirs), json.dumps(own))
    return dict(json.loads(text)) | {
        "id": name,
        "enableAutoScale": True,
        "autoScaleFormula": scale["formula"],
        "autoScaleEvaluationInterval": scale["evaluationInterval"],
        "identity": {
            "type": pool["identity"]["type"],
            "userAssignedIdentities": [
                {
                    "resourceId": each,
                    "clientId": str(uuid.uuid4()),
                    "principalId": str(uuid.uuid4()),
                }
                for each in pool["identity"]["userAssignedIdentities"]
            ],
        },
    }


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


def _schemas() -> Mapping[str, Any]:
    """Validators of what Batch answers; none where the definition is not."""
    batch = definition_file()
    if batch is None:
        return {}
    file = batch.parents[1] / "batch-management" / "BatchManagement.json"
    if not file.is_file():
        return {}
    definitions = json.loads(file.read_text())["definitions"]
    closed = {name: _close(each, definitions) for name, each in definitions.items()}
    return {
        name: jsonschema_rs.Draft4Validator(
            {"$ref": f"#/definitions/{name}", "definitions": closed}
        )
        for name in ("BatchAccount", "Pool", "SupportedSkusResult")
    }


def _close(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """A schema in which objects allow nothing more than they and their bases name."""
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return {"$ref": f"#/definitions/{name}"} if name in definitions else {}
    closed = {name: schema[name] for name in ("type", "enum", "required") if name in schema}
    if (schema.get("x-ms-enum") or {}).get("modelAsString"):
        closed.pop("enum", None)
    for name in ("items", "additionalProperties"):
        if name in schema:
            closed[name] = _close(schema[name], definitions)
    properties = dict(schema.get("properties", {}))
    for base in schema.get("allOf", ()):
        properties |= definitions.get(base["$ref"].rpartition("/")[2], {}).get("properties", {})
    if properties:
        closed["properties"] = {n: _close(each, definitions) for n, each in properties.items()}
        closed.setdefault("additionalProperties", False)
    return closed

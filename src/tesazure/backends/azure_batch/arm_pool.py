"""A pool in the form of Azure Resource Manager, which alone makes pools that have an identity
("Configure managed identities in Batch pools"). Pure, but for the SDKs' models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from azure.batch.models import BatchPoolCreateOptions
    from azure.mgmt.batch.models import Pool

_VALUES = {
    ("elevationLevel", "admin"): "Admin",
    ("nodeFillType", "pack"): "Pack",
    ("policy", "zonal"): "Zonal",
    ("provision", "nopublicipaddresses"): "NoPublicIPAddresses",
    ("scope", "pool"): "Pool",
    ("storageAccountType", "standardssd_lrs"): "StandardSSD_LRS",
    ("type", "dockerCompatible"): "DockerCompatible",
}
"""Property and value of the Batch service -> Resource Manager's spelling of the value."""
_NAMES = {"nodeAgentSKUId": "nodeAgentSkuId"}
"""Property of the Batch service -> Resource Manager's spelling of it."""
_SAME = (
    "metadata",
    "mountConfiguration",
    "networkConfiguration",
    "startTask",
    "taskSchedulingPolicy",
    "taskSlotsPerNode",
    "vmSize",
)
"""Properties that both call by one name."""


def resource_of(form: BatchPoolCreateOptions, identity: str) -> Pool:
    """The pool that the Batch service would be asked for with `form`, with a user-assigned identity
    (its ARM id). Sources: "Pool - Add Pool", "Pool - Create" (Resource Manager)."""
    from azure.mgmt.batch.models import Pool

    asked = _spelt(form.as_dict())
    properties = {name: asked[name] for name in _SAME if name in asked}
    properties["deploymentConfiguration"] = {
        "virtualMachineConfiguration": asked["virtualMachineConfiguration"]
    }
    properties["scaleSettings"] = {
        "autoScale": {
            "formula": asked["autoScaleFormula"],
            "evaluationInterval": asked["autoScaleEvaluationInterval"],
        }
    }
    own = {"type": "UserAssigned", "userAssignedIdentities": {identity: {}}}
    return Pool({"identity": own, "properties": properties})


def _spelt(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {_NAMES.get(key, key): _spelt(each, key) for key, each in value.items()}
    if isinstance(value, list):
        return [_spelt(each) for each in value]
    return _VALUES.get((name, value), value) if isinstance(value, str) else value

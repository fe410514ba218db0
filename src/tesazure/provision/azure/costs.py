"""What is made costs while no task runs. Pure.

Rounded list prices of East US in US dollars, from "Azure Blob Storage pricing" and "Container
Registry pricing" (Microsoft); what is paid differs by region and contract.
"""

from __future__ import annotations

from tesazure.provisioning import IdleCost, Request

REGISTRY_USD_A_MONTH = 5.0
"""Azure Container Registry, Basic: 0.167 a day."""


def idle_cost(request: Request) -> list[IdleCost]:
    """One line for each resource that could cost something."""
    stored = "empty; blobs cost about 0.02 USD a GiB and month in Standard_LRS, more with further"
    lines = [
        IdleCost(f"Batch account {request.batch_account_name}", 0.0, "VMs cost while they run"),
        IdleCost(f"Storage account {request.storage_account_name}", 0.0, f"{stored} copies"),
    ]
    if request.registry:
        what = f"Container registry {request.registry}"
        lines.append(IdleCost(what, REGISTRY_USD_A_MONTH, "Basic; if it has to be made"))
    return lines

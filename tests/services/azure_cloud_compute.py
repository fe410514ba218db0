"""Sizes of virtual machines in the stand-in for Azure, and Compute's own quotas.

Sources: "Location - List Supported Virtual Machine Skus" of Batch, "Resource Skus - List", "Usage -
List" of Compute.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlencode

from tests.services.azure_cloud_groups import Groups
from tests.services.azure_cloud_state import Call, Refused, Reply, Route


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


class Sizes:
    """The same sizes in every location."""

    def __init__(self, groups: Groups, url: str) -> None:
        self._groups, self._url = groups, url
        self.skus = usual_skus()
        self.zones = {"Standard_D2ads_v5": ["1", "2", "3"]}
        self.restricted: set[str] = set()
        """Sizes that are NotAvailableForSubscription."""
        self.page = 3
        """How many of a list come at once."""
        self.elsewhere = ""
        """Where Compute's list goes on, instead of here."""
        self.core_limits: dict[str, int] = {"cores": 100, "lowPriorityCores": 100}
        """Compute's quotas of a location, by name."""

    def routes(self) -> list[Route]:
        """What clients ask for."""
        top = "/subscriptions/{subscription}/providers"
        return [
            Route(
                "GET",
                f"{top}/Microsoft.Batch/locations/{{location}}/virtualMachineSkus",
                "Location_ListSupportedVirtualMachineSkus",
                "Microsoft.Batch/locations/virtualMachineSkus/read",
                self._supported,
            ),
            Route(
                "GET",
                f"{top}/Microsoft.Compute/skus",
                "ResourceSkus_List",
                "Microsoft.Compute/skus/read",
                self._all,
            ),
            Route(
                "GET",
                f"{top}/Microsoft.Compute/locations/{{location}}/usages",
                "Usage_List",
                "Microsoft.Compute/locations/usages/read",
                self._usages,
            ),
        ]

    def _supported(self, call: Call) -> Reply:
        self._groups.check_location("Microsoft.Batch/locations", call["location"], "location")
        return self._page(call, self.skus, self._url)

    def _page(self, call: Call, items: list[dict[str, Any]], url: str) -> Reply:
        query = call.request.query
        at = int(query.get("$skiptoken", 0))
        found: dict[str, Any] = {"value": items[at : at + self.page]}
        if at + self.page < len(items):
            following = urlencode(query | {"$skiptoken": str(at + self.page)})
            found["nextLink"] = f"{url}{call.request.path}?{following}"
        return Reply(200, found)

    def _all(self, call: Call) -> Reply:
        wanted = call.request.query.get("$filter", "")
        named = re.fullmatch(r"location eq '(\w+)'", wanted)
        if named is None:
            raise Refused(400, "InvalidFilter", wanted or "no $filter")
        location = named[1]
        value: list[dict[str, Any]] = [{"resourceType": "disks", "name": "Premium_LRS"}]
        for each in self.skus:
            closed = {
                "type": "Location",
                "values": [location],
                "reasonCode": "NotAvailableForSubscription",
            }
            zones = self.zones.get(each["name"], [])
            value.append(
                {
                    "resourceType": "virtualMachines",
                    "name": each["name"],
                    "family": each["familyName"],
                    "locations": [location],
                    "locationInfo": [{"location": location, "zones": zones}],
                    "capabilities": [{"name": "EncryptionAtHostSupported", "value": "True"}],
                    "restrictions": [closed] if each["name"] in self.restricted else [],
                }
            )
        return self._page(call, value, self.elsewhere or self._url)

    def _usages(self, _: Call) -> Reply:
        usual = {"unit": "Count", "currentValue": 0}
        return Reply(
            200,
            {
                "value": [
                    usual | {"limit": limit, "name": {"value": name, "localizedValue": name}}
                    for name, limit in self.core_limits.items()
                ]
            },
        )

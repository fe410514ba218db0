"""A stand-in for the Azure Retail Prices API, over TLS. Source: "Azure Retail Prices REST API
overview"."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.services.azure_cloud_groups import REGION
from tests.services.tls_server import Refusal, Request, TlsServer


class PricesServer(TlsServer):
    """The Retail Prices API, for everybody. `path` is its own."""

    path = "/api/retail/prices"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.items: list[dict[str, Any]] = []
        self.page = 2
        self.refusals: list[Refusal] = []
        """Given to the next requests, one each."""

    def answer(self, request: Request) -> Any:
        if self.refusals:
            raise self.refusals.pop(0)
        if request.path != self.path or "authorization" in request.headers:
            raise Refusal(404, {})
        wanted = request.query.get("$filter", "")
        terms = dict(re.findall(r"(\w+) eq '([^']*)'", wanted))
        rest = re.sub(r"\w+ eq '[^']*'", "", wanted).replace(" and ", "").strip()
        if rest or terms.get("serviceName") != "Virtual Machines":
            raise Refusal(400, {"Error": {"Code": "BadRequest", "Message": wanted}})
        if request.query.get("currencyCode") != "USD":
            raise Refusal(400, {"Error": {"Code": "BadRequest", "Message": "currency"}})
        found = [item for item in self.items if item["armRegionName"] == terms["armRegionName"]]
        at = int(request.query.get("$skip", 0))
        more = at + self.page < len(found)
        query = f"currencyCode=USD&$filter={wanted}&$skip={at + self.page}".replace(" ", "%20")
        return {
            "BillingCurrency": "USD",
            "Items": found[at : at + self.page],
            "NextPageLink": f"{self.url}{self.path}?{query}" if more else None,
            "Count": len(found[at : at + self.page]),
        }

    def sell(self, name: str, dedicated: float | None, spot: float | None = None) -> None:
        """Prices of a size in REGION."""
        usual = {
            "currencyCode": "USD",
            "armRegionName": REGION,
            "productName": "Virtual Machines Series",
            "serviceName": "Virtual Machines",
            "unitOfMeasure": "1 Hour",
            "type": "Consumption",
            "armSkuName": name,
        }
        if dedicated is not None:
            self.items.append(usual | {"skuName": name, "retailPrice": dedicated})
        if spot is not None:
            self.items.append(usual | {"skuName": f"{name} Spot", "retailPrice": spot})

"""What VMs cost, by the Azure Retail Prices API, which anybody may ask.

Source: "Azure Retail Prices REST API overview".
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from tesazure.errors import BackendUnavailable

MOST_PAGES = 200
"""Of 1,000 prices; a region has some ten."""
TRIES = 3
LONGEST_PAUSE_S = 30.0
TIMEOUT_S = 60.0


class Price(msgspec.Struct, frozen=True):
    """Of one size, USD per hour, Linux, pay as you go; None: there is none."""

    dedicated: float | None = None
    spot: float | None = None


async def read_prices(url: str, region: str, ca_bundle: str = "") -> dict[str, Price]:
    """Name of size in lower case -> price. Raises BackendUnavailable."""
    import ssl

    verify = ssl.create_default_context(cafile=ca_bundle) if ca_bundle else True
    wanted = (
        f"serviceName eq 'Virtual Machines' and armRegionName eq '{region}'"
        " and priceType eq 'Consumption'"
    )
    found: dict[str, Price] = {}
    async with httpx.AsyncClient(verify=verify, timeout=TIMEOUT_S, trust_env=False) as client:
        page = await _get(client, url, {"currencyCode": "USD", "$filter": wanted})
        for _ in range(MOST_PAGES):
            found = add(found, page.get("Items") or ())
            following = page.get("NextPageLink")
            if not following:
                return found
            if urlsplit(following).netloc != urlsplit(url).netloc:
                raise BackendUnavailable("Azure's prices cannot be read: a page is elsewhere")
            page = await _get(client, following, None)
    raise BackendUnavailable(f"Azure's prices cannot be read: more than {MOST_PAGES} pages")


def add(known: Mapping[str, Price], items: Iterable[Mapping[str, Any]]) -> dict[str, Price]:
    """Prices with those of a page: of Linux and by the hour, neither of what was called low
    priority nor of reserved ones."""
    found = dict(known)
    for item in items:
        name = str(item.get("armSkuName") or "").lower()
        product, sku = str(item.get("productName", "")), str(item.get("skuName", ""))
        if (
            not name
            or item.get("type") != "Consumption"
            or item.get("unitOfMeasure") != "1 Hour"
            or "Windows" in product
            or "Cloud Services" in product
            or "Low Priority" in sku
        ):
            continue
        price = item.get("retailPrice")
        if not isinstance(price, (int, float)) or price <= 0:
            continue
        before = found.get(name, Price())
        if "Spot" in sku:
            found[name] = Price(before.dedicated, float(price))
        else:
            found[name] = Price(float(price), before.spot)
    return found


async def _get(
    client: httpx.AsyncClient, url: str, query: Mapping[str, str] | None
) -> dict[str, Any]:
    said = ""
    for attempt in range(TRIES):
        pause = 0.5 * (1 << attempt)
        try:
            answer = await client.get(url, params=query)
            if answer.status_code == 200:
                page = answer.json()
                if isinstance(page, dict):
                    return page
                said = "the answer is no object"
                break
            said = f"status {answer.status_code}"
            after = answer.headers.get("retry-after", "")
            pause = float(after) if after.isdigit() else pause
            if answer.status_code < 500 and answer.status_code != 429:
                break
        except (httpx.HTTPError, ValueError) as error:
            said = str(error) or type(error).__name__
        if attempt + 1 < TRIES:
            await asyncio.sleep(min(pause, LONGEST_PAUSE_S))
    raise BackendUnavailable(f"Azure's prices cannot be read from {urlsplit(url).netloc}: {said}")

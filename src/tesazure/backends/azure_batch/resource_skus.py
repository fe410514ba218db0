"""The sizes that a subscription may have, their zones and restrictions: "Resource Skus - List" of
Microsoft.Compute (2021-07-01). Of that service nothing else is used: its SDK has 20 MB."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import msgspec

from tesazure.errors import BackendUnavailable

if TYPE_CHECKING:
    from azure.mgmt.batch import BatchManagementClient

VERSION = "2021-07-01"
_MOST_PAGES = 100


class Pair(msgspec.Struct, frozen=True):
    """A capability."""

    name: str
    value: str


class Place(msgspec.Struct, frozen=True):
    """A region, and those of its zones in which a size is offered."""

    location: str
    zones: list[str] | None = None


class Zones(msgspec.Struct, frozen=True):
    """Where a restriction holds."""

    zones: list[str] | None = None


class Restriction(msgspec.Struct, frozen=True, rename="camel"):
    """Where this subscription may not have a size: `type` is Location or Zone."""

    type: str = ""
    values: list[str] | None = None
    restriction_info: Zones | None = None


class ResourceSku(msgspec.Struct, frozen=True, rename="camel"):
    """A size, or a SKU of another `resource_type`."""

    name: str = ""
    resource_type: str = ""
    capabilities: list[Pair] | None = None
    location_info: list[Place] | None = None
    restrictions: list[Restriction] | None = None


class _Page(msgspec.Struct, rename="camel"):
    value: list[ResourceSku]
    next_link: str | None = None


def resource_skus(
    client: BatchManagementClient, arm_url: str, subscription: str, region: str
) -> Iterator[ResourceSku]:
    """All of a region, asked for as `client` signs in to Azure Resource Manager. Raises
    BackendUnavailable for an answer that cannot be understood, azure.core's AzureError."""
    from azure.core.rest import HttpRequest

    start = f"{arm_url}/subscriptions/{subscription}/providers/Microsoft.Compute/skus"
    which = quote(f"location eq '{region}'")
    url = f"{start}?api-version={VERSION}&$filter={which}"
    for _ in range(_MOST_PAGES):
        response = client.send_request(HttpRequest("GET", url))
        response.raise_for_status()
        try:
            page = msgspec.json.decode(response.content, type=_Page)
        except msgspec.MsgspecError as error:
            raise BackendUnavailable(f"the list of VM sizes: {error}") from error
        yield from page.value
        if not page.next_link:
            return
        url = page.next_link
        # The token goes along: to nobody else than who was asked first.
        if not same_origin(url, arm_url):
            raise BackendUnavailable(
                f"the list of VM sizes goes on at another place than {arm_url}"
            )
    raise BackendUnavailable(f"the list of VM sizes has more than {_MOST_PAGES} pages")


def same_origin(one: str, other: str) -> bool:
    """Whether two https URLs are of one server: Azure writes its links with and without `:443`."""

    def origin(url: str) -> tuple[str, str | None, int]:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or 443

    try:
        return origin(one) == origin(other)
    except ValueError:  # no URL
        return False

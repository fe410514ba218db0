"""Requests with which Batch begins something long that nobody here waits for the end of.

The SDK's own `begin_…` watch it from a thread each, which asks Batch every five seconds until it
has ended, for longer than this server may run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from azure.batch import BatchClient

_API_VERSION = "2025-06-01"
"""That of the SDK's calls."""
_JSON = "application/json; odata=minimalmetadata"


def delete_job(client: BatchClient, job: str) -> None:
    """Source: "Jobs - Delete Job". Raises as the SDK does."""
    _send(client, "DELETE", f"/jobs/{job}")


def delete_pool(client: BatchClient, pool: str) -> None:
    """Source: "Pools - Delete Pool". Raises as the SDK does."""
    _send(client, "DELETE", f"/pools/{pool}")


def remove_nodes(client: BatchClient, pool: str, nodes: list[str]) -> None:
    """At most 100. Source: "Pools - Remove Nodes". Raises as the SDK does."""
    _send(client, "POST", f"/pools/{pool}/removenodes", {"nodeList": nodes})


def _send(client: BatchClient, method: str, path: str, body: object = None) -> None:
    from azure.batch import models
    from azure.core.exceptions import HttpResponseError
    from azure.core.rest import HttpRequest

    request = HttpRequest(
        method,
        f"{{endpoint}}{path}",
        params={"api-version": _API_VERSION},
        headers={"Content-Type": _JSON} if body is not None else None,
        json=body,
    )
    response = client.send_request(request)
    if response.status_code == 202:
        return
    try:
        model = models.BatchError(response.json())
    except ValueError:  # a proxy's page
        model = None
    raise HttpResponseError(response=response, model=model)

"""service-info: GA4GH service-info 1.0.0 with the additions of TES, and the form of 2019."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request

from tesazure import __version__
from tesazure.api.flavour import V1_0, V1_1, Flavour
from tesazure.api.parts import Parts
from tesazure.api.replies import Handler, Reply, Route, json_reply
from tesazure.api.views import timestamp


def routes(parts: Parts) -> list[Route]:
    """Both forms under both prefixes: py-tes 0.4.2 asks for the old one below /ga4gh/tes."""
    found = []
    legacy = _answer(parts, lambda: _legacy(parts))
    for flavour in (V1_1, V1_0):
        found.append(
            Route(
                f"{flavour.prefix}/service-info",
                {"GET": _answer(parts, partial(_current, parts, flavour))},
                True,
            )
        )
        found.append(Route(f"{flavour.prefix}/tasks/service-info", {"GET": legacy}, True))
    return found


def _answer(parts: Parts, document: Callable[[], dict[str, Any]]) -> Handler:
    said = parts.stations.current
    body = msgspec.json.encode(document())

    async def handler(request: Request) -> Reply:
        nonlocal said, body
        if said is not parts.stations.current:
            said = parts.stations.current
            body = msgspec.json.encode(document())
        return json_reply(body)

    return handler


def _current(parts: Parts, flavour: Flavour) -> dict[str, Any]:
    s = parts.settings
    capabilities = parts.stations.current.backend.capabilities
    document: dict[str, Any] = {
        "id": s.service_id,
        "name": s.service_name,
        "type": {"group": "org.ga4gh", "artifact": "tes", "version": flavour.version},
        "description": _description(parts),
        "organization": {"name": s.organization_name, "url": s.organization_url},
        "createdAt": timestamp(parts.created),
        "updatedAt": timestamp(parts.started),
        "environment": s.environment,
        "version": __version__,
        "storage": list(parts.stations.current.urls.schemes()),
    }
    if s.contact_url:
        document["contactUrl"] = s.contact_url
    if flavour is V1_1:
        document["tesResources_backend_parameters"] = list(capabilities.backend_parameters)
    return document


def _legacy(parts: Parts) -> dict[str, Any]:
    return {
        "name": parts.settings.service_name,
        "doc": _description(parts),
        "storage": list(parts.stations.current.urls.schemes()),
    }


def _description(parts: Parts) -> str:
    capabilities = parts.stations.current.backend.capabilities
    runs = f"Tasks run on {capabilities.name} by {capabilities.engine}."
    said = [parts.settings.service_description, runs, *capabilities.warnings]
    return " ".join(f"{text[0].upper()}{text[1:].removesuffix('.')}." for text in said if text)

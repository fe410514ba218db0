"""/openapi.json, and the same for people: pages without scripts and without foreign files."""

from __future__ import annotations

from typing import Any

import msgspec
from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape
from starlette.requests import Request

from tesazure import __version__
from tesazure.api import openapi
from tesazure.api.replies import Handler, Headers, Reply, Route, json_reply
from tesazure.settings import Settings

_HTML: Headers = [
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"),
    (b"x-content-type-options", b"nosniff"),
]


def routes(settings: Settings) -> list[Route]:
    """The document, its page, and the page at /."""
    document = openapi.document()
    shown = {"name": settings.service_name, "version": __version__, "document": document}
    return [
        Route(
            "/openapi.json", {"GET": _fixed(json_reply(msgspec.json.encode(document)))}, open=True
        ),
        Route("/docs", {"GET": _page("docs.html", shown)}, open=True),
        Route("/", {"GET": _page("home.html", shown)}, open=True),
    ]


def _fixed(reply: Reply) -> Handler:
    async def handler(request: Request) -> Reply:
        return reply

    return handler


def _page(template: str, values: dict[str, Any]) -> Handler:
    made: list[Reply] = []

    async def handler(request: Request) -> Reply:
        # Rendered when first asked for: most servers start without ever showing it.
        if not made:
            made.append(Reply(200, _render(template, values), _HTML))
        return made[0]

    return handler


def _render(template: str, values: dict[str, Any]) -> bytes:
    environment = Environment(loader=PackageLoader("tesazure.api"), autoescape=True)
    environment.filters["prose"] = _prose
    environment.filters["kind"] = _kind
    return environment.get_template(template).render(**values).encode("utf-8")


def _prose(text: str) -> Markup:
    """The little Markdown that the document uses: `code` and lists."""
    parts = str(escape(text)).split("`")
    inline = "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(parts))
    lines = [f"<br>• {x[2:]}" if x.startswith("- ") else x for x in inline.split("\n")]
    return Markup(" ".join(lines))  # noqa: S704 - escaped above


def _kind(schema: dict[str, Any]) -> Markup:
    """A schema's type in a few words, with links to named ones."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return Markup('<a href="#schema-{0}">{0}</a>').format(name)
    if schema.get("type") == "array":
        return Markup("array of {}").format(_kind(schema["items"]))
    if "additionalProperties" in schema:
        return Markup("map to {}").format(_kind(schema["additionalProperties"]))
    kind = schema.get("type", "any")
    return escape(" or ".join(kind) if isinstance(kind, list) else kind)

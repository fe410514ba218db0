"""Requests and replies held against Microsoft's published definition of the Batch service.

The definition (BatchService.json, 2024-07-01.20.0) is not part of this project: it is read from a
directory `shared` beside the repository, or from the one that TESAZURE_SHARED names. The SDK speaks
a younger version; what that added and took away is written down in `ADDED` and `TAKEN_AWAY`.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema_rs

from tests.services.batch_wire import Reply, Request

MEDIA_TYPE = "application/json; odata=minimalmetadata"
ADDED: dict[str, tuple[str, ...]] = {
    "ComputeNode": ("ipv6Address",),
    "DataDisk": ("managedDisk",),
    "DiskEncryptionConfiguration": ("customerManagedKey",),
    "ManagedDisk": ("diskEncryptionSet",),
    "PublicIPAddressConfiguration": ("ipFamilies", "ipTags"),
    "SecurityProfile": ("proxyAgentSettings",),
    "TaskSchedulingPolicy": ("jobDefaultOrder",),
}
"""Properties that 2025-06-01 added, by definition."""
_KEPT = ("$ref", "type", "enum", "required", "minimum", "maximum", "maxLength", "minItems")
TAKEN_AWAY = frozenset({"certificateReferences"})
"""Required properties that 2025-06-01 does not know."""
_FOREIGN_QUERY = frozenset({"api-version", "$skiptoken"})


def definition_file() -> Path | None:
    """Where it is; None where it is not."""
    beside = Path(__file__).parents[2].parent / "shared"
    directory = Path(os.environ.get("TESAZURE_SHARED", beside))
    file = directory / "spec" / "azure" / "batch" / "BatchService.json"
    return file if file.is_file() else None


@functools.cache
def definition() -> Definition | None:
    """Microsoft's definition; None where it is not."""
    file = definition_file()
    return None if file is None else Definition(json.loads(file.read_text()))


class Definition:
    """Operations and schemas of the service, in which objects hold nothing that is not named."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._parameters = document.get("parameters", {})
        self._schemas = {name: _close(each) for name, each in document["definitions"].items()}
        for name, schema in self._schemas.items():
            for added in ADDED.get(name, ()):
                schema["properties"][added] = {}
        replaced = self._schemas["PoolUpdatePropertiesParameter"]
        replaced["required"] = [each for each in replaced["required"] if each not in TAKEN_AWAY]
        self._operations: list[tuple[str, re.Pattern[str], dict[str, Any]]] = []
        for path, item in document["paths"].items():
            pattern = re.sub(r"\\\{filePath\\\}", ".+", re.escape(path))
            pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", pattern)
            for method, operation in item.items():
                self._operations.append((method.upper(), re.compile(pattern), operation))
        self._operations.sort(
            key=lambda each: (".+" in each[1].pattern, "[^/]+" in each[1].pattern)
        )
        self._validators: dict[str, Any] = {}

    def operation(self, method: str, path: str) -> dict[str, Any] | None:
        """What the definition says of it."""
        for known, pattern, operation in self._operations:
            if known == method and pattern.fullmatch(path):
                return operation
        return None

    def request(self, request: Request, body: Any) -> list[str]:
        """What is wrong with a request."""
        operation = self.operation(request.method, request.path)
        if operation is None:
            return [f"there is no operation {request.method} {request.path}"]
        found: list[str] = []
        known: set[str] = set()
        for given in operation["parameters"]:
            parameter = given
            if "$ref" in given:
                parameter = self._parameters[given["$ref"].rpartition("/")[2]]
            name, place = parameter["name"].lower(), parameter["in"]
            if place == "query":
                known.add(name)
                if parameter.get("required") and name not in request.query:
                    found.append(f"the query lacks {name}")
            elif place == "body" and body is None and parameter.get("required"):
                found.append("there is no body")
            elif place == "body" and body is not None:
                found += self._errors(parameter["schema"], body)
        unknown = {name.lower() for name in request.query} - known - _FOREIGN_QUERY
        found += [f"the query has an unknown {name}" for name in sorted(unknown)]
        media = request.headers.get("content-type", "")
        if body is not None and media.lower() != MEDIA_TYPE:
            found.append(f"the content type is {media}")
        return found

    def reply(self, request: Request, reply: Reply) -> list[str]:
        """What is wrong with a reply."""
        operation = self.operation(request.method, request.path)
        if operation is None:
            return []
        responses = operation["responses"]
        defined = responses.get(str(reply.status))
        if defined is None:
            if reply.status < 400:
                return [f"status {reply.status} is not defined"]
            defined = responses["default"]
        found: list[str] = []
        schema = defined.get("schema")
        is_file = schema is not None and "file" in (schema.get("type"), schema.get("format"))
        if schema is not None and not is_file and request.method != "HEAD":
            found += self._errors(schema, reply.document)
        elif reply.document is not None:
            found.append("a document where none is defined")
        given = {name.lower() for name in reply.headers}
        wanted = [name for name in defined.get("headers", {}) if reply.status < 400]
        # A list has no version, and a file's length and type come with its content.
        loose = {"etag", "last-modified"} if "value" in (reply.document or ()) else set()
        return found + [
            f"the header {name} is missing" for name in wanted if name.lower() not in given | loose
        ]

    def _errors(self, schema: Any, document: Any) -> list[str]:
        key = json.dumps(schema, sort_keys=True)
        if key not in self._validators:
            whole = {**_close(schema), "definitions": self._schemas}
            self._validators[key] = jsonschema_rs.Draft4Validator(whole)
        return [
            f"{'/'.join(map(str, error.instance_path)) or 'body'}: {error.message[:200]}"
            for error in self._validators[key].iter_errors(document)
        ]


def _close(schema: Any) -> Any:
    """A schema in which objects allow nothing more than they name. Formats are not judged."""
    if not isinstance(schema, dict):
        return schema
    closed = {name: schema[name] for name in _KEPT if name in schema}
    for name in ("items", "additionalProperties"):
        if name in schema:
            closed[name] = _close(schema[name])
    if "properties" in schema:
        closed["properties"] = {name: _close(each) for name, each in schema["properties"].items()}
        closed.setdefault("additionalProperties", False)
    return closed

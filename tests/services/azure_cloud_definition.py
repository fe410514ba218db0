"""Requests and replies held against Microsoft's published definitions of resource management.

The definitions are not part of this project, see `batch_definition.definition_file`. There are
those of Batch (2024-02-01), Storage (2023-05-01) and resources (2022-09-01); none of
authorization, container registries, networks and compute. Microsoft's packages speak younger
versions; what this project asks for was there before.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema_rs

from tests.services.batch_definition import definition_file

FILES = (
    "batch-management/BatchManagement.json",
    "storage-management/storage.json",
    "storage-management/blob.json",
    "storage-management/file.json",
    "resources/resources.json",
)
_KEPT = ("type", "enum", "required", "minimum", "maximum", "minLength", "maxLength")
_FOREIGN_QUERY = frozenset({"api-version", "$skiptoken"})


@functools.cache
def definitions() -> Definitions | None:
    """Microsoft's definitions; None where they are not."""
    batch = definition_file()
    if batch is None:
        return None
    files = [batch.parents[1] / name for name in FILES]
    return Definitions(files) if all(file.is_file() for file in files) else None


class Definitions:
    """Operations and schemas, in which objects hold nothing that is not named."""

    def __init__(self, files: list[Path]) -> None:
        self._documents: dict[Path, Any] = {}
        self._schemas: dict[str, Any] = {}
        self._validators: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._operations: list[tuple[str, re.Pattern[str], Path, dict[str, Any]]] = []
        for file in files:
            for path, item in self._document(file)["paths"].items():
                if path.startswith("/{resourceId}"):  # any resource: its own definition is better
                    continue
                pattern = re.sub(r"\\\{(?!scope)\w+\\\}", "[^/]+", re.escape(path))
                pattern = pattern.replace(r"\{scope\}", ".+")
                for method, operation in item.items():
                    compiled = re.compile(pattern, re.IGNORECASE)
                    self._operations.append((method.upper(), compiled, file, operation))

    def request(self, method: str, path: str, query: Mapping[str, str], body: Any) -> list[str]:
        """What is wrong with a request; nothing of an operation that is not defined here."""
        found = self._operation(method, path)
        if found is None:
            return []
        file, operation = found
        wrong: list[str] = []
        known: set[str] = set()
        for given in operation.get("parameters", []):
            where, parameter = self._resolved(file, given)
            name = parameter["name"]
            if parameter["in"] == "query":
                known.add(name.lower())
                if parameter.get("required") and name not in query:
                    wrong.append(f"the query lacks {name}")
            elif parameter["in"] == "body" and body is None and parameter.get("required"):
                wrong.append("there is no body")
            elif parameter["in"] == "body" and body is not None:
                wrong += self._errors(where, parameter["schema"], body)
        unknown = {name.lower() for name in query} - known - _FOREIGN_QUERY
        return wrong + [f"the query has an unknown {name}" for name in sorted(unknown)]

    def reply(self, method: str, path: str, status: int, document: Any) -> list[str]:
        """What is wrong with a reply that is no error."""
        found = self._operation(method, path)
        if found is None or status >= 400:
            return []
        file, operation = found
        defined = operation["responses"].get(str(status))
        if defined is None:
            return [f"status {status} is not defined"]
        schema = defined.get("schema")
        if schema is None:
            return [] if document is None else ["a document where none is defined"]
        # What begins now is answered without a document, whatever the definition says.
        if document is None and status == 202:
            return []
        return self._errors(file, schema, document)

    def _operation(self, method: str, path: str) -> tuple[Path, dict[str, Any]] | None:
        for known, pattern, file, operation in self._operations:
            if known == method and pattern.fullmatch(path):
                return file, operation
        return None

    def _document(self, file: Path) -> Any:
        file = file.resolve()
        if file not in self._documents:
            self._documents[file] = json.loads(file.read_text())
        return self._documents[file]

    def _named(self, file: Path, name: str) -> Path:
        """The file that another one names. Types for all lie beside the services' directories here,
        and further up where Microsoft publishes them."""
        shared = name.rpartition("common-types/")[2]
        if shared != name:
            return file.parents[1] / "common-types" / shared
        return file.parent / name

    def _resolved(self, file: Path, found: Any) -> tuple[Path, Any]:
        """What a reference leads to, and the file that it is in; anything will do where that file
        is not among ours."""
        while "$ref" in found:
            name, _, pointer = found["$ref"].partition("#")
            file = self._named(file, name) if name else file
            if not file.is_file():
                return file, {}
            found = self._document(file)
            for part in pointer.strip("/").split("/"):
                found = found[part.replace("~1", "/")]
        return file, found

    def _errors(self, file: Path, schema: Any, document: Any) -> list[str]:
        key = f"{file}{json.dumps(schema, sort_keys=True)}"
        with self._lock:
            if key not in self._validators:
                closed = self._closed(file, schema)
                whole = {**closed, "definitions": self._schemas}
                self._validators[key] = jsonschema_rs.Draft4Validator(whole)
        return [
            f"{'/'.join(map(str, error.instance_path)) or 'body'}: {error.message[:200]}"
            for error in self._validators[key].iter_errors(document)
        ]

    def _closed(self, file: Path, schema: Any) -> Any:
        """A schema in which objects allow nothing more than they and their bases name. Formats are
        not judged."""
        if "$ref" in schema:
            where, found = self._resolved(file, schema)
            short = schema["$ref"].rpartition("/")[2]
            name = re.sub(r"\W", "_", f"{where}#{short}")
            if name not in self._schemas:
                self._schemas[name] = {}  # it may be part of itself
                self._schemas[name].update(self._closed(where, found))
            return {"$ref": f"#/definitions/{name}"}
        closed = {name: schema[name] for name in _KEPT if name in schema}
        if (schema.get("x-ms-enum") or {}).get("modelAsString"):
            closed.pop("enum", None)
        if "items" in schema:
            closed["items"] = self._closed(file, schema["items"])
        if schema.get("x-nullable") and isinstance(closed.get("type"), str):
            closed["type"] = [closed["type"], "null"]
        return closed | self._object(file, schema)

    def _object(self, file: Path, schema: Any) -> dict[str, Any]:
        """What a schema says of properties, with its bases."""
        parts = list(self._parts(file, schema))
        properties = {
            name: self._closed(where, each)
            for where, part in parts
            for name, each in part.get("properties", {}).items()
        }
        found: dict[str, Any] = {"properties": properties} if properties else {}
        if required := {name for _, part in parts for name in part.get("required", [])}:
            found["required"] = sorted(required)
        more = schema.get("additionalProperties", not properties)
        found["additionalProperties"] = self._closed(file, more) if isinstance(more, dict) else more
        return found

    def _parts(self, file: Path, schema: Any) -> Iterator[tuple[Path, Any]]:
        """A schema and its bases."""
        for base in schema.get("allOf", ()):
            where, found = self._resolved(file, base)
            yield from self._parts(where, found)
        yield file, schema

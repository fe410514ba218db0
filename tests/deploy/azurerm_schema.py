"""azurerm's schema, read from the TypeScript that HashiCorp's provider was translated to.

The npm package @cdktn/provider-azurerm has a class for each resource, generated from the provider's
own schema. Of each argument it keeps the name, type, whether it is required, and whether Azure
computes it; not which values are allowed, nor which arguments exclude each other.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Type = Any
"""A type as Terraform's plugin protocol writes it in JSON: "string", ["list", "string"], …"""

_SOURCE = re.compile(r"sourceMappingURL=data:application/json;base64,(\S+)")
_CLASS = re.compile(r"^export class (\w+) extends cdktn\.(\w+) \{$(.*?)^\}$", re.M | re.S)
_INTERFACE = re.compile(r"^export interface (\w+)(?: extends [\w.]+)? \{$(.*?)^\}$", re.M | re.S)
_ARGUMENT = re.compile(
    r"^  // (\w+) - computed: (\w+), optional: (\w+), required: (\w+)$", re.MULTILINE
)
_NESTED = re.compile(r"new (\w+)(OutputReference|List|Map)\(this, \"\w+\"(?:, (true|false))?\)")
_COMPUTED_MAP = re.compile(r"new cdktn\.StringMap\(this, ")
_GETTER = re.compile(r"return (cdktn\.Fn\.tolist\()?this\.get(\w*)Attribute\(")
_PROPERTY = re.compile(r"[#](\w+) \w+#\w+\}\s*\*/\s*readonly \w+(\?)?: (.*?);$", re.MULTILINE)
_PRIVATE = re.compile(r"private _\w+\?: (.*?);")

_GOT: dict[str, Type] = {
    "String": "string",
    "Number": "number",
    "Boolean": "bool",
    "List": ["list", "string"],
    "NumberList": ["list", "number"],
    "StringMap": ["map", "string"],
}
_WRITTEN: dict[str, Type] = {
    "string": "string",
    "number": "number",
    "boolean | cdktn.IResolvable": "bool",
    "string[]": ["list", "string"],
    "{ [key: string]: string }": ["map", "string"],
}


@dataclass(frozen=True)
class Attribute:
    """An argument that is written `name = value`, or what Azure tells of a resource."""

    type: Type
    required: bool = False
    optional: bool = False
    computed: bool = False


@dataclass(frozen=True)
class Block:
    """What may stand between two braces."""

    attributes: dict[str, Attribute] = field(default_factory=dict)
    blocks: dict[str, Nested] = field(default_factory=dict)

    @property
    def type(self) -> Type:
        """Of its values, seen as an object."""
        inner = {name: attribute.type for name, attribute in self.attributes.items()}
        inner |= {name: nested.type for name, nested in self.blocks.items()}
        return ["object", inner]


@dataclass(frozen=True)
class Nested:
    """A block in a block. `nesting` is single, list or set; `most` is 0 where there is no limit."""

    block: Block
    nesting: str
    least: int = 0
    most: int = 0

    @property
    def type(self) -> Type:
        """Of its values."""
        return self.block.type if self.nesting == "single" else [self.nesting, self.block.type]


def provider(modules: Path) -> Block:
    """What may stand in `provider "azurerm"`."""
    source = _typescript(modules / "provider")
    body = next(body for _, base, body in _classes(source) if base == "TerraformProvider")
    interfaces = dict(_INTERFACE.findall(source))
    made = Block()
    for name, _, _, _, section in _sections(body):
        found = _PRIVATE.search(section)
        if found is not None:
            # It is "optional" in TypeScript because it is a list there; Terraform demands one.
            _add_written(made, name, name == "features", found[1], interfaces)
    return made


def resource(modules: Path, kind: str, name: str) -> Block | None:
    """What may stand in a block such as `resource "azurerm_subnet"`; None if there is none.

    `kind` is resource or data.
    """
    prefix = {"resource": "", "data": "data-azurerm-"}[kind]
    directory = modules / (prefix + name.removeprefix("azurerm_").replace("_", "-"))
    if not directory.is_dir():
        return None
    source = _typescript(directory)
    bodies = {name: body for name, _, body in _classes(source)}
    bases = {"resource": "TerraformResource", "data": "TerraformDataSource"}
    own = next(name for name, base, _ in _classes(source) if base == bases[kind])
    return _block(bodies[own], bodies)


def _typescript(directory: Path) -> str:
    """The source that a module was compiled from, which its source map carries."""
    encoded = _SOURCE.findall((directory / "index.js").read_text())[-1]
    source: str = json.loads(base64.b64decode(encoded))["sourcesContent"][0]
    return source


def _classes(source: str) -> list[tuple[str, str, str]]:
    """Name, base and body of each class."""
    return _CLASS.findall(source)


def _sections(body: str) -> list[tuple[str, bool, bool, bool, str]]:
    """Each argument of a class: name, computed, optional, required, and its code."""
    heads = list(_ARGUMENT.finditer(body))
    ends = [head.start() for head in heads[1:]] + [len(body)]
    return [
        (head[1], *(word == "true" for word in head.groups()[1:]), body[head.end() : end])  # type: ignore[misc]
        for head, end in zip(heads, ends, strict=True)
    ]


def _block(body: str, bodies: dict[str, str]) -> Block:
    made = Block()
    for name, computed, optional, required, section in _sections(body):
        nested = _NESTED.search(section)
        if nested is None:
            made.attributes[name] = Attribute(_got(section), required, optional, computed)
            continue
        inner = _block(bodies[f"{nested[1]}OutputReference"], bodies)
        nesting = "set" if nested[3] == "true" else "list"
        if name == "timeouts":
            made.blocks[name] = Nested(inner, "single")
        elif computed:
            # Terraform takes a list of objects that may be written as blocks, too.
            made.attributes[name] = Attribute([nesting, inner.type], False, optional, True)
        else:
            most = 1 if nested[2] == "OutputReference" else 0
            made.blocks[name] = Nested(inner, nesting, int(required), most)
    return made


def _got(section: str) -> Type:
    """The type of what a getter returns; dynamic where it is none of the simple ones."""
    if _COMPUTED_MAP.search(section):
        return ["map", "string"]
    found = _GETTER.search(section)
    if found is None:
        return "dynamic"
    got = _GOT[found[2]]
    return ["set", got[1]] if found[1] else got


def _add_written(
    block: Block, name: str, required: bool, written: str, interfaces: dict[str, str]
) -> None:
    """Add an argument by its type in TypeScript."""
    element = written.removesuffix(" | cdktn.IResolvable").removesuffix("[]")
    if element not in interfaces:
        block.attributes[name] = Attribute(_WRITTEN[written], required, not required)
        return
    inner = Block()
    for below, optional, its_type in _PROPERTY.findall(interfaces[element]):
        _add_written(inner, below, not optional, its_type, interfaces)
    block.blocks[name] = Nested(inner, "list", int(required), 1)

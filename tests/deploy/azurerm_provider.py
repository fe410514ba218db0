"""A provider that has azurerm's schema and nothing else, for Terraform's validate and test.

    python azurerm_provider.py MODULES SOCKET KIND.NAME…

It prints what TF_REATTACH_PROVIDERS must hold, then serves until its standard input ends. Needs
grpcio alone: the few messages of Terraform's plugin protocol, version 6 (`tfplugin6.proto` in
Terraform's source), are written here byte by byte.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import azurerm_schema
import grpc
from azurerm_schema import Attribute, Block, Nested

_NESTING = {"single": 1, "list": 2, "set": 3}
_SECRET = re.compile(r"password|secret|access_key|connection_string|(primary|secondary)_key")

Call = Callable[[bytes], bytes]


def varint(number: int) -> bytes:
    """A number in Protocol Buffers' wire format."""
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*made, number])


def number(tag: int, value: int) -> bytes:
    """A field that is a number or a boolean; nothing for 0, its default."""
    return varint(tag << 3) + varint(value) if value else b""


def data(tag: int, value: bytes | str) -> bytes:
    """A field that is a text or a message."""
    raw = value.encode() if isinstance(value, str) else value
    return varint(tag << 3 | 2) + varint(len(raw)) + raw


def attribute(name: str, what: Attribute) -> bytes:
    """Schema.Attribute. azurerm's write-only arguments are those that end in `_wo`."""
    secret = what.type == "string" and what.computed and _SECRET.search(name) is not None
    return (
        data(1, name)
        + data(2, json.dumps(what.type))
        + number(4, what.required)
        + number(5, what.optional)
        + number(6, what.computed)
        + number(7, secret)
        + number(11, name.endswith("_wo"))
    )


def nested(name: str, what: Nested) -> bytes:
    """Schema.NestedBlock."""
    return (
        data(1, name)
        + data(2, block(what.block))
        + number(3, _NESTING[what.nesting])
        + number(4, what.least)
        + number(5, what.most)
    )


def block(what: Block) -> bytes:
    """Schema.Block."""
    attributes = b"".join(data(2, attribute(*item)) for item in sorted(what.attributes.items()))
    return attributes + b"".join(data(3, nested(*item)) for item in sorted(what.blocks.items()))


def schema(what: Block) -> bytes:
    """Schema."""
    return data(2, block(what))


def provider_schema(modules: Path, wanted: list[str]) -> bytes:
    """GetProviderSchema.Response, with those of the wanted resources that there are."""
    made = data(1, schema(azurerm_schema.provider(modules)))
    for kind, name in (each.split(".") for each in wanted):
        found = azurerm_schema.resource(modules, kind, name)
        if found is not None:
            entry = data(1, name) + data(2, schema(found))
            made += data({"resource": 2, "data": 3}[kind], entry)
    return made


class Provider(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Knows its schema, finds everything else valid, and can reach nothing."""

    def __init__(self, answer: bytes) -> None:
        refusal = data(1, number(1, 1) + data(2, "this provider has a schema only"))
        self._calls: dict[str, Call] = {
            "GetProviderSchema": lambda _: answer,
            "GetFunctions": lambda _: b"",
            "ValidateProviderConfig": lambda _: b"",
            "ValidateResourceConfig": lambda _: b"",
            "ValidateDataResourceConfig": lambda _: b"",
            "ConfigureProvider": lambda _: refusal,
            "StopProvider": lambda _: b"",
        }

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of a call; None, which is UNIMPLEMENTED, for those of newer protocols."""
        service, _, name = details.method.lstrip("/").partition("/")
        call = self._calls.get(name) if service == "tfplugin6.Provider" else None
        if call is None:
            return None
        return grpc.unary_unary_rpc_method_handler(lambda request, _: call(request))


def main(modules: str, socket: str, *wanted: str) -> None:
    """Serve."""
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers([Provider(provider_schema(Path(modules), list(wanted)))])
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    address = {"Network": "unix", "String": socket}
    reattach = {"Protocol": "grpc", "ProtocolVersion": 6, "Pid": os.getpid(), "Test": True}
    name = "registry.terraform.io/hashicorp/azurerm"
    print(json.dumps({name: {**reattach, "Addr": address}}), flush=True)
    sys.stdin.read()
    server.stop(None)


if __name__ == "__main__":
    main(*sys.argv[1:])

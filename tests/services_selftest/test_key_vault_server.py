"""The stand-in for Key Vault, and who asks it, keep to Microsoft's published definition."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from tesazure.azure_identity import Identity
from tesazure.errors import ConfigurationError
from tesazure.key_vault import KeyVault, VaultConfig
from tests.services.entra_server import CLIENT, SECRET, TENANT, EntraServer
from tests.services.key_vault_server import KeyVaultServer
from tests.services.tls_server import Request


@pytest.fixture(scope="session")
def spec(shared_dir: Path) -> dict[str, Any]:
    """Key Vault's definition of secrets, with what it refers to."""
    directory = shared_dir / "spec" / "azure" / "keyvault"
    texts = [(directory / f"{name}.json").read_text() for name in ("secrets", "common")]
    secrets, common = (json.loads(text.replace("common.json#/", "#/")) for text in texts)
    for part in ("definitions", "parameters"):
        secrets[part] = secrets.get(part, {}) | common.get(part, {})
    return dict(secrets)


def closed(definition: Any, spec: dict[str, Any]) -> Any:
    """A definition that allows nothing more than it names, with `allOf` made flat."""
    if "$ref" in definition:
        return closed(spec["definitions"][definition["$ref"].rpartition("/")[2]], spec)
    parts = [definition, *definition.get("allOf", [])]
    if definition.get("type") == "array":
        return {"type": "array", "items": closed(definition["items"], spec)}
    properties: dict[str, Any] = {}
    for part in parts:
        found = spec["definitions"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part
        properties |= found.get("properties", {})
    if not properties:
        return {key: definition[key] for key in ("type", "enum") if key in definition}
    # An error holds an inner one of its kind: two levels are as deep as the service goes.
    inner = properties.pop("innererror", None)
    made = {name: closed(each, spec) for name, each in properties.items()}
    if inner is not None:
        made["innererror"] = {"type": "object", "properties": {"code": {"type": "string"}}}
    return {"type": "object", "properties": made, "additionalProperties": False}


def operation(request: Request, spec: dict[str, Any]) -> Any:
    """What the definition says of a request."""
    for path, operations in spec["paths"].items():
        # The SDK asks for the newest version with an empty one.
        pattern = re.sub(r"\\\{[^}]*\\\}", "[^/]*", re.escape(path))
        if re.fullmatch(pattern, request.path) and request.method.lower() in operations:
            return operations[request.method.lower()]
    raise AssertionError(f"{request.method} {request.path} is not defined")


def check(exchange: tuple[Request, int, Any], spec: dict[str, Any]) -> None:
    """Raises for a request or an answer that is not as defined."""
    request, status, document = exchange
    defined = operation(request, spec)
    parameters = [
        spec["parameters"][each["$ref"].rpartition("/")[2]] if "$ref" in each else each
        for each in defined["parameters"]
    ]
    queries = {each["name"]: each for each in parameters if each["in"] == "query"}
    assert all(name in request.query for name, each in queries.items() if each.get("required"))
    # A link to the next page is the service's own.
    assert set(request.query) <= {*queries, "$skiptoken"}
    responses = defined["responses"]
    schema = responses.get(str(status), responses["default"])["schema"]
    jsonschema_rs.validator_for(closed(schema, spec)).validate(document)


def test_both_sides_keep_to_the_definition(spec: dict[str, Any], tmp_path: Path) -> None:
    with (
        EntraServer(tmp_path / "entra") as entra,
        KeyVaultServer(tmp_path / "vault", entra, page=2) as vault,
    ):
        bundle = tmp_path / "ca.pem"
        bundle.write_text("".join(Path(each.ca_bundle).read_text() for each in (entra, vault)))
        identity = Identity(
            tenant=TENANT,
            client_id=CLIENT,
            secret=SECRET,
            authority=entra.authority,
            ca_bundle=str(bundle),
        )
        for number in range(5):
            vault.set(f"TESAZURE-{number}", "x", expires=time.time() + 99, not_before=1)
        vault.set("TESAZURE-OFF", "x", enabled=False)
        reader = KeyVault(VaultConfig(url=vault.url, identity=identity, verify_challenge=False))
        assert len(reader.read().secrets) == 5
        mark = {"tesazure-installation": "one"}
        reader.write({"batch_account_name": "acc", "log_level": "info"}, mark)
        reader.write({"batch_account_name": "acc", "log_level": "debug"}, mark)
        assert len(vault.versions("TESAZURE-BATCH-ACCOUNT-NAME")) == 1
        assert vault.versions("TESAZURE-LOG-LEVEL") == ["info", "debug"]
        reader.write({"batch_account_name": "acc", "log_level": ""}, mark)
        assert vault.value("TESAZURE-LOG-LEVEL") is None
        assert "TESAZURE-LOG-LEVEL" not in reader.read().secrets
        vault.deleted.add("tesazure-batch-region")
        with pytest.raises(ConfigurationError, match="recover or purge it"):
            reader.write({"batch_region": "eastus"}, mark)
        vault.writers = set()
        with pytest.raises(ConfigurationError, match="Key Vault Secrets Officer"):
            reader.write({"log_level": "info"}, mark)
        vault.readers = set()
        with pytest.raises(ConfigurationError):
            reader.read()
        assert {status for _, status, _ in vault.exchanges} >= {200, 401, 403, 409}
        assert vault.challenges == 1
        for exchange in vault.exchanges:
            check(exchange, spec)


def test_the_definition_is_closed(spec: dict[str, Any]) -> None:
    schema = closed({"$ref": "#/definitions/SecretListResult"}, spec)
    validator = jsonschema_rs.validator_for(schema)
    assert validator.is_valid({"value": [{"id": "x", "attributes": {"enabled": True}}]})
    assert not validator.is_valid({"value": [{"id": "x", "attributes": {"enabeld": True}}]})
    assert not validator.is_valid({"value": [{"identifier": "x"}]})

"""Requests to the provisioner: Azure's rules of names, all errors at once, and no secret in any."""

from __future__ import annotations

import json
import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tesazure.errors import InvalidInput
from tesazure.provisioning import (
    Request,
    Run,
    ServicePrincipal,
    StepRecord,
    StoredRun,
    fingerprint,
    named,
    principal_of,
    request_of,
    run_id_of,
    without_secret,
)

SUBSCRIPTION = "0b1f6471-1bf0-4dda-aec3-111122223333"
SECRET = "the~secret_9f2c"
PRINCIPAL = {
    "client_id": "0b1f6471-1bf0-4dda-aec3-cccccccccccc",
    "secret": SECRET,
    "tenant": "contoso.onmicrosoft.com",
}
VNET_ID = (
    f"/subscriptions/{SUBSCRIPTION}/resourceGroups/net/providers/Microsoft.Network"
    "/virtualNetworks/hub"
)


def parsed(**fields: Any) -> Request:
    return request_of(json.dumps({"subscription_id": SUBSCRIPTION, **fields}).encode())


def errors(**fields: Any) -> dict[str, str]:
    """What is wrong, by field."""
    with pytest.raises(InvalidInput) as caught:
        parsed(**fields)
    assert SECRET not in str(caught.value)
    return {error.field: error.message for error in caught.value.errors}


def test_the_requirements_example_is_taken() -> None:
    request = parsed(
        service_principal=PRINCIPAL,
        resource_group="my-rg",
        location="West Europe",
        storage_account_name="mystorage",
        storage_sku="Standard_LRS",
        batch_account_name="mybatch",
    )
    assert request.location == "westeurope"
    assert request.service_principal == ServicePrincipal(**PRINCIPAL)


def test_null_is_as_good_as_absent() -> None:
    assert parsed(service_principal=None, location=None) == parsed()


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        (
            "subscription_id",
            [SUBSCRIPTION.upper()],
            ["", "x", SUBSCRIPTION[:-1], f"{SUBSCRIPTION}0"],
        ),
        (
            "resource_group",
            ["a", "A_b-c.(1)", "x" * 90, "größe"],
            ["a.", "x" * 91, "a b", "a/b", "a\n", "."],
        ),
        ("location", ["eastus2", "Germany West Central"], ["e", "east-us", "../x", "1us", "é" * 4]),
        ("storage_account_name", ["abc", "a" * 24, "123"], ["ab", "a" * 25, "Abc", "a-b", "a\n"]),
        ("batch_account_name", ["abc", "a" * 24], ["ab", "a" * 25, "ABC", "a_b", "äbc"]),
        ("storage_sku", ["Standard_ZRS"], ["Premium_LRS", "standard_lrs", "x"]),
        ("pool_allocation_mode", ["BatchService"], ["batchservice", "", "x"]),
        (
            "key_vault",
            ["abc", "my-vault-1", "https://v.vault.azure.net/", "https://v.example:8443"],
            ["ab", "1ab", "a--b", "ab-", "a" * 25, "http://v.example", "https://v/secrets/x"],
        ),
        ("registry", ["abcde", "A1234"], ["abcd", "a-bcd", "a" * 51]),
    ],
)
def test_names_are_held_to_azures_rules(field: str, good: list[str], bad: list[str]) -> None:
    for value in good:
        parsed(**{field: value})
    for value in bad:
        assert list(errors(**{field: value})) == [field], value


@pytest.mark.parametrize(
    ("vnet", "subnet", "wrong"),
    [
        ("hub", "nodes", []),
        (VNET_ID, "nodes", []),
        (VNET_ID.lower(), "n", []),
        ("hub", "", ["subnet"]),
        ("", "nodes", ["vnet"]),
        ("h", "nodes", ["vnet"]),
        ("hub", "-n", ["subnet"]),
        ("hub", "n.", ["subnet"]),
        (VNET_ID.replace(SUBSCRIPTION, "0" * 8), "nodes", ["vnet"]),
        (f"{VNET_ID}/subnets/nodes", "nodes", ["vnet"]),
    ],
)
def test_networks(vnet: str, subnet: str, wrong: list[str]) -> None:
    if wrong:
        assert list(errors(vnet=vnet, subnet=subnet)) == wrong
    else:
        parsed(vnet=vnet, subnet=subnet)


def test_accounts_in_ones_own_subscription_need_a_key_vault() -> None:
    assert list(errors(pool_allocation_mode="UserSubscription")) == ["key_vault"]
    parsed(pool_allocation_mode="UserSubscription", key_vault="vault")


def test_tags() -> None:
    parsed(tags={"team": "genomics", "x" * 128: "v" * 256, "empty": ""})
    assert list(errors(tags={"a<b": ""})) == ["tags.a<b"]
    assert list(errors(tags={"": "x"})) == ["tags."]
    assert list(errors(tags={"x" * 129: ""})) == [f"tags.{'x' * 129}"]
    assert list(errors(tags={"a": "v" * 257})) == ["tags.a"]
    assert list(errors(tags={"Team": "a", "team": "b"})) == ["tags.team"]
    assert list(errors(tags={"tesazure-run": "x"})) == ["tags.tesazure-run"]
    assert list(errors(tags={"Microsoft.x": "x"})) == ["tags.Microsoft.x"]
    parsed(tags={f"t{n}": "" for n in range(13)})
    assert list(errors(tags={f"t{n}": "" for n in range(14)})) == ["tags"]
    assert list(errors(tags={"a": 1})) == ["tags.a"]


def test_everything_wrong_is_told_at_once_with_its_path() -> None:
    found = errors(
        subscription_id=7,
        service_principal={"client_id": "x", "secrt": SECRET, "tenant": ""},
        resource_grup="x",
        storage_account_name="NO",
        tags=[],
        dry_run="yes",
    )
    assert set(found) == {
        *("subscription_id", "service_principal.secret", "service_principal.secrt"),
        *("resource_grup", "storage_account_name", "tags", "dry_run"),
    }
    assert found["service_principal.secrt"] == "is unknown; did you mean secret?"
    assert found["resource_grup"] == "is unknown; did you mean resource_group?"
    assert found["service_principal.secret"] == "is required"
    assert set(errors(service_principal={"client_id": "x", "secret": "", "tenant": "-"})) == {
        *("service_principal.client_id", "service_principal.secret", "service_principal.tenant"),
    }
    assert "the fields are subscription_id" in errors(zzz=1)["zzz"]


@pytest.mark.parametrize("body", [b"", b"x", b"[]", b"null", b'"s"', b"{\xff}", b"[" * 100_000])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        request_of(body)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_no_value_of_any_field_breaks_it(value: Any) -> None:
    for name in Request.__struct_fields__:
        try:
            parsed(**{name: value})
        except InvalidInput as error:
            assert error.errors


def test_the_secret_is_not_shown_nor_kept() -> None:
    request = parsed(service_principal=PRINCIPAL)
    assert SECRET not in repr(request)
    shown = without_secret(request)
    assert SECRET not in msgspec.json.encode(shown).decode()
    assert shown.service_principal == ServicePrincipal(
        PRINCIPAL["client_id"], "", PRINCIPAL["tenant"]
    )
    assert without_secret(shown) is shown
    assert without_secret(parsed()) == parsed()


def test_the_same_is_the_same_whoever_asks_for_it() -> None:
    same = fingerprint(parsed(location="West Europe", tags={"a": "1", "b": "2"}))
    for other in (
        {"service_principal": PRINCIPAL},
        {"service_principal": {**PRINCIPAL, "secret": "another"}},
        {"dry_run": True},
        {"subscription_id": SUBSCRIPTION.upper()},
        {"location": "westeurope", "tags": {"b": "2", "a": "1"}},
    ):
        fields = {"location": "West Europe", "tags": {"a": "1", "b": "2"}, **other}
        assert fingerprint(parsed(**fields)) == same
    distinct = {
        fingerprint(parsed(**fields))
        for fields in (
            *({}, {"location": "eastus"}, {"tags": {"a": "1"}}, {"registry": "abcde"}),
            *({"resource_group": "g"}, {"vnet": "hub", "subnet": "n"}, {"key_vault": "vault"}),
        )
    }
    assert len(distinct) == 7


def test_a_runs_guid_and_names_come_from_its_request() -> None:
    run_id = run_id_of("one installation", fingerprint(parsed()))
    assert uuid.UUID(run_id).version == 4
    assert run_id == run_id_of("one installation", fingerprint(parsed(dry_run=True)))
    assert run_id != run_id_of("another installation", fingerprint(parsed()))
    whole = named(parsed(), run_id)
    assert whole == named(parsed(), run_id)
    assert whole.storage_account_name == whole.batch_account_name
    assert (whole.resource_group, whole.location) == ("tesazure", "eastus")
    assert request_of(msgspec.json.encode(whole)) == whole, "its names are good ones"
    assert named(whole, "0" * 8 + whole.subscription_id) == whole, "what is named stays"


def test_the_status_words() -> None:
    run = Run(id="x", fingerprint="y", request=parsed(), created=0, updated=0)
    for state, held, word in (
        *(("INPROGRESS", True, "INPROGRESS"), ("INPROGRESS", False, "UNKNOWN")),
        *(("DELETING", False, "UNKNOWN"), ("CREATED", False, "CREATED")),
        *(("ERROR", False, "ERROR"), ("DELETED", True, "DELETED")),
    ):
        assert StoredRun(msgspec.structs.replace(run, state=state), 1, held).status == word


def test_a_run_comes_back_as_it_was_written() -> None:
    run = Run(
        id="x",
        fingerprint="y",
        request=without_secret(parsed(service_principal=PRINCIPAL, tags={"a": "b"})),
        steps=[StepRecord(name="group", title="The group", made=True, started=1.5)],
        created=1.25,
        updated=2,
    )
    assert msgspec.json.decode(msgspec.json.encode(run), type=Run) == run


def test_a_removal_may_name_a_principal() -> None:
    assert principal_of(b"") is None
    assert principal_of(b" {} ") is None
    assert principal_of(b'{"service_principal": null}') is None
    body = json.dumps({"service_principal": PRINCIPAL}).encode()
    assert principal_of(body) == ServicePrincipal(**PRINCIPAL)
    for wrong in ({"x": 1}, {"service_principal": {**PRINCIPAL, "secret": ""}}, [], 1):
        with pytest.raises(InvalidInput):
            principal_of(json.dumps(wrong).encode())

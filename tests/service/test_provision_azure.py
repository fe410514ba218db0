"""What a Batch backend needs, made in a stand-in for Azure by Microsoft's own packages."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from azure.storage.blob import BlobServiceClient

from tesazure.azure_identity import credential_of
from tesazure.provision.azure.config import UNTAGGED
from tesazure.provision.azure.roles import ROLE_NAMES
from tesazure.provisioning import ProvisionFailed, Request
from tests.service.azure_subscription import (
    BATCH,
    GROUP,
    INSTALLATION,
    KEYED,
    NAME,
    OTHER_RUN,
    OWNED,
    RUN,
    STEPS,
    STORAGE,
    Subscription,
    roles_of,
)
from tests.services.azure_cloud_groups import SUBSCRIPTION
from tests.services.entra_server import CLIENT, object_id

NODES = "33333333-7777-8888-9999-aaaaaaaaaaaa"
"""Client id of another principal than the one that makes all: a server's own identity."""


def asked(azure: Subscription, *verbs: str) -> list[str]:
    """What was asked of Azure by these methods."""
    return [each for each in azure.cloud.asked if each.partition(" ")[0] in verbs]


# ------------------------------------------------------------------ the whole of it


def test_an_empty_subscription_gets_all_that_a_backend_with_keys_needs(
    azure: Subscription,
) -> None:
    with azure.ground() as ground:
        assert ground.problems() == []
        assert asked(azure, "PUT", "PATCH", "DELETE") == []
        assert [step.name for step in ground.steps()] == [*STEPS]
        assert set(azure.states(ground).values()) == {"missing"}
        outcomes = azure.make(ground)
        assert [name for name in STEPS if outcomes[name].made] == [*STEPS[1:]]
        values = ground.values()
    storage, batch = azure.cloud.found(STORAGE), azure.cloud.found(BATCH)
    assert storage is not None
    assert batch is not None
    for made in (storage, batch, azure.cloud.found(GROUP)):
        assert made is not None
        assert made["tags"] == {"tesazure-run": RUN, "tesazure-installation": INSTALLATION}
    assert storage["sku"]["name"] == "Standard_LRS"
    assert storage["properties"]["minimumTlsVersion"] == "TLS1_2"
    assert storage["properties"]["supportsHttpsTrafficOnly"] is True
    assert storage["properties"]["allowBlobPublicAccess"] is False
    assert storage["properties"]["allowSharedKeyAccess"] is True
    assert batch["identity"]["type"] == "SystemAssigned"
    assert batch["properties"]["autoStorage"]["storageAccountId"] == STORAGE
    assert batch["properties"]["autoStorage"]["authenticationMode"] == "StorageKeys"
    assert "100 dedicated cores" in outcomes["batch-account"].detail
    assert values == {
        "compute_backend": "batch",
        "batch_account_name": NAME,
        "batch_account_url": azure.cloud.batch.servers[NAME].url,
        "batch_account_key": values["batch_account_key"],
        "batch_region": "eastus",
        "batch_file_share": "batchfiles",
        "batch_storage_container": "batchtmp",
        "cromwell_storage_container_name": "cromwell",
        "storage_account_name": NAME,
        "storage_account_key": values["storage_account_key"],
        "storage_blob_endpoint": azure.cloud.storage.gates[NAME].endpoint,
    }
    key = {"account_name": NAME, "account_key": values["storage_account_key"]}
    with BlobServiceClient(
        values["storage_blob_endpoint"], key, connection_verify=azure.cloud.ca_bundle
    ) as blobs:
        assert {each.name for each in blobs.list_containers()} == {"batchtmp", "cromwell"}
    assert azure.cloud.found(f"{STORAGE}/fileServices/default/shares/batchfiles") is not None


def test_a_server_with_an_identity_gets_roles_and_no_keys(azure: Subscription) -> None:
    with azure.owned() as ground:
        assert ground.problems() == []
        assert [step.name for step in ground.steps()] == [*STEPS, "roles"]
        outcomes = azure.make(ground)
        values = ground.values()
    assert outcomes["roles"].made
    assert "not mounted" in outcomes["file-share"].detail
    storage, batch = azure.cloud.found(STORAGE), azure.cloud.found(BATCH)
    assert storage is not None
    assert batch is not None
    assert storage["properties"]["allowSharedKeyAccess"] is False
    assert batch["properties"]["allowedAuthenticationModes"] == ["AAD"]
    assert batch["properties"]["autoStorage"]["authenticationMode"] == "BatchAccountManagedIdentity"
    assert roles_of(azure, object_id(CLIENT)) - {("?", SUBSCRIPTION)} == {
        ("Azure Batch Data Contributor", NAME),
        ("Storage Blob Data Contributor", NAME),
        ("Storage Blob Delegator", NAME),
    }
    assert roles_of(azure, batch["identity"]["principalId"]) == {
        ("Storage Blob Data Contributor", NAME)
    }
    keys = {name: value for name, value in values.items() if name.endswith("_key")}
    assert keys == {"batch_account_key": "", "storage_account_key": ""}
    assert not values["batch_file_share"]
    assert values["azure_subscription_id"] == SUBSCRIPTION
    assert values["batch_resource_group"] == "tesazure"
    assert azure.cloud.calls["StorageAccounts_ListKeys"] == 0
    assert azure.cloud.calls["BatchAccount_GetKeys"] == 0
    with BlobServiceClient(
        values["storage_blob_endpoint"],
        credential_of(azure.identity()),
        connection_verify=azure.cloud.ca_bundle,
    ) as blobs:
        blobs.get_blob_client("batchtmp", "a").upload_blob(b"a")


def test_a_principal_makes_all_and_the_servers_own_identity_gets_the_roles(
    azure: Subscription,
) -> None:
    azure.entra.secrets[NODES] = "another"
    azure.cloud.rights.principals[object_id(NODES)] = 0.0
    with azure.ground(identity=azure.identity(NODES)) as ground:
        assert ground.problems() == []
        azure.make(ground)
    assert len(roles_of(azure, object_id(NODES))) == 3
    assert roles_of(azure, object_id(CLIENT)) == {("?", SUBSCRIPTION)}


@pytest.mark.parametrize("request_", [KEYED, OWNED], ids=["keys", "identity"])
def test_made_again_it_changes_nothing(used: Subscription, request_: Request) -> None:
    identity = {} if request_.service_principal else {"identity": used.identity()}
    with used.ground(request_, **identity) as ground:
        used.make(ground)
    used.cloud.asked.clear()
    with used.ground(request_, **identity) as ground:
        assert ground.problems() == []
        assert set(used.states(ground).values()) == {"ours", "right"}
        outcomes = used.make(ground)
    assert all(outcome.made for outcome in outcomes.values())
    assert asked(used, "PUT", "PATCH", "DELETE") == []


def test_what_somebody_has_changed_of_ours_is_mended_and_only_that(used: Subscription) -> None:
    with used.ground() as ground:
        used.make(ground)
    account, service = used.cloud.state.get(STORAGE), used.cloud.state.get(BATCH)
    assert account is not None
    assert service is not None
    account.properties.update(allowBlobPublicAccess=True, minimumTlsVersion="TLS1_0")
    del service.properties["autoStorage"]
    used.cloud.asked.clear()
    with used.ground() as ground:
        used.make(ground)
    storage, batch = used.cloud.found(STORAGE), used.cloud.found(BATCH)
    assert storage is not None
    assert batch is not None
    assert storage["properties"]["allowBlobPublicAccess"] is False
    assert storage["properties"]["minimumTlsVersion"] == "TLS1_2"
    assert batch["properties"]["autoStorage"]["storageAccountId"] == STORAGE
    assert asked(used, "PUT", "PATCH", "DELETE") == [f"PATCH {STORAGE}", f"PUT {BATCH}"]


def test_another_run_uses_what_an_earlier_one_of_the_installation_made(used: Subscription) -> None:
    with used.ground() as ground:
        used.make(ground)
    again = msgspec.structs.replace(
        KEYED, storage_account_name=NAME, batch_account_name="another", tags={"for": "you"}
    )
    with used.ground(again, OTHER_RUN) as ground:
        assert ground.problems() == []
        states = used.states(ground)
        outcomes = used.make(ground)
        assert ground.values()["storage_account_name"] == NAME
        assert states["storage-account"] == "right"
        assert [*outcomes] == ["batch-account"]
        used.remove(ground)
    assert used.cloud.found(STORAGE) is not None
    assert used.cloud.found(BATCH) is not None
    assert used.cloud.found(f"{BATCH.rpartition('/')[0]}/another") is None


# ------------------------------------------------------------------ failures

FAILS = [
    ("Providers_Register", "providers"),
    ("ResourceGroups_CreateOrUpdate", "resource-group"),
    ("StorageAccounts_Create", "storage-account"),
    ("BlobContainers_Create", "containers"),
    ("FileShares_Create", "file-share"),
    ("BatchAccount_Create", "batch-account"),
    ("RoleAssignments_Create", "roles"),
    ("Registries_Create", "registry"),
]
"""What Azure is asked for the change of each step, and the step."""
WHOLE = msgspec.structs.replace(OWNED, registry="labimages")


@pytest.mark.parametrize(
    "how",
    [
        {"status": 503},
        {"status": 429, "retry_after_s": 0.01},
        {"cut": "before"},
        {"cut": "after"},
    ],
    ids=["503", "429", "cut before", "cut after"],
)
def test_every_step_survives_what_passes(azure: Subscription, how: dict[str, Any]) -> None:
    troubles = [azure.cloud.fail(operation, **how) for operation, _ in FAILS]
    with azure.owned(WHOLE) as ground:
        outcomes = azure.make(ground)
        assert set(azure.states(ground).values()) == {"ours", "right"}
    assert [trouble.times for trouble in troubles] == [0] * len(FAILS)
    assert [step for step, outcome in outcomes.items() if not outcome.made] == ["providers"]


@pytest.mark.parametrize(("operation", "step"), FAILS, ids=[step for _, step in FAILS])
def test_every_step_fails_for_good_says_why_and_is_completed_later(
    azure: Subscription, operation: str, step: str
) -> None:
    trouble = azure.cloud.fail(operation, 99, status=409, code="ScopeLocked", message="Locked.")
    with azure.owned(WHOLE) as ground, pytest.raises(ProvisionFailed) as raised:
        azure.make(ground)
    failure = raised.value.failure
    assert (failure.code, failure.message) == ("ScopeLocked", "Locked.")
    assert "remove the lock" in failure.remedy
    trouble.times = 0
    with azure.owned(WHOLE) as ground:
        outcomes = azure.make(ground)
        assert set(azure.states(ground).values()) == {"ours", "right"}
        assert all(outcome.made for name, outcome in outcomes.items() if name != "providers")
        assert step in outcomes
        azure.remove(ground)
    assert azure.cloud.ids() == []


@pytest.mark.parametrize(
    ("operation", "step"),
    [
        # A storage account that Azure cannot make is not there at all.
        ("BatchAccount_Create", "batch-account"),
        ("Registries_Create", "registry"),
    ],
)
def test_what_fails_after_it_has_begun_is_completed_later(
    used: Subscription, operation: str, step: str
) -> None:
    used.cloud.fail(operation, later=True, status=409, code="SubscriptionQuotaExceeded")
    with used.owned(WHOLE) as ground:
        with pytest.raises(ProvisionFailed) as raised:
            used.make(ground)
        assert raised.value.failure.code == "SubscriptionQuotaExceeded"
        assert "ask for more" in raised.value.failure.remedy
        assert used.states(ground)[step] == "ours"
        used.make(ground)
        assert set(used.states(ground).values()) == {"ours", "right"}


def test_a_run_that_was_cut_off_while_azure_worked_waits_for_the_same(used: Subscription) -> None:
    used.cloud.pace.creation_s = 1.0
    lost = used.cloud.fail("Operation_Get", 99, status=409, code="ScopeLocked")
    with used.ground() as ground, pytest.raises(ProvisionFailed):
        used.make(ground)
    lost.times = 0
    with used.ground() as ground:
        assert used.states(ground)["storage-account"] == "ours"
        used.make(ground)
        assert set(used.states(ground).values()) == {"ours", "right"}
    assert f"waiting for Storage account {NAME}" in used.told


def test_azure_that_wants_to_be_left_alone_for_long_is(used: Subscription) -> None:
    used.cloud.fail("StorageAccounts_Create", 99, status=429, retry_after_s=3600)
    with used.ground() as ground, pytest.raises(ProvisionFailed) as raised:
        used.make(ground)
    assert raised.value.failure.code == "TooManyRequests"
    assert "in some minutes" in raised.value.failure.remedy


def test_a_new_identity_that_is_not_known_everywhere_yet_gets_its_roles(
    used: Subscription,
) -> None:
    used.cloud.fail("RoleAssignments_Create", 2, status=400, code="PrincipalNotFound")
    with used.owned() as ground:
        assert used.make(ground)["roles"].made
    assert "waiting for the role Azure Batch Data Contributor" in used.told


def test_roles_that_somebody_gave_before_are_not_given_again(used: Subscription) -> None:
    scope = f"/subscriptions/{SUBSCRIPTION}"
    for role in ROLE_NAMES.values():
        used.cloud.grant(CLIENT, role, scope)
    with used.owned() as ground:
        used.make(ground)
        assert used.cloud.calls["RoleAssignments_Create"] == 1  # the Batch account's own
        used.remove(ground)
    assert len(roles_of(used, object_id(CLIENT))) == 1 + len(ROLE_NAMES)


def test_azure_that_does_not_answer_is_no_fault_of_the_request(azure: Subscription) -> None:
    with (
        azure.ground(arm_url="https://127.0.0.1:9") as ground,
        pytest.raises(ProvisionFailed) as raised,
    ):
        ground.problems()
    assert raised.value.failure.code == "Unreachable"
    assert "ARM_ENDPOINT" in raised.value.failure.remedy


# ------------------------------------------------------------------ removal


@pytest.mark.parametrize("request_", [KEYED, OWNED], ids=["keys", "identity"])
def test_removal_takes_all_that_the_run_made_and_may_be_repeated(
    azure: Subscription, request_: Request
) -> None:
    identity = {} if request_.service_principal else {"identity": azure.identity()}
    azure.cloud.add_group("others")
    other = azure.cloud.place("others", "Microsoft.Network/virtualNetworks", "net")
    before = azure.cloud.ids()
    with azure.ground(request_, **identity) as ground:
        azure.make(ground)
        assert not any(azure.remove(ground))
        assert azure.cloud.ids() == before
        assert not any(azure.remove(ground))
    assert azure.cloud.found(other) is not None
    assert roles_of(azure, object_id(CLIENT)) == {("?", SUBSCRIPTION)}


def test_roles_of_an_identity_that_was_replaced_since_are_removed(used: Subscription) -> None:
    """Those of the server's former identity, and of the Batch account's, which Azure makes anew
    with the account. Nobody else's on the same resources."""
    used.entra.secrets[NODES] = "another"
    used.cloud.rights.principals[object_id(NODES)] = 0.0
    fixed = msgspec.structs.replace(OWNED, storage_account_name=NAME, batch_account_name=NAME)
    in_name_of = msgspec.structs.replace(fixed, service_principal=KEYED.service_principal)
    with used.ground(in_name_of, identity=used.identity(NODES)) as ground:
        used.make(ground)
    service = used.cloud.state.get(BATCH)
    assert service is not None
    former = service.body["identity"]["principalId"]
    service.body["identity"]["principalId"] = used.cloud.rights.new_principal()
    with used.owned(fixed, OTHER_RUN) as ground:
        [other] = [step for step in ground.steps() if step.name == "roles"]
        other.make(used.told.append, False)
    kept = roles_of(used, object_id(CLIENT))
    assert len(kept) == 4
    with used.owned(fixed) as ground:
        [roles] = [step for step in ground.steps() if step.name == "roles"]
        assert roles.look().state == "ours"
        assert roles.remove() == ""
        assert roles.look().state == "right"
    for client in (object_id(NODES), former):
        assert roles_of(used, client) == set()
    assert roles_of(used, object_id(CLIENT)) == kept


@pytest.mark.parametrize(
    ("kind", "step"), [("roleAssignments", "roles"), ("containers", "containers")]
)
def test_what_a_step_of_several_has_half_made_is_found(
    used: Subscription, kind: str, step: str
) -> None:
    """By the mark of the run on the rest: no record has it if the server died in the middle."""
    with used.owned() as ground:
        used.make(ground)
        made = [each.id for each in used.cloud.state.resources.values() if each.type.endswith(kind)]
        with used.cloud.state.lock:
            used.cloud.state.remove(made[-1])
        assert used.states(ground)[step] == "ours"
        used.cloud.asked.clear()
        used.make(ground)
    assert asked(used, "PUT", "PATCH", "DELETE") == [f"PUT {made[-1]}"]


def test_a_group_with_something_of_others_stays(azure: Subscription) -> None:
    with azure.ground() as ground:
        azure.make(ground)
        other = azure.cloud.place("tesazure", "Microsoft.Network/virtualNetworks", "theirs")
        assert azure.remove(ground)[-2:] == ["it holds theirs", ""]
    assert azure.cloud.ids() == sorted([GROUP, other])


def test_what_lost_its_tags_is_not_removed(azure: Subscription) -> None:
    with azure.ground() as ground:
        azure.make(ground)
        account = azure.cloud.state.get(STORAGE)
        assert account is not None
        account.body["tags"] = {}
        stays = azure.remove(ground)
    assert azure.cloud.found(STORAGE) is not None
    assert f"it holds {NAME}" in stays
    assert UNTAGGED in stays

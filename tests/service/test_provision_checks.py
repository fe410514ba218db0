"""What is in a request's way, told before anything is made; asked of a stand-in for Azure."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tesazure.provision.azure.config import UNTAGGED
from tesazure.provision.azure_ground import AzureGround, azure_grounds
from tesazure.provisioning import ProvisionFailed, Request, named
from tesazure.settings import Settings
from tests.service.azure_subscription import (
    BATCH,
    GROUP,
    INSTALLATION,
    KEYED,
    NAME,
    OTHER_RUN,
    OWNED,
    RUN,
    Subscription,
    roles_of,
)
from tests.services.azure_cloud_groups import SUBSCRIPTION
from tests.services.entra_server import CLIENT, SECRET, TENANT, object_id

PAGE = Path(__file__).parents[2] / "docs/provisioning.md"


# ------------------------------------------------------------------ what is in the way


def problems(azure: Subscription, request: Request = KEYED, **config: Any) -> dict[str, str]:
    """By field. Nothing may have been changed."""
    before = azure.cloud.ids()
    with azure.ground(request, **config) as ground:
        found = ground.problems()
    assert azure.cloud.ids() == before
    assert azure.cloud.calls["Providers_Register"] == 0
    assert SECRET not in str(found)
    assert len({each.field for each in found}) == len(found)
    return {each.field: each.message for each in found}


def wanting(**more: Any) -> Request:
    return msgspec.structs.replace(KEYED, **more)


def principal(**more: str) -> Request:
    assert KEYED.service_principal is not None
    return wanting(service_principal=msgspec.structs.replace(KEYED.service_principal, **more))


@pytest.mark.parametrize(
    ("request_", "field", "says"),
    [
        (principal(secret="wrong"), "service_principal.secret", "AADSTS7000215"),
        (principal(client_id=RUN), "service_principal.client_id", "AADSTS700016"),
        (principal(tenant=OTHER_RUN), "service_principal.tenant", "no such tenant"),
        (wanting(subscription_id=RUN), "subscription_id", "az account list"),
        (wanting(location="eastsu"), "location", "did you mean eastus"),
        (wanting(location="brazilsoutheast"), "location", "may have Batch and storage accounts"),
        (wanting(storage_sku="Standard_GZRS"), "storage_sku", "there are Standard_GRS"),
        (wanting(vnet="net", subnet="nodes"), "vnet", "no identity"),
        (
            wanting(pool_allocation_mode="UserSubscription", key_vault="labvault"),
            "pool_allocation_mode",
            "no identity",
        ),
        (wanting(service_principal=None), "service_principal", "AZURE_IDENTITY=default"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else None,
)
def test_what_is_wrong_with_a_request_is_told_before_anything_is_made(
    used: Subscription, request_: Request, field: str, says: str
) -> None:
    found = problems(used, request_)
    assert says in found[field]
    assert set(found) <= {field, "key_vault"}


def test_all_that_is_wrong_is_told_at_once(used: Subscription) -> None:
    used.cloud.storage.taken.add("taken")
    used.cloud.batch.taken.add(("eastus", "taken"))
    used.cloud.registries.taken.add("taken")
    used.cloud.storage.restricted["eastus"] = "Standard_LRS"
    found = problems(
        used, wanting(storage_account_name="taken", batch_account_name="taken", registry="taken")
    )
    assert set(found) == {"storage_account_name", "batch_account_name", "registry", "storage_sku"}
    assert "already" in found["storage_account_name"]
    assert "leave it out" in found["storage_account_name"]


def test_names_that_are_taken_show_in_the_step_where_azure_says_nothing_before(
    azure: Subscription,
) -> None:
    azure.cloud.storage.taken.add("taken")
    with azure.ground(wanting(storage_account_name="taken")) as ground:
        assert ground.problems() == []
        with pytest.raises(ProvisionFailed) as raised:
            azure.make(ground)
    assert raised.value.failure.code == "StorageAccountAlreadyTaken"
    assert "leave it out" in raised.value.failure.remedy


def test_what_others_have_under_the_same_name_is_not_touched(used: Subscription) -> None:
    used.cloud.add_group("tesazure", location="westus2")
    stranger = used.cloud.place("tesazure", "Microsoft.Storage/storageAccounts", NAME)
    other = used.cloud.place("tesazure", "Microsoft.Batch/batchAccounts", NAME)
    found = problems(used)
    assert "not made by this server" in found["storage_account_name"]
    assert "not made by this server" in found["batch_account_name"]
    with used.ground() as ground:
        states = used.states(ground)
        assert (states["storage-account"], states["batch-account"]) == ("foreign", "foreign")
        used.remove(ground)
    assert used.cloud.found(stranger) is not None
    assert used.cloud.found(other) is not None
    assert used.cloud.found(GROUP) is not None


def test_a_group_that_is_going_is_told(used: Subscription) -> None:
    used.cloud.add_group("tesazure")
    group = used.cloud.state.get(GROUP)
    assert group is not None
    group.properties["provisioningState"] = "Deleting"
    assert "being deleted" in problems(used)["resource_group"]


@pytest.mark.parametrize("accounts", ["storage", "batch"])
def test_quotas_are_told(used: Subscription, accounts: str) -> None:
    getattr(used.cloud, accounts).quota = 0
    assert "has 0" in problems(used)["location"]


def test_a_batch_account_without_cores_says_so(used: Subscription) -> None:
    used.cloud.batch.core_quotas |= {"dedicatedCoreQuota": 0, "lowPriorityCoreQuota": 0}
    with used.ground() as ground:
        assert "no task can run" in used.make(ground)["batch-account"].detail


def test_the_settings_say_where_azure_is_and_who_asks(used: Subscription) -> None:
    settings = Settings(
        arm_endpoint=f"{used.cloud.url}/",
        azure_authority_host=used.entra.authority,
        ca_bundle=used.cloud.ca_bundle,
        azure_client_id=CLIENT,
        azure_secret=SECRET,
        azure_tenant=TENANT,
        cromwell_storage_container_name="workflows",
    )
    ground = azure_grounds(settings, INSTALLATION)(named(OWNED, RUN), RUN)
    try:
        assert ground.problems() == []
        steps = {step.name: step for step in ground.steps()}
    finally:
        ground.close()
    assert "roles" in steps
    assert "workflows" in steps["containers"].title


# ------------------------------------------------------------------ rights


def only(azure: Subscription, *roles: Any, scope: str = f"/subscriptions/{SUBSCRIPTION}") -> None:
    """Leave the principal these roles."""
    azure.cloud.revoke(CLIENT)
    for role in roles:
        azure.cloud.grant(CLIENT, role, scope)


def test_a_principal_without_rights_is_told_which_role_it_needs_and_where(
    azure: Subscription,
) -> None:
    only(azure)
    found = problems(azure)
    assert [*found] == ["service_principal"]
    assert f"/subscriptions/{SUBSCRIPTION}" in found["service_principal"]
    assert "az role assignment create" in found["service_principal"]
    assert object_id(CLIENT) in found["service_principal"]


def messages(azure: Subscription, ground: AzureGround) -> str:
    assert azure.cloud.ids() == []
    return "\n".join(each.message for each in ground.problems())


def test_a_reader_is_told_all_that_is_missing(azure: Subscription) -> None:
    only(azure, "Reader")
    with azure.ground() as ground:
        text = messages(azure, ground)
    assert "Microsoft.Storage/register/action" in text
    assert "Microsoft.Storage/storageAccounts/write" in text
    assert "Microsoft.Batch/batchAccounts/write" in text
    assert "Microsoft.Resources/subscriptions/resourceGroups/write" in text
    assert '--role "Contributor"' in text


def test_a_contributor_can_give_no_roles_and_needs_none_with_keys(azure: Subscription) -> None:
    only(azure, "Contributor")
    with azure.ground() as ground:
        assert ground.problems() == []
        azure.make(ground)
        azure.remove(ground)
    with azure.owned() as ground:
        text = messages(azure, ground)
        assert "Microsoft.Authorization/roleAssignments/write" in text
        assert '--role "Role Based Access Control Administrator"' in text
        with pytest.raises(ProvisionFailed) as raised:
            azure.make(ground)
    failure = raised.value.failure
    assert failure.code == "AuthorizationFailed"
    assert "Role Based Access Control Administrator" in failure.remedy
    assert f"--scope {GROUP}" in failure.remedy
    assert object_id(CLIENT) in failure.remedy


def test_a_contributor_of_one_group_can_use_it(used: Subscription) -> None:
    only(used, "Contributor", scope=used.cloud.add_group("tesazure", location="westeurope"))
    with used.ground() as ground:
        assert ground.problems() == []
        azure_states = used.states(ground)
        assert azure_states["providers"] == "right"
        assert azure_states["resource-group"] == "right"
        used.make(ground)
        assert {*used.remove(ground)} == {"", UNTAGGED}
    assert used.cloud.ids() == [GROUP]


@pytest.mark.parametrize("request_", [KEYED, OWNED], ids=["keys", "identity"])
def test_the_role_of_the_documentation_is_enough_to_make_and_to_remove(
    azure: Subscription, request_: Request
) -> None:
    found = re.search(r"^```json\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    role = json.loads(found[1])
    identity = {"identity": azure.identity()}
    if request_.service_principal is not None:
        identity = {}
        given = re.compile("Microsoft.Authorization/roleAssignments/(write|delete)")
        role["Actions"] = [each for each in role["Actions"] if not given.fullmatch(each)]
    only(azure, role)
    with azure.ground(request_, **identity) as ground:
        assert ground.problems() == []
        azure.make(ground)
        assert ground.values()
        assert not any(azure.remove(ground))
    assert azure.cloud.ids() == []


# ------------------------------------------------------------------ networks, vaults, registries


def placed(azure: Subscription, *, location: str = "eastus", **subnet: Any) -> str:
    """A virtual network with a subnet for nodes."""
    azure.cloud.add_group("tesazure")
    subnets = [{"name": "nodes", "properties": {"addressPrefix": "10.0.0.0/24", **subnet}}]
    kind = "Microsoft.Network/virtualNetworks"
    azure.cloud.place("tesazure", f"{kind}/net/subnets", "nodes")
    return azure.cloud.place(
        "tesazure", kind, "net", location=location, properties={"subnets": subnets}
    )


def test_nodes_in_a_subnet_and_the_right_to_use_it(used: Subscription) -> None:
    net = placed(used)
    wanted = msgspec.structs.replace(OWNED, vnet="net", subnet="nodes")
    with used.owned(wanted) as ground:
        assert ground.problems() == []
        used.make(ground)
        assert ground.values()["batch_subnet_id"] == f"{net}/subnets/nodes"
        assert ("Network Contributor", "nodes") in roles_of(used, object_id(CLIENT))
        used.remove(ground)
    assert roles_of(used, object_id(CLIENT)) == {("?", SUBSCRIPTION)}
    assert used.cloud.ids() == [GROUP, net, f"{net}/subnets/nodes"]


@pytest.mark.parametrize(
    ("there", "wanted", "field", "says"),
    [
        ({}, {"vnet": "other", "subnet": "nodes"}, "vnet", "no virtual network"),
        ({}, {"vnet": "net", "subnet": "other"}, "subnet", "it has nodes"),
        ({"location": "westus2"}, {"vnet": "net", "subnet": "nodes"}, "vnet", "in one location"),
        ({"delegations": [{"name": "d"}]}, {"vnet": "net", "subnet": "nodes"}, "subnet", "delega"),
    ],
)
def test_a_subnet_that_nodes_cannot_be_in_is_told(
    used: Subscription, there: dict[str, Any], wanted: dict[str, str], field: str, says: str
) -> None:
    placed(used, **there)
    request = msgspec.structs.replace(OWNED, **wanted)
    found = problems(used, request, identity=used.identity())
    assert [*found] == [field]
    assert says in found[field]


def test_pools_in_the_subscription_itself_need_a_vault_of_it(used: Subscription) -> None:
    wanted = msgspec.structs.replace(
        OWNED, pool_allocation_mode="UserSubscription", key_vault="https://labvault.vault.azure.net"
    )
    identity = {"identity": used.identity()}
    assert "no Key Vault of this subscription" in problems(used, wanted, **identity)["key_vault"]
    used.cloud.add_group("shared")
    url = "https://labvault.vault.azure.net/"
    vault = used.cloud.place(
        "shared", "Microsoft.KeyVault/vaults", "labvault", properties={"vaultUri": url}
    )
    with used.owned(wanted) as ground:
        assert ground.problems() == []
        used.make(ground)
        assert "subscription's quota" in used.make(ground)["batch-account"].detail
    batch = used.cloud.found(BATCH)
    assert batch is not None
    assert batch["properties"]["poolAllocationMode"] == "UserSubscription"
    assert batch["properties"]["keyVaultReference"] == {"id": vault, "url": url}


def test_a_registry_is_made_and_its_login_told(used: Subscription) -> None:
    with used.ground(wanting(registry="labimages")) as ground:
        assert ground.problems() == []
        assert [each.what for each in ground.idle_cost()][-1] == "Container registry labimages"
        assert used.make(ground)["registry"].made
        values = ground.values()
        assert values["private_docker_registry_url"] == "labimages.azurecr.io"
        assert values["private_docker_registry_username"] == "labimages"
        assert values["private_docker_registry_password"] == "labimages-password"
        used.remove(ground)
    assert used.cloud.ids() == []


def test_a_registry_that_is_there_is_used_as_it_is(used: Subscription) -> None:
    used.cloud.add_group("tesazure")
    kind, properties = "Microsoft.ContainerRegistry/registries", {"loginServer": "lab.azurecr.io"}
    there = used.cloud.place(
        "tesazure",
        kind,
        "labimages",
        sku={"name": "Basic"},
        properties={**properties, "adminUserEnabled": False},
    )
    with used.ground(wanting(registry="labimages")) as ground:
        assert ground.problems() == []
        assert used.states(ground)["registry"] == "right"
        used.make(ground)
        assert not [name for name in ground.values() if name.startswith("private_docker")]
        used.remove(ground)
    assert used.cloud.ids() == sorted([GROUP, there])

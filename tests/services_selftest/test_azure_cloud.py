"""The stand-in for Azure, asked by Microsoft's own packages: who may do what, and what is made."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pytest
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
    ServiceResponseError,
)
from azure.mgmt.resource.resources import ResourceManagementClient

from tests.services.azure_cloud import AzureCloud
from tests.services.azure_cloud_groups import SUBSCRIPTION
from tests.services.azure_cloud_rights import BUILT_IN
from tests.services.entra_server import OTHER_TENANT, TENANT, EntraServer, object_id
from tests.services_selftest.azure_clients import (
    BATCH,
    GROUP,
    SCOPE,
    STORAGE,
    STRANGER,
    Clients,
    code_of,
)

VERSION = "2024-05-01"
SUBNETS: Any = {"subnets": [{"name": "nodes", "properties": {"addressPrefix": "10.0.0.0/24"}}]}


# -- who asks


class Token:
    """A token as it stands, and a client that sends it."""

    def __init__(self, cloud: AzureCloud, token: str) -> None:
        self._cloud, self._token = cloud, token

    def get_token_info(self, *_: str, **__: Any) -> Any:
        from azure.core.credentials import AccessTokenInfo

        return AccessTokenInfo(self._token, int(time.time()) + 3600)

    def ask(self) -> None:
        options: dict[str, Any] = {
            "base_url": self._cloud.url,
            "credential_scopes": ["any"],
            "connection_verify": self._cloud.ca_bundle,
        }
        with ResourceManagementClient(self, SUBSCRIPTION, **options) as client:  # type: ignore[arg-type]
            list(client.resource_groups.list())


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"aud": "https://elsewhere.example"}, "InvalidAuthenticationToken"),
        ({"exp": 1}, "ExpiredAuthenticationToken"),
        ({"tid": OTHER_TENANT}, "InvalidAuthenticationTokenTenant"),
        ({"iss": "https://elsewhere.example/"}, "InvalidAuthenticationToken"),
    ],
)
def test_tokens_are_checked(
    cloud: AzureCloud, entra: EntraServer, claims: dict[str, Any], code: str
) -> None:
    whole = {"aud": cloud.url, "tid": TENANT, "oid": "x", **claims}
    with pytest.raises(ClientAuthenticationError) as raised:
        Token(cloud, entra.issue_app_only(whole, version=1)).ask()
    assert code_of(raised) == code


def test_a_principal_without_a_role_is_told_what_it_lacks(
    cloud: AzureCloud, stranger: Clients, owner: Clients, quick: None
) -> None:
    owner.make_group()
    for ask, action, scope in (
        (stranger.make_group, "Microsoft.Resources/subscriptions/resourceGroups/write", GROUP),
        (stranger.make_storage, "Microsoft.Storage/storageAccounts/write", STORAGE),
        (stranger.make_batch, "Microsoft.Batch/batchAccounts/write", BATCH),
    ):
        with pytest.raises(HttpResponseError) as raised:
            ask()
        assert code_of(raised) == "AuthorizationFailed"
        assert f"'{action}' over scope '{scope}'" in str(raised.value).replace(
            "resourcegroups", "resourceGroups"
        )
        assert object_id(STRANGER) in str(raised.value)
    assert list(stranger.resource.resource_groups.list()) == []
    assert list(stranger.resource.resources.list()) == []


def test_roles_count_below_their_scope_alone(
    cloud: AzureCloud, stranger: Clients, owner: Clients, quick: None
) -> None:
    owner.make_group()
    owner.make_group("other")
    cloud.grant(STRANGER, "Contributor", GROUP)
    stranger.make_storage()
    with pytest.raises(HttpResponseError, match="AuthorizationFailed"):
        stranger.make_storage("elsewhere", "other")
    assert [each.name for each in stranger.resource.resource_groups.list()] == ["lab"]
    assert [each.id for each in stranger.resource.resources.list()] == [STORAGE]
    with pytest.raises(HttpResponseError) as raised:
        stranger.assign("x", BUILT_IN["Reader"][0], GROUP, str(uuid.uuid4()))
    assert "Microsoft.Authorization/roleAssignments/write" in str(raised.value)
    cloud.revoke(STRANGER)
    with pytest.raises(HttpResponseError, match="AuthorizationFailed"):
        stranger.storage.storage_accounts.list_keys("lab", "labstorage")


def test_a_role_of_ones_own_is_what_its_definition_says(
    cloud: AzureCloud, stranger: Clients, owner: Clients, quick: None
) -> None:
    owner.make_group()
    definition = {
        "Name": "Makes accounts",
        "Actions": ["Microsoft.Storage/storageAccounts/*"],
        "NotActions": ["Microsoft.Storage/storageAccounts/listKeys/action"],
        "AssignableScopes": [SCOPE],
    }
    cloud.grant(STRANGER, definition)
    stranger.make_storage()
    with pytest.raises(HttpResponseError, match="listkeys/action"):
        stranger.storage.storage_accounts.list_keys("lab", "labstorage")


def test_assigning_roles(cloud: AzureCloud, owner: Clients, stranger: Clients, quick: None) -> None:
    owner.make_group()
    name, who = str(uuid.uuid4()), object_id(STRANGER)
    reader = BUILT_IN["Reader"][0]
    made = owner.assign(who, reader, GROUP, name)
    assert made.principal_id == who
    assert owner.assign(who, reader, GROUP, name).id == made.id
    with pytest.raises(ResourceExistsError) as raised:
        owner.assign(who, reader, GROUP, str(uuid.uuid4()))
    assert code_of(raised) == "RoleAssignmentExists"
    for principal, role, scope, code in (
        (str(uuid.uuid4()), reader, GROUP, "PrincipalNotFound"),
        (who, str(uuid.uuid4()), GROUP, "RoleDefinitionDoesNotExist"),
        (who, reader, f"{SCOPE}/resourceGroups/none", "ResourceNotFound"),
    ):
        with pytest.raises(HttpResponseError) as refused:
            owner.assign(principal, role, scope, str(uuid.uuid4()))
        assert code_of(refused) == code
    assignments = owner.rights.role_assignments
    found = list(assignments.list_for_scope(GROUP, filter=f"principalId eq '{who}'"))
    assert [each.name for each in found] == [name]
    (own,) = stranger.rights.permissions.list_for_resource_group("lab")
    assert own.actions == ["*/read"]
    assert assignments.delete(GROUP, name) is not None
    assert assignments.delete(GROUP, name) is None
    (role,) = owner.rights.role_definitions.list(SCOPE, filter="roleName eq 'Owner'")
    assert role.name == BUILT_IN["Owner"][0]


def test_new_identities_and_assignments_take_a_while(
    cloud: AzureCloud, owner: Clients, stranger: Clients, quick: None
) -> None:
    owner.make_group()
    cloud.pace.replication_s = 3600
    identity = owner.make_batch(identity={"type": "SystemAssigned"}).identity
    reader = BUILT_IN["Reader"][0]
    with pytest.raises(HttpResponseError, match="PrincipalNotFound"):
        owner.assign(identity.principal_id, reader, GROUP, str(uuid.uuid4()))
    kind = {"principalType": "ServicePrincipal"}
    owner.assign(identity.principal_id, reader, GROUP, str(uuid.uuid4()), **kind)
    cloud.pace.assignment_s = 3600
    owner.assign(object_id(STRANGER), reader, GROUP, str(uuid.uuid4()))
    with pytest.raises(HttpResponseError, match="AuthorizationFailed"):
        stranger.resource.resource_groups.get("lab")
    cloud.pace.assignment_s = 0
    stranger.resource.resource_groups.get("lab")


# -- subscriptions, providers, groups


def test_another_subscription_is_not_found(cloud: AzureCloud, owner: Clients) -> None:
    other = ResourceManagementClient(owner.credential, str(uuid.uuid4()), **owner.options)
    with other, pytest.raises(HttpResponseError) as raised:
        other.resource_groups.get("lab")
    assert code_of(raised) == "SubscriptionNotFound"


def test_providers_are_registered_slowly(cloud: AzureCloud, owner: Clients) -> None:
    cloud.add_group("lab")
    cloud.groups.forget("Microsoft.Batch", "Microsoft.Storage")
    with pytest.raises(ResourceExistsError) as raised:
        owner.make_batch()
    assert code_of(raised) == "MissingSubscriptionRegistration"
    name: Any = {"name": "abcdef", "type": "Microsoft.Storage/storageAccounts"}
    with pytest.raises(ResourceNotFoundError) as unknown:
        owner.storage.storage_accounts.check_name_availability(name)
    assert code_of(unknown) == "SubscriptionNotFound"
    providers = owner.resource.providers
    assert providers.get("Microsoft.Batch").registration_state == "NotRegistered"
    cloud.pace.registration_s = 0.3
    assert providers.register("Microsoft.Batch").registration_state == "Registering"
    deadline = time.monotonic() + 20
    while providers.get("Microsoft.Batch").registration_state != "Registered":
        assert time.monotonic() < deadline
    owner.make_batch()


def test_locations(cloud: AzureCloud, owner: Clients, quick: None) -> None:
    cloud.add_group("lab")
    listed = owner.resource.providers.get("Microsoft.Batch").resource_types
    assert listed is not None
    assert "Brazil Southeast" not in (listed[0].locations or [])
    with pytest.raises(HttpResponseError) as raised:
        owner.make_batch(location="brazilsoutheast")
    assert code_of(raised) == "LocationNotAvailableForResourceType"
    nowhere: Any = {"location": "atlantis"}
    with pytest.raises(HttpResponseError) as unknown:
        owner.resource.resource_groups.create_or_update("other", nowhere)
    assert code_of(unknown) == "LocationNotAvailableForResourceGroup"


def test_groups_and_their_tags(cloud: AzureCloud, owner: Clients, quick: None) -> None:
    groups = owner.resource.resource_groups
    assert not groups.check_existence("lab")
    with pytest.raises(ResourceNotFoundError) as raised:
        groups.get("lab")
    assert code_of(raised) == "ResourceGroupNotFound"
    owner.make_group(tesazure_run="1", mine="x")
    assert groups.check_existence("LAB")
    elsewhere: Any = {"location": "westeurope"}
    with pytest.raises(HttpResponseError) as moved:
        groups.create_or_update("lab", elsewhere)
    assert code_of(moved) == "InvalidResourceGroupLocation"
    wanted = "tagName eq 'tesazure_run' and tagValue eq '1'"
    assert [each.name for each in groups.list(filter=wanted)] == ["lab"]
    assert list(groups.list(filter=wanted.replace("1", "2"))) == []
    owner.make_storage()
    change: Any = {"operation": "Merge", "properties": {"tags": {"more": "y"}}}
    owner.resource.tags.begin_update_at_scope(STORAGE, change).result()
    (found,) = owner.resource.resources.list_by_resource_group("lab", filter="tagName eq 'more'")
    assert (found.id, found.tags) == (STORAGE, {"more": "y"})


def test_a_group_goes_with_all_that_is_in_it(cloud: AzureCloud, owner: Clients) -> None:
    owner.make_group()
    owner.make_storage()
    owner.make_batch()
    cloud.place("lab", "Microsoft.Compute/virtualMachines", "foreign")
    cloud.pace.deletion_s = 3600
    poller = owner.resource.resource_groups.begin_delete("lab")
    with pytest.raises(HttpResponseError) as raised:
        owner.make_batch("another")
    assert code_of(raised) == "ResourceGroupBeingDeleted"
    cloud.state.hurry()
    poller.result()
    assert cloud.ids() == []
    assert not cloud.storage.gates
    assert not cloud.batch.servers


def test_resources_of_others_are_found_by_their_id(cloud: AzureCloud, owner: Clients) -> None:
    cloud.add_group("lab")
    net = cloud.place("lab", "Microsoft.Network/virtualNetworks", "net", properties=SUBNETS)
    get = owner.resource.resources.get_by_id
    assert get(net, api_version=VERSION).name == "net"
    assert get(f"{net}/subnets/nodes", api_version=VERSION).id == f"{net}/subnets/nodes"
    for missing in (f"{net}/subnets/none", net.replace("/net", "/none")):
        with pytest.raises(ResourceNotFoundError):
            get(missing, api_version=VERSION)
    owner.resource.resources.begin_delete_by_id(net, api_version=VERSION).result()
    assert cloud.found(net) is None


# -- faults


def test_throttling_is_waited_out_by_the_sdk(cloud: AzureCloud, entra: EntraServer) -> None:
    cloud.fail("ResourceGroups_*", 2, status=429, retry_after_s=0.05)
    patient = Clients(cloud, entra, retries=3)
    assert patient.make_group().name == "lab"
    assert cloud.calls["ResourceGroups_CreateOrUpdate"] == 3


@pytest.mark.parametrize(("cut", "made"), [("before", False), ("after", True)])
def test_connections_are_cut(cloud: AzureCloud, owner: Clients, cut: str, made: bool) -> None:
    cloud.fail("ResourceGroups_CreateOrUpdate", cut=cut)
    with pytest.raises(ServiceResponseError):
        owner.make_group()
    assert cloud.ids() == ([GROUP] if made else [])


def test_scripted_errors_are_azures(cloud: AzureCloud, owner: Clients) -> None:
    cloud.fail("ResourceGroups_*", status=409, code="ScopeLocked", message="It is locked.")
    with pytest.raises(ResourceExistsError, match=r"\(ScopeLocked\) It is locked."):
        owner.make_group()
    cloud.fail("*", status=503)
    with pytest.raises(HttpResponseError) as raised:
        owner.make_group()
    assert code_of(raised) == "ServerBusy"
    owner.make_group()


@pytest.mark.parametrize("kind", ["storage", "batch", "registry"])
def test_what_takes_a_while_may_fail_at_the_end(
    cloud: AzureCloud, owner: Clients, kind: str
) -> None:
    cloud.add_group("lab")
    make = {
        "storage": owner.make_storage,
        "batch": owner.make_batch,
        "registry": owner.make_registry,
    }[kind]
    cloud.fail("*_Create", status=409, code="SubscriptionQuotaExceeded", later=True)
    with pytest.raises(HttpResponseError, match="SubscriptionQuotaExceeded"):
        make()
    left = [cloud.found(each) or {} for each in cloud.ids()[1:]]
    states = [each["properties"]["provisioningState"] for each in left]
    assert states == ([] if kind == "storage" else ["Failed"])
    assert make().provisioning_state == "Succeeded"


def test_a_test_may_look_in_between(cloud: AzureCloud, owner: Clients) -> None:
    seen: list[tuple[str, list[str]]] = []
    cloud.before = lambda operation, _: seen.append((operation, cloud.ids()))
    cloud.after = lambda operation, _: seen.append((operation, cloud.ids()))
    owner.make_group()
    name = "ResourceGroups_CreateOrUpdate"
    assert seen == [(name, []), (name, [GROUP])]


def test_requests_that_break_the_definition_are_refused(cloud: AzureCloud, owner: Clients) -> None:
    if cloud.definitions is None:
        pytest.skip("Microsoft's definitions are not here")
    cloud.add_group("lab")
    with pytest.raises(HttpResponseError, match="'minimumTls' was unexpected") as raised:
        owner.make_storage(minimumTls="1.2")
    assert code_of(raised) == "InvalidRequestContent"
    assert len(cloud.violations) == 1
    cloud.violations.clear()


def test_what_the_stand_in_lacks_fails_the_test(cloud: AzureCloud, owner: Clients) -> None:
    with pytest.raises(HttpResponseError):
        list(owner.batch.application.list("lab", "labbatch"))
    assert "not in the stand-in" in cloud.violations[0]
    cloud.violations.clear()

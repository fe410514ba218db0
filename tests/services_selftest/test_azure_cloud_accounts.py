"""The accounts that the stand-in for Azure makes: they are refused as Azure does, and they work."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
from azure.batch import BatchClient, models
from azure.core import MatchConditions
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import HttpResponseError, ResourceExistsError
from azure.storage.blob import generate_blob_sas

from tesazure.storage.sas import DelegationKey, Grant, Place, delegation_sas
from tests.services.azure_cloud import AzureCloud
from tests.services.azure_cloud_rights import BUILT_IN
from tests.services.entra_server import object_id
from tests.services_selftest.azure_clients import (
    BATCH,
    GROUP,
    SCOPE,
    STORAGE,
    STRANGER,
    Clients,
    code_of,
)
from tests.services_selftest.batch_account import machine


@pytest.fixture
def cloud(cloud: AzureCloud) -> AzureCloud:
    """With a group."""
    cloud.add_group("lab")
    return cloud


# -- storage


def check(owner: Clients, name: str) -> tuple[bool, str | None]:
    given: Any = {"name": name, "type": "Microsoft.Storage/storageAccounts"}
    found = owner.storage.storage_accounts.check_name_availability(given)
    return bool(found.name_available), found.reason


def test_names_of_storage_accounts(cloud: AzureCloud, owner: Clients, quick: None) -> None:
    cloud.add_group("other")
    cloud.storage.taken.add("anothers")
    assert check(owner, "labstorage") == (True, None)
    assert check(owner, "anothers") == (False, "AlreadyExists")
    assert check(owner, "With-Capitals") == (False, "AccountNameInvalid")
    for name, group, code in (
        ("anothers", "lab", "StorageAccountAlreadyTaken"),
        ("labstorage", "other", "StorageAccountInAnotherResourceGroup"),
    ):
        owner.make_storage()
        with pytest.raises(ResourceExistsError) as raised:
            owner.make_storage(name, group)
        assert code_of(raised) == code
    assert check(owner, "labstorage") == (False, "AlreadyExists")


def test_quotas_and_skus_of_storage(cloud: AzureCloud, owner: Clients, quick: None) -> None:
    cloud.storage.quota = 1
    owner.make_storage()
    with pytest.raises(HttpResponseError) as raised:
        owner.make_storage("another")
    assert code_of(raised) == "MaxStorageAccountsCountPerSubscriptionExceeded"
    (usage,) = owner.storage.usages.list_by_location("eastus")
    assert (usage.current_value, usage.limit) == (1, 1)
    cloud.storage.quota, cloud.storage.restricted = 9, {"eastus": "Standard_LRS"}
    with pytest.raises(HttpResponseError) as refused:
        owner.make_storage("another")
    assert code_of(refused) == "SkuNotAvailable"
    closed = [each for each in owner.storage.skus.list() if each.restrictions]
    assert [(each.name, each.locations) for each in closed] == [("Standard_LRS", ["eastus"])]


def test_an_account_is_there_when_it_is_made(cloud: AzureCloud, owner: Clients) -> None:
    cloud.pace.creation_s = 3600
    account: Any = {"location": "eastus", "sku": {"name": "Standard_LRS"}, "kind": "StorageV2"}
    poller = owner.storage.storage_accounts.begin_create("lab", "labstorage", account)
    for refused in (
        lambda: owner.storage.blob_containers.create("lab", "labstorage", "early", {}),  # type: ignore[call-overload]
        lambda: owner.storage.storage_accounts.begin_create("lab", "labstorage", account),
    ):
        with pytest.raises(ResourceExistsError):
            refused()
    cloud.state.hurry()
    assert poller.result().provisioning_state == "Succeeded"
    assert cloud.calls["Operation_Get"] >= 1
    # Asking for it again changes it, and is not an operation that takes a while.
    again = owner.make_storage(allowSharedKeyAccess=False)
    assert again.allow_shared_key_access is False
    owner.storage.storage_accounts.delete("lab", "labstorage")
    owner.storage.storage_accounts.delete("lab", "labstorage")
    assert STORAGE not in cloud.ids()


def test_blobs_by_key_and_signature(cloud: AzureCloud, owner: Clients, quick: None) -> None:
    account = owner.make_storage()
    containers = owner.storage.blob_containers
    containers.create("lab", "labstorage", "before", {})  # type: ignore[call-overload]
    first, second = owner.storage_keys()
    for key in (first, second):
        with owner.blobs(account, {"account_name": "labstorage", "account_key": key}) as blobs:
            blob = blobs.get_blob_client("before", "a/b")
            blob.upload_blob(b"content", overwrite=True)
            assert blob.download_blob().readall() == b"content"
            assert blob.get_blob_properties().size == 7
    containers.create("lab", "labstorage", "after", {})  # type: ignore[call-overload]
    with owner.blobs(account, {"account_name": "labstorage", "account_key": first}) as blobs:
        assert [each.name for each in blobs.list_containers()] == ["after", "before"]
    expiry = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    signature = generate_blob_sas(
        "labstorage", "before", "a/b", account_key=first, permission="r", expiry=expiry
    )
    with owner.blobs(account, signature) as blobs:
        assert blobs.get_blob_client("before", "a/b").download_blob().readall() == b"content"
        # An account that takes no keys takes no signatures by them either.
        owner.make_storage(allowSharedKeyAccess=False)
        with pytest.raises(HttpResponseError) as raised:
            blobs.get_blob_client("before", "a/b").download_blob()
    assert raised.value.error_code == "KeyBasedAuthenticationNotPermitted"  # type: ignore[attr-defined]
    containers.delete("lab", "labstorage", "before")
    assert [each.name for each in containers.list("lab", "labstorage")] == ["after"]


def test_blobs_by_role(cloud: AzureCloud, owner: Clients, stranger: Clients, quick: None) -> None:
    account = owner.make_storage(allowSharedKeyAccess=False)
    containers = owner.storage.blob_containers
    containers.create("lab", "labstorage", "data", {})  # type: ignore[call-overload]

    def write(who: Clients) -> None:
        with who.blobs(account) as blobs:
            blobs.get_blob_client("data", "b").upload_blob(b"content", overwrite=True)

    # Who owns the account may not read what is in it.
    with pytest.raises(HttpResponseError) as raised:
        write(owner)
    assert raised.value.error_code == "AuthorizationPermissionMismatch"  # type: ignore[attr-defined]
    container = f"{STORAGE}/blobServices/default/containers/data"
    cloud.grant(STRANGER, "Storage Blob Data Contributor", container)
    write(stranger)
    with stranger.blobs(account) as blobs, pytest.raises(HttpResponseError):
        blobs.get_user_delegation_key(*_times())  # an account's, not a container's
    cloud.grant(STRANGER, "Storage Blob Delegator", STORAGE)
    with stranger.blobs(account) as blobs:
        key = blobs.get_user_delegation_key(*_times())
    names = ("oid", "tid", "start", "expiry", "service", "version")
    signed = {name: str(getattr(key, f"signed_{name}")) for name in names}
    # Microsoft's own way to sign is younger than any Azurite.
    signature = delegation_sas(
        Place("blob", "labstorage", "data"),
        Grant("r", *_times()),
        DelegationKey(value=str(key.value), **signed),
    )
    with stranger.blobs(account, signature) as blobs:
        assert blobs.get_blob_client("data", "b").download_blob().readall() == b"content"
        cloud.revoke(STRANGER)
        with pytest.raises(HttpResponseError):
            blobs.get_blob_client("data", "b").download_blob()


def _times() -> tuple[dt.datetime, dt.datetime]:
    now = dt.datetime.now(dt.UTC)
    return now - dt.timedelta(minutes=5), now + dt.timedelta(hours=1)


def test_containers_and_shares(cloud: AzureCloud, owner: Clients, quick: None) -> None:
    owner.make_storage()
    containers, shares = owner.storage.blob_containers, owner.storage.file_shares
    public: Any = {"properties": {"publicAccess": "Blob"}}
    with pytest.raises(ResourceExistsError) as raised:
        containers.create("lab", "labstorage", "data", public)
    assert code_of(raised) == "PublicAccessNotPermitted"
    with pytest.raises(HttpResponseError) as invalid:
        containers.create("lab", "labstorage", "Capital", {})  # type: ignore[call-overload]
    assert code_of(invalid) == "ContainerNameInvalid"
    with pytest.raises(HttpResponseError) as missing:
        shares.get("lab", "labstorage", "batchfiles")
    assert code_of(missing) == "ShareNotFound"
    quota: Any = {"properties": {"shareQuota": 100}}
    assert shares.create("lab", "labstorage", "batchfiles", quota).share_quota == 100
    assert shares.create("lab", "labstorage", "batchfiles", quota).share_quota == 100
    assert [each.name for each in shares.list("lab", "labstorage")] == ["batchfiles"]
    shares.delete("lab", "labstorage", "batchfiles")
    assert list(shares.list("lab", "labstorage")) == []
    days: Any = {"properties": {"deleteRetentionPolicy": {"enabled": True, "days": 7}}}
    owner.storage.blob_services.set_service_properties("lab", "labstorage", days)
    kept = owner.storage.blob_services.get_service_properties("lab", "labstorage")
    assert kept.delete_retention_policy is not None
    assert kept.delete_retention_policy.days == 7


# -- Batch


def test_names_and_quotas_of_batch_accounts(cloud: AzureCloud, owner: Clients, quick: None) -> None:
    cloud.batch.taken.add(("eastus", "anothers"))
    cloud.batch.quota = 1

    def check(name: str) -> bool:
        given: Any = {"name": name, "type": "Microsoft.Batch/batchAccounts"}
        return bool(owner.batch.location.check_name_availability("eastus", given).name_available)

    assert [check(name) for name in ("labbatch", "anothers", "A")] == [True, False, False]
    assert owner.batch.location.get_quotas("eastus").account_quota == 1
    with pytest.raises(ResourceExistsError) as raised:
        owner.make_batch("anothers")
    assert code_of(raised) == "AccountAlreadyExists"
    owner.make_batch()
    assert not check("labbatch")
    with pytest.raises(ResourceExistsError) as refused:
        owner.make_batch("another")
    assert code_of(refused) == "SubscriptionQuotaExceeded"
    assert owner.make_batch(tags={"a": "b"}).tags == {"a": "b"}


def test_auto_storage_and_allocation_mode(cloud: AzureCloud, owner: Clients, quick: None) -> None:
    storage = {"autoStorage": {"storageAccountId": STORAGE}}
    with pytest.raises(HttpResponseError) as raised:
        owner.make_batch(properties=storage)
    assert code_of(raised) == "InvalidAutoStorageAccount"
    owner.make_storage()
    made = owner.make_batch(properties=storage, identity={"type": "SystemAssigned"})
    assert made.auto_storage.storage_account_id == STORAGE
    assert made.identity.principal_id in cloud.rights.principals
    again = owner.make_batch(properties=storage, identity={"type": "SystemAssigned"})
    assert again.identity.principal_id == made.identity.principal_id
    owner.batch.batch_account.synchronize_auto_storage_keys("lab", "labbatch")
    with pytest.raises(HttpResponseError):
        owner.make_batch(properties={"poolAllocationMode": "UserSubscription"})


def test_a_batch_account_takes_its_keys_and_tokens(
    cloud: AzureCloud, owner: Clients, stranger: Clients
) -> None:
    made = owner.make_batch()
    assert cloud.calls["Operation_Get"] >= 1

    def pools(credential: Any) -> int:
        url = f"https://{made.account_endpoint}"
        with BatchClient(
            url, credential, connection_verify=cloud.ca_bundle, retry_total=0
        ) as client:
            return len(list(client.list_pools()))

    by_keys = [AzureNamedKeyCredential("labbatch", key) for key in owner.batch_keys()]
    assert [pools(each) for each in by_keys] == [0, 0]
    assert pools(owner.credential) == 0
    with pytest.raises(HttpResponseError, match="InsufficientAccountPermissions"):
        pools(stranger.credential)
    owner.assign(
        object_id(STRANGER),
        BUILT_IN["Azure Batch Data Contributor"][0],
        BATCH,
        "55555555-2222-3333-4444-555555555555",
    )
    assert pools(stranger.credential) == 0
    owner.make_batch(properties={"allowedAuthenticationModes": ["AAD"]})
    with pytest.raises(HttpResponseError, match="AuthenticationFailed"):
        pools(by_keys[0])
    owner.batch.batch_account.begin_delete("lab", "labbatch").result()
    with pytest.raises(HttpResponseError) as raised:
        owner.batch.batch_account.get("lab", "labbatch")
    assert code_of(raised) == "ResourceNotFound"
    assert not cloud.batch.servers


def test_nodes_mount_shares_that_there_are(cloud: AzureCloud, owner: Clients, quick: None) -> None:
    account = owner.make_storage()
    owner.make_batch()
    owner.storage.file_shares.create("lab", "labstorage", "batchfiles", {})  # type: ignore[call-overload]
    key = owner.storage_keys()[0]
    server = cloud.batch.servers["labbatch"]
    with BatchClient(
        server.url,
        AzureNamedKeyCredential("labbatch", server.key),
        connection_verify=cloud.ca_bundle,
    ) as client:
        for pool, share, password in (
            ("right", "batchfiles", key),
            ("none", "missing", key),
            ("wrong", "batchfiles", "bm8ga2V5"),
        ):
            mount = models.AzureFileShareConfiguration(
                account_name="labstorage",
                account_key=password,
                azure_file_url=f"{account.primary_endpoints.file}{share}",
                relative_mount_path="shared",
            )
            client.create_pool(
                models.BatchPoolCreateOptions(
                    id=pool,
                    vm_size="Standard_D2ads_v5",
                    target_dedicated_nodes=1,
                    virtual_machine_configuration=machine(),
                    mount_configuration=[
                        models.MountConfiguration(azure_file_share_configuration=mount)
                    ],
                )
            )
        server.wait_for(lambda batch: bool(batch.nodes("right", "idle")))
        for pool in ("none", "wrong"):
            server.wait_for(lambda batch, pool=pool: bool(batch.nodes(pool, "unusable")))  # type: ignore[misc]
        (node,) = client.list_nodes("wrong")
        assert node.errors is not None
        assert node.errors[0].code == "MountConfigurationException"


# -- pools


PULLER = f"{GROUP}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/puller"


def pool(**more: Any) -> dict[str, Any]:
    """With an identity, in Resource Manager's form."""
    image = {"publisher": "microsoft-dsvm", "offer": "ubuntu-hpc", "sku": "2404"}
    machine = {"imageReference": image, "nodeAgentSkuId": "batch.node.ubuntu 24.04"}
    formula = {"formula": "$TargetDedicatedNodes = 0;", "evaluationInterval": "PT5M"}
    return {
        "identity": {"type": "UserAssigned", "userAssignedIdentities": {PULLER: {}}},
        "properties": {
            "vmSize": "Standard_D2ads_v5",
            "deploymentConfiguration": {"virtualMachineConfiguration": machine},
            "scaleSettings": {"autoScale": formula},
        },
        **more,
    }


def refusal(clients: Clients, pool: Any, **options: Any) -> str:
    """Why a pool is not made."""
    with pytest.raises(HttpResponseError) as raised:
        clients.batch.pool.create("lab", "labbatch", "p", pool, **options)
    return code_of(raised)


def test_a_pool_with_an_identity_is_the_batch_services(
    cloud: AzureCloud, owner: Clients, stranger: Clients
) -> None:
    server = cloud.add_batch_account("lab", "labbatch")
    assert refusal(owner, pool()) == "LinkedAuthorizationFailed"  # there is no such identity
    cloud.place("lab", "Microsoft.ManagedIdentity/userAssignedIdentities", "puller")
    assert refusal(stranger, pool()) == "AuthorizationFailed"
    cloud.grant(STRANGER, "Azure Batch Account Contributor", BATCH)
    assert refusal(stranger, pool()) == "LinkedAuthorizationFailed"
    cloud.grant(STRANGER, "Managed Identity Operator", PULLER)
    made = stranger.batch.pool.create("lab", "labbatch", "p", pool())
    assert made.provisioning_state == "Succeeded"
    kept = server.world.pools.get("p")
    assert kept is not None
    [identity] = kept.given["identity"]["userAssignedIdentities"]
    assert identity["resourceId"] == PULLER
    missing = MatchConditions.IfMissing
    assert refusal(owner, pool(), match_condition=missing) == "PreconditionFailed"
    assert refusal(owner, pool()) == "PoolExists"


def test_what_cannot_be_a_pool_is_refused(cloud: AzureCloud, owner: Clients) -> None:
    cloud.add_batch_account("lab", "labbatch")
    wrong: list[tuple[dict[str, Any], dict[str, str], str]] = [
        (pool(etag="x"), {}, "etag is read only"),
        (pool(), {"content_type": "text/json"}, "the content type is text/json"),
    ]
    if cloud.definitions is not None:
        wrong.append((pool(identities={}), {}, "identities"))
    for given, options, said in wrong:
        assert refusal(owner, json.dumps(given).encode(), **options) == "InvalidRequestContent"
        assert said in cloud.violations.pop()
    assert cloud.violations == []


# -- registries


def test_registries(cloud: AzureCloud, owner: Clients) -> None:
    cloud.registries.taken.add("anothers")
    given: Any = {"name": "anothers", "type": "Microsoft.ContainerRegistry/registries"}
    registries = owner.registry.registries
    assert not registries.check_name_availability(given).name_available
    with pytest.raises(ResourceExistsError) as raised:
        owner.make_registry("anothers")
    assert code_of(raised) == "AlreadyInUse"
    made = owner.make_registry()
    assert (made.provisioning_state, made.login_server) == ("Succeeded", "labregistry.azurecr.io")
    assert cloud.calls["Operation_Get"] >= 1
    assert owner.make_registry().id == made.id
    registries.begin_delete("lab", "labregistry").result()
    assert f"{SCOPE}/resourceGroups/lab" == cloud.ids()[0]
    assert len(cloud.ids()) == 1

"""Microsoft's clients of the stand-in for Azure, for tests of it."""

from __future__ import annotations

from typing import Any

import pytest
from azure.core.credentials import TokenCredential
from azure.core.exceptions import HttpResponseError
from azure.mgmt.authorization import AuthorizationManagementClient
from azure.mgmt.batch import BatchManagementClient
from azure.mgmt.containerregistry import ContainerRegistryManagementClient
from azure.mgmt.resource.resources import ResourceManagementClient
from azure.mgmt.storage import StorageManagementClient
from azure.storage.blob import BlobServiceClient

from tesazure.azure_identity import Identity, credential_of
from tests.services.azure_cloud import AzureCloud
from tests.services.azure_cloud_groups import SUBSCRIPTION
from tests.services.entra_server import CLIENT, TENANT, EntraServer

STRANGER = "77777777-7777-8888-9999-aaaaaaaaaaaa"
"""Client id of a principal that has no role."""
SCOPE = f"/subscriptions/{SUBSCRIPTION}"
GROUP = f"{SCOPE}/resourceGroups/lab"
STORAGE = f"{GROUP}/providers/Microsoft.Storage/storageAccounts/labstorage"
BATCH = f"{GROUP}/providers/Microsoft.Batch/batchAccounts/labbatch"
NAMESPACES = ("Microsoft.Storage", "Microsoft.Batch", "Microsoft.ContainerRegistry")


class Clients:
    """Of one principal. They try nothing twice unless `retries` are given."""

    def __init__(
        self, cloud: AzureCloud, entra: EntraServer, client: str = CLIENT, retries: int = 0
    ) -> None:
        self.cloud = cloud
        self.credential: TokenCredential = credential_of(
            Identity(
                tenant=TENANT,
                client_id=client,
                secret=entra.secrets[client],
                authority=entra.authority,
                ca_bundle=cloud.ca_bundle,
            )
        )
        options: dict[str, Any] = {
            "base_url": cloud.url,
            "credential_scopes": [f"{cloud.url}/.default"],
            "connection_verify": cloud.ca_bundle,
            "retry_total": retries,
        }
        self.options = options
        who = self.credential, SUBSCRIPTION
        self.resource = ResourceManagementClient(*who, **options)
        self.storage = StorageManagementClient(*who, **options)
        self.batch = BatchManagementClient(*who, **options)
        self.rights = AuthorizationManagementClient(*who, **options)
        self.registry = ContainerRegistryManagementClient(*who, **options)

    def make_group(self, name: str = "lab", **tags: str) -> Any:
        """A resource group."""
        given: Any = {"location": "eastus", "tags": tags}
        return self.resource.resource_groups.create_or_update(name, given)

    def make_storage(self, name: str = "labstorage", group: str = "lab", **properties: Any) -> Any:
        """An account in eastus."""
        account: Any = {
            "location": "eastus",
            "sku": {"name": "Standard_LRS"},
            "kind": "StorageV2",
            "properties": {"minimumTlsVersion": "TLS1_2", **properties},
        }
        return self.storage.storage_accounts.begin_create(group, name, account).result()

    def make_batch(self, name: str = "labbatch", location: str = "eastus", **more: Any) -> Any:
        """An account; `more` is what its document says beside its location."""
        account: Any = {"location": location, **more}
        return self.batch.batch_account.begin_create("lab", name, account).result()

    def make_registry(self, name: str = "labregistry") -> Any:
        """A registry in eastus."""
        given: Any = {"location": "eastus", "sku": {"name": "Basic"}}
        return self.registry.registries.begin_create("lab", name, given).result()

    def assign(self, principal: str, role: str, scope: str, name: str, **more: str) -> Any:
        """A role by the last part of its id."""
        where = f"{SCOPE}/providers/Microsoft.Authorization/roleDefinitions/{role}"
        properties = {"roleDefinitionId": where, "principalId": principal, **more}
        given: Any = {"properties": properties}
        return self.rights.role_assignments.create(scope, name, given)

    def storage_keys(self) -> list[str]:
        """Of the account that `make_storage` makes."""
        keys = self.storage.storage_accounts.list_keys("lab", "labstorage").keys_property or []
        return [str(key.value) for key in keys]

    def batch_keys(self) -> list[str]:
        """Of the account that `make_batch` makes."""
        keys = self.batch.batch_account.get_keys("lab", "labbatch")
        return [str(keys.primary), str(keys.secondary)]

    def blobs(self, account: Any, credential: Any = None) -> BlobServiceClient:
        """Of an account, by a token unless a credential is given."""
        return BlobServiceClient(
            account.primary_endpoints.blob,
            credential or self.credential,
            connection_verify=self.cloud.ca_bundle,
            retry_total=0,
        )


def code_of(raised: pytest.ExceptionInfo[HttpResponseError]) -> str:
    """Azure's code of an error."""
    error = raised.value.error
    return str(raised.value.reason if error is None else error.code)

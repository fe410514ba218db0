"""What follows from CLOUD, and who this server is there.

Sources: "Azure Government endpoint mapping", "Azure China developer guide", "Microsoft Entra
authentication and national clouds" (Microsoft).
"""

from __future__ import annotations

from collections.abc import Mapping

from tesazure.azure_identity import Identity
from tesazure.settings.declarations import Settings

CLOUDS: Mapping[str, Mapping[str, str]] = {
    "AzurePublic": {
        "azure_authority_host": "https://login.microsoftonline.com",
        "aad_authority": "https://login.microsoftonline.com",
        "arm_endpoint": "https://management.azure.com",
        "storage_endpoint_suffix": "core.windows.net",
        "batch_endpoint_suffix": "batch.azure.com",
        "keyvault_endpoint_suffix": "vault.azure.net",
    },
    "AzureUSGovernment": {
        "azure_authority_host": "https://login.microsoftonline.us",
        "aad_authority": "https://login.microsoftonline.us",
        "arm_endpoint": "https://management.usgovcloudapi.net",
        "storage_endpoint_suffix": "core.usgovcloudapi.net",
        "batch_endpoint_suffix": "batch.usgovcloudapi.net",
        "keyvault_endpoint_suffix": "vault.usgovcloudapi.net",
    },
    "AzureChina": {
        "azure_authority_host": "https://login.chinacloudapi.cn",
        "aad_authority": "https://login.partner.microsoftonline.cn",
        "arm_endpoint": "https://management.chinacloudapi.cn",
        "storage_endpoint_suffix": "core.chinacloudapi.cn",
        "batch_endpoint_suffix": "batch.chinacloudapi.cn",
        "keyvault_endpoint_suffix": "vault.azure.cn",
    },
}
"""CLOUD -> setting -> its default there. The public cloud's are those of the declarations."""


BATCH_RESOURCES: Mapping[str, str] = {
    "batch.azure.com": "https://batch.core.windows.net/",
    "batch.usgovcloudapi.net": "https://batch.core.usgovcloudapi.net/",
    "batch.chinacloudapi.cn": "https://batch.chinacloudapi.cn/",
}
"""BATCH_ENDPOINT_SUFFIX -> what tokens for Batch are asked for there, as the Azure CLI has it: not
what accounts' hosts end in."""


_DATABASE_RESOURCES: Mapping[str, str] = {
    "AzurePublic": "https://ossrdbms-aad.database.windows.net",
    "AzureUSGovernment": "https://ossrdbms-aad.database.usgovcloudapi.net",
    "AzureChina": "https://ossrdbms-aad.database.chinacloudapi.cn",
}
"""CLOUD -> what tokens for PostgreSQL are asked for there, as the Azure CLI has it (oss-rdbms)."""


def database_scope_of(s: Settings) -> str:
    """The scope of tokens for Azure Database for PostgreSQL."""
    return f"{_DATABASE_RESOURCES[s.cloud]}/.default"


def batch_scope_of(s: Settings) -> str:
    """The scope of tokens for Batch accounts."""
    suffix = s.batch_endpoint_suffix
    return f"{BATCH_RESOURCES.get(suffix, f'https://{suffix}/')}/.default"


def batch_url_of(s: Settings) -> str:
    """URL of the Batch account, which may be given by its name and region; empty without."""
    name, region = s.batch_account_name, s.batch_region
    if s.batch_account_url or not (name and region):
        return s.batch_account_url.rstrip("/")
    return f"https://{name}.{region.replace(' ', '').lower()}.{s.batch_endpoint_suffix}"


def identity_of(s: Settings) -> Identity:
    """Who this server is to Azure."""
    return Identity(
        tenant=s.azure_tenant,
        client_id=s.azure_client_id,
        secret=s.azure_secret,
        default=s.azure_identity == "default",
        authority=s.azure_authority_host.rstrip("/"),
        ca_bundle=s.ca_bundle,
    )


def vault_url_of(s: Settings) -> str:
    """URL of the Key Vault, which may be given by its name; empty without one."""
    if not s.keyvault_url or "://" in s.keyvault_url:
        return s.keyvault_url.rstrip("/")
    return f"https://{s.keyvault_url}.{s.keyvault_endpoint_suffix}"

"""Settings of Azure, of signing in and of the container registry: what follows, and what cannot
work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tesazure import settings
from tesazure.access import RegistryLogin
from tesazure.errors import ConfigurationError
from tesazure.settings import CLOUDS, Settings
from tesazure.storage.configured import grant_config_of

KEY = "c2VjcmV0LWtleQ=="
PLANTED = "pl4nted"
REQUIRED = """
    COMPUTE_BACKEND KEYVAULT_URL AZURE_CLIENT_ID AZURE_SECRET AZURE_TENANT AAD_VERIFY AAD_AUDIENCE
    AAD_TENANT_ID TASK_ACCESS_RESTRICTIONS STORAGE_ACCOUNT_NAME STORAGE_ACCOUNT_KEY
    CROMWELL_STORAGE_CONTAINER_NAME BATCH_ACCOUNT_NAME BATCH_ACCOUNT_KEY BATCH_ACCOUNT_URL
    FILETRANSFER_CONTAINER_IMAGE PRIVATE_DOCKER_REGISTRY_URL PRIVATE_DOCKER_REGISTRY_USERNAME
    PRIVATE_DOCKER_REGISTRY_PASSWORD
"""
BATCH = {
    "batch_account_name": "acct",
    "batch_account_url": "https://acct.westeurope.batch.azure.com",
    "batch_account_key": KEY,
    "filetransfer_container_image": "acct.azurecr.io/runner:1",
    "storage_account_name": "files",
    "storage_account_key": KEY,
}
ENTRA = {
    "database_auth": "entra",
    "database_url": "postgresql://role@db.postgres.database.azure.com/tes",
    "azure_identity": "default",
}
SUBNET = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/n"
POOL_IDENTITY = (
    "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity"
    "/userAssignedIdentities/puller"
)
ARM = {
    "azure_identity": "default",
    "azure_subscription_id": "99999999-2222-3333-4444-555555555555",
    "batch_resource_group": "g",
}
PULLED = {
    "private_docker_registry_url": "r.azurecr.io",
    "batch_pool_identity_id": POOL_IDENTITY,
}
SIGN_IN = {"aad_verify": "True", "aad_audience": "an-id", "aad_tenant_id": "contoso.org"}


def load(**given: str) -> settings.Effective:
    return settings.load({f"APP_{name.upper()}": value for name, value in given.items()})


def without(*names: str) -> dict[str, str]:
    """The settings of a Batch account, but for some."""
    return without_in(BATCH, *names)


def without_in(given: dict[str, str], *names: str) -> dict[str, str]:
    """Settings, but for some."""
    return {name: value for name, value in given.items() if name not in names}


def problems(given: dict[str, str]) -> list[str]:
    """What is wrong with these settings; empty when nothing."""
    try:
        load(**given)
    except ConfigurationError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize("name", REQUIRED.split())
def test_the_names_of_2019_exist(name: str) -> None:
    assert name.lower() in settings.FIELDS


def test_every_secret_is_marked_as_one() -> None:
    secret = {name for name in settings.FIELDS if settings.help_of(name).secret}
    telling = re.compile(
        "secret|password|tokens?$|_key$|database_url|connection_string|headers|instrumentationkey"
    )
    others = {"api_tokens"}
    assert {name for name in settings.FIELDS if telling.search(name)} - others == secret


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_cloud_sets_its_endpoints(cloud: str) -> None:
    found = load(cloud=cloud)
    for name, value in CLOUDS[cloud].items():
        assert getattr(found.settings, name) == value
        assert found.sources[name] == "default"


def test_the_public_cloud_is_the_default() -> None:
    for name, value in CLOUDS["AzurePublic"].items():
        assert getattr(Settings(), name) == value


def test_each_endpoint_of_a_cloud_can_be_another() -> None:
    own = {
        "azure_authority_host": "https://login.example.org",
        "aad_authority": "https://login.example.org",
        "arm_endpoint": "https://arm.example.org",
        "storage_endpoint_suffix": "storage.example.org",
        "batch_endpoint_suffix": "batch.example.org",
        "keyvault_endpoint_suffix": "vault.example.org",
    }
    assert set(own) == set(CLOUDS["AzureChina"])
    found = load(cloud="AzureChina", **own)
    for name, value in own.items():
        assert getattr(found.settings, name) == value
        assert found.sources[name] == "environment"


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({}, ""),
        ({"keyvault_url": "https://v.vault.azure.net/"}, "https://v.vault.azure.net"),
        ({"keyvault_url": "mine"}, "https://mine.vault.azure.net"),
        (
            {"keyvault_url": "mine", "keyvault_endpoint_suffix": "vault.azure.cn"},
            "https://mine.vault.azure.cn",
        ),
    ],
)
def test_a_vault_is_named_by_its_url_or_its_name(given: dict[str, str], url: str) -> None:
    assert settings.vault_url_of(Settings(**given)) == url  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "backend", "source"),
    [
        ({}, "local", "default"),
        (BATCH, "batch", "default"),
        ({**BATCH, "compute_backend": "local"}, "local", "environment"),
    ],
)
def test_tasks_run_in_batch_where_there_is_an_account(
    given: dict[str, str], backend: str, source: str
) -> None:
    found = load(**given)
    assert (found.settings.compute_backend, found.sources["compute_backend"]) == (backend, source)


@pytest.mark.parametrize(
    "given",
    [
        SIGN_IN,
        ENTRA,
        {**SIGN_IN, "task_access_restrictions": "per-tenant"},
        {"aad_verify": "True", "aad_audience": "a", "aad_issuer": "https://id.example.org/realm"},
        {"api_tokens": "true", "task_access_restrictions": "per-user"},
        {"aad_audience": "kept-while-it-is-off"},
        {"private_docker_registry_url": "http://r.example.org:5000/"},
        {
            "storage_account_name": "acct",
            "cromwell_storage_container_name": "cromwell-1",
            "cromwell_map_shared_global": "true",
        },
        {"filetransfer_container_image": "r.example.org/tesazure/runner:1"},
        {**BATCH, "batch_account_url": "http://127.0.0.1:8080"},
        {**BATCH, "batch_pool_ids": "mine,theirs"},
        {**without("batch_account_key"), "batch_subnet_id": SUBNET, "azure_identity": "default"},
        {**BATCH, **ARM, **PULLED},
        {**BATCH, **PULLED, "batch_override_pool_id": "mine"},
    ],
)
def test_what_works(given: dict[str, str]) -> None:
    assert problems(given) == []


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"aad_verify": "True", "aad_tenant_id": "t"}, "AAD_AUDIENCE: is missing; with AAD_VERIFY"),
        ({"aad_verify": "True", "aad_audience": "a"}, "AAD_TENANT_ID: is missing; with AAD_VERIFY"),
        ({"aad_tenant_id": "common"}, "AAD_TENANT_ID: entry 1 is no tenant; give its id"),
        ({"aad_tenant_id": "a b"}, "AAD_TENANT_ID: entry 1 is no tenant"),
        ({"aad_authority": "http://login.org"}, "AAD_AUTHORITY: must be a URL such as https://"),
        ({"aad_authority": "https://login.org/t"}, "AAD_AUTHORITY: must hold no path"),
        ({"aad_issuer": "id.org"}, "AAD_ISSUER: must be a URL such as https://"),
        ({"task_access_restrictions": "per-user"}, "TASK_ACCESS_RESTRICTIONS: cannot tell callers"),
        ({"task_access_restrictions": "per_user"}, "APP_TASK_ACCESS_RESTRICTIONS: must be one of"),
        ({"aad_verify": "yes, please"}, "APP_AAD_VERIFY: must be true or false"),
        ({"cloud": "azurepublic"}, "APP_CLOUD: must be one of AzurePublic, AzureUSGovernment"),
        ({"arm_endpoint": "http://arm.org"}, "ARM_ENDPOINT: must be a URL such as https://"),
        ({"batch_endpoint_suffix": "https://b.org"}, "BATCH_ENDPOINT_SUFFIX: must be what hosts"),
        ({"keyvault_refresh_s": "0.5"}, "KEYVAULT_REFRESH_S: must be at least 1"),
        (without_in(ENTRA, "database_url"), "DATABASE_URL: must be postgresql://role@host/name"),
        ({**ENTRA, "database_url": "postgresql://h/d"}, "DATABASE_URL: must be postgresql://role"),
        (
            {**ENTRA, "database_url": f"postgresql://r:{PLANTED}@h/d"},
            "DATABASE_URL: holds a password; with DATABASE_AUTH=entra there is none",
        ),
        ({**ENTRA, "database_url": f"postgresql://r@[{PLANTED}/d"}, "DATABASE_URL: is not a URL"),
        (without_in(ENTRA, "azure_identity"), "DATABASE_AUTH: as whom is a token to be got?"),
        (
            without("batch_account_name", "batch_account_key"),
            "BATCH_ACCOUNT_NAME: is missing; COMP",
        ),
        (without("batch_account_url"), "BATCH_ACCOUNT_URL: is missing; COMPUTE_BACKEND=batch"),
        (without("filetransfer_container_image"), "FILETRANSFER_CONTAINER_IMAGE: is missing; COMP"),
        (
            without("storage_account_name", "storage_account_key"),
            "STORAGE_ACCOUNT_NAME: is missing",
        ),
        (without("batch_account_key"), "BATCH_ACCOUNT_KEY: is missing, and there is no identity"),
        (without("storage_account_key"), "STORAGE_ACCOUNT_KEY: is missing, and there is no ident"),
        ({**BATCH, "batch_account_name": "A-b"}, "BATCH_ACCOUNT_NAME: must be 3 to 24 lower-case"),
        ({**BATCH, "batch_account_url": "http://x"}, "BATCH_ACCOUNT_URL: must begin with https://"),
        (
            {**BATCH, "batch_account_url": "http://10.0.0.4:8080"},
            "BATCH_ACCOUNT_URL: must begin with https://, as tasks hold signed URLs",
        ),
        ({**BATCH, "batch_account_key": PLANTED}, "BATCH_ACCOUNT_KEY: must be base64"),
        ({**BATCH, "batch_storage_container": "a--b"}, "BATCH_STORAGE_CONTAINER: must be 3 to 63"),
        ({**BATCH, "batch_subnet_id": "default"}, "BATCH_SUBNET_ID: must be a resource id"),
        (
            {**BATCH, "batch_public_addresses": "False"},
            "BATCH_SUBNET_ID: is missing; nodes without",
        ),
        ({**BATCH, "batch_subnet_id": SUBNET}, "BATCH_ACCOUNT_KEY: must be empty with BATCH_SUBN"),
        ({**BATCH, **PULLED}, "BATCH_POOL_IDENTITY_ID: pools with an identity are made by"),
        (
            {**BATCH, **ARM, **PULLED, "batch_pool_identity_id": "puller"},
            "BATCH_POOL_IDENTITY_ID: must be a resource id",
        ),
        (
            {**BATCH, **ARM, "batch_pool_identity_id": POOL_IDENTITY},
            "PRIVATE_DOCKER_REGISTRY_URL: is missing; BATCH_POOL_IDENTITY_ID pulls",
        ),
        (
            {
                **BATCH,
                **ARM,
                **PULLED,
                "private_docker_registry_username": "u",
                "private_docker_registry_password": PLANTED,
            },
            "BATCH_POOL_IDENTITY_ID: is in place of",
        ),
        ({**BATCH, "batch_pool_ids": "a b"}, "BATCH_POOL_IDS: must be at most 64 letters"),
        ({**BATCH, "batch_pool_ids": "mine,Tesazure-x"}, "BATCH_POOL_IDS: must not begin with"),
        (
            {**BATCH, "batch_override_pool_id": "tesazure-abcdefgh-d2-ded-0123456789"},
            "BATCH_OVERRIDE_POOL_ID: must not begin with tesazure-",
        ),
        ({**BATCH, "batch_resource_group": "g"}, "AZURE_SUBSCRIPTION_ID: is missing; sizes and"),
        ({**BATCH, "azure_subscription_id": "mine"}, "AZURE_SUBSCRIPTION_ID: must be a GUID"),
        ({**BATCH, "retail_prices_url": "prices"}, "RETAIL_PRICES_URL: must be a URL"),
        ({**BATCH, "batch_override_pool_id": "a b"}, "BATCH_OVERRIDE_POOL_ID: must be at most 64"),
        ({**BATCH, "batch_image": "ubuntu"}, "BATCH_IMAGE: must be publisher:offer:sku:version"),
        ({**BATCH, "batch_file_share": "a--b"}, "BATCH_FILE_SHARE: must be 3 to 63"),
        ({**BATCH, "batch_max_nodes": "0"}, "BATCH_MAX_NODES and BATCH_MAX_POOLS: must be at le"),
        ({**BATCH, "batch_min_nodes": "21"}, "BATCH_MIN_NODES: must be at least 0 and at most"),
        ({"batch_account_key": KEY}, "BATCH_ACCOUNT_KEY: is a key of which account?"),
        (
            {"storage_account_name": "acct", "cromwell_storage_container_name": "a--b"},
            "CROMWELL_STORAGE_CONTAINER_NAME: must be",
        ),
        (
            {"cromwell_storage_container_name": "cromwell"},
            "CROMWELL_STORAGE_CONTAINER_NAME: is a container of which account?",
        ),
        ({"cromwell_map_shared_global": "true"}, "CROMWELL_MAP_SHARED_GLOBAL: to which container?"),
        (
            {"private_docker_registry_password": PLANTED},
            "PRIVATE_DOCKER_REGISTRY_URL: is missing; its user and password",
        ),
        (
            {
                "private_docker_registry_url": "r.org",
                "private_docker_registry_password": PLANTED,
            },
            "PRIVATE_DOCKER_REGISTRY_USERNAME: is missing; set both or neither",
        ),
        (
            {"private_docker_registry_url": f"https://me:{PLANTED}@r.org"},
            "PRIVATE_DOCKER_REGISTRY_URL: must be host, host:port or https://host",
        ),
        (
            {
                "storage_endpoint_suffix": "core.chinacloudapi.cn",
                "azure_client_id": "i",
                "azure_secret": PLANTED,
                "azure_tenant": "t",
            },
            "STORAGE_ENDPOINT_SUFFIX: belongs to another cloud than AZURE_",
        ),
    ],
)
def test_what_cannot_work_is_said(given: dict[str, str], problem: str) -> None:
    (found,) = problems(given)
    assert found.startswith(problem)
    assert PLANTED not in found


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "KEYVAULT_URL: as whom is it to be read? set AZURE_CLIENT_ID, AZURE_SECRET and"),
        ({"azure_client_id": "i"}, "AZURE_SECRET and AZURE_TENANT: a service principal needs"),
        ({"keyvault_url": "http://v.org"}, "KEYVAULT_URL: must be a URL such as https://"),
        ({"keyvault_url": "https://v.org/secrets"}, "KEYVAULT_URL: must hold no path"),
        ({"cloud": "Mars"}, "APP_CLOUD: must be one of"),
    ],
)
def test_a_vault_is_not_asked_before_the_way_to_it_is_right(
    given: dict[str, str], problem: str
) -> None:
    identity = {"azure_identity": "default"} if "keyvault_url" in given or "cloud" in given else {}
    found = problems({"keyvault_url": "https://nowhere.invalid", "port": "x", **identity, **given})
    assert found[0].startswith(problem)
    assert found[1:] == ["APP_PORT: must be a whole number (given: 'x')"]


@pytest.mark.parametrize(
    ("host", "image", "serves"),
    [
        ("r.example.org", "r.example.org/a/b:1", True),
        ("r.example.org", "R.example.org/a", True),
        ("r.example.org", "other.example.org/a", False),
        ("r.example.org", "r.example.org.evil.com/a", False),
        ("r.example.org", "a/r.example.org", False),
        ("r.example.org:5000", "r.example.org:5000/a", True),
        ("r.example.org:5000", "r.example.org/a", False),
        ("localhost", "localhost/a", True),
        ("docker.io", "debian", True),
        ("index.docker.io", "library/debian:12", True),
        ("r.example.org", "debian", False),
    ],
)
def test_a_login_is_for_images_of_its_registry(host: str, image: str, serves: bool) -> None:
    assert RegistryLogin(host, "u", "p").serves(image) is serves


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://Name.azurecr.io", "name.azurecr.io"),
        ("http://name.azurecr.io/", "name.azurecr.io"),
        ("name.azurecr.io:443", "name.azurecr.io:443"),
        ("https://index.docker.io/v1/", "index.docker.io"),
    ],
)
def test_a_registry_is_named_by_host_or_url(url: str, host: str) -> None:
    found = load(
        private_docker_registry_url=url,
        private_docker_registry_username="u",
        private_docker_registry_password=PLANTED,
    )
    login = grant_config_of(found.settings).registry
    assert login == RegistryLogin(host, "u", PLANTED)
    assert PLANTED not in repr(login)
    assert PLANTED not in str(settings.shown(found))


def test_a_file_holds_lists_as_arrays(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        'aad_verify = true\naad_audience = "one"\naad_tenant_id = ["a.org", "b.org"]\n'
        'task_access_restrictions = "per-user"\n'
    )
    found = settings.load({}, config=config).settings
    assert found.aad_tenant_id == ("a.org", "b.org")
    assert found.aad_audience == ("one",)


@pytest.mark.parametrize(
    ("more", "warns"),
    [
        ({}, True),
        ({"azure_client_id": "of-a-managed-identity"}, True),
        ({"azure_client_id": "i", "azure_secret": PLANTED, "azure_tenant": "t"}, False),
        ({"azure_identity": "none"}, False),
        ({"task_network": "false"}, False),
        (BATCH, False),
    ],
)
def test_the_hosts_identity_is_for_tasks_too(more: dict[str, str], warns: bool) -> None:
    warnings = load(**{"azure_identity": "default", **more}).warnings
    assert ["169.254.169.254" in said for said in warnings] == [True] * warns


@pytest.mark.parametrize(
    ("cloud", "url", "scope"),
    [
        (
            "AzurePublic",
            "https://acct.westeurope.batch.azure.com",
            "https://batch.core.windows.net//.default",
        ),
        (
            "AzureUSGovernment",
            "https://acct.westeurope.batch.usgovcloudapi.net",
            "https://batch.core.usgovcloudapi.net//.default",
        ),
        (
            "AzureChina",
            "https://acct.westeurope.batch.chinacloudapi.cn",
            "https://batch.chinacloudapi.cn//.default",
        ),
    ],
)
def test_a_batch_account_is_found_by_its_name_and_region(cloud: str, url: str, scope: str) -> None:
    """And tokens are asked for the Batch of its cloud."""
    given = without("batch_account_url") | {"cloud": cloud, "batch_region": "West Europe"}
    found = load(**given).settings
    assert (settings.batch_url_of(found), settings.batch_scope_of(found)) == (url, scope)
    named = load(**BATCH, cloud=cloud, batch_region="northeurope").settings
    assert settings.batch_url_of(named) == BATCH["batch_account_url"]


def test_a_batch_of_ones_own_is_asked_for_as_itself() -> None:
    found = load(**BATCH, batch_endpoint_suffix="batch.example.org").settings
    assert settings.batch_scope_of(found) == "https://batch.example.org//.default"

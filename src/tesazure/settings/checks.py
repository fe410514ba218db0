"""What is wrong with settings that can each be read: with several together, or with the world.

No message shows a value, which may be a secret, hold one, or come from among secrets (a Key Vault):
it says what it must be like.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from tesazure.azure_identity import MICROSOFTS_AUTHORITIES
from tesazure.budgets import parse
from tesazure.settings.batch_checks import batch_conflicts
from tesazure.settings.clouds import CLOUDS, identity_of, vault_url_of
from tesazure.settings.declarations import LONGEST_CREDENTIAL_H, LONGEST_RUNTIME_S, Settings
from tesazure.settings.forms import (
    ACCOUNT,
    CONTAINER,
    CONTAINER_FORM,
    endpoint,
    is_address,
    is_base64,
)
from tesazure.settings.telemetry_checks import telemetry_cautions, telemetry_conflicts

_POSITIVE = (
    "lease_s",
    "max_body_bytes",
    "max_connections",
    "metrics_export_s",
    "request_timeout_s",
)
_FILES = ("gcs_credentials_file", "sftp_known_hosts", "sftp_key_file", "ca_bundle")
_REGION = re.compile(r"[A-Za-z0-9-]+")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_REGISTRY = re.compile(r"(https?://)?[A-Za-z0-9.-]+(:[0-9]+)?/?|https://index\.docker\.io/v1/")
_NO_TENANTS = frozenset(
    {"common", "organizations", "consumers", "9188040d-6c67-4c5b-b112-36a304b66dad"}
)
"""Whoever has an account anywhere ("OpenID Connect on the Microsoft identity platform")."""
_ENTRA = MICROSOFTS_AUTHORITIES | {"https://sts.windows.net"}
_AUTHORITY = "azure_authority_host"
_PROVISION_TOKEN = re.compile(r"[!-~]{16,}")
_HOST_AND_PORT = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?")


def conflicts(s: Settings) -> list[str]:
    """Every problem, each with its remedy."""
    return [
        *_server(s),
        *_azure(s),
        *batch_conflicts(s),
        *_cromwell(s),
        *_sign_in(s),
        *_registry(s),
        *_other_systems(s),
        *telemetry_conflicts(s),
        *_files(s, _FILES),
    ]


def cautions(s: Settings) -> list[str]:
    """What works and still should be known; without values, too."""
    cautions = list(telemetry_cautions(s))
    identity = identity_of(s)
    by_host = identity.default and not identity.secret
    if by_host and s.task_network and s.compute_backend == "local":
        text = "if this machine has a managed identity, every task can get its tokens from"
        remedy = "TASK_NETWORK=false, or keep tasks from that address (docs/security.md)"
        cautions.append(
            f"AZURE_IDENTITY: {text} 169.254.169.254 and do what this server may; set {remedy}"
        )
    return cautions


def vault_conflicts(s: Settings) -> list[str]:
    """What keeps the Key Vault from being asked, whatever it may hold."""
    problems = [*_identity(s), *_files(s, ("ca_bundle",))]
    url = vault_url_of(s)
    problems += endpoint("KEYVAULT_URL", url, schemes=("https",))[1]
    if not identity_of(s).exists and not s.azure_client_id and not s.azure_tenant:
        problems.append(
            "KEYVAULT_URL: as whom is it to be read? set AZURE_CLIENT_ID, AZURE_SECRET and"
            " AZURE_TENANT, or AZURE_IDENTITY=default for the identity of this host"
        )
    return problems


def _server(s: Settings) -> list[str]:
    problems = []
    if s.port > 65535:
        problems.append("PORT: must be at most 65535")
    if s.database_url:
        problems += _database(s.database_url)
    problems += _database_sign_in(s)
    if s.max_runtime_s > LONGEST_RUNTIME_S:
        problems.append(f"MAX_RUNTIME_S: must be at most {LONGEST_RUNTIME_S} (10 years; 0: none)")
    for number, directory in enumerate(s.allow_dir, 1):
        if not directory.is_absolute():
            problems.append(f"ALLOW_DIR: entry {number} must be an absolute path")
        elif not directory.is_dir():
            text = "is not a directory; make it or leave it out"
            problems.append(f"ALLOW_DIR: entry {number} {text}")
    problems += _mounts(s)
    for number, budget in enumerate(s.budgets, 1):
        try:
            parse(budget)
        except ValueError as error:
            problems.append(f"BUDGETS: entry {number} {error}")
    problems += [
        f"{name.upper()}: must be at least 1" for name in _POSITIVE if getattr(s, name) < 1
    ]
    return problems


def _mounts(s: Settings) -> list[str]:
    """What is wrong with MOUNT_DIR. Where tasks could write around what is mounted, they could put
    links there: so no such directory lies in another one, nor beside /tes-wd/shared-global."""
    problems = []
    allowed = [directory.resolve() for directory in s.allow_dir if directory.is_dir()]
    shared = None
    if s.shared_global_dir and "\0" not in s.shared_global_dir:
        shared = Path(s.shared_global_dir).resolve()
    for number, directory in enumerate(s.mount_dir, 1):
        entry = f"MOUNT_DIR: entry {number}"
        if not directory.is_absolute():
            problems.append(f"{entry} must be an absolute path")
            continue
        if not directory.is_dir():
            problems.append(f"{entry} is not a directory; make it or leave it out")
            continue
        place = directory.resolve()
        others = [other.resolve() for other in s.mount_dir if other != directory and other.is_dir()]
        if not any(map(place.is_relative_to, allowed)):
            problems.append(f"{entry} lies in no directory of ALLOW_DIR")
        elif any(map(place.is_relative_to, others)):
            problems.append(f"{entry} lies in another one")
        elif shared and (place.is_relative_to(shared) or shared.is_relative_to(place)):
            problems.append(f"{entry} and SHARED_GLOBAL_DIR lie in each other")
    return problems


def _database(url: str) -> list[str]:
    """What is wrong with DATABASE_URL, in words that do not show it: it holds a password."""
    try:
        parsed = urlsplit(url)
        _ = parsed.port
    except ValueError:
        text = "is not a URL; write postgresql://user:password@host:port/name, with special"
        return [f"DATABASE_URL: {text} characters percent-encoded ([ as %5B, @ as %40, / as %2F)"]
    if parsed.scheme not in ("postgresql", "postgres"):
        return ["DATABASE_URL: must begin with postgresql:// (empty: SQLite)"]
    return []


def _database_sign_in(s: Settings) -> Iterator[str]:
    """What keeps the server from signing in to its database with a token."""
    if s.database_auth == "password":
        return
    try:
        url = urlsplit(s.database_url)
    except ValueError:
        return  # `_database` has told
    if not url.username:
        yield (
            "DATABASE_URL: must be postgresql://role@host/name with DATABASE_AUTH=entra; the role"
            " is called as the identity is"
        )
    if url.password:
        yield "DATABASE_URL: holds a password; with DATABASE_AUTH=entra there is none"
    if not identity_of(s).exists:
        yield (
            "DATABASE_AUTH: as whom is a token to be got? set AZURE_CLIENT_ID, AZURE_SECRET and"
            " AZURE_TENANT, or AZURE_IDENTITY=default for the identity of this host"
        )


def _azure(s: Settings) -> list[str]:
    problems = []
    name, key = s.storage_account_name, s.storage_account_key
    if name and not ACCOUNT.fullmatch(name):
        problems.append(
            "STORAGE_ACCOUNT_NAME: must be 3 to 24 lower-case letters and digits (the account's"
            " name, not its URL)"
        )
    if key and not name:
        problems.append("STORAGE_ACCOUNT_KEY: is a key of which account? set STORAGE_ACCOUNT_NAME")
    if key and not is_base64(key):
        problems.append(
            "STORAGE_ACCOUNT_KEY: must be base64, as the portal shows it under Access keys (a"
            " connection string holds it after AccountKey=)"
        )
    for kind in ("storage", "batch", "keyvault"):
        setting = f"{kind}_endpoint_suffix"
        if not _HOST.fullmatch(getattr(s, setting)):
            problems.append(
                f"{setting.upper()}: must be what hosts end in, without dot at its ends and without"
                f" https://, such as {CLOUDS['AzurePublic'][setting]}"
            )
    for setting in ("storage_blob_endpoint", "storage_file_endpoint"):
        problems += _storage_endpoint(setting.upper(), getattr(s, setting), name)
    problems += _identity(s)
    problems += endpoint("ARM_ENDPOINT", s.arm_endpoint, schemes=("https",))[1]
    if not 0 < s.credential_hours <= LONGEST_CREDENTIAL_H:
        problems.append(
            f"CREDENTIAL_HOURS: must be more than 0 and at most {LONGEST_CREDENTIAL_H} (7 days,"
            " Azure's longest)"
        )
    if 0 < s.keyvault_refresh_s < 1:
        problems.append("KEYVAULT_REFRESH_S: must be at least 1 (0: only at SIGHUP)")
    return problems


def _identity(s: Settings) -> list[str]:
    problems = []
    principal = {
        "AZURE_CLIENT_ID": s.azure_client_id,
        "AZURE_SECRET": s.azure_secret,
        "AZURE_TENANT": s.azure_tenant,
    }
    missing = [setting for setting, value in principal.items() if not value]
    # An id alone tells which of several managed identities is meant.
    managed = s.azure_identity == "default" and missing == ["AZURE_SECRET", "AZURE_TENANT"]
    if missing and len(missing) < len(principal) and not managed:
        given = " and ".join(setting for setting, value in principal.items() if value)
        problems.append(
            f"{' and '.join(missing)}: a service principal needs client id, secret and tenant;"
            f" set {'it' if len(missing) == 1 else 'them'}, or leave out {given}"
        )
    authority = s.azure_authority_host
    problems += endpoint("AZURE_AUTHORITY_HOST", authority, schemes=("https",))[1]
    suffix = s.storage_endpoint_suffix
    for cloud, defaults in CLOUDS.items():
        foreign = cloud != s.cloud and suffix == defaults["storage_endpoint_suffix"]
        if foreign and identity_of(s).exists and authority == CLOUDS[s.cloud][_AUTHORITY]:
            problems.append(
                "STORAGE_ENDPOINT_SUFFIX: belongs to another cloud than"
                f" AZURE_AUTHORITY_HOST; set CLOUD={cloud}"
            )
    return problems


def _cromwell(s: Settings) -> list[str]:
    container = s.cromwell_storage_container_name
    problems = []
    if container and not CONTAINER.fullmatch(container):
        problems.append(f"CROMWELL_STORAGE_CONTAINER_NAME: {CONTAINER_FORM}")
    if s.cromwell_map_shared_global and not container:
        problems.append(
            "CROMWELL_MAP_SHARED_GLOBAL: to which container? set CROMWELL_STORAGE_CONTAINER_NAME"
        )
    if container and not s.storage_account_name:
        problems.append(
            "CROMWELL_STORAGE_CONTAINER_NAME: is a container of which account? set"
            " STORAGE_ACCOUNT_NAME"
        )
    return problems


def _sign_in(s: Settings) -> list[str]:
    problems = endpoint("AAD_AUTHORITY", s.aad_authority, schemes=("https",))[1]
    if s.provision_token and not _PROVISION_TOKEN.fullmatch(s.provision_token):
        text = "must be 16 or more ASCII characters without spaces; take random ones"
        problems.append(f"PROVISION_TOKEN: {text}")
    if s.aad_issuer:
        issuer, wrong = endpoint("AAD_ISSUER", s.aad_issuer, path=True, schemes=("https",))
        problems += wrong
        entra = _ENTRA | {s.aad_authority.rstrip("/")}
        if issuer is not None and f"https://{issuer.hostname}" in entra:
            problems.append("AAD_ISSUER: is Entra ID: name its tenants in AAD_TENANT_ID instead")
    for number, tenant in enumerate(s.aad_tenant_id, 1):
        if not _HOST.fullmatch(tenant) or tenant.lower() in _NO_TENANTS:
            text = "is no tenant; give its id (a GUID) or a domain of its own"
            problems.append(f"AAD_TENANT_ID: entry {number} {text}")
    if s.aad_verify and not s.aad_audience:
        problems.append(
            "AAD_AUDIENCE: is missing; with AAD_VERIFY it says whom tokens must be for: the client"
            " id of the API's app registration"
        )
    if s.aad_verify and not s.aad_tenant_id and not s.aad_issuer:
        problems.append(
            "AAD_TENANT_ID: is missing; with AAD_VERIFY it says whose tokens are taken, or"
            " AAD_ISSUER does"
        )
    if s.task_access_restrictions != "none" and not (s.aad_verify or s.api_tokens):
        problems.append(
            "TASK_ACCESS_RESTRICTIONS: cannot tell callers apart who do not sign in; set AAD_VERIFY"
            " or API_TOKENS"
        )
    return problems


def _registry(s: Settings) -> list[str]:
    url = s.private_docker_registry_url
    user, password = s.private_docker_registry_username, s.private_docker_registry_password
    if not url and (user or password):
        return ["PRIVATE_DOCKER_REGISTRY_URL: is missing; its user and password are set"]
    problems = []
    if url and not _REGISTRY.fullmatch(url):
        problems.append(
            "PRIVATE_DOCKER_REGISTRY_URL: must be host, host:port or https://host, without user or"
            " path"
        )
    if bool(user) != bool(password):
        missing = "PASSWORD" if user else "USERNAME"
        problems.append(f"PRIVATE_DOCKER_REGISTRY_{missing}: is missing; set both or neither")
    return problems


def _storage_endpoint(setting: str, url: str, account: str) -> list[str]:
    """What is wrong with the URL of an Azure storage service."""
    if not url:
        return []
    parsed, problems = endpoint(setting, url, path=True)
    if parsed is None:
        return problems
    if not account:
        return [f"{setting}: belongs to which account? set STORAGE_ACCOUNT_NAME"]
    path = parsed.path.strip("/")
    if path and path != account:
        return [f"{setting}: its path must be STORAGE_ACCOUNT_NAME: {parsed.scheme}://host/account"]
    if not path and is_address(parsed.hostname or ""):
        form = f"{parsed.scheme}://host:port/account"
        return [f"{setting}: such a host serves many accounts; write {form}"]
    return []


def _other_systems(s: Settings) -> list[str]:
    problems = []
    for setting in ("s3_endpoint_url", "gcs_endpoint_url"):
        if url := getattr(s, setting):
            problems += endpoint(setting.upper(), url)[1]
    if not _REGION.fullmatch(s.s3_region):
        problems.append("S3_REGION: must be a region's name, such as us-east-1")
    if bool(s.s3_access_key_id) != bool(s.s3_secret_access_key):
        missing = "S3_SECRET_ACCESS_KEY" if s.s3_access_key_id else "S3_ACCESS_KEY_ID"
        problems.append(f"{missing}: is missing; an access key is an id and a secret")
    if s.s3_session_token and not s.s3_access_key_id:
        problems.append("S3_SESSION_TOKEN: needs S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY")
    for number, pair in enumerate(s.drs_tokens, 1):
        host, equals, token = pair.partition("=")
        if not equals or not token or not _HOST_AND_PORT.fullmatch(host):
            problems.append(f"DRS_TOKENS: entry {number} must be host=token or host:port=token")
    return problems


def _files(s: Settings, settings: Iterable[str]) -> list[str]:
    problems = []
    for setting in settings:
        name = setting.upper()
        if not getattr(s, setting):
            continue
        file = Path(getattr(s, setting))
        try:
            data = file.read_bytes()
        except OSError as error:
            problems.append(f"{name}: {error.strerror}")
            continue
        except ValueError:
            problems.append(f"{name}: is no path")
            continue
        if said := _content(setting, data):
            problems.append(f"{name}: {said}")
    return problems


def _content(setting: str, data: bytes) -> str:
    """What is wrong with a file; nothing of it is shown."""
    match setting:
        case "gcs_credentials_file":
            try:
                kind = msgspec.json.decode(data, type=dict[str, object]).get("type")
            except msgspec.MsgspecError:
                kind = None
            return "" if kind == "service_account" else "is not the JSON key of a service account"
        case "ca_bundle":
            return "" if b"-----BEGIN CERTIFICATE-----" in data else "holds no PEM certificate"
        case "sftp_key_file":
            return _private_key(data)
        case _:
            try:
                data.decode()
            except UnicodeDecodeError:
                return "is not a text"
            return ""


def _private_key(data: bytes) -> str:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    is_ssh = b"OPENSSH PRIVATE KEY-----" in data
    load = serialization.load_ssh_private_key if is_ssh else serialization.load_pem_private_key
    try:
        load(data, password=None)
    except TypeError:
        return "has a passphrase; make a copy without one (ssh-keygen -p)"
    except (ValueError, UnsupportedAlgorithm):
        return "is no private key in OpenSSH's or PEM format (not the .pub file)"
    return ""

"""What the settings say about storage, for whoever puts the parts together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from tesazure.access import Endpoints, RegistryLogin, S3Key
from tesazure.errors import ConfigurationError
from tesazure.settings import Settings, identity_of
from tesazure.storage.azure_signer import AzureConfig
from tesazure.storage.grant import GrantConfig
from tesazure.storage.registry import PACKAGES, is_installed


def endpoints_of(s: Settings) -> Endpoints:
    """Where the storage systems are. Raises OSError when a file that was there is not any more."""
    default = Endpoints()
    known_hosts = Path(s.sftp_known_hosts).read_text() if s.sftp_known_hosts else ""
    return Endpoints(
        blob_suffixes=_with(default.blob_suffixes, f".blob.{s.storage_endpoint_suffix}"),
        file_suffixes=_with(default.file_suffixes, f".file.{s.storage_endpoint_suffix}"),
        blob=_service(s, "blob", s.storage_blob_endpoint),
        file=_service(s, "file", s.storage_file_endpoint),
        s3=s.s3_endpoint_url.rstrip("/"),
        s3_region=s.s3_region,
        gcs=s.gcs_endpoint_url.rstrip("/") or default.gcs,
        ca_bundle=_absolute(s.ca_bundle),
        sftp_known_hosts=known_hosts,
    )


def grant_config_of(s: Settings) -> GrantConfig:
    """What the server signs with. Raises ConfigurationError when the packages for that are not
    installed, OSError as above."""
    if problems := _missing_packages(s):
        raise ConfigurationError(problems)
    suffix = s.storage_endpoint_suffix
    endpoints = endpoints_of(s)
    services = {
        endpoints.blob,
        endpoints.file,
        # A custom domain has not taken the account's own host away.
        *(f"https://{s.storage_account_name}.{kind}.{suffix}" for kind in ("blob", "file")),
    }
    pairs = [pair.partition("=") for pair in s.drs_tokens]
    return GrantConfig(
        endpoints=endpoints,
        azure=AzureConfig(
            account=s.storage_account_name,
            key=s.storage_account_key,
            services=tuple(services - {""}) if s.storage_account_name else (),
            cloud=(f".blob.{suffix}", f".file.{suffix}"),
            identity=identity_of(s),
        ),
        s3=(
            S3Key(s.s3_access_key_id, s.s3_secret_access_key, s.s3_session_token)
            if s.s3_access_key_id
            else None
        ),
        gcs_credentials_file=_absolute(s.gcs_credentials_file),
        drs_tokens={host.lower(): token for host, _, token in pairs},
        sftp_key=Path(s.sftp_key_file).read_text() if s.sftp_key_file else "",
        registry=_registry(s),
        unlimited_s=s.credential_hours * 3600,
        queued=s.compute_backend == "batch",
    )


def _registry(s: Settings) -> RegistryLogin | None:
    if not s.private_docker_registry_password:
        return None
    url = s.private_docker_registry_url
    host = urlsplit(url if "://" in url else f"//{url}").netloc.lower()
    user = s.private_docker_registry_username
    return RegistryLogin(host, user, s.private_docker_registry_password)


def _missing_packages(s: Settings) -> list[str]:
    needs: dict[str, tuple[str, tuple[str, ...]]] = {}
    for name, is_set in (
        ("azure_secret", bool(s.azure_secret)),
        ("azure_identity", s.azure_identity == "default"),
    ):
        if is_set:
            needs[name] = ("azure", ("azure.identity", "azure.storage.blob"))
    if s.gcs_credentials_file:
        needs["gcs_credentials_file"] = ("gcs", ("google.auth", "requests"))
    return [
        f"{name.upper()}: needs packages that are not installed: pip install 'tesazure[{extra}]'"
        for name, (extra, modules) in needs.items()
        if not all(map(is_installed, modules))
    ]


class Account(NamedTuple):
    """What the settings say about one storage system. `remedy`: what is missing, empty if
    nothing."""

    system: str
    detail: str
    remedy: str


def accounts_of(s: Settings) -> list[Account]:
    """The systems for which there are credentials. No network."""
    name = s.storage_account_name
    azure = [
        *([f"the key of account {name}"] if s.storage_account_key else []),
        *([f"service principal {s.azure_client_id}"] if s.azure_secret else []),
        *(["this machine's identity"] if s.azure_identity == "default" else []),
    ]
    if name and not azure:
        azure = [f"account {name}, of which only what anybody may read"]
    sdk = "azure" if s.azure_secret or s.azure_identity == "default" else ""
    found = [
        ("Azure", " or ".join(azure), sdk, ("azure.identity", "azure.storage.blob")),
        ("S3", s.s3_access_key_id and "an access key", "s3", (PACKAGES["s3"],)),
        ("Google", s.gcs_credentials_file, "gcs", (PACKAGES["gcs"], "requests")),
        ("SFTP", s.sftp_key_file, "sftp", (PACKAGES["sftp"],)),
        ("DRS", s.drs_tokens and f"tokens of {len(s.drs_tokens)} servers", "", ()),
    ]
    return [
        Account(system, str(detail), _remedy(extra, modules) if extra else "")
        for system, detail, extra, modules in found
        if detail
    ]


def _remedy(extra: str, modules: Sequence[str]) -> str:
    return "" if all(map(is_installed, modules)) else f"pip install 'tesazure[{extra}]'"


def _service(s: Settings, kind: str, configured: str) -> str:
    """URL of a service of the configured account; empty when there is none."""
    if configured:
        return configured.rstrip("/")
    name = s.storage_account_name
    return f"https://{name}.{kind}.{s.storage_endpoint_suffix}" if name else ""


def _absolute(path: str) -> str:
    """Where a file is for runners, too, which work elsewhere."""
    return str(Path(path).absolute()) if path else ""


def _with(suffixes: tuple[str, ...], own: str) -> tuple[str, ...]:
    return suffixes if own in suffixes else (own, *suffixes)

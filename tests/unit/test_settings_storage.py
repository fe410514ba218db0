"""Settings of storage systems: what cannot work is said at once, and no secret is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from tesazure import settings
from tesazure.errors import ConfigurationError

KEY = "c2VjcmV0LWtleQ=="
PLANTED = "pl4nted"


def problems(**given: object) -> list[str]:
    """What `load` finds wrong with these settings; empty when nothing."""
    try:
        settings.load({f"APP_{name.upper()}": str(value) for name, value in given.items()})
    except ConfigurationError as error:
        return list(error.problems)
    return []


def private_key(passphrase: str = "") -> bytes:
    how: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        how = serialization.BestAvailableEncryption(passphrase.encode())
    return ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, how
    )


@pytest.mark.parametrize(
    "given",
    [
        {"storage_account_name": "acct"},
        {"storage_account_name": "acct", "storage_account_key": KEY},
        {
            "storage_account_name": "acct",
            "storage_blob_endpoint": "http://127.0.0.1:10000/acct",
            "storage_file_endpoint": "https://files.example.org",
        },
        {"storage_endpoint_suffix": "core.usgovcloudapi.net"},
        {"azure_client_id": "id", "azure_secret": "s", "azure_tenant": "t"},
        {"azure_identity": "default"},
        {"azure_identity": "default", "azure_client_id": "of-a-managed-identity"},
        {"azure_authority_host": "https://login.example.org"},
        {"credential_hours": 0.5},
        {"credential_hours": 168},
        {"s3_endpoint_url": "http://minio:9000/", "s3_region": "eu-west-1"},
        {"s3_access_key_id": "id", "s3_secret_access_key": "s", "s3_session_token": "t"},
        {"gcs_endpoint_url": "http://127.0.0.1:4443"},
        {"drs_tokens": "drs.example.org=a.b-c=, [::1]:8080=x"},
        {"input_cache_gb": 20},
    ],
)
def test_what_works_is_taken(given: dict[str, object]) -> None:
    assert problems(**given) == []


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"storage_account_name": "My-Account"}, "STORAGE_ACCOUNT_NAME: must be 3 to 24 lower"),
        ({"storage_account_name": "https://a.blob"}, "STORAGE_ACCOUNT_NAME: must be 3 to 24"),
        ({"storage_account_key": KEY}, "STORAGE_ACCOUNT_KEY: is a key of which account?"),
        (
            {"storage_account_name": "acct", "storage_account_key": f"AccountKey={PLANTED}"},
            "STORAGE_ACCOUNT_KEY: must be base64",
        ),
        ({"storage_endpoint_suffix": "https://core.windows.net"}, "STORAGE_ENDPOINT_SUFFIX: must"),
        ({"storage_endpoint_suffix": ".core.windows.net"}, "STORAGE_ENDPOINT_SUFFIX: must be"),
        ({"storage_blob_endpoint": "https://x.org"}, "STORAGE_BLOB_ENDPOINT: belongs to which"),
        (
            {"storage_account_name": "acct", "storage_blob_endpoint": "http://127.0.0.1:1"},
            "STORAGE_BLOB_ENDPOINT: such a host serves many accounts; write http://host:port/account",
        ),
        (
            {"storage_account_name": "acct", "storage_blob_endpoint": "http://[::1]:1/other/"},
            "STORAGE_BLOB_ENDPOINT: its path must be STORAGE_ACCOUNT_NAME: http://host/account",
        ),
        (
            {"storage_account_name": "acct", "storage_file_endpoint": "files.example.org"},
            "STORAGE_FILE_ENDPOINT: must be a URL such as https://host[:port][/account]",
        ),
        (
            {
                "storage_account_name": "acct",
                "storage_blob_endpoint": f"https://x.org/?sig={PLANTED}",
            },
            "STORAGE_BLOB_ENDPOINT: must hold no user, password, signature or query",
        ),
        ({"storage_blob_endpoint": "https://[x/"}, "STORAGE_BLOB_ENDPOINT: is not a URL"),
        ({"azure_client_id": "id"}, "AZURE_SECRET and AZURE_TENANT: a service principal needs"),
        (
            {"azure_tenant": "t", "azure_secret": PLANTED},
            "AZURE_CLIENT_ID: a service principal needs client id, secret and tenant; set it, or l",
        ),
        (
            {"azure_identity": "default", "azure_client_id": "i", "azure_tenant": "t"},
            "AZURE_SECRET: a service principal needs",
        ),
        ({"azure_identity": "managed"}, "APP_AZURE_IDENTITY: must be one of none, default"),
        ({"azure_authority_host": "http://x.org"}, "AZURE_AUTHORITY_HOST: must be a URL such as"),
        ({"azure_authority_host": "https://x.org/t"}, "AZURE_AUTHORITY_HOST: must hold no path"),
        ({"credential_hours": 0}, "CREDENTIAL_HOURS: must be more than 0 and at most 168"),
        ({"credential_hours": 169}, "CREDENTIAL_HOURS: must be more than 0 and at most 168"),
        ({"s3_endpoint_url": "minio:9000"}, "S3_ENDPOINT_URL: must be a URL"),
        ({"s3_endpoint_url": "http://m:9000/bucket"}, "S3_ENDPOINT_URL: must hold no path"),
        ({"s3_endpoint_url": f"http://u:{PLANTED}@m"}, "S3_ENDPOINT_URL: must hold no user"),
        ({"s3_region": "eu west"}, "S3_REGION: must be a region's name"),
        ({"s3_access_key_id": "id"}, "S3_SECRET_ACCESS_KEY: is missing"),
        ({"s3_secret_access_key": PLANTED}, "S3_ACCESS_KEY_ID: is missing"),
        ({"s3_session_token": PLANTED}, "S3_SESSION_TOKEN: needs S3_ACCESS_KEY_ID and"),
        ({"gcs_endpoint_url": "ftp://x"}, "GCS_ENDPOINT_URL: must be a URL such as https://host"),
        ({"drs_tokens": f"a.org=x,{PLANTED}"}, "DRS_TOKENS: entry 2 must be host=token"),
        ({"drs_tokens": "a.org="}, "DRS_TOKENS: entry 1 must be host=token"),
        ({"drs_tokens": f"https://a.org={PLANTED}"}, "DRS_TOKENS: entry 1 must be host=token"),
        ({"ca_bundle": "no/such/file"}, "CA_BUNDLE: No such file or directory"),
        ({"input_cache_gb": -1}, "APP_INPUT_CACHE_GB: must not be negative"),
    ],
)
def test_what_cannot_work_is_said(given: dict[str, object], problem: str) -> None:
    found = problems(**given)
    assert len(found) == 1
    assert found[0].startswith(problem)
    assert PLANTED not in found[0]


def test_problems_of_several_systems_come_at_once() -> None:
    found = problems(
        storage_account_key="x", azure_tenant="t", s3_access_key_id="i", sftp_key_file="none"
    )
    assert [problem.split(":", maxsplit=1)[0] for problem in found] == [
        "STORAGE_ACCOUNT_KEY",
        "STORAGE_ACCOUNT_KEY",
        "AZURE_CLIENT_ID and AZURE_SECRET",
        "S3_SECRET_ACCESS_KEY",
        "SFTP_KEY_FILE",
    ]


def test_files_are_looked_into(tmp_path: Path) -> None:
    def file(content: bytes) -> Path:
        path = tmp_path / "file"
        path.write_bytes(content)
        return path

    def said(name: str, content: bytes) -> str:
        found = problems(**{name: file(content)})
        assert len(found) <= 1
        assert PLANTED not in str(found)
        return found[0].removeprefix(f"{name.upper()}: ") if found else ""

    account = json.dumps({"type": "service_account", "private_key": PLANTED}).encode()
    assert said("gcs_credentials_file", account) == ""
    no_account = "is not the JSON key of a service account"
    assert said("gcs_credentials_file", PLANTED.encode()) == no_account
    assert said("gcs_credentials_file", b'{"type": "authorized_user"}') == no_account
    assert said("sftp_key_file", private_key()) == ""
    assert said("sftp_key_file", private_key("phrase")).startswith("has a passphrase")
    assert said("sftp_key_file", b"ssh-ed25519 AAAA").startswith("is no private key")
    assert said("sftp_known_hosts", b"host ssh-ed25519 AAAA\n") == ""
    assert said("sftp_known_hosts", b"\xff\xfe") == "is not a text"
    assert said("ca_bundle", b"-----BEGIN CERTIFICATE-----\n") == ""
    assert said("ca_bundle", b"\x30\x82") == "holds no PEM certificate"


def test_secrets_are_shown_nowhere() -> None:
    given = {
        "storage_account_name": "acct",
        "storage_account_key": "cGw0bnRlZA==",
        "azure_client_id": "id",
        "azure_tenant": "t",
        "azure_secret": PLANTED,
        "s3_access_key_id": "id",
        "s3_secret_access_key": PLANTED,
        "s3_session_token": PLANTED,
        "drs_tokens": f"a.org={PLANTED}",
        "secrets_key": PLANTED,
    }
    effective = settings.load({f"APP_{name.upper()}": value for name, value in given.items()})
    shown = f"{settings.shown(effective)} {effective} {effective.settings!r}"
    assert PLANTED not in shown
    assert given["storage_account_key"] not in shown
    assert ("DRS_TOKENS", "***", "environment") in settings.shown(effective)


def test_programs_that_we_start_get_no_credentials() -> None:
    secret = {
        "APP_STORAGE_ACCOUNT_KEY": PLANTED,
        "TESAZURE_TOKEN": PLANTED,
        "AZURE_CLIENT_SECRET": PLANTED,
        "AZURE_STORAGE_CONNECTION_STRING": PLANTED,
        "AWS_SECRET_ACCESS_KEY": PLANTED,
        "AWS_SESSION_TOKEN": PLANTED,
        "GOOGLE_APPLICATION_CREDENTIALS": PLANTED,
        "IDENTITY_HEADER": PLANTED,
        "PGPASSWORD": PLANTED,
    }
    kept = {"PATH": "/bin", "HTTPS_PROXY": "http://p", "DOCKER_HOST": "tcp://d", "AWS_REGION": "r"}
    assert settings.passed_on(secret | kept) == kept

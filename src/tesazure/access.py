"""What one attempt needs to reach its files in storage, beside its Plan. Pure data.

A Plan holds no secret and may be kept. An Access is nothing but secrets: it is made when an attempt
is placed, with the least rights and the shortest life that will do, goes to the runner in memory,
and is never stored, logged or shown.
"""

from __future__ import annotations

import msgspec


class Endpoints(msgspec.Struct, omit_defaults=True, frozen=True, kw_only=True):
    """Where this installation's storage systems are. No secrets."""

    blob_suffixes: tuple[str, ...] = (
        ".blob.core.windows.net",
        ".blob.core.usgovcloudapi.net",
        ".blob.core.chinacloudapi.cn",
    )
    """https URLs of hosts that end so are Azure Blob's."""
    file_suffixes: tuple[str, ...] = (
        ".file.core.windows.net",
        ".file.core.usgovcloudapi.net",
        ".file.core.chinacloudapi.cn",
    )
    """The same for Azure Files."""
    blob: str = ""
    """URL of the configured account's Blob service, which az:// URLs mean: its own host, or host
    and account as with Azurite (`http://127.0.0.1:10000/account`). No slash at the end."""
    file: str = ""
    """URL of the configured account's Files service, likewise."""
    s3: str = ""
    """URL of an S3 service other than AWS, addressed by path (`http://minio:9000`)."""
    s3_region: str = "us-east-1"
    gcs: str = "https://storage.googleapis.com"
    ca_bundle: str = ""
    """File of certificates (PEM) that all TLS connections trust; empty: the system's."""
    sftp_known_hosts: str = ""
    """The text of an OpenSSH known_hosts file: only these servers are talked to by sftp."""


class S3Key(msgspec.Struct, omit_defaults=True, frozen=True):
    """Credentials of an S3 service."""

    key_id: str
    secret: str
    session_token: str = ""

    def __repr__(self) -> str:
        return "S3Key(…)"


_DOCKER_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


def is_of_registry(image: str, registry: str) -> bool:
    """Whether an image reference names an image of a registry (host or host:port, in lower case).
    Source: the distribution project, reference/normalize.go: what has no host is Docker Hub's."""
    first, slash, _ = image.partition("/")
    named = bool(slash) and ("." in first or ":" in first or first == "localhost")
    host = first.lower() if named else "docker.io"
    return host == registry or (host in _DOCKER_HUB and registry in _DOCKER_HUB)


class RegistryLogin(msgspec.Struct, omit_defaults=True, frozen=True):
    """A user of a private container registry."""

    host: str
    """Host or host:port, in lower case."""
    user: str
    password: str

    def serves(self, image: str) -> bool:
        """Whether an image reference names an image of this registry."""
        return is_of_registry(image, self.host)

    def __repr__(self) -> str:
        return f"RegistryLogin({self.host})"


class RegistryIdentity(msgspec.Struct, omit_defaults=True, frozen=True, kw_only=True):
    """A managed identity of the node that may pull from an Azure Container Registry. No secret."""

    host: str
    """Of the registry: host or host:port, in lower case."""
    id: str
    """ARM id of the user-assigned identity."""
    metadata: str = "http://169.254.169.254"
    """The node's instance metadata service, which gives tokens of its identities."""


class Access(msgspec.Struct, omit_defaults=True, frozen=True, kw_only=True):
    """The secrets of one attempt. Every one of them is optional: without, a system is asked
    anonymously."""

    inputs: dict[int, str] = {}
    """Index of an input -> the URL to read it from, with its signature or password, where that is
    not the one in the Plan."""
    outputs: dict[int, str] = {}
    """The same for outputs: where to write."""
    s3: S3Key | None = None
    gcs_token: str = ""
    """An OAuth 2 access token for Google Cloud Storage."""
    drs_tokens: dict[str, str] = {}
    """Host of a GA4GH DRS server, in lower case -> bearer token."""
    sftp_key: str = ""
    """A private key in OpenSSH's or PEM format, for sftp URLs without a password."""
    registry: RegistryLogin | None = None
    """For pulling the images of the Plan that are this registry's."""
    notes: tuple[str, ...] = ()
    """Remarks for the task's log, without secrets: what could not be granted, and what follows."""

    def __repr__(self) -> str:
        return "Access(…)"

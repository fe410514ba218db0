"""URLs of Azure Blob and Azure Files: which account, container and name they mean. Pure.

Three forms: `https://ACCOUNT.blob.core.windows.net/CONTAINER/NAME` (and the suffixes of other
clouds), the configured service's own URL with `/CONTAINER/NAME` behind it (a custom domain, or
`http://127.0.0.1:10000/ACCOUNT` as with the emulator), and `az://CONTAINER/NAME`, which means a
blob of the configured account. The first two are percent-encoded and may carry a SAS as their
query. In the third the name stands as it is; only a query with a signature is not part of it.

Sources of the rules: "Naming and Referencing Containers, Blobs, and Metadata", "Naming and
Referencing Shares, Directories, Files, and Metadata" (Microsoft).
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from operator import attrgetter
from typing import ClassVar, Self
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlencode, urlsplit

import msgspec

from tesazure.access import Endpoints
from tesazure.errors import UnsupportedUrl
from tesazure.storage.urls import host_of, redact, scheme_of

_DEFAULT_PORTS = {"http": 80, "https": 443}
_LEGAL_CONTAINER = re.compile(r"[a-z0-9](?:-?[a-z0-9])+")
_ACCOUNT_HOST = re.compile(
    r"([a-z0-9]{3,24})(?:-[a-z0-9]+)*((?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*)"
)
"""What precedes the suffix in a service's host: the account's name, perhaps which of its endpoints
(`-secondary`, `-internetrouting`), perhaps a DNS zone or `privatelink`."""
_FORBIDDEN_IN_FILES = re.compile(r'["\\:|<>*?\x00-\x1f\x7f]')


class AzureUrl(msgspec.Struct, frozen=True, kw_only=True):
    """What URLs of both services consist of; made by `parse` of `BlobUrl` and `FileUrl`."""

    endpoint: str
    """The service's URL with its account, no slash at the end."""
    account: str
    container: str
    """The container, or the share."""
    path: str
    """Decoded; empty for the container itself. Ends in a slash if the URL did."""
    query: str = ""
    """Without `?`: a SAS, or nothing."""

    service: ClassVar[str]
    unit: ClassVar[str]
    places: ClassVar[attrgetter[tuple[str, tuple[str, ...]]]]
    """The configured service's URL, and the suffixes of its host names."""
    system_containers: ClassVar[frozenset[str]] = frozenset()
    """Azure's own, whose names break the rules for others."""
    versions: ClassVar[frozenset[str]] = frozenset({"snapshot", "versionid"})
    """Parameters that choose a version of what the URL names, and nothing else."""

    @classmethod
    def parse(cls, url: str, endpoints: Endpoints) -> Self:
        """Raises UnsupportedUrl for a URL that is none of this service's, and for what the service
        does not allow as a name."""
        if scheme_of(url) == "az":
            made = cls._of_az(url, endpoints)
        else:
            made = cls._of_http(url, endpoints)
        problem = made.problem()
        if problem:
            raise UnsupportedUrl(f"{redact(url)}: {problem}")
        return made

    @classmethod
    def serves(cls, url: str, endpoints: Endpoints) -> bool:
        """Whether an http or https URL is one of this service's, whatever its path."""
        return bool(_found(url, *cls.places(endpoints)))

    @classmethod
    def _of_az(cls, url: str, endpoints: Endpoints) -> Self:
        raise UnsupportedUrl(f"{redact(url)}: az:// URLs are for blobs")

    @classmethod
    def _of_http(cls, url: str, endpoints: Endpoints) -> Self:
        found = _found(url, *cls.places(endpoints))
        if found is None:
            raise UnsupportedUrl(f"{redact(url)}: not a URL of {cls.service}")
        endpoint, account, path = found
        text = os.fsdecode(unquote_to_bytes(path.encode("utf-8", "surrogateescape")))
        container, _, name = text.partition("/")
        query = urlsplit(url).query
        return cls(endpoint=endpoint, account=account, container=container, path=name, query=query)

    def problem(self) -> str:
        """Why the service would refuse the names, in words; empty if it would not."""
        if not self.container:
            return f"names no {self.unit}"
        legal = _LEGAL_CONTAINER.fullmatch(self.container) and 3 <= len(self.container) <= 63
        if not legal and self.container not in self.system_containers:
            return (
                f"{self.container!r} cannot be the name of a {self.unit}: 3 to 63 lower-case"
                " letters, digits and single hyphens, a letter or digit first and last"
            )
        if not _is_text(self.path):
            return "its name is not UTF-8"
        if any(part in (".", "..") for part in self.path.split("/")):
            return "a part of its path is . or .., which Azure takes for a place above"
        return ""

    @property
    def url(self) -> str:
        """The http or https URL, percent-encoded, with its query."""
        return self._with(self.query)

    def asking(self, parameters: str) -> str:
        """The URL with more query parameters, which are encoded already, before its own."""
        return self._with("&".join(filter(None, (parameters, self.query))))

    def at(self, path: str) -> Self:
        """Another path in the same container, with the same query."""
        return msgspec.structs.replace(self, path=path)

    def signed(self, parameter: str) -> str:
        """A parameter of the SAS, decoded (`se`, `sp`, `sr`, …); empty when it has none."""
        return dict(parse_qsl(self.query)).get(parameter, "")

    def signed_by(self, sas: str) -> Self:
        """With our signature, and nothing of its own query but which version is meant: parameters
        of a client's could ask for something else in our name."""
        kept = [pair for pair in parse_qsl(self.query) if pair[0] in self.versions]
        query = "&".join(filter(None, (urlencode(kept, quote_via=quote, safe=""), sas)))
        return msgspec.structs.replace(self, query=query)

    def foreign_parameters(self) -> list[str]:
        """Of a URL without a signature: the names of parameters that it may not have."""
        if self.signed("sig"):
            return []
        names = (name for name, _ in parse_qsl(self.query, keep_blank_values=True))
        return [name for name in names if name not in self.versions]

    def _with(self, query: str) -> str:
        path = quote(f"/{self.container}/{self.path}" if self.path else f"/{self.container}")
        return f"{self.endpoint}{path}{'?' if query else ''}{query}"


class BlobUrl(AzureUrl, frozen=True, kw_only=True):
    """A blob, a directory of blobs (what shares a prefix that ends in a slash), or a container.

    A URL with one path segment means a container, never a blob in `$root`, which is named in full.
    """

    service = "Azure Blob Storage"
    unit = "container"
    places = attrgetter("blob", "blob_suffixes")
    system_containers = frozenset({"$root", "$web", "$logs", "$blobchangefeed"})

    @classmethod
    def _of_az(cls, url: str, endpoints: Endpoints) -> Self:
        if not endpoints.blob:
            raise UnsupportedUrl(
                f"{redact(url)}: az:// means a blob of the configured storage account, and there is"
                " none; write https://ACCOUNT.blob.core.windows.net/CONTAINER/NAME"
            )
        rest = url.partition(":")[2].lstrip("/")
        head, mark, query = rest.partition("?")
        if mark and "sig" not in dict(parse_qsl(query)):
            head, query = rest, ""
        container, _, name = head.partition("/")
        endpoint = endpoints.blob.rstrip("/")
        account = _account(endpoint, endpoints.blob_suffixes)
        return cls(endpoint=endpoint, account=account, container=container, path=name, query=query)

    def problem(self) -> str:
        """As above; a blob's name has at most 1,024 characters."""
        if len(self.path) > 1024:
            return f"a blob's name has at most 1024 characters, this one {len(self.path)}"
        return super().problem()


class FileUrl(AzureUrl, frozen=True, kw_only=True):
    """A file or directory of a share, or the share."""

    service = "Azure Files"
    unit = "share"
    places = attrgetter("file", "file_suffixes")
    versions = frozenset({"sharesnapshot"})

    def problem(self) -> str:
        """As above; names as SMB has them."""
        if found := _FORBIDDEN_IN_FILES.search(self.path):
            return f"{found[0]!r} cannot be in a name in Azure Files"
        if len(self.path) > 2048 or any(len(part) > 255 for part in self.path.split("/")):
            return "Azure Files has names of at most 255 characters, and paths of at most 2048"
        return super().problem()


def _found(url: str, configured: str, suffixes: tuple[str, ...]) -> tuple[str, str, str] | None:
    """Endpoint, account, and the encoded path below it; None for other services' URLs. Raises
    UnsupportedUrl for a host with the service's suffix that is no account's."""
    origin = _origin(url)
    if origin is None:
        return None
    scheme, host, port = origin
    path = urlsplit(url).path
    if configured:
        place, base, account = _configured(configured, suffixes)
        if place == origin and (path == base or path.startswith(f"{base}/")):
            return configured.rstrip("/"), account, path[len(base) :].lstrip("/")
    if not host.endswith(suffixes):
        return None
    if not is_account_host(host, suffixes):
        text = "an account's name has 3 to 24 lower-case letters and digits"
        raise UnsupportedUrl(f"{redact(url)}: not a URL of a storage account: {text}")
    shown = "" if port == _DEFAULT_PORTS[scheme] else f":{port}"
    endpoint = f"{scheme}://{host}{shown}"
    return endpoint, _account(endpoint, suffixes), path.lstrip("/")


@lru_cache(maxsize=8)
def _configured(
    endpoint: str, suffixes: tuple[str, ...]
) -> tuple[tuple[str, str, int] | None, str, str]:
    """Of an endpoint that settings name: its origin, path and account. Every URL of every file is
    compared with the same one or two."""
    return (
        _origin(endpoint),
        urlsplit(endpoint).path.rstrip("/"),
        _account(endpoint.rstrip("/"), suffixes),
    )


def is_account_host(host: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a host, in lower case, is an account's of the services with these suffixes."""
    return any(
        host.endswith(suffix) and _ACCOUNT_HOST.fullmatch(host.removesuffix(suffix))
        for suffix in suffixes
    )


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _origin(url: str) -> tuple[str, str, int] | None:
    scheme = scheme_of(url)
    if scheme not in _DEFAULT_PORTS:
        return None
    return scheme, host_of(url), urlsplit(url).port or _DEFAULT_PORTS[scheme]


def _account(endpoint: str, suffixes: tuple[str, ...]) -> str:
    """The account that an endpoint serves: its path where it has one, else its host's first label
    (which is a guess for a custom domain: signatures of the account need its real name there)."""
    parts = urlsplit(endpoint)
    named = parts.path.strip("/")
    if named and not (parts.hostname or "").endswith(suffixes):
        return named
    label = (parts.hostname or "").partition(".")[0]
    return label.partition("-")[0] if (parts.hostname or "").endswith(suffixes) else label

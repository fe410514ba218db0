"""Makes the secrets of one attempt: what its runner needs to reach its files, and no more.

The server's own credentials stay here. What leaves, in an `Access`, is good for the plan's files
and its time:

| | a blob or file alone | the whole container or share |
|---|---|---|
| input of type FILE | read | |
| other inputs | | read, list: a directory is what shares a prefix, found by listing |
| output of type FILE without wildcards, Azure Blob | create, write | |
| other outputs, Azure Blob | | create, write: also the markers of empty directories |
| all outputs, Azure Files | | read, create, write, delete |

Nothing is smaller than a container there, but for accounts with a hierarchical namespace. In Azure
Files an output is written under another name and then renamed over the old file, in directories
made for it: that takes rights on the share.

S3, Google and SFTP know nothing like a SAS for a prefix: for `s3://` and `gs://` URLs, and for
`sftp://` ones without a password, the runner gets the configured key or token itself, if the plan
has such URLs. Google's token only reads, unless an output goes to `gs://`. With `drs://` URLs it
gets the key and the token too: whether their server leads to `s3://` or `gs://`, it says only then.
The password of the private container registry goes along if the plan has images of that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from tesazure.access import Access, Endpoints, RegistryLogin, S3Key
from tesazure.model import FileType
from tesazure.plan import Download, Plan, Upload
from tesazure.storage.azure_signer import AzureConfig, AzureSigner, Wanted
from tesazure.storage.azure_urls import AzureUrl, BlobUrl, FileUrl
from tesazure.storage.gcs_token import GOOD_S, GcsTokens
from tesazure.storage.urls import host_of, scheme_of

TRANSFERS_S = 12 * 3600.0
"""How long credentials live beyond a task's time limit, which ends before the outputs are
written."""
_LONGEST_S = 7 * 86400.0
"""No credential lives longer, whoever signs."""
_FEW = 100
"""URLs that can be signed in between: 70 µs each."""
_AZURE = frozenset({"az", "http", "https"})
_NEEDING = frozenset({*_AZURE, "drs", "gs", "s3", "sftp"})
"""Schemes of URLs for which there may be something to grant."""

_AN_HOUR = (
    "its gs:// outputs cannot be written if the task takes longer than an hour, as long as a token"
    " of Google's lives"
)

_READ = Wanted("r", whole=False)
_READ_ALL = Wanted("rl", whole=True)
_WRITE = Wanted("cw", whole=False)
_WRITE_ALL = Wanted("cw", whole=True)
_REPLACE_ALL = Wanted("rcwd", whole=True)


class GrantConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The server's credentials. Holds secrets."""

    endpoints: Endpoints = Endpoints()
    azure: AzureConfig = AzureConfig()
    s3: S3Key | None = None
    gcs_credentials_file: str = ""
    drs_tokens: dict[str, str] = {}
    """Host or host:port in lower case -> bearer token."""
    sftp_key: str = ""
    """A private key's text."""
    registry: RegistryLogin | None = None
    unlimited_s: float = 7 * 86400.0
    """How long credentials live at most, in seconds: those for a plan without time limit do."""
    queued: bool = False
    """Whether all do: attempts wait for a machine with their credentials, nobody knows how long."""

    def __repr__(self) -> str:
        return "GrantConfig(…)"


class Granter:
    """Grants access by the server's credentials. May be used from several threads at once."""

    def __init__(self, config: GrantConfig, clock: Callable[[], float] = time.time) -> None:
        """`clock`: seconds since the epoch."""
        self._config = config
        self._signer = AzureSigner(config.azure, clock)
        self._gcs: dict[bool, GcsTokens] = {}
        """Whether they are for writing -> tokens."""
        if config.gcs_credentials_file:
            file, bundle = Path(config.gcs_credentials_file), config.endpoints.ca_bundle
            self._gcs = {w: GcsTokens(file, bundle, writing=w) for w in (False, True)}

    def is_quick(self, plan: Plan) -> bool:
        """Whether `access` takes a few milliseconds at most: it asks no service."""
        urls = list(_urls(plan))
        return len(urls) <= _FEW and all(map(self._is_quick, urls))

    def access(self, plan: Plan, secrets: Mapping[str, str]) -> Access:
        """The secrets of an attempt. `secrets` maps `inputs.0`, `outputs.2` to URLs whose own
        secrets were cut out of the plan: these are used as they are. May wait for Azure or Google.

        Raises StorageUnavailable when one of these cannot be asked now; StorageError and
        PermissionDenied when they refuse the server; UnsupportedUrl.
        """
        schemes = {scheme_of(url) for url in _urls(plan)}
        registry = self._registry(plan)
        if schemes.isdisjoint(_NEEDING) and not secrets:
            return Access(registry=registry)
        lifetime_s = self._lifetime_s(plan)
        notes: list[str] = []
        inputs, outputs = {}, {}
        for download in plan.downloads:
            whole = secrets.get(f"inputs.{download.index}", "")
            if url := whole or self._signed(download.url or "", download, lifetime_s, notes):
                inputs[download.index] = url
        for upload in plan.uploads:
            whole = secrets.get(f"outputs.{upload.index}", "")
            if url := whole or self._signed(upload.url, upload, lifetime_s, notes):
                outputs[upload.index] = url
        written = [upload.url for upload in plan.uploads]
        systems = self.to_systems([d.url for d in plan.downloads if d.url], written)
        limit_s = plan.max_runtime_s
        is_short = not 0 < limit_s <= GOOD_S
        if systems.gcs_token and is_short and "gs" in map(scheme_of, written):
            notes.append(_AN_HOUR)
        return msgspec.structs.replace(
            systems,
            inputs=inputs,
            outputs=outputs,
            registry=registry,
            notes=tuple(dict.fromkeys(notes)),
        )

    def to_systems(self, read: Collection[str], written: Collection[str] = ()) -> Access:
        """The credentials that are for whole systems, of those that the URLs lead to. May wait for
        Google. Errors as of `access`."""
        urls = [*read, *written]
        schemes = {scheme_of(url) for url in urls}
        through = "drs" in schemes  # leads to s3:// or gs://, as the server says
        token = ""
        if self._gcs and (through or "gs" in schemes):
            token = self._gcs["gs" in map(scheme_of, written)].token()
        return Access(
            s3=self._config.s3 if through or "s3" in schemes else None,
            gcs_token=token,
            drs_tokens=self._drs_tokens(urls),
            sftp_key=self._config.sftp_key if any(map(_needs_key, urls)) else "",
        )

    def resolve(self, url: str, *, writing: bool, directory: bool, lifetime_s: float) -> str:
        """The URL to use for one of a user at the command line: with a signature, where these
        credentials are for what it names and it has none. `directory`: all below it, listed too.
        Errors as of `access`."""
        azure = self._azure_url(url)
        if azure is None:
            return url
        signed, _ = self._signer.signed(azure, _wanted(azure, writing, directory), lifetime_s)
        return signed or url

    def _lifetime_s(self, plan: Plan) -> float:
        limit_s = plan.max_runtime_s
        is_known = limit_s > 0 and not self._config.queued
        wanted_s = limit_s + TRANSFERS_S if is_known else _LONGEST_S
        return min(wanted_s, self._config.unlimited_s, _LONGEST_S)

    def _is_quick(self, url: str) -> bool:
        scheme = scheme_of(url)
        if scheme in ("gs", "drs"):
            return not self._gcs
        return scheme not in _AZURE or not self._signer.has_identity

    def _signed(
        self, url: str, item: Download | Upload, lifetime_s: float, notes: list[str]
    ) -> str:
        """The URL with a signature; empty where the item's own will do."""
        azure = self._azure_url(url)
        if azure is None:
            return ""
        writing = isinstance(item, Upload)
        alone = item.type is FileType.FILE and not (isinstance(item, Upload) and item.prefix)
        wanted = _wanted(azure, writing, not alone)
        signed, note = self._signer.signed(azure, wanted, lifetime_s)
        if note:
            notes.append(note)
        return signed

    def _azure_url(self, url: str) -> AzureUrl | None:
        """A URL of Azure storage that may need a signature. Raises UnsupportedUrl."""
        endpoints = self._config.endpoints
        scheme = scheme_of(url)
        found: AzureUrl | None = None
        if scheme == "az" or (scheme in _AZURE and BlobUrl.serves(url, endpoints)):
            found = BlobUrl.parse(url, endpoints)
        elif scheme in _AZURE and FileUrl.serves(url, endpoints):
            found = FileUrl.parse(url, endpoints)
        return None if found is None or found.signed("sig") else found

    def _registry(self, plan: Plan) -> RegistryLogin | None:
        login = self._config.registry
        return login if login and any(login.serves(step.image) for step in plan.steps) else None

    def _drs_tokens(self, urls: Collection[str]) -> dict[str, str]:
        tokens = self._config.drs_tokens
        if not tokens:
            return {}
        hosts = {
            urlsplit(url).netloc.rpartition("@")[2].lower()
            for url in urls
            if scheme_of(url) == "drs"
        }
        return {host: token for host, token in tokens.items() if host in hosts}


def _wanted(url: AzureUrl, writing: bool, directory: bool) -> Wanted:
    whole = directory or not url.path.strip("/")
    if not writing:
        return _READ_ALL if whole else _READ
    if isinstance(url, FileUrl):
        return _REPLACE_ALL
    return _WRITE_ALL if whole else _WRITE


def _needs_key(url: str) -> bool:
    """Whether it is an sftp URL that comes without a password."""
    if scheme_of(url) != "sftp":
        return False
    host_of(url)  # raises UnsupportedUrl for what has no parts
    return not urlsplit(url).password


def _urls(plan: Plan) -> Iterator[str]:
    for download in plan.downloads:
        if download.url:
            yield download.url
    for upload in plan.uploads:
        yield upload.url

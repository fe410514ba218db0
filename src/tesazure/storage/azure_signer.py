"""Who signs for Azure storage: the account's key, or an identity by a user delegation key. For
that one Microsoft's SDKs are needed, which the extra `azure` installs.

Source: "Create a user delegation SAS", "Get User Delegation Key" (Microsoft).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from tesazure.azure_identity import Identity, credential_of, short, was_answered
from tesazure.errors import PermissionDenied, StorageError, StorageUnavailable, TesazureError
from tesazure.storage.azure_urls import AzureUrl, BlobUrl, is_account_host
from tesazure.storage.sas import DelegationKey, Grant, Place, delegation_sas, service_sas
from tesazure.trust import authorities

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential

EARLIER = timedelta(minutes=15)
"""Signatures are good from that long ago: clocks differ ("Best practices when using SAS")."""
DELEGATION_DAYS = 7
"""How long a user delegation key may live."""
_KEY_SLACK = timedelta(hours=1)
"""A cached key that lacks less than this of the longest life is as good as a new one."""
_REFUSED_S = 300.0
"""Seconds for which an account that refused our identity is not asked again."""
_AWAY_S = 60.0
"""The same of one that cannot be reached: its name may be mistyped."""
_MOST_ACCOUNTS = 1000
"""Of so many accounts that tasks name something is remembered."""
_SCOPE = "https://storage.azure.com/.default"
_TIMEOUTS: dict[str, Any] = {"connection_timeout": 10, "read_timeout": 20}
"""Of requests to storage, in seconds."""

_log = logging.getLogger(__name__)

T = TypeVar("T")


class AzureConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the server may sign with. Holds secrets."""

    account: str = ""
    """The account that `key` is for, and that az:// means."""
    key: str = ""
    services: tuple[str, ...] = ()
    """URLs of this account's Blob and Files services, without slashes at the end."""
    cloud: tuple[str, ...] = ()
    """Ends of the hosts of this cloud's other accounts, which the identity may be shown to."""
    identity: Identity = Identity()

    def __repr__(self) -> str:
        return "AzureConfig(…)"


class Wanted(msgspec.Struct, frozen=True):
    """Rights as in the parameter `sp`, in the service's order; for the whole container or share, or
    only for what the URL names."""

    rights: str
    whole: bool


class _AccountAway(StorageUnavailable):
    """The service of an account cannot be connected to, or there is no such account."""


class _Held(msgspec.Struct, frozen=True):
    key: DelegationKey
    expires: datetime


class AzureSigner:
    """Signs URLs. May be used from several threads at once; may ask Azure for a key, and wait."""

    def __init__(self, config: AzureConfig, clock: Callable[[], float] = time.time) -> None:
        self._config = config
        self._clock = clock
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._keys: dict[str, _Held] = {}
        self._refusals: dict[str, tuple[float, StorageError]] = {}
        """Service's URL -> until when on the monotonic clock, and the error."""
        self._credential: TokenCredential | None = None

    def signed(self, url: AzureUrl, wanted: Wanted, lifetime_s: float) -> tuple[str, str]:
        """The URL with a signature good for `lifetime_s` seconds (at most seven days where it is an
        identity's), empty without the means to sign, and a remark for the task's log, mostly none.
        Raises PermissionDenied when the configured account refuses our identity or there is none,
        StorageUnavailable when Azure cannot be asked now. Other accounts that refuse our identity,
        or cannot be reached, go unsigned with a remark."""
        now = datetime.fromtimestamp(self._clock(), UTC)
        grant = Grant(
            rights=wanted.rights,
            start=now - EARLIER,
            expiry=now + timedelta(seconds=lifetime_s),
            protocol="https,http" if url.endpoint.startswith("http:") else "https",
        )
        place = Place(
            service="blob" if isinstance(url, BlobUrl) else "file",
            account=self._account(url),
            container=url.container,
            path="" if wanted.whole else url.path,
        )
        ours = url.endpoint in self._config.services
        if ours and self._config.key:
            return url.signed_by(service_sas(place, grant, self._config.key)).url, ""
        if not self.has_identity or not (ours or self._is_of_our_cloud(url)):
            return "", ""
        try:
            held = self._delegation_key(url, now, grant.expiry)
        except (PermissionDenied, _AccountAway) as error:
            if ours:
                raise
            return "", f"{error}; its files are asked for anonymously"
        grant = msgspec.structs.replace(grant, expiry=min(grant.expiry, held.expires))
        return url.signed_by(delegation_sas(place, grant, held.key)).url, ""

    def _account(self, url: AzureUrl) -> str:
        """The real name of the account: a custom domain does not show it."""
        return self._config.account if url.endpoint in self._config.services else url.account

    @property
    def has_identity(self) -> bool:
        """Whether there is one to sign by, which takes asking Azure now and then."""
        return self._config.identity.exists

    def _is_of_our_cloud(self, url: AzureUrl) -> bool:
        """Whether a token may be shown to a service: it is Microsoft's, and asked over TLS."""
        parts = urlsplit(url.endpoint)
        return parts.scheme == "https" and is_account_host(parts.hostname or "", self._config.cloud)

    def _delegation_key(self, url: AzureUrl, now: datetime, wanted: datetime) -> _Held:
        """A key of the service that is good until `wanted`, or nearly as long as one can be."""
        needed = min(wanted, now + timedelta(days=DELEGATION_DAYS) - EARLIER - _KEY_SLACK)
        with self._lock:
            lock = self._locks.get(url.endpoint) or threading.Lock()
            _remember(self._locks, url.endpoint, lock)
        with lock:  # one asks, the others wait for its answer
            key = self._keys.get(url.endpoint)
            if key is not None and key.expires >= needed:
                return key
            until, refusal = self._refusals.get(url.endpoint, (0.0, None))
            if refusal is not None and time.monotonic() < until:
                raise type(refusal)(str(refusal))
            try:
                key = self._ask_for_key(url, now - EARLIER)
            except (PermissionDenied, _AccountAway) as error:
                _log.warning("%s", error)
                is_away = isinstance(error, _AccountAway)
                if not is_away or url.endpoint not in self._config.services:
                    until = time.monotonic() + (_AWAY_S if is_away else _REFUSED_S)
                    self._note(self._refusals, url, (until, type(error)(str(error))))
                raise
            self._note(self._keys, url, key)
            return key

    def _note(self, memory: dict[str, T], url: AzureUrl, value: T) -> None:
        with self._lock:
            _remember(memory, url.endpoint, value)

    def _ask_for_key(self, url: AzureUrl, start: datetime) -> _Held:
        from azure.core import exceptions

        expires = start + timedelta(days=DELEGATION_DAYS)
        about = f"{url.service} of account {self._account(url)}"
        with _sdk():
            credential = self._identity()
            self._check_identity(credential)
            try:
                got = self._user_key(url, credential, start, expires)
            except exceptions.ServiceRequestError as error:
                raise _AccountAway(f"{about} cannot be reached: {short(error)}") from error
            except exceptions.HttpResponseError as error:
                raise _refusal(about, error) from error
            except exceptions.AzureError as error:
                raise StorageUnavailable(f"{about} cannot be asked: {short(error)}") from error
        key = DelegationKey(
            oid=got.signed_oid,
            tid=got.signed_tid,
            start=got.signed_start,
            expiry=got.signed_expiry,
            service=got.signed_service,
            version=got.signed_version,
            value=got.value,
        )
        return _Held(key, expires)

    def _check_identity(self, credential: TokenCredential) -> None:
        """Raises, unless there is a token, which the credential keeps: so that a fault of ours is
        not taken for an account's refusal."""
        from azure.core import exceptions
        from azure.identity import CredentialUnavailableError

        remedy = "AZURE_CLIENT_ID, AZURE_SECRET, AZURE_TENANT and AZURE_IDENTITY set it"
        try:
            credential.get_token(_SCOPE)
        except CredentialUnavailableError as error:
            text = f"this server finds no Azure identity: {short(error)}; {remedy}"
            raise StorageUnavailable(text) from error
        except exceptions.AzureError as error:
            if was_answered(error):
                text = f"this server's Azure identity is refused: {short(error)}; {remedy}"
                raise StorageError(text) from error
            text = f"Azure cannot be asked for a token now: {short(error)}"
            raise StorageUnavailable(text) from error

    def _identity(self) -> TokenCredential:
        with self._lock:
            if self._credential is None:
                self._credential = credential_of(self._config.identity)
            return self._credential

    def _transport(self) -> Any:
        """As `storage.transport` has it: proxies that the environment names are not used."""
        from azure.core.pipeline.transport import RequestsTransport

        verify = authorities(self._config.identity.ca_bundle)
        return RequestsTransport(use_env_settings=False, connection_verify=verify, **_TIMEOUTS)

    def _user_key(
        self, url: AzureUrl, credential: TokenCredential, start: datetime, expires: datetime
    ) -> Any:
        """What Get User Delegation Key answers; raises the SDK's errors."""
        retries: dict[str, Any] = {"initial_backoff": 1, "increment_base": 2, "retry_total": 2}
        if url.endpoint not in self._config.services:
            retries["retry_total"] = 1  # it may be a name that somebody mistyped
        transport = self._transport()
        if isinstance(url, BlobUrl):
            from azure.storage.blob import BlobServiceClient, ExponentialRetry

            with BlobServiceClient(
                url.endpoint,
                credential,
                retry_policy=ExponentialRetry(**retries),
                transport=transport,
            ) as blobs:
                return blobs.get_user_delegation_key(key_start_time=start, key_expiry_time=expires)
        from azure.storage.fileshare import ExponentialRetry as FilesRetry
        from azure.storage.fileshare import ShareServiceClient

        with ShareServiceClient(
            url.endpoint,
            credential=credential,
            token_intent="backup",  # noqa: S106 - no password but a reason: it is not for a file
            retry_policy=FilesRetry(**retries),
            transport=transport,
        ) as shares:
            return shares.get_user_delegation_key(start=start, expiry=expires)


def _refusal(about: str, error: Any) -> StorageError:
    status, code = error.status_code, getattr(error, "error_code", "") or ""
    answer = f"HTTP {status} {getattr(code, 'value', code)}".rstrip()
    if status in (400, 401, 403, 404):
        return PermissionDenied(
            f"{about} gives this server's identity no user delegation key: {answer}; the identity"
            " needs the role Storage Blob Delegator (Storage File Delegator) on the account"
        )
    if status is None or status in (408, 429) or status >= 500:
        return StorageUnavailable(f"{about} gives no user delegation key now: {answer}")
    return StorageError(f"{about} gives no user delegation key: {answer}")


def _remember(memory: dict[str, T], name: str, value: T) -> None:
    """Put it into a memory of bounded size, as its newest entry."""
    memory.pop(name, None)
    memory[name] = value
    if len(memory) > _MOST_ACCOUNTS:
        del memory[next(iter(memory))]


@contextlib.contextmanager
def _sdk() -> Iterator[None]:
    """Says what to install where the SDKs are not. Whatever else the SDKs raise is an error of
    storage: they are others' code, of which several versions do."""
    try:
        yield
    except TesazureError:
        raise
    except ImportError as error:
        raise StorageError(
            "signing for Azure storage needs Microsoft's SDKs: pip install 'tesazure[azure]'"
        ) from error
    except Exception as error:
        _log.exception("Microsoft's SDK failed")
        text = f"Microsoft's SDK failed: {type(error).__name__}: {short(error)}"
        raise StorageError(text) from error

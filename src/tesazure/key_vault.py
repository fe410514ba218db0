"""What an Azure Key Vault holds for this server: secrets named `TESAZURE-…`.

Needs the packages of the extra `azure`, which are imported when a vault is used. Sources: "Azure
Key Vault REST API reference", Get Secrets, Get Secret, Set Secret, Update Secret; "About Azure Key
Vault secrets".
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import msgspec

from tesazure.azure_identity import Identity, credential_of, short, was_answered
from tesazure.errors import ConfigurationError, VaultUnavailable
from tesazure.trust import authorities

PREFIX = "TESAZURE-"
"""What the names of our secrets begin with, in any case: the service ignores it. Others' secrets
may lie beside them."""
START_S = 30.0
"""Seconds for which a server that starts asks again for a vault that does not answer."""
_TIMEOUTS_S = {"connection_timeout": 5, "read_timeout": 10}
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 5.0
_ROLE = "give it the role Key Vault Secrets User, or list and get in the vault's access policy"
_NOT_THERE = f"{PREFIX}NO-SUCH-SETTING"
_WRITERS_ROLE = (
    "give it the role Key Vault Secrets Officer, or list, get and set in the vault's access policy"
)


class VaultConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Which vault, and who we are to it. Holds a secret."""

    url: str
    identity: Identity = Identity()
    verify_challenge: bool = True
    """Whether the vault's host must lie in the domain that it wants a token for."""

    def __repr__(self) -> str:
        return f"VaultConfig({self.url})"


class Contents(msgspec.Struct, frozen=True):
    """What a vault holds for us: names, as they are there, and values. `notes` say, without any
    value, which secrets are not used and why; `unusable` are the names of these."""

    secrets: dict[str, str]
    notes: tuple[str, ...] = ()
    unusable: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Contents({len(self.secrets)} secrets)"


def secret_of(setting: str) -> str:
    """The name of the secret that holds a setting."""
    return PREFIX + setting.upper().replace("_", "-")


def setting_of(secret: str) -> str:
    """The setting, in lower case, that a secret of such a name holds."""
    return secret[len(PREFIX) :].replace("-", "_").lower()


class KeyVault:
    """A vault, read as often as it is asked for. One thread at a time."""

    def __init__(self, config: VaultConfig) -> None:
        self.config = config
        self._role = _ROLE
        self._host = urlsplit(config.url).netloc
        self._client: Any = None

    def read(self) -> Contents:
        """All secrets for us that are enabled and valid now. Waits for Azure, a minute at worst.

        Raises VaultUnavailable when the vault, or whoever issues tokens, cannot be asked now;
        ConfigurationError when they refuse us, and without the packages.
        """
        with self._explained():
            client = self._connected()
            secrets: dict[str, str] = {}
            notes, unusable = [], []
            for found in client.list_properties_of_secrets():
                name = found.name or ""
                if not name.upper().startswith(PREFIX):
                    continue
                if reason := _unusable(found):
                    notes.append(f"Key Vault secret {name} {reason}: it is not used")
                    unusable.append(name)
                elif (value := self._value(client, name)) is not None:
                    secrets[name] = value
                else:
                    unusable.append(name)
            return Contents(secrets, tuple(notes), tuple(unusable))

    def read_within(self, seconds: float, say: Callable[[str], None]) -> Contents:
        """As `read`, tried again until `seconds` have gone by; `say` is told why, once. Errors as
        of `read`."""
        end, pause_s, told = time.monotonic() + seconds, _FIRST_PAUSE_S, False
        while True:
            try:
                return self.read()
            except VaultUnavailable as error:
                if time.monotonic() + pause_s > end:
                    raise
                if not told:
                    say(f"{error}; trying again for {seconds:g} s")
                    told = True
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def demand_writable(self) -> None:
        """Changes nothing: what is asked for is a change of a secret that is not there, and who may
        not change any is told that instead. Errors as of `read`."""
        self._role = _WRITERS_ROLE
        with self._explained():
            from azure.core import exceptions

            with contextlib.suppress(exceptions.ResourceNotFoundError):
                self._connected().update_secret_properties(_NOT_THERE, "0" * 32, enabled=False)

    def write(self, values: Mapping[str, str], mark: Mapping[str, str]) -> None:
        """Have the vault hold these settings, by name, and no others of those that were written
        here with the same mark, which are tags; empty ones are none. What is right stays as it is;
        of the rest there is a new version. What is to go is disabled, not deleted: a deleted secret
        keeps its name for months, and whoever may write must not purge. Errors as of `read`."""
        self._role = _WRITERS_ROLE
        wanted = {secret_of(name): value for name, value in values.items() if value}
        held = {name.upper(): value for name, value in self.read().secrets.items()}
        with self._explained():
            client = self._connected()
            for name in sorted(wanted):
                if held.get(name) != wanted[name]:
                    client.set_secret(name, wanted[name], tags=dict(mark))
            for found in list(client.list_properties_of_secrets()):
                is_ours = mark.items() <= (found.tags or {}).items()
                if is_ours and found.enabled and (found.name or "").upper() not in wanted:
                    client.update_secret_properties(found.name, enabled=False)

    def _connected(self) -> Any:
        if self._client is None:
            from azure.core.pipeline.transport import RequestsTransport
            from azure.keyvault.secrets import SecretClient

            self._client = SecretClient(
                self.config.url,
                credential_of(self.config.identity),
                verify_challenge_resource=self.config.verify_challenge,
                retry_total=1,
                # As whoever issues the tokens is asked: without a proxy of the environment.
                transport=RequestsTransport(
                    use_env_settings=False,
                    connection_verify=authorities(self.config.identity.ca_bundle),
                    **_TIMEOUTS_S,
                ),
            )
        return self._client

    def _value(self, client: Any, name: str) -> str | None:
        """None for a secret that was deleted or disabled since it was listed."""
        from azure.core import exceptions

        try:
            return str(client.get_secret(name).value or "")
        except exceptions.ResourceNotFoundError:
            return None
        except exceptions.HttpResponseError as error:
            if error.status_code == 403 and "SecretDisabled" in str(error):
                return None
            raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            from azure.core import exceptions
            from azure.identity import CredentialUnavailableError
        except ImportError as error:
            raise self._wrong("needs packages: pip install 'tesazure[azure]'") from error
        try:
            yield
        except ImportError as error:
            raise self._wrong("needs packages: pip install 'tesazure[azure]'") from error
        except CredentialUnavailableError as error:
            raise self._unavailable(f"no Azure identity is found: {short(error)}") from error
        except exceptions.HttpResponseError as error:
            raise self._answered(error) from error
        except exceptions.AzureError as error:
            raise self._unavailable(short(error)) from error
        except ValueError as error:  # what the SDK says of a challenge that it does not trust
            raise self._wrong(
                f"answers as no vault of this cloud: {short(error)}; check the URL and CLOUD, or"
                " set KEYVAULT_VERIFY_CHALLENGE=false"
            ) from error

    def _answered(self, error: Any) -> ConfigurationError | VaultUnavailable:
        from azure.core.exceptions import ClientAuthenticationError

        status = error.status_code
        of_vault = status is not None and (
            urlsplit(error.response.request.url).netloc == self._host
        )
        if isinstance(error, ClientAuthenticationError) and not of_vault:
            if was_answered(error):
                remedy = "check AZURE_CLIENT_ID, AZURE_SECRET, AZURE_TENANT (by its id)"
                return self._wrong(
                    f"the identity to read it by is refused: {short(error)}; {remedy}"
                )
            return self._unavailable(f"there is no token to read it by: {short(error)}")
        if status is None or status in (408, 429) or status >= 500:
            return self._unavailable(f"HTTP {status}" if status else short(error))
        if status in (401, 403):
            return self._wrong(f"refuses this server's identity: {short(error)}; {self._role}")
        if status == 409:
            # "Key Vault soft-delete overview".
            return self._wrong(
                f"keeps a deleted secret of that name: {short(error)}; recover or purge it"
            )
        return self._wrong(f"answers as no vault does: HTTP {status}: {short(error)}")

    def _wrong(self, text: str) -> ConfigurationError:
        return ConfigurationError([f"KEYVAULT_URL: {self._host}: {text}"])

    def _unavailable(self, text: str) -> VaultUnavailable:
        return VaultUnavailable(f"Key Vault {self._host} cannot be read now: {text}")


def _unusable(found: Any) -> str:
    """Why a secret must not be used now; empty when it may. Key Vault itself would give it."""
    now = datetime.now(UTC)
    if found.enabled is False:
        return "is disabled"
    if found.expires_on is not None and found.expires_on <= now:
        return f"has expired on {found.expires_on:%Y-%m-%d}"
    if found.not_before is not None and found.not_before > now:
        return f"is not valid before {found.not_before:%Y-%m-%d %H:%M} UTC"
    return ""

"""Who this server is to Azure: a service principal, or the identity of where it runs.

Needs the packages of the extra `azure`, which are imported when a credential is made.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import msgspec

from tesazure.trust import authorities

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential

MICROSOFTS_AUTHORITIES = frozenset(
    {
        "https://login.microsoftonline.com",
        "https://login.microsoftonline.us",
        "https://login.partner.microsoftonline.cn",
        "https://login.chinacloudapi.cn",
    }
)
"""Where tokens come from in Microsoft's clouds ("Microsoft Entra authentication and national
clouds")."""

_TIMEOUTS_S = {"connection_timeout": 10, "read_timeout": 10}
"""Of a request; the SDK's own are five minutes."""
_ATTEMPTED = "Attempted credentials:"

# The SDKs' warnings repeat what our errors say. Where no log is set up, such as at the command
# line, Python would print them.
logging.getLogger("azure").addHandler(logging.NullHandler())


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """How to prove who we are. With a `secret` it is a service principal; `default` means whatever
    DefaultAzureCredential finds: a managed or workload identity, `az login`. Holds a secret."""

    tenant: str = ""
    client_id: str = ""
    """Without a secret: which of several managed identities."""
    secret: str = ""
    default: bool = False
    authority: str = "https://login.microsoftonline.com"
    ca_bundle: str = ""
    """PEM file of the authorities that TLS trusts; empty: the system's."""

    @property
    def exists(self) -> bool:
        """Whether there is anything to prove."""
        return bool(self.secret) or self.default

    def __repr__(self) -> str:
        return "Identity(…)"


def credential_of(identity: Identity) -> TokenCredential:
    """A credential that keeps its tokens and gets new ones. Asks nobody yet. Raises ImportError
    without the packages."""
    from azure.core.pipeline.transport import RequestsTransport
    from azure.identity import (
        ClientSecretCredential,
        DefaultAzureCredential,
        WorkloadIdentityCredential,
    )

    options: dict[str, Any] = {
        "authority": identity.authority,
        # Microsoft's own directory of clouds is asked about no other authority.
        "disable_instance_discovery": identity.authority not in MICROSOFTS_AUTHORITIES,
        # As storage has it: proxies that the environment names are not used.
        "transport": RequestsTransport(
            use_env_settings=False,
            connection_verify=authorities(identity.ca_bundle),
            **_TIMEOUTS_S,
        ),
    }
    if identity.secret:
        principal = identity.tenant, identity.client_id, identity.secret
        return ClientSecretCredential(*principal, retry_total=1, **options)
    own = {"client_id": identity.client_id} if identity.client_id else {}
    # DefaultAzureCredential would find this one, too, but asks the public cloud for its tokens.
    with contextlib.suppress(ValueError):  # there is none here
        return WorkloadIdentityCredential(retry_total=1, **own, **options)
    if identity.client_id:
        options["managed_identity_client_id"] = identity.client_id
    return DefaultAzureCredential(exclude_workload_identity_credential=True, **options)


def token_of(credential: TokenCredential, scope: str) -> str:
    """A token for `scope`, a kept one while it is good. Raises ConnectionError with the reason."""
    from azure.core.exceptions import AzureError

    try:
        return credential.get_token(scope).token
    except AzureError as error:
        raise ConnectionError(f"no token of Entra ID: {short(error)}") from error


def was_answered(error: Exception) -> bool:
    """Whether an error of azure-identity is an authority's answer. One that could not be asked is
    wrapped in the same class, and of several identities that were tried nothing can be told."""
    from azure.core import exceptions

    if _ATTEMPTED in str(error):
        return False
    unasked = (exceptions.ServiceRequestError, exceptions.ServiceResponseError)
    while not isinstance(error, unasked):
        response = getattr(error, "response", None)
        if response is not None:
            return bool(response.status_code < 500 and response.status_code != 429)
        inner = error.__cause__ or error.__context__
        if not isinstance(inner, Exception):
            return isinstance(error, exceptions.ClientAuthenticationError)
        error = inner
    return False


def short(error: Exception) -> str:
    """The first sentence of an SDK's message: what follows are trace ids and advice. Where it tried
    several identities, what each said."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    tried = [line.strip() for line in lines if line.startswith("\t")]
    if _ATTEMPTED in str(error) and tried:
        return "; ".join(_sentence(line) for line in tried)[:1000]
    return _sentence(lines[0])[:500]


def _sentence(text: str) -> str:
    return text.partition(". ")[0].rstrip(".")

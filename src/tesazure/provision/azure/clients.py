"""Azure Resource Manager, through Microsoft's SDKs: who asks, how long, and errors in our words."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from tesazure import __version__
from tesazure.azure_identity import Identity, credential_of, was_answered
from tesazure.provision.azure.config import Place
from tesazure.provision.azure.words import Refusal, code_of, failure_of
from tesazure.provision.base import Tell
from tesazure.provisioning import Failure, ProvisionFailed
from tesazure.trust import authorities

if TYPE_CHECKING:
    from azure.core.polling import LROPoller
    from azure.mgmt.authorization.v2022_04_01 import AuthorizationManagementClient
    from azure.mgmt.batch import BatchManagementClient
    from azure.mgmt.containerregistry import ContainerRegistryManagementClient
    from azure.mgmt.resource.resources import ResourceManagementClient
    from azure.mgmt.storage import StorageManagementClient

T = TypeVar("T")

POLL_S = 5
"""Between two looks at an operation, where Azure does not say how long; the SDKs' own is 30."""
TRIES = 4
"""Again, after the first one: some ten seconds of them without an answer."""
LONGEST_PAUSE_S = 120.0
"""Where Azure wants to be left alone for longer, the run ends and says so."""
PATIENCE_S = 1200.0
"""For one thing to be made; Azure mostly takes one or two minutes."""
TIMEOUTS_S = {"connection_timeout": 10, "read_timeout": 60}
_METHODS = ("HEAD", "GET", "PUT", "PATCH", "DELETE", "POST")
_BUSY = frozenset(
    {
        "ConflictingServerOperation",
        "StorageAccountBeingCreated",
        "StorageAccountOperationInProgress",
        "StorageAccountIsNotProvisioned",
        "OperationInProgress",
        "PrincipalNotFound",
    }
)
"""Codes of what passes once something else of ours has ended, or is known everywhere."""


class Refused(ProvisionFailed):
    """Azure answered, and not as was wished; or did not answer."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        super().__init__(failure_of(refusal))

    @property
    def is_absent(self) -> bool:
        """Whether there is no such thing, as there cannot be where its kind is not registered."""
        if self.code == "MissingSubscriptionRegistration":
            return True
        return self.refusal.status == 404 and self.code != "SubscriptionNotFound"

    @property
    def code(self) -> str:
        """Azure's own, or ours where there was no answer."""
        return code_of(self.refusal)


class Principal(msgspec.Struct, frozen=True):
    """Somebody to whom roles are given."""

    id: str
    """Object id in the tenant."""
    kind: str = "ServicePrincipal"


class Clients:
    """One subscription, seen as the request's principal or as the server. Blocks; may be used by
    one thread at a time."""

    def __init__(self, place: Place) -> None:
        config, principal = place.config, place.request.service_principal
        self._identity = config.identity
        if principal is not None:
            self._identity = Identity(
                tenant=principal.tenant,
                client_id=principal.client_id,
                secret=principal.secret,
                authority=config.authority,
                ca_bundle=config.ca_bundle,
            )
        self._place = place
        self._opened = contextlib.ExitStack()

    def close(self) -> None:
        """Let go."""
        self._opened.close()

    @functools.cached_property
    def resources(self) -> ResourceManagementClient:
        """Groups, providers, and what has no client of its own."""
        from azure.mgmt.resource.resources import ResourceManagementClient

        return self._open(ResourceManagementClient)

    @functools.cached_property
    def storage(self) -> StorageManagementClient:
        """Storage accounts."""
        from azure.mgmt.storage import StorageManagementClient

        return self._open(StorageManagementClient)

    @functools.cached_property
    def batch(self) -> BatchManagementClient:
        """Batch accounts."""
        from azure.mgmt.batch import BatchManagementClient

        return self._open(BatchManagementClient)

    @functools.cached_property
    def roles(self) -> AuthorizationManagementClient:
        """Role assignments."""
        # Its other versions are of classic administrators and reviews; the image has none of them.
        from azure.mgmt.authorization.v2022_04_01 import AuthorizationManagementClient

        return self._open(AuthorizationManagementClient)

    @functools.cached_property
    def registries(self) -> ContainerRegistryManagementClient:
        """Container registries."""
        from azure.mgmt.containerregistry import ContainerRegistryManagementClient

        return self._open(ContainerRegistryManagementClient)

    def asker(self) -> Principal:
        """Who asks, as its tokens say. Raises ProvisionFailed when there are none."""
        return self._principal(self._credential)

    def server(self) -> Principal:
        """Who the server itself is. Raises ProvisionFailed when nobody says so."""
        if self._place.request.service_principal is None:
            return self.asker()
        return self._principal(self._credential_of(self._place.config.identity))

    @functools.cached_property
    def _credential(self) -> Any:
        return self._credential_of(self._identity)

    def _credential_of(self, identity: Identity) -> Any:
        credential = credential_of(identity)
        if isinstance(credential, contextlib.AbstractContextManager):
            self._opened.enter_context(credential)
        return credential

    def _principal(self, credential: Any) -> Principal:
        with explained():
            token = credential.get_token(self._scope).token
        claims = _claims(token)
        if not (found := str(claims.get("oid", ""))):
            text = "the token of the identity does not say who it is (no claim oid)"
            remedy = "use a service principal or a managed identity"
            raise ProvisionFailed(Failure("UnknownPrincipal", text, remedy))
        is_user = claims.get("idtyp", "user" if "scp" in claims else "app") == "user"
        return Principal(found, "User" if is_user else "ServicePrincipal")

    @property
    def _scope(self) -> str:
        return f"{self._place.config.arm_url}/.default"

    def _open(self, client: Callable[..., T]) -> T:
        from azure.core.pipeline.transport import RequestsTransport

        config = self._place.config
        made: Any = client(
            self._credential,
            self._place.request.subscription_id,
            base_url=config.arm_url,
            credential_scopes=[self._scope],
            retry_policy=_retrying(),
            polling_interval=POLL_S,
            user_agent=f"tesazure/{__version__}",
            transport=RequestsTransport(
                # As storage has it: proxies that the environment names are not used.
                use_env_settings=False,
                connection_verify=authorities(config.ca_bundle),
                **TIMEOUTS_S,
            ),
        )
        self._opened.enter_context(made)
        return cast("T", made)


def _retrying() -> Any:
    from azure.core.pipeline.policies import RetryPolicy

    class Retrying(RetryPolicy[Any, Any]):
        """All that is asked here may be asked twice, also by POST."""

        def configure_retries(self, options: dict[str, Any]) -> dict[str, Any]:
            options.setdefault("retry_on_methods", _METHODS)
            return super().configure_retries(options)

        def is_retry(self, settings: dict[str, Any], response: Any) -> bool:
            if (self.get_retry_after(response) or 0) > LONGEST_PAUSE_S:
                return False
            return bool(super().is_retry(settings, response))

    return Retrying(retry_total=TRIES, retry_status=TRIES)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Errors of the SDKs become Refused, which keeps nothing of what was sent."""
    from azure.core import exceptions

    try:
        yield
    except exceptions.HttpResponseError as error:
        raise Refused(_refusal(error)) from error
    except exceptions.AzureError as error:
        raise Refused(Refusal("", _first_line(error))) from error


def found(ask: Callable[[], T]) -> T | None:
    """What `ask` returns; None where there is no such thing. Raises ProvisionFailed."""
    try:
        with explained():
            return ask()
    except Refused as error:
        if error.is_absent:
            return None
        raise


def waited(what: str, begin: Callable[[], LROPoller[T]], tell: Tell) -> T:
    """The outcome of a long-running operation, `begin` being asked again as long as another one of
    the same thing is under way. Raises ProvisionFailed."""
    for left_s in pauses(tell, what):
        try:
            with explained():
                poller = begin()
                poller.wait(left_s)
                if poller.done():
                    return poller.result()
        except Refused as error:
            if error.code not in _BUSY:
                raise
    raise too_late(what)


def deleted(what: str, begin: Callable[[], LROPoller[None]]) -> None:
    """As `waited`, for a deletion; also where there is no such thing."""
    found(lambda: waited(f"{what} to be deleted", begin, lambda _: None))


def asked(what: str, ask: Callable[[], T], tell: Tell) -> T:
    """What `ask` returns, asked again as long as something else of ours is under way. Raises
    ProvisionFailed."""
    for _ in pauses(tell, what):
        try:
            with explained():
                return ask()
        except Refused as error:
            if error.code not in _BUSY:
                raise
    raise too_late(what)


def pauses(tell: Tell, what: str) -> Iterator[float]:
    """Seconds that are left of PATIENCE_S, each time after a pause, the first time at once."""
    end, pause_s = time.monotonic() + PATIENCE_S, 0.25
    while (left_s := end - time.monotonic()) > 0:
        yield left_s
        tell(f"waiting for {what}")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, float(POLL_S))


def too_late(what: str) -> ProvisionFailed:
    """PATIENCE_S have gone by."""
    text = f"{what} is not ready after {PATIENCE_S / 60:g} minutes"
    remedy = "look at it in the portal; then post the same request again, which goes on waiting"
    return ProvisionFailed(Failure("TooLate", text, remedy))


def text_of(value: Any) -> str:
    """What Azure says: the SDKs make enums of words that they know."""
    return str(getattr(value, "value", value))


def _refusal(error: Any) -> Refusal:
    from azure.core.exceptions import ClientAuthenticationError

    told = getattr(error, "error", None)
    code, message = getattr(told, "code", None), getattr(told, "message", None)
    if isinstance(error, ClientAuthenticationError) and not code:
        return _of_identity(error)
    status = error.status_code or 0
    return Refusal(str(code or ""), str(message or _first_line(error)), status)


def _of_identity(error: Exception) -> Refusal:
    """What azure-identity says: whoever issues tokens has refused, or could not be asked."""
    said = _first_line(error)
    if "authority configuration" in said:  # how it says that there is no such tenant
        return Refusal("UnknownTenant", said.partition(". ")[0], 401)
    return Refusal("", said, 401 if was_answered(error) else 0)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:1000]


def _claims(token: str) -> dict[str, Any]:
    """What an access token says of its holder; empty if it is no JWT. Not verified: Azure is the
    one to do that, and whoever made it up could only name somebody else to be given roles."""
    body = token.split(".")[1] if token.count(".") == 2 else ""
    try:
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except ValueError:
        return {}
    return claims if isinstance(claims, dict) else {}

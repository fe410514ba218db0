"""What a client asks of the provisioner, and how far a run of it is: data, and the rules of names.

Pure: whether a location exists or a name is free, Azure is asked by `provision`.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Literal

import msgspec

from tesazure.errors import Conflict, FieldError, InvalidInput, TesazureError
from tesazure.validate import shape

StepState = Literal["waiting", "running", "done", "failed", "skipped"]
RunState = Literal["INPROGRESS", "CREATED", "ERROR", "DELETING", "DELETED"]

UNENDED: tuple[RunState, ...] = ("INPROGRESS", "DELETING")

SKUS = (
    "Standard_LRS",
    "Standard_ZRS",
    "Standard_GRS",
    "Standard_RAGRS",
    "Standard_GZRS",
    "Standard_RAGZRS",
)
"""Of general-purpose v2 accounts that hold blobs and file shares, as is needed; those of Premium
hold one or the other ("Storage account overview")."""
MODES = ("BatchService", "UserSubscription")

RUN_TAG = "tesazure-run"
"""Every resource that a run makes carries its GUID in this tag,"""
INSTALLATION_TAG = "tesazure-installation"
"""and in this one the identity of the store that the run is recorded in."""
DEFAULT_GROUP = "tesazure"
DEFAULT_LOCATION = "eastus"
DEFAULT_SKU = "Standard_LRS"

_MOST_TAGS = 15 - 2
"""Of a storage account, without our own ("Storage Accounts - Create"); others may have 50."""
_TAG_NAME = 128
"""Characters of a tag's name: 512, but 128 with a storage account."""
_TAG_VALUE = 256


class ServicePrincipal(msgspec.Struct, frozen=True):
    """In whose name Azure is asked. Holds a secret ("" once it is forgotten): never encoded with
    it, and not shown."""

    client_id: str
    secret: str
    tenant: str

    def __repr__(self) -> str:
        return f"ServicePrincipal(client_id={self.client_id!r}, tenant={self.tenant!r})"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to make. Names that are "" are chosen by `named`."""

    subscription_id: str
    service_principal: ServicePrincipal | None = None
    """None: the server's own identity."""
    resource_group: str = ""
    location: str = ""
    storage_account_name: str = ""
    storage_sku: str = ""
    batch_account_name: str = ""
    pool_allocation_mode: str = "BatchService"
    tags: dict[str, str] = {}
    vnet: str = ""
    """An existing virtual network: its resource id, or its name in the resource group."""
    subnet: str = ""
    """The subnet of it in which nodes get their addresses."""
    key_vault: str = ""
    """An existing Key Vault for the settings: its name or URL. Without one they are kept sealed in
    the database."""
    registry: str = ""
    """A container registry to make, or an existing one in the resource group; "": none."""
    dry_run: bool = False
    """Only say what would be made."""


class Failure(msgspec.Struct, frozen=True):
    """Why a step failed: Azure's code (or ours), its message, and what to do about it. Without
    secrets."""

    code: str
    message: str
    remedy: str = ""


class ProvisionFailed(TesazureError):
    """A step cannot go on, or Azure cannot be asked. A run ends with ERROR; the same request,
    posted again, continues it."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(f"{failure.code}: {failure.message}")


class StepRecord(msgspec.Struct, kw_only=True):
    """How far one step is."""

    name: str
    title: str
    state: StepState = "waiting"
    started: float | None = None
    """Seconds since the epoch."""
    ended: float | None = None
    resource_id: str = ""
    made: bool = False
    """This run made it, so this run's removal removes it."""
    detail: str = ""
    failure: Failure | None = None


class Run(msgspec.Struct, kw_only=True):
    """A request on its way, as the store keeps it and the status shows it. Without any secret."""

    id: str
    """A GUID, the same whenever the same is asked of the same installation."""
    fingerprint: str
    request: Request
    """With all names, without the principal's secret."""
    state: RunState = "INPROGRESS"
    steps: list[StepRecord] = []
    created: float
    """Seconds since the epoch."""
    updated: float
    note: str = ""
    server: str = ""
    """Who works on it, or did last."""


class StoredRun(msgspec.Struct, frozen=True):
    """A Run as it is in the store."""

    run: Run
    version: int
    held: bool
    """A server holds its lease: it works on it, or did a moment ago."""

    @property
    def status(self) -> str:
        """The word for clients. UNKNOWN: it is not at its end, and no server works on it; one that
        runs takes it up soon."""
        return "UNKNOWN" if self.run.state in UNENDED and not self.held else self.run.state


class IdleCost(msgspec.Struct, frozen=True):
    """What one resource costs while no task runs, in US dollars a month; None: not known, or by
    use."""

    what: str
    usd_a_month: float | None
    note: str = ""


class FoundStep(msgspec.Struct, frozen=True, kw_only=True):
    """What a dry run says of a step."""

    name: str
    title: str
    found: Literal["missing", "ours", "foreign", "right"]
    resource_id: str = ""
    detail: str = ""


class DryRun(msgspec.Struct, frozen=True, kw_only=True):
    """The reply to a dry run: what there is, what would be made, and what it costs while idle."""

    id: str
    """The GUID that a run would have."""
    request: Request
    steps: list[FoundStep]
    idle_cost: list[IdleCost]


def request_of(body: bytes) -> Request:
    """The request in a body. Raises InvalidInput with everything that is wrong with it and can be
    known without asking Azure. No message holds the principal's secret."""
    raw = _object(body)
    unknown: list[str] = []
    errors = list(shape(raw, Request, unknown))
    wrong = {_top(error.field) for error in errors}
    sound = {name: value for name, value in raw.items() if name not in wrong}
    request = _tidied(msgspec.convert({"subscription_id": "", **sound}, Request))
    errors += _unknown(unknown)
    errors += (error for error in _rules(request) if _top(error.field) not in wrong)
    if errors:
        raise InvalidInput(errors)
    return request


def principal_of(body: bytes) -> ServicePrincipal | None:
    """The `service_principal` of a body that holds nothing else, as a deletion's may; None if there
    is none. Raises InvalidInput."""

    class _Deletion(msgspec.Struct):
        service_principal: ServicePrincipal | None = None

    if not body.strip():
        return None
    raw = _object(body)
    unknown: list[str] = []
    errors = list(shape(raw, _Deletion, unknown))
    errors += (FieldError(name, "is not a field of a deletion") for name in unknown)
    principal = None if errors else msgspec.convert(raw, _Deletion).service_principal
    if principal is not None:
        errors += _principal(principal)
    if errors:
        raise InvalidInput(errors)
    return principal


def without_secret(request: Request) -> Request:
    """The request as it may be stored and shown."""
    principal = request.service_principal
    if principal is None or not principal.secret:
        return request
    forgotten = msgspec.structs.replace(principal, secret="")
    return msgspec.structs.replace(request, service_principal=forgotten)


def fingerprint(request: Request) -> str:
    """The same for two requests that ask for the same, whoever asks Azure for it: of everything but
    the principal and `dry_run`. So a run whose principal lacks rights goes on with another one."""
    asked = msgspec.structs.replace(request, service_principal=None, dry_run=False)
    return hashlib.sha256(msgspec.json.encode(asked, order="sorted")).hexdigest()


def run_id_of(installation: str, print_of_request: str) -> str:
    """The GUID of the run of a request: the same on all servers of an installation, so a dry run
    shows the very names that a run will use."""
    name = hashlib.sha256(f"{installation}/{print_of_request}".encode()).digest()
    return str(uuid.UUID(bytes=name[:16], version=4))


def named(request: Request, run_id: str) -> Request:
    """The request with every name that it leaves open: those that are unique in all of Azure are
    made from the run's GUID, so they are the same each time."""
    unique = DEFAULT_GROUP + run_id.replace("-", "")[:12]
    return msgspec.structs.replace(
        request,
        resource_group=request.resource_group or DEFAULT_GROUP,
        location=request.location or DEFAULT_LOCATION,
        storage_account_name=request.storage_account_name or unique,
        storage_sku=request.storage_sku or DEFAULT_SKU,
        batch_account_name=request.batch_account_name or unique,
    )


def demand_no_rival(run_id: str, request: Request, runs: Iterable[Run]) -> None:
    """Raises Conflict, which names it, when another run that has not ended has one of the same
    things under its hands: neither could tell then which of them made it. `request`: with all
    names."""
    for run in runs:
        if run.id != run_id and run.state in UNENDED and _things(run.request) & _things(request):
            raise Conflict(f"{under_way(run)}; its request differs from this one")


def under_way(run: Run) -> str:
    """Why something else has to wait for a run."""
    what = "is being removed" if run.state == "DELETING" else "is under way"
    return f"run {run.id} {what}; wait until it has ended"


def _things(request: Request) -> set[tuple[str, str, str]]:
    """What a run makes or removes under names of the request, as Azure compares them."""
    kinds = ("resource_group", "storage_account_name", "batch_account_name", "registry")
    names = ((kind, getattr(request, kind).lower()) for kind in kinds)
    return {(request.subscription_id, kind, name) for kind, name in names if name}


def _object(body: bytes) -> dict[str, Any]:
    """A body's fields; null is as good as absent."""
    try:
        raw = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput([FieldError("", f"the body is not JSON: {error}")]) from None
    if not isinstance(raw, dict):
        raise InvalidInput([FieldError("", "the body must be a JSON object")])
    return {name: value for name, value in raw.items() if value is not None}


def _top(path: str) -> str:
    """The field of the document that a path leads into."""
    return path.partition(".")[0]


def _unknown(paths: Iterable[str]) -> Iterator[FieldError]:
    # What is mistyped here is made under another name, and paid for.
    of: dict[str, type[msgspec.Struct]] = {"": Request, "service_principal": ServicePrincipal}
    for path in paths:
        parent, _, name = path.rpartition(".")
        fields = [f.name for f in msgspec.structs.fields(of[parent])]
        near = get_close_matches(name.lower(), fields, 1, 0.5)
        known = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(fields)}"
        yield FieldError(path, f"is unknown; {known}")


def _tidied(request: Request) -> Request:
    """As Azure compares: GUIDs without regard to case, a location by its short name."""
    principal = request.service_principal
    if principal is not None:
        principal = ServicePrincipal(
            principal.client_id.lower(), principal.secret, principal.tenant.lower()
        )
    return msgspec.structs.replace(
        request,
        subscription_id=request.subscription_id.lower(),
        service_principal=principal,
        location=request.location.replace(" ", "").lower(),
    )


# Microsoft, "Naming rules and restrictions for Azure resources".
_GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DOMAIN = re.compile(
    r"(?=.{4,253}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+"
)
_GROUP = re.compile(r"[\w.()-]{0,89}[\w()-]")
_VNET = re.compile(r"[A-Za-z0-9]([\w.-]{0,62}\w)?", re.ASCII)
_RULES: Mapping[str, tuple[re.Pattern[str], str]] = {
    "subscription_id": (_GUID, "must be a GUID"),
    "resource_group": (
        _GROUP,
        "must be 1 to 90 letters, digits, '_', '-', '.', '(' or ')', and not end with '.'",
    ),
    "location": (
        re.compile(r"[a-z][a-z0-9]{1,49}"),
        "must be the name of an Azure region, such as westeurope",
    ),
    "storage_account_name": (re.compile(r"[a-z0-9]{3,24}"), "must be 3 to 24 of a-z and 0-9"),
    "batch_account_name": (re.compile(r"[a-z0-9]{3,24}"), "must be 3 to 24 of a-z and 0-9"),
    "subnet": (
        re.compile(r"[A-Za-z0-9]([\w.-]{0,78}\w)?", re.ASCII),
        "must be 1 to 80 letters, digits, '_', '-' or '.'; first no sign, last no '-' or '.'",
    ),
    "registry": (re.compile(r"[A-Za-z0-9]{5,50}"), "must be 5 to 50 letters and digits"),
}
_VNET_ID = re.compile(
    r"/subscriptions/(?P<subscription>[^/]+)/resourceGroups/(?P<group>[^/]+)"
    r"/providers/Microsoft\.Network/virtualNetworks/(?P<name>[^/]+)",
    re.IGNORECASE,
)
_VAULT = re.compile(r"(?!.*--)[A-Za-z][A-Za-z0-9-]{1,22}[A-Za-z0-9]")
_VAULT_URL = re.compile(r"https://[A-Za-z0-9.-]+(:[0-9]{1,5})?/?")


def _rules(request: Request) -> Iterator[FieldError]:
    for name, (pattern, text) in _RULES.items():
        value: str = getattr(request, name)
        if not pattern.fullmatch(value) and (value or name == "subscription_id"):
            yield FieldError(name, text)
    if request.storage_sku and request.storage_sku not in SKUS:
        yield FieldError("storage_sku", f"must be one of {', '.join(SKUS)}")
    if request.pool_allocation_mode not in MODES:
        yield FieldError("pool_allocation_mode", f"must be one of {', '.join(MODES)}")
    elif request.pool_allocation_mode == "UserSubscription" and not request.key_vault:
        # "Batch accounts: user subscription mode".
        yield FieldError("key_vault", "is required by the pool allocation mode UserSubscription")
    if request.service_principal is not None:
        yield from _principal(request.service_principal)
    yield from _network(request)
    if request.key_vault and not (
        _VAULT.fullmatch(request.key_vault) or _VAULT_URL.fullmatch(request.key_vault)
    ):
        text = "must be the name of a Key Vault, or its URL, such as https://NAME.vault.azure.net"
        yield FieldError("key_vault", text)
    yield from _tags(request.tags)


def _principal(principal: ServicePrincipal) -> Iterator[FieldError]:
    here = "service_principal"
    if not _GUID.fullmatch(principal.client_id.lower()):
        yield FieldError(f"{here}.client_id", "must be a GUID, the application's id")
    if not principal.secret:
        yield FieldError(f"{here}.secret", "must not be empty")
    tenant = principal.tenant.lower()
    if not (_GUID.fullmatch(tenant) or _DOMAIN.fullmatch(tenant)):
        yield FieldError(f"{here}.tenant", "must be a GUID, or a domain of the tenant")


def _network(request: Request) -> Iterator[FieldError]:
    vnet, subnet = request.vnet, request.subnet
    if bool(vnet) != bool(subnet):
        missing, given = ("subnet", "vnet") if vnet else ("vnet", "subnet")
        yield FieldError(missing, f"is required with {given}")
    if not vnet:
        return
    found = _VNET_ID.fullmatch(vnet)
    if found is None and not (_VNET.fullmatch(vnet) and len(vnet) >= 2):
        yield FieldError("vnet", "must be the name or the resource id of a virtual network")
    elif found is not None and found["subscription"].lower() != request.subscription_id:
        # "Create a Batch pool in a virtual network".
        yield FieldError("vnet", "must be in the same subscription as the Batch account")


def _tags(tags: Mapping[str, str]) -> Iterator[FieldError]:
    if len(tags) > _MOST_TAGS:
        yield FieldError("tags", f"must be at most {_MOST_TAGS}")
    seen: dict[str, str] = {}
    for name, value in tags.items():
        here = f"tags.{name}"
        if not 0 < len(name) <= _TAG_NAME or re.search(r"[<>%&\\?/\x00-\x1f]", name):
            text = f"must have a name of 1 to {_TAG_NAME} characters, none of < > % & \\ ? /"
            yield FieldError(here, text)
        elif name.lower().startswith(("tesazure-", "microsoft", "azure", "windows")):
            yield FieldError(here, "must not begin with tesazure-, microsoft, azure or windows")
        elif name.lower() in seen:
            yield FieldError(here, f"is the same as {seen[name.lower()]}: case does not count")
        seen.setdefault(name.lower(), name)
        if len(value) > _TAG_VALUE:
            yield FieldError(here, f"must have a value of at most {_TAG_VALUE} characters")

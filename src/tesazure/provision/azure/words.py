"""What Azure's refusals mean, and what to do about them. Pure.

Sources: "Troubleshoot common Azure deployment errors", "Common Error Codes for Storage Resource
Provider", "Microsoft Entra authentication and authorization error codes", "Throttling Resource
Manager requests" (Microsoft).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from tesazure.errors import FieldError
from tesazure.provisioning import Failure

PAGE = "docs/provisioning.md"

_ACTION = re.compile(r"perform actions? '([^']+)' (?:over|on) scope '([^']+)'", re.IGNORECASE)
_LINKED = re.compile(
    r"perform actions?\(?s?\)? '([^']+)' on the linked scope\(s\) '([^']+)'", re.IGNORECASE
)
_OBJECT = re.compile(r"object id '([0-9a-fA-F-]{36})'")
_TRACES = re.compile(r"\s*(Trace|Correlation|Request) ?Id:.*", re.IGNORECASE | re.DOTALL)
_AADSTS = re.compile(r"\bAADSTS\d+\b")

RIGHTS_ADMIN = "Role Based Access Control Administrator"
CONTRIBUTOR = "Contributor"


class Refusal(NamedTuple):
    """What an SDK's error says. `status`: of HTTP; 0: there was no answer."""

    code: str
    message: str
    status: int = 0


class _Meaning(NamedTuple):
    remedy: str
    field: str = ""
    """Of the request, where another value avoids it."""


_QUOTA = (
    "delete what nobody needs, take another location, or ask for more in the portal under Quotas;"
    " then post the same request again"
)
_TAKEN = "names are unique in all of Azure: choose another one, or leave it out to have one made"
_SIGN_IN = "check the service principal's client_id, secret and tenant"
_LATER = "nothing is wrong with the request: post it again"
_REGISTER = (
    "register the resource provider, `az provider register --namespace NAME`, or give the identity"
    " a role that may, such as Contributor on the subscription"
)
_LOCATION = "choose a location where the subscription may have Batch and storage accounts"
_POLICY = (
    "a policy of the subscription forbids it: ask who administers it for an exemption, or have the"
    " request conform (tags, location, storage_sku)"
)
_THROTTLED = "Azure takes fewer requests for now: post the same request again in some minutes"
_UNREACHED = (
    "see that this server reaches ARM_ENDPOINT and AZURE_AUTHORITY_HOST (firewall, names,"
    " CA_BUNDLE); then post the same request again"
)
_UNKNOWN = _Meaning(f"see what {PAGE} says of failures; then post the same request again")
_NO_SUCH = "check subscription_id, and that the identity has a role in it (`az account list`)"

_MEANINGS: Mapping[str, _Meaning] = {
    "AADSTS700016": _Meaning(
        "no such application in this tenant: check client_id and tenant",
        "service_principal.client_id",
    ),
    "AADSTS7000215": _Meaning(
        "the secret is not one of the application's; give its value, not its id",
        "service_principal.secret",
    ),
    "AADSTS7000222": _Meaning(
        "the secret has expired: make a new one, `az ad app credential reset`",
        "service_principal.secret",
    ),
    "AADSTS90002": _Meaning("no such tenant: check its id", "service_principal.tenant"),
    "AADSTS900023": _Meaning("no such tenant: check its id", "service_principal.tenant"),
    "AccountIsDisabled": _Meaning("enable the account in the portal, or choose another name"),
    "AccountNameInvalid": _Meaning("3 to 24 lower-case letters and digits", "storage_account_name"),
    "AccountAlreadyExists": _Meaning(_TAKEN, "batch_account_name"),
    "AccountExists": _Meaning(_TAKEN, "batch_account_name"),
    "ConflictingServerOperation": _Meaning(_LATER),
    "InsufficientPermissions": _Meaning(
        "in the mode UserSubscription, give Microsoft Azure Batch the role Azure Batch Service"
        " Orchestration Role on the subscription, and access to the secrets of the Key Vault",
        "pool_allocation_mode",
    ),
    "InvalidAuthenticationTokenTenant": _Meaning(
        "the subscription is of another tenant than the identity: check subscription_id and tenant",
        "subscription_id",
    ),
    "InvalidResourceGroupLocation": _Meaning(
        "a resource group of this name was made elsewhere meanwhile: choose another one",
        "resource_group",
    ),
    "InvalidResourceLocation": _Meaning(
        "there is one of this name in another location: choose another name, or that location",
        "location",
    ),
    "InvalidSubscriptionId": _Meaning(_NO_SUCH, "subscription_id"),
    "LocationNotAvailableForResourceGroup": _Meaning(_LOCATION, "location"),
    "LocationNotAvailableForResourceType": _Meaning(_LOCATION, "location"),
    "MissingSubscriptionRegistration": _Meaning(_REGISTER),
    "NoRegisteredProviderFound": _Meaning(_LOCATION, "location"),
    "PrincipalNotFound": _Meaning(
        "Entra ID does not know the new identity everywhere yet: post the same request again in"
        " some minutes"
    ),
    "ReadOnlyDisabledSubscription": _Meaning(
        "the subscription is disabled, mostly for its payment: enable it in the portal",
        "subscription_id",
    ),
    "RequestDisallowedByPolicy": _Meaning(_POLICY),
    "ResourceGroupBeingDeleted": _Meaning(
        "wait until it is gone, or choose another resource group", "resource_group"
    ),
    "ResourceGroupNotFound": _Meaning(
        "somebody deleted the resource group meanwhile: post the same request again"
    ),
    "ScopeLocked": _Meaning(
        "somebody has locked it: remove the lock, `az lock list`, and try again"
    ),
    "SkuNotAvailable": _Meaning("choose another storage_sku or location", "storage_sku"),
    "StorageAccountAlreadyExists": _Meaning(_TAKEN, "storage_account_name"),
    "StorageAccountAlreadyTaken": _Meaning(_TAKEN, "storage_account_name"),
    "StorageAccountInAnotherResourceGroup": _Meaning(
        "it is in another resource group of this subscription: choose another name, or that group",
        "storage_account_name",
    ),
    "SubscriptionNotFound": _Meaning(_NO_SUCH, "subscription_id"),
    "SubscriptionNotRegistered": _Meaning(_REGISTER),
    "UnknownTenant": _Meaning("no such tenant there: check its id", "service_principal.tenant"),
    "SubscriptionDisabled": _Meaning(
        "the subscription is disabled, mostly for its payment: enable it in the portal",
        "subscription_id",
    ),
}
"""Azure's code -> what to do. Codes of quota end in what `_is_quota` knows: services differ."""


def failure_of(refusal: Refusal) -> Failure:
    """The code, message and remedy of what Azure, or who issues its tokens, refused."""
    code = code_of(refusal)
    message = _TRACES.sub("", refusal.message).strip()
    return Failure(code, message or code, _remedy(code, message, refusal.status))


def field_of(refusal: Refusal) -> FieldError:
    """The same, as something wrong with the request."""
    code = code_of(refusal)
    failure = failure_of(refusal)
    field = _MEANINGS[code].field if code in _MEANINGS else ""
    if not field and (is_sign_in(code, refusal.status) or code in _RIGHTS):
        field = "service_principal"
    return FieldError(field, f"{failure.message.rstrip('.')} ({code}); {failure.remedy}")


def code_of(refusal: Refusal) -> str:
    """Azure's own code; of whoever issues tokens its number; else ours for the HTTP status."""
    found = _AADSTS.search(refusal.message)
    if found and refusal.code in ("", "AuthenticationFailed"):
        return found[0]
    if refusal.code:
        return refusal.code
    return f"HTTP{refusal.status}" if refusal.status else "Unreachable"


def is_sign_in(code: str, status: int) -> bool:
    """Whether what is refused is the identity itself."""
    return status == 401 or code.startswith("AADSTS")


_RIGHTS = frozenset({"AuthorizationFailed", "LinkedAuthorizationFailed"})


def _is_quota(code: str) -> bool:
    return code.endswith(("QuotaExceeded", "QuotaReached", "CountPerSubscriptionExceeded"))


def _remedy(code: str, message: str, status: int) -> str:
    right = missing_right(message) if code in _RIGHTS else None
    meant = (
        (right is not None, right or ""),
        (code in _MEANINGS, _MEANINGS.get(code, _UNKNOWN).remedy),
        (_is_quota(code), _QUOTA),
        (is_sign_in(code, status), _SIGN_IN),
        (status == 429, _THROTTLED),
        (status == 0, _UNREACHED),
        (status >= 500 or status == 409, _LATER),
    )
    return next((remedy for holds, remedy in meant if holds), _UNKNOWN.remedy)


def missing_right(message: str) -> str | None:
    """Which role at which scope an AuthorizationFailed asks for, as a remedy; None if it does not
    say which action was refused."""
    found = _LINKED.search(message) or _ACTION.search(message)
    if found is None:
        return None
    holder = _OBJECT.search(message)
    return right_remedy([found[1]], found[2], holder[1] if holder else "")


def right_remedy(actions: list[str], scope: str, principal: str = "") -> str:
    """What gives a principal (its object id) the right to the actions at a scope."""
    scope = _widest(scope)
    roles = sorted({role_for(action) for action in actions})
    who = principal or "OBJECT-ID"
    given = " and ".join(roles)
    commands = "; ".join(
        f'az role assignment create --assignee-object-id {who} --role "{role}" --scope {scope}'
        for role in roles
    )
    return (
        f"give it the role {given} at {scope}, or the role of {PAGE}: {commands}; it may take"
        " some minutes to work"
    )


def role_for(action: str) -> str:
    """The built-in role with the fewest rights that has an action of ours."""
    lowered = action.lower()
    if lowered.startswith("microsoft.authorization/") and not lowered.endswith("/read"):
        return RIGHTS_ADMIN
    if "/subnets/join/" in lowered:
        return "Network Contributor"
    if lowered.endswith("/read") and "checknameavailability" not in lowered:
        return "Reader"
    return CONTRIBUTOR


def _widest(scope: str) -> str:
    """The resource group or subscription of a scope: there a role can be given before the resource
    is made. Of a network, which is there already, the scope itself."""
    if "/microsoft.network/" in scope.lower():
        return scope
    parts = scope.split("/")
    for depth, kind in ((5, "resourcegroups"), (3, "subscriptions")):
        if len(parts) >= depth and parts[depth - 2].lower() == kind:
            return "/".join(parts[:depth])
    return scope


def covers(pattern: str, action: str) -> bool:
    """Whether an action of a role definition, which may hold `*`, means an action."""
    wild = ".*".join(map(re.escape, pattern.split("*")))
    return re.fullmatch(wild, action, re.IGNORECASE) is not None


def is_within(scope: str, wider: str) -> bool:
    """Whether a role at `wider` counts at `scope`."""
    wider = wider.rstrip("/").lower()
    if wider in ("", "/") or "/microsoft.management/managementgroups/" in wider:
        return True
    return (scope.lower() + "/").startswith(wider + "/")

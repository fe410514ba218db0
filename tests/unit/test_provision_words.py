"""Azure's refusals in words that say what to do."""

from __future__ import annotations

import pytest

from tesazure.provision.azure.costs import REGISTRY_USD_A_MONTH, idle_cost
from tesazure.provision.azure.words import (
    Refusal,
    covers,
    failure_of,
    field_of,
    is_within,
    missing_right,
    role_for,
)
from tesazure.provisioning import Request, named

SUBSCRIPTION = "/subscriptions/99999999-2222-3333-4444-555555555555"
GROUP = f"{SUBSCRIPTION}/resourceGroups/lab"
WHO = "44444444-5555-6666-7777-888888888888"


def refused(action: str, scope: str) -> Refusal:
    said = (
        f"The client '{WHO}' with object id '{WHO}' does not have authorization to perform action"
        f" '{action}' over scope '{scope}' or the scope is invalid. If access was recently granted,"
        " please refresh your credentials."
    )
    return Refusal("AuthorizationFailed", said, 403)


@pytest.mark.parametrize(
    ("action", "scope", "role", "at"),
    [
        (
            "Microsoft.Storage/storageAccounts/write",
            f"{GROUP}/providers/Microsoft.Storage/storageAccounts/labstorage",
            "Contributor",
            GROUP,
        ),
        ("Microsoft.Batch/register/action", SUBSCRIPTION, "Contributor", SUBSCRIPTION),
        (
            "Microsoft.Authorization/roleAssignments/write",
            f"{GROUP}/providers/Microsoft.Authorization/roleAssignments/x",
            "Role Based Access Control Administrator",
            GROUP,
        ),
        ("Microsoft.Resources/subscriptions/resourceGroups/read", GROUP, "Reader", GROUP),
    ],
)
def test_a_right_that_is_missing_names_the_role_and_where(
    action: str, scope: str, role: str, at: str
) -> None:
    failure = failure_of(refused(action, scope))
    assert failure.code == "AuthorizationFailed"
    assert action in failure.message
    assert (
        f'az role assignment create --assignee-object-id {WHO} --role "{role}" --scope {at};'
        in failure.remedy
    )
    assert field_of(refused(action, scope)).field == "service_principal"


def test_a_right_on_something_linked_is_understood() -> None:
    subnet = f"{GROUP}/providers/Microsoft.Network/virtualNetworks/net/subnets/nodes"
    said = (
        f"The client '{WHO}' with object id '{WHO}' has permission to perform action"
        f" 'Microsoft.Batch/batchAccounts/write' on scope '{GROUP}'; however, it does not have"
        " permission to perform action(s) 'Microsoft.Network/virtualNetworks/subnets/join/action'"
        f" on the linked scope(s) '{subnet}' (respectively) or the linked scope(s) are invalid."
    )
    remedy = failure_of(Refusal("LinkedAuthorizationFailed", said, 403)).remedy
    assert f'--role "Network Contributor" --scope {subnet}' in remedy


def test_a_refusal_that_names_no_action_has_a_remedy_all_the_same() -> None:
    assert missing_right("You shall not pass.") is None
    assert failure_of(Refusal("AuthorizationFailed", "You shall not pass.", 403)).remedy


@pytest.mark.parametrize(
    ("refusal", "code", "field", "remedy"),
    [
        (Refusal("StorageAccountAlreadyTaken", "m", 409), None, "storage_account_name", "unique"),
        (Refusal("AccountAlreadyExists", "m", 409), None, "batch_account_name", "unique"),
        (Refusal("SubscriptionQuotaExceeded", "m", 409), None, "", "ask for more"),
        (
            Refusal("MaxStorageAccountsCountPerSubscriptionExceeded", "m", 409),
            None,
            "",
            "ask for more",
        ),
        (Refusal("SkuNotAvailable", "m", 409), None, "storage_sku", "storage_sku"),
        (Refusal("LocationNotAvailableForResourceType", "m", 400), None, "location", "location"),
        (Refusal("SubscriptionNotFound", "m", 404), None, "subscription_id", "az account list"),
        (Refusal("RequestDisallowedByPolicy", "m", 403), None, "", "policy"),
        (Refusal("TooManyRequests", "m", 429), None, "", "some minutes"),
        (Refusal("", "m", 502), "HTTP502", "", "post it again"),
        (Refusal("SomethingNew", "m", 400), None, "", "docs/provisioning.md"),
        (Refusal("", "no route to host", 0), "Unreachable", "", "ARM_ENDPOINT"),
        (
            Refusal("ExpiredAuthenticationToken", "m", 401),
            None,
            "service_principal",
            "service principal",
        ),
        (
            Refusal("", "Authentication failed: AADSTS7000215: Invalid client secret.", 401),
            "AADSTS7000215",
            "service_principal.secret",
            "not its id",
        ),
        (
            Refusal("", "Authentication failed: AADSTS7000222: expired.", 401),
            "AADSTS7000222",
            "service_principal.secret",
            "expired",
        ),
        (
            Refusal("", "Authentication failed: AADSTS53003: blocked.", 401),
            "AADSTS53003",
            "service_principal",
            "client_id",
        ),
    ],
    ids=lambda value: (value.code or value.message) if isinstance(value, Refusal) else "",
)
def test_what_azure_says_has_a_field_and_a_remedy(
    refusal: Refusal, code: str | None, field: str, remedy: str
) -> None:
    failure, problem = failure_of(refusal), field_of(refusal)
    assert failure.code == (code or refusal.code)
    assert failure.message == refusal.message
    assert remedy in failure.remedy
    assert problem.field == field
    assert failure.code in problem.message
    assert remedy in problem.message


def test_trace_ids_are_left_out() -> None:
    said = "AADSTS7000215: Invalid client secret provided. Trace ID: 1 Correlation ID: 2"
    assert failure_of(Refusal("", said, 401)).message.endswith("provided.")


def test_roles_have_the_fewest_rights() -> None:
    assert role_for("Microsoft.Batch/batchAccounts/read") == "Reader"
    assert role_for("Microsoft.Batch/batchAccounts/write") == "Contributor"
    assert role_for("Microsoft.Authorization/roleAssignments/read") == "Reader"


@pytest.mark.parametrize(
    ("pattern", "action", "is_covered"),
    [
        ("*", "Microsoft.Batch/batchAccounts/write", True),
        ("*/read", "Microsoft.Batch/batchAccounts/read", True),
        ("*/read", "Microsoft.Batch/batchAccounts/write", False),
        ("Microsoft.Batch/*", "microsoft.batch/batchAccounts/write", True),
        ("Microsoft.Batch/*/write", "Microsoft.Batch/batchAccounts/pools/write", True),
        ("Microsoft.Batch/batchAccounts/write", "Microsoft.BatchX/batchAccounts/write", False),
    ],
)
def test_actions_of_roles_are_wildcards(pattern: str, action: str, is_covered: bool) -> None:
    assert covers(pattern, action) is is_covered


@pytest.mark.parametrize(
    ("wider", "counts"),
    [
        ("/", True),
        ("/providers/Microsoft.Management/managementGroups/all", True),
        (SUBSCRIPTION, True),
        (SUBSCRIPTION.upper(), True),
        (GROUP, True),
        (f"{GROUP}2", False),
        (GROUP[:-1], False),
        (f"{GROUP}/providers/Microsoft.Batch/batchAccounts/b", False),
    ],
)
def test_a_role_counts_where_it_was_given_and_below(wider: str, counts: bool) -> None:
    assert is_within(GROUP, wider) is counts


def test_what_is_idle_costs_nothing_but_a_registry() -> None:
    request = named(Request(subscription_id="s"), WHO)
    assert [line.usd_a_month for line in idle_cost(request)] == [0, 0]
    registry = named(Request(subscription_id="s", registry="labimages"), WHO)
    assert idle_cost(registry)[-1].usd_a_month == REGISTRY_USD_A_MONTH

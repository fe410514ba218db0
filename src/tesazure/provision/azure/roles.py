"""Roles for the identities that do without keys.

Sources: "Azure built-in roles"; "Role Assignments - Create", "- List For Scope" (2022-04-01);
"Troubleshoot Azure RBAC", Symptom - Assigning a role to a new principal sometimes fails
(Microsoft).
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from tesazure.provision.azure.batch import account_of
from tesazure.provision.azure.clients import (
    Clients,
    Principal,
    Refused,
    asked,
    explained,
    found,
)
from tesazure.provision.azure.config import Place
from tesazure.provision.azure.words import is_within
from tesazure.provision.base import Found, Outcome, Tell

if TYPE_CHECKING:
    from azure.mgmt.authorization.v2022_04_01.models import RoleAssignment

BATCH_DATA_CONTRIBUTOR = "6aaa78f1-f7de-44ca-8722-c64a23943cae"
BLOB_DATA_CONTRIBUTOR = "ba92f5b4-2d11-453d-a403-e96b0029c9fe"
BLOB_DELEGATOR = "db58b8e5-c6ad-4a2a-8342-4190687cbf4a"
NETWORK_CONTRIBUTOR = "4d97b98b-1d4f-4787-a291-c67834d212e7"
ROLE_NAMES = {
    BATCH_DATA_CONTRIBUTOR: "Azure Batch Data Contributor",
    BLOB_DATA_CONTRIBUTOR: "Storage Blob Data Contributor",
    BLOB_DELEGATOR: "Storage Blob Delegator",
    NETWORK_CONTRIBUTOR: "Network Contributor",
}


class _Wanted(NamedTuple):
    principal: Principal
    role: str
    scope: str


class Roles:
    """What the server's identity needs of the accounts, and the Batch account's own of its
    auto-storage: each on the one resource."""

    name = "roles"
    title = "Role assignments"

    def __init__(self, place: Place, clients: Clients) -> None:
        self._place, self._clients = place, clients

    def look(self) -> Found:
        """Ours if any is of this run; missing as long as one is, and none of this run."""
        if ours := list(self._ours()):
            return Found(state="ours", detail=_listed(ours))
        if account_of(self._place, self._clients) is None:
            return Found(state="missing")
        wanted = list(self._wanted())
        missing = [each for each in wanted if not self._is_there(each)]
        if missing:
            return Found(state="missing", detail=_listed(missing))
        return Found(state="right", detail=_listed(wanted))

    def make(self, tell: Tell, is_ours: bool) -> Outcome:
        """Give those that are missing; what a principal has at a wider scope is not given again."""
        made, wanted = is_ours, list(self._wanted())
        for each in wanted:
            if not self._is_there(each):
                made = self._give(each, tell) or made
        return Outcome(made=made, detail=_listed(wanted))

    def remove(self) -> str:
        """Those of this run, also of identities that have been replaced since then."""
        assignments = self._clients.roles.role_assignments
        for each in self._ours():
            found(functools.partial(assignments.delete, each.scope, self._name(each)))
        return ""

    def _ours(self) -> Iterator[_Wanted]:
        """What this run has given, whoever has it: each has the name that this run gives to just
        that."""
        assignments = self._clients.roles.role_assignments
        place = self._place
        for scope in filter(None, (place.batch_id, place.storage_id, place.subnet_id)):
            listed = assignments.list_for_scope(scope, filter="atScope()")
            there: list[RoleAssignment] = found(functools.partial(list, listed)) or []
            for each in there:
                role = str(each.role_definition_id).rpartition("/")[2].lower()
                given = _Wanted(Principal(str(each.principal_id)), role, scope)
                if str(each.name).lower() == self._name(given):
                    yield given

    def _wanted(self) -> Iterator[_Wanted]:
        place, server = self._place, self._clients.server()
        yield _Wanted(server, BATCH_DATA_CONTRIBUTOR, place.batch_id)
        yield _Wanted(server, BLOB_DATA_CONTRIBUTOR, place.storage_id)
        yield _Wanted(server, BLOB_DELEGATOR, place.storage_id)
        if place.subnet_id:
            yield _Wanted(server, NETWORK_CONTRIBUTOR, place.subnet_id)
        account = account_of(place, self._clients)
        identity = account.identity if account is not None else None
        if identity is not None and identity.principal_id:
            yield _Wanted(Principal(identity.principal_id), BLOB_DATA_CONTRIBUTOR, place.storage_id)

    def _is_there(self, wanted: _Wanted) -> bool:
        listed = self._clients.roles.role_assignments.list_for_scope(
            wanted.scope, filter=f"principalId eq '{wanted.principal.id}'"
        )
        with explained():
            return any(
                str(each.role_definition_id).lower().endswith(wanted.role)
                and is_within(wanted.scope, str(each.scope))
                for each in listed
            )

    def _give(self, wanted: _Wanted, tell: Tell) -> bool:
        """Whether that was needed."""
        from azure.mgmt.authorization.v2022_04_01.models import RoleAssignmentCreateParameters

        definitions = "/providers/Microsoft.Authorization/roleDefinitions/"
        subscription = self._place.request.subscription_id
        parameters = RoleAssignmentCreateParameters(
            role_definition_id=f"/subscriptions/{subscription}{definitions}{wanted.role}",
            principal_id=wanted.principal.id,
            # Without it, Azure looks a new principal up, which may not be known everywhere yet.
            principal_type=wanted.principal.kind,
        )
        create = self._clients.roles.role_assignments.create
        try:
            asked(
                f"the role {ROLE_NAMES[wanted.role]}",
                lambda: create(wanted.scope, self._name(wanted), parameters),
                tell,
            )
        except Refused as error:
            if error.code != "RoleAssignmentExists":
                raise
            return False
        return True

    def _name(self, wanted: _Wanted) -> str:
        """A GUID, as Azure has it: the same each time, and of this run alone."""
        told = (self._place.run_id, wanted.scope, wanted.principal.id, wanted.role)
        return str(uuid.uuid5(uuid.NAMESPACE_URL, "|".join(told).lower()))


def _listed(wanted: list[_Wanted]) -> str:
    each = (f"{ROLE_NAMES[each.role]} on {each.scope.rpartition('/')[2]}" for each in wanted)
    return ", ".join(dict.fromkeys(each))

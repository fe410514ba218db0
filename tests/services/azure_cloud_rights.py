"""Who may do what in the stand-in for Azure: role definitions, assignments, and their evaluation.

Sources: "Azure built-in roles", "Understand Azure role definitions", "Troubleshoot Azure RBAC",
"Role Assignments - Create". Conditions and deny assignments are not there.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from tests.services.azure_cloud_state import Call, Refused, Reply, Resource, Route, State

_DEFINITIONS = "Microsoft.Authorization/roleDefinitions"
_ASSIGNMENTS = "Microsoft.Authorization/roleAssignments"
_BLOBS = "Microsoft.Storage/storageAccounts/blobServices"
_DELEGATE = f"{_BLOBS}/generateUserDelegationKey/action"
_USUAL = (
    "Microsoft.Authorization/*/read",
    "Microsoft.Insights/alertRules/*",
    "Microsoft.Resources/deployments/*",
    "Microsoft.Resources/subscriptions/resourceGroups/read",
)

BUILT_IN: dict[str, tuple[str, dict[str, list[str]]]] = {
    "Owner": ("8e3af657-a8ff-443c-a75c-2fe8c4bcb635", {"actions": ["*"]}),
    "Contributor": (
        "b24988ac-6180-42a0-ab88-20f7382dd24c",
        {
            "actions": ["*"],
            "notActions": [
                "Microsoft.Authorization/*/Delete",
                "Microsoft.Authorization/*/Write",
                "Microsoft.Authorization/elevateAccess/Action",
            ],
        },
    ),
    "Reader": ("acdd72a7-3385-48ef-bd42-f606fba81ae7", {"actions": ["*/read"]}),
    "User Access Administrator": (
        "18d7d88d-d35e-4fb5-a5c3-7773c20a72d9",
        {"actions": ["*/read", "Microsoft.Authorization/*"]},
    ),
    "Role Based Access Control Administrator": (
        "f58310d9-a9f6-439a-9e8d-f62e7b41a168",
        {
            "actions": [
                "Microsoft.Authorization/roleAssignments/write",
                "Microsoft.Authorization/roleAssignments/delete",
                "*/read",
            ]
        },
    ),
    "Storage Account Contributor": (
        "17d1049b-9a84-46fb-8f53-869881c3d3ab",
        {"actions": [*_USUAL, "Microsoft.Storage/storageAccounts/*"]},
    ),
    "Storage Blob Data Owner": (
        "b7e6dc6d-f1e8-4753-8033-0f276bb0955b",
        {"actions": [f"{_BLOBS}/containers/*", _DELEGATE], "dataActions": [f"{_BLOBS}/*"]},
    ),
    "Storage Blob Data Contributor": (
        "ba92f5b4-2d11-453d-a403-e96b0029c9fe",
        {
            "actions": [
                *(f"{_BLOBS}/containers/{each}" for each in ("delete", "read", "write")),
                _DELEGATE,
            ],
            "dataActions": [
                f"{_BLOBS}/containers/blobs/{each}"
                for each in ("delete", "read", "write", "move/action", "add/action")
            ],
        },
    ),
    "Storage Blob Data Reader": (
        "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1",
        {
            "actions": [f"{_BLOBS}/containers/read", _DELEGATE],
            "dataActions": [f"{_BLOBS}/containers/blobs/read"],
        },
    ),
    "Storage Blob Delegator": ("db58b8e5-c6ad-4a2a-8342-4190687cbf4a", {"actions": [_DELEGATE]}),
    "Azure Batch Account Contributor": (
        "29fe4964-1e60-436b-bd3a-77fd4c178b3c",
        {
            "actions": [*_USUAL, "Microsoft.Batch/*"],
            "dataActions": ["Microsoft.Batch/*"],
        },
    ),
    "Azure Batch Data Contributor": (
        "6aaa78f1-f7de-44ca-8722-c64a23943cae",
        {
            "actions": [
                *_USUAL,
                "Microsoft.Batch/batchAccounts/read",
                "Microsoft.Batch/batchAccounts/applications/*",
                "Microsoft.Batch/batchAccounts/pools/*",
                "Microsoft.Batch/batchAccounts/poolOperationResults/*",
                "Microsoft.Batch/locations/*/read",
            ],
            "dataActions": [
                "Microsoft.Batch/batchAccounts/jobSchedules/*",
                "Microsoft.Batch/batchAccounts/jobs/*",
            ],
        },
    ),
    "AcrPull": (
        "7f951dda-4ed3-4680-a7ca-43fe172d538d",
        {"actions": ["Microsoft.ContainerRegistry/registries/pull/read"]},
    ),
    "AcrPush": (
        "8311e382-0749-4cb8-b61a-304f252e45ec",
        {
            "actions": [
                "Microsoft.ContainerRegistry/registries/pull/read",
                "Microsoft.ContainerRegistry/registries/push/write",
            ]
        },
    ),
    "Key Vault Secrets Officer": (
        "b86a8fe4-44ce-4948-aee5-eccb2c155cd7",
        {"dataActions": ["Microsoft.KeyVault/vaults/secrets/*"]},
    ),
    "Managed Identity Operator": (
        "f1a07417-d97a-45cb-824c-7a7467783830",
        {
            "actions": [
                *_USUAL,
                "Microsoft.ManagedIdentity/userAssignedIdentities/*/read",
                "Microsoft.ManagedIdentity/userAssignedIdentities/*/assign/action",
            ]
        },
    ),
    "Network Contributor": (
        "4d97b98b-1d4f-4787-a291-c67834d212e7",
        {"actions": [*_USUAL, "Microsoft.Network/*"]},
    ),
}
"""Name -> id and permissions of the roles that are there."""


class Rights:
    """Roles and assignments. `principals` are the object ids that exist, and since when."""

    def __init__(self, state: State, tenant: str) -> None:
        self._state, self._tenant = state, tenant
        self.principals: dict[str, float] = {}
        self._roles: dict[str, Resource] = {}
        for name, (id_, permissions) in BUILT_IN.items():
            self._keep_role(id_, name, "BuiltInRole", permissions, ["/"])

    def routes(self) -> list[Route]:
        """What clients ask for."""
        definition = "{scope}/providers/Microsoft.Authorization/roleDefinitions"
        assignment = "{scope}/providers/Microsoft.Authorization/roleAssignments"
        one = f"{assignment}/{{name}}"
        permissions = "{scope}/providers/Microsoft.Authorization/permissions"
        read, write = f"{_DEFINITIONS}/read", f"{_DEFINITIONS}/write"
        return [
            Route("GET", definition, "RoleDefinitions_List", read, self._list_roles),
            Route("GET", f"{definition}/{{name}}", "RoleDefinitions_Get", read, self._get_role),
            Route(
                "PUT",
                f"{definition}/{{name}}",
                "RoleDefinitions_CreateOrUpdate",
                write,
                self._put_role,
            ),
            Route(
                "GET",
                assignment,
                "RoleAssignments_ListForScope",
                f"{_ASSIGNMENTS}/read",
                self._list,
            ),
            Route("GET", one, "RoleAssignments_Get", f"{_ASSIGNMENTS}/read", self._get),
            Route("PUT", one, "RoleAssignments_Create", f"{_ASSIGNMENTS}/write", self._put),
            Route("DELETE", one, "RoleAssignments_Delete", f"{_ASSIGNMENTS}/delete", self._delete),
            Route(
                "GET",
                permissions,
                "Permissions_ListForResourceGroup",
                "Microsoft.Authorization/permissions/read",
                self._permissions,
            ),
        ]

    # ------------------------------------------------------------------ what tests ask for

    def grant(self, principal: str, role: str | Mapping[str, Any], scope: str) -> str:
        """Assign a role: a built-in one by name, or a definition as `az role definition create`
        takes it. The assignment's id."""
        if isinstance(role, str):
            id_ = next(key for key, each in self._roles.items() if _name_of(each) == role)
        else:
            id_ = str(uuid.uuid4())
            given = {key.lower(): value for key, value in role.items()}
            names = ("actions", "notActions", "dataActions", "notDataActions")
            permissions = {name: list(given.get(name.lower(), [])) for name in names}
            scopes = given.get("assignablescopes", [scope])
            self._keep_role(id_, given["name"], "CustomRole", permissions, scopes)
        self.principals.setdefault(principal, 0.0)
        made = self._assignment(scope, str(uuid.uuid4()), id_, principal, "ServicePrincipal")
        made.made = 0.0
        self._state.put(made)
        return made.id

    def revoke(self, principal: str) -> None:
        """Take all of a principal's roles away."""
        for each in self._assignments():
            if each.properties["principalId"] == principal:
                self._state.remove(each.id)

    def may(self, principal: str, action: str, scope: str, *, data: bool = False) -> bool:
        """Whether a principal has a role at this scope or above that allows an action."""
        return any(_allows(each, action, data=data) for each in self._held(principal, scope))

    def check(self, principal: str, action: str, scope: str) -> None:
        """Raises Refused, with Azure's words."""
        if self.may(principal, action, scope):
            return
        said = (
            f"The client '{principal}' with object id '{principal}' does not have authorization to"
            f" perform action '{action}' over scope '{scope}' or the scope is invalid. If access"
            " was recently granted, please refresh your credentials."
        )
        raise Refused(403, "AuthorizationFailed", said)

    def new_principal(self) -> str:
        """The object id of an identity that was just made."""
        made = str(uuid.uuid4())
        self.principals[made] = time.time()
        return made

    # ------------------------------------------------------------------ what clients ask for

    def _list_roles(self, call: Call) -> Reply:
        wanted = re.fullmatch(r"roleName eq '(.*)'", call.request.query.get("$filter", ""))
        found = [each for each in self._roles.values() if not wanted or _name_of(each) == wanted[1]]
        return Reply(200, {"value": [each.told() for each in found]})

    def _get_role(self, call: Call) -> Reply:
        return Reply(200, self._role(call["name"]).told())

    def _put_role(self, call: Call) -> Reply:
        given = call.body["properties"]
        permissions = given["permissions"][0]
        scopes = given["assignableScopes"]
        made = self._keep_role(
            call["name"], given["roleName"], "CustomRole", permissions, scopes, call["scope"]
        )
        return Reply(201, made.told())

    def _role(self, id_: str) -> Resource:
        found = self._roles.get(id_.rpartition("/")[2].lower())
        if found is None:
            said = f"The specified role definition with ID '{id_}' does not exist."
            raise Refused(404, "RoleDefinitionDoesNotExist", said)
        return found

    def _list(self, call: Call) -> Reply:
        wanted = call.request.query.get("$filter", "")
        principal = re.search(r"(?:principalId eq |assignedTo\()'([^']+)'", wanted)
        rest = re.sub(
            r"(principalId eq '[^']+'|assignedTo\('[^']+'\)|atScope\(\)| and )", "", wanted
        )
        if rest:
            raise Refused(400, "UnsupportedQuery", f"The filter '{wanted}' is not supported.")
        scope = call["scope"].lower()
        found = []
        for each in self._assignments():
            own = each.properties["scope"].lower()
            above = own in ("/", scope) or scope.startswith(f"{own}/")
            if not above and ("atScope()" in wanted or not own.startswith(f"{scope}/")):
                continue
            if principal and each.properties["principalId"] != principal[1]:
                continue
            found.append(each.told())
        return Reply(200, {"value": found})

    def _get(self, call: Call) -> Reply:
        found = self._state.get(call.request.path)
        if found is None:
            said = f"The role assignment '{call['name']}' is not found."
            raise Refused(404, "RoleAssignmentNotFound", said)
        return Reply(200, found.told())

    def _put(self, call: Call) -> Reply:
        given = call.body["properties"]
        role = given["roleDefinitionId"]
        principal, kind = given["principalId"], given.get("principalType", "")
        _check_guid(call["name"])
        self._check_scope(call["scope"])
        if role.rpartition("/")[2].lower() not in self._roles:
            said = f"The specified role definition with ID '{role}' does not exist."
            raise Refused(400, "RoleDefinitionDoesNotExist", said)
        since = self.principals.get(principal)
        young = since is not None and time.time() - since < self._state.pace.replication_s
        if since is None or (young and kind != "ServicePrincipal"):
            said = (
                f"Principal {principal.replace('-', '')} does not exist in the directory"
                f" {self._tenant}. Check that you have the correct principal ID. If you are"
                " creating this principal and then immediately assigning a role, this error might"
                " be related to a replication delay. In this case, set the role assignment"
                " principalType property to a value, such as ServicePrincipal, User, or Group."
            )
            raise Refused(400, "PrincipalNotFound", said)
        made = self._assignment(call["scope"], call["name"], role, principal, kind)
        for each in self._assignments():
            same = all(
                each.properties[name].lower() == made.properties[name].lower()
                for name in ("principalId", "roleDefinitionId", "scope")
            )
            if same and each.id.lower() != made.id.lower():
                said = (
                    "The role assignment already exists. The ID of the existing role assignment is"
                    f" {each.name.replace('-', '')}."
                )
                raise Refused(409, "RoleAssignmentExists", said)
            if each.id.lower() == made.id.lower():
                if same:
                    return Reply(200, each.told())
                said = "Tenant ID, principal ID, and scope are not allowed to be updated."
                raise Refused(409, "RoleAssignmentUpdateNotPermitted", said)
        self._state.put(made)
        return Reply(201, made.told())

    def _check_scope(self, scope: str) -> None:
        if scope.count("/") > 2 and self._state.get(scope) is None:
            said = f"The Resource '{scope}' was not found."
            raise Refused(404, "ResourceNotFound", said)

    def _delete(self, call: Call) -> Reply:
        found = self._state.get(call.request.path)
        if found is None:
            return Reply(204)
        self._state.remove(found.id)
        return Reply(200, found.told())

    def _permissions(self, call: Call) -> Reply:
        held = [
            each.properties["permissions"][0] for each in self._held(call.caller, call["scope"])
        ]
        return Reply(200, {"value": held})

    # ------------------------------------------------------------------ what is kept

    def _keep_role(
        self,
        id_: str,
        name: str,
        kind: str,
        permissions: Mapping[str, Any],
        scopes: Iterable[str],
        scope: str = "",
    ) -> Resource:
        whole: dict[str, list[str]] = {
            each: list(permissions.get(each) or [])
            for each in ("actions", "notActions", "dataActions", "notDataActions")
        }
        properties = {
            "roleName": name,
            "type": kind,
            "description": "",
            "assignableScopes": list(scopes),
            "permissions": [whole],
        }
        path = f"{scope}/providers/{_DEFINITIONS}/{id_}"
        self._roles[id_.lower()] = Resource(path, _DEFINITIONS, {"properties": properties})
        return self._roles[id_.lower()]

    def _assignment(self, scope: str, name: str, role: str, principal: str, kind: str) -> Resource:
        id_ = f"{scope.rstrip('/')}/providers/{_ASSIGNMENTS}/{name}"
        properties = {
            "roleDefinitionId": self._role(role).id,
            "principalId": principal,
            "principalType": kind or "ServicePrincipal",
            "scope": scope,
            "condition": None,
            "conditionVersion": None,
        }
        return Resource(id_, _ASSIGNMENTS, {"properties": properties})

    def _assignments(self) -> list[Resource]:
        return self._state.of_type(_ASSIGNMENTS)

    def _held(self, principal: str, scope: str) -> list[Resource]:
        """The roles that count at a scope."""
        at, now = f"{scope.lower()}/", time.time()
        return [
            self._role(each.properties["roleDefinitionId"])
            for each in self._assignments()
            if each.properties["principalId"] == principal
            and at.startswith(f"{each.properties['scope'].lower().rstrip('/')}/")
            and now - each.made >= self._state.pace.assignment_s
        ]


def _name_of(role: Resource) -> str:
    return str(role.properties["roleName"])


def _allows(role: Resource, action: str, *, data: bool) -> bool:
    permissions = role.properties["permissions"][0]
    granted, taken = ("dataActions", "notDataActions") if data else ("actions", "notActions")
    return _matches(permissions[granted], action) and not _matches(permissions[taken], action)


def _matches(patterns: Iterable[str], action: str) -> bool:
    return any(re.fullmatch(_expression(each), action, re.IGNORECASE) for each in patterns)


def _expression(pattern: str) -> str:
    # Between slashes it may stand for nothing: userAssignedIdentities/*/assign/action is all that
    # Managed Identity Operator has, and allows userAssignedIdentities/assign/action.
    return re.escape(pattern).replace(r"/\*/", "/(.*/)?").replace(r"\*", ".*")


def _check_guid(name: str) -> None:
    try:
        uuid.UUID(name)
    except ValueError:
        said = (
            f"The role assignment ID '{name}' is not valid. The role assignment ID must be a GUID."
        )
        raise Refused(400, "InvalidRoleAssignmentId", said) from None

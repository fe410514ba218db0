"""Who calls, what they may do, and whose tasks they see. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Literal

import msgspec

Restrictions = Literal["none", "per-user", "per-tenant"]
"""Whose tasks a caller sees: everybody's, its own, or its tenant's."""

LOCAL = "local"
"""Tenant of those whom this installation knows by itself, by API tokens."""


class Role(StrEnum):
    """What a caller may do; the names of the app roles in Entra ID, and of the scopes."""

    READ = "Tasks.Read"
    WRITE = "Tasks.Write"
    ADMIN = "Tasks.Admin"


_IMPLIED = {
    Role.READ: frozenset({Role.READ}),
    Role.WRITE: frozenset({Role.READ, Role.WRITE}),
    Role.ADMIN: frozenset(Role),
}


def with_implied(roles: Iterable[Role]) -> frozenset[Role]:
    """The roles, with those that they imply: WRITE implies READ, ADMIN both."""
    return frozenset[Role]().union(*(_IMPLIED[role] for role in roles))


class Caller(msgspec.Struct, frozen=True):
    """Whoever sent a request, as far as it was proven. Holds no secret."""

    owner: str | None
    """Whose tasks it makes: `{tid}/{oid}` of Entra ID, `{issuer}/{sub}` of another OpenID provider,
    `local/{user}` of an API token; None where nobody signs in."""
    tenant: str | None
    name: str
    """For people to read, in logs. May change, need not be unique."""
    roles: frozenset[Role]
    """With those implied."""
    how: Literal["open", "bearer", "token", "basic"]


class Visibility(msgspec.Struct, frozen=True):
    """Whose tasks a caller sees: everybody's; or those of an owner, or of a tenant (of both where
    both are given); or, with neither, none. A task without owner is for everyone's eyes alone."""

    everyone: bool = True
    owner: str | None = None
    tenant: str | None = None

    @property
    def nothing(self) -> bool:
        """Whether no task can be seen."""
        return not self.everyone and self.owner is None and self.tenant is None

    def sees(self, owner: str | None, tenant: str | None) -> bool:
        """Whether a task of this owner and tenant is seen."""
        if self.everyone:
            return True
        return (
            not self.nothing
            and (self.owner is None or self.owner == owner)
            and (self.tenant is None or self.tenant == tenant)
        )

    def of(self, owner: str) -> Visibility:
        """What one owner's tasks are of it."""
        if self.nothing or self.owner not in (None, owner):
            return NOTHING
        return Visibility(everyone=False, owner=owner, tenant=self.tenant)

    @property
    def audience(self) -> str:
        """A word for it: two callers have the same exactly if they see the same tasks."""
        if self.everyone:
            return ""
        return "\n".join(("restricted", self.owner or "", self.tenant or ""))


OPEN = Caller(None, None, "", with_implied(Role), "open")
"""Everybody, where nobody signs in."""

EVERYTHING = Visibility()
NOTHING = Visibility(everyone=False)


def local_caller(
    user: str, roles: Iterable[Role], how: Literal["token", "basic"] = "token"
) -> Caller:
    """A user of an API token."""
    return Caller(f"{LOCAL}/{user}", LOCAL, user, with_implied(roles), how)


def visibility_of(caller: Caller, restrictions: Restrictions) -> Visibility:
    """Whose tasks a caller sees. Admins see all, and so does everybody where nobody signs in."""
    if restrictions == "none" or caller.how == "open" or Role.ADMIN in caller.roles:
        return EVERYTHING
    if restrictions == "per-tenant":
        return Visibility(everyone=False, tenant=caller.tenant or None)
    return Visibility(everyone=False, owner=caller.owner or None)

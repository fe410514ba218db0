"""What `tesazure token` does: the API tokens in a server's database."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from tesazure.callers import Role
from tesazure.cli import show
from tesazure.cli.exits import Code, Failure
from tesazure.errors import InvalidInput, StoreUnavailable
from tesazure.settings import Settings

T = TypeVar("T")
_ROLES = {"read": Role.READ, "write": Role.WRITE, "admin": Role.ADMIN}
_DAY_S = 86_400.0


def create(settings: Settings, user: str, roles: list[str], days: float, as_json: bool) -> None:
    """Print a new token. Raises Failure, ConfigurationError."""
    wanted = frozenset(map(_role, roles))
    lifetime_s = days * _DAY_S or None
    try:
        made, secret = _run(settings, lambda ledger: ledger.create(user, wanted, lifetime_s))
    except InvalidInput as error:
        raise Failure(Code.USAGE, f"USER: {error.errors[0].message}") from error
    if as_json:
        show.as_json({**_row(made), "token": secret})
    else:
        print(secret, flush=True)
    if sys.stdout.isatty():
        show.say("keep it now: it is not shown again; `tesazure token revoke` ends it")
    if not settings.api_tokens:
        show.say("the server takes it once the setting API_TOKENS is true")


def show_all(settings: Settings, as_json: bool) -> None:
    """Print what is known of each token. Raises Failure, ConfigurationError."""
    rows = [_row(token) for token in _run(settings, lambda ledger: ledger.all())]
    if as_json:
        show.as_json(rows)
    elif not show.is_terminal():
        for row in rows:
            print(show.tabbed(_cells(row)))
    else:
        drawn = show.table(["ID", "USER", "ROLES", "CREATED", "EXPIRES", "LAST USED"], ["ID"])
        for row in rows:
            drawn.add_row(*_cells(row))
        show.console().print(drawn)


def revoke(settings: Settings, token_ids: list[str]) -> None:
    """Revoke tokens; an unknown one fails after all others were tried. Raises Failure,
    ConfigurationError."""
    unknown = _run(settings, lambda ledger: ledger.revoke(list(map(_id, token_ids))))
    if unknown:
        raise Failure(Code.NOT_FOUND, f"there is no token {', '.join(unknown)}")


def _run(settings: Settings, work: Callable[[Any], Awaitable[T]]) -> T:
    from tesazure.compose import token_ledger

    async def worked() -> T:
        async with token_ledger(settings) as ledger:
            return await work(ledger)

    try:
        return asyncio.run(worked())
    except StoreUnavailable as error:
        raise Failure(Code.UNREACHABLE, str(error)) from error


def _role(text: str) -> Role:
    known = {**_ROLES, **{role.value.lower(): role for role in Role}}
    found = known.get(text.lower())
    if found is None:
        raise Failure(Code.USAGE, f"--role {text}: must be one of {', '.join(_ROLES)}")
    return found


def _id(text: str) -> str:
    """A token's id, also out of a whole token that somebody has to revoke in a hurry."""
    parts = text.split("_")
    return parts[1] if len(parts) == 3 and parts[0] == "tesz" else text


def _row(token: Any) -> dict[str, Any]:
    return {
        "id": token.id,
        "user": token.user,
        "roles": list(token.roles),
        "created": _time(token.created),
        "expires": _time(token.expires),
        "last_used": _time(token.last_used)[:10] if token.last_used else None,
    }


def _cells(row: dict[str, Any]) -> list[str]:
    roles = " ".join(row["roles"])
    ends = row["expires"] or "never"
    return [row["id"], row["user"], roles, row["created"], ends, row["last_used"] or "never"]


def _time(seconds: float | None) -> Any:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

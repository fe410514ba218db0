"""The API tokens of users: what is known of each, and never the token itself."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, delete, insert, or_, select, update

from tesazure.store.engine import Link, Prepared
from tesazure.store.records import ApiToken
from tesazure.store.tables import api_tokens
from tesazure.store.transaction import Transaction

_COLUMNS = (
    api_tokens.c.id,
    api_tokens.c.user,
    api_tokens.c.hash,
    api_tokens.c.roles,
    api_tokens.c.created,
    api_tokens.c.expires,
    api_tokens.c.last_used,
)
_INSERT = Prepared(insert(api_tokens))
_ALL = Prepared(select(*_COLUMNS).order_by(api_tokens.c.created, api_tokens.c.id))
_VALID = Prepared(
    select(*_COLUMNS).where(
        or_(api_tokens.c.expires.is_(None), api_tokens.c.expires > bindparam("now"))
    )
)
_DELETE = Prepared(delete(api_tokens).where(api_tokens.c.id == bindparam("of")))
_USED = Prepared(
    update(api_tokens).where(api_tokens.c.id == bindparam("of")).values(last_used=bindparam("day"))
)


def add(transaction: Transaction, token: ApiToken) -> None:
    """Keep a new token."""
    transaction.link.run(
        _INSERT,
        id=token.id,
        user=token.user,
        hash=token.hash,
        roles=" ".join(token.roles),
        created=token.created,
        expires=token.expires,
        last_used=token.last_used,
    )


def every(link: Link) -> list[ApiToken]:
    """All tokens, the oldest first."""
    return [_token(row) for row in link.rows(_ALL)]


def valid(link: Link, now: float) -> list[ApiToken]:
    """Those that have not expired."""
    return [_token(row) for row in link.rows(_VALID, now=now)]


def revoke(transaction: Transaction, token_id: str) -> bool:
    """Forget a token; whether there was one."""
    return transaction.link.run(_DELETE, of=token_id) > 0


def note_use(transaction: Transaction, token_id: str, day: float) -> None:
    """Note the day on which a token was used."""
    transaction.link.run(_USED, of=token_id, day=day)


def _token(row: tuple[Any, ...]) -> ApiToken:
    token_id, user, digest, roles, created, expires, last_used = row
    return ApiToken(
        token_id, user, bytes(digest), tuple(roles.split()), created, expires, last_used
    )

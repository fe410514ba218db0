"""Making, listing and revoking API tokens, by whoever can open the database."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from tesazure.callers import Role
from tesazure.errors import FieldError, InvalidInput
from tesazure.signin.tokens import PREFIX, hash_of
from tesazure.store.records import ApiToken

_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")


class LedgerStore(Protocol):
    """What is needed of the store; all raise StoreUnavailable."""

    async def add_api_token(self, token: ApiToken) -> None:
        """Keep a new token."""
        ...

    async def api_tokens(self) -> list[ApiToken]:
        """All tokens, the oldest first."""
        ...

    async def revoke_api_token(self, token_id: str) -> bool:
        """Forget a token; whether there was one."""
        ...


class Ledger:
    """The API tokens of an installation. Methods raise StoreUnavailable."""

    def __init__(self, store: LedgerStore, clock: Callable[[], float] = time.time) -> None:
        """`clock`: seconds since the epoch."""
        self._store = store
        self._clock = clock

    async def create(
        self, user: str, roles: Iterable[Role], lifetime_s: float | None
    ) -> tuple[ApiToken, str]:
        """Make a token of a user (`lifetime_s` None: without end): what is kept of it, and the
        token itself, which nothing tells again. Raises InvalidInput for a user who cannot be."""
        if not _USER.fullmatch(user):
            # A colon would end the user in HTTP Basic, a slash the word before it in an owner.
            must = "must be 1 to 64 letters, digits and . _ @ + -, the first a letter or digit"
            raise InvalidInput([FieldError("user", must)])
        now = self._clock()
        token_id = secrets.token_hex(8)
        secret = f"{PREFIX}{token_id}_{secrets.token_hex(32)}"
        expires = None if lifetime_s is None else now + lifetime_s
        names = tuple(sorted(role.value for role in roles))
        token = ApiToken(token_id, user, hash_of(secret), names, now, expires)
        await self._store.add_api_token(token)
        return token, secret

    async def all(self) -> list[ApiToken]:
        """What is kept of every token, expired ones too, the oldest first."""
        return await self._store.api_tokens()

    async def revoke(self, token_ids: Sequence[str]) -> list[str]:
        """Revoke tokens, for good; returns those that there are not."""
        return [found for found in token_ids if not await self._store.revoke_api_token(found)]

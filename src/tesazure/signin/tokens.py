"""API tokens: who a token belongs to. Made by `tesazure token create`, kept as a hash alone.

A token is `tesz_<id>_<secret>`: its id is no secret, the secret is 256 random bits. What the server
compares with is a copy of the table, at most seconds old, so a wrong token costs no query: however
many arrive, the table is read a few times a second at most, and nobody is locked out.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable
from typing import Literal, Protocol

from tesazure.callers import Caller, Role, local_caller
from tesazure.errors import StoreUnavailable
from tesazure.store.records import ApiToken

PREFIX = "tesz_"
"""What tells an API token from others, and lets scanners find one that was published."""
DAY_S = 86_400.0
FRESH_S = 5.0
"""How old the copy of the table may be: a revoked token is refused after so long."""
AGAIN_S = 0.25
"""The table is read no more often than that, for whatever reason."""
_FORM = re.compile(PREFIX + "([0-9a-f]{16})_[0-9a-f]{64}")
_UNKNOWN = bytes(32)
Change = Literal["token.create", "token.revoke", "token.expire"]

_log = logging.getLogger(__name__)


class TokenStore(Protocol):
    """What is needed of the store; all raise StoreUnavailable."""

    async def valid_api_tokens(self, now: float) -> list[ApiToken]:
        """Those that have not expired."""
        ...

    async def note_api_token_use(self, token_id: str, day: float) -> None:
        """Note the day on which a token was used."""
        ...


class TokenSource:
    """Knows the tokens of a store."""

    def __init__(
        self,
        store: TokenStore,
        clock: Callable[[], float] = time.time,
        changed: Callable[[Change, ApiToken], None] = lambda _change, _token: None,
    ) -> None:
        """`clock`: seconds since the epoch. `changed` is told what was found changed, which is when
        somebody shows a token; not what changed before the first time."""
        self._store = store
        self._clock = clock
        self._changed = changed
        self._tokens: dict[str, ApiToken] = {}
        self._known_at = float("-inf")
        """When the reading began that gave us `_tokens`, on the monotonic clock."""
        self._last_try = float("-inf")
        self._reading: asyncio.Task[None] | None = None
        self._odd: set[str] = set()
        """Names of roles that there are not, which have been told of."""

    async def caller(self, secret: str, user: str | None = None) -> Caller | None:
        """Who has this token; None if nobody, or not `user`, who gave it as a password. Raises
        StoreUnavailable."""
        form = _FORM.fullmatch(secret)
        if form is None:
            return None
        now = time.monotonic()
        await self._read_since(now - FRESH_S)
        token = self._tokens.get(form[1])
        if token is None:
            # Made a moment ago, perhaps.
            await self._read_since(now)
            token = self._tokens.get(form[1])
        same = hmac.compare_digest(hash_of(secret), token.hash if token else _UNKNOWN)
        if token is None or not same or not self._is_good(token, user):
            return None
        await self._note_use(token)
        how: Literal["token", "basic"] = "token" if user is None else "basic"
        return local_caller(token.user, self._roles(token), how)

    def _is_good(self, token: ApiToken, user: str | None) -> bool:
        expired = token.expires is not None and token.expires <= self._clock()
        return not expired and (user is None or user == token.user)

    def _roles(self, token: ApiToken) -> list[Role]:
        """Those of a token; what another version may have written there is none, and told once."""
        for name in set(token.roles) - set(Role) - self._odd:
            self._odd.add(name)
            _log.warning("API token %s: there is no role %r", token.id, name)
        return [role for role in Role if role in token.roles]

    async def _note_use(self, token: ApiToken) -> None:
        """Once a day, a caller waits for the commit of that."""
        day = self._clock() // DAY_S * DAY_S
        if token.last_used is not None and token.last_used >= day:
            return
        self._tokens[token.id] = ApiToken(
            token.id, token.user, token.hash, token.roles, token.created, token.expires, day
        )
        try:
            await self._store.note_api_token_use(token.id, day)
        except StoreUnavailable as error:
            _log.warning("the use of API token %s is not noted: %s", token.id, error)

    async def _read_since(self, moment: float) -> None:
        """Wait for a reading of the table that began at `moment` or later, on the monotonic clock;
        whoever waits shares one."""
        while self._known_at < moment:
            if self._reading is None:
                self._reading = asyncio.create_task(self._read())
                self._reading.add_done_callback(_retrieve)
            # A client that leaves must not end what others wait for.
            await asyncio.shield(self._reading)

    async def _read(self) -> None:
        try:
            wait = self._last_try + AGAIN_S - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            began = self._last_try = time.monotonic()
            found = await self._store.valid_api_tokens(self._clock())
            tokens = {token.id: token for token in found}
            if self._known_at > 0:
                self._tell(tokens)
            self._tokens, self._known_at = tokens, began
        finally:
            self._reading = None

    def _tell(self, tokens: dict[str, ApiToken]) -> None:
        for token_id in tokens.keys() - self._tokens.keys():
            self._changed("token.create", tokens[token_id])
        now = self._clock()
        for token_id in self._tokens.keys() - tokens.keys():
            token = self._tokens[token_id]
            expired = token.expires is not None and token.expires <= now
            self._changed("token.expire" if expired else "token.revoke", token)


def hash_of(secret: str) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(secret.encode()).digest()


def _retrieve(reading: asyncio.Task[None]) -> None:
    """The failure of a reading that nobody waits for any more is nobody's."""
    if not reading.cancelled():
        reading.exception()

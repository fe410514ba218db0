"""The gate: who may pass, and with which roles."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

import msgspec

from tesazure.callers import OPEN, Caller, Restrictions, Role, Visibility, visibility_of
from tesazure.errors import NotAllowed, NotSignedIn
from tesazure.signin import basic
from tesazure.signin.bearer import BearerTokens, Trusted
from tesazure.signin.keys import Pace
from tesazure.signin.tokens import PREFIX, TokenSource
from tesazure.signin.verified import Verified

REALM = "tesazure"
_PREFIX = PREFIX.encode()


class SignIn(msgspec.Struct, frozen=True, kw_only=True):
    """How callers sign in. With neither, nobody does, and everybody may do everything."""

    trusted: Trusted | None = None
    """Whose bearer tokens are taken; None: nobody's."""
    api_tokens: bool = False
    """Whether API tokens are, also as a password of HTTP Basic."""
    restrictions: Restrictions = "none"
    client_id: str = ""
    """The application that programs without a browser sign in with; empty: the one called."""
    open_paths: frozenset[str] = frozenset()
    """Paths that nobody needs to sign in for, beside those that are open always."""

    @property
    def needed(self) -> bool:
        """Whether there is anything to prove."""
        return self.trusted is not None or self.api_tokens


class Gate:
    """Admits requests. What it demands can be changed while it stands (`use`)."""

    def __init__(
        self,
        sign_in: SignIn,
        tokens: TokenSource,
        clock: Callable[[], float] = time.time,
        pace: Pace | None = None,
    ) -> None:
        """Raises ConfigurationError. `clock`: seconds since the epoch."""
        self._tokens = tokens
        self._clock = clock
        self._pace = pace
        self._set(sign_in, self._bearer_tokens(sign_in))

    @property
    def open(self) -> bool:
        """Whether nobody signs in."""
        return not self._sign_in.needed

    @property
    def sign_in(self) -> SignIn:
        """What is demanded now."""
        return self._sign_in

    @contextlib.asynccontextmanager
    async def standing(self) -> AsyncIterator[Gate]:
        """While this is open, issuers' keys are kept fresh."""
        if self._bearer is not None:
            self._bearer.start()
        try:
            yield self
        finally:
            if self._bearer is not None:
                await self._bearer.close()

    async def use(self, sign_in: SignIn) -> None:
        """Demand this from now on; requests under way end as they began. Raises
        ConfigurationError, and then nothing changes."""
        if sign_in == self._sign_in:
            return
        bearer, old = self._bearer, self._bearer
        if sign_in.trusted != self._sign_in.trusted:
            bearer = self._bearer_tokens(sign_in)
            if bearer is not None:
                if old is not None:
                    bearer.inherit(old)
                bearer.start()
        self._set(sign_in, bearer)
        if old is not None and old is not bearer:
            await old.close()

    def state(self) -> list[tuple[str, bool, str]]:
        """As BearerTokens.state."""
        return self._bearer.state() if self._bearer is not None else []

    def visibility(self, caller: Caller) -> Visibility:
        """Whose tasks a caller sees."""
        return visibility_of(caller, self._sign_in.restrictions)

    async def admit(self, needs: Role, headers: Sequence[tuple[bytes, bytes]]) -> Caller:
        """As `identify` and `demand`."""
        caller = await self.identify(headers)
        self.demand(caller, needs)
        return caller

    async def identify(self, headers: Sequence[tuple[bytes, bytes]]) -> Caller:
        """Who sends a request with these headers (names in lower case). Raises NotSignedIn with
        challenges, SignInUnavailable, StoreUnavailable."""
        if not self._sign_in.needed:
            return OPEN
        given = self._authorization(headers)
        return self._verified.get(given) or await self._caller(given)

    def demand(self, caller: Caller, needs: Role) -> None:
        """Raises NotAllowed, with a challenge, unless the caller has the role."""
        if needs not in caller.roles:
            raise self._not_allowed(caller, needs)

    def _authorization(self, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        given = None
        for name, value in headers:
            if name == b"authorization":
                if given is not None:
                    raise self._refused("there is more than one Authorization header")
                given = value
        if given is None:
            raise NotSignedIn("this needs a sign-in; see /docs", self._challenges())
        return given

    async def _caller(self, given: bytes) -> Caller:
        """Whom an Authorization header names."""
        scheme, _, rest = given.partition(b" ")
        kind, token = scheme.lower(), rest.strip()
        if kind == b"bearer" and token.startswith(_PREFIX):
            return await self._by_api_token(token)
        if kind == b"bearer":
            return await self._by_bearer_token(given, token)
        if kind == b"basic":
            return await self._by_password(given)
        raise self._refused("this kind of Authorization is not known here")

    async def _by_bearer_token(self, given: bytes, token: bytes) -> Caller:
        if self._bearer is None:
            raise self._refused("no issuer's tokens are taken here")
        verified = self._verified  # another one if `use` is called meanwhile
        try:
            caller, expires = await self._bearer.caller(token)
        except NotSignedIn as error:
            raise self._refused(str(error)) from None
        verified.keep(given, caller, expires)
        return caller

    async def _by_api_token(self, token: bytes) -> Caller:
        caller = None
        if self._sign_in.api_tokens:
            caller = await self._tokens.caller(token.decode("latin-1"))
        if caller is None:
            raise self._refused("the API token is not known, or has expired")
        return caller

    async def _by_password(self, header: bytes) -> Caller:
        pair = basic.parse(header.decode("latin-1")) if self._sign_in.api_tokens else None
        caller = await self._tokens.caller(pair[1], pair[0]) if pair else None
        if caller is None:
            raise self._refused("the password must be an API token of that user")
        return caller

    def _set(self, sign_in: SignIn, bearer: BearerTokens | None) -> None:
        self._sign_in = sign_in
        self._bearer = bearer
        self._verified = Verified(clock=self._clock)

    def _bearer_tokens(self, sign_in: SignIn) -> BearerTokens | None:
        return BearerTokens(sign_in.trusted, self._pace) if sign_in.trusted else None

    def _refused(self, reason: str) -> NotSignedIn:
        return NotSignedIn(reason, self._challenges("invalid_token", reason))

    def _not_allowed(self, caller: Caller, needs: Role) -> NotAllowed:
        text = f"this needs the role {needs}, which the caller does not have"
        if caller.how == "bearer" and not caller.roles:
            text += (
                f" (nor any other of {', '.join(Role)}); grant the app role {needs} to the"
                " application or user where they sign in"
            )
            if self._sign_in.trusted and not self._sign_in.trusted.roles_required:
                text += ", or let the application call in a user's name"
                if self._sign_in.trusted.issuer:
                    text += " (of AAD_ISSUER only a token with the scope openid counts as a user's)"
        return NotAllowed(text, self._challenges("insufficient_scope", text, scope=needs))

    def _challenges(self, error: str = "", reason: str = "", scope: str = "") -> Iterable[str]:
        """RFC 6750, section 3, and RFC 7617."""
        said = {"realm": REALM, "error": error, "error_description": reason, "scope": scope}
        # RFC 6750: no quotation marks or backslashes in a description.
        yield "Bearer " + ", ".join(
            f'{name}="{_plain(value)}"' for name, value in said.items() if value
        )
        if self._sign_in.api_tokens and error != "insufficient_scope":
            yield f'Basic realm="{REALM}", charset="UTF-8"'


def _plain(text: str) -> str:
    return text.encode("ascii", "replace").decode().replace("\\", "/").replace('"', "'")

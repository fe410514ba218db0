"""Bearer tokens: signed by an issuer that the settings name, for this server, and good now.

Sources: "Access token claims reference" and "Secure applications and APIs by validating claims"
(Microsoft), RFC 7519, RFC 8725, RFC 9068. The algorithm is RS256 whatever a token says, and so are
the issuers; the header's `jku`, `x5u`, `jwk` and the like are not looked at.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from tesazure.callers import LOCAL, Caller, Role, with_implied
from tesazure.errors import ConfigurationError, NotSignedIn, SignInUnavailable
from tesazure.signin.keys import IssuerKeys, Pace, Web

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

LONGEST_TOKEN = 16 * 1024
"""Bytes; Entra ID's are at most some 4 KB, with 200 groups."""
LEEWAY_S = 60
"""By how much the issuer's clock may differ from ours."""
_MAX_KID = 256
_MAX_ID = 255
"""Characters of what makes an owner: OpenID Connect Core 1.0, section 2 (`sub`)."""
_MAX_NAME = 100
_GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAMES = ("preferred_username", "upn", "unique_name", "email", "appid", "azp", "client_id")
"""Claims that say who it is to people, the best one first."""


class Trusted(msgspec.Struct, frozen=True, kw_only=True):
    """Whose tokens are taken. `authority` and `issuer` are https URLs without query; `tenants` are
    ids or domain names."""

    authority: str = ""
    """Of Entra ID, such as `https://login.microsoftonline.com`."""
    tenants: tuple[str, ...] = ()
    issuer: str = ""
    """Of another OpenID provider."""
    audiences: tuple[str, ...] = ()
    roles_required: bool = False
    """Whether a user's token without the claim `roles` has no role, rather than WRITE."""
    ca_bundle: str = ""


class _Issuer(ABC):
    """One issuer, and what its tokens must hold."""

    required: tuple[str, ...]

    def __init__(self, discovery_url: str, web: Web, pace: Pace | None) -> None:
        self.keys = IssuerKeys(discovery_url, self.accept, web, pace)

    @abstractmethod
    def accept(self, issuer: str) -> str:
        """What is wrong with the issuer's own name; empty if nothing is."""

    @abstractmethod
    def caller(self, claims: Mapping[str, Any], usual: frozenset[Role]) -> Caller:
        """Whom verified claims name; `usual` are the roles of a user whose token knows none. Raises
        NotSignedIn."""


class _Tenant(_Issuer):
    """A tenant of Entra ID, in version 1 or 2 of its tokens."""

    required = ("exp", "iat", "nbf", "iss", "aud", "tid", "oid")

    def __init__(self, base: str, tenant: str, web: Web, pace: Pace | None) -> None:
        self._named = tenant.lower()
        self._tid = ""
        super().__init__(f"{base}/.well-known/openid-configuration", web, pace)

    def accept(self, issuer: str) -> str:
        tid = urlsplit(issuer).path.strip("/").partition("/")[0].lower()
        if not _GUID.fullmatch(tid):
            return f"it speaks for {issuer}, which is no tenant; name tenants in AAD_TENANT_ID"
        if _GUID.fullmatch(self._named) and tid != self._named:
            return f"it speaks for the tenant {tid}, not for {self._named}"
        self._tid = tid
        return ""

    def caller(self, claims: Mapping[str, Any], usual: frozenset[Role]) -> Caller:
        if _id(claims, "tid").lower() != self._tid:
            raise NotSignedIn("the token's tenant is not its issuer's")
        if not (claims.get("azp") or claims.get("appid")):
            # ID tokens have no such claim, the same roles, and pass through browsers.
            raise NotSignedIn("the token is not an access token: it names no application")
        scopes = _words(claims.get("scp"))
        oid = _id(claims, "oid").lower()
        return Caller(
            f"{self._tid}/{oid}",
            self._tid,
            _name(claims, oid),
            # Without a scope no user has granted anything.
            _roles(claims.get("roles"), scopes, usual if scopes else frozenset()),
            "bearer",
        )


class _Provider(_Issuer):
    """An OpenID provider that is not Entra ID."""

    required = ("exp", "iat", "iss", "aud", "sub")

    def __init__(self, issuer: str, web: Web, pace: Pace | None) -> None:
        self._named = issuer.rstrip("/")
        # With its path: a host may serve several realms, each with users of its own.
        self._tenant = self._named.partition("://")[2].lower()
        if self._tenant == LOCAL:
            text = f"AAD_ISSUER: a host named {LOCAL} would own the tasks of API tokens' users"
            raise ConfigurationError([text])
        super().__init__(f"{self._named}/.well-known/openid-configuration", web, pace)

    def accept(self, issuer: str) -> str:
        same = issuer.rstrip("/") == self._named
        return "" if same else f"it speaks for {issuer}, not for {self._named}"

    def caller(self, claims: Mapping[str, Any], usual: frozenset[Role]) -> Caller:
        sub = _id(claims, "sub")
        scopes = [*_words(claims.get("scp")), *_words(claims.get("scope"))]
        return Caller(
            f"{self._tenant}/{sub}",
            self._tenant,
            _name(claims, sub),
            _roles(
                claims.get("roles"), scopes, usual if _is_users(claims, scopes) else frozenset()
            ),
            "bearer",
        )


class BearerTokens:
    """Tells callers by their tokens. `start` before use, `close` after."""

    def __init__(self, trusted: Trusted, pace: Pace | None = None) -> None:
        """Raises ConfigurationError."""
        try:
            self._web = Web(trusted.ca_bundle)
        except OSError as error:
            raise ConfigurationError([f"CA_BUNDLE: {error}"]) from error
        self._issuers: list[_Issuer] = []
        for tenant in trusted.tenants:
            base = f"{trusted.authority.rstrip('/')}/{tenant}"
            self._issuers.append(_Tenant(f"{base}/v2.0", tenant, self._web, pace))
            self._issuers.append(_Tenant(base, tenant, self._web, pace))
        if trusted.issuer:
            self._issuers.append(_Provider(trusted.issuer, self._web, pace))
        self._audiences = frozenset(_both_forms(trusted.audiences))
        self._usual = frozenset[Role]() if trusted.roles_required else frozenset({Role.WRITE})
        self._ca_bundle = trusted.ca_bundle

    def inherit(self, before: BearerTokens) -> None:
        """Begin with the keys of another one, for the issuers that both trust: they may not answer
        now."""
        if self._ca_bundle != before._ca_bundle:
            return  # whoever gave those keys may not be believed any more
        for mine, theirs in itertools.product(self._issuers, before._issuers):
            mine.keys.inherit(theirs.keys)

    def start(self) -> None:
        """Read the issuers' keys, and keep them fresh."""
        for issuer in self._issuers:
            issuer.keys.start()

    async def close(self) -> None:
        """Stop. May be called twice."""
        for issuer in self._issuers:
            await issuer.keys.close()
        await self._web.close()

    def state(self) -> list[tuple[str, bool, str]]:
        """Of each host that is asked for keys: whether there are some, and what is to be said."""
        found: dict[str, tuple[bool, str]] = {}
        for keys in (issuer.keys for issuer in self._issuers):
            said = f"keys read {keys.age_s:.0f} s ago" if keys.known else "no keys yet"
            if keys.failure:
                said += f"; {keys.failure}"
            if keys.host not in found or not keys.known or keys.failure:
                found[keys.host] = keys.known, said
        return [(host, *what) for host, what in found.items()]

    async def caller(self, token: bytes) -> tuple[Caller, float]:
        """Whose token this is, and when it expires, in seconds since the epoch. Raises NotSignedIn
        with the reason, SignInUnavailable."""
        import jwt

        kid, claimed = _looked_at(token)
        issuer = await self._issuer(claimed)
        key = await issuer.keys.find(kid)
        if key is None:
            raise NotSignedIn("the token is signed with a key that its issuer does not publish")
        try:
            claims = self._verified(token, issuer, key)
            return issuer.caller(claims, self._usual), float(claims["exp"])
        except NotSignedIn:
            raise
        except jwt.ExpiredSignatureError:
            raise NotSignedIn("the token has expired") from None
        except jwt.ImmatureSignatureError:
            raise NotSignedIn("the token is not valid yet") from None
        except jwt.InvalidAudienceError:
            raise NotSignedIn("the token is for another service") from None
        except jwt.MissingRequiredClaimError as error:
            raise NotSignedIn(f"the token lacks the claim {error.claim}") from None
        except jwt.InvalidSignatureError:
            raise NotSignedIn("the token's signature is wrong") from None
        except Exception:  # whatever a library makes of it: this is no good token
            raise NotSignedIn("the token is malformed") from None

    def _verified(self, token: bytes, issuer: _Issuer, key: RSAPublicKey) -> dict[str, Any]:
        import jwt

        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=["RS256"],
            audience=self._audiences,
            issuer=issuer.keys.issuer,
            leeway=LEEWAY_S,
            options={"require": list(issuer.required), "verify_sub": False, "verify_jti": False},
        )
        return claims

    async def _issuer(self, claimed: str) -> _Issuer:
        found = self._named(claimed)
        unknown = [issuer.keys for issuer in self._issuers if issuer.keys.issuer is None]
        if found is None and unknown:
            learned = await asyncio.gather(
                *(keys.learn() for keys in unknown), return_exceptions=True
            )
            found = self._named(claimed)
            for failure in learned:
                if found is None and isinstance(failure, SignInUnavailable):
                    raise failure
        if found is None:
            raise NotSignedIn("the token's issuer is not one of this server's")
        return found

    def _named(self, claimed: str) -> _Issuer | None:
        return next((one for one in self._issuers if one.keys.issuer == claimed), None)


def _looked_at(token: bytes) -> tuple[str, str]:
    """What a token claims of its key and its issuer; nothing is verified yet. Raises
    NotSignedIn."""
    import jwt

    if len(token) > LONGEST_TOKEN:
        raise NotSignedIn(f"the token is larger than {LONGEST_TOKEN} bytes")
    try:
        text = token.decode("ascii")
        seen = jwt.decode_complete(text, options={"verify_signature": False})
    except Exception:  # not only PyJWT's own errors come out of what can be sent
        raise NotSignedIn("the token is malformed") from None
    header, claims = seen["header"], seen["payload"]
    if header.get("alg") != "RS256":
        raise NotSignedIn("the token is not signed by RS256")
    kid, issuer = header.get("kid"), claims.get("iss")
    if not isinstance(kid, str) or not kid or len(kid) > _MAX_KID:
        raise NotSignedIn("the token does not say which key signed it")
    if not isinstance(issuer, str):
        raise NotSignedIn("the token lacks the claim iss")
    return kid, issuer


def _id(claims: Mapping[str, Any], name: str) -> str:
    """A claim that becomes part of an owner: kept in the database, compared as it is."""
    value = claims[name]
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_ID or not value.isprintable():
        raise NotSignedIn(f"the token's claim {name} is not usable")
    return value


def _name(claims: Mapping[str, Any], otherwise: str) -> str:
    for claim in _NAMES:
        value = claims.get(claim)
        if isinstance(value, str) and value:
            # JSON can hold halves of characters, which no log could.
            return value[:_MAX_NAME].encode("utf-8", "replace").decode("utf-8")
    return otherwise


def _is_users(claims: Mapping[str, Any], scopes: Iterable[str]) -> bool:
    """Whether a token of any provider is certain to be a user's: it came of a sign-in (OpenID
    Connect Core 1.0, section 3.1.2.1), and nothing in it says that it is an application's own
    (RFC 9068, section 2.2, on `sub`; what Auth0 and Keycloak write there)."""
    subject = claims["sub"]
    clients = {claims.get(name) for name in ("client_id", "azp", "cid")} - {None}
    own = {form for client in clients for form in (client, f"{client}@clients")}
    return (
        "openid" in scopes
        and subject not in own
        and claims.get("gty") != "client-credentials"
        and not str(claims.get("preferred_username")).startswith("service-account-")
    )


def _words(claim: object) -> list[str]:
    """Scopes as one text (RFC 8693, section 4.2), or as a list, as some providers send them."""
    if isinstance(claim, str):
        return claim.split()
    return [word for word in claim if isinstance(word, str)] if isinstance(claim, list) else []


def _roles(claimed: object, scopes: Iterable[str], usual: frozenset[Role]) -> frozenset[Role]:
    """The roles that were granted, or the usual ones if the token knows no roles; at most those
    that the scopes name, if they name any: so a user grants a program less than what is theirs."""
    granted = usual if claimed is None else _known(_words(claimed))
    bound = _known(word.rpartition("/")[2] for word in scopes)
    roles = with_implied(granted)
    return roles & with_implied(bound) if bound else roles


def _known(words: Iterable[str]) -> frozenset[Role]:
    return frozenset(role for role in Role if role.value in set(words))


def _both_forms(audiences: Iterable[str]) -> Iterable[str]:
    """Tokens of version 2 name an application by its id, those of version 1 mostly by the URI made
    of it ("Access token claims reference", aud)."""
    for audience in audiences:
        yield audience
        bare = audience.removeprefix("api://")
        if _GUID.fullmatch(bare.lower()):
            yield bare
            yield f"api://{bare}"

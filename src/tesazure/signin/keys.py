"""The keys that an issuer signs with, as its own discovery document tells (OpenID Connect Discovery
1.0, section 4). Nothing that a token says leads to any other address.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from tesazure.errors import SignInUnavailable

if TYPE_CHECKING:
    import httpx
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

_MAX_BYTES = 2**20
_MAX_KEYS = 1000
_MIN_BITS = 2048
"""RFC 7518, section 3.3."""
_TIMEOUT_S = 10.0
REMEDY = "can this server reach the host, and does it trust its certificate (CA_BUNDLE)?"
"""When an issuer's keys cannot be read."""

_log = logging.getLogger(__name__)


class Pace(msgspec.Struct, frozen=True):
    """How often an issuer is asked, in seconds."""

    refresh_s: float = 1800
    """Keys are read again after so long, before anybody waits for new ones."""
    cooldown_s: float = 3
    """From the beginning of one reading to that of the next at least: tokens with made-up key ids
    would make us a burden to the issuer. A token with a new key waits for so long at most."""
    retry_s: float = 2
    """After a failure; doubles up to `refresh_s`, but a request that cannot be checked without
    asks again after this."""


class IssuerKeys:
    """Public keys of one issuer by their ids. Through an outage of the issuer the last ones stay.

    `accept` is given the `issuer` of the discovery document and says what is wrong with it, if
    anything: whoever serves the document must not speak for others.
    """

    def __init__(
        self, discovery_url: str, accept: Callable[[str], str], web: Web, pace: Pace | None = None
    ) -> None:
        self.issuer: str | None = None
        """The `iss` of its tokens, once it is known."""
        self._url = discovery_url
        self._accept = accept
        self._web = web
        self._pace = pace or Pace()
        self._keys: dict[str, RSAPublicKey] = {}
        self._read_at = 0.0
        self._failure = ""
        self._failed_at = float("-inf")
        self._began = float("-inf")
        """When the last reading that has ended began. All of these on the monotonic clock."""
        self._reading: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def host(self) -> str:
        """Who is asked, for people to read."""
        return urlsplit(self._url).netloc

    @property
    def failure(self) -> str:
        """Why the last reading failed; empty if it did not."""
        return self._failure

    @property
    def known(self) -> bool:
        """Whether there are keys."""
        return bool(self._keys)

    @property
    def age_s(self) -> float:
        """Seconds since the keys were read."""
        return time.monotonic() - self._read_at

    def start(self) -> None:
        """Read the keys, and keep them fresh until `close`."""
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Stop. May be called twice."""
        for task in (self._keeper, self._reading):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self._keeper = None

    def inherit(self, before: IssuerKeys) -> None:
        """Begin with the keys of another one, if they are of the same issuer."""
        same = self._url == before._url and before.issuer is not None
        if same and not self._accept(before.issuer or ""):
            self.issuer, self._keys = before.issuer, before._keys
            self._read_at, self._began = before._read_at, before._began

    async def learn(self) -> None:
        """Wait until the issuer is known. Raises SignInUnavailable."""
        if not self._keys:
            await self._ask()

    async def find(self, kid: str) -> RSAPublicKey | None:
        """The key of this id. While it is not known, the issuer is asked; None once it does not
        know it either. Raises SignInUnavailable."""
        asked_at = time.monotonic()
        # A reading that had begun before may be older than the key.
        while kid not in self._keys and self._began < asked_at:
            await self._ask()
        return self._keys.get(kid)

    async def _ask(self) -> None:
        """Wait for the reading under way, or else for a new one: all who wait share it. Raises
        SignInUnavailable if it fails, or another one failed a moment ago."""
        if self._reading is not None or time.monotonic() >= self._failed_at + self._pace.retry_s:
            reading = self._begin()
            try:
                # A client that leaves must not end what others wait for.
                await asyncio.shield(reading)
            except asyncio.CancelledError:
                if reading.cancelled():
                    raise SignInUnavailable("signing in changes just now") from None
                raise
        if self._failure:
            raise SignInUnavailable(f"no keys of {self.host}: {self._failure}")

    def _begin(self) -> asyncio.Task[None]:
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        return self._reading

    async def _keep(self) -> None:
        pause = self._pace.retry_s
        while True:
            await asyncio.shield(self._begin())
            if self._failure:
                await asyncio.sleep(pause)
                pause = min(pause * 2, self._pace.refresh_s)
            else:
                pause = self._pace.retry_s
                await asyncio.sleep(self._pace.refresh_s)

    async def _read(self) -> None:
        """Never raises: tells in `failure`."""
        began = float("-inf")
        try:
            await asyncio.sleep(self._began + self._pace.cooldown_s - time.monotonic())
            began = time.monotonic()
            about = await self._web.get(self._url)
            issuer, keys_url = about.get("issuer"), about.get("jwks_uri")
            if not isinstance(issuer, str) or not isinstance(keys_url, str):
                raise ValueError("the discovery document lacks issuer or jwks_uri")  # noqa: TRY004 - of a document
            if wrong := self._accept(issuer):
                raise ValueError(wrong)
            keys = _usable(await self._web.get(keys_url))
            if not keys:
                raise ValueError("the issuer publishes no RSA key of 2048 bits or more")
            if self._failure:
                _log.info("keys of %s can be read again", self.host)
            self.issuer, self._keys, self._failure = issuer, keys, ""
            self._read_at = time.monotonic()
        except Exception as error:  # whatever a foreign server makes of it
            said = str(error) or type(error).__name__
            if not self._failure:
                kept = "going on with the last ones" if self._keys else "there are none yet"
                text = "cannot read the keys of %s (%s): %s; %s"
                _log.warning(text, self.host, kept, said, REMEDY)
            self._failure = said
            self._failed_at = time.monotonic()
        finally:
            self._began, self._reading = began, None


class Web:
    """Reads small JSON objects over https. Follows no redirects, and uses no proxy that the
    environment names: as with Key Vaults and storage."""

    def __init__(self, ca_bundle: str = "") -> None:
        """`ca_bundle`: PEM file of the authorities to trust; empty: the system's. Raises OSError,
        ssl.SSLError."""
        self._trust = ssl.create_default_context(cafile=ca_bundle or None)
        self._client: httpx.AsyncClient | None = None

    async def get(self, url: str) -> dict[str, Any]:
        """The object at `url`. Raises ValueError, httpx.HTTPError, TimeoutError."""
        import httpx

        if urlsplit(url).scheme != "https":
            raise ValueError("keys are read over https alone")
        if self._client is None:
            self._client = httpx.AsyncClient(
                verify=self._trust, timeout=_TIMEOUT_S, trust_env=False
            )
        body = bytearray()
        async with asyncio.timeout(_TIMEOUT_S), self._client.stream("GET", url) as reply:
            if reply.status_code != 200:
                raise ValueError(f"{urlsplit(url).netloc} answered {reply.status_code}")
            async for chunk in reply.aiter_bytes():
                body += chunk
                if len(body) > _MAX_BYTES:
                    raise ValueError("the answer is too large")
        return msgspec.json.decode(body, type=dict[str, Any])

    async def close(self) -> None:
        """Close the connections. May be called twice."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


def _usable(document: dict[str, Any]) -> dict[str, RSAPublicKey]:
    """The keys of a JSON Web Key Set (RFC 7517, section 5) that may sign tokens by RS256."""
    import jwt
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    listed = document.get("keys")
    found: dict[str, RSAPublicKey] = {}
    for one in listed[:_MAX_KEYS] if isinstance(listed, list) else ():
        if not isinstance(one, dict) or not isinstance(one.get("kid"), str):
            continue
        fits = one.get("use", "sig") == "sig" and one.get("alg", "RS256") == "RS256"
        if one.get("kty") != "RSA" or not fits:
            continue
        with contextlib.suppress(jwt.PyJWTError, ValueError, TypeError):
            key = jwt.PyJWK(one, "RS256").key
            if isinstance(key, RSAPublicKey) and key.key_size >= _MIN_BITS:
                found[one["kid"]] = key
    return found

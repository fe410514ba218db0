"""A stand-in for Microsoft Entra ID, with the managed identity endpoint of a host, over TLS.

It issues tokens to those alone who prove who they are, signs them with keys that it publishes, and
answers with Entra's codes. Sources: "OAuth 2.0 client credentials flow on the Microsoft identity
platform", "OAuth 2.0 device authorization grant flow", "Access token claims reference", "OpenID
Connect on the Microsoft identity platform", "REST endpoint reference" (of managed identities in App
Service), "Workload identity federation".
"""

from __future__ import annotations

import base64
import json
import secrets
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.services.tls_server import Refusal, Request, TlsServer

TENANT = "11111111-2222-3333-4444-555555555555"
OTHER_TENANT = "aaaaaaaa-2222-3333-4444-bbbbbbbbbbbb"
CLIENT = "66666666-7777-8888-9999-aaaaaaaaaaaa"
"""A service principal: what runs the server."""
SECRET = "the-principals-secret"
AUDIENCE = "cccccccc-7777-8888-9999-dddddddddddd"
"""The application whose API is called."""
USER = "eeeeeeee-0000-4444-8888-000000000001"
OTHER_USER = "eeeeeeee-0000-4444-8888-000000000002"
IDENTITY_HEADER = "the-hosts-identity-header"
"""What a program on a host with a managed identity knows."""
LIFETIME_S = 3600
_V1_ISSUER = "https://sts.windows.net/{tenant}/"
_DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_EXCHANGE = "api://AzureADTokenExchange"
_REALM = "/realms/lab"


@dataclass
class _Device:
    user_code: str
    client: str
    scope: str
    tenant: str
    expires: float
    claims: dict[str, Any] | None = None
    declined: bool = False


@dataclass
class _Keys:
    """Signing keys of one issuer, newest last."""

    keys: dict[str, rsa.RSAPrivateKey] = field(default_factory=dict)

    def add(self) -> str:
        kid = secrets.token_urlsafe(20)
        self.keys[kid] = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        return kid

    @property
    def newest(self) -> str:
        return next(reversed(self.keys))

    def published(self, issuer: str) -> dict[str, Any]:
        """A JSON Web Key Set."""
        return {"keys": [_public(kid, key, issuer) for kid, key in list(self.keys.items())]}


class EntraServer(TlsServer):
    """Every tenant of a cloud, with one service principal `CLIENT` and one API `AUDIENCE`, and an
    unrelated OpenID Connect issuer (`oidc_issuer`).

    `lifetime_s`: of the tokens that the token endpoint issues. `asked` as in TlsServer.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.authority = self.url
        """For AAD_AUTHORITY and AZURE_AUTHORITY_HOST."""
        self.oidc_issuer = f"{self.url}{_REALM}"
        """For AAD_ISSUER."""
        self.msi_endpoint = f"{self.url}/msi/token"
        """For IDENTITY_ENDPOINT."""
        self.lifetime_s = LIFETIME_S
        self.secrets = {CLIENT: SECRET}
        """Client id -> secret, of service principals."""
        self.identity = CLIENT
        """Client id of the managed identity that a host has."""
        self.tenants = {TENANT, OTHER_TENANT}
        self.issued = 0
        self._keys, self._lab_keys, self._cluster_keys = _Keys(), _Keys(), _Keys()
        for keys in (self._keys, self._lab_keys, self._cluster_keys):
            keys.add()
        self._devices: dict[str, _Device] = {}
        self._refresh: dict[str, tuple[_Device, dict[str, Any]]] = {}
        self._lock = threading.Lock()

    # ------------------------------------------------------------------ what tests ask for

    def issuer(self, version: Literal[1, 2] = 2, tenant: str = TENANT) -> str:
        """The `iss` of a tenant's tokens."""
        return _V1_ISSUER.format(tenant=tenant) if version == 1 else f"{self.url}/{tenant}/v2.0"

    def issue(
        self,
        claims: Mapping[str, Any] | None = None,
        *,
        kid: str | None = None,
        version: Literal[1, 2] = 2,
        headers: Mapping[str, Any] | None = None,
    ) -> str:
        """A user's token for `AUDIENCE`, good for an hour. `claims` replace the usual ones, None
        takes one away; `tid` also moves the issuer. `kid` of a published key signs with that one;
        another `kid` is only claimed. `headers` are added."""
        given = dict(claims or {})
        tenant = given.get("tid") or TENANT
        now = int(time.time())
        whole: dict[str, Any] = {
            "iss": self.issuer(version, tenant),
            "aud": AUDIENCE if version == 2 else f"api://{AUDIENCE}",
            "iat": now,
            "nbf": now,
            "exp": now + LIFETIME_S,
            "tid": tenant,
            "oid": USER,
            "sub": secrets.token_urlsafe(20),
            "name": "A User",
            "scp": "access",
            "ver": "2.0" if version == 2 else "1.0",
        }
        whole |= (
            {"azp": CLIENT, "azpacr": "1", "preferred_username": "user@example.org"}
            if version == 2
            else {"appid": CLIENT, "appidacr": "1", "upn": "user@example.org"}
        )
        return self._sign(self._keys, whole | given, kid, headers)

    def issue_app_only(self, claims: Mapping[str, Any] | None = None, **more: Any) -> str:
        """A token of an application without a user: `roles` instead of `scp`."""
        own = {"scp": None, "name": None, "preferred_username": None, "upn": None}
        return self.issue({**own, "idtyp": "app", **(claims or {})}, **more)

    def issue_oidc(
        self,
        claims: Mapping[str, Any] | None = None,
        *,
        kid: str | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> str:
        """A token of `oidc_issuer`, which knows no tenants and no `oid`."""
        now = int(time.time())
        whole = {
            "iss": self.oidc_issuer,
            "aud": AUDIENCE,
            "sub": "lab-user-1",
            "iat": now,
            "nbf": now,
            "exp": now + LIFETIME_S,
            "name": "A Lab User",
        }
        return self._sign(self._lab_keys, whole | dict(claims or {}), kid, headers)

    @property
    def kid(self) -> str:
        """Of the key that signs now."""
        return self._keys.newest

    @property
    def private_key(self) -> rsa.RSAPrivateKey:
        """The key that signs now, for tests that forge."""
        return self._keys.keys[self.kid]

    def rotate(self, *, keep: bool = True) -> str:
        """Sign with a new key from now on; the old ones stay published unless `keep` is False. The
        new key's id."""
        with self._lock:
            kid = self._keys.add()
            if not keep:
                for old in [each for each in self._keys.keys if each != kid]:
                    del self._keys.keys[old]
        return kid

    def approve(self, user_code: str, claims: Mapping[str, Any] | None = None) -> None:
        """A user signs in on the page of the device code flow."""
        self._device_of(user_code).claims = dict(claims or {})

    def decline(self, user_code: str) -> None:
        """A user refuses there."""
        self._device_of(user_code).declined = True

    def forget_refresh_tokens(self) -> None:
        """As when a password was changed: users must sign in anew."""
        self._refresh.clear()

    def federated_token(self, subject: str = "system:serviceaccount:tes:tesazure") -> str:
        """What Kubernetes puts into AZURE_FEDERATED_TOKEN_FILE."""
        now = int(time.time())
        claims = {"aud": _EXCHANGE, "sub": subject, "iat": now, "exp": now + LIFETIME_S}
        return self._sign(self._cluster_keys, claims, None, None)

    def verify(self, token: str, audience: str) -> dict[str, Any]:
        """The claims of a token for another service of this cloud, as that service checks them.
        Raises jwt.PyJWTError."""
        kid = jwt.get_unverified_header(token)["kid"]
        key = self._keys.keys.get(kid)
        if key is None:
            raise jwt.InvalidTokenError("unknown key")
        required = ["exp", "iss", "aud", "tid", "oid"]
        claims: dict[str, Any] = jwt.decode(
            token,
            key.public_key(),
            algorithms=["RS256"],
            audience=[audience, f"{audience}/"],
            options={"require": required},
        )
        if claims["iss"] != self.issuer(1, claims["tid"]):
            raise jwt.InvalidIssuerError("not a tenant's issuer")
        return claims

    # ------------------------------------------------------------------ what clients ask for

    def answer(self, request: Request) -> Any:
        """Discovery, keys, tokens."""
        if request.path == "/msi/token":
            return self._managed(request)
        if request.path.startswith(_REALM):
            return self._lab(request)
        tenant, _, rest = request.path.lstrip("/").partition("/")
        if tenant not in self.tenants | {"common", "organizations"}:
            said = f"AADSTS90002: Tenant '{tenant}' not found."
            raise Refusal(400, {"error": "invalid_tenant", "error_description": said})
        if request.method == "GET":
            return self._discovery(tenant, rest)
        if rest == "oauth2/v2.0/devicecode":
            return self._device_code(tenant, request.form)
        if rest == "oauth2/v2.0/token":
            return self._token(tenant, request.form)
        raise Refusal(404, {"error": "not_found"})

    def _discovery(self, tenant: str, rest: str) -> Any:
        base = f"{self.url}/{tenant}"
        issued_for = tenant if tenant in self.tenants else "{tenantid}"
        match rest:
            case ".well-known/openid-configuration":
                version, issuer, keys = "", self.issuer(1, issued_for), "discovery/keys"
            case "v2.0/.well-known/openid-configuration":
                version, issuer, keys = "/v2.0", self.issuer(2, issued_for), "discovery/v2.0/keys"
            case "discovery/keys" | "discovery/v2.0/keys":
                with self._lock:
                    return self._keys.published(self.issuer(2, "{tenantid}"))
            case _:
                raise Refusal(404, {"error": "not_found"})
        return {
            "issuer": issuer,
            "jwks_uri": f"{base}/{keys}",
            "authorization_endpoint": f"{base}/oauth2{version}/authorize",
            "token_endpoint": f"{base}/oauth2{version}/token",
            "device_authorization_endpoint": f"{base}/oauth2{version}/devicecode",
            "id_token_signing_alg_values_supported": ["RS256"],
            "response_types_supported": ["code"],
            "subject_types_supported": ["pairwise"],
        }

    def _lab(self, request: Request) -> Any:
        match request.path.removeprefix(_REALM):
            case "/.well-known/openid-configuration":
                return {
                    "issuer": self.oidc_issuer,
                    "jwks_uri": f"{self.oidc_issuer}/keys",
                    "id_token_signing_alg_values_supported": ["RS256"],
                    "response_types_supported": ["code"],
                    "subject_types_supported": ["public"],
                }
            case "/keys":
                return self._lab_keys.published(self.oidc_issuer)
            case _:
                raise Refusal(404, {"error": "not_found"})

    def _token(self, tenant: str, form: Mapping[str, str]) -> Any:
        match form.get("grant_type"):
            case "client_credentials":
                return self._client_credentials(tenant, form)
            case kind if kind == _DEVICE:
                return self._device_token(form)
            case "refresh_token":
                return self._refreshed(form)
            case kind:
                said = f"AADSTS70003: The app requested an unsupported grant type '{kind}'."
                raise Refusal(400, {"error": "unsupported_grant_type", "error_description": said})

    def _client_credentials(self, tenant: str, form: Mapping[str, str]) -> Any:
        client = form.get("client_id", "")
        if client not in self.secrets:
            said = f"AADSTS700016: Application with identifier '{client}' was not found."
            raise Refusal(400, {"error": "unauthorized_client", "error_description": said})
        if form.get("client_assertion_type") == _ASSERTION:
            self._check_assertion(form.get("client_assertion", ""))
        elif not secrets.compare_digest(form.get("client_secret", ""), self.secrets[client]):
            said = "AADSTS7000215: Invalid client secret provided."
            raise Refusal(401, {"error": "invalid_client", "error_description": said})
        audience = form["scope"].removesuffix("/.default")
        return self._reply(self._for_service(audience, tenant, client))

    def _check_assertion(self, assertion: str) -> None:
        try:
            key = self._cluster_keys.keys[self._cluster_keys.newest].public_key()
            jwt.decode(assertion, key, algorithms=["RS256"], audience=_EXCHANGE)
        except jwt.PyJWTError as error:
            said = f"AADSTS700027: Client assertion failed signature validation. {error}"
            raise Refusal(401, {"error": "invalid_client", "error_description": said}) from error

    def _for_service(self, audience: str, tenant: str, client: str) -> str:
        """A token of version 1 without a user, such as Microsoft's own services take."""
        claims = {
            "aud": audience,
            "tid": tenant,
            "oid": object_id(client),
            "appid": client,
            "exp": int(time.time()) + self.lifetime_s,
        }
        return self.issue_app_only(claims, version=1)

    def _device_code(self, tenant: str, form: Mapping[str, str]) -> Any:
        code, user_code = secrets.token_urlsafe(30), secrets.token_hex(4).upper()
        device = _Device(
            user_code, form["client_id"], form.get("scope", ""), tenant, time.time() + 900
        )
        with self._lock:
            self._devices[code] = device
        where = f"{self.url}/device"
        return {
            "device_code": code,
            "user_code": user_code,
            "verification_uri": where,
            "expires_in": 900,
            "interval": 1,
            "message": f"To sign in, open the page {where} and enter the code {user_code}.",
        }

    def _device_of(self, user_code: str) -> _Device:
        with self._lock:
            return next(each for each in self._devices.values() if each.user_code == user_code)

    def _device_token(self, form: Mapping[str, str]) -> Any:
        device = self._devices.get(form.get("device_code", ""))
        if device is None or device.client != form.get("client_id"):
            raise Refusal(400, {"error": "bad_verification_code", "error_description": ""})
        if device.declined:
            raise Refusal(400, {"error": "authorization_declined", "error_description": ""})
        if time.time() > device.expires:
            raise Refusal(400, {"error": "expired_token", "error_description": ""})
        if device.claims is None:
            said = "AADSTS70016: Pending end-user authorization."
            raise Refusal(400, {"error": "authorization_pending", "error_description": said})
        return self._delegated(device, device.claims)

    def _refreshed(self, form: Mapping[str, str]) -> Any:
        found = self._refresh.pop(form.get("refresh_token", ""), None)
        if found is None or found[0].client != form.get("client_id"):
            said = "AADSTS70043: The refresh token has expired or is invalid."
            raise Refusal(400, {"error": "invalid_grant", "error_description": said})
        return self._delegated(*found)

    def _delegated(self, device: _Device, claims: dict[str, Any]) -> Any:
        tenant = device.tenant if device.tenant in self.tenants else TENANT
        now = int(time.time())
        own = {"tid": tenant, "azp": device.client, "exp": now + self.lifetime_s, **claims}
        reply = self._reply(self.issue(own)) | {"scope": device.scope}
        user, home = own.get("oid", USER), own["tid"]
        reply["client_info"] = _encode(json.dumps({"uid": user, "utid": home}).encode())
        reply["id_token"] = self.issue({**own, "aud": device.client, "oid": user})
        if "offline_access" in device.scope:
            refresh = secrets.token_urlsafe(40)
            self._refresh[refresh] = (device, claims)
            reply["refresh_token"] = refresh
        return reply

    def _managed(self, request: Request) -> Any:
        """As App Service and Container Apps have it ("REST endpoint reference")."""
        if request.headers.get("x-identity-header") != IDENTITY_HEADER:
            raise Refusal(401, {"message": "wrong identity header"})
        if request.query.get("client_id", self.identity) != self.identity:
            raise Refusal(400, {"message": "no such identity is assigned"})
        resource = request.query["resource"]
        return {
            "access_token": self._for_service(resource, TENANT, self.identity),
            "expires_on": str(int(time.time()) + self.lifetime_s),
            "resource": resource,
            "token_type": "Bearer",
            "client_id": self.identity,
        }

    def _reply(self, token: str) -> dict[str, Any]:
        life = {"expires_in": self.lifetime_s, "ext_expires_in": self.lifetime_s}
        return {"token_type": "Bearer", **life, "access_token": token}

    def _sign(
        self,
        keys: _Keys,
        claims: Mapping[str, Any],
        kid: str | None,
        headers: Mapping[str, Any] | None,
    ) -> str:
        with self._lock:
            newest = keys.newest
            key = keys.keys.get(kid or newest) or keys.keys[newest]
            self.issued += 1
        kept = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(kept, key, "RS256", {"kid": kid or newest, **(headers or {})})


def object_id(client: str) -> str:
    """`oid` of the tokens of a service principal or a managed identity."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, client))


def public_pem(key: rsa.RSAPrivateKey) -> bytes:
    """The public half, for tests that misuse it as a secret."""
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _public(kid: str, key: rsa.RSAPrivateKey, issuer: str) -> dict[str, str]:
    numbers = key.public_key().public_numbers()
    return {
        "kty": "RSA",
        "use": "sig",
        "kid": kid,
        "n": _encode(numbers.n.to_bytes(256, "big")),
        "e": _encode(numbers.e.to_bytes(3, "big")),
        "issuer": issuer,
    }


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

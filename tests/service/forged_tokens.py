"""Tokens that must not be taken, by what is wrong with them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any, Literal

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.services.entra_server import AUDIENCE, OTHER_TENANT, TENANT, EntraServer, public_pem

LONGEST = 16 * 1024


def forgeries(entra: EntraServer) -> dict[str, bytes]:
    """Name -> token. `entra` issues them or is impersonated; TENANT alone is trusted."""
    return {
        name: token if isinstance(token, bytes) else token.encode("latin-1")
        for group in (_signatures, _headers, _claims, _shapes)
        for name, token in group(entra).items()
    }


def _signatures(entra: EntraServer) -> dict[str, str]:
    good = entra.issue()
    head, body, signature = good.split(".")
    claims = _claims_of(good)
    public = public_pem(entra.private_key)
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    admin = _part({**claims, "roles": ["Tasks.Admin"]})
    none = _part({"typ": "JWT", "alg": "none", "kid": entra.kid})
    return {
        "alg none": f"{none}.{body}.",
        "alg none with a signature": f"{none}.{body}.{signature}",
        "alg None": f"{_part({'alg': 'None', 'kid': entra.kid})}.{body}.",
        "alg NONE": f"{_part({'alg': 'NONE', 'kid': entra.kid})}.{body}.",
        "HS256 with the public key": _hs256(entra.kid, claims, public),
        "HS256 with the public key's numbers": _hs256(entra.kid, claims, _modulus(entra)),
        "HS256 with an empty secret": _hs256(entra.kid, claims, b""),
        "HS256 with the key id": _hs256(entra.kid, claims, entra.kid.encode()),
        "another key with our key id": _signed(claims, stranger, entra.kid),
        "a short key with our key id": _raw({"alg": "RS256", "kid": entra.kid}, claims, weak),
        "PS256 with the issuer's key": _signed(claims, entra.private_key, entra.kid, "PS256"),
        "RS512 with the issuer's key": _signed(claims, entra.private_key, entra.kid, "RS512"),
        "ES256": _signed(claims, ec.generate_private_key(ec.SECP256R1()), entra.kid, "ES256"),
        "signature of another token": f"{head}.{admin}.{signature}",
        "no signature": f"{head}.{body}.",
        "signature cut short": good[:-8],
        "signature of zeros": f"{head}.{body}.{_encode(bytes(256))}",
        "signature one bit off": f"{head}.{body}.{_flipped(signature)}",
        "header changed": f"{_part({'alg': 'RS256', 'kid': entra.kid, 'x': 1})}.{body}.{signature}",
    }


def _headers(entra: EntraServer) -> dict[str, str]:
    claims = _claims_of(entra.issue())
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    numbers = stranger.public_key().public_numbers()
    own = {
        "kty": "RSA",
        "kid": entra.kid,
        "n": _encode(numbers.n.to_bytes(256, "big")),
        "e": _encode(numbers.e.to_bytes(3, "big")),
    }

    def signed(**header: Any) -> str:
        return _signed(claims, stranger, header.pop("kid", entra.kid), "RS256", header)

    return {
        "jku to the forger": signed(jku="https://127.0.0.1:1/keys"),
        "jku to a file": signed(jku="file:///etc/hostname"),
        "x5u to the forger": signed(x5u="https://127.0.0.1:1/cert"),
        "jwk with the forger's key": signed(jwk=own),
        "x5c with the forger's certificate": signed(x5c=["MIIB"]),
        "kid as a path": signed(kid="../../../../dev/null"),
        "kid as SQL": signed(kid="x' UNION SELECT 'key'; --"),
        "kid as a URL": signed(kid="https://127.0.0.1:1/keys"),
        "kid with NUL": signed(kid=f"{entra.kid}\0"),
        "kid empty": signed(kid=""),
        "kid unknown": signed(kid="no-such-key"),
        "kid unknown, issuer's key": _signed(claims, entra.private_key, "no-such-key"),
        "kid very long": signed(kid="k" * 3000),
        "kid a number": _raw({"alg": "RS256", "kid": 7}, claims, entra.private_key),
        "kid a list": _raw({"alg": "RS256", "kid": [entra.kid]}, claims, entra.private_key),
        "kid missing": _raw({"alg": "RS256"}, claims, entra.private_key),
        "alg missing": _raw({"kid": entra.kid}, claims, entra.private_key),
        "alg a list": _raw({"alg": ["RS256"], "kid": entra.kid}, claims, entra.private_key),
        "alg in small letters": _raw({"alg": "rs256", "kid": entra.kid}, claims, entra.private_key),
        "crit unknown": _raw(
            {"alg": "RS256", "kid": entra.kid, "crit": ["x"], "x": 1}, claims, entra.private_key
        ),
        "b64 false": _raw(
            {"alg": "RS256", "kid": entra.kid, "crit": ["b64"], "b64": False},
            claims,
            entra.private_key,
        ),
        "header a list": f"{_part([])}.{_part(claims)}.{_encode(bytes(256))}",
        "header twice deep": f"{_encode(b'[' * 9000)}.{_part(claims)}.AA",
    }


def _claims(entra: EntraServer) -> dict[str, str]:
    now = int(time.time())

    def issue(claims: Mapping[str, Any] | None = None, version: Literal[1, 2] = 2) -> str:
        # Signed by the issuer's key, whatever the library would have refused to sign.
        whole = _claims_of(entra.issue(version=version)) | dict(claims or {})
        kept = {name: value for name, value in whole.items() if value is not None}
        return _raw({"alg": "RS256", "kid": entra.kid}, kept, entra.private_key)

    strange = {
        "other tenant, our issuer": {"tid": OTHER_TENANT},
        "our tenant, other issuer": {"iss": entra.issuer(2, OTHER_TENANT)},
        "issuer unknown": {"iss": "https://forger.example/"},
        "issuer with another end": {"iss": f"{entra.issuer()}/"},
        "issuer in capitals": {"iss": entra.issuer().upper()},
        "issuer a list": {"iss": [entra.issuer()]},
        "issuer of the common endpoint": {"iss": f"{entra.url}/common/v2.0"},
        "audience another": {"aud": "00000003-0000-0000-c000-000000000000"},
        "audience a part": {"aud": AUDIENCE[:-1]},
        "audience a number": {"aud": 7},
        "audience empty": {"aud": []},
        "expired": {"exp": now - 3600, "iat": now - 7200, "nbf": now - 7200},
        "expired long ago": {"exp": 1},
        "not yet valid": {"nbf": now + 3600},
        "issued tomorrow": {"iat": now + 86400},
        "exp a word": {"exp": "tomorrow"},
        "exp a list": {"exp": [now + 3600]},
        "exp negative": {"exp": -1},
        "nbf a word": {"nbf": "now"},
        "tid empty": {"tid": ""},
        "tid a list": {"tid": [TENANT]},
        "oid empty": {"oid": ""},
        "oid a number": {"oid": 5},
        "oid with NUL": {"oid": "a\0b"},
        "oid very long": {"oid": "a" * 300},
    }
    tokens = {name: issue(claims) for name, claims in strange.items()}
    for claim in ("exp", "iat", "nbf", "iss", "aud", "tid", "oid"):
        tokens[f"{claim} missing"] = issue({claim: None})
        tokens[f"{claim} missing, version 1"] = issue({claim: None}, version=1)
    tokens["other tenant"] = entra.issue({"tid": OTHER_TENANT})
    tokens["other tenant, version 1"] = entra.issue({"tid": OTHER_TENANT}, version=1)
    tokens["other tenant, our issuer, version 1"] = issue({"tid": OTHER_TENANT}, version=1)
    tokens["of another provider"] = entra.issue_oidc()
    tokens["of another provider, our issuer"] = entra.issue_oidc(_claims_of(issue()))
    for number in ("1e999", "-1e999", "NaN", "9" * 400):
        claims = json.dumps(_claims_of(issue({"exp": 0}))).replace('"exp": 0', f'"exp": {number}')
        header = {"alg": "RS256", "kid": entra.kid}
        tokens[f"exp {number[:6]}"] = _raw(header, claims, entra.private_key)
    return tokens


def _shapes(entra: EntraServer) -> dict[str, str | bytes]:
    good = entra.issue()
    head, _, signature = good.split(".")
    private = entra.private_key
    header = {"alg": "RS256", "kid": entra.kid}
    return {
        "empty": "",
        "a word": "token",
        "dots": "..",
        "two parts": good.rpartition(".")[0],
        "five parts": f"{good}.{head}.{signature}",
        "padding": f"{head}==.{good.split('.', 1)[1]}",
        "a space within": f"{good[:50]} {good[50:]}",
        "letters beyond ASCII": good[:50] + "ü" + good[51:],
        "bytes": bytes(range(128, 256)),
        "claims no JSON": _raw(header, "not json", private),
        "claims a list": _raw(header, "[1]", private),
        "claims null": _raw(header, "null", private),
        "claims very deep": _raw(header, "[" * 9000, private),
        "claims deep within": _raw(header, '{"iss":' * 1800, private),
        "claims not UTF-8": f"{head}.{_encode(bytes([255, 254]))}.{signature}",
        "just too large": entra.issue({"x": "x" * LONGEST}),
        "huge": "a." * 12000,
    }


def _hs256(kid: str, claims: Mapping[str, Any], secret: bytes) -> str:
    signed = f"{_part({'typ': 'JWT', 'alg': 'HS256', 'kid': kid})}.{_part(claims)}"
    return f"{signed}.{_encode(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"


def _signed(
    claims: Mapping[str, Any],
    key: Any,
    kid: str,
    algorithm: str = "RS256",
    header: Mapping[str, Any] | None = None,
) -> str:
    return jwt.encode(dict(claims), key, algorithm, {"kid": kid, **(header or {})})


def _raw(header: Mapping[str, Any], claims: Mapping[str, Any] | str, key: Any) -> str:
    """Signed by RS256 whatever the header says."""
    body = claims if isinstance(claims, str) else json.dumps(dict(claims))
    signed = f"{_part(header)}.{_encode(body.encode())}"
    algorithm = jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256)
    return f"{signed}.{_encode(algorithm.sign(signed.encode(), key))}"


def _claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


def _modulus(entra: EntraServer) -> bytes:
    return entra.private_key.public_key().public_numbers().n.to_bytes(256, "big")


def _flipped(signature: str) -> str:
    raw = bytearray(base64.urlsafe_b64decode(signature + "=="))
    raw[100] ^= 1
    return _encode(bytes(raw))


def _part(value: Any) -> str:
    return _encode(json.dumps(value if not isinstance(value, Mapping) else dict(value)).encode())


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

"""A stand-in for Microsoft Entra ID: issues tokens to one service principal, and to a managed
identity, over TLS.

It checks the client's secret, as Entra does, and answers with Entra's codes. Sources: "OAuth 2.0
client credentials flow on the Microsoft identity platform", "Access token claims reference".
"""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.services import certificates

TENANT = "11111111-2222-3333-4444-555555555555"
CLIENT = "66666666-7777-8888-9999-aaaaaaaaaaaa"
SECRET = "the-principals-secret"
MANAGED_SECRET = "the-hosts-identity-header"
"""What a program on a host with a managed identity knows (IDENTITY_HEADER)."""


class TokenIssuer(ThreadingHTTPServer):
    """One tenant with one service principal. `issued` counts the tokens."""

    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        made = certificates.make(directory, "127.0.0.1")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made.certificate, made.key)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.ca = made.authority
        self.url = f"https://127.0.0.1:{self.server_address[1]}"
        self.issued = 0
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def token(self, audience: str) -> str:
        """A signed access token (version 1), good for an hour."""
        now = int(time.time())
        claims = {
            "aud": audience,
            "iss": f"https://sts.windows.net/{TENANT}/",
            "iat": now,
            "nbf": now - 300,
            "exp": now + 3600,
            "appid": CLIENT,
            "oid": str(uuid.uuid5(uuid.NAMESPACE_OID, CLIENT)),
            "sub": str(uuid.uuid5(uuid.NAMESPACE_OID, CLIENT)),
            "tid": TENANT,
            "ver": "1.0",
        }
        parts = [_encode(json.dumps(part).encode()) for part in ({"alg": "RS256"}, claims)]
        signed = ".".join(parts)
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        self.issued += 1
        return f"{signed}.{_encode(signature)}"


class _Handler(BaseHTTPRequestHandler):
    server: TokenIssuer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """OpenID Connect discovery, and tokens of a managed identity."""
        parts = urlsplit(self.path)
        if parts.path == "/msi/token":
            self._managed(parse_qs(parts.query))
            return
        if not self.path.startswith(f"/{TENANT}/v2.0/.well-known/openid-configuration"):
            self._answer(404, {"error": "invalid_tenant"})
            return
        base = f"{self.server.url}/{TENANT}"
        self._answer(
            200,
            {
                "issuer": f"{base}/v2.0",
                "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                "token_endpoint": f"{base}/oauth2/v2.0/token",
            },
        )

    def do_POST(self) -> None:
        """The token endpoint."""
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        given = {name: values[0] for name, values in form.items()}
        if self.path != f"/{TENANT}/oauth2/v2.0/token":
            self._answer(404, {"error": "invalid_tenant"})
        elif given.get("client_id") != CLIENT or given.get("grant_type") != "client_credentials":
            said = "AADSTS700016: Application was not found in the directory."
            self._answer(400, {"error": "unauthorized_client", "error_description": said})
        elif given.get("client_secret") != SECRET:
            said = "AADSTS7000215: Invalid client secret provided."
            self._answer(401, {"error": "invalid_client", "error_description": said})
        else:
            audience = given["scope"].removesuffix("/.default")
            token = self.server.token(audience)
            reply = {"token_type": "Bearer", "expires_in": 3600, "access_token": token}
            self._answer(200, reply)

    def _managed(self, query: dict[str, list[str]]) -> None:
        """As App Service and Container Apps have it ("REST endpoint reference")."""
        if self.headers["X-IDENTITY-HEADER"] != MANAGED_SECRET:
            self._answer(401, {"message": "wrong identity header"})
            return
        reply = {
            "access_token": self.server.token(query["resource"][0]),
            "expires_on": str(int(time.time()) + 3600),
            "resource": query["resource"][0],
            "token_type": "Bearer",
            "client_id": CLIENT,
        }
        self._answer(200, reply)

    def _answer(self, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Nothing: tests have their own words."""


@contextmanager
def token_issuer(directory: Path) -> Iterator[TokenIssuer]:
    """A running issuer, its files in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    with TokenIssuer(directory) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

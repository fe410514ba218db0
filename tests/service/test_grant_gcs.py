"""Tokens of a Google service account: the real google-auth against a token service on loopback,
which verifies the account's signature as Google does."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tesazure.errors import StorageError, StorageUnavailable
from tesazure.plan import Plan
from tesazure.settings import load
from tesazure.storage.configured import grant_config_of
from tesazure.storage.grant import Granter
from tests.unit.test_grant import plan_of

SCOPE = "https://www.googleapis.com/auth/devstorage.read_"
ACCOUNT = "runner@project.iam.gserviceaccount.com"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


class TokenService(ThreadingHTTPServer):
    """Source: "Using OAuth 2.0 for server to server applications" (Google)."""

    daemon_threads = True
    life_s = 3600
    failures = 0
    issued = 0
    scopes: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/token"


class _Handler(BaseHTTPRequestHandler):
    server: TokenService

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        if self.server.failures:
            self.server.failures -= 1
            self._answer(503, {"error": "internal_failure"})
            return
        head, claims, signature = form["assertion"][0].split(".")
        try:
            signed = f"{head}.{claims}".encode()
            KEY.public_key().verify(_decode(signature), signed, padding.PKCS1v15(), hashes.SHA256())
            said = json.loads(_decode(claims))
            assert said["iss"] == ACCOUNT
            assert said["scope"].startswith(SCOPE)
            self.server.scopes += (said["scope"].removeprefix(SCOPE),)
            assert said["iat"] - 60 < time.time() < said["exp"]
        except (InvalidSignature, AssertionError):
            text = "Invalid JWT Signature."
            self._answer(400, {"error": "invalid_grant", "error_description": text})
            return
        self.server.issued += 1
        token = f"token-{self.server.issued}"
        life_s = self.server.life_s
        self._answer(200, {"access_token": token, "expires_in": life_s, "token_type": "Bearer"})

    def _answer(self, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Nothing."""


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@pytest.fixture
def service() -> Iterator[TokenService]:
    with TokenService(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def granter(directory: Path, uri: str, key: rsa.RSAPrivateKey = KEY) -> Granter:
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    document = {
        "type": "service_account",
        "client_email": ACCOUNT,
        "private_key_id": "1",
        "private_key": pem.decode(),
        "token_uri": uri,
    }
    file = directory / "account.json"
    file.write_text(json.dumps(document))
    return Granter(grant_config_of(load({"APP_GCS_CREDENTIALS_FILE": str(file)}).settings))


GS = plan_of(("gs://bucket/key", None))


def writing(max_runtime_s: float = 0) -> Plan:
    """A plan with an output that goes to Google."""
    output = ("/out/x", "gs://bucket/out", None)
    return plan_of(("gs://bucket/key", None), outputs=(output,), max_runtime_s=max_runtime_s)


def test_a_token_that_is_handed_out_lasts_for_nearly_an_hour(
    service: TokenService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for without the proxies that the environment names."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    made = granter(tmp_path, service.url)
    assert not made.is_quick(GS)
    assert [made.access(GS, {}).gcs_token for _ in range(3)] == ["token-1"] * 3
    assert made.access(plan_of(("s3://bucket/key", None)), {}).gcs_token == ""
    service.life_s = 54 * 60  # what is left of one that was kept for six minutes
    made = granter(tmp_path, service.url)
    assert [made.access(GS, {}).gcs_token for _ in range(2)] == ["token-2", "token-3"]


def test_a_token_writes_only_where_an_output_does(service: TokenService, tmp_path: Path) -> None:
    made = granter(tmp_path, service.url)
    plans = (GS, writing(), plan_of(("drs://host/id", None)), writing(), GS)
    tokens = [made.access(plan, {}).gcs_token for plan in plans]
    assert tokens == ["token-1", "token-2", "token-1", "token-2", "token-1"]
    assert service.scopes == ("only", "write")


def test_outputs_that_a_token_may_not_live_to_see_are_remarked(
    service: TokenService, tmp_path: Path
) -> None:
    made = granter(tmp_path, service.url)
    for plan, notes in ((writing(), 1), (writing(3601), 1), (writing(1800), 0), (GS, 0)):
        granted = made.access(plan, {}).notes
        assert len(granted) == notes
        assert all("longer than an hour" in note for note in granted)


def test_a_short_failure_of_the_token_service_passes(service: TokenService, tmp_path: Path) -> None:
    service.failures = 1
    assert granter(tmp_path, service.url).access(GS, {}).gcs_token == "token-1"


def test_a_refusal_is_final_and_an_absence_is_not(service: TokenService, tmp_path: Path) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    with pytest.raises(StorageError, match=r"GCS_CREDENTIALS_FILE: .*invalid_grant") as refused:
        granter(tmp_path, service.url, other).access(GS, {})
    assert not refused.value.retryable
    assert "PRIVATE" not in str(refused.value)
    with pytest.raises(StorageUnavailable, match="cannot be reached"):
        granter(tmp_path, "http://127.0.0.1:1/token").access(GS, {})

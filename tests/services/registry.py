"""A container registry for tests, on loopback, where Docker allows plain HTTP and any authority.

Source: the OCI Distribution Specification, "Pull". Every repository holds the same image.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import threading
from pathlib import Path

from tests.services.certificates import Certificate
from tests.services.loopback_http import LoopbackHttp, QuietHandler

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"

USER, PASSWORD = "puller", "pull-me-7c1f"
_LOGIN = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
_PIECE = 16 * 1024
_PAUSE_S = 0.25


class Registry(LoopbackHttp):
    """As a context manager. Repositories by name: `missing/…` is not there, `private/…` is refused,
    `flaky/…` ends the first connection without an answer, `slow/…` sends its layer in small pieces
    until `go_on` is set; any other one is well."""

    def __init__(
        self, layer: Path, *, closed: bool = False, certificate: Certificate | None = None
    ) -> None:
        """`layer`: tar file of the image's only layer. A `closed` one is for `USER` alone."""
        super().__init__(_Handler, certificate)
        self._closed = closed
        content = layer.read_bytes()
        packed = gzip.compress(content, 1)
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [_digest(content)]},
            }
        ).encode()
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": _describe(CONFIG, config),
                "layers": [_describe(LAYER, packed)],
            }
        ).encode()
        self.blobs = {_digest(blob): blob for blob in (packed, config)}
        self.layer = _digest(packed)
        self.go_on = threading.Event()
        self.asked: list[str] = []
        """Paths of all requests."""

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        super().__exit__()

    def answer(self, request: QuietHandler) -> None:
        """Answer a GET or HEAD."""
        path = request.path
        seen = path in self.asked
        self.asked.append(path)
        kind = path.removeprefix("/v2/").partition("/")[0]
        if kind == "flaky" and not seen and "/manifests/" in path:
            request.close_connection = True
        elif kind == "private" or not self.is_known(request):
            request.send_response(401)
            request.send_header("WWW-Authenticate", self.challenge(request))
            self._error(request, "UNAUTHORIZED", "authentication required")
        elif path == "/v2/":
            request.send_response(200)
            self._body(request, "application/json", b"{}")
        elif "/manifests/" in path and kind != "missing":
            request.send_response(200)
            request.send_header("Docker-Content-Digest", _digest(self.manifest))
            self._body(request, MANIFEST, self.manifest)
        elif (blob := self.blobs.get(path.rpartition("/")[2])) is not None:
            request.send_response(200)
            slow = kind == "slow" and path.endswith(self.layer)
            self._body(request, "application/octet-stream", blob, slow=slow)
        else:
            request.send_response(404)
            self._error(request, "MANIFEST_UNKNOWN", "manifest unknown")

    def is_known(self, request: QuietHandler) -> bool:
        """Whether a request shows a login that this registry takes."""
        return not self._closed or request.headers["Authorization"] == _LOGIN

    def challenge(self, request: QuietHandler) -> str:
        """How to log in, for one that does not."""
        del request
        return 'Basic realm="test"'

    def exchange(self, request: QuietHandler) -> None:
        """Answer a POST, of which a plain registry knows none."""
        request.reply(404)

    def _error(self, request: QuietHandler, code: str, message: str) -> None:
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        self._body(request, "application/json", body)

    def _body(self, request: QuietHandler, kind: str, body: bytes, *, slow: bool = False) -> None:
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "HEAD":
            return
        for start in range(0, len(body), _PIECE):
            request.wfile.write(body[start : start + _PIECE])
            if slow:
                self.go_on.wait(_PAUSE_S)


class _Handler(QuietHandler):
    owner: Registry

    def do_GET(self) -> None:
        self.owner.answer(self)

    def do_HEAD(self) -> None:
        self.owner.answer(self)

    def do_POST(self) -> None:
        self.owner.exchange(self)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _describe(kind: str, blob: bytes) -> dict[str, object]:
    return {"mediaType": kind, "size": len(blob), "digest": _digest(blob)}

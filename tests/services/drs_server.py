"""A stand-in for a GA4GH DRS 1.x server, over HTTP on loopback, that checks bearer tokens and the
headers that it told clients to send when they fetch bytes."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.services.certificates import Certificate
from tests.services.loopback_http import LoopbackHttp, QuietHandler

TOKEN = "drs-token-for-tests"
_OBJECTS = "/ga4gh/drs/v1/objects/"


class DrsServer(LoopbackHttp):
    """Objects and bundles, and the bytes of objects, as a context manager.

    With a `token`, every request for an object needs it; bytes are served at URLs that are told by
    `/access/` alone, to whoever sends the header told with them. `statuses` are answered to the
    next requests for objects, with the Retry-After of no time. `asked` is every request's path.
    With a `certificate` it speaks https.
    """

    def __init__(self, token: str = "", certificate: Certificate | None = None) -> None:
        super().__init__(_Handler, certificate)
        self.token = token
        self.objects: dict[str, dict[str, Any]] = {}
        self.contents: dict[str, bytes] = {}
        self.accesses: dict[str, dict[str, Any]] = {}
        self.statuses: list[int] = []
        self.asked: list[str] = []
        self.ticket = f"Bearer ticket-{secrets.token_hex(8)}"

    def add(self, object_id: str, content: bytes, **more: Any) -> str:
        """An object with its bytes on this server; its URL."""
        self.contents[object_id] = content
        self.accesses[object_id] = {
            "url": f"{self.origin}/bytes/{object_id}?signature=a-secret",
            "headers": [f"Authorization: {self.ticket}"],
        }
        described = {
            "id": object_id,
            "size": len(content),
            "checksums": [{"type": "sha-256", "checksum": hashlib.sha256(content).hexdigest()}],
            "access_methods": [{"type": "https", "access_id": object_id}],
        }
        self.objects[object_id] = described | more
        return self.url(object_id)

    def add_bundle(self, object_id: str, contents: Mapping[str, str]) -> str:
        """A bundle: names -> ids; its URL."""
        listed = [{"name": name, "id": inner} for name, inner in contents.items()]
        self.objects[object_id] = {"id": object_id, "checksums": [], "contents": listed}
        return self.url(object_id)

    def url(self, object_id: str) -> str:
        """The drs URL of an id."""
        return f"drs://{self.host}/{object_id}"


class _Handler(QuietHandler):
    owner: DrsServer

    def do_GET(self) -> None:
        owner = self.owner
        path = urlsplit(self.path).path
        owner.asked.append(path)
        given = self.headers.get("Authorization", "")
        if path.startswith("/bytes/"):
            if given != owner.ticket or not self.path.endswith("?signature=a-secret"):
                self.reply(403, b"")
            else:
                self.reply(200, owner.contents[path.removeprefix("/bytes/")])
        elif not path.startswith(_OBJECTS):
            self.reply(404, b"")
        elif owner.statuses:
            self.reply(owner.statuses.pop(0), b"", {"Retry-After": "0"})
        elif owner.token and given != f"Bearer {owner.token}":
            self._describe(401, {"msg": "no valid token", "status_code": 401})
        else:
            object_id, _, access = path.removeprefix(_OBJECTS).partition("/access/")
            known = owner.accesses if access else owner.objects
            found = known.get(unquote(access or object_id))
            self._describe(*((200, found) if found else (404, {"status_code": 404})))

    def _describe(self, status: int, document: Mapping[str, Any]) -> None:
        self.reply(status, json.dumps(document).encode(), {"Content-Type": "application/json"})

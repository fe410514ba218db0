"""An HTTP server that gives and takes nothing without the right signature or password."""

from __future__ import annotations

import base64
from urllib.parse import parse_qs, urlsplit

from tests.services.loopback_http import LoopbackHttp, QuietHandler

MARKER = "<AuthenticationErrorDetail>"


class LockedHttp(LoopbackHttp):
    """Objects on loopback, as a context manager. A path in `signatures` wants `?sig=` with that
    value, one in `passwords` wants Basic authentication with that `user:password`. Whoever brings
    another one is refused as Azure refuses: in words that hold what was brought."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.objects: dict[str, bytes] = {}
        self.signatures: dict[str, str] = {}
        self.passwords: dict[str, str] = {}
        self.refused: list[str] = []
        """Paths for which something wrong was brought."""


class _Handler(QuietHandler):
    owner: LockedHttp

    def do_HEAD(self) -> None:
        """Size of an object."""
        self._give()

    def do_GET(self) -> None:
        """An object, or the part of it that Range names."""
        self._give()

    def do_PUT(self) -> None:
        """Take an object."""
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if path := self._admitted():
            self.owner.objects[path] = body
            self._answer(201, b"")

    def _give(self) -> None:
        path = self._admitted()
        if path is None:
            return
        whole = self.owner.objects.get(path)
        if whole is None:
            self._answer(404, b"<Error><Code>BlobNotFound</Code></Error>")
            return
        asked = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        if asked[0] and whole:
            start, end = int(asked[0]), min(int(asked[2] or len(whole)), len(whole) - 1)
            place = {"Content-Range": f"bytes {start}-{end}/{len(whole)}"}
            self._answer(206, whole[start : end + 1], place)
        else:
            self._answer(200, whole)

    def _admitted(self) -> str | None:
        """The path, if what is brought opens it; else the refusal has been sent."""
        owner, parts = self.owner, urlsplit(self.path)
        signature = parse_qs(parts.query).get("sig", [""])[0]
        brought = self.headers.get("Authorization", "")
        wanted = base64.b64encode(owner.passwords.get(parts.path, "").encode()).decode()
        if parts.path in owner.passwords and brought != f"Basic {wanted}":
            self._refuse(parts.path, 401, brought)
            return None
        if signature != owner.signatures.get(parts.path, ""):
            self._refuse(parts.path, 403, signature)
            return None
        return parts.path

    def _refuse(self, path: str, status: int, brought: str) -> None:
        self.owner.refused.append(path)
        said = f"<Error><Code>AuthenticationFailed {brought}</Code>{MARKER}{brought}</Error>"
        self._answer(status, said.encode(), {"x-ms-error-code": "AuthenticationFailed"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        reason = f"said {self.path}" if status == 403 else None
        self.reply(status, body, {"ETag": '"1"', **(headers or {})}, reason)

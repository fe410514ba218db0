"""An HTTP server that breaks in every way that servers and networks break, by a seed."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import random
import re
import select
import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from urllib.parse import unquote, urlsplit

from tests.services.loopback_http import LoopbackHttp, QuietHandler

FAULTS = (
    "reset",
    "cut",
    "cut_small",
    "cut_chunked",
    "stall",
    "delay",
    "announce_less",
    "announce_more",
    "corrupt",
    "status_408",
    "status_429",
    "status_500",
    "status_502",
    "status_503",
    "status_504",
    "ignore_range",
    "wrong_range",
    "change",
    "change_but_206",
    "other_etag",
    "limit_connections",
)
"""What can go wrong with a GET. `other_etag`: another machine answers, which has the same object
under another version. `limit_connections`: refused because another request for the object is
under way."""

PUT_FAULTS = (
    "reset",
    "cut",
    "stall",
    "delay",
    "refuse_early",
    "lose_answer",
    "status_408",
    "status_429",
    "status_500",
    "status_502",
    "status_503",
    "status_504",
)
"""What can go wrong with a PUT."""

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Served:
    """One object. `versions` grows when the object changes; the last one is what it now is."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.version = 1

    @property
    def etag(self) -> str:
        """A strong ETag of the present version."""
        return f'"v{self.version}"'


class FaultyHttp(LoopbackHttp):
    """Serves objects by GET and HEAD with Range, If-Match and If-Range, and takes them by PUT with
    Content-MD5, on loopback, as a context manager.

    Each GET fails with `rate` probability in one of `faults`, each PUT in one of `put_faults`, but
    an object never more than `in_a_row` times without being served rightly once. Every response to
    a GET carries Repr-Digest, without which no client can notice a wrong Content-Length. What was
    done wrong is counted in `done`, what was asked for is kept in `requests` as (method, path,
    headers). `answers` are functions for special paths. `stall_s` is the longest that a stalled
    response is held. `limit`: GETs served at once, beyond which they get a 503 and are counted
    in `refused`; 0: any number. With `wrong_checksum`, Repr-Digest is of something else, always.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        rate: float = 0,
        faults: tuple[str, ...] = FAULTS,
        put_faults: tuple[str, ...] = PUT_FAULTS,
        in_a_row: int = 4,
        stall_s: float = 10,
        limit: int = 0,
        wrong_checksum: bool = False,
    ) -> None:
        super().__init__(Handler)
        self.rate = rate
        self.faults = faults
        self.put_faults = put_faults
        self.in_a_row = in_a_row
        self.stall_s = stall_s
        self.limit = limit
        self.wrong_checksum = wrong_checksum
        self.seed = seed
        self.objects: dict[str, Served] = {}
        self.answers: dict[str, Callable[[Handler], None]] = {}
        self.done: Counter[str] = Counter()
        self.refused = 0
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.asked = threading.Event()
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.in_a_row_of: Counter[str] = Counter()
        self.under_way: Counter[str] = Counter()
        self._randoms: dict[str, random.Random] = {}

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        super().__exit__()

    def url(self, path: str) -> str:
        """URL of an absolute path."""
        return f"{self.origin}{path}"

    def add(self, path: str, content: bytes) -> str:
        """Serve `content` at a path, as a new version of what was there; its URL."""
        with self.lock:
            served = Served(content)
            before = self.objects.get(path)
            served.version += before.version if before else 0
            self.objects[path] = served
        return self.url(path)

    def random_of(self, path: str) -> random.Random:
        """Chance for one path, the same in every run whatever the threads do."""
        return self._randoms.setdefault(path, random.Random(f"{self.seed} {path}"))

    def next_fault(self, path: str, method: str, ranged: bool) -> str:
        """What is to go wrong with the next request for an object; empty: nothing."""
        if method == "HEAD":
            return ""
        with self.lock:
            chance = self.random_of(path)
            faults = self.put_faults if method == "PUT" else self.faults
            fault = chance.choice(faults) if chance.random() < self.rate else ""
            if fault in ("wrong_range", "change_but_206") and not ranged:
                fault = "cut"
            if fault == "limit_connections" and self.under_way[path] < 2:
                fault = "cut_small"
            if self.in_a_row_of[path] >= self.in_a_row:
                fault = ""
            self.in_a_row_of[path] = self.in_a_row_of[path] + 1 if fault else 0
            if fault:
                self.done[fault if method == "GET" else f"put_{fault}"] += 1
            return fault


class Handler(QuietHandler):
    """One connection."""

    owner: FaultyHttp

    def do_HEAD(self) -> None:
        """Answer without a body; never at fault."""
        self._answer()

    def do_GET(self) -> None:
        """Answer, in one of the ways that are wrong when it is time for one."""
        owner = self.owner
        path = unquote(urlsplit(self.path).path)
        with owner.lock:
            owner.under_way[path] += 1
            is_refused = 0 < owner.limit < owner.under_way.total()
            owner.refused += is_refused
        try:
            if is_refused:
                self.send_plain(503)
            else:
                self._answer()
        finally:
            with owner.lock:
                owner.under_way[path] -= 1

    def do_PUT(self) -> None:
        """Take an object, or fail to."""
        owner, path = self.owner, self._noted()
        if path in owner.answers:
            owner.answers[path](self)
            return
        fault = owner.next_fault(path, "PUT", ranged=False)
        length = int(self.headers.get("Content-Length", "0"))
        if fault == "reset":
            self.break_off()
        elif fault == "stall":
            self.wait_for_client(readable=False)
        elif fault == "refuse_early":
            self.close_connection = True
            self.send_plain(503)
        elif fault == "cut":
            self.rfile.read(length // 2)
            self.break_off()
        else:
            self._store(path, self.rfile.read(length), length, fault)

    def do_POST(self) -> None:
        """As PUT."""
        self.do_PUT()

    def do_PATCH(self) -> None:
        """As PUT."""
        self.do_PUT()

    def do_DELETE(self) -> None:
        """As PUT."""
        self.do_PUT()

    def _noted(self) -> str:
        """The path that is asked for, and a note of the request."""
        owner = self.owner
        owner.requests.append((self.command, self.path, dict(self.headers.items())))
        owner.asked.set()
        return unquote(urlsplit(self.path).path)

    def _store(self, path: str, body: bytes, length: int, fault: str) -> None:
        if len(body) != length:
            self.close_connection = True
            return
        if fault.startswith("status_"):
            self.send_plain(int(fault.removeprefix("status_")), {"Retry-After": "3600"})
            return
        if fault == "delay":
            self.owner.closing.wait(0.02)
        expected = self.headers.get("Content-MD5")
        if expected != base64.b64encode(hashlib.md5(body).digest()).decode():
            self.send_plain(400)
            return
        self.owner.add(path, body)
        if fault == "lose_answer":
            self.break_off()
        else:
            self.send_plain(201)

    def _answer(self) -> None:
        owner, path = self.owner, self._noted()
        if path in owner.answers:
            owner.answers[path](self)
            return
        served = owner.objects.get(path)
        if served is None:
            self.send_plain(404)
            return
        fault = owner.next_fault(path, self.command, "Range" in self.headers)
        if fault.startswith("status_"):
            self.send_plain(int(fault.removeprefix("status_")), {"Retry-After": "3600"})
            return
        if fault == "limit_connections":
            self.send_plain(503)
            return
        if fault == "reset":
            self.break_off()
            return
        etag = '"other"' if fault == "other_etag" else served.etag
        asked = self._range(etag)
        if fault == "change_but_206":
            self._change(path, served)
            etag = served.etag
        elif self.headers.get("If-Match", etag) != etag:
            self.send_plain(412)
            return
        self._send_object(path, served, etag, asked, fault)
        if fault == "change":
            self._change(path, served)

    def _range(self, etag: str) -> tuple[int, int | None] | None:
        """The first byte asked for and the last, None for the whole object (RFC 9110, 13.1.5)."""
        found = _RANGE.fullmatch(self.headers.get("Range", ""))
        if not found or self.headers.get("If-Range", etag) != etag:
            return None
        return int(found[1]), (int(found[2]) if found[2] else None)

    def _change(self, path: str, served: Served) -> None:
        owner = self.owner
        with owner.lock:
            size = owner.random_of(path).randrange(1, 2 * len(served.content) + 2)
            served.content = owner.random_of(path).randbytes(size)
            served.version += 1

    def _send_object(
        self,
        path: str,
        served: Served,
        etag: str,
        asked: tuple[int, int | None] | None,
        fault: str,
    ) -> None:
        content = served.content
        chance = self.owner.random_of(path)
        if asked is None or fault == "ignore_range":
            start, body = None, content
        else:
            start = max(0, asked[0] - 1) if fault == "wrong_range" else asked[0]
            if start >= len(content):
                self.send_plain(416, {"Content-Range": f"bytes */{len(content)}"})
                return
            body = content[start : len(content) if asked[1] is None else asked[1] + 1]
        announced = len(body)
        if fault == "announce_less":
            announced = chance.randrange(len(body)) if body else 0
        if fault == "announce_more":
            announced += chance.randrange(1, 5000)
        self.send_response(200 if start is None else 206)
        if start is not None:
            total = len(content) - len(body) + announced
            self.send_header("Content-Range", f"bytes {start}-{start + announced - 1}/{total}")
        self.send_header("ETag", etag)
        wrong = b"!" if self.owner.wrong_checksum else b""
        checksum = base64.b64encode(hashlib.sha256(content + wrong).digest()).decode()
        self.send_header("Repr-Digest", f"sha-256=:{checksum}:")
        if fault == "cut_chunked":
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(announced))
        self.end_headers()
        if self.command == "GET":
            self._send_body(body, fault, chance)

    def _send_body(self, body: bytes, fault: str, chance: random.Random) -> None:
        part = body[: chance.randrange(len(body) + 1)]
        if fault == "cut_small":
            part = body[: min(chance.randrange(100), len(body) - 1)]
        if fault in ("cut", "cut_small", "change", "change_but_206"):
            self.write(part)
            self.break_off()
        elif fault == "cut_chunked":
            self.write(b"%x\r\n" % (len(part) + 1) + part)
            self.break_off()
        elif fault == "stall":
            self.write(part)
            self.wait_for_client()
        elif fault == "delay":
            self.write(part)
            self.owner.closing.wait(0.02)
            self.write(body[len(part) :])
        elif fault == "corrupt" and body:
            place = chance.randrange(len(body))
            self.write(body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :])
        else:
            self.write(body)
            if fault.startswith("announce"):
                self.close_connection = True

    def send_plain(self, status: int, headers: dict[str, str] | None = None) -> None:
        """A response without a body."""
        self.reply(status, b"", headers)

    def write(self, data: bytes) -> None:
        """Send bytes to a client that may be gone."""
        with contextlib.suppress(OSError):
            self.wfile.write(data)
            self.wfile.flush()

    def break_off(self) -> None:
        """Close the connection, half of the time with a reset."""
        self.close_connection = True
        if zlib.crc32(self.path.encode()) % 2:
            linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        else:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def wait_for_client(self, readable: bool = True) -> None:
        """Send nothing more until the client goes away. Not `readable`: it is not read, either."""
        self.close_connection = True
        deadline = time.monotonic() + self.owner.stall_s
        while time.monotonic() < deadline and not self.owner.closing.is_set():
            if readable and select.select([self.connection], [], [], 0.05)[0]:
                return
            self.owner.closing.wait(0.05)

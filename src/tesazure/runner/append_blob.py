"""Append blobs that one process writes, with signed URLs, and a queue of one block before each.

A block that failed is sent again just as it was, on condition that the blob still has the length
it had: so nothing is ever there twice, whatever answers got lost.

Sources: "Append Block", "Put Blob", "Understanding block blobs, append blobs, and page blobs"
(Microsoft).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

from tesazure.errors import StorageError
from tesazure.storage.base import Progress
from tesazure.storage.patience import Again, Patience, pause_after
from tesazure.storage.transport import Transport
from tesazure.storage.wire import Answer, service_code, status_of

BLOCK = 4 * 2**20
"""Bytes of one request at most: what all versions of the service take."""
MOST_BLOCKS = 50_000
"""Of a blob."""
SLOWEST_S = 60.0
"""The longest time between blocks of a blob, in seconds, however many it has."""
PATIENCE = Patience(attempts=6, connect_s=10, read_s=20, longest_pause_s=8)
"""For a node's transport. How often the first request is tried, in some 12 seconds; an Outlet goes
on for as long as it is asked to."""

VERSION = {"x-ms-version": "2024-11-04"}
"""As in `storage.azure_requests`, which takes longer to load than all this."""
_MARK = "x-ms-meta-runner"
_EXISTS = frozenset(
    {"BlobAlreadyExists", "UnauthorizedBlobOverwrite", "AuthorizationPermissionMismatch"}
)
"""Who may create but not overwrite is told so before the condition is looked at; Azurite has the
last one for it."""
_FULL = frozenset({"BlockCountExceedsLimit", "RequestBodyTooLarge", "MaxBlobSizeConditionNotMet"})

Warn = Callable[[str], None]
"""Tells whoever operates the node, in a line."""


class Undeliverable(Exception):
    """Nothing more can be added to a blob; says why."""


class AppendBlob:
    """An append blob. `what` names it in messages. Each method is one request, and raises Again
    when another one may succeed, else Undeliverable."""

    def __init__(self, transport: Transport, url: str, what: str) -> None:
        self.what = what
        self.patience = transport.patience
        self.blocks = 0
        self.expires = expiry_of(url)
        """When its signature ends, in seconds since the epoch; None: not known."""
        self._transport = transport
        self._url = url
        self._size = 0
        self._mark = secrets.token_hex(16)
        self._unsure = False
        """Whether the last request may have been done, though no answer told so."""

    def create(self) -> bool:
        """Make it, empty. False when it is there already, perhaps by an earlier try of ours, or
        the URL does not permit to."""
        made = {"x-ms-blob-type": "AppendBlob", "If-None-Match": "*", _MARK: self._mark}
        answer = self._send("PUT", self._url, {**made, "Content-Type": "text/plain"}, b"")
        if service_code(answer) in _EXISTS:
            return False
        self._require(answer)
        return True

    def is_ours(self) -> bool:
        """Whether it was made by this object, for which the URL must permit to read."""
        answer = self._send("HEAD", self._url, {})
        self._require(answer)
        return answer.headers.get(_MARK) == self._mark

    def append(self, block: bytes) -> None:
        """Add a block. After Again, nothing but the same block may be tried."""
        url = f"{self._url}&comp=appendblock"
        condition = {"x-ms-blob-condition-appendpos": str(self._size)}
        sent = 0

        def count(size: int) -> None:
            nonlocal sent
            sent += size

        try:
            answer = self._send("PUT", url, condition, block, count)
        except Again:
            self._unsure = True
            raise
        # libcurl itself repeats what it sent into a connection that was closed meanwhile.
        self._unsure |= sent > len(block)
        has_landed = self._unsure and service_code(answer) == "AppendPositionConditionNotMet"
        if not has_landed:
            self._require(answer)
        self._unsure = False
        self._size += len(block)
        self.blocks += 1

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        progress: Progress | None = None,
    ) -> Answer:
        headers = {**VERSION, **headers}
        try:
            return self._transport.send(method, url, headers=headers, body=body, progress=progress)
        except StorageError as error:
            raise Again(str(error)) from error

    def _require(self, answer: Answer) -> None:
        if answer.succeeded:
            return
        said = status_of(answer)
        if answer.status == 404:
            raise Undeliverable(f"{self.what}: {said}; it is not there, or no more")
        if answer.status == 412:
            raise Undeliverable(f"{self.what}: {said}; something else writes it")
        if service_code(answer) in _FULL:
            raise Undeliverable(f"{self.what}: {said}; it holds no more")
        if answer.status in (401, 403):
            if self.expires is not None and time.time() >= self.expires:
                raise Undeliverable(f"{self.what}: {said}; its URL has expired")
            # Which of these it is Azure does not tell; the last one may pass.
            said += "; its URL has expired, or the account's key or its network rules were changed"
        raise Again(said)


def expiry_of(url: str) -> float | None:
    """When a signed URL expires ("Create a service SAS": `se`), in seconds since the epoch."""
    [given] = parse_qs(urlsplit(url).query).get("se") or [""]
    try:
        end = datetime.fromisoformat(given)
    except ValueError:
        return None
    return end.replace(tzinfo=end.tzinfo or UTC).timestamp()


def pace(first_s: float, blocks: int) -> float:
    """Seconds to wait after so many blocks, so that two weeks' trickle fits into a blob."""
    return min(first_s + blocks / 500, SLOWEST_S)


def claim(blob: AppendBlob, transport: Transport) -> bool:
    """Create a blob, which succeeds for one caller in the world: whether it did. Raises
    StorageUnavailable when the transport's patience is spent, Undeliverable."""
    created = transport.persist(blob.what, blob.create)
    # Not created: perhaps because it had been, and the answer got lost.
    return created or transport.persist(blob.what, blob.is_ours)


class Outlet:
    """What waits for being added to a blob. Never raises for storage's sake."""

    def __init__(self, blob: AppendBlob, pace_s: float, warn: Warn, *, created: bool) -> None:
        """`pace_s`: seconds between blocks that are not full, while the blob has few of them."""
        self.closed: Undeliverable | None = None
        """Why nothing more goes there."""
        self._blob = blob
        self._pace_s = pace_s
        self._warn = warn
        self._created = created
        self._waiting = b""
        self._trouble = ""
        self._failures = 0
        self._due = 0.0
        self._seen = time.monotonic()

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to send, or no way to."""
        return self.closed is not None or (self._created and not self._waiting)

    def takes(self, size: int, *, hurry: bool) -> bool:
        """Whether so many bytes are to be put here now, rather than later with what is to come."""
        is_free = not self._waiting and self.closed is None
        return is_free and (hurry or size >= BLOCK or time.monotonic() >= self._due)

    def put(self, data: bytes) -> None:
        """Take what is to be added next, once all before it has been."""
        self._waiting = data

    def send(self) -> bool:
        """One try to add a block of what waits, unless the last one failed just now; whether it
        was added."""
        if self.is_idle or (self._failures and time.monotonic() < self._due):
            return False
        try:
            if not self._created:
                self._blob.create()
                self._created = True
            if self._waiting:
                self._blob.append(self._waiting[:BLOCK])
        except Again as again:
            self._fail(again)
            return False
        except Undeliverable as error:
            self._close(error)
            return False
        self._waiting = self._waiting[BLOCK:]
        self._failures, self._trouble = 0, ""
        self._seen = time.monotonic()
        self._due = time.monotonic() + pace(self._pace_s, self._blob.blocks)
        if self._blob.blocks >= MOST_BLOCKS:
            self._close(Undeliverable(f"{self._blob.what}: its blob can hold no more blocks"))
        return True

    def look(self, every_s: float) -> None:
        """See whether the blob is still there, when nothing has been added for so many seconds.
        Its URL must permit to read."""
        if self.closed is None and time.monotonic() - self._seen > every_s:
            self._seen = time.monotonic()
            try:
                self._blob.is_ours()
            except Again:
                return  # whatever it is, the next block will meet it
            except Undeliverable as error:
                self._close(error)

    def give_up(self) -> None:
        """Send nothing any more, for want of time."""
        reason = f"; {self._trouble}" if self._trouble else ""
        self._close(Undeliverable(f"{self._blob.what}: the time for sending it is over{reason}"))

    def _fail(self, again: Again) -> None:
        self._failures += 1
        pause = pause_after(self._blob.patience, self._failures, again.retry_after_s)
        self._due = time.monotonic() + pause
        if again.reason != self._trouble:
            self._trouble = again.reason
            self._warn(f"{self._blob.what} will be sent again: {again.reason}")

    def _close(self, error: Undeliverable) -> None:
        self.closed, self._waiting = error, b""
        self._warn(str(error))

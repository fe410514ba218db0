"""Large objects in parts, several at once: what makes one file as fast as many connections."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Self

from tesazure.errors import StorageError
from tesazure.storage.base import Progress
from tesazure.storage.digests import Digest, offered_digest
from tesazure.storage.local import opened_directory, os_errors, whole_file
from tesazure.storage.patience import Again
from tesazure.storage.transport import Transport, require, status_of
from tesazure.storage.urls import printable, redact
from tesazure.storage.wire import Answer, Sink, content_length, content_range

PART = 8 * 2**20
"""Bytes of a part: long enough for a request's latency not to matter, short enough to share."""
CONNECTIONS = 12
"""Parts of one file on their way at once. Where a store gives 40 MB/s to each connection, 20 ms
away, 8 are 5.8 to 6.5 times as fast as one, and 12 are 7.2 to 7.4 times (two busy cores)."""

_READ = 2**20
_TICK_S = 0.2
_CALM = 16
"""Parts that come without a refusal before one more is asked for at once than the server took."""

Headers = Callable[[], Mapping[str, str]]
Work = Callable[[int, int, int, Progress | None], None]
"""Moves one part: its index, its offset and length in bytes, the Progress to call."""


def in_parts(
    size: int,
    part_size: int,
    work: Work,
    progress: Progress | None,
    connections: int = CONNECTIONS,
) -> None:
    """Does `work` for each part of `size` bytes, in up to `connections` threads.

    The first error is raised; it stops the others, which has come to an end by then. `progress` is
    called from all threads, one at a time.
    """

    def one(index: int, progress: Progress) -> None:
        offset = index * part_size
        work(index, offset, min(part_size, size - offset), progress)

    count = -(-size // part_size)
    with Crew(one, progress) as crew:
        crew.start(range(count), min(connections, count))
        crew.finish()


def offered(answer: Answer) -> Digest | None:
    """The checksum of the whole object that an answer's headers offer, if any."""
    _, total = content_range(answer)
    whole = answer.status == 200 or (total is not None and content_length(answer) == total)
    return offered_digest(answer.headers, whole=whole)


def download(  # noqa: PLR0913 - four of them are named and seldom given
    transport: Transport,
    url: str,
    path: Path,
    progress: Progress | None = None,
    *,
    headers: Headers | None = None,
    digest: Callable[[Answer], Digest | None] = offered,
    hint: Callable[[Answer], str] | None = None,
    conditions: bool = True,
) -> int:
    """Bring the object at `url` to the local file `path`, whole and checked, or not at all. Returns
    its size in bytes.

    The first request asks for the first part. A server that answers with it is asked for the others
    at the same time, each of them for the same version of the object, and each on its own again
    from where it broke. From any other server the object is taken as one stream.

    `headers` are made anew for each request. `digest` finds the checksum of the whole object in the
    first answer, or refuses the object: what it raises ends the download. `hint` is added to what a
    refusal says. Without `conditions` the server, which refuses them, is not asked to send parts of
    one version only: just what it says it sent counts.
    Raises what `Storage.get` does.
    """
    with (
        os_errors(f"{redact(url)} to {printable(str(path))}"),
        opened_directory(path.parent) as directory,
        whole_file(directory, path.name, 0o666) as target,
    ):
        coming = _Download(transport, url, target, headers, digest, hint, conditions)
        return transport.persist(coming.what, lambda: coming.attempt(progress), progress)


class Stopped(Exception):
    """Another part has failed, so that this one is not wanted any more."""


class Relieved(Exception):
    """Others of the crew do this part, later."""


class Crew:
    """Threads that share numbered work, and stop when one of them fails. A context manager, at
    whose end none of them is at work. It becomes smaller where a server refuses to serve so many,
    and grows again by one after 16 parts without a refusal."""

    def __init__(self, work: Callable[[int, Progress], None], progress: Progress | None) -> None:
        self._work = work
        self._told = progress
        self._lock = threading.Lock()
        self._telling = threading.Lock()
        self._items: Iterator[int] = iter(())
        self._returned: list[int] = []
        self._wanted = self._at_work = 0
        self._calm = 0
        """Items done since there were too many at work."""
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            while thread.is_alive():
                thread.join(_TICK_S)

    def start(self, items: Iterable[int], workers: int) -> None:
        """Begin, `finish` being one of the workers."""
        self._items = iter(items)
        self._wanted = self._at_work = workers
        for _ in range(workers - 1):
            self._hire()

    def relieve(self, item: int) -> None:
        """For a worker whose item is refused because too many are at work: raises Relieved and
        leaves it to the others, unless there are none."""
        with self._lock:
            self._calm = 0
            if self._at_work > 1:
                self._at_work -= 1
                self._returned.append(item)
                raise Relieved

    def progress(self, moved: int) -> None:
        """The Progress for whoever works here. Raises Stopped when work is to end."""
        with self._telling:
            if self._stop.is_set():
                raise Stopped
            try:
                if self._told:
                    self._told(moved)
            except BaseException as error:
                self.fail(error)
                raise

    def finish(self) -> None:
        """Take part until nothing is left, and wait for the others. Raises the first error."""
        self._labour()
        for thread in self._threads:
            while thread.is_alive():
                thread.join(_TICK_S)
        if self._error is not None:
            raise self._error

    def fail(self, error: BaseException) -> None:
        """Stop everybody because of an error, unless there was one before; Stopped is none."""
        with self._lock:
            if self._error is None and not isinstance(error, Stopped):
                self._error = error
        self._stop.set()

    def _labour(self) -> None:
        try:
            while not self._stop.is_set() and (item := self._next()) is not None:
                self._work(item, self.progress)
                if self._is_calm():
                    self._hire()
        except Relieved:
            return
        except BaseException as error:
            self.fail(error)

    def _next(self) -> int | None:
        with self._lock:
            item = self._returned.pop() if self._returned else next(self._items, None)
            if item is None:
                self._at_work -= 1
            return item

    def _is_calm(self) -> bool:
        """An item is done: whether one more worker is to be there, who counts from now on."""
        with self._lock:
            self._calm += 1
            if self._calm < _CALM or not 0 < self._at_work < self._wanted:
                return False
            self._calm = 0
            self._at_work += 1
            return True

    def _hire(self) -> None:
        name = f"part-{len(self._threads)}"
        thread = threading.Thread(target=self._labour, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)


class _Changed(Exception):
    """What the server holds is not what the first parts came from."""


class _Plainly(Exception):
    """This server's parts are of no use: ask for all at once."""


class _Part:
    """A stretch of the object: its first byte, the next one to come, and the one after its last,
    None until that is known."""

    def __init__(self, start: int, stop: int | None) -> None:
        self.start = self.position = self._furthest = start
        self.stop = stop

    def moved(self, length: int) -> int:
        """More of it is there; how much of that had not come in an earlier try."""
        self.position += length
        before, self._furthest = self._furthest, max(self._furthest, self.position)
        return self._furthest - before


class _Download:
    """What is known of an object while it comes in."""

    def __init__(
        self,
        transport: Transport,
        url: str,
        target: int,
        headers: Headers | None,
        digest: Callable[[Answer], Digest | None],
        hint: Callable[[Answer], str] | None,
        conditions: bool,
    ) -> None:
        self.what = f"GET {redact(url)}"
        self._transport = transport
        self._url = url
        self._target = target
        self._make_headers = headers
        self._offered = digest
        self._hint = hint
        self._conditions = conditions
        self._plainly = False
        self._changes = 0
        self._came = 0
        """Bytes of all parts, each counted once."""
        self._misfit: tuple[object, ...] = ()
        """What came when it did not have its checksum."""
        self._lock = threading.Lock()
        self._hashing = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        """Nothing has come yet."""
        os.ftruncate(self._target, 0)
        self._size: int | None = None
        self._version = ""
        self._same: dict[str, str] = {}
        """Headers that ask for the version of the object that the first answer was about."""
        self._digest: Digest | None = None
        self._hashed = 0
        self._arrived: set[int] = set()
        """Parts that have come before one that is missing."""
        self._frontier = 0
        """Number of parts that have come without a gap from the first one on."""

    def attempt(self, progress: Progress | None) -> int:
        """Bring all of it; its size. Raises Again when what came cannot be used."""
        try:
            with Crew(lambda index, progress: self._one(crew, index, progress), progress) as crew:
                size = self._first(crew)
                crew.finish()
        except _Changed as changed:
            # Again: perhaps there are several servers, each with a version of its own.
            self._plainly = self._plainly or self._changes > 0
            self._changes += 1
            raise Again(str(changed)) from changed
        if self._digest:
            self._verify(self._digest, size)
        return size

    def _verify(self, digest: Digest, size: int) -> None:
        """Raises Again for what may have been damaged on the way, StorageError for what came just
        so twice."""
        self._hash_up_to(size)
        if digest.matches():
            return
        before, self._misfit = self._misfit, (self._version, size, digest.expected, digest.value())
        if self._misfit == before:
            told = f"{digest.algorithm} {digest.expected.hex()}".strip()
            raise StorageError(
                f"{self.what}: the checksum stored with it ({told}) does not fit what it holds"
            )
        raise Again(f"what came does not have the announced {digest.algorithm} checksum")

    def _first(self, crew: Crew) -> int:
        """The first part. Its answer tells about the others, with which the crew then begins."""
        part = _Part(0, None)

        def planned(answer: Answer) -> Callable[[bytes], None]:
            self._plan(part, answer)
            if self._size is not None and self._size > PART:
                count = -(-self._size // PART)
                crew.start(range(1, count), min(CONNECTIONS, count))
            return lambda data: self._take(part, data)

        def once() -> None:
            if part.stop is None or not self._same:
                self._forget()
                part.position, part.stop = 0, None
                self._begin(part, planned, crew.progress)
            self._go_on(part, crew.progress)

        try:
            self._transport.persist(self.what, once, crew.progress, lambda: self._came)
            self._has_arrived(0)
        except BaseException as error:
            crew.fail(error)
        return self._size or 0

    def _begin(self, part: _Part, sink: Sink, progress: Progress) -> None:
        """The first request, which asks for the first part, or else for everything."""
        headers = {} if self._plainly else {"Range": f"bytes=0-{PART - 1}"}
        try:
            answer = self._ask(headers, sink, progress)
            if answer.status == 416 and not self._plainly and content_range(answer) != (None, 0):
                raise _Plainly
        except _Plainly:
            self._plainly = True
            self._forget()
            part.position = 0
            answer = self._ask({}, sink, progress)
        if answer.status != 416 or self._plainly:
            require(answer, self.what, hint=self._hint)
        else:  # as an empty object's first part is answered
            self._offered(answer)
        if self._size is None:
            self._size = part.stop = part.position

    def _plan(self, part: _Part, answer: Answer) -> None:
        """What the headers of the first answer tell."""
        start, total = content_range(answer)
        self._version = _version_of(answer)
        if answer.status == 206 and not self._plainly:
            self._same = _same_version(answer)
            if start != 0 or total is None or (total > PART and not self._same):
                raise _Plainly
            self._size = total
            part.stop = min(PART, total)
        elif answer.status != 200:
            raise StorageError(f"{self.what}: unexpected {status_of(answer)}")
        self._digest = self._offered(answer)

    def _one(self, crew: Crew, index: int, progress: Progress) -> None:
        """One of the other parts."""
        part = _Part(index * PART, min((index + 1) * PART, self._size or 0))

        def once() -> None:
            try:
                self._go_on(part, progress)
            except Again as again:
                if again.is_refusal and part.position == part.start:
                    crew.relieve(index)
                raise

        # While others come further, the server may have no place for this one.
        self._transport.persist(self.what, once, progress, lambda: self._came)
        self._has_arrived(index)

    def _go_on(self, part: _Part, progress: Progress) -> None:
        """What is missing of a part. Raises _Changed, and Again."""

        def continued(answer: Answer) -> Callable[[bytes], None]:
            start, total = content_range(answer)
            if (
                answer.status != 206
                or total != self._size
                or _version_of(answer) not in ("", self._version)
            ):
                raise _Changed("the object changed while it was read")
            if start != part.position:
                raise Again("the server sent another part than asked for")
            return lambda data: self._take(part, data)

        while part.stop is not None and part.position < part.stop:
            before = part.position
            if not self._same:
                raise Again(f"{before} bytes came of {part.stop} announced")
            same = self._same if self._conditions else {}
            wanted = {"Range": f"bytes={before}-{part.stop - 1}", **same}
            answer = self._ask(wanted, continued, progress)
            if answer.status in (412, 416):
                raise _Changed("the object changed while it was read")
            require(answer, self.what, hint=self._hint)
            if part.position == before:
                raise Again("the server sent nothing of the part that was asked for")

    def _ask(self, more: dict[str, str], sink: Sink, progress: Progress) -> Answer:
        headers = {**(self._make_headers() if self._make_headers else {}), **more}
        return self._transport.send("GET", self._url, headers=headers, sink=sink, progress=progress)

    def _take(self, part: _Part, data: bytes) -> None:
        if part.stop is not None and part.position + len(data) > part.stop:
            raise Again("more came than was announced")
        view = memoryview(data)
        while view:
            written = os.pwrite(self._target, view, part.position)
            with self._lock:
                self._came += part.moved(written)
            view = view[written:]
        if part.start == 0 and self._digest:  # nothing is missing before it
            self._digest.update(data)
            self._hashed += len(data)

    def _has_arrived(self, index: int) -> None:
        """A part is there: go on with the checksum, unless another thread is at it."""
        with self._lock:
            self._arrived.add(index)
            while self._frontier in self._arrived:
                self._arrived.discard(self._frontier)
                self._frontier += 1
            ready = min(self._frontier * PART, self._size or 0)
        if self._digest and self._hashing.acquire(blocking=False):
            try:
                self._hash_up_to(ready)
            finally:
                self._hashing.release()

    def _hash_up_to(self, end: int) -> None:
        while self._digest and self._hashed < end:
            data = os.pread(self._target, min(_READ, end - self._hashed), self._hashed)
            self._digest.update(data)
            self._hashed += len(data)


def _version_of(answer: Answer) -> str:
    """The version that an answer's parts are of; empty when it does not tell."""
    for name in ("etag", "last-modified"):
        told = answer.headers.get(name, "")
        # A weak one, or one that no request's header can hold, is of no use.
        if told and not told.startswith("W/") and told.isascii() and told.isprintable():
            return told
    return ""


def _same_version(answer: Answer) -> dict[str, str]:
    """Conditions under which a server sends parts of the same version (RFC 9110, 13.1); empty when
    it has told no version that can be relied on."""
    version = _version_of(answer)
    if not version:
        return {}
    # Azure Blob knows only the first of each, many web servers only the second.
    name = "If-Match" if version == answer.headers.get("etag") else "If-Unmodified-Since"
    return {name: version, "If-Range": version}

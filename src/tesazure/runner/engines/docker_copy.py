"""Copies the merged directories of a Layout into a container before it starts, and back."""

from __future__ import annotations

import base64
import io
import posixpath
import tarfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import cast

import docker
import msgspec
from docker.errors import NotFound

from tesazure.plan import contains
from tesazure.runner.engines.base import Say
from tesazure.runner.engines.docker_paths import (
    ADDED,
    DELETED,
    Change,
    to_bring_back,
    volumes_in,
)
from tesazure.runner.engines.tree_tar import pack, place, place_directory, unpack, walk
from tesazure.runner.tree import make_directories, remove_tree

_CHUNK = 2**20
_GO_DIRECTORY, _GO_LINK = 1 << 31, 1 << 27
"""Bits of Go's os.FileMode, which the API speaks."""


class Entry(msgspec.Struct, frozen=True):
    """What the engine says of a path in a container. `link` is where a link ends."""

    mode: int
    link: str = msgspec.field(name="linkTarget", default="")

    @property
    def is_directory(self) -> bool:
        return bool(self.mode & _GO_DIRECTORY)

    @property
    def is_link(self) -> bool:
        return bool(self.mode & _GO_LINK)


def look_up(client: docker.APIClient, container: str, path: str) -> Entry | None:
    """What lies at a path of a container, running or not; None if nothing does."""
    url = f"{client.base_url}/v{client.api_version}/containers/{container}/archive"
    reply = client.head(url, params={"path": path}, timeout=client.timeout)
    said = reply.headers.get("X-Docker-Container-Path-Stat")
    if reply.ok and said:
        return msgspec.json.decode(base64.b64decode(said), type=Entry)
    return None  # the reply to a HEAD has no reason; an engine that is ill fails the next request


def has_files(client: docker.APIClient, container: str, path: str) -> bool:
    """Whether a container has something in the directory, or there is no directory but a file."""
    entry = look_up(client, container, path)
    if entry is None:
        return False
    if not entry.is_directory and not entry.is_link:
        return True
    try:
        with _stream(client, container, f"{path}/.") as tar:
            return any(member.name.strip("/.") for member in tar)
    except NotFound:  # a link to nowhere
        return False


def real_path(client: docker.APIClient, container: str, path: str) -> str:
    """`path` with the image's own links resolved, as the engine names it among the changes."""
    done = ""
    for name in filter(None, path.split("/")):
        here = f"{done}/{name}"
        entry = look_up(client, container, here)
        done = entry.link if entry and entry.is_link else here
    return done or "/"


class Merged:
    """One merged directory of one container: `put` before it starts, `take` after it ended."""

    def __init__(
        self,
        client: docker.APIClient,
        container: str,
        directory: str,
        root: Path,
        apart: Sequence[str],
    ) -> None:
        """`directory` is a container path, `root` the task's tree. `apart`: container paths that
        are neither put nor taken: the executor's own streams."""
        self._client = client
        self._container = container
        self._directory = directory
        self._real = real_path(client, container, directory)
        self._top = make_directories(root, directory)
        self._apart = frozenset(
            posixpath.relpath(path, directory) for path in apart if contains(directory, path)
        )
        self._put: list[str] = []

    def put(self) -> None:
        """Copy the task's files into the container."""
        names = walk(self._top, deep=self._directory != "/")
        self._put = [name for name in names if name not in self._apart]
        if self._put:
            packed = pack(self._top, self._put)
            self._client.put_archive(self._container, self._directory, packed)

    def take(
        self, changes: Sequence[Change], bound: Sequence[str], volumes: Sequence[str], say: Say
    ) -> None:
        """Copy back what changed. `bound`: paths whose content lies on the host already."""
        inner = volumes_in([v for v in volumes if v not in bound], self._real)
        elsewhere = [*bound, *volumes]
        changed = {path for path, _ in changes}
        for name in self._put:
            path = posixpath.join(self._real, name)
            # Put there and deleted again: to the engine that is no change.
            if path not in changed and not any(contains(v, path) for v in volumes):
                remove_tree(self._top / name)
        whole = ""
        for name, kind in to_bring_back(changes, self._real, elsewhere):
            if name in self._apart or (whole and contains(whole, name)):
                continue
            if kind == DELETED:
                remove_tree(self._top / name)
                continue
            path = posixpath.join(self._real, name)
            deep = kind == ADDED and not any(contains(path, other) for other in elsewhere)
            if self._take(name, say, deep=deep, new=kind == ADDED):
                whole = name
        for name in inner:
            self._take(name, say, deep=True, new=True)

    def _take(self, name: str, say: Say, *, deep: bool, new: bool) -> bool:
        """Copy one entry back; whether it is a directory of which everything came along."""
        path = posixpath.join(self._real, name)
        entry = look_up(self._client, self._container, path)
        if entry is None or (entry.is_directory and not new):
            return False
        target = self._target(name)
        if not entry.is_directory:
            self._take_file(path, entry, target, say)
            return False
        place_directory(target, None if name == "." else entry.mode)
        if deep:
            skip = frozenset(posixpath.relpath(a, name) for a in self._apart if contains(name, a))
            with _stream(self._client, self._container, f"{path}/.") as tar:
                for refused in unpack(tar, target, skip):
                    self._refuse(f"{path}/{refused}", say)
        return deep

    def _take_file(self, path: str, entry: Entry, target: Path, say: Say) -> None:
        with _stream(self._client, self._container, path) as tar:
            member = next(iter(tar), None)
            if member is None:
                return
            if entry.is_link and not member.issym():  # Podman gives what the link points to
                member.type, member.linkname = tarfile.SYMTYPE, entry.link
            if not place(tar, member, target, target.parent):
                self._refuse(path, say)

    def _target(self, name: str) -> Path:
        if name == ".":
            return self._top
        parent = self._top
        for part in name.split("/")[:-1]:
            parent /= part
            place_directory(parent)
        return self._top / name

    def _refuse(self, path: str, say: Say) -> None:
        say("warning", f"{path} is neither a file, a directory nor a link and is not kept")


class _Reader(io.RawIOBase):
    """The chunks of a stream as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


@contextmanager
def _stream(client: docker.APIClient, container: str, path: str) -> Iterator[tarfile.TarFile]:
    """The tar stream of a path. Leaving early is fine."""
    chunks, _ = client.get_archive(container, path, chunk_size=_CHUNK)
    with closing(cast("Generator[bytes]", chunks)):
        reader = io.BufferedReader(_Reader(chunks), _CHUNK)
        with tarfile.open(fileobj=reader, mode="r|") as tar:
            yield tar

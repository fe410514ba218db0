"""Parts of a task's tree as tar streams, out of it and into it.

A stream from a container is not to be trusted: only plain files, directories and links are made
of it, all inside the directory it is unpacked to, and no link there is followed.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from tesazure.runner.tree import remove_tree

_CHUNK = 2**20


def walk(top: Path, *, deep: bool) -> Iterator[str]:
    """Everything below `top`, relative to it, parents first, following no link; without `deep`,
    only what lies in `top` itself and is no directory."""
    pending = [""]
    while pending:
        inside = pending.pop()
        with os.scandir(top / inside) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            name = f"{inside}{entry.name}"
            if not entry.is_dir(follow_symlinks=False):
                yield name
            elif deep:
                yield name
                pending.append(f"{name}/")


def pack(top: Path, names: Iterable[str]) -> Iterator[bytes]:
    """A tar stream of these entries of `top`. Sockets, pipes and devices are left out.

    Where this process is root, the owners go along, else all is root's. Raises OSError.
    """
    for name in names:
        path = top / name
        status = path.lstat()
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            continue
        member = tarfile.TarInfo(name)
        member.type = kind
        member.mode = stat.S_IMODE(status.st_mode)
        if os.geteuid() == 0:
            member.uid, member.gid = status.st_uid, status.st_gid
        # Exact to the nanosecond, for tools that compare times.
        member.pax_headers = {"mtime": f"{status.st_mtime_ns / 10**9:.9f}"}
        if kind == tarfile.SYMTYPE:
            member.linkname = os.readlink(path)  # noqa: PTH115 - a Path would change the target
        if kind == tarfile.REGTYPE:
            member.size = status.st_size
        yield member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        if kind == tarfile.REGTYPE:
            yield from _content(path, status.st_size)
    yield bytes(2 * tarfile.BLOCKSIZE)


_KINDS = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
}


def _content(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        left = size
        while left and (chunk := file.read(min(left, _CHUNK))):
            left -= len(chunk)
            yield chunk
    yield bytes(left + -size % tarfile.BLOCKSIZE)


def unpack(tar: tarfile.TarFile, top: Path, skip: frozenset[str] = frozenset()) -> list[str]:
    """Make the members of a tar stream below the directory `top`, in place of what is there.

    Returns the names of members that cannot be kept: devices and the like, and those whose name
    leads out of `top`. Raises OSError and tarfile.TarError.
    """
    refused = []
    for member in tar:
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if not parts or "/".join(parts) in skip:
            continue
        if ".." in parts or not place(tar, member, _make_way(top, parts), top):
            refused.append(member.name)
    return refused


def _make_way(top: Path, parts: list[str]) -> Path:
    """The path of an entry below `top`, whose parents are then real directories."""
    path = top
    for part in parts[:-1]:
        path /= part
        place_directory(path)
    return path / parts[-1]


def place_directory(path: Path, mode: int | None = None) -> None:
    """Have a real directory at `path`, ours to use whatever its mode; its parent exists."""
    if path.is_symlink() or not path.is_dir():
        remove_tree(path)
        path.mkdir()
    if mode is not None:
        path.chmod(mode & 0o777 | 0o700)


def place(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, top: Path) -> bool:
    """Make the member just reached at `path`, in place of what is there; its parent exists.

    False if it is of a kind that is not kept. `top`: where hard links may lead to. Set-user-id and
    the like are dropped, and its owner, this process's user, may always read and write it.
    """
    if member.isdir():
        place_directory(path, member.mode)
    elif member.isfile():
        remove_tree(path)
        content = tar.extractfile(member)
        assert content is not None  # noqa: S101 - it is a file
        with path.open("xb") as file:
            shutil.copyfileobj(content, file, _CHUNK)
        path.chmod(member.mode & 0o777 | 0o600)
        os.utime(path, (member.mtime, member.mtime))
    elif member.issym():
        remove_tree(path)
        path.symlink_to(member.linkname)
    elif member.islnk() and _is_inside(top, member.linkname):
        remove_tree(path)
        path.hardlink_to(top / member.linkname)
    else:
        return False
    if os.geteuid() == 0:
        os.chown(path, member.uid, member.gid, follow_symlinks=False)
    return True


def _is_inside(top: Path, name: str) -> bool:
    """Whether `name` leads from `top` to a regular file through real directories alone."""
    parts = Path(name).parts
    path = top
    for part in parts:
        path /= part
        if part in ("..", "/") or path.is_symlink():
            return False
    return path.is_file()

"""How a task's shared directories get into a container of the image: bound, or merged.

A directory that the image lacks, or has empty, is bound from the task's tree: nothing is copied.
One in which the image has files is merged: the task's files are copied into the container before
it starts, and what changed there is copied back when it has ended. So the image's own files stay
visible, and everything reaches the next executor all the same.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import msgspec

from tesazure.errors import EngineError
from tesazure.plan import KERNEL, SHM, TMP, WORK, contains, is_kernels

_ENGINES_OWN = ("/.containerenv", "/.dockerenv", "/run")
"""Made by the engine in the top directory of every container."""

Change = tuple[str, Literal[0, 1, 2]]
"""Path and kind of an entry of "Get changes on a container's filesystem"."""

MODIFIED, ADDED, DELETED = 0, 1, 2


class Layout(msgspec.Struct, frozen=True):
    """Container directories to bind and to merge, each from its place in the task's tree.

    `/` in `merged` stands for its files and for directories that the image lacks, not for the
    image's own directories in it: those are the image's, unless the task has files there.
    """

    bound: tuple[str, ...]
    merged: tuple[str, ...] = ()


def lay_out(
    shared: Iterable[str],
    top: Iterable[str],
    volumes: Iterable[str],
    has_files: Callable[[str], bool],
) -> Layout:
    """The Layout for an image. Pure but for `has_files`, which asks about a directory of it.

    `top`: names of the directories in the task's tree at `/`. `volumes`: the image's VOLUMEs; those
    in a bound directory are bound as well, or the engine would put an empty one there.
    Raises EngineError for what cannot be.
    """
    bound, merged = [], []
    for directory in _spread(shared, top):
        if is_kernels(directory):
            raise EngineError(f"{directory}: a task can have no files there, it is the kernel's")
        if not contains(SHM, directory) and directory not in (TMP, WORK) and has_files(directory):
            merged.append(directory)
        else:
            bound.append(directory)
    inner = {v for v in volumes for b in bound if v != b and contains(b, v)}
    if "/" in shared:
        merged.append("/")
    return Layout((*bound, *sorted(inner)), tuple(merged))


def _spread(shared: Iterable[str], top: Iterable[str]) -> Iterator[str]:
    for directory in shared:
        if directory != "/":
            yield directory
            continue
        yield from (f"/{name}" for name in sorted(top) if f"/{name}" not in (*KERNEL, "/run"))


def to_bring_back(
    changes: Iterable[Change], directory: str, elsewhere: Sequence[str]
) -> list[Change]:
    """The changes in a merged `directory` that belong to the task, their paths relative to it,
    parents first. Pure. `elsewhere`: container paths whose content lies somewhere else.
    """
    skipped = (*KERNEL, *_ENGINES_OWN, *elsewhere)
    new = [p for p, kind in changes if kind == ADDED and posixpath.dirname(p) == "/"]
    kept: list[Change] = []
    for path, kind in changes:
        if path == directory or any(contains(other, path) for other in skipped):
            continue
        inside = contains(directory, path)
        if directory == "/":
            inside = posixpath.dirname(path) == "/" or any(contains(top, path) for top in new)
        if inside:
            kept.append((posixpath.relpath(path, directory), kind))
    return sorted(kept, key=lambda change: change[0].split("/"))


def volumes_in(volumes: Iterable[str], directory: str) -> list[str]:
    """The parts of a merged directory that lie in an image's VOLUME, whose changes the engine does
    not list. Relative to the directory; `.` is all of it."""
    if directory == "/":
        return []
    volumes = list(volumes)
    if any(contains(volume, directory) for volume in volumes):
        return ["."]
    return [posixpath.relpath(v, directory) for v in volumes if contains(directory, v)]

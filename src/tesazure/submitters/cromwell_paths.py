"""Where the files of Cromwell's tasks are. Pure.

Cromwell names its files by paths of its own machine. With a root of `/tes-wd/shared`, where a
container of Azure Blob is mounted, a path below that means a blob, whose name is the path without
`/tes-wd`. Source: "Block Blobs" and "Azure Blob Storage" in the usage of the server of 2019.

Paths below `/tes-wd/shared-global` mean files of the directory that all tasks share; only a setting
makes blobs of these, too. All other paths stay what they are.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from urllib.parse import quote, unquote_to_bytes

import msgspec

from tesazure.model import FileType, Input, Output, Task
from tesazure.plan import SHARED, SHARED_GLOBAL, WORK, contains, normalise
from tesazure.submitters import cromwell

_FILE = ("file:///", "file://localhost/")
_RESULTS = frozenset(
    {"rc", "stdout", "stderr", "rc.tmp", "rc.kill", "stdout.background", "stderr.background"}
)
"""What an earlier attempt may have left: Cromwell's script begins with none of these."""


class PathMapping(msgspec.Struct, frozen=True):
    """What paths mean blobs. `container`: its URL without slash at the end; empty: none do.
    `shared_global`: also those below /tes-wd/shared-global."""

    container: str = ""
    shared_global: bool = False

    def url_of(self, url: str) -> str:
        """The blob's URL where `url` is a bare path or file URL that means one; else `url`."""
        path = _path_of(url)
        if not self.container or path is None:
            return url
        path = normalise(path)
        if contains(SHARED, path) or (self.shared_global and contains(SHARED_GLOBAL, path)):
            return f"{self.container}{_quoted(path.removeprefix(WORK))}"
        return url


class Directory(msgspec.Struct, frozen=True):
    """A call's execution directory: where it is kept, and where its script finds it."""

    url: str
    path: str


def mapped(task: Task, mapping: PathMapping) -> Task:
    """The task with the URLs that its paths mean; the very same one if it is not Cromwell's."""
    if not mapping.container or cromwell.submitter(task) is None:
        return task
    return msgspec.structs.replace(
        task,
        inputs=[_input(item, mapping) for item in task.inputs or ()],
        outputs=[
            msgspec.structs.replace(output, url=mapping.url_of(output.url))
            for output in task.outputs or ()
        ],
    )


def adapted(task: Task, mapping: PathMapping) -> Task:
    """The task as it is to be carried out; the very same one if it is not Cromwell's.

    Besides its URLs, `$AZ_BATCH_TASK_DIR` is set, in which a configuration of 2019 has Cromwell's
    script make its temporary directory.
    """
    if cromwell.submitter(task) is None:
        return task
    executors = [
        msgspec.structs.replace(executor, env={"AZ_BATCH_TASK_DIR": WORK} | (executor.env or {}))
        for executor in task.executors
    ]
    return msgspec.structs.replace(mapped(task, mapping), executors=executors)


def blob_directory(task: Task, mapping: PathMapping) -> Directory | None:
    """The execution directory of an adapted task, if that is in the container."""
    found = _directory(task) if mapping.container else None
    return found if found and found.url.startswith(f"{mapping.container}/") else None


def with_files(task: Task, directory: Directory, names: Iterable[str]) -> Task:
    """The task with further inputs, which lie in its execution directory: what `write_tsv()` and
    its like wrote there, on Cromwell's machine. `names` are relative to it.

    Nothing takes the place of an input that the task has, and what an earlier attempt left of its
    outputs is no input.
    """
    declared = {normalise(item.path) for item in task.inputs or ()}
    declared |= {normalise(item.path) for item in task.outputs or ()}
    declared.discard(directory.path)  # `output-mode=root`
    added = []
    for name in names:
        path = f"{directory.path}/{name}"
        if name not in _RESULTS and declared.isdisjoint((path, *_above(path, directory.path))):
            url = f"{directory.url}{_quoted(f'/{name}')}"
            added.append(Input(path=path, url=url, type=FileType.FILE))
    return msgspec.structs.replace(task, inputs=[*(task.inputs or ()), *added])


def _above(path: str, top: str) -> Iterable[str]:
    """The directories above a path, up to but without `top`."""
    while (path := posixpath.dirname(path)) != top:
        yield path


def _directory(task: Task) -> Directory | None:
    url = path = ""
    for output in task.outputs or ():
        if _is_rc(output):
            url, path = posixpath.dirname(output.url), posixpath.dirname(output.path)
        elif output.name == "execution.dir.output":
            url, path = output.url.rstrip("/"), output.path
    for item in task.inputs or ():
        if item.name == "commandScript":
            # With a `dockerWorkingDir` the results are elsewhere in the container.
            path = posixpath.dirname(item.path)
    return Directory(url, normalise(path)) if url else None


def _is_rc(output: Output) -> bool:
    return output.name == "rc" or output.path.endswith("/execution/rc")


def _input(item: Input, mapping: PathMapping) -> Input:
    if item.url is None or item.content:
        return item
    return msgspec.structs.replace(item, url=mapping.url_of(item.url))


def _path_of(url: str) -> str | None:
    """The path that a bare path or a file URL names; None for other URLs."""
    if url.startswith("/"):
        return url
    for start in _FILE:
        if url.startswith(start):
            return os.fsdecode(unquote_to_bytes(_bytes(url[len(start) - 1 :])))
    return None


def _quoted(path: str) -> str:
    return quote(_bytes(path))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")

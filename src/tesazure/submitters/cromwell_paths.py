"""Where the files of Cromwell's tasks are. Pure.

Cromwell names its files by paths of its own machine. With a root of `/tes-wd/shared`, where a
container of Azure Blob is mounted, a path below that means a blob, whose name is the path without
`/tes-wd`. Source: "Block Blobs" and "Azure Blob Storage" in the usage of the server of 2019.

Paths below `/tes-wd/shared-global` mean files of the directory that all tasks share; only a setting
makes blobs of these, too. All other paths stay what they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from urllib.parse import quote, unquote_to_bytes

import msgspec

from tesazure.model import FileType, Input, Task
from tesazure.plan import SHARED, SHARED_GLOBAL, WORK, contains, normalise
from tesazure.submitters import cromwell
from tesazure.submitters.submitter import Directory, Submitter

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


def mapped(task: Task, submitter: Submitter, mapping: PathMapping) -> Task:
    """The task with the URLs that its paths mean; the very same one if it is not Cromwell's."""
    if not mapping.container or submitter.name != cromwell.NAME:
        return task
    return msgspec.structs.replace(
        task,
        inputs=[_input(item, mapping) for item in task.inputs or ()],
        outputs=[
            msgspec.structs.replace(output, url=mapping.url_of(output.url))
            for output in task.outputs or ()
        ],
    )


def adapted(task: Task, submitter: Submitter, mapping: PathMapping) -> Task:
    """The task as it is to be carried out; the very same one if it is not Cromwell's.

    Besides its URLs, `$AZ_BATCH_TASK_DIR` is set, in which a configuration of 2019 has Cromwell's
    script make its temporary directory.
    """
    if submitter.name != cromwell.NAME:
        return task
    executors = [
        msgspec.structs.replace(executor, env={"AZ_BATCH_TASK_DIR": WORK} | (executor.env or {}))
        for executor in task.executors
    ]
    return msgspec.structs.replace(mapped(task, submitter, mapping), executors=executors)


def blob_directory(submitter: Submitter, mapping: PathMapping) -> Directory | None:
    """The directory that a call is executed in, by its blobs' URL, if that is in the container."""
    found = submitter.directory
    if found is None or not mapping.container:
        return None
    url = mapping.url_of(found.url)
    return Directory(url, found.path) if url.startswith(f"{mapping.container}/") else None


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
        taken = any(f"{directory.path}/{part}" in declared for part in _up(name))
        if name not in _RESULTS and not taken:
            path, url = f"{directory.path}/{name}", f"{directory.url}{_quoted(f'/{name}')}"
            added.append(Input(path=path, url=url, type=FileType.FILE))
    return msgspec.structs.replace(task, inputs=[*(task.inputs or ()), *added])


def _up(name: str) -> Iterator[str]:
    """A relative path and the directories above it."""
    while name:  # each is shorter than the one before
        yield name
        name = name.rpartition("/")[0]


def _input(item: Input, mapping: PathMapping) -> Input:
    if item.url is None or item.content:
        return item
    return msgspec.structs.replace(item, url=mapping.url_of(item.url))


def _path_of(url: str) -> str | None:
    """The path that a bare path or a file URL names; None for other URLs."""
    if url.startswith("/"):
        return url
    for start in _FILE:
        if url[: len(start)].lower() == start:  # as RFC 3986 has schemes and hosts, section 3
            return os.fsdecode(unquote_to_bytes(_bytes(url[len(start) - 1 :])))
    return None


def _quoted(path: str) -> str:
    return quote(_bytes(path))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")

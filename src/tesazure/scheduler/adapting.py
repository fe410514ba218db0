"""A stored task -> the task as it is carried out: what its workflow engine leaves to be known."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from tesazure.errors import StorageError
from tesazure.model import Task
from tesazure.submitters import Submitter
from tesazure.submitters.cromwell_paths import PathMapping, adapted, blob_directory, with_files

MOST_FILES = 1000
"""Files of a call's execution directory that become inputs; Cromwell writes a handful."""

Adapt = Callable[[Task, Submitter], Awaitable[tuple[Task, list[str]]]]
"""The task to be carried out, and warnings for its owner. Raises a TesazureError: a `retryable`
one is tried again, after any other the task can never run."""

Names = Callable[[str, int], Awaitable[Sequence[str]]]
"""The names of files below the directory of a URL, relative to it: at most so many, none if there
is no such directory. Raises StorageError."""


async def as_sent(task: Task, submitter: Submitter) -> tuple[Task, list[str]]:
    """The Adapt of a server that knows of no engine's files."""
    return adapted(task, submitter, PathMapping()), []


class Adapting:
    """Adapts tasks of Cromwell's. `names` looks into its directories of blobs."""

    def __init__(self, mapping: PathMapping, names: Names) -> None:
        self._mapping = mapping
        self._names = names

    async def adapt(self, task: Task, submitter: Submitter) -> tuple[Task, list[str]]:
        """See Adapt. A directory that storage refuses to list is only a warning: most calls need
        nothing of what lies there."""
        made = adapted(task, submitter, self._mapping)
        directory = blob_directory(submitter, self._mapping)
        if directory is None:
            return made, []
        try:
            names = await self._names(directory.url, MOST_FILES + 1)
        except StorageError as error:
            if error.retryable:
                raise
            return made, [f"files that may be in {directory.url} are not brought: {error}"]
        said = []
        if len(names) > MOST_FILES:
            said.append(
                f"{directory.url}: has more than {MOST_FILES} files already; only the first"
                f" {MOST_FILES} are brought to the task"
            )
        return with_files(made, directory, names[:MOST_FILES]), said

"""The workflow engine that sent a task, recognised from the task itself. Pure."""

from __future__ import annotations

import msgspec

from tesazure.model import Task
from tesazure.submitters.cromwell import is_cromwells


class Submitter(msgspec.Struct, frozen=True):
    """What is known of whoever sent a task; without a `name`, nothing."""

    name: str = ""
    optional_outputs: bool = False
    """It names outputs that a task may leave out and still have done all it was to do."""


_UNKNOWN = Submitter()
_CROMWELL = Submitter("cromwell", optional_outputs=True)


def recognise(task: Task) -> Submitter:
    """Who sent the task. Never a guess: a task that only resembles theirs is nobody's."""
    return _CROMWELL if is_cromwells(task) else _UNKNOWN

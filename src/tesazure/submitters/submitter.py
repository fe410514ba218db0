"""What is known of whoever sent a task."""

from __future__ import annotations

import msgspec

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
"""A UUID as Java's and Python's `toString` write it, as a regular expression."""


class Directory(msgspec.Struct, frozen=True):
    """Where a call is executed: what its engine keeps it as, and where its script finds it."""

    url: str
    path: str


class Submitter(msgspec.Struct, frozen=True):
    """A workflow engine, and what its task tells of the workflow; "" is what is not known."""

    name: str = ""
    """Of the engine, in lower case."""
    workflow_id: str = ""
    """The same for all tasks of one run of a workflow and for no others."""
    workflow_name: str = ""
    stage: str = ""
    """What the workflow calls this step: the same for all tasks that a scatter makes of it."""
    optional_outputs: bool = False
    """It names outputs that a task may leave out and still have done all it was to do."""
    directory: Directory | None = None
    """Of a call of Cromwell's; None also if results go elsewhere, or by the client's own SAS."""

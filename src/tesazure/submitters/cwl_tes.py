"""cwl-tes' tasks. Source: ohsu-comp-bio/cwl-tes, tes.py, of 0.3.0 and of its main branch.

They have a tag `CWLDocumentId` (null for a tool without an id), an output `workdir` that is the
executor's working directory, and that directory as `HOME` in the environment. The task's name is
that of the step, with a number from its second task on.

The main branch also has tags `workflow_id`, a UUID made for each run, and `tool_name`; 0.3.0 has
nothing that tells one run from the next.
"""

from __future__ import annotations

import re

from tesazure.model import FileType, Task
from tesazure.submitters.submitter import UUID, Submitter

_RUN = re.compile(UUID)


def submitter(task: Task) -> Submitter | None:
    """What cwl-tes' task tells; None of a task that is not cwl-tes'."""
    tags = task.tags
    if not tags or "CWLDocumentId" not in tags or len(task.executors) > 1:
        return None
    executor = task.executors[0]
    directory = executor.workdir
    if not directory or (executor.env or {}).get("HOME") != directory:
        return None
    if not any(
        output.name == "workdir" and output.path == directory and output.type is FileType.DIRECTORY
        for output in task.outputs or ()
    ):
        return None
    run = tags.get("workflow_id") or ""
    return Submitter(
        "cwl-tes", workflow_id=run if _RUN.fullmatch(run) else "", stage=task.name or ""
    )

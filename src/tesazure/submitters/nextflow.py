"""Nextflow's tasks. Source: nextflow-io/nextflow, plugins/nf-ga4gh (TesTaskHandler.groovy), in its
forms before and after the change to TES 1.1 of 2024 (pull request 4195).

Both have one executor, whose last argument runs `.command.run` into `.command.log`, the inputs
`.command.sh` and `.command.run`, and the outputs `.command.out`, `.command.err`, `.command.log` and
`.exitcode`, all in the executor's working directory.

The task's name is the process and, in parentheses, the tag of one of its tasks. Nothing in a task
tells one run of a pipeline from the next: they share a work directory. Outputs that the pipeline
calls optional look like all others, and Nextflow looks for each itself.
"""

from __future__ import annotations

from tesazure.model import Task
from tesazure.submitters.submitter import Submitter

_SENT = frozenset({".command.sh", ".command.run"})
_RETURNED = frozenset({".command.out", ".command.err", ".command.log", ".exitcode"})


def submitter(task: Task) -> Submitter | None:
    """What Nextflow's task tells; None of a task that is not Nextflow's."""
    executor = task.executors[0]
    command = executor.command[-1]
    if ".command.run" not in command or ".command.log" not in command or len(task.executors) > 1:
        return None
    directory = (executor.workdir or "").rstrip("/")
    sent = {item.path for item in task.inputs or ()}
    returned = {output.path for output in task.outputs or ()}
    if not (
        all(f"{directory}/{name}" in sent for name in _SENT)
        and all(f"{directory}/{name}" in returned for name in _RETURNED)
    ):
        return None
    process, _, _ = (task.name or "").partition(" (")
    return Submitter("nextflow", stage=process, optional_outputs=True)

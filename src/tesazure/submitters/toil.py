"""Toil's tasks. Source: DataBiosphere/toil 5.12 (batchSystems/tes.py), which has TES built in; and
the plugin toil-batch-system-tes 2.0.0 with Toil 6 to 9 (batchSystems/contained_executor.py).

They have one executor with the command `_toil_contained_executor` and one argument: a dictionary
pickled by protocol 4 or later, in base64. It is never unpickled here, as that runs what it says.

A task is named `'{job}' {unit} {id in the job store} v{version}`. In a workflow in CWL or WDL the
job is a class of Toil's, such as `CWLJob`, and the unit says the step; others have no unit. The job
store is no name for a run of a workflow: the next one may use the same.
"""

from __future__ import annotations

import re

from tesazure.model import Task
from tesazure.submitters.submitter import Submitter

_PICKLED = ("gASV", "gAWV")
"""The first three bytes of protocols 4 and 5 with a frame, in base64."""

_NAME = re.compile(r"'(?P<job>.+)' (?:(?P<unit>.+) )?\S+ v\d+")


def submitter(task: Task) -> Submitter | None:
    """What Toil's task tells; None of a task that is not Toil's."""
    command = task.executors[0].command
    if command[0] != "_toil_contained_executor" or len(task.executors) > 1:
        return None
    if len(command) != 2 or not command[1].startswith(_PICKLED):
        return None
    name = _NAME.fullmatch(task.name or "")
    return Submitter("toil", stage=(name["unit"] or name["job"]) if name else "")

"""Toil's tasks. Source: DataBiosphere/toil 5.12 (batchSystems/tes.py), which has TES built in; and
the plugin toil-batch-system-tes 2.0.0 with Toil 6 to 9 (batchSystems/contained_executor.py).

They have one executor with the command `_toil_contained_executor` and one argument: a dictionary
pickled by protocol 4 or later, in base64. It is never unpickled here, as that runs what it says.

A task is named `'{job}' {unit} {id in the job store} v{version}`. In a workflow in CWL or WDL the
job is a class of Toil's, such as `CWLJob`, and the unit says the step; others have no unit. The job
store is no name for a run of a workflow: the next one may use the same.
"""

from __future__ import annotations

from tesazure.model import Task
from tesazure.submitters.submitter import Submitter

_PICKLED = ("gASV", "gAWV")
"""The first three bytes of protocols 4 and 5 with a frame, in base64."""


def submitter(task: Task) -> Submitter | None:
    """What Toil's task tells; None of a task that is not Toil's."""
    command = task.executors[0].command
    if command[0] != "_toil_contained_executor" or len(task.executors) > 1:
        return None
    if len(command) != 2 or not command[1].startswith(_PICKLED):
        return None
    return Submitter("toil", stage=_stage(task.name or ""))


def _stage(name: str) -> str:
    """The step that a task's name tells; empty if it is none of Toil's."""
    # By its separators from the end on: a regular expression would try all places of each.
    named, _, version = name.rpartition(" v")
    job, quoted, rest = named.rpartition("' ")
    unit, _, stored = rest.rpartition(" ")
    if not (version.isdecimal() and stored and quoted and job[:1] == "'"):
        return ""
    return unit or job[1:]

"""The workflow engine that sent a task, recognised from the task itself. Pure.

Each engine has a module, which says by what its tasks are known and where that was read. Each looks
first at what is cheapest to see and rarest to find: recognition is on the path of every submission.
"""

from __future__ import annotations

from tesazure.model import Task
from tesazure.submitters import cromwell, cwl_tes, galaxy, nextflow, snakemake, toil
from tesazure.submitters.submitter import Submitter

__all__ = ["NAME", "WORKFLOW_ID", "WORKFLOW_NAME", "Submitter", "recognise", "tags_of"]

NAME = "ms-submitter-name"
WORKFLOW_ID = "ms-submitter-workflow-id"
WORKFLOW_NAME = "ms-submitter-workflow-name"
_STAGE = "ms-submitter-workflow-stage"

_UNKNOWN = Submitter()


def recognise(task: Task) -> Submitter:
    """Who sent the task. Never a guess: a task that only resembles theirs is nobody's."""
    return (
        cromwell.submitter(task)
        or nextflow.submitter(task)
        or snakemake.submitter(task)
        or toil.submitter(task)
        or cwl_tes.submitter(task)
        or galaxy.submitter(task)
        or _UNKNOWN
    )


def tags_of(submitter: Submitter) -> dict[str, str]:
    """The tags that say on a task who sent it; only what is known. Their names are those of the
    server of 2019 ("Use with workflow engines" in its design)."""
    known = {
        NAME: submitter.name,
        WORKFLOW_ID: submitter.workflow_id,
        WORKFLOW_NAME: submitter.workflow_name,
        _STAGE: submitter.stage,
    }
    return {key: value for key, value in known.items() if value}

"""Snakemake's tasks. Source: snakemake/snakemake-executor-plugin-tes, from 0.1.0 to 0.1.3, for
Snakemake 8 and 9.

They have one executor, which runs `run_snakemake.sh` in its working directory with a shell, and an
input at that path. By default a task is named `snakejob.{rule}.{job}.sh`; after another `--jobname`
the rule is unknown. Nothing in a task tells one run of a workflow from the next.
"""

from __future__ import annotations

import re

from tesazure.model import Task
from tesazure.submitters.submitter import UUID, Submitter

_NAME = re.compile(rf"snakejob\.(.+)\.(?:\d+|{UUID})\.sh", re.DOTALL)


def submitter(task: Task) -> Submitter | None:
    """What Snakemake's task tells; None of a task that is not Snakemake's."""
    executor = task.executors[0]
    script = executor.command[-1]
    if not script.endswith("/run_snakemake.sh") or len(task.executors) > 1:
        return None
    if len(executor.command) != 2 or script != f"{executor.workdir}/run_snakemake.sh":
        return None
    if not any(item.path == script for item in task.inputs or ()):
        return None
    name = _NAME.fullmatch(task.name or "")
    return Submitter("snakemake", stage=name[1] if name else "")

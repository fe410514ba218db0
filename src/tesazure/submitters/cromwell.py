"""Cromwell's tasks. Source: broadinstitute/cromwell, supportedBackends/tes (TesTask.scala), from
release 31 to 92; for the older form, the rules of the server for Azure of 2019.

Cromwell names every file that its workflow may want as an output, optional ones included, and
looks for them itself.
"""

from __future__ import annotations

import re

from tesazure.model import Task

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_DESCRIPTION = re.compile(rf"({_UUID}):(BackendJobDescriptorKey)?")
_RC_2019 = re.compile(rf"/tes-wd/.*/[^/]+/({_UUID})/call-[^/]+/(?:.*/)?execution/rc")


def is_cromwells(task: Task) -> bool:
    """Whether Cromwell sent the task."""
    described = _DESCRIPTION.match(task.description or "")
    if described is None:
        return False
    workflow, key = described.groups()
    return (key is not None and _has_script_and_rc(task)) or _is_of_2019(task, workflow)


def _has_script_and_rc(task: Task) -> bool:
    """What releases 31 to 92 always send."""
    script = any(
        i.name == "commandScript" and i.path.endswith("/script") for i in task.inputs or ()
    )
    return script and any(
        o.name == "rc" and o.path.endswith("/execution/rc") for o in task.outputs or ()
    )


def _is_of_2019(task: Task, workflow: str) -> bool:
    paths = [output.path for output in task.outputs or ()]
    streams = ("/execution/stdout", "/execution/stderr")
    if not all(any(path.endswith(end) for path in paths) for end in streams):
        return False
    return any((rc := _RC_2019.fullmatch(path)) and rc[1] == workflow for path in paths)

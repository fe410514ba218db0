"""Cromwell's tasks. Source: broadinstitute/cromwell, supportedBackends/tes (TesTask.scala,
TesJobPaths.scala), from release 31 to 92; and the rules of the server for Azure of 2019.

Releases 31 to 92 send
- the description `{workflow}:BackendJobDescriptorKey_CommandCallNode_{call}:{shard}:{attempt}`;
- an input named `commandScript` at `…/{name}/{workflow}/call-{call}/…/execution/script`;
- an output named `rc` whose URL is in that directory, or, with `output-mode=root`, the directory
  itself as `execution.dir.output`.

The rules of 2019 want of a description no more than the workflow before its first colon, and
instead three outputs that end in `execution/rc`, `stdout` and `stderr`, the first at
`/tes-wd/…/{name}/{workflow}/call-{call}/…/execution/rc`.

The description has the id of the workflow that makes the call, which may be a sub-workflow. Its
directory is within its parent's, so the path begins with the one that the user started, which
Cromwell shows and aborts: that one is the workflow here.

Cromwell names every file that its workflow may want as an output, optional ones included, and
looks for them itself.
"""

from __future__ import annotations

import re

from tesazure.model import Output, Task
from tesazure.submitters.submitter import UUID, Submitter

_DESCRIPTION = re.compile(
    rf"({UUID}):(BackendJobDescriptorKey_CommandCallNode_.+:(?:-1|\d+):\d+\Z)?", re.DOTALL
)
_RESULTS = {"rc": "/execution/rc", "execution.dir.output": "/execution"}
_WORKFLOW = re.compile(rf"/([^/]+)/({UUID})/call-[^/]+/")


def submitter(task: Task) -> Submitter | None:
    """What Cromwell's task tells; None of a task that is not Cromwell's."""
    described = _DESCRIPTION.match(task.description or "")
    if described is None:
        return None
    caller, key = described.groups()
    return (_of_today(task, caller) if key else None) or _of_2019(task, caller)


def _of_today(task: Task, caller: str) -> Submitter | None:
    if not any(_is_result(output) for output in task.outputs or ()):
        return None
    for item in task.inputs or ():
        if item.name == "commandScript":
            return _placed(item.path, caller, "/execution/script")
    return None


def _is_result(output: Output) -> bool:
    end = _RESULTS.get(output.name or "")
    # With a `dockerWorkingDir` the paths are there, and only the URLs are in the call's directory.
    return end is not None and (output.path.endswith(end) or output.url.endswith(end))


def _of_2019(task: Task, caller: str) -> Submitter | None:
    paths = [output.path for output in task.outputs or ()]
    for end in ("/execution/stdout", "/execution/stderr"):
        if not any(path.endswith(end) for path in paths):
            return None
    for path in paths:
        if path.startswith("/tes-wd/"):
            found = _placed(path.removeprefix("/tes-wd"), caller, "/execution/rc")
            if found:
                return found
    return None


def _placed(path: str, caller: str, end: str) -> Submitter | None:
    """What the place of a call's file says of it; `caller` is the id of its own workflow."""
    if not path.endswith(end):
        return None
    outermost = _WORKFLOW.search(path)
    _, found, below = path.rpartition(f"/{caller}/call-")
    if outermost is None or not found:
        return None
    return Submitter(
        name="cromwell",
        workflow_id=outermost[2],
        workflow_name=outermost[1],
        stage=below.partition("/")[0],
        optional_outputs=True,
    )

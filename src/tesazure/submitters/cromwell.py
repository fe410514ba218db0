"""Cromwell's tasks. Source: broadinstitute/cromwell, supportedBackends/tes (TesTask.scala,
TesJobPaths.scala), from release 31 to 92; and the rules of the server for Azure of 2019.

Releases 31 to 92 send
- the description `{workflow}:BackendJobDescriptorKey_CommandCallNode_{call}:{shard}:{attempt}`;
- an input named `commandScript` at `…/{name}/{workflow}/call-{call}/…/execution/script`;
- an output named `rc` whose URL is in that directory, or, with `output-mode=root`, the directory
  itself as `execution.dir.output`. Each has a root of its own above what the description's id
  begins: below it, the two are the same.

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

import posixpath
import re
from urllib.parse import unquote

import msgspec

from tesazure.model import Output, Task
from tesazure.plan import normalise
from tesazure.submitters.submitter import UUID, Directory, Submitter

NAME = "cromwell"

_DESCRIPTION = re.compile(
    rf"({UUID}):(BackendJobDescriptorKey_CommandCallNode_.+:(?:-1|\d+):\d+\Z)?", re.DOTALL
)
_RESULTS = {"rc": "/rc", "execution.dir.output": ""}
"""The outputs that tell where a call's directory is kept, and what of it they are."""
_WORKFLOW = re.compile(rf"/([^/]+)/({UUID})/call-[^/]+/")


def submitter(task: Task) -> Submitter | None:
    """What Cromwell's task tells; None of a task that is not Cromwell's."""
    described = _DESCRIPTION.match(task.description or "")
    if described is None:
        return None
    caller, key = described.groups()
    return (_of_today(task, caller) if key else None) or _of_2019(task, caller)


def _of_today(task: Task, caller: str) -> Submitter | None:
    script = next((item.path for item in task.inputs or () if item.name == "commandScript"), "")
    call = _placed(script, caller, "/script")
    if call is None:
        return None
    for output in task.outputs or ():
        file = _RESULTS.get(output.name or "")
        # Its path does not matter: with a `dockerWorkingDir` it is there.
        if file is not None and (url := _kept_at(output, file, call)) is not None:
            return _executed(call, url, posixpath.dirname(normalise(script)))
    return None


def _of_2019(task: Task, caller: str) -> Submitter | None:
    outputs = task.outputs or ()
    for end in ("/execution/stdout", "/execution/stderr"):
        if not any(output.path.endswith(end) for output in outputs):
            return None
    for output in outputs:
        if output.path.startswith("/tes-wd/"):
            call = _placed(output.path.removeprefix("/tes-wd"), caller, "/rc")
            if call:
                url = _kept_at(output, "/rc", call)
                return _executed(call, url, posixpath.dirname(normalise(output.path)))
    return None


class _Call(msgspec.Struct, frozen=True):
    """What the place of a call's file says of it. `within`: its directory, from the id of its own
    workflow on."""

    submitter: Submitter
    within: str


def _placed(path: str, caller: str, file: str) -> _Call | None:
    """The call whose `file` lies at a path; `caller` is the id of its own workflow."""
    if not path.endswith(f"/execution{file}"):
        return None
    path = normalise(path)
    outermost = _WORKFLOW.search(path)
    _, mark, below = path.rpartition(f"/{caller}/call-")
    stage = below.partition("/")[0]
    if outermost is None or not stage:
        return None
    submitter = Submitter(
        name=NAME,
        workflow_id=outermost[2],
        workflow_name=outermost[1],
        stage=stage,
        optional_outputs=True,
    )
    return _Call(submitter, f"{mark}{below.removesuffix(file)}")


def _kept_at(output: Output, file: str, call: _Call) -> str | None:
    """The URL of the call's directory, which an output is or whose `file` it is; None if it is
    something else, empty if the URL has a query: its SAS is for the output alone."""
    url, query = output.url, ""
    if "://" in url:
        url, _, query = url.partition("?")
    if not file:
        url = url.rstrip("/")
    end = f"{call.within}{file}"
    if not (url.endswith(end) or unquote(url).endswith(end)):
        return None
    return "" if query else url.removesuffix(file)


def _executed(call: _Call, url: str | None, path: str) -> Submitter:
    directory = Directory(url, path) if url else None
    return msgspec.structs.replace(call.submitter, directory=directory)

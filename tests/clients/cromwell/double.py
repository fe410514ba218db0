"""A double of Cromwell: what its TES backend sends, asks and reads, of versions 36, 41 and 92.

Written from broadinstitute/cromwell: TesTask.scala (the request), TesJobPaths.scala (paths),
TesAsyncBackendJobExecutionActor.scala (polling, abort, results), StandardAsyncExecutionActor.scala
(the script). It refuses what Cromwell's own parser of replies would.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.clients.cromwell.places import Place

FIRST_POLL_S = 0.05
"""Cromwell first asks after seconds, and then after ever longer times, as here."""
LONGEST_POLL_S = 1.0
TEMPORARY_OF_2019 = '$(mktemp -d "/$AZ_BATCH_TASK_DIR"/tmp.XXXXXX)'
GLOB_OF_2019 = "ls -L {pattern} 2> /dev/null | xargs -I ? ln -s ? {directory}"
_CONTROL = "cromwell_glob_control_file"
_GLOB = "( ln -L {pattern} {directory} 2> /dev/null ) || ( ln {pattern} {directory} )"

Document = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """One call of a task in a workflow. Paths of `inputs` and `created` are Cromwell's, other names
    are relative to the execution directory; `{name}` in the command is the container's path of an
    input, `{created}` of the file that `write_tsv()` made."""

    name: str
    command: str
    inputs: dict[str, list[str]] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    globs: tuple[str, ...] = ()
    table: str | None = None
    """What `write_tsv()` writes before the call starts."""
    shard: int = -1
    attempt: int = 1
    resources: Document = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """How a call ended for Cromwell."""

    succeeded: bool
    outputs: dict[str, str] = field(default_factory=dict)
    """Path of Cromwell's, of each output."""
    globbed: tuple[str, ...] = ()
    aborted: bool = False
    reason: str = ""
    task: Document = field(default_factory=dict)


@dataclass(frozen=True)
class Configuration:
    """`backend.providers.TES.config`, and what the workflow's options say."""

    endpoint: str
    root: str
    docker_root: str
    of_2019: bool = False
    """With the temporary directory and the glob command of that year's examples."""
    output_mode: str = "granular"


class Workflow:
    """One run of a workflow, or of a sub-workflow of `parent` in its call `called`."""

    def __init__(
        self,
        client: httpx.Client,
        place: Place,
        configuration: Configuration,
        version: int,
        *,
        name: str = "wf",
        parent: Workflow | None = None,
        called: str = "",
        lists_created: bool = True,
    ) -> None:
        """`lists_created`: whether the files of `write_tsv()` are among a task's inputs."""
        self.id = str(uuid.uuid4())
        self.name = name
        self.version = version
        self.place = place
        self._client = client
        self._c = configuration
        self._parent = parent
        self._lists_created = lists_created
        above = f"{parent.below}/call-{called}" if parent else ""
        self.below: str = f"{above}/{name}/{self.id}"

    @property
    def root(self) -> Workflow:
        """The one that the user started."""
        return self._parent.root if self._parent else self

    def sub(self, name: str, called: str) -> Workflow:
        """A sub-workflow."""
        return Workflow(
            self._client,
            self.place,
            self._c,
            self.version,
            name=name,
            parent=self,
            called=called,
            lists_created=self._lists_created,
        )

    def run(self, call: Call, timeout_s: float = 120.0) -> Result:
        """A call from its submission to its end, as Cromwell sees it."""
        return self.watch(call, self.start(call), timeout_s)

    def start(self, call: Call) -> str:
        """Submit; the task's id."""
        paths = _Paths(self._c, self.below, call)
        self.place.write(f"{paths.execution}/script", _script(self._c, paths, call).encode())
        if call.table is not None:
            self.place.write(paths.table(call), call.table.encode())
        reply = self._client.post(self._c.endpoint, json=self.request(call))
        assert reply.status_code == 200, reply.text
        assert reply.headers["content-type"].startswith("application/json")
        task_id = reply.json()["id"]
        assert isinstance(task_id, str)
        return task_id

    def watch(self, call: Call, task_id: str, timeout_s: float = 120.0) -> Result:
        """Ask until the task has ended, then read the results from where they are to be."""
        deadline, wait_s = time.monotonic() + timeout_s, FIRST_POLL_S
        priced = False
        while True:
            view = "FULL" if self.version >= 88 and not priced else "MINIMAL"
            task = self._get(task_id, view)
            state = task["state"]
            if view == "FULL":
                log = (task.get("logs") or [{}])[0]
                priced = "vm_price_per_hour_usd" in log.get("metadata", {}) and "start_time" in log
            if state in ("COMPLETE", "CANCELED", "EXECUTOR_ERROR", "SYSTEM_ERROR"):
                break
            assert state in ("QUEUED", "INITIALIZING", "RUNNING"), state
            assert time.monotonic() < deadline, task
            time.sleep(wait_s)
            wait_s = min(wait_s * 1.1, LONGEST_POLL_S)
        failed = state in ("EXECUTOR_ERROR", "SYSTEM_ERROR")
        if self.version >= 88 or (self.version >= 85 and failed):
            task = self._get(task_id, "FULL")
            # Of a task that was canceled before it began there is nothing to tell.
            assert state == "CANCELED" or task["logs"][0]["end_time"]
        if state == "CANCELED":
            return Result(False, aborted=True, task=task)
        if failed:
            said = task.get("logs", [{}])[-1].get("system_logs", ())
            return Result(False, reason="\n".join(said), task=task)
        return self._completed(call, task)

    def abort(self, call: Call, task_id: str) -> None:
        """Ask for the end of a task. Cromwell says by itself that it was ended by SIGTERM."""
        rc = f"{_Paths(self._c, self.below, call).execution}/rc"
        try:
            self.place.read(rc)
        except FileNotFoundError:
            self.place.write(rc, b"143\n")
        reply = self._client.post(
            f"{self._c.endpoint}/{task_id}:cancel", headers={"Content-Length": "0"}
        )
        assert 200 <= reply.status_code < 300, reply.text
        assert reply.headers["content-type"].startswith("application/json")
        assert isinstance(reply.json(), dict)

    def result(self, call: Call, name: str) -> str:
        """What a call left in its execution directory. Raises FileNotFoundError."""
        path = f"{_Paths(self._c, self.below, call).execution}/{name}"
        return self.place.read(path).decode()

    def directory(self, call: Call) -> str:
        """The call's execution directory, as Cromwell knows it."""
        return _Paths(self._c, self.below, call).execution

    def _get(self, task_id: str, view: str) -> Document:
        reply = self._client.get(f"{self._c.endpoint}/{task_id}", params={"view": view})
        assert reply.status_code == 200, reply.text
        assert reply.headers["content-type"].startswith("application/json")
        task: Document = reply.json()
        if view == "FULL":
            _parse(task)
        return task

    def _completed(self, call: Call, task: Document) -> Result:
        """rc decides, then the outputs must be there."""
        self.result(call, "stderr")
        code = int(self.result(call, "rc"))
        if code != 0:
            return Result(False, reason=f"return code {code}", task=task)
        directory = self.directory(call)
        found: dict[str, str] = {}
        for name in call.outputs:
            try:
                self.result(call, name)
            except FileNotFoundError:
                if name not in call.optional:
                    text = f"{directory}/{name} is missing"
                    return Result(False, reason=text, task=task)
            else:
                found[name] = f"{directory}/{name}"
        globbed: list[str] = []
        for pattern in call.globs:
            name = _glob_name(pattern)
            listed = self.result(call, f"{name}.list").split()
            globbed += [f"{directory}/{name}/{file}" for file in listed if file != _CONTROL]
        for path in globbed:
            self.place.read(path)
        return Result(True, found, tuple(globbed), task=task)

    def request(self, call: Call) -> Document:
        """The body that submits it."""
        paths = _Paths(self._c, self.below, call)
        full = f"{self.name}.{call.name}"
        document: Document = {
            "name": full,
            "description": (
                f"{self.id}:BackendJobDescriptorKey_CommandCallNode_{full}:{call.shard}"
                f":{call.attempt}"
            ),
            "inputs": self._inputs(call, paths),
            "outputs": _outputs(self._c, call, paths, full),
            "resources": {"cpu_cores": 1, "ram_gb": 0.25, "disk_gb": 0.1, "preemptible": False}
            | call.resources,
            "executors": [
                {
                    "image": "ubuntu:22.04",
                    "command": ["/bin/bash", f"{paths.docker_execution}/script"],
                    "stdout": f"{paths.docker_execution}/stdout",
                    "stderr": f"{paths.docker_execution}/stderr",
                }
            ],
        }
        if self.version >= 88:
            document["resources"]["backend_parameters"] = {
                "internal_path_prefix": f"{paths.call}/tes_task",
                **document["resources"].get("backend_parameters", {}),
            }
            document["tags"] = {
                "workflow_id": self.id,
                "root_workflow_id": self.root.id,
                "parent_workflow_id": self._parent.id if self._parent else None,
            }
        return document

    def _inputs(self, call: Call, paths: _Paths) -> list[Document]:
        full = f"{self.name}.{call.name}"
        inputs = [
            {
                "name": f"{full}.{name}.{number}",
                "description": f"{self.name}.{full}.{name}.{number}",
                "url": url,
                "path": paths.container(url),
                "type": "FILE",
            }
            for name, urls in call.inputs.items()
            for number, url in enumerate(urls)
        ]
        if call.table is not None and self._lists_created:
            table = paths.table(call)
            name = f"{hashlib.md5(table.encode()).hexdigest()[:8]}.0"
            inputs.append(
                {
                    "name": name,
                    "description": f"{self.name}.{name}",
                    "url": table,
                    "path": paths.container(table),
                    "type": "FILE",
                }
            )
        command: Document = {
            "name": "commandScript",
            "description": f"{full}.commandScript",
            "path": f"{paths.docker_execution}/script",
            "type": "FILE",
        }
        if self.version <= 36:
            command["content"] = _script(self._c, paths, call)
        else:
            command["url"] = f"{paths.execution}/script"
        return [*inputs, command]


class _Paths:
    """Of a call: on Cromwell's machine, and in the container."""

    def __init__(self, c: Configuration, below: str, call: Call) -> None:
        shard = f"/shard-{call.shard}" if call.shard >= 0 else ""
        attempt = f"/attempt-{call.attempt}" if call.attempt > 1 else ""
        here = f"{below}/call-{call.name}{shard}{attempt}"
        self.call = f"{c.root}{here}"
        self.execution = f"{c.root}{here}/execution"
        self.docker_execution = f"{c.docker_root}{here}/execution"
        self.docker_inputs = f"{c.docker_root}{here}/inputs"

    def table(self, call: Call) -> str:
        """Where `write_tsv()` writes."""
        digest = hashlib.md5((call.table or "").encode()).hexdigest()
        return f"{self.execution}/write_tsv_{digest}.tmp"

    def container(self, path: str) -> str:
        """Where the call finds a file of Cromwell's machine."""
        if path.startswith(f"{self.execution}/"):
            return f"{self.docker_execution}/{path.rpartition('/')[2]}"
        return f"{self.docker_inputs}{path}"


def _outputs(c: Configuration, call: Call, paths: _Paths, full: str) -> list[Document]:
    def output(name: str, file: str, kind: str = "FILE") -> Document:
        return {
            "name": name,
            "description": f"{full}.{name.removeprefix(f'{full}.')}",
            "url": f"{paths.execution}/{file}",
            "path": f"{paths.docker_execution}/{file}",
            "type": kind,
        }

    if c.output_mode == "root":
        return [
            {
                "name": "execution.dir.output",
                "description": f"{full}.execution.dir.output",
                "url": paths.execution,
                "path": paths.docker_execution,
                "type": "DIRECTORY",
            }
        ]
    outputs = [output(f"{full}.output.{i}", file) for i, file in enumerate(call.outputs)]
    for number, pattern in enumerate(call.globs, len(call.outputs)):
        name = _glob_name(pattern)
        outputs.append(output(f"globDir.{number}", name, "DIRECTORY"))
        outputs.append(output(f"globList.{number}", f"{name}.list"))
    outputs += [output(name, name) for name in ("rc", "stdout", "stderr")]
    return [*outputs, output("commandScript", "script")]


def _script(c: Configuration, paths: _Paths, call: Call) -> str:
    here = paths.docker_execution
    values = {name: " ".join(map(paths.container, urls)) for name, urls in call.inputs.items()}
    if call.table is not None:
        values["created"] = paths.container(paths.table(call))
    command = call.command
    for name, value in values.items():
        command = command.replace(f"{{{name}}}", value)
    default = f'$(mkdir -p "{here}/../tmp.1a2b3c4d" && echo "{here}/../tmp.1a2b3c4d")'
    lines = [
        "#!/bin/bash",
        "",
        f"cd {here}",
        f"tmpDir={TEMPORARY_OF_2019 if c.of_2019 else default}",
        'chmod 777 "$tmpDir"',
        'export _JAVA_OPTIONS=-Djava.io.tmpdir="$tmpDir"',
        'export TMPDIR="$tmpDir"',
        'out="${tmpDir}/out.$$" err="${tmpDir}/err.$$"',
        'mkfifo "$out" "$err"',
        """trap 'rm "$out" "$err"' EXIT""",
        f"touch {here}/stdout.background {here}/stderr.background",
        f"tee '{here}/stdout' < \"$out\" &",
        f"tee '{here}/stderr' < \"$err\" >&2 &",
        "(",
        f"cd {here}",
        command,
        ') > "$out" 2> "$err"',
        f"echo $? > {here}/rc.tmp",
        "(",
        f"cd {here}",
        "sync",
    ]
    for pattern in call.globs:
        name = _glob_name(pattern)
        glob = GLOB_OF_2019 if c.of_2019 else _GLOB
        link = glob.format(pattern=f"{here}/{pattern}", directory=f"{here}/{name}")
        lines += [
            f"mkdir {here}/{name}",
            f'echo "This file is used by Cromwell" > {here}/{name}/{_CONTROL}',
            link,
            f"ls -1 {here}/{name} > {here}/{name}.list",
        ]
    return "\n".join([*lines, ")", f"mv {here}/rc.tmp {here}/rc", ""])


def _glob_name(pattern: str) -> str:
    return f"glob-{hashlib.md5(pattern.encode()).hexdigest()}"


def _parse(task: Document) -> None:
    """Fails where TesResponseJsonFormatter.scala of 88 to 92 does."""
    for executor in task["executors"]:
        assert isinstance(executor["image"], str)
        assert isinstance(executor["command"], list)
    for item in (*task.get("inputs", ()), *task.get("outputs", ())):
        assert isinstance(item["path"], str)
    for log in task.get("logs", ()):
        assert all(isinstance(value, str) for value in log.get("metadata", {}).values())
        assert all(isinstance(line, str) for line in log.get("system_logs", ()))
        for executor in log.get("logs", ()):
            assert isinstance(executor.get("exit_code", 0), int)
        for output in log.get("outputs", ()):
            assert isinstance(output["size_bytes"], str)
            assert int(output["size_bytes"]) < 2**31

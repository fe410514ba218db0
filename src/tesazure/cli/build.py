"""From the flags of `tesazure run` to a TES task."""

from __future__ import annotations

import posixpath
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from tesazure.cli.exits import Code, Failure
from tesazure.model import Executor, FileType, Input, Output, Resources, Task, is_pattern


class Flags(msgspec.Struct, frozen=True, kw_only=True):
    """What was given on the command line, as text. Pairs are `left=right`."""

    image: str
    command: list[str]
    inputs: list[str] = []
    outputs: list[str] = []
    input_dirs: list[str] = []
    output_dirs: list[str] = []
    env: list[str] = []
    tags: list[str] = []
    volumes: list[str] = []
    parameters: list[str] = []
    workdir: str | None = None
    stdin: str | None = None
    stdout: str | None = None
    stderr: str | None = None
    cpu: float | None = None
    ram: float | None = None
    disk: float | None = None
    preemptible: bool = False
    name: str | None = None
    description: str | None = None


def build(flags: Flags, here: Path) -> Task:
    """The task. Relative local paths start at the directory `here`. Raises Failure (USAGE)."""
    parameters = _pairs("--backend-parameter", flags.parameters, "KEY=VALUE")
    resources = Resources(
        cpu_cores=flags.cpu,
        ram_gb=flags.ram,
        disk_gb=flags.disk,
        preemptible=flags.preemptible or None,
        backend_parameters=parameters or None,
    )
    inputs = [
        *_inputs("--input", flags.inputs, FileType.FILE, here),
        *_inputs("--input-dir", flags.input_dirs, FileType.DIRECTORY, here),
    ]
    outputs = [
        *_outputs("--output", flags.outputs, FileType.FILE, here),
        *_outputs("--output-dir", flags.output_dirs, FileType.DIRECTORY, here),
    ]
    executor = Executor(
        image=flags.image,
        command=flags.command,
        workdir=flags.workdir,
        stdin=flags.stdin,
        stdout=flags.stdout,
        stderr=flags.stderr,
        env=_pairs("--env", flags.env, "NAME=VALUE") or None,
    )
    tags: dict[str, str | None] = dict(_pairs("--tag", flags.tags, "KEY=VALUE"))
    return Task(
        name=flags.name,
        description=flags.description,
        executors=[executor],
        inputs=inputs or None,
        outputs=outputs or None,
        resources=None if resources == Resources() else resources,
        volumes=flags.volumes or None,
        tags=tags or None,
    )


def is_local(url: str) -> bool:
    """Whether a URL or path names a file where the command line or the server runs."""
    return urlsplit(url).scheme in ("", "file")


def url_of(text: str, here: Path) -> str:
    """A URL as it is; a local path as an absolute file URL. A trailing slash stays."""
    if "://" in text:
        return text
    path = Path(posixpath.normpath(here / Path(text).expanduser()))
    return path.as_uri() + ("/" if text.endswith("/") else "")


def _inputs(flag: str, pairs: list[str], kind: FileType, here: Path) -> list[Input]:
    return [
        Input(path=path, url=url_of(source, here), type=kind)
        for path, source in _pairs(flag, pairs, "/CONTAINER/PATH=SOURCE", paths=True).items()
    ]


def _outputs(flag: str, pairs: list[str], kind: FileType, here: Path) -> list[Output]:
    found = []
    for path, target in _pairs(flag, pairs, "/CONTAINER/PATH=TARGET", paths=True).items():
        prefix = None
        if is_pattern(path):
            # What follows the prefix in each match, with its slash, is appended to the target.
            fixed = path[: min(path.index(c) for c in "*?[" if c in path)]
            prefix = posixpath.dirname(fixed) or "/"
        url = url_of(target, here)
        if prefix:
            url = url.rstrip("/") + ("/" if prefix == "/" else "")
        found.append(Output(path=path, url=url, path_prefix=prefix, type=kind))
    return found


def _pairs(flag: str, values: list[str], form: str, *, paths: bool = False) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for value in values:
        left, equals, right = value.partition("=")
        if not equals or not left or (paths and not right):
            raise Failure(Code.USAGE, f"{flag} {value}: must have the form {form}")
        if paths and not left.startswith("/"):
            hint = f"; did you mean {right}={left}?" if right.startswith("/") else ""
            raise Failure(
                Code.USAGE, f"{flag} {value}: the path in the container must begin with /{hint}"
            )
        if left in pairs:
            raise Failure(Code.USAGE, f"{flag}: {left} is given twice")
        pairs[left] = right
    return pairs

"""Task -> Plan: a task made concrete for a runner. Pure data, pure functions."""

from __future__ import annotations

import posixpath

import msgspec

from tesazure import trace
from tesazure.model import Executor, FileType, Input, Output, Task, is_pattern

TMP = "/tmp"  # noqa: S108 - a path inside the task's container, private to it
WORK = "/tes-wd"
SHARED = "/tes-wd/shared"
SHARED_GLOBAL = "/tes-wd/shared-global"

SHM = "/dev/shm"  # noqa: S108 - as TMP
KERNEL = ("/dev", "/proc", "/sys")
"""The container's own file systems: nothing of a task can lie there, save in SHM."""

_SYSTEM = frozenset(
    {"bin", "boot", "etc", "home", "lib", "opt", "root", "run", "sbin", "srv", "usr", "var"}
)
"""Top directories in which images have their own files (Filesystem Hierarchy Standard 3.0)."""

GB = 10**9


class Download(msgspec.Struct, omit_defaults=True, frozen=True):
    """One input: bring `url` or `content` to the container path `path`. `index` in task.inputs."""

    index: int
    path: str
    url: str | None = None
    content: str | None = None
    type: FileType | None = None


class Upload(msgspec.Struct, omit_defaults=True, frozen=True):
    """One output: bring what lies at the container path `path` to `url`.

    With `prefix` set, `path` is a POSIX pattern and what follows the prefix in each match is
    appended to `url`. `required`: nothing there after success is an error, otherwise a warning.
    """

    index: int
    path: str
    url: str
    prefix: str | None = None
    type: FileType | None = None
    required: bool = True


class Step(msgspec.Struct, omit_defaults=True, frozen=True):
    """One executor: argv in an image. Paths are absolute, normalised container paths."""

    image: str
    command: list[str]
    workdir: str | None = None
    stdin: str | None = None
    stdout: str | None = None
    stderr: str | None = None
    env: dict[str, str] = {}
    ignore_error: bool = False


class Limits(msgspec.Struct, frozen=True):
    """What the task asked for, enforced by the engine (None: not asked for, not limited), and what
    is reserved for it: cores, bytes."""

    cpu_cores: float | None
    ram_bytes: int | None
    reserved_cpu_cores: float
    reserved_ram_bytes: int
    reserved_disk_bytes: int


class Plan(msgspec.Struct, omit_defaults=True, frozen=True):
    """All that a runner must know of a task, and nothing else."""

    task_id: str
    downloads: list[Download]
    steps: list[Step]
    uploads: list[Upload]
    volumes: list[str]
    shared: list[str]
    """Container directories visible in all executors, none below another."""
    limits: Limits
    max_runtime_s: float
    backend_parameters: dict[str, str] = {}
    preemptible: bool | None = None
    """Whether the machine may be one that can be taken away; None: the backend's choice."""
    zones: list[str] = []
    """Where to run, in the backend's words; empty: anywhere."""
    notes: list[str] = []
    """Warnings from the submission, said first in system_logs."""
    trace: str = ""
    """`traceparent` of what the attempt is part of; empty: it is not traced."""


class Defaults(msgspec.Struct, frozen=True):
    """What a task gets that does not say: cores, GB, seconds."""

    cpu_cores: float
    ram_gb: float
    disk_gb: float
    max_runtime_s: float


def normalise(path: str) -> str:
    """An absolute container path without `//`, `.` and a trailing slash."""
    return "/" + posixpath.normpath(path).lstrip("/")


def static_parent(path: str) -> str:
    """The directory of a path; of a pattern, the deepest directory before the first wildcard."""
    if is_pattern(path):
        first = min(i for i, part in enumerate(path.split("/")) if is_pattern(part))
        return "/".join(path.split("/")[:first]) or "/"
    return posixpath.dirname(path)


def contains(directory: str, path: str) -> bool:
    """Whether `path` is `directory` or lies below it, component by component."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def outermost(directories: set[str]) -> list[str]:
    """Those of the directories that lie below no other one, sorted."""
    kept: list[str] = []
    for directory in sorted(directories, key=lambda d: d.rstrip("/").split("/")):
        if not any(contains(k, directory) for k in kept):
            kept.append(directory)
    return kept


def shared_directories(plan_paths: set[str]) -> list[str]:
    """The directories all executors share: those of the files named, volumes, and our own."""
    return outermost({TMP, WORK} | plan_paths)


def is_kernels(path: str) -> bool:
    """Whether a container path lies in one of the kernel's file systems."""
    return any(contains(own, path) for own in KERNEL) and not contains(SHM, path)


def make_plan(
    task_id: str,
    task: Task,
    defaults: Defaults,
    notes: list[str],
    max_runtime_s: float | None = None,
    *,
    outputs_required: bool = True,
) -> Plan:
    """The Plan of a validated task.

    `max_runtime_s` is the limit as it was settled at submission; None: to be settled now. Without
    `outputs_required`, an output that is missing after success is a warning.
    """
    downloads = [_download(i, item) for i, item in enumerate(task.inputs or [])]
    uploads = [
        _upload(i, item, required=outputs_required) for i, item in enumerate(task.outputs or [])
    ]
    steps = [_step(executor) for executor in task.executors]
    volumes = [normalise(v) for v in task.volumes or []]
    paths = set(volumes)
    for d in downloads:
        paths.add(d.path if d.type is FileType.DIRECTORY else posixpath.dirname(d.path))
    for u in uploads:
        paths.add(
            u.path if u.type is FileType.DIRECTORY and not u.prefix else static_parent(u.path)
        )
    for s in steps:
        paths.update(posixpath.dirname(p) for p in (s.stdout, s.stderr) if p)
    if len(steps) > 1:  # one step alone has nobody to share it with
        paths.update(s.workdir for s in steps if s.workdir and not _is_system(s.workdir))
    resources = task.resources
    parameters = (resources and resources.backend_parameters) or {}
    return Plan(
        task_id=task_id,
        downloads=downloads,
        steps=steps,
        uploads=uploads,
        volumes=volumes,
        shared=shared_directories(paths),
        limits=limits(task, defaults),
        max_runtime_s=runtime_limit(task, defaults) if max_runtime_s is None else max_runtime_s,
        backend_parameters={k: v for k, v in parameters.items() if v is not None},
        preemptible=resources.preemptible if resources else None,
        zones=list((resources and resources.zones) or []),
        notes=notes,
        trace=str(trace.of_tags(task.tags) or ""),
    )


def runtime_limit(task: Task, defaults: Defaults) -> float:
    """How long an attempt may take, in seconds; 0: no limit."""
    parameters = (task.resources and task.resources.backend_parameters) or {}
    return float(parameters.get("max_runtime_s") or defaults.max_runtime_s)


def limits(task: Task, defaults: Defaults) -> Limits:
    """What the task asked for and what is reserved for it."""
    r = task.resources
    cpu = r.cpu_cores if r and r.cpu_cores else None
    ram = int(r.ram_gb * GB) if r and r.ram_gb else None
    disk = int(r.disk_gb * GB) if r and r.disk_gb else None
    return Limits(
        cpu_cores=cpu,
        ram_bytes=ram,
        reserved_cpu_cores=float(cpu or defaults.cpu_cores),
        reserved_ram_bytes=ram or int(defaults.ram_gb * GB),
        reserved_disk_bytes=disk or int(defaults.disk_gb * GB),
    )


def _download(index: int, item: Input) -> Download:
    has_content = bool(item.content) or item.url is None
    return Download(
        index=index,
        path=normalise(item.path),
        url=None if has_content else item.url,
        content=(item.content or "") if has_content else None,
        type=FileType.FILE if has_content else item.type,
    )


def _is_system(path: str) -> bool:
    """Whether a directory is the root, or likely holds files of the image."""
    top = path.split("/")[1]
    return not top or top in _SYSTEM or top.startswith("lib") or is_kernels(path)


def _upload(index: int, item: Output, *, required: bool) -> Upload:
    pattern = is_pattern(item.path)
    return Upload(
        index=index,
        path=normalise(item.path),
        url=item.url,
        prefix=item.path_prefix if pattern else None,
        type=item.type,
        required=required,
    )


def _step(item: Executor) -> Step:
    workdir = item.workdir if item.workdir and item.workdir.startswith("/") else None
    return Step(
        image=item.image,
        command=item.command,
        workdir=normalise(workdir) if workdir else None,
        stdin=normalise(item.stdin) if item.stdin else None,
        stdout=normalise(item.stdout) if item.stdout else None,
        stderr=normalise(item.stderr) if item.stderr else None,
        env=dict(item.env or {}),
        ignore_error=bool(item.ignore_error),
    )

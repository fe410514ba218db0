"""What the staging tests share: plans, and callbacks that remember."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tesazure.access import Access
from tesazure.model import Executor, FileType, Input, Output, Task
from tesazure.plan import SHARED_GLOBAL, Defaults, Plan, make_plan
from tesazure.runner.engines.base import Mount
from tesazure.runner.stage import Calls, Systems, stage_in, stage_out
from tesazure.runner.tree import Tree, prepare
from tesazure.storage.base import Storage
from tesazure.storage.registry import Storages


def plan_of(inputs: list[Input] | None = None, outputs: list[Output] | None = None) -> Plan:
    """The Plan of a task with these files."""
    task = Task(
        executors=[Executor(image="i", command=["c"])], inputs=inputs or [], outputs=outputs or []
    )
    return make_plan("t", task, Defaults(1, 1, 1, 0), [])


class One(msgspec.Struct):
    """Systems of which there is one."""

    system: Storage

    def for_url(self, url: str) -> Storage:
        return self.system


class Attempt:
    """A task's tree beside an allowed directory `data`, and what staging said of it. `common` is
    what all tasks see as /tes-wd/shared-global."""

    def __init__(self, directory: Path) -> None:
        self.data = directory / "data"
        self.data.mkdir(exist_ok=True)
        self.root = directory / "root"
        self.common = directory / "common"
        self.common.mkdir(exist_ok=True)
        self.tree = Tree(self.root, (Mount(self.common, SHARED_GLOBAL),))
        self.storages = Storages([self.data])
        self.systems: Systems = self.storages
        self.access = Access()
        self.calls = Calls(self.say, self.type, self.upload)
        self.said: list[tuple[str, str]] = []
        self.uploaded: list[tuple[str, str, int]] = []
        self.typed: list[tuple[str, int, FileType]] = []

    def stage_in(self, *inputs: Input) -> None:
        """Stage these inputs into a new tree."""
        plan = plan_of(list(inputs))
        prepare(self.tree, plan)
        try:
            stage_in(plan, self.access, self.tree, self.systems, self.calls)
        finally:
            self.storages.close()

    def stage_out(self, *outputs: Output, succeeded: bool = True, required: bool = True) -> None:
        """Stage these outputs from the tree."""
        plan = plan_of(outputs=list(outputs))
        if not required:
            for i, upload in enumerate(plan.uploads):
                plan.uploads[i] = msgspec.structs.replace(upload, required=False)
        self.root.mkdir(exist_ok=True)
        stage_out(plan, self.access, self.tree, self.systems, self.calls, succeeded=succeeded)

    def say(self, level: str, message: str) -> None:
        self.said.append((level, message))

    def upload(self, url: str, path: str, size: int) -> None:
        self.uploaded.append((url, path, size))

    def type(self, field: str, index: int, kind: FileType) -> None:
        self.typed.append((field, index, kind))

    def warnings(self) -> list[str]:
        """What was warned of."""
        return [message for level, message in self.said if level == "warning"]

    def place(self, path: str) -> Path:
        """Where a container path lies, with its parents made."""
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def write(self, path: str, content: str = "x") -> Path:
        """As a task would write a file."""
        place = self.place(path)
        place.write_text(content)
        return place

    def arrived(self, directory: str = "") -> dict[str, str | None]:
        """What lies in the data directory: path -> content, None for an empty directory."""
        return contents(self.data / directory)


def contents(top: Path) -> dict[str, str | None]:
    """Files below a directory with their contents; empty directories as None."""
    found: dict[str, str | None] = {}
    for place in sorted(top.rglob("*")):
        if place.is_file():
            found[str(place.relative_to(top))] = place.read_text()
        elif place.is_dir() and not any(place.iterdir()):
            found[str(place.relative_to(top))] = None
    return found

"""validate: paths that cannot be, and inputs that stand in each other's way."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tesazure.errors import InvalidInput
from tesazure.validate import parse_task


def errors(**fields: Any) -> dict[str, str]:
    """What is wrong with a task that has these fields: field -> message."""
    document = {"executors": [{"image": "i", "command": ["c"]}], **fields}
    try:
        parse_task(msgspec.json.encode(document))
    except InvalidInput as found:
        return {error.field: error.message for error in found.errors}
    return {}


def given(*paths: str, **fields: Any) -> list[dict[str, Any]]:
    """Inputs with these paths, each from a place of its own."""
    return [{"path": p, "url": f"file:///{i}", **fields} for i, p in enumerate(paths)]


@pytest.mark.parametrize(
    "path", ["/proc/1/x", "/sys/x", "/dev/null", "//proc/x", "/./dev/x", "/dev/shm-not", "/proc"]
)
def test_nothing_of_a_task_lies_in_the_kernels_file_systems(path: str) -> None:
    streams = {"stdin": path, "stdout": path, "stderr": path}
    found = errors(
        executors=[{"image": "i", "command": ["c"], **streams}],
        inputs=given(path),
        outputs=[{"path": path, "url": "file:///o"}],
        volumes=[path],
    )
    assert found.keys() == {
        *(f"executors[0].{name}" for name in streams),
        "inputs[0].path",
        "outputs[0].path",
        "volumes[0]",
    }
    assert all("/dev/shm" in message for message in found.values())


@pytest.mark.parametrize("path", ["/dev/shm/x", "/process/x", "/system", "/device/x", "/a/dev/x"])
def test_other_paths_may_look_alike(path: str) -> None:
    assert errors(inputs=given(path), volumes=[path]) == {}


def test_inputs_whose_paths_differ_only_in_spelling() -> None:
    assert errors(inputs=given("/a/x", "/a/./x", "/a//x")) == {
        "inputs[1].path": "/a/x is the path of another input too",
        "inputs[2].path": "/a/x is the path of another input too",
    }
    same = {"path": "/a/x", "url": "file:///s"}
    assert errors(inputs=[same, {**same, "path": "/a//x"}]) == {}


@pytest.mark.parametrize("file", [{"type": "FILE"}, {"content": "x"}])
def test_nothing_lies_below_a_file(file: dict[str, str]) -> None:
    upper = {"path": "/a/x", "url": "file:///f", **file}
    inputs = [*given("/a/x/y/z", "/a/xy", "/a/x-"), upper]
    assert errors(inputs=inputs) == {
        "inputs[0].path": "/a/x/y/z cannot lie below inputs[3].path, /a/x, which is a file"
    }
    inputs = [upper, *given("/a/x/3", "/a/x/1", "/a/x/1/2", "/b", "/b/c", type="DIRECTORY")]
    assert errors(inputs=[*inputs, {**upper, "path": "/c"}, *given("/c/d")]) == {
        f"inputs[{i}].path": f"{path} cannot lie below inputs[{j}].path, {file}, which is a file"
        for i, path, j, file in (
            (1, "/a/x/3", 0, "/a/x"),
            (2, "/a/x/1", 0, "/a/x"),
            (3, "/a/x/1/2", 0, "/a/x"),
            (7, "/c/d", 6, "/c"),
        )
    }


def test_inputs_may_lie_below_a_directory() -> None:
    assert errors(inputs=given("/a", "/a/b", "/a/b/c", type="DIRECTORY")) == {}
    assert errors(inputs=given("/a", "/a/b")) == {}  # told only once it is fetched
    assert errors(inputs=given("/a/b", "/a/bc", "/a/b.c", type="FILE")) == {}

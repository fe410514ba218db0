"""From flags to a task."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tesazure.cli.build import Flags, build
from tesazure.cli.exits import Code, Failure
from tesazure.model import Task
from tesazure.validate import parse_task

HERE = Path("/home/me")


def made(**flags: object) -> dict[str, object]:
    """The task's document, which the server would accept."""
    task = build(msgspec.convert({"image": "i", "command": ["true"], **flags}, Flags), HERE)
    parsed, warnings = parse_task(msgspec.json.encode(task))
    assert (msgspec.json.encode(parsed), warnings) == (msgspec.json.encode(task), [])
    return dict(msgspec.to_builtins(task))


def test_the_smallest_task_says_nothing_more() -> None:
    assert made() == {"executors": [{"image": "i", "command": ["true"]}]}


def test_every_flag_has_its_field() -> None:
    document = made(
        env=["A=1", "B="],
        tags=["k=v=w"],
        volumes=["/v"],
        parameters=["max_runtime_s=5"],
        workdir="/w",
        stdin="/in",
        stdout="/out",
        stderr="/err",
        cpu=0.5,
        ram=2,
        disk=3,
        preemptible=True,
        name="n",
        description="d",
    )
    assert document == {
        "name": "n",
        "description": "d",
        "executors": [
            {
                "image": "i",
                "command": ["true"],
                "workdir": "/w",
                "stdin": "/in",
                "stdout": "/out",
                "stderr": "/err",
                "env": {"A": "1", "B": ""},
            }
        ],
        "resources": {
            "cpu_cores": 0.5,
            "ram_gb": 2,
            "disk_gb": 3,
            "preemptible": True,
            "backend_parameters": {"max_runtime_s": "5"},
        },
        "volumes": ["/v"],
        "tags": {"k": "v=w"},
    }


@pytest.mark.parametrize(
    ("source", "url"),
    [
        ("in.txt", "file:///home/me/in.txt"),
        ("./a/../in.txt", "file:///home/me/in.txt"),
        ("/abs/in.txt", "file:///abs/in.txt"),
        ("a b%ü=1.txt", "file:///home/me/a%20b%25%C3%BC%3D1.txt"),
        ("https://host/x?a=b", "https://host/x?a=b"),
        ("dir/", "file:///home/me/dir/"),
    ],
)
def test_local_paths_become_file_urls(source: str, url: str) -> None:
    assert made(inputs=[f"/in={source}"])["inputs"] == [{"path": "/in", "url": url, "type": "FILE"}]


def test_directories_have_their_type() -> None:
    document = made(input_dirs=["/in=data"], output_dirs=["/out=results"])
    assert document["inputs"] == [
        {"path": "/in", "url": "file:///home/me/data", "type": "DIRECTORY"}
    ]
    assert document["outputs"] == [
        {"path": "/out", "url": "file:///home/me/results", "type": "DIRECTORY"}
    ]


@pytest.mark.parametrize(
    ("path", "prefix", "url"),
    [
        ("/out/*.txt", "/out", "file:///home/me/results"),
        ("/out/a/run[12]/*.txt", "/out/a", "file:///home/me/results"),
        ("/*.txt", "/", "file:///home/me/results/"),
    ],
)
def test_patterns_get_their_prefix(path: str, prefix: str, url: str) -> None:
    assert made(outputs=[f"{path}=results/"])["outputs"] == [
        {"path": path, "url": url, "path_prefix": prefix, "type": "FILE"}
    ]


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("inputs", "/in", "--input /in: must have the form /CONTAINER/PATH=SOURCE"),
        ("inputs", "in.txt=/in", "must begin with /; did you mean /in=in.txt?"),
        ("inputs", "/in=", "must have the form"),
        ("env", "A", "--env A: must have the form NAME=VALUE"),
        ("tags", "=v", "--tag =v: must have the form KEY=VALUE"),
    ],
)
def test_wrong_pairs_are_explained(flag: str, value: str, said: str) -> None:
    with pytest.raises(Failure, match="must") as caught:
        made(**{flag: [value]})
    assert caught.value.code == Code.USAGE
    assert said in str(caught.value)


def test_a_path_given_twice_is_refused() -> None:
    with pytest.raises(Failure, match="/in is given twice"):
        made(inputs=["/in=a", "/in=b"])


def test_a_task_encodes_as_the_standard_has_it() -> None:
    task = build(Flags(image="i", command=["true"]), HERE)
    assert msgspec.json.decode(msgspec.json.encode(task), type=Task) == task

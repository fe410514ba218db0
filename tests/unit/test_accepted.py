"""Whatever is accepted can be carried out: made-up submissions, from the body to the plan."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st

from tesazure.errors import InvalidInput
from tesazure.model import Task
from tesazure.plan import Defaults, Plan, make_plan
from tesazure.validate import parse_task

SEED = int(os.environ.get("FUZZ_SEED") or int.from_bytes(os.urandom(4)))
"""Another one in each run; a failure prints it, and FUZZ_SEED repeats it."""
DEFAULTS = Defaults(cpu_cores=1, ram_gb=0.5, disk_gb=0.1, max_runtime_s=0)

_RARE = ["\0", "a\0b", "", "/", "=", "A=B", "é", ".", "..", "*"]
_PLAIN = [*"abcdefghijklmnopqrstuvwxyz", "in", "out", "a b", ".x", "tmp", "tes-wd"] * 3
_odd = st.sampled_from(_PLAIN + _RARE)
_text = st.text(st.characters(exclude_characters="\0="), min_size=1, max_size=8) | _odd
_part = st.sampled_from([*_PLAIN, *_RARE, "?", "[ab]", "dev", "proc"])
_path = st.lists(_part, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
_maybe = st.none() | _path
_url = _path | st.sampled_from(["file:///a", "http://h/x", "https://h/%00"])
_number = st.none() | st.floats(0, 1e6) | st.integers(-1, 10**10)


def _object(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


_executor = st.fixed_dictionaries(
    {"image": _text, "command": st.lists(_text, min_size=1, max_size=3)},
    optional={
        "workdir": _maybe,
        "stdin": _maybe,
        "stdout": _maybe,
        "stderr": _maybe,
        "env": st.none() | st.dictionaries(_text, _text, max_size=3),
        "ignore_error": st.none() | st.booleans(),
    },
)
_kind = st.sampled_from([None, "FILE", "DIRECTORY"])
_input = st.fixed_dictionaries(
    {"path": _path}, optional={"url": _url, "content": st.none() | _text, "type": _kind}
)
_output = st.fixed_dictionaries(
    {"path": _path, "url": _url}, optional={"path_prefix": _maybe, "type": _kind}
)
_task = st.fixed_dictionaries(
    {"executors": st.lists(_executor, min_size=1, max_size=3)},
    optional={
        "inputs": st.none() | st.lists(_input, max_size=3),
        "outputs": st.none() | st.lists(_output, max_size=3),
        "volumes": st.none() | st.lists(_path, max_size=3),
        "tags": st.none() | st.dictionaries(_text, st.none() | _text, max_size=2),
        "resources": _object(
            cpu_cores=st.none() | st.integers(-1, 64), ram_gb=_number, disk_gb=_number
        ),
    },
)


def texts(plan: Plan) -> Iterator[str]:
    """All that a runner hands to the kernel, an engine or a storage system."""
    yield from plan.volumes
    yield from plan.shared
    for step in plan.steps:
        yield from (step.image, *step.command, *step.env, *step.env.values())
        yield from filter(None, (step.workdir, step.stdin, step.stdout, step.stderr))
    for download in plan.downloads:
        yield from filter(None, (download.path, download.url))
    for upload in plan.uploads:
        yield from filter(None, (upload.path, upload.url, upload.prefix))


def paths(plan: Plan) -> Iterator[str]:
    yield from plan.volumes
    yield from plan.shared
    for step in plan.steps:
        yield from filter(None, (step.workdir, step.stdin, step.stdout, step.stderr))
    yield from (d.path for d in plan.downloads)
    yield from (u.path for u in plan.uploads)


@seed(SEED)
@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(_task)
def test_what_is_accepted_can_be_carried_out(document: dict[str, Any]) -> None:
    note(f"FUZZ_SEED={SEED}")
    try:
        task, notes = parse_task(msgspec.json.encode(document))
    except (InvalidInput, UnicodeEncodeError):
        return
    stored = msgspec.json.decode(msgspec.json.encode(task), type=Task)
    plan = make_plan("0" * 28, stored, DEFAULTS, notes)
    assert not [text for text in texts(plan) if "\0" in text]
    assert all(text.encode() is not None for text in texts(plan))
    for path in paths(plan):
        assert path.startswith("/")
        assert not {"", ".", ".."} & set(path[1:].split("/")) or path == "/"
    assert all("=" not in name for step in plan.steps for name in step.env)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan

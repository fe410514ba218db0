"""Submitters and the paths of Cromwell's: whatever a task says, an answer comes soon.

In a process of its own, which can be ended: a loop or a regular expression cannot.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tesazure.model import Task
from tesazure.submitters import recognise
from tesazure.submitters.cromwell_paths import (
    Directory,
    PathMapping,
    adapted,
    blob_directory,
    with_files,
)
from tests.submitted import WORKFLOW, Document, by_engine, cromwell

DEADLINE_S = 120.0
LONG = 200_000
"""Characters. What takes quadratic time takes minutes for one task of this size; there are
thousands here, of 50 ms at most."""
PARTS = ("' ", " v1", ":1", ".1.sh", "1", "/", " (", "/x/../", f"/w/{WORKFLOW}/call-x")
MAPPING = PathMapping("https://acct.blob.core.windows.net/cromwell", shared_global=True)


def swollen(text: str, step: int = 1) -> Iterator[str]:
    """The text with a long one anywhere in it."""
    for part in PARTS:
        long = part * (LONG // len(part))
        for place in range(0, len(text) + 1, step):
            yield text[:place] + long + text[place:]


def long_names() -> Iterator[Document]:
    for document in by_engine():
        for field in ("name", "description"):
            for text in swollen(document.get(field) or "", step=4):
                yield document | {field: text}


def long_paths() -> Iterator[Document]:
    document = cromwell(f"/tes-wd/shared/wf/{WORKFLOW}/call-x/execution")
    for field in ("inputs", "outputs"):
        for item in document[field]:
            others = [other for other in document[field] if other is not item]
            for key in ("path", "url"):
                for text in swollen(item[key], step=16):
                    yield document | {field: [*others, item | {key: text}]}


def odd_directories() -> Iterator[Document]:
    """Scripts and results at the top, or at what is the top by another name."""
    for top in ("", "/", "//", "/..", "/execution", f"/{WORKFLOW}/call-/execution"):
        yield cromwell(top, description=cromwell()["description"])
        yield cromwell(f"/tes-wd{top}", description=cromwell()["description"])


def carry_out(documents: Callable[[], Iterator[Document]]) -> None:
    for document in documents():
        task = msgspec.convert(document, Task)
        submitter = recognise(task)
        made = adapted(task, submitter, MAPPING)
        directories = [blob_directory(submitter, MAPPING), Directory("https://h/c", "/")]
        for directory in filter(None, directories):
            with_files(made, directory, ["/name", "//", "a//b", "..", "a/" * 500, ""])


@pytest.mark.parametrize("documents", [long_names, long_paths, odd_directories])
def test_an_answer_comes_soon(documents: Callable[[], Iterator[Document]]) -> None:
    here = Path(__file__)
    name = documents.__name__
    code = f"from tests.unit import {here.stem} as t; t.carry_out(t.{name})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=here.parents[2],
        timeout=DEADLINE_S,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr

"""Staging by the URLs of an Access, and what is told of it by those of the Plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from tesazure.access import Access
from tesazure.errors import StorageNotFound
from tesazure.model import FileType, Input, Output
from tests.unit.stage_support import Attempt

SHOWN = "https://h.example/c/d?sv=1&sig=***"


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    return Attempt(tmp_path)


def test_inputs_come_from_where_the_access_says(attempt: Attempt) -> None:
    (attempt.data / "file").write_text("one")
    (attempt.data / "dir" / "sub").mkdir(parents=True)
    (attempt.data / "dir" / "sub" / "x").write_text("two")
    (attempt.data / "plain").write_text("three")
    attempt.access = Access(
        inputs={0: f"{attempt.data}/file", 1: f"file://{attempt.data}/dir", 3: "/not/asked/for"}
    )
    attempt.stage_in(
        Input(path="/in/file", url=SHOWN),
        Input(path="/in/dir", url=SHOWN, type=FileType.DIRECTORY),
        Input(path="/in/plain", url=f"{attempt.data}/plain"),
        Input(path="/in/content", url=SHOWN, content="four"),
    )
    found = {name: attempt.place(f"/in/{name}").read_text() for name in ("file", "dir/sub/x")}
    assert found == {"file": "one", "dir/sub/x": "two"}
    assert attempt.place("/in/plain").read_text() == "three"
    assert attempt.place("/in/content").read_text() == "four"


def test_outputs_go_where_the_access_says_and_are_told_by_the_plan(attempt: Attempt) -> None:
    attempt.write("/out/file", "f")
    attempt.write("/out/dir/a b?", "g")
    attempt.place("/out/dir/empty/x").parent.mkdir(exist_ok=True)
    attempt.write("/out/x.bam", "h")
    to = attempt.data / "to"
    attempt.access = Access(outputs={0: f"{to}/0", 1: f"{to}/1", 2: f"{to}/2"})
    attempt.stage_out(
        Output(path="/out/file", url=SHOWN),
        Output(path="/out/dir", url=SHOWN),
        Output(path="/out/*.bam", path_prefix="/out", url=SHOWN),
        Output(path="/out/x.bam", url=f"{attempt.data}/plain"),
    )
    assert attempt.arrived() == {
        "plain": "h",
        "to/0": "f",
        "to/1/a b?": "g",
        "to/1/empty": None,
        "to/2/x.bam": "h",
    }
    assert [(url, path) for url, path, _ in attempt.uploaded] == [
        (SHOWN, "/out/file"),
        ("https://h.example/c/d/a%20b%3F?sv=1&sig=***", "/out/dir/a b?"),
        ("https://h.example/c/d/x.bam?sv=1&sig=***", "/out/x.bam"),
        (f"{attempt.data}/plain", "/out/x.bam"),
    ]


def test_outputs_that_meet_are_told_without_secrets(attempt: Attempt) -> None:
    attempt.write("/out/a", "a")
    attempt.write("/out/b", "b")
    attempt.access = Access(outputs={0: f"{attempt.data}/one", 1: f"{attempt.data}/two"})
    attempt.stage_out(Output(path="/out/a", url=SHOWN), Output(path="/out/b", url=SHOWN))
    [warning] = attempt.warnings()
    assert warning.endswith(f"both go to {SHOWN}; the latter is kept")
    assert attempt.arrived() == {"two": "b"}


def test_a_plan_with_whole_urls_is_told_without_their_secrets(attempt: Attempt) -> None:
    """One that was made by hand for a runner alone."""
    with pytest.raises(StorageNotFound) as caught:
        attempt.stage_out(Output(path="/out/a", url="https://h/x?sig=planted"))
    assert "planted" not in str(caught.value)

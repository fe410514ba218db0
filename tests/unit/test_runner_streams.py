"""Streams of an executor: where they are kept, and what is shown of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tesazure.errors import StorageError
from tesazure.plan import Step
from tesazure.runner.config import AttemptDir
from tesazure.runner.streams import Stream, find_stdin, open_streams


@pytest.fixture
def attempt(tmp_path: Path) -> AttemptDir:
    attempt = AttemptDir(tmp_path / "attempt")
    attempt.root.mkdir(parents=True)
    return attempt


@pytest.mark.parametrize(
    ("data", "limit", "tail"),
    [
        (b"", 10, ""),
        (b"abc", 10, "abc"),
        (b"abcdef", 3, "def"),
        ("aé".encode(), 2, "é"),
        ("aé".encode(), 1, ""),
        ("🧬x".encode(), 5, "🧬x"),
        ("🧬x".encode(), 4, "x"),
        ("🧬x".encode(), 2, "x"),
        (b"\xff\xfe", 10, "��"),
        (b"ab\x80\x80\x80\x80\x80", 5, "��"),  # no text: only three bytes can be a rest
        (b"ab\xc3", 10, "ab�"),
        (b"abc", 0, ""),
    ],
)
def test_tails(tmp_path: Path, data: bytes, limit: int, tail: str) -> None:
    (tmp_path / "stream").write_bytes(data)
    assert Stream(tmp_path / "stream", None).tail(limit) == tail


def test_a_stream_with_a_path_is_one_file(attempt: AttemptDir) -> None:
    step = Step("i", ["x"], stdout="/out/log")
    with open_streams(attempt, 0, step) as (stdout, stderr):
        stdout.path.write_text("text")
        assert stderr.path == attempt.stream(0, "stderr")
    assert (attempt.root / "out/log").samefile(attempt.stream(0, "stdout"))


def test_where_there_are_no_hard_links_the_stream_is_copied(attempt: AttemptDir) -> None:
    """As on file systems without them, or across two of them."""
    path, target = attempt.path / "stream", attempt.root / "target"
    path.write_text("text")
    target.write_text("old")
    Stream(path, target).close()
    assert target.read_text() == "text"
    assert not target.samefile(path)


def test_a_planted_link_is_replaced_not_followed(attempt: AttemptDir, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("keep")
    (attempt.root / "log").symlink_to(outside)
    with open_streams(attempt, 0, Step("i", ["x"], stdout="/log")) as (stdout, _):
        stdout.path.write_text("text")
    assert outside.read_text() == "keep"
    assert (attempt.root / "log").read_text() == "text"


def test_a_stream_that_cannot_be_made_is_named(attempt: AttemptDir) -> None:
    (attempt.root / "dir").mkdir()
    (attempt.root / "file").touch()
    for path, reason in (("/dir", "Is a directory"), ("/file/x", "Not a directory")):
        with (
            pytest.raises(StorageError, match=f"executor 3: stderr {path}: {reason}"),
            open_streams(attempt, 3, Step("i", ["x"], stderr=path)),
        ):
            pass
        attempt.stream(3, "stdout").unlink()


def test_stdin_must_be_a_file_inside(attempt: AttemptDir) -> None:
    (attempt.root / "file").touch()
    (attempt.root / "link").symlink_to("/file")
    (attempt.root / "dir").mkdir()
    (attempt.root / "out").symlink_to("../../../../../../etc/passwd")
    os.mkfifo(attempt.root / "fifo")
    assert find_stdin(attempt.root, 0, "/file") == attempt.root / "file"
    assert find_stdin(attempt.root, 0, "/link") == attempt.root / "file"
    for path in ("/dir", "/fifo", "/out", "/none", "/file/x"):
        with pytest.raises(StorageError, match=f"executor 1: stdin {path}: "):
            find_stdin(attempt.root, 1, path)

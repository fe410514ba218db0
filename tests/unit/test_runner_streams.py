"""Streams of an executor: where they are kept, and what is shown of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tesazure.errors import StorageError
from tesazure.plan import Step
from tesazure.runner.config import AttemptDir
from tesazure.runner.engines.base import Mount
from tesazure.runner.streams import StdinError, Stream, open_streams, opened_stdin
from tesazure.runner.tree import Tree


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
    assert Stream(tmp_path / "stream").tail(limit) == tail


def test_a_stream_with_a_path_is_one_file(attempt: AttemptDir) -> None:
    step = Step("i", ["x"], stdout="/out/log")
    with open_streams(attempt, Tree(attempt.root), 0, step) as (stdout, stderr):
        stdout.path.write_text("text")
        assert stderr.path == attempt.stream(0, "stderr")
    assert (attempt.root / "out/log").samefile(attempt.stream(0, "stdout"))


def test_where_there_are_no_hard_links_the_stream_is_copied(attempt: AttemptDir) -> None:
    """As on file systems without them, or across two of them."""
    path, target = attempt.path / "stream", attempt.root / "target"
    path.write_text("text")
    target.write_text("old")
    Stream(path, Tree(attempt.root), "/target").close()
    assert target.read_text() == "text"
    assert not target.samefile(path)


def test_a_planted_link_is_replaced_not_followed(attempt: AttemptDir, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("keep")
    (attempt.root / "log").symlink_to(outside)
    with open_streams(attempt, Tree(attempt.root), 0, Step("i", ["x"], stdout="/log")) as (
        stdout,
        _,
    ):
        stdout.path.write_text("text")
    assert outside.read_text() == "keep"
    assert (attempt.root / "log").read_text() == "text"


def test_a_stream_that_cannot_be_made_is_named(attempt: AttemptDir) -> None:
    (attempt.root / "dir").mkdir()
    (attempt.root / "file").touch()
    for path, reason in (("/dir", "Is a directory"), ("/file/x", "Not a directory")):
        with (
            pytest.raises(StorageError, match=f"executor 3: stderr {path}: {reason}"),
            open_streams(attempt, Tree(attempt.root), 3, Step("i", ["x"], stderr=path)),
        ):
            pass
        attempt.stream(3, "stdout").unlink()


def test_a_stream_in_a_mounted_directory(attempt: AttemptDir, tmp_path: Path) -> None:
    """A copy comes there in the end, also if its directory has become a link out meanwhile."""
    common, outside = tmp_path / "common", tmp_path / "outside"
    common.mkdir()
    outside.mkdir()
    tree = Tree(attempt.root, (Mount(common, "/all"),))
    step = Step("i", ["x"], stdout="/all/dir/log")
    with open_streams(attempt, tree, 0, step) as (stdout, _):
        assert (common / "dir/log").read_text() == ""
        stdout.path.write_text("text")
    assert (common / "dir/log").read_text() == "text"
    assert not (common / "dir/log").samefile(stdout.path)
    with open_streams(attempt, tree, 1, step) as (stdout, _):
        stdout.path.write_text("more")
        (common / "dir").rename(common / "old")
        (common / "dir").symlink_to(outside)
    assert list(outside.iterdir()) == []
    assert (attempt.root / str(outside).lstrip("/") / "log").read_text() == "more"


def test_stdin_must_be_a_file_inside(attempt: AttemptDir, tmp_path: Path) -> None:
    tree = Tree(attempt.root, (Mount(tmp_path / "common", "/all"),))
    (tmp_path / "common").mkdir()
    (tmp_path / "common/file").write_text("shared")
    (attempt.root / "file").write_text("text")
    (attempt.root / "link").symlink_to("/file")
    (attempt.root / "dir").mkdir()
    (attempt.root / "out").symlink_to("../../../../../../etc/passwd")
    os.mkfifo(attempt.root / "fifo")
    for path, content in (("/file", "text"), ("/link", "text"), ("/all/file", "shared")):
        with opened_stdin(tree, path) as place:
            assert place.read_text() == content
    for path, code, reason in (
        ("/out", 127, "is not there"),
        ("/none", 127, "is not there"),
        ("/file/x", 127, "is not there"),
        ("/dir", 126, "is not a regular file"),
        ("/fifo", 126, "is not a regular file"),
    ):
        with pytest.raises(StdinError, match=f"stdin {path} {reason}") as caught:
            opened_stdin(tree, path).__enter__()
        assert caught.value.exit_code == code

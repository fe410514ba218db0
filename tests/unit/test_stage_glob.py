"""runner.glob against the shell itself, and where it must not go."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tesazure.model import is_pattern
from tesazure.runner.glob import compile_part, expand
from tesazure.runner.tree import Tree

NAMES = st.text("ab.-]![xA1_^ \n", min_size=1, max_size=5).filter(lambda n: n not in (".", ".."))
PIECES = ("a", "b", ".", "-", "]", "!", "[", "x", "A", "1", "^", " ", "\n", "*", "?")
BRACKETS = ("[ab]", "[!a]", "[^a]", "[a-c]", "[]a]", "[!]]", "[a-]", "[[:alpha:]]", "[[:digit:]x]")
PARTS = st.lists(st.sampled_from(PIECES + BRACKETS), min_size=1, max_size=4).map("".join)
TREES = st.lists(st.lists(NAMES, min_size=1, max_size=3).map("/".join), max_size=12)
PATTERNS = st.lists(PARTS, min_size=1, max_size=3).map("/".join).filter(is_pattern)


def by_bash(root: Path, pattern: str) -> list[str]:
    """What bash expands a relative pattern to, in the C locale."""
    done = subprocess.run(
        ["bash", "-c", "shopt -s nullglob; IFS=; printf '%s\\0' $1", "bash", pattern],
        cwd=root,
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        check=True,
        timeout=20,
    )
    names = [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]
    # Bash before 5.2 lets `.*` match `.` and `..`, and all keep doubled slashes as they are.
    names = [n for n in names if not {".", ".."} & set(n.split("/"))]
    # What bash takes for no pattern at all, such as a bracket never closed, it leaves as it is.
    return [n for n in names if os.path.lexists(root / n)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TREES, PATTERNS)
@example(["[", "a", "]"], "[")
@example(["[a", "a"], "[a")
@example([".a", "a", "..a"], ".*")
@example([".a", "a"], "[.a]a")
@example([".a/b", "a/.b", "a/b"], "*/*")
@example(["a", "b", "-", "!"], "[!-a]")
@example(["a", "]", "-"], "[]-a]")
@example(["b"], "[z-a]")
@example(["b", "[:"], "[[:nonsense:]]")
def test_it_expands_as_the_shell_does(tree: list[str], pattern: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for path in tree:
            place = root / path
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
            except OSError:
                continue  # a file is where a directory should be
        # A part of dots is no pattern: the server refuses `..`, and normalises `.` away.
        if {".", ".."} & set(pattern.split("/")):
            return
        assert expand(Tree(root), f"/{pattern}") == [f"/{n}" for n in by_bash(root, pattern)]


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        (r"\*", ["*"], ["a", "\\*", "\\"]),
        (r"a\?b*", ["a?b", "a?bc"], ["axb"]),
        (r"[\]]", ["]"], ["\\"]),
        (r"[a\-c]", ["a", "-", "c"], ["b"]),
        ("[[:alnum:]_]*", ["a", "Z9", "_x"], [".a", "-a", "é"]),
        ("[![:space:]]", ["a"], [" ", "\t", "ab"]),
        ("[[:punct:]]", list("!\"#$%&'()*+,-:;<=>?@[\\]^_`{|}~"), ["a", " "]),
        ("[[=a=]b]", ["a", "b"], ["=", "]"]),
        ("[[.-.]a]", ["-", "a"], ["."]),
        ("[[:upper:][:digit:]]", ["A", "1"], ["a"]),
        ("é?", ["é☃"], ["é"]),
        ("*.fq", ["a\nb.fq", "x.fq"], [".fq", "x.fq\n"]),
        ("**", ["a"], [".a"]),
    ],
)
def test_notation(pattern: str, matching: list[str], others: list[str]) -> None:
    compiled = compile_part(pattern)
    assert [n for n in matching if not compiled.fullmatch(n)] == []
    assert [n for n in others if compiled.fullmatch(n)] == []


@given(st.text("ab[]!^-:=.*?\\", min_size=1, max_size=12), NAMES)
def test_every_pattern_compiles(pattern: str, name: str) -> None:
    compile_part(pattern).fullmatch(name)


def test_links_are_followed_inside_and_never_out(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "out/real").mkdir(parents=True)
    (root / "out/real/a.txt").touch()
    (root / "out/absolute").symlink_to("/out/real")
    (root / "out/up").symlink_to("../../../../out/real")
    (root / "out/host").symlink_to(tmp_path / "secret")
    (root / "out/etc").symlink_to("/etc")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/b.txt").touch()
    assert expand(Tree(root), "/out/*/*") == [
        "/out/absolute/a.txt",
        "/out/real/a.txt",
        "/out/up/a.txt",
    ]
    assert expand(Tree(root), "/out/*/a.txt") == expand(Tree(root), "/out/*/*")
    assert expand(Tree(root), "/out/et[c]") == ["/out/etc"]


def test_nothing_matches(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for pattern in ("/missing/*", "/file/*", "/x*", "/*/x", "/fil[!e]"):
        assert expand(Tree(tmp_path), pattern) == []


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"a\xff")).touch()
    assert [os.fsencode(p) for p in expand(Tree(tmp_path), "/a?")] == [b"/a\xff"]


def test_a_pattern_that_could_take_for_ever(tmp_path: Path) -> None:
    (tmp_path / ("a" * 200)).touch()
    assert expand(Tree(tmp_path), "/" + "*a" * 10 + "b") == []

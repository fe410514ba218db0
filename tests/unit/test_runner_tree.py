"""The task's tree: no link leads out of it, and all of it can be deleted."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesazure.model import Executor, FileType, Input, Output, Task
from tesazure.plan import Defaults, make_plan
from tesazure.runner.engines.base import Mount
from tesazure.runner.tree import (
    Tree,
    make_directories,
    prepare,
    remove_tree,
    resolve_inside,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


@pytest.mark.parametrize(
    ("links", "path", "expected"),
    [
        ({}, "/a/b", "a/b"),
        ({}, "/", ""),
        ({}, "//a/./b/../c/", "a/c"),
        ({}, "/../../etc/passwd", "etc/passwd"),
        ({"out": "/etc"}, "/out/passwd", "etc/passwd"),
        ({"out": "../../../../etc"}, "/out/passwd", "etc/passwd"),
        ({"a/b": "../c/d"}, "/a/b/x", "c/d/x"),
        ({"a": "b", "b": "/c", "c": "d"}, "/a", "d"),
        ({"a/up": ".."}, "/a/up/x", "x"),
        ({"a": "/tmp//./x/"}, "/a/y", "tmp/x/y"),
    ],
)
def test_links_are_followed_as_in_a_chroot(
    root: Path, links: dict[str, str], path: str, expected: str
) -> None:
    for name, target in links.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)
    assert resolve_inside(root, path) == root / expected


def test_a_loop_is_an_error(root: Path) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("/a")
    with pytest.raises(OSError) as caught:
        resolve_inside(root, "/a/x")
    assert caught.value.errno == errno.ELOOP


NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(st.one_of(NAMES, st.sampled_from(["..", ".", ""])), max_size=5).map("/".join)
TARGETS = st.tuples(st.sampled_from(["/", "", "../../../"]), PATHS).map("".join).filter(bool)
PLACES = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


@settings(max_examples=150, deadline=None)
@given(
    kinds=st.dictionaries(PLACES, st.one_of(st.none(), TARGETS), max_size=6),
    path=st.tuples(st.just("/"), PATHS).map("".join),
)
def test_no_tree_of_links_leads_out(
    tmp_path_factory: pytest.TempPathFactory, kinds: dict[str, str | None], path: str
) -> None:
    """Whatever is planted: the result lies inside, and passes through no link. As root it is held
    against the kernel's own opinion, in a chroot."""
    root = tmp_path_factory.mktemp("tree")
    plant(root, kinds)
    try:
        found = resolve_inside(root, path)
    except OSError as error:
        assert error.errno == errno.ELOOP
        return
    assert found == root or root in found.parents
    for part in [found, *found.parents]:
        if part == root:
            break
        assert not part.is_symlink()
    if os.geteuid() == 0:
        expected = opened_in_chroot(root, path)
        assert expected is None or expected == found


def plant(root: Path, kinds: dict[str, str | None]) -> None:
    """Directories (None) and links, as far as they do not get in each other's way."""
    for name, target in sorted(kinds.items()):
        place = root / name
        if any(parent.is_symlink() for parent in place.parents):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if target is None:
            place.mkdir(exist_ok=True)
        elif not os.path.lexists(place):
            place.symlink_to(target)


def opened_in_chroot(root: Path, path: str) -> Path | None:
    """What the kernel finds at `path` with its root directory at `root`; None if nothing."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.chroot(root)
            os.chdir("/")
            file = os.open(path or "/", os.O_PATH)
            os.fchdir(file)
            os.write(writer, bytes(Path.cwd()))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        inside = os.fsdecode(answer.read())
    os.waitpid(child, 0)
    return root / inside.lstrip("/") if inside else None


def test_directories_are_made_inside(root: Path, tmp_path: Path) -> None:
    (root / "link").symlink_to(tmp_path)
    made = make_directories(root, "/link/a/b", 0o777)
    assert made == root / str(tmp_path).lstrip("/") / "a/b"
    assert made.is_dir()
    assert made.stat().st_mode & 0o777 == 0o777
    assert {path.name for path in tmp_path.iterdir()} == {"root"}


def test_a_file_in_the_way_is_an_error(root: Path) -> None:
    (root / "file").write_text("x")
    with pytest.raises(NotADirectoryError):
        make_directories(root, "/file/a")
    with pytest.raises(NotADirectoryError):
        make_directories(root, "/file")


@pytest.fixture
def mounted(root: Path, tmp_path: Path) -> Tree:
    """A tree with a host's directory mounted at /m/in."""
    (tmp_path / "host").mkdir()
    return Tree(root, (Mount(tmp_path / "host", "/m/in"),))


@pytest.mark.parametrize(
    ("links", "path", "expected"),
    [
        ({}, "/m/in/a/b", "host/a/b"),
        ({}, "/m/in", "host"),
        ({}, "/m/inside", "root/m/inside"),
        ({}, "/m/in/../x", "root/m/x"),
        ({"host/a": "/m/in/b"}, "/m/in/a/x", "host/b/x"),
        ({"host/a": "/m/x"}, "/m/in/a", "root/m/x"),
        ({"host/a": "../../etc"}, "/m/in/a/passwd", "root/etc/passwd"),
        ({"host/a": "/etc"}, "/m/in/a/passwd", "root/etc/passwd"),
        ({"root/a": "m/in"}, "/a/x", "host/x"),
    ],
)
def test_mounts_are_seen_as_in_a_container(
    mounted: Tree, tmp_path: Path, links: dict[str, str], path: str, expected: str
) -> None:
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    place = mounted.place(mounted.real(path))
    assert place == tmp_path / expected
    assert mounted.container_path(str(place)) == mounted.real(path)
    assert mounted.container_path("/somewhere") is None


def test_a_held_path_leads_through_no_new_link(mounted: Tree, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    real = f"{mounted.make_directories('/m/in/a/b', 0o777)}/file"
    assert (tmp_path / "host/a/b").stat().st_mode & 0o777 == 0o777
    with mounted.held(real) as place:
        (tmp_path / "host/a").rename(tmp_path / "host/old")
        (tmp_path / "host/a").symlink_to(outside)
        place.write_text("kept")
    assert (tmp_path / "host/old/b/file").read_text() == "kept"
    assert list(outside.iterdir()) == []
    with pytest.raises(NotADirectoryError), mounted.held(real):
        pass
    assert mounted.names("/m/in/a") == []
    assert sorted(mounted.names("/m/in")) == ["a", "old"]


def test_prepare_leaves_a_mounted_directory_as_it_is(mounted: Tree, tmp_path: Path) -> None:
    (tmp_path / "host").chmod(0o750)
    task = Task(executors=[Executor(image="i", command=["x"])], volumes=["/m/in", "/m/in/v"])
    prepare(mounted, make_plan("t", task, Defaults(1, 1, 1, 0), []))
    assert (tmp_path / "host").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "host/v").is_dir()
    assert (mounted.root / "m/in").is_dir()  # the mount point
    assert not (mounted.root / "m/in/v").exists()


def test_prepare_makes_what_executors_may_expect(root: Path) -> None:
    task = Task(
        executors=[Executor(image="i", command=["x"], stdout="/logs/a/out", stderr="/err")],
        inputs=[Input(path="/in/dir", url="file:///x", type=FileType.DIRECTORY)],
        outputs=[
            Output(path="/out/file", url="file:///y"),
            Output(path="/dir/out", url="file:///z", type=FileType.DIRECTORY),
            Output(path="/glob/*/x", path_prefix="/glob", url="file:///z"),
        ],
        volumes=["/vol/a"],
    )
    prepare(Tree(root), make_plan("t", task, Defaults(1, 1, 1, 0), []))
    expected = [
        "tes-wd/shared",
        "tes-wd/shared-global",
        "vol/a",
        "out",
        "dir/out",
        "glob",
        "logs/a",
    ]
    for name in expected:
        assert (root / name).stat().st_mode & 0o7777 == 0o777, name
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
    prepare(Tree(root), make_plan("t", task, Defaults(1, 1, 1, 0), []))


def test_remove_tree_follows_no_link(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("x")
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/link").symlink_to(outside)
    (root / "top").symlink_to(outside)
    (root / "dangling").symlink_to("/nonexistent")
    os.mkfifo(root / "fifo")
    remove_tree(root)
    assert not root.exists()
    assert (outside / "file").read_text() == "x"
    remove_tree(root)  # nothing there is fine
    (tmp_path / "link").symlink_to(outside)
    remove_tree(tmp_path / "link")
    assert outside.exists()


def test_remove_tree_removes_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    remove_tree(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_remove_tree_works_at_any_depth(root: Path) -> None:
    """Deeper than recursion goes, and than a path may be long."""
    here = os.open(root, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("deep", dir_fd=here)
        below = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    remove_tree(root)
    assert not root.exists()


def test_remove_tree_enters_closed_directories(ordinary: Path) -> None:
    root = ordinary / "root"
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/file").touch()
    for path in (root / "a/b", root / "a", root):
        path.chmod(0)
    remove_tree(root)
    assert not root.exists()

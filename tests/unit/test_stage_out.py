"""runner.stage: outputs from the task's tree to storage."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tesazure.errors import PermissionDenied, StorageError, StorageNotFound, StorageUnavailable
from tesazure.model import FileType, Output
from tesazure.runner.collect import collect
from tesazure.storage.base import Progress
from tesazure.storage.file import FileStorage
from tests.unit.stage_support import Attempt, One


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    return Attempt(tmp_path)


def test_files_and_directories(attempt: Attempt) -> None:
    attempt.write("/out/counts.txt", "42")
    for name in (".dot", "two words", "sub/ü☃", "new\nline"):
        attempt.write(f"/out/dir/{name}", name)
    attempt.place("/out/dir/empty/deeper/x")
    attempt.stage_out(
        Output(path="/out/counts.txt", url=f"{attempt.data}/new/c.txt", type=FileType.FILE),
        Output(path="/out/dir", url=f"{attempt.data.as_uri()}/d/", type=FileType.DIRECTORY),
    )
    assert attempt.arrived() == {
        "new/c.txt": "42",
        "d/.dot": ".dot",
        "d/two words": "two words",
        "d/sub/ü☃": "sub/ü☃",
        "d/new\nline": "new\nline",
        "d/empty/deeper": None,
    }
    top = attempt.data.as_uri()
    assert attempt.uploaded == [
        (f"{attempt.data}/new/c.txt", "/out/counts.txt", 2),
        (f"{top}/d/.dot", "/out/dir/.dot", 4),
        (f"{top}/d/new%0Aline", "/out/dir/new\nline", 8),
        (f"{top}/d/sub/%C3%BC%E2%98%83", "/out/dir/sub/ü☃", 9),
        (f"{top}/d/two%20words", "/out/dir/two words", 9),
    ]
    assert attempt.typed == []
    assert attempt.warnings() == []


def test_types_are_what_is_there(attempt: Attempt) -> None:
    attempt.write("/out/dir/x")
    attempt.write("/out/file")
    attempt.stage_out(
        Output(path="/out/dir", url=f"{attempt.data}/a", type=FileType.FILE),
        Output(path="/out/dir", url=f"{attempt.data}/b"),
        Output(path="/out/file", url=f"{attempt.data}/c"),
        Output(path="/out/file", url=f"{attempt.data}/d", type=FileType.DIRECTORY),
    )
    assert attempt.typed == [
        ("outputs", 0, FileType.DIRECTORY),
        ("outputs", 1, FileType.DIRECTORY),
        ("outputs", 2, FileType.FILE),
        ("outputs", 3, FileType.FILE),
    ]
    assert attempt.arrived() == {"a/x": "x", "b/x": "x", "c": "x", "d": "x"}


def test_an_empty_directory_is_made(attempt: Attempt) -> None:
    attempt.place("/out/dir/x")
    attempt.stage_out(Output(path="/out/dir", url=f"{attempt.data}/d"))
    assert attempt.arrived() == {"d": None}
    assert attempt.uploaded == []


def test_the_allowed_directory_itself_can_be_an_output(attempt: Attempt) -> None:
    attempt.write("/out/x")
    attempt.stage_out(Output(path="/out", url=str(attempt.data)))
    assert attempt.arrived() == {"x": "x"}


@pytest.mark.parametrize(
    ("path", "prefix", "arrived"),
    [
        ("/out/*.txt", "/out", {"a.txt", "b.txt"}),
        ("/out/*.txt", "/out/", {"a.txt", "b.txt"}),
        ("/out//*.txt", "/out//", {"a.txt", "b.txt"}),
        ("/out/*.txt", "/", {"out/a.txt", "out/b.txt"}),
        ("/out/a*", "/out/a", {".txt"}),
        ("/out/*", "/out", {"a.txt", "b.txt", "sub/c.txt", "sub/.d"}),
        ("/out/.*", "/out/.", {"hidden"}),
        ("/out/*/c.txt", "/out", {"sub/c.txt"}),
        ("/*/[ab].txt", "/", {"out/a.txt", "out/b.txt"}),
    ],
)
def test_patterns(attempt: Attempt, path: str, prefix: str, arrived: set[str]) -> None:
    for name in ("a.txt", "b.txt", ".hidden", "sub/c.txt", "sub/.d"):
        attempt.write(f"/out/{name}", name)
    attempt.stage_out(Output(path=path, path_prefix=prefix, url=f"{attempt.data}/to/"))
    assert set(attempt.arrived("to")) == arrived
    assert {url for url, _, _ in attempt.uploaded} == {f"{attempt.data}/to/{n}" for n in arrived}
    assert [p for _, p, _ in attempt.uploaded] == sorted(p for _, p, _ in attempt.uploaded)


def test_a_pattern_without_a_match_is_a_warning(attempt: Attempt) -> None:
    attempt.stage_out(Output(path="/out/*.bam", path_prefix="/out", url=f"{attempt.data}/to"))
    assert attempt.warnings() == ["outputs[0]: nothing matches /out/*.bam"]
    assert attempt.typed == []


def test_a_missing_output_is_an_error_after_the_others_are_written(attempt: Attempt) -> None:
    attempt.write("/out/there")
    outputs = (
        Output(path="/out/gone", url=f"{attempt.data}/gone"),
        Output(path="/out/there", url=f"{attempt.data}/there"),
        Output(path="/out/file/below", url=f"{attempt.data}/below"),
    )
    with pytest.raises(StorageNotFound, match=r"^outputs\[0\] \(/out/gone\): the task left"):
        attempt.stage_out(*outputs)
    assert attempt.arrived() == {"there": "x"}
    errors = [m for level, m in attempt.said if level == "error"]
    assert errors == ["outputs[2] (/out/file/below): the task left nothing at this path"]


@pytest.mark.parametrize(("succeeded", "required"), [(False, True), (True, False)])
def test_a_missing_output_is_a_warning_otherwise(
    attempt: Attempt, succeeded: bool, required: bool
) -> None:
    attempt.write("/out/there")
    attempt.stage_out(
        Output(path="/out/gone", url=f"{attempt.data}/gone"),
        Output(path="/out/there", url=f"{attempt.data}/there"),
        succeeded=succeeded,
        required=required,
    )
    assert attempt.arrived() == {"there": "x"}
    assert attempt.warnings() == ["outputs[0] (/out/gone): the task left nothing at this path"]


def test_a_failed_upload_ends_its_output_only(attempt: Attempt, tmp_path: Path) -> None:
    attempt.write("/out/dir/a")
    attempt.write("/out/dir/b")
    attempt.write("/out/there")
    (attempt.data / "to").symlink_to(tmp_path)
    outputs = (
        Output(path="/out/dir", url=f"{attempt.data}/to"),
        Output(path="/out/there", url=f"{attempt.data}/there"),
    )
    with pytest.raises(PermissionDenied, match=r"^outputs\[0\] \(/out/dir\): .*ALLOW_DIR"):
        attempt.stage_out(*outputs)
    assert (attempt.data / "there").read_text() == "x"
    attempt.stage_out(*outputs, succeeded=False)
    ((_, message),) = [said for said in attempt.said if said[0] == "error"]
    assert message.startswith("outputs[0] (/out/dir): ")
    assert not (tmp_path / "a").exists()


def test_the_same_destination_twice(attempt: Attempt) -> None:
    attempt.write("/out/a", "a")
    attempt.write("/out/b", "b")
    attempt.stage_out(
        Output(path="/out/a", url=f"{attempt.data}/same"),
        Output(path="/out/b", url=f"{attempt.data}/same"),
    )
    assert attempt.arrived() == {"same": "b"}
    (warning,) = attempt.warnings()
    assert "outputs[0] (/out/a) and outputs[1] (/out/b) both go to" in warning
    assert [path for _, path, _ in attempt.uploaded] == ["/out/b"]


def test_two_matches_of_a_pattern_with_the_same_destination(attempt: Attempt) -> None:
    """The directory `out` goes to the URL itself."""
    attempt.write("/out/b", "in the directory")
    attempt.write("/outb", "beside it")
    attempt.write("/outc", "alone")
    attempt.stage_out(Output(path="/out*", path_prefix="/out", url=f"{attempt.data}/to"))
    assert attempt.arrived("to") == {"b": "beside it", "c": "alone"}
    (warning,) = attempt.warnings()
    assert "outputs[0] (/out/b) and outputs[0] (/outb) both go to" in warning
    assert [path for _, path, _ in attempt.uploaded] == ["/outb", "/outc"]


class _Together(FileStorage):
    """Makes directories only when eight are asked for at once."""

    def __init__(self, directory: Path) -> None:
        super().__init__([directory])
        self._all = threading.Barrier(8)

    def make_directory(self, url: str) -> None:
        self._all.wait(10)
        super().make_directory(url)


def test_several_empty_directories_are_made_at_once(attempt: Attempt) -> None:
    attempt.systems = One(_Together(attempt.data))
    for n in range(16):
        attempt.place(f"/out/{n}/x")
    attempt.stage_out(Output(path="/out", url=f"{attempt.data}/d"))
    assert attempt.arrived("d") == dict.fromkeys(map(str, range(16)))
    assert attempt.uploaded == []


class _Gone(FileStorage):
    """As if the container did not exist."""

    def make_directory(self, url: str) -> None:
        raise StorageNotFound(f"{url}: ContainerNotFound")


@pytest.mark.parametrize("required", [True, False])
def test_a_place_that_is_missing_is_not_a_missing_output(attempt: Attempt, required: bool) -> None:
    attempt.systems = One(_Gone([attempt.data]))
    attempt.place("/out/dir/empty/x")
    with pytest.raises(StorageNotFound, match=r"^outputs\[0\] \(/out/dir\): .*ContainerNotFound"):
        attempt.stage_out(Output(path="/out/dir", url=f"{attempt.data}/d"), required=required)
    assert attempt.warnings() == []


def test_memory_grows_little_with_the_files_of_a_directory(attempt: Attempt) -> None:
    """Bytes for each: its name, and not much more."""
    many = 20_000
    for n in range(many):
        attempt.place(f"/out/dir/some-directory-{n // 1000}/sample_{n:08}.fastq.gz").touch()
    # In a process of its own: what threads of other tests take is traced, too.
    script = "import sys; from tests.unit.test_stage_out import peak; print(peak(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", script, str(attempt.data.parent)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) / many < 900  # before: 1,600; some of it once and for all


def peak(directory: str) -> int:
    """Bytes that staging out takes of an attempt that was prepared in the directory."""
    attempt = Attempt(Path(directory))
    attempt.systems = One(_Refusing([attempt.data]))
    tracemalloc.start()
    with pytest.raises(StorageUnavailable):
        attempt.stage_out(Output(path="/out/dir", url=f"{attempt.data}/d"))
    return tracemalloc.get_traced_memory()[1]


class _Refusing(FileStorage):
    """Takes nothing."""

    def put(self, path: Path, url: str, progress: Progress | None = None) -> int:
        raise StorageUnavailable("not now")


def test_links_are_followed_inside_the_tree(attempt: Attempt) -> None:
    attempt.write("/job/real", "real")
    attempt.write("/job/deep/file", "deep")
    out = attempt.place("/out/dir/x").parent
    (out / "absolute").symlink_to("/job/real")
    (out / "relative").symlink_to("../../job/real")
    (out / "beyond").symlink_to("../../../../../../job/real")
    (out / "directory").symlink_to("/job/deep")
    os.link(attempt.root / "job/real", out / "hard")
    attempt.place("/out/itself").symlink_to("/job/real")
    attempt.stage_out(
        Output(path="/out/dir", url=f"{attempt.data}/d"),
        Output(path="/out/itself", url=f"{attempt.data}/i"),
        Output(path="/out/dir/directory", url=f"{attempt.data}/dd"),
    )
    assert attempt.arrived() == {
        "d/absolute": "real",
        "d/relative": "real",
        "d/beyond": "real",
        "d/directory/file": "deep",
        "d/hard": "real",
        "i": "real",
        "dd/file": "deep",
    }
    assert not any(place.is_symlink() for place in attempt.data.rglob("*"))
    assert attempt.typed[1] == ("outputs", 1, FileType.FILE)
    assert attempt.warnings() == []


def test_links_out_of_the_tree_are_refused(attempt: Attempt, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    out = attempt.write("/out/dir/kept").parent
    for name, target in {
        "host": str(tmp_path / "secret"),
        "etc": "/etc/passwd",
        "directory": str(tmp_path),
        "climbing": "../" * 30 + str(tmp_path / "secret"),
        "image": "/usr/bin",
        "dangling": "nothing",
        "self": "self",
    }.items():
        (out / name).symlink_to(target)
    attempt.stage_out(Output(path="/out/dir", url=f"{attempt.data}/d"))
    assert attempt.arrived() == {"d/kept": "x"}
    assert len(attempt.warnings()) == 7
    assert all("symbolic link" in warning for warning in attempt.warnings())
    assert "hunter2" not in str(attempt.said)
    with pytest.raises(
        StorageNotFound, match=r"outputs\[0\] \(/out/dir/host\): is a symbolic link"
    ):
        attempt.stage_out(Output(path="/out/dir/host", url=f"{attempt.data}/h"))
    with pytest.raises(StorageNotFound, match=r"/out/dir/directory is a symbolic link that leads"):
        attempt.stage_out(Output(path="/out/dir/directory/below", url=f"{attempt.data}/h"))
    with pytest.raises(
        StorageNotFound, match=r"outputs\[0\] \(/out/dir/self\): its symbolic links"
    ):
        attempt.stage_out(Output(path="/out/dir/self", url=f"{attempt.data}/h"))


def test_matches_of_a_pattern_that_cannot_be_uploaded_are_named(attempt: Attempt) -> None:
    out = attempt.write("/out/kept").parent
    (out / "away").symlink_to("/etc/passwd")
    (out / "dangling").symlink_to("nothing")
    (out / "self").symlink_to("self")
    os.mkfifo(out / "pipe")
    attempt.stage_out(
        Output(path="/out/*", path_prefix="/out", url=f"{attempt.data}/d"),
        Output(path="/out/*/kept", path_prefix="/out", url=f"{attempt.data}/e"),
    )
    assert attempt.arrived() == {"d/kept": "x"}
    nowhere = "is a symbolic link that leads nowhere or out of the task's own files"
    assert attempt.warnings() == [
        f"outputs[0]: /out/away: {nowhere}; it is not uploaded",
        f"outputs[0]: /out/dangling: {nowhere}; it is not uploaded",
        "outputs[0]: /out/pipe: is a named pipe; it is not uploaded",
        "outputs[0]: /out/self: its symbolic links lead in a circle; it is not uploaded",
        "outputs[1]: nothing matches /out/*/kept",
    ]


def test_outputs_in_the_directory_of_all_tasks(attempt: Attempt, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    attempt.write("/job/own", "own")
    (attempt.common / "dir/sub").mkdir(parents=True)
    (attempt.common / "dir/sub/file").write_text("shared")
    (attempt.common / "dir/to-own").symlink_to("/job/own")
    (attempt.common / "dir/up").symlink_to("../../../job/own")
    (attempt.common / "dir/host").symlink_to(tmp_path / "secret")
    (attempt.common / "dir/climbing").symlink_to("../" * 20 + str(tmp_path / "secret"))
    attempt.place("/out/link").symlink_to("/tes-wd/shared-global/dir/sub")
    attempt.place("/tes-wd/shared-global/x")  # the mount point, as `prepare` makes it
    attempt.stage_out(
        Output(path="/tes-wd/shared-global/dir", url=f"{attempt.data}/d"),
        Output(path="/tes-wd/shared-global/dir/sub/file", url=f"{attempt.data}/f"),
        Output(path="/tes-wd/*/dir/s*", path_prefix="/tes-wd", url=f"{attempt.data}/g"),
        Output(path="/out/link", url=f"{attempt.data}/l"),
    )
    assert attempt.arrived() == {
        "d/sub/file": "shared",
        "d/to-own": "own",
        "d/up": "own",
        "f": "shared",
        "g/shared-global/dir/sub/file": "shared",
        "l/file": "shared",
    }
    assert len(attempt.warnings()) == 2
    assert ("/tes-wd/shared-global/dir/sub/file") in {path for _, path, _ in attempt.uploaded}


def test_a_link_planted_between_look_and_transfer_leads_nowhere(
    attempt: Attempt, tmp_path: Path
) -> None:
    """In the directory of all tasks another one may exchange a directory for a link at any time:
    here as soon as the first upload has begun."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("hunter2")
    shared = attempt.common / "dir"
    shared.mkdir()
    (shared / "file").write_text("mine")
    found = collect(attempt.tree, "/tes-wd/shared-global/dir", print)
    shared.rename(attempt.common / "old")
    shared.symlink_to(outside)
    (real,) = found.files
    with pytest.raises(NotADirectoryError), attempt.tree.held(real) as place:
        place.read_text()


def test_circles_of_links_end(attempt: Attempt) -> None:
    attempt.write("/out/dir/sub/file")
    (attempt.root / "out/dir/sub/up").symlink_to("..")
    (attempt.root / "out/dir/top").symlink_to("/out")
    attempt.write("/other/file", "other")
    (attempt.root / "other/back").symlink_to("/out/dir/sub")
    (attempt.root / "out/dir/sub/forth").symlink_to("/other")
    attempt.stage_out(Output(path="/out/dir", url=f"{attempt.data}/d"))
    assert attempt.arrived()["d/sub/file"] == "x"
    assert attempt.arrived()["d/sub/forth/file"] == "other"
    assert any("sub/up: is a symbolic link to its own parents" in w for w in attempt.warnings())
    assert any("forth/back: is a symbolic link to its own" in w for w in attempt.warnings())


def test_links_that_multiply_are_stopped(attempt: Attempt) -> None:
    for level in range(40):
        here = attempt.place(f"/bomb/{level}/x").parent
        for name in ("a", "b"):
            (here / name).symlink_to(f"/bomb/{level + 1}")
    attempt.write("/bomb/40/file")
    with pytest.raises(StorageError, match="/bomb/0: its symbolic links lead to more than 2000"):
        collect(attempt.tree, "/bomb/0", print, max_linked=2000)


def test_special_files_are_skipped(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt.write("/out/dir/file")
    os.mkfifo(attempt.root / "out/dir/pipe")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(attempt.root / "out/dir")  # the path of a socket must be short
        server.bind("socket")
    attempt.stage_out(Output(path="/out/dir", url=f"{attempt.data}/d"))
    assert attempt.arrived() == {"d/file": "x"}
    assert sorted(attempt.warnings()) == [
        "outputs[0]: /out/dir/pipe: is a named pipe, which is not uploaded",
        "outputs[0]: /out/dir/socket: is a socket, which is not uploaded",
    ]
    with pytest.raises(StorageNotFound, match="is a named pipe"):
        attempt.stage_out(Output(path="/out/dir/pipe", url=f"{attempt.data}/p"))


def test_names_that_are_not_utf8(attempt: Attempt) -> None:
    name = os.fsdecode(b"a\xff")
    attempt.write(f"/out/{name}")
    attempt.stage_out(Output(path="/out", url=attempt.data.as_uri()))
    assert [os.fsencode(place.name) for place in attempt.data.iterdir()] == [b"a\xff"]
    ((url, path, _),) = attempt.uploaded
    assert url.endswith("/a%FF")
    assert path == "/out/a\ufffd"


@pytest.fixture
def as_ordinary_user(short_dir: Path) -> Iterator[Path]:
    """A directory of an ordinary user, who this process is meanwhile."""
    if os.geteuid() == 0:
        os.chown(short_dir, 65534, 65534)
        os.setresgid(65534, 65534, 0)
        os.setresuid(65534, 65534, 0)
    yield short_dir
    if os.getresuid()[2] == 0:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)


def test_files_without_permissions_are_read_all_the_same(as_ordinary_user: Path) -> None:
    attempt = Attempt(as_ordinary_user)
    attempt.write("/out/dir/sub/file", "deep")
    attempt.write("/out/dir/listed/file", "listed")
    attempt.write("/out/secret", "secret")
    attempt.write("/elsewhere/file", "linked")
    (attempt.root / "out/dir/link").symlink_to("/elsewhere/file")
    for path, mode in {
        "out/dir/sub/file": 0,
        "out/dir/sub": 0,
        "out/dir/listed": 0o400,
        "out/dir": 0,
        "out/secret": 0o200,
        "out": 0,
        "elsewhere": 0,
    }.items():
        (attempt.root / path).chmod(mode)
    attempt.stage_out(
        Output(path="/out/dir", url=f"{attempt.data}/d"),
        Output(path="/out/secret", url=f"{attempt.data}/s"),
        Output(path="/out/dir/sub/*", path_prefix="/out/dir/sub", url=f"{attempt.data}/g"),
    )
    assert attempt.arrived() == {
        "d/link": "linked",
        "d/listed/file": "listed",
        "d/sub/file": "deep",
        "g/file": "deep",
        "s": "secret",
    }


def test_many_files_in_order(attempt: Attempt) -> None:
    for i in range(500):
        attempt.write(f"/out/{i % 7}/{i:03}", str(i))
    attempt.stage_out(Output(path="/out", url=f"{attempt.data}/d"))
    paths = [path for _, path, _ in attempt.uploaded]
    assert len(paths) == 500
    assert paths == sorted(paths)
    assert attempt.arrived("d") == {f"{i % 7}/{i:03}": str(i) for i in range(500)}

"""Tar streams of a task's tree: exact on the way out, safe on the way in."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from tesazure.runner.engines.tree_tar import pack, unpack, walk


def stream(*members: tarfile.TarInfo, content: bytes = b"data") -> tarfile.TarFile:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member in members:
            if member.isfile():
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content) if member.isfile() else None)
    return tarfile.open(fileobj=io.BytesIO(buffer.getvalue()), mode="r|")


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644
) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = kind, link, mode
    made.uid, made.gid = os.geteuid(), os.getegid()
    return made


@pytest.fixture
def top(tmp_path: Path) -> Path:
    made = tmp_path / "top"
    made.mkdir()
    return made


def test_round_trip(tmp_path: Path, top: Path) -> None:
    (top / "d/é 🧬").mkdir(parents=True)
    (top / "d/é 🧬/file").write_bytes(bytes(range(256)) * 5000)
    (top / "d/run").write_text("#!")
    (top / "d/run").chmod(0o755)
    (top / "link").symlink_to("../etc/./passwd")
    (top / ("long" * 50)).write_text("x")
    os.mkfifo(top / "pipe")
    os.utime(top / "d/run", ns=(0, 1_700_000_000_123_456_789))

    data = b"".join(pack(top, walk(top, deep=True)))
    other = tmp_path / "other"
    other.mkdir()
    with tarfile.open(fileobj=io.BytesIO(data), mode="r|") as tar:
        assert unpack(tar, other) == []

    assert (other / "d/é 🧬/file").read_bytes() == (top / "d/é 🧬/file").read_bytes()
    assert os.readlink(other / "link") == "../etc/./passwd"  # noqa: PTH115 - as it is
    assert (other / "d/run").stat().st_mode & 0o777 == 0o755
    assert abs((other / "d/run").stat().st_mtime - 1_700_000_000.123456789) < 1e-6
    assert (other / ("long" * 50)).exists()
    assert not (other / "pipe").exists()


def test_a_shallow_walk_gives_only_files_and_links(top: Path) -> None:
    (top / "d").mkdir()
    (top / "d/x").touch()
    (top / "f").touch()
    (top / "l").symlink_to("d")
    assert list(walk(top, deep=False)) == ["f", "l"]
    assert list(walk(top, deep=True)) == ["d", "f", "l", "d/x"]


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/../out"])
def test_names_that_lead_out_are_refused(top: Path, name: str) -> None:
    with stream(member(name)) as tar:
        assert unpack(tar, top) == [member(name).name]
    assert not (top.parent / "out").exists()


def test_absolute_names_stay_inside(top: Path) -> None:
    with stream(member("/etc/x")) as tar:
        unpack(tar, top)
    assert (top / "etc/x").read_bytes() == b"data"


def test_no_link_is_followed(top: Path) -> None:
    outside = top.parent / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (top / "old").symlink_to(outside)
    members = [
        member("new", tarfile.SYMTYPE, str(outside)),
        member("new/x"),
        member("old/x"),
        member("file", tarfile.SYMTYPE, str(outside / "kept")),
        member("file"),
    ]
    with stream(*members) as tar:
        unpack(tar, top)
    assert [path.name for path in outside.iterdir()] == ["kept"]
    assert (outside / "kept").read_text() == "kept"
    assert (top / "new/x").read_bytes() == (top / "old/x").read_bytes() == b"data"


def test_hard_links_stay_inside(top: Path) -> None:
    outside = top.parent / "secret"
    outside.write_text("secret")
    (top / "way").symlink_to(top.parent)
    members = [
        member("a"),
        member("b", tarfile.LNKTYPE, "a"),
        member("c", tarfile.LNKTYPE, "../secret"),
        member("d", tarfile.LNKTYPE, str(outside)),
        member("e", tarfile.LNKTYPE, "way/secret"),
        member("f", tarfile.LNKTYPE, "not/there"),
    ]
    with stream(*members) as tar:
        assert unpack(tar, top) == ["c", "d", "e", "f"]
    assert (top / "b").samefile(top / "a")


def test_devices_are_refused_and_special_bits_dropped(top: Path) -> None:
    members = [
        member("device", tarfile.CHRTYPE),
        member("pipe", tarfile.FIFOTYPE),
        member("program", mode=0o6755),
        member("closed", mode=0),
        member("d", tarfile.DIRTYPE, mode=0),
        member("d/x"),
    ]
    with stream(*members) as tar:
        assert unpack(tar, top) == ["device", "pipe"]
    modes = {path.name: path.stat().st_mode & 0o7777 for path in top.iterdir()}
    assert modes == {"program": 0o755, "closed": 0o600, "d": 0o700}


def test_what_was_there_is_replaced(top: Path) -> None:
    (top / "was-directory").mkdir()
    (top / "was-directory/x").touch()
    (top / "was-file").touch()
    members = [member("was-directory"), member("was-file", tarfile.DIRTYPE, mode=0o755)]
    with stream(*members) as tar:
        unpack(tar, top)
    assert (top / "was-directory").is_file()
    assert (top / "was-file").is_dir()


def test_skipped_names_are_left_alone(top: Path) -> None:
    (top / "d").mkdir()
    (top / "d/log").write_text("mine")
    with stream(member("d/log"), member("d/x")) as tar:
        unpack(tar, top, frozenset({"d/log"}))
    assert (top / "d/log").read_text() == "mine"
    assert (top / "d/x").exists()

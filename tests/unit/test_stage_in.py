"""runner.stage: inputs into the task's tree."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tesazure.errors import (
    PermissionDenied,
    StorageError,
    StorageFull,
    StorageNotFound,
    StorageUnavailable,
    UnsupportedUrl,
)
from tesazure.model import FileType, Input
from tesazure.storage.base import Entry, Progress, Stat
from tesazure.storage.file import FileStorage
from tests.services.faulty_http import FaultyHttp, Handler
from tests.unit.stage_support import Attempt, One, contents

MANY = 50_000


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    return Attempt(tmp_path)


def test_files_directories_contents_and_http(attempt: Attempt) -> None:
    (attempt.data / "reads.fq").write_text("ACGT")
    for name in ("dir/.hidden", "dir/two words", "dir/sub/ü", "dir/new\nline"):
        (attempt.data / name).parent.mkdir(parents=True, exist_ok=True)
        (attempt.data / name).write_text(name)
    (attempt.data / "dir/empty/deeper").mkdir(parents=True)
    with FaultyHttp() as server:
        url = server.add("/object", b"from http")
        attempt.stage_in(
            Input(path="/in/a", url=f"{attempt.data}/reads.fq"),
            Input(path="/in/d", url=attempt.data.as_uri() + "/dir", type=FileType.DIRECTORY),
            Input(path="/c", content="é\r\n", url="s3://ignored/"),
            Input(path="/in/empty", content=""),
            Input(path="/in/h", url=url + "?sig=hunter2"),
            Input(path="/in/guess", url=f"{attempt.data}/dir"),
        )
    expected: dict[str, str | None] = {"a": "ACGT", "empty": "", "h": "from http"}
    for top in ("d", "guess"):
        for name in ("dir/.hidden", "dir/two words", "dir/sub/ü", "dir/new\nline"):
            expected[name.replace("dir", top, 1)] = name
        expected[f"{top}/empty/deeper"] = None
    assert contents(attempt.root / "in") == expected
    assert (attempt.root / "c").read_bytes() == "é\r\n".encode()
    assert sorted(attempt.typed) == [
        ("inputs", 0, FileType.FILE),
        ("inputs", 2, FileType.FILE),
        ("inputs", 3, FileType.FILE),
        ("inputs", 4, FileType.FILE),
        ("inputs", 5, FileType.DIRECTORY),
    ]
    ((level, message),) = attempt.said
    assert level == "info"
    assert "12 files" in message


def test_no_inputs(attempt: Attempt) -> None:
    attempt.stage_in()
    assert attempt.said == []


def test_an_empty_directory(attempt: Attempt) -> None:
    (attempt.data / "dir").mkdir()
    attempt.stage_in(Input(path="/in/d", url=f"{attempt.data}/dir"))
    assert contents(attempt.root / "in") == {"d": None}


def test_any_user_of_the_image_may_change_its_copy(attempt: Attempt) -> None:
    (attempt.data / "sub").mkdir()
    tool = attempt.data / "sub/tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o500)
    (attempt.data / "text").write_text("x")
    (attempt.data / "text").chmod(0o400)
    before = os.umask(0o077)
    try:
        attempt.stage_in(
            Input(path="/a/b/text", url=f"{attempt.data}/text"),
            Input(path="/d", url=f"{attempt.data}/sub"),
            Input(path="/a/c", content="c"),
        )
    finally:
        os.umask(before)
    modes = {p: stat.S_IMODE((attempt.root / p).stat().st_mode) for p in ("a/b/text", "a/c")}
    assert modes == {"a/b/text": 0o666, "a/c": 0o666}
    assert stat.S_IMODE((attempt.root / "d/tool").stat().st_mode) == 0o777
    for directory in ("a", "a/b", "d"):
        assert stat.S_IMODE((attempt.root / directory).stat().st_mode) == 0o777
    (attempt.root / "a/b/text").write_text("changed")
    assert (attempt.data / "text").read_text() == "x"


def test_the_deeper_input_wins(attempt: Attempt) -> None:
    (attempt.data / "dir/sub").mkdir(parents=True)
    (attempt.data / "dir/sub/file").write_text("of the directory")
    (attempt.data / "dir/other").write_text("other")
    attempt.stage_in(
        Input(path="/d/sub/file", content="of its own"),
        Input(path="/d", url=f"{attempt.data}/dir"),
        Input(path="/d/sub/more", content="more"),
    )
    assert contents(attempt.root / "d") == {
        "other": "other",
        "sub/file": "of its own",
        "sub/more": "more",
    }


def test_a_missing_input_is_named(attempt: Attempt) -> None:
    (attempt.data / "there").write_text("x")
    with pytest.raises(StorageNotFound) as caught:
        attempt.stage_in(
            Input(path="/in/a", url=f"{attempt.data}/there"),
            Input(path="/in/b", url=f"{attempt.data}/missing", type=FileType.FILE),
        )
    message = f"inputs[1] (/in/b): {attempt.data}/missing: No such file or directory"
    assert str(caught.value) == message


def test_what_the_type_says_must_be_so(attempt: Attempt) -> None:
    (attempt.data / "dir").mkdir()
    (attempt.data / "file").write_text("x")
    with pytest.raises(StorageError, match=r"inputs\[0\] \(/a\): .*/dir: is a directory, not"):
        attempt.stage_in(Input(path="/a", url=f"{attempt.data}/dir", type=FileType.FILE))
    with pytest.raises(StorageError, match=r"inputs\[0\] \(/a\): .*/file: is not a directory"):
        attempt.stage_in(Input(path="/a", url=f"{attempt.data}/file", type=FileType.DIRECTORY))
    with pytest.raises(UnsupportedUrl, match=r"inputs\[0\] \(/a\): http://h/x/: a directory"):
        attempt.stage_in(Input(path="/a", url="http://h/x/", type=FileType.DIRECTORY))
    with pytest.raises(UnsupportedUrl, match=r"inputs\[0\] \(/a\): irods://b/x: no storage system"):
        attempt.stage_in(Input(path="/a", url="irods://b/x"))


def test_a_link_made_after_submission_is_refused(attempt: Attempt) -> None:
    (attempt.data / "in").symlink_to("/etc")
    with pytest.raises(PermissionDenied, match="ALLOW_DIR"):
        attempt.stage_in(Input(path="/a", url=f"{attempt.data}/in/hostname"))
    assert not (attempt.root / "a").exists()


def test_an_input_below_a_file_is_named(attempt: Attempt) -> None:
    with pytest.raises(StorageError, match=r"inputs\[.\] \(/a"):
        attempt.stage_in(Input(path="/a", content="x"), Input(path="/a/b", content="y"))


def test_the_first_of_several_failures_is_reported(attempt: Attempt) -> None:
    (attempt.data / "there").write_text("x")
    for _ in range(10):
        with pytest.raises(StorageNotFound, match=r"^inputs\[2\]"):
            attempt.stage_in(
                *(
                    Input(path=f"/in/{i}", url=f"{attempt.data}/{name}", type=FileType.FILE)
                    for i, name in enumerate(["there", "there", *["missing"] * 40])
                )
            )


def test_a_failure_ends_the_others(attempt: Attempt) -> None:
    with FaultyHttp() as server:
        asked = threading.Event()

        def retry(handler: Handler) -> None:
            asked.set()
            handler.send_plain(503, {"Retry-After": "100"})

        def missing(handler: Handler) -> None:
            asked.wait(10)
            handler.send_plain(404)

        server.answers.update({"/retry": retry, "/missing": missing})
        began = time.monotonic()
        with pytest.raises(StorageNotFound, match=r"inputs\[0\] \(/a\): GET .*HTTP 404"):
            attempt.stage_in(
                Input(path="/a", url=server.url("/missing")),
                Input(path="/b", url=server.url("/retry")),
            )
        assert time.monotonic() - began < 20
        # An earlier input gets a little time to fail as well, then it is ended too.
        began = time.monotonic()
        with pytest.raises(StorageNotFound, match=r"inputs\[1\]"):
            attempt.stage_in(
                Input(path="/a", url=server.url("/retry")),
                Input(path="/b", url=server.url("/missing")),
            )
        assert time.monotonic() - began < 20
    assert contents(attempt.root / "in") == {}
    assert_no_transfers()


def test_a_signal_ends_everything_soon(attempt: Attempt) -> None:
    class Terminated(BaseException):
        """Raised by the signal's handler, as in the runner."""

    ended = threading.Event()
    raised: list[bool] = []

    def handler(*_: object) -> None:
        if not raised:
            raised.append(True)
            raise Terminated

    previous = signal.signal(signal.SIGUSR1, handler)
    try:
        with FaultyHttp(rate=1, faults=("stall",), stall_s=60) as server:
            inputs = [
                Input(path=f"/in/{i}", url=server.add(f"/{i}", os.urandom(100_000)))
                for i in range(20)
            ]

            def send() -> None:
                server.asked.wait(10)
                # Again and again, as the runner's own clock does: a signal that comes just before
                # a system call does not end that call.
                os.kill(os.getpid(), signal.SIGUSR1)
                while not ended.wait(0.5):
                    os.kill(os.getpid(), signal.SIGUSR1)

            thread = threading.Thread(target=send)
            thread.start()
            began = time.monotonic()
            with pytest.raises(Terminated):
                attempt.stage_in(*inputs)
            assert time.monotonic() - began < 20
            ended.set()
            thread.join(10)
    finally:
        ended.set()
        signal.signal(signal.SIGUSR1, previous)
    assert_no_transfers()
    assert contents(attempt.root / "in") == {}


def test_a_failure_that_may_pass_says_so(attempt: Attempt) -> None:
    assert StorageUnavailable("x").retryable
    assert not StorageNotFound("x").retryable
    assert not StorageFull("x").retryable


class _Together(FileStorage):
    """Answers only when eight ask at once."""

    def __init__(self, directory: Path) -> None:
        super().__init__([directory])
        self._all = threading.Barrier(8)

    def stat(self, url: str) -> Stat:
        self._all.wait(10)
        return super().stat(url)


def test_systems_are_asked_about_several_inputs_at_once(attempt: Attempt) -> None:
    """What takes them long is that they are far away."""
    together = _Together(attempt.data)
    attempt.systems = One(together)
    for i in range(16):
        (attempt.data / str(i)).write_text(str(i))
    inputs = [Input(path=f"/in/{i}", url=f"{attempt.data}/{i}") for i in range(16)]
    attempt.stage_in(*inputs)
    assert contents(attempt.root / "in") == {str(i): str(i) for i in range(16)}
    assert [index for _, index, _ in attempt.typed] == list(range(16))


def test_the_first_that_cannot_be_asked_about_is_reported(attempt: Attempt) -> None:
    (attempt.data / "there").write_text("x")
    names = ["there", "there", *["missing"] * 40]
    inputs = [Input(path=f"/in/{i}", url=f"{attempt.data}/{n}") for i, n in enumerate(names)]
    for _ in range(10):
        with pytest.raises(StorageNotFound, match=r"^inputs\[2\]"):
            attempt.stage_in(*inputs)


class _Long(FileStorage):
    """Lists more than is there, and gives nothing of it."""

    def list(self, url: str) -> Iterator[Entry]:
        for n in range(MANY):
            yield Entry(f"some/directory-{n // 1000}/sample_{n:08}.fastq.gz", 1)

    def get(self, url: str, path: Path, progress: Progress | None = None) -> int:
        raise StorageUnavailable("not now")


def test_memory_grows_little_with_the_files_of_a_directory(attempt: Attempt) -> None:
    """Bytes for each: its name, and not much more."""
    attempt.systems = One(_Long([attempt.data]))
    tracemalloc.start()
    try:
        with pytest.raises(StorageUnavailable):
            attempt.stage_in(Input(path="/d", url=str(attempt.data), type=FileType.DIRECTORY))
        assert tracemalloc.get_traced_memory()[1] / MANY < 400  # some of it once and for all
    finally:
        tracemalloc.stop()


def assert_no_transfers() -> None:
    """All threads of transfers end soon."""
    deadline = time.monotonic() + 15
    while any(t.name.startswith("transfer-") for t in threading.enumerate()):
        assert time.monotonic() < deadline, "a transfer still runs"
        time.sleep(0.02)

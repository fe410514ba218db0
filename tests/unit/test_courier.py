"""What the courier sends, in which order, and that nothing is lost or doubled on the way."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tesazure import report
from tesazure.errors import StorageUnavailable
from tesazure.model import State
from tesazure.report import AnyEvent, Ended, ExecutorEnded, ExecutorStarted, Said, Started, encode
from tesazure.runner.append_blob import BLOCK, MOST_BLOCKS, AppendBlob, claim, expiry_of, pace
from tesazure.runner.config import AttemptDir
from tesazure.runner.courier import KEPT, REPORT_S, STREAM_S, Courier
from tesazure.runner.journal import now
from tesazure.storage.patience import Patience
from tesazure.storage.transport import Transport
from tests.unit.append_blobs import AppendBlobs, append_blobs

STREAMS = ("0.stdout", "0.stderr", "1.stdout", "1.stderr")


class Scene:
    """An attempt's directory, whose runner is this test, and a courier in a thread of its own."""

    def __init__(
        self, server: AppendBlobs, path: Path, kept: int = KEPT, expires: float | None = None
    ) -> None:
        self.server = server
        self.directory = AttemptDir(path)
        self.directory.streams.mkdir()
        self.directory.report.touch()
        self.transport = Transport(patience=Patience(pause_s=0.01, longest_pause_s=0.1))
        self.warnings: list[str] = []
        self.stopped = threading.Event()
        self.over = threading.Event()
        url = server.url("report") + (f"&se={in_azures_words(expires)}" if expires else "")
        blob = AppendBlob(self.transport, url, "the report")
        assert claim(blob, self.transport)
        streams = {
            name: AppendBlob(self.transport, server.url(name), f"stream {name}") for name in STREAMS
        }
        self.courier = Courier(self.directory, blob, streams, self.warnings.append, kept)
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def _follow(self) -> None:
        self.courier.follow(self.over.wait, self.stopped.set, look_s=1.0)

    def write(self, *events: AnyEvent) -> None:
        """Add to the report's file."""
        with self.directory.report.open("ab") as file:
            file.write(b"".join(map(encode, events)))

    def print(self, name: str, data: bytes = b"") -> None:
        """Add to a stream's file."""
        with (self.directory.streams / name).open("ab") as file:
            file.write(data)

    def end(self) -> None:
        """The runner is gone."""
        self.over.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def finish(self, patience_s: float = 60, longest_s: float = 600) -> str:
        """The runner is gone, and what can be delivered has been."""
        self.end()
        return self.courier.finish(patience_s, longest_s)

    def events(self) -> list[AnyEvent]:
        """What has come of the report."""
        return report.decode(bytes(self.server.blobs["report"].data))

    def came(self, name: str) -> bytes:
        """What has come of a stream."""
        return bytes(self.server.blobs[name].data)


@pytest.fixture
def server() -> Iterator[AppendBlobs]:
    with append_blobs() as server:
        yield server


@pytest.fixture
def scene(server: AppendBlobs, tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(server, tmp_path)
    yield scene
    scene.end()


def until(condition: Callable[[], bool], deadline_s: float = 30) -> None:
    """Wait for it."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


def started() -> Started:
    return Started(time=now())


def executor_ended(index: int = 0) -> ExecutorEnded:
    return ExecutorEnded(time=now(), index=index)


def ended() -> Ended:
    return Ended(time=now(), state=State.COMPLETE)


def in_azures_words(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H%%3A%M%%3A%SZ")


def lines_said(events: list[AnyEvent]) -> list[str]:
    return [event.message for event in events if isinstance(event, Said)]


def test_events_come_within_a_second(scene: Scene) -> None:
    took: list[float] = []
    # The quickest counts: the machine may have other things to do.
    while len(took) < 3 or (min(took[1:]) >= 1 and len(took) < 20):
        asked = time.monotonic()
        scene.write(Said(time=now(), message=str(len(took))))
        until(lambda: len(scene.events()) == len(took) + 1)
        took.append(time.monotonic() - asked)
    assert min(took[1:]) < 1  # the first one has nothing to keep a distance from
    assert scene.finish() == ""


def test_the_end_comes_last_and_only_when_the_process_is_gone(
    scene: Scene, server: AppendBlobs
) -> None:
    scene.write(started(), ExecutorStarted(time=now()))
    scene.print("0.stdout", b"one\n")
    scene.print("0.stderr")
    scene.write(executor_ended(), ended())
    until(lambda: len(scene.events()) == 3)
    assert scene.came("0.stdout") == b"one\n"
    assert scene.came("0.stderr") == b""  # there, though empty
    assert "1.stdout" not in server.blobs
    scene.courier.say("warning", "a remark")
    assert scene.finish() == ""
    assert isinstance(scene.events()[-1], Ended)
    assert lines_said(scene.events()) == ["a remark"]


def test_an_executors_end_waits_for_its_streams(scene: Scene, server: AppendBlobs) -> None:
    size = 3 * BLOCK + 17
    early: list[str] = []

    def look(name: str, block: bytes) -> None:
        if name == "report" and b"executor_ended" in block and server.blobs["0.stdout"].size < size:
            early.append("the report was before its stream")

    server.on_append = look
    scene.write(started(), ExecutorStarted(time=now()))
    scene.print("0.stdout", os.urandom(size))
    scene.write(executor_ended(), ExecutorStarted(time=now()))
    scene.print("1.stdout", b"more")
    until(lambda: len(scene.events()) == 4)
    scene.write(executor_ended(1), ended())
    assert scene.finish() == ""
    assert early == []
    assert scene.came("1.stdout") == b"more"


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_lost_or_doubled_whatever_the_network_does(
    scene: Scene, server: AppendBlobs, seed: int
) -> None:
    chance = random.Random(seed)
    faults = ["", "", "reset", "lose", "lose", "503 ServerBusy", "500 InternalError", "403 No"]
    server.faults = [chance.choice(faults) for _ in range(60)]
    said: list[AnyEvent] = [started()]
    printed = b""
    scene.write(said[0])
    for number in range(8):
        event = Said(time=now(), message=str(number))
        said.append(event)
        scene.write(event)
        part = chance.randbytes(chance.choice([1, 1000, BLOCK + 1]))
        printed += part
        scene.print("0.stdout", part)
        time.sleep(0.01)
    scene.write(executor_ended(), ended())
    assert scene.finish(100) == ""
    assert scene.events()[:-2] == said
    assert isinstance(scene.events()[-1], Ended)
    assert scene.came("0.stdout") == printed


def test_what_is_written_while_storage_is_away_comes_later(
    scene: Scene, server: AppendBlobs
) -> None:
    scene.write(started())
    until(lambda: len(scene.events()) == 1)
    server.always = {"report": "reset", "0.stdout": "reset"}
    scene.print("0.stdout", b"kept")
    scene.write(ExecutorStarted(time=now()))
    until(lambda: any("report" in line for line in scene.warnings))
    # One line for each trouble, however often it is tried.
    assert len(scene.warnings) <= 2
    server.always = {}
    until(lambda: len(scene.events()) == 2)
    scene.write(executor_ended(), ended())
    assert scene.finish() == ""
    assert scene.came("0.stdout") == b"kept"


def test_storage_that_stays_away_is_waited_for_within_a_bound(
    scene: Scene, server: AppendBlobs
) -> None:
    server.always = dict.fromkeys(("report", *STREAMS), "503 ServerBusy")
    scene.print("0.stdout", b"lost")
    scene.write(started(), executor_ended(), ended())
    begun = time.monotonic()
    assert "503" in scene.finish(1.0)
    assert 0.9 < time.monotonic() - begun < 10


def slow_server(server: AppendBlobs) -> None:
    """Takes 0.2 s for each block."""
    never = threading.Event()
    server.on_append = lambda name, block: never.wait(0.2) and None


def test_storage_that_works_is_waited_for_however_slow_it_is(
    scene: Scene, server: AppendBlobs
) -> None:
    size = 8 * BLOCK
    scene.end()
    slow_server(server)
    scene.print("0.stdout", bytes(size))
    scene.write(started(), executor_ended(), ended())
    begun = time.monotonic()
    assert scene.finish(0.8) == ""
    assert time.monotonic() - begun > 1.6
    assert server.blobs["0.stdout"].size == size
    assert lines_said(scene.events()) == []


def test_even_storage_that_works_is_not_waited_for_without_end(
    scene: Scene, server: AppendBlobs
) -> None:
    scene.end()
    slow_server(server)
    os.truncate(_touched(scene, "0.stdout"), KEPT)
    scene.write(started(), executor_ended(), ended())
    begun = time.monotonic()
    assert scene.finish(6.0, longest_s=0.5) == ""  # half of it is the streams'
    assert 3.0 < time.monotonic() - begun < 30
    [lost] = lines_said(scene.events())
    assert "the time for sending it is over" in lost
    assert isinstance(scene.events()[-1], Ended)


def _touched(scene: Scene, name: str) -> Path:
    scene.print(name)
    return scene.directory.streams / name


def test_a_stream_without_end_is_kept_up_to_a_bound(server: AppendBlobs, tmp_path: Path) -> None:
    kept = 2 * BLOCK
    scene = Scene(server, tmp_path, kept)
    scene.write(started(), ExecutorStarted(time=now()))
    scene.print("0.stdout", b"begin")
    os.truncate(_touched(scene, "0.stdout"), 2**37)  # it takes no room
    scene.print("0.stderr", b"why")
    until(lambda: "0.stdout" in server.blobs and server.blobs["0.stdout"].size == kept)
    until(lambda: len(scene.events()) == 3)
    scene.print("0.stdout", b"and more")
    scene.write(executor_ended(), ended())
    assert scene.finish() == ""
    assert scene.came("0.stdout") == b"begin" + bytes(kept - 5)
    assert scene.came("0.stderr") == b"why"
    assert lines_said(scene.events()) == [
        "stream 0.stdout is kept up to its first 8 MiB, and no further"
    ]


def test_a_stream_of_just_the_bound_is_whole(server: AppendBlobs, tmp_path: Path) -> None:
    scene = Scene(server, tmp_path, kept=3)
    scene.write(started(), ExecutorStarted(time=now()))
    scene.print("0.stdout", b"abc")
    scene.write(executor_ended(), ended())
    assert scene.finish() == ""
    assert scene.came("0.stdout") == b"abc"
    assert lines_said(scene.events()) == []


def test_a_stream_that_cannot_come_does_not_hold_up_the_report(
    scene: Scene, server: AppendBlobs
) -> None:
    server.always = {
        "0.stdout": "409 BlockCountExceedsLimit",
        "0.stderr": "403 AuthorizationFailure",
    }
    scene.print("0.stdout", b"lost")
    scene.print("0.stderr", b"lost")
    scene.print("1.stdout", b"came")
    scene.write(started(), ExecutorStarted(time=now()), executor_ended(), ended())
    assert scene.finish(2.0) == ""
    assert isinstance(scene.events()[-1], Ended)
    first, second = lines_said(scene.events())
    assert "0.stdout" in first
    assert "BlockCountExceedsLimit" in first
    assert "0.stderr" in second
    assert "network rules" in second
    assert scene.came("1.stdout") == b"came"


def test_nobody_wants_to_know_of_an_attempt_whose_report_is_deleted(
    scene: Scene, server: AppendBlobs
) -> None:
    scene.write(started())
    until(lambda: len(scene.events()) == 1)
    with server.lock:
        del server.blobs["report"]
    assert scene.stopped.wait(10)
    scene.write(ended())
    begun = time.monotonic()
    assert "not there, or no more" in scene.finish(patience_s=100)
    assert time.monotonic() - begun < 50


def test_another_writer_is_noticed(scene: Scene, server: AppendBlobs) -> None:
    scene.write(started())
    until(lambda: len(scene.events()) == 1)
    with server.lock:
        server.blobs["report"].size += 1
    scene.write(ExecutorStarted(time=now()))
    assert scene.stopped.wait(10)
    assert "something else writes it" in scene.finish()


def test_an_attempt_whose_report_is_full_is_stopped(scene: Scene, server: AppendBlobs) -> None:
    server.always = {"report": "409 BlockCountExceedsLimit"}
    scene.write(started())
    assert scene.stopped.wait(10)
    assert "it holds no more" in scene.finish()


def test_an_attempt_that_may_not_report_any_more_is_stopped(
    server: AppendBlobs, tmp_path: Path
) -> None:
    scene = Scene(server, tmp_path, expires=time.time() - 1)
    scene.write(started())
    until(lambda: len(scene.events()) >= 1)
    assert not scene.stopped.is_set()  # it is storage that says so
    server.always = {"report": "403 AuthenticationFailed"}
    scene.write(ExecutorStarted(time=now()))
    assert scene.stopped.wait(10)
    assert "its URL has expired" in scene.finish()


def test_the_log_tells_when_the_node_may_report_no_more(
    server: AppendBlobs, tmp_path: Path
) -> None:
    end = time.time() + 3600
    scene = Scene(server, tmp_path, expires=end)
    scene.write(started())
    until(lambda: len(scene.events()) == 2)
    first, second = scene.events()
    assert isinstance(first, Started)
    assert isinstance(second, Said)
    assert second.level == "warning"
    told = datetime.fromtimestamp(int(end), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert f"from {told} on" in second.message
    scene.write(ended())
    assert scene.finish() == ""
    assert lines_said(scene.events()) == [second.message]


def test_a_far_expiry_is_not_told_and_a_strange_one_not_known(
    server: AppendBlobs, tmp_path: Path
) -> None:
    scene = Scene(server, tmp_path, expires=time.time() + 86400)
    scene.write(started(), ended())
    assert scene.finish() == ""
    assert lines_said(scene.events()) == []
    assert expiry_of("http://a/b?se=2026-11-22T10%3A00%3A00Z&sig=x") == 1795341600
    assert expiry_of("http://a/b?se=2026-11-22&sig=x") == 1795305600
    assert expiry_of("http://a/b?se=soon&sig=x") is None
    assert expiry_of("http://a/b?sig=x") is None


def test_a_line_that_is_torn_stays_away_and_a_long_one_comes_in_parts(scene: Scene) -> None:
    long = ExecutorEnded(time=now(), stdout="x" * (2 * BLOCK + 5))
    scene.write(started(), ExecutorStarted(time=now()), long)
    with scene.directory.report.open("ab") as file:
        file.write(b'{"event":"ended","ti')
    scene.end()
    scene.courier.say("error", "the runner was killed by SIGKILL")
    assert scene.finish() == ""
    assert scene.events()[2] == long
    assert lines_said(scene.events()) == ["the runner was killed by SIGKILL"]
    assert len(scene.events()) == 4


def test_a_stream_that_its_task_makes_shorter_does_no_harm(scene: Scene) -> None:
    scene.print("0.stdout", b"a long beginning")
    until(lambda: "0.stdout" in scene.server.blobs and scene.came("0.stdout") != b"")
    os.truncate(scene.directory.streams / "0.stdout", 3)
    scene.write(started(), ExecutorStarted(time=now()), executor_ended(), ended())
    assert scene.finish() == ""
    assert scene.came("0.stdout") == b"a long beginning"


def test_small_growth_is_collected(scene: Scene, server: AppendBlobs) -> None:
    began = time.monotonic()
    scene.write(started())
    for number in range(100):
        scene.print("0.stdout", b"%d\n" % number)
        scene.write(Said(time=now(), message=str(number)))
        time.sleep(0.005)
    assert scene.finish() == ""
    assert scene.came("0.stdout") == b"".join(b"%d\n" % number for number in range(100))
    took = time.monotonic() - began
    assert server.blobs["0.stdout"].blocks <= 3 + took / STREAM_S
    assert server.blobs["report"].blocks <= 3 + took / REPORT_S


def test_two_weeks_of_trickle_fit_into_a_blob() -> None:
    assert sum(pace(0.5, blocks) for blocks in range(MOST_BLOCKS)) > 14 * 86400
    assert pace(2.0, 0) == 2.0


def test_a_large_stream_takes_little_memory(tmp_path: Path) -> None:
    with append_blobs(keep=False) as server:
        scene = Scene(server, tmp_path)
        digest = hashlib.sha256()
        part = os.urandom(2**20)
        scene.write(started(), ExecutorStarted(time=now()))
        tracemalloc.start()
        try:
            for _ in range(96):
                scene.print("0.stdout", part)
                digest.update(part)
            scene.write(executor_ended(), ended())
            assert scene.finish() == ""
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert server.blobs["0.stdout"].digest.digest() == digest.digest()
        assert server.blobs["0.stdout"].size == 96 * 2**20
        assert peak < 8 * BLOCK  # the server's end holds a block or two as well


@pytest.mark.parametrize("faults", [[], ["lose"], ["reset", "lose"], ["503 ServerBusy", "lose"]])
def test_only_one_claims_a_report_whatever_answers_get_lost(
    server: AppendBlobs, faults: list[str]
) -> None:
    transport = Transport(patience=Patience(pause_s=0.01))
    server.faults = list(faults)
    won: list[int] = []

    def run(number: int) -> None:
        if claim(AppendBlob(transport, server.url("r"), "the report"), transport):
            won.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(won) == 1


def test_a_claim_that_cannot_be_made_says_why(server: AppendBlobs) -> None:
    transport = Transport(patience=Patience(attempts=2, pause_s=0.01))
    server.always = {"r": "403 AuthenticationFailed"}
    with pytest.raises(StorageUnavailable, match=r"the report: HTTP 403 .*has expired") as refused:
        claim(AppendBlob(transport, server.url("r"), "the report"), transport)
    assert "secret" not in str(refused.value)

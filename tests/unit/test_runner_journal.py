"""The report as the runner writes it: whole lines, once, also on a full disk."""

from __future__ import annotations

import resource
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tesazure import report
from tesazure.model import State
from tesazure.report import Ended, ExecutorEnded, Said, Started
from tesazure.runner.journal import Journal, now


def read(path: Path) -> list[report.AnyEvent]:
    return report.decode(path.read_bytes())


def test_a_report_is_begun_once(tmp_path: Path) -> None:
    Journal(tmp_path / "report")
    with pytest.raises(FileExistsError):
        Journal(tmp_path / "report")


def test_events_are_lines_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "report")
    journal.write(Started(time=now(), pid=7))
    journal.say("warning", "two\nlines")
    journal.end(Ended(time=now(), state=State.COMPLETE))
    started, said, ended = read(tmp_path / "report")
    assert isinstance(started, Started)
    assert isinstance(said, Said)
    assert (said.level, said.message) == ("warning", "two\nlines")
    assert isinstance(ended, Ended)
    assert started.time <= said.time <= ended.time
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_events_of_several_threads_stay_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "report")
    threads = [
        threading.Thread(target=lambda n=n: [journal.say("info", f"{n}" * 500) for _ in range(50)])
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read(tmp_path / "report")) == 400


def test_each_event_sends_a_datagram(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    journal = Journal(tmp_path / "report")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.settimeout(5)
        journal.notify(path)
        journal.say("info", "x")
        assert listener.recv(10) == b""
        for _ in range(1000):  # a listener that does not listen is in nobody's way
            journal.say("info", "x")
    journal.end(Ended(time=now()))
    assert len(read(tmp_path / "report")) == 1002


@pytest.fixture
def limited_files() -> Iterator[None]:
    """Files of at most 10,000 bytes for this process, a stand-in for a disk that is full: a write
    beyond is cut short, then refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, old)


def test_an_event_that_does_not_fit_leaves_no_half(tmp_path: Path, limited_files: None) -> None:
    journal = make_small_journal(tmp_path / "report")
    journal.say("info", "first")
    with pytest.raises(OSError):
        journal.write(ExecutorEnded(time=now(), stdout="x" * 20_000))
    journal.end(Ended(time=now()))
    assert [type(event) for event in read(tmp_path / "report")] == [Said, Ended]


def make_small_journal(path: Path) -> Journal:
    """A Journal whose reserve fits below the limit on the size of files."""
    from tesazure.runner import journal

    original = journal._RESERVE_BYTES
    journal._RESERVE_BYTES = 4096
    try:
        return Journal(path)
    finally:
        journal._RESERVE_BYTES = original


def test_times_are_rfc_3339_in_utc() -> None:
    assert len(now()) == len("2026-01-01T00:00:00.000000Z")
    assert now().endswith("Z")

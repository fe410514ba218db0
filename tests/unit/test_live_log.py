"""The committed log of an attempt that lives on: the report's, and what the server adds to it."""

from __future__ import annotations

import msgspec

from tesazure.lifecycle import MOST_TOLD
from tesazure.model import OutputFileLog, TaskLog
from tesazure.report import Report, Said, Started, Uploaded, fold
from tesazure.scheduler.perform import _ended_log, _live_log
from tesazure.store.records import AttemptRecord

EARLY, LATE = "2026-01-01T00:00:00.000000Z", "2999-01-01T00:00:00.000000Z"


def attempt(log: bytes | None = None, seen_events: int = 0) -> AttemptRecord:
    """As the store has it."""
    return AttemptRecord(
        number=1,
        key="k",
        handle={},
        released=False,
        discarded=False,
        log=log or b"",
        seen_events=seen_events,
        started=0.0,
    )


def lines(log: bytes | None) -> list[str]:
    """What its system_logs say, without times and levels."""
    assert log is not None
    said = msgspec.json.decode(log, type=TaskLog).system_logs
    return [line.split(" ", 2)[2] for line in said]


def test_each_sentence_is_said_once_however_often_it_comes_back() -> None:
    log: bytes | None = None
    for words in ("one", "two", "two", "one", "some  one", "some one"):
        log = _live_log(attempt(log), Report(), words) or log
    assert lines(log) == ["one", "two", "some one"]
    assert _live_log(attempt(log), Report(), "two") is None


def test_a_sentence_is_told_from_one_that_ends_like_it() -> None:
    log = _live_log(attempt(), Report(), "0 of 3 are ready")
    assert lines(_live_log(attempt(log), Report(), "3 are ready"))[-1] == "3 are ready"


def test_words_without_end_fall_silent() -> None:
    report = fold([Started(time=EARLY), *(Said(time=EARLY, message=f"own {n}") for n in range(99))])
    log = _live_log(attempt(), report, "")
    for number in range(2 * MOST_TOLD):
        log = _live_log(attempt(log, report.events), report, f"nodes: {number}") or log
    said = lines(log)
    assert len(said) == 99 + MOST_TOLD
    assert said[-1] == f"nodes: {MOST_TOLD - 1}"


def test_nothing_is_written_where_nothing_is_new() -> None:
    report = fold([Started(time=EARLY)])
    log = _live_log(attempt(), report, "waiting")
    assert _live_log(attempt(log, report.events), report, "waiting") is None
    assert _live_log(attempt(log, report.events), report, "") is None


def test_the_report_is_not_changed_by_what_is_added() -> None:
    report = fold([Started(time=EARLY), Said(time=EARLY, message="its own")])
    log = _live_log(attempt(), report, "ours")
    fold([Said(time=LATE, message="and more"), Uploaded(time=LATE, url="u", path="/p")], report)
    ended = _ended_log(attempt(log, 2), report, ["the end"])
    assert lines(ended) == ["its own", "ours", "and more", "the end"]
    assert len(report.log.system_logs) == 2
    assert report.log.end_time is msgspec.UNSET
    found = msgspec.json.decode(ended or b"", type=TaskLog)
    assert found.outputs == [OutputFileLog(url="u", path="/p", size_bytes="0")]
    assert found.end_time is not msgspec.UNSET

"""Views are right to the byte."""

from __future__ import annotations

import json
from datetime import datetime

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tesazure.api import views
from tesazure.api.flavour import V1_0, V1_1
from tesazure.api.tails import text
from tesazure.model import (
    Executor,
    ExecutorLog,
    Input,
    OutputFileLog,
    State,
    Task,
    TaskLog,
)

ID = "06h06hq6fviofrgqqbe1p1fl94"
TASK = Task(
    executors=[Executor(image="i", command=["c", '"content":'], stdout="/out", stderr="/err")],
    inputs=[Input(path="/a", content="secret"), Input(path="/b", url="file:///b")],
    tags={"k": None, "l": ""},
)
LOG = TaskLog(
    logs=[ExecutorLog(start_time="s", end_time="e", stdout="out", stderr="err", exit_code=3)],
    outputs=[OutputFileLog(url="u", path="/p", size_bytes="7")],
    metadata={"host": "h"},
    system_logs=["line"],
    start_time="s",
    end_time="e",
)
DOCUMENT = msgspec.json.encode(TASK)


def test_full_is_the_document_with_what_only_the_server_sets() -> None:
    shown = json.loads(views.full(ID, b"RUNNING", 0.25, DOCUMENT, [msgspec.json.encode(LOG)]))
    assert shown == {
        "id": ID,
        "state": "RUNNING",
        "creation_time": "1970-01-01T00:00:00.250000Z",
        **json.loads(DOCUMENT),
        "logs": [json.loads(msgspec.json.encode(LOG))],
    }
    assert shown["tags"] == {"k": None, "l": ""}


def test_minimal_is_id_and_state_alone() -> None:
    assert json.loads(views.minimal(ID, b"QUEUED")) == {"id": ID, "state": "QUEUED"}


def test_basic_leaves_out_contents_and_texts_and_nothing_else() -> None:
    document = json.loads(views.without_contents(DOCUMENT))
    assert document["inputs"] == [{"path": "/a"}, {"path": "/b", "url": "file:///b"}]
    assert document["executors"] == json.loads(DOCUMENT)["executors"]
    assert document["tags"] == {"k": None, "l": ""}
    log = json.loads(views.without_texts(msgspec.json.encode(LOG)))
    assert log == {
        "logs": [{"start_time": "s", "end_time": "e", "exit_code": 3}],
        "outputs": [{"url": "u", "path": "/p", "size_bytes": "7"}],
        "metadata": {"host": "h"},
        "start_time": "s",
        "end_time": "e",
    }


def test_basic_does_not_touch_a_document_without_contents() -> None:
    document = msgspec.json.encode(Task(executors=[Executor(image="i", command=["c"])]))
    assert views.without_contents(document) is document


def test_a_waiting_task_shows_its_warnings_and_what_it_waits_for() -> None:
    assert views.waiting_log([], 0, None) == []
    (log,) = views.waiting_log(["a field was ignored"], 0, "waiting for 8 cores; 2 are free")
    shown = json.loads(log)
    assert (shown["logs"], shown["outputs"]) == ([], [])
    assert shown["system_logs"] == [
        "1970-01-01T00:00:00.000000Z WARNING a field was ignored",
        "1970-01-01T00:00:00.000000Z INFO waiting for 8 cores; 2 are free",
    ]


def test_tails_fill_in_what_runs() -> None:
    log = msgspec.json.encode(TaskLog(logs=[ExecutorLog(start_time="s")]))
    assert views.with_tails(log, {}) is log
    shown = json.loads(views.with_tails(log, {(0, "stdout"): "so far", (7, "stderr"): "nowhere"}))
    assert shown["logs"] == [{"start_time": "s", "stdout": "so far"}]


def test_a_tail_does_not_begin_inside_a_character() -> None:
    assert text("aé".encode()[2:] + b"b", whole=False) == "b"
    assert text("aé".encode(), whole=True) == "aé"
    assert text(b"\x80\x80\x80\x80\x80", whole=False) == "\ufffd\ufffd"


def test_page_ends_without_a_token() -> None:
    assert json.loads(views.page([], None)) == {"tasks": []}
    one = views.minimal(ID, b"QUEUED")
    shown = json.loads(views.page([one, one], "t"))
    assert shown == {"tasks": [{"id": ID, "state": "QUEUED"}] * 2, "next_page_token": "t"}


@given(st.floats(0, 4e9))
def test_times_are_rfc_3339_to_the_microsecond(seconds: float) -> None:
    decoded = msgspec.convert(views.timestamp(seconds), datetime)
    assert abs(decoded.timestamp() - seconds) < 2e-6


def test_1_0_has_its_own_words_for_states_and_filters() -> None:
    assert V1_1.word(State.PREEMPTED) == b"PREEMPTED"
    assert V1_0.word(State.PREEMPTED) == b"SYSTEM_ERROR"
    assert V1_0.word(State.CANCELING) == b"RUNNING"
    assert set(V1_0.states("RUNNING")) == {State.RUNNING, State.CANCELING}
    assert set(V1_0.states("SYSTEM_ERROR")) == {State.SYSTEM_ERROR, State.PREEMPTED}
    assert V1_1.states("RUNNING") == (State.RUNNING,)

"""What a runner says happened, event by event, and the TaskLog that follows from it. Pure.

A runner appends events as JSON lines to a channel that its backend provides. `fold` turns the
events so far into a `Report`; folding the same events twice gives the same Report, so a server
that starts anew reads the channel from its beginning.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tesazure.model import ExecutorLog, FileType, OutputFileLog, State, TaskLog


class Event(msgspec.Struct, tag_field="event", omit_defaults=True, frozen=True):
    """Base of all events. `time` is RFC 3339 in UTC with microseconds."""

    time: str


class Started(Event, tag="started", frozen=True):
    """The runner has begun. Always the first event; its presence means the attempt has begun."""

    pid: int = 0
    host: str = ""


class Said(Event, tag="said", frozen=True):
    """A line for system_logs."""

    level: str = "info"
    message: str = ""


class Noted(Event, tag="noted", frozen=True):
    """Entries for the attempt's `metadata`."""

    metadata: dict[str, str] = {}


class Typed(Event, tag="typed", frozen=True):
    """The type of an input or output that the client left open. `field` is inputs or outputs."""

    field: str = ""
    index: int = 0
    type: FileType = FileType.FILE


class ExecutorStarted(Event, tag="executor_started", frozen=True):
    """Executor `index` runs."""

    index: int = 0


class ExecutorEnded(Event, tag="executor_ended", frozen=True):
    """Executor `index` ended; `stdout` and `stderr` are tails of its streams. `last`: no other one
    follows, the outputs do."""

    index: int = 0
    exit_code: int = 0
    stdout: str = ""
    stderr: str = ""
    last: bool = False


class Uploaded(Event, tag="uploaded", frozen=True):
    """One output file has been written, whole. `size` in bytes."""

    url: str = ""
    path: str = ""
    size: int = 0


class Passed(Event, tag="passed", frozen=True):
    """A stage is over, of an attempt that is traced: `stage_in`, `pull` or `stage_out`. `began` as
    `time`; `size`, in bytes, of what was moved."""

    stage: str = ""
    began: str = ""
    size: int = 0


class Ended(Event, tag="ended", frozen=True):
    """The last event. `state` is COMPLETE, EXECUTOR_ERROR, SYSTEM_ERROR or CANCELED.

    `retryable` marks a SYSTEM_ERROR of the node, not of the task: another attempt may succeed.
    `cause` sorts failures, for metrics: what of the attempt failed, a word of `CAUSES`.
    """

    state: State = State.SYSTEM_ERROR
    reason: str = ""
    retryable: bool = False
    cause: str = ""


CAUSES = frozenset(
    {"executor", "out_of_memory", "time_limit", "stage_in", "image", "engine", "stage_out", "node"}
)
"""What a runner's failure may be sorted under. No others are counted: a report is not trusted."""


AnyEvent = (
    Started | Said | Noted | Typed | ExecutorStarted | ExecutorEnded | Uploaded | Passed | Ended
)


class Report(msgspec.Struct, kw_only=True):
    """The events of one attempt so far, folded."""

    log: TaskLog = msgspec.field(default_factory=TaskLog)
    events: int = 0
    started: bool = False
    executor_started: bool = False
    executors_over: bool = False
    """None runs and none will: only the outputs are left to do."""
    ended: Ended | None = None
    input_types: dict[int, FileType] = {}
    output_types: dict[int, FileType] = {}
    stages: list[Passed] = []


_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)
_encoder = msgspec.json.Encoder()


def encode(event: AnyEvent) -> bytes:
    """One event as a JSON line, newline included."""
    return _encoder.encode(event) + b"\n"


def decode(lines: bytes) -> list[AnyEvent]:
    """The events in whole lines; a last line without newline (torn by a crash) is left out."""
    return [_decoder.decode(line) for line in lines.split(b"\n")[:-1] if line]


def system_line(time: str, level: str, message: str) -> str:
    """One line of system_logs: time, level, what happened."""
    return f"{time} {level.upper()} {' '.join(message.split())}"


def fold(events: Iterable[AnyEvent], report: Report | None = None) -> Report:
    """`report` carried on by `events` (in place), or a new one."""
    report = report or Report()
    log = report.log
    for event in events:
        report.events += 1
        match event:
            case Started():
                report.started = True
                log.start_time = event.time
                if event.host:
                    log.metadata["host"] = event.host
            case Said():
                log.system_logs.append(system_line(event.time, event.level, event.message))
            case Noted():
                log.metadata.update(event.metadata)
            case Typed():
                types = report.input_types if event.field == "inputs" else report.output_types
                types[event.index] = event.type
            case ExecutorStarted():
                report.executor_started = True
                log.logs.append(ExecutorLog(start_time=event.time))
            case ExecutorEnded():
                entry = log.logs[event.index]
                entry.end_time = event.time
                entry.exit_code = event.exit_code
                entry.stdout = event.stdout
                entry.stderr = event.stderr
                report.executors_over = event.last
            case Uploaded():
                log.outputs.append(
                    OutputFileLog(url=event.url, path=event.path, size_bytes=str(event.size))
                )
            case Passed():
                report.stages.append(event)
            case Ended():
                report.ended = event
                log.end_time = event.time
    return report

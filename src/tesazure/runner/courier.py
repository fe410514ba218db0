"""Brings an attempt's report and streams to append blobs while they grow.

What a reader may conclude from the report holds: where an executor has ended there, its streams are
complete, and with `Ended` all has come and the attempt's process is gone.

One thread, one request at a time; of each file at most two blocks are in memory.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from tesazure.report import ExecutorEnded, Said, decode, encode
from tesazure.runner.append_blob import BLOCK, AppendBlob, Outlet, Warn
from tesazure.runner.config import AttemptDir
from tesazure.runner.journal import now

REPORT_S, STREAM_S = 0.5, 2.0
"""Seconds between blocks that are not full, at first."""
TICK_S = 0.25
"""How often the files are looked at, in seconds."""
LOOK_S = 60.0
"""How often the report in storage is, when there is nothing to add to it."""
KEPT = 2**30
"""Bytes of a stream that are kept. A task that prints without end is not to cost without end."""
WARN_S = 2 * 3600.0
"""How long before nothing can be reported any more the task's log says so, in seconds."""
LONGEST_S = 6 * 3600.0
"""How long the rest may take to send once the attempt's process is gone, in seconds, while it goes
on being sent: the node is paid for meanwhile."""

ENDED = b'{"event":"ended"'
"""What the line of that event begins with."""
_EXECUTOR_ENDED = b'{"event":"executor_ended"'


class Courier:
    """Sends one attempt's report and streams. For one thread."""

    def __init__(
        self,
        directory: AttemptDir,
        report: AppendBlob,
        streams: Mapping[str, AppendBlob],
        warn: Warn,
        kept: int = KEPT,
    ) -> None:
        """`report` exists, empty; `streams`, named as in `Channel`, do not. `kept`: bytes of each
        of them at most."""
        self._directory = directory
        self._report = Outlet(report, REPORT_S, warn, created=True)
        self._expires = report.expires
        """Of the report, until that was told."""
        self._warn = warn
        self._kept = kept
        self._blobs = dict(streams)
        """Of streams that have not begun."""
        self._streams: dict[str, _Stream] = {}
        """Those that may grow, or have not come to their end."""
        self._awaited: int | None = None
        """The executor whose streams the report waits for."""
        self._offset = 0
        self._lines = b""
        """Of the report's file up to the offset, whole ones, not sent yet."""
        self._said = b""

    def follow(
        self, is_over: Callable[[float], bool], stop: Callable[[], None], look_s: float = LOOK_S
    ) -> None:
        """Send what there is until the attempt's process is gone, but for the report's end.

        `is_over` waits so many seconds for that, or less. `stop` has the attempt end, as it is to
        when nothing can be added to its report any more: nobody would hear of its end, and if the
        report was deleted, nobody wants to. That is seen within `look_s` seconds.
        """
        moved = stopped = False
        while not is_over(0 if moved else TICK_S):
            self._announce_expiry()
            moved = self._send(hurry=False)
            self._report.look(look_s)
            if not stopped and self._report.closed is not None:
                stopped = True
                stop()

    def say(self, level: str, message: str) -> None:
        """Add a line to the system_logs, before the report's end."""
        self._said += encode(Said(time=now(), level=level, message=message))

    def finish(self, patience_s: float, longest_s: float = LONGEST_S) -> str:
        """Send the rest, and at last the report's end. Why the report is not whole; else nothing.

        Storage that takes nothing is waited for so many seconds, half of them for the streams;
        with whatever it takes they begin anew, until it has been `longest_s`. The report's own end
        then has another `patience_s`.
        """
        spent = _Time(patience_s, longest_s)
        while not self._is_all_but_the_end_sent():
            if spent.is_over():
                self._report.give_up()
            elif spent.is_over(of_it=0.5):
                for stream in self._streams.values():
                    stream.give_up()
            if self._send(hurry=True):
                spent.renew()
            else:
                time.sleep(TICK_S)
        for name in list(self._streams):
            self._let_go(name)
        self._report.put(self._take_said() + self._lines)
        while not self._report.is_idle:
            if spent.is_over():
                self._report.give_up()
            elif self._report.send():
                spent.renew()
            else:
                time.sleep(TICK_S)
        return str(self._report.closed or "")

    def _announce_expiry(self) -> None:
        if self._expires is not None and time.time() > self._expires - WARN_S:
            end = datetime.fromtimestamp(self._expires, UTC)
            self._expires = None
            self.say(
                "warning",
                f"from {end:%Y-%m-%dT%H:%M:%SZ} on the node may report nothing more: an attempt"
                " that still runs then is stopped. CREDENTIAL_HOURS says how long it may",
            )

    def _take_said(self) -> bytes:
        said, self._said = self._said, b""
        return said

    def _is_all_but_the_end_sent(self) -> bool:
        if self._report.closed is not None:
            return True
        self._read()
        self._open()
        is_at_end = not self._lines or self._lines.startswith(ENDED)
        is_done = all(stream.is_done() for stream in self._streams.values())
        return is_at_end and is_done and self._report.is_idle

    def _send(self, *, hurry: bool) -> bool:
        """What is due of each file, a block at most; whether that was anything."""
        moved = False
        # In this order: when a line is read, what it tells of has happened.
        self._read()
        self._open()
        for name, stream in self._streams.items():
            is_awaited = self._awaited is not None and name.startswith(f"{self._awaited}.")
            moved |= stream.send(hurry=hurry or is_awaited)
            if stream.was_cut():
                kept = f"{self._kept / 2**20:g} MiB"
                self.say("warning", f"{stream.what} is kept up to its first {kept}, and no further")
        size = len(self._lines) + (0 if hurry else len(self._said))
        if self._report.takes(size, hurry=hurry):
            before = self._awaited
            lines = self._next_lines()
            # At the end what is said comes after all lines, as it tells of that.
            self._report.put(lines if hurry else lines + self._take_said())
            moved |= self._awaited != before
        return self._report.send() or moved

    def _read(self) -> None:
        """Read lines that were added to the report, if all earlier ones are on their way."""
        if self._lines:
            return
        with self._directory.report.open("rb") as file:
            wanted, data = BLOCK, os.pread(file.fileno(), BLOCK, self._offset)
            while len(data) == wanted and b"\n" not in data:
                wanted *= 2
                data = os.pread(file.fileno(), wanted, self._offset)
        # A last line without its end is being written.
        self._lines = data[: data.rfind(b"\n") + 1]
        self._offset += len(self._lines)

    def _open(self) -> None:
        """Take up streams that have begun."""
        if not self._blobs:
            return
        begun: list[str] = []
        with (
            contextlib.suppress(FileNotFoundError),
            os.scandir(self._directory.streams) as entries,
        ):
            begun += (entry.name for entry in entries if entry.name in self._blobs)
        for name in begun:
            blob = self._blobs.pop(name)
            outlet = Outlet(blob, STREAM_S, self._warn, created=False)
            try:
                path = str(self._directory.streams / name)
                self._streams[name] = _Stream(path, outlet, blob.what, self._kept)
            except OSError as error:
                self._warn(f"{blob.what} cannot be read: {error}")

    def _next_lines(self) -> bytes:
        """The lines that may be sent now: up to the report's end, or to that of an executor whose
        streams have not come."""
        position, self._awaited = 0, None
        while position < len(self._lines):
            if self._lines.startswith(ENDED, position):
                break
            end = self._lines.index(b"\n", position) + 1
            if self._lines.startswith(_EXECUTOR_ENDED, position):
                for event in decode(self._lines[position:end]):
                    if isinstance(event, ExecutorEnded) and not self._has_come(event.index):
                        self._awaited = event.index
                if self._awaited is not None:
                    break
            position = end
        lines, self._lines = self._lines[:position], self._lines[position:]
        return lines

    def _has_come(self, executor: int) -> bool:
        """Whether all is sent that an executor which has ended has written."""
        names = [name for name in self._streams if name.startswith(f"{executor}.")]
        if not all(self._streams[name].is_done() for name in names):
            return False
        for name in names:
            self._let_go(name)
        return True

    def _let_go(self, name: str) -> None:
        stream = self._streams.pop(name)
        stream.close()
        if stream.problem:
            self.say("error", f"the rest of an executor's output is lost: {stream.problem}")


class _Stream:
    """An executor's stream: a file that grows, of which the outlet gets the first `kept` bytes."""

    def __init__(self, path: str, outlet: Outlet, what: str, kept: int) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        self._outlet = outlet
        self.what = what
        self._kept = kept
        self._is_cut = False
        self._read = 0

    @property
    def problem(self) -> str:
        """Why it is not sent to its end."""
        return str(self._outlet.closed or "")

    def send(self, *, hurry: bool) -> bool:
        """A block of it, if one is due; whether it was sent."""
        new = self._size() - self._read
        if new > 0 and self._outlet.takes(new, hurry=hurry):
            data = os.pread(self._file, min(new, BLOCK), self._read)
            self._read += len(data)
            self._outlet.put(data)
        return self._outlet.send()

    def was_cut(self) -> bool:
        """Whether it has become longer than what is kept of it, since this was asked last."""
        before = self._is_cut
        self._is_cut |= os.fstat(self._file).st_size > self._kept
        return self._is_cut and not before

    def is_done(self) -> bool:
        """Whether all that the file holds has come, or cannot."""
        is_read = self._outlet.closed is not None or self._size() <= self._read
        return is_read and self._outlet.is_idle

    def give_up(self) -> None:
        """Send nothing any more, if anything is missing."""
        if not self.is_done():
            self._outlet.give_up()

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    def _size(self) -> int:
        # The file may lie among the task's own, which can make it shorter, or long out of nothing.
        return min(os.fstat(self._file).st_size, self._kept)


class _Time:
    """How long nothing has come of anything, and how long all of it takes."""

    def __init__(self, patience_s: float, longest_s: float) -> None:
        self._patience_s = patience_s
        self._last = time.monotonic()
        self._end = self._last + longest_s

    def renew(self) -> None:
        """Something has."""
        self._last = time.monotonic()

    def is_over(self, of_it: float = 1.0) -> bool:
        """Whether patience, or such a part of it, is spent, since then or since the end."""
        return time.monotonic() - min(self._last, self._end) > self._patience_s * of_it

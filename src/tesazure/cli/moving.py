"""What `tesazure transfer` does and shows: events as JSON lines, a bar on a terminal."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from tesazure import transfer
from tesazure.cli import show
from tesazure.cli.exits import Code, Failure
from tesazure.errors import (
    ConfigurationError,
    InvalidInput,
    PermissionDenied,
    StorageFull,
    StorageNotFound,
    StorageUnavailable,
    TesazureError,
    UnsupportedUrl,
    printable,
)
from tesazure.settings import Settings

TICK_S = 1.0
"""Least time between two progress events."""

_CODES = (
    (StorageNotFound, Code.NOT_FOUND),
    (PermissionDenied, Code.DENIED),
    (StorageFull, Code.FULL),
    (StorageUnavailable, Code.UNREACHABLE),
    (UnsupportedUrl, Code.USAGE),
    (ConfigurationError, Code.USAGE),
)


def read_plan(name: str) -> transfer.Order:
    """The Order in a file, or on standard input. Raises Failure."""
    try:
        text = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return transfer.read_order(text)
    except OSError as error:
        raise Failure(Code.USAGE, f"{name}: {error.strerror}") from None
    except InvalidInput as error:
        raise Failure(Code.USAGE, f"{name}: not a transfer plan", *map(str, error.errors)) from None


def move(settings: Settings, order: transfer.Order, as_json: bool) -> Code:
    """Move all, and show how it goes; the exit code, of the first item that failed."""
    watch = _Watch(_tellers(as_json))
    code, how = Code.OK, "finished"
    try:
        with _terminable():
            outcome = transfer.move(settings, order, watch)
        if outcome.errors:
            code = code_of(outcome.errors[0])
    except KeyboardInterrupt:
        code, how = Code.INTERRUPTED, "interrupted"
    except _Terminated:
        code, how = Code.TERMINATED, "terminated"
    except TesazureError as error:
        code = code_of(error)
        watch.failed("", "", error)
    watch.end(how)
    if watch.unheard:
        raise watch.unheard
    return code


def list_entries(settings: Settings, url: str, as_json: bool) -> None:
    """Print what is below a URL. Raises Failure."""
    with _failing():
        for entry in transfer.entries(settings, url):
            if as_json:
                kind = "DIRECTORY" if entry.is_directory else "FILE"
                path = printable(entry.path)
                _print(show.compact({"path": path, "type": kind, "size": entry.size}))
                continue
            path = f"{entry.path}/" if entry.is_directory else entry.path
            if show.is_terminal():
                _print(f"{show.size(entry.size):>9}  {printable(path)}")
            else:
                _print(show.tabbed([str(entry.size), path]))


def show_stat(settings: Settings, url: str, as_json: bool) -> None:
    """Print what is at a URL. Raises Failure."""
    with _failing():
        found = transfer.stat(settings, url)
        facts = {
            "type": "DIRECTORY" if found.is_directory else "FILE",
            "size": found.size,
            "checksum": found.checksum,
            "version": printable(found.version) if found.version else None,
        }
        if as_json:
            _print(show.compact(facts))
            return
        for name, value in facts.items():
            if value is not None:
                line = f"{name:<10}{value}"
                _print(line if show.is_terminal() else show.tabbed([name, str(value)]))


def code_of(error: TesazureError) -> Code:
    """The exit code for an error of storage."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), Code.NOT_COMPLETE)


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    """Storage's errors, Ctrl-C and SIGTERM, as Failures."""
    try:
        with _terminable():
            try:
                yield
            finally:
                _flush()
    except TesazureError as error:
        raise Failure(code_of(error), str(error)) from error
    except KeyboardInterrupt:
        raise Failure(Code.INTERRUPTED, "interrupted") from None
    except _Terminated:
        raise Failure(Code.TERMINATED, "terminated") from None
    except BrokenPipeError:  # as in `ls | head`
        _drop_output()


class _Terminated(BaseException):
    """SIGTERM came."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does. As a container's first process we would not get it at
    all without a handler."""

    def end(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _drop_output() -> None:
    """Nobody reads standard output any more; the interpreter is not to complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(line: str) -> None:
    """A line on standard output. Raises Failure, and BrokenPipeError where nobody reads it."""
    try:
        print(line)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _unwritten(error) from None


def _flush() -> None:
    """As _print."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _unwritten(error) from None


def _unwritten(error: OSError) -> Failure:
    """Standard output takes no more, for another reason than that nobody reads it."""
    _drop_output()
    code = Code.FULL if error.errno == errno.ENOSPC else Code.NOT_COMPLETE
    return Failure(code, f"standard output: {error.strerror}")


class _Teller(Protocol):
    """Shows how an Order goes. One call at a time, from any thread; `end` is the last one, and may
    be the only one."""

    def begin(self, watch: _Watch) -> None: ...

    def tick(self, watch: _Watch) -> None: ...

    def done(self, url: str, path: str, size: int) -> None: ...

    def failed(self, url: str, path: str, error: TesazureError) -> None: ...

    def end(self, watch: _Watch, how: str) -> None: ...


class _Watch:
    """Counts, and has its tellers tell. An Observer."""

    def __init__(self, tellers: Sequence[_Teller]) -> None:
        self.files = 0
        self.size: int | None = None
        self.moved_size = 0
        """Bytes moved, those that were moved again included."""
        self.done_files = 0
        self.done_size = 0
        self.failures = 0
        self._began = time.monotonic()
        self._told = self._began
        self._begun = self._ended = False
        self._early: list[tuple[str, str, TesazureError]] = []
        """What failed before it began."""
        self.unheard: Failure | None = None
        """Why not all could be told."""
        self._tellers = tellers
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float:
        """Since the beginning, never 0."""
        return max(time.monotonic() - self._began, 1e-3)

    def begin(self, files: int, size: int | None) -> None:
        """As Observer's; so the others."""
        with self._lock:
            self.files, self.size = files, size
            self._begin()

    def moved(self, size: int) -> None:
        with self._lock:
            self.moved_size += size
            now = time.monotonic()
            if now - self._told >= TICK_S:
                self._told = now
                self._tell(lambda teller: teller.tick(self))

    def done(self, url: str, path: str, size: int) -> None:
        with self._lock:
            self.done_files += 1
            self.done_size += size
            self._tell(lambda teller: teller.done(url, path, size))

    def failed(self, url: str, path: str, error: TesazureError) -> None:
        with self._lock:
            self.failures += 1
            if self._begun:
                self._tell(lambda teller: teller.failed(url, path, error))
            else:
                self._early.append((url, path, error))

    def end(self, how: str) -> None:
        """It has finished, or been interrupted; what a thread says later is not told any more."""
        with self._lock:
            if self._early:
                self._begin()
            self._tell(lambda teller: teller.end(self, how))
            self._ended = True

    def _begin(self) -> None:
        self._begun = True
        self._tell(lambda teller: teller.begin(self))
        early, self._early = self._early, []
        for failure in early:
            self._tell(lambda teller, failure=failure: teller.failed(*failure))  # type: ignore[misc]

    def _tell(self, what: Callable[[_Teller], None]) -> None:
        for teller in () if self._ended else self._tellers:
            try:
                what(teller)
            except BrokenPipeError:
                _drop_output()
            except OSError as error:
                self.unheard = _unwritten(error)


def _tellers(as_json: bool) -> list[_Teller]:
    """Events go to standard output unless that is a terminal, where they have to be asked for;
    people are told on standard error."""
    tellers: list[_Teller] = []
    events = as_json or not show.is_terminal()
    if events:
        tellers.append(_Events())
    if sys.stderr.isatty() and not as_json:
        tellers.append(_Bar())
    else:
        tellers.append(_Lines(brief=events))
    return tellers


class _Events:
    """JSON lines on standard output."""

    def begin(self, watch: _Watch) -> None:
        self._say("started", files=watch.files, bytes=watch.size)

    def tick(self, watch: _Watch) -> None:
        facts: dict[str, Any] = {
            "files_done": watch.done_files,
            "files": watch.files,
            "bytes_done": watch.moved_size,
            "bytes": watch.size,
            "bytes_per_s": round(watch.moved_size / watch.seconds),
        }
        self._say("progress", **facts)

    def done(self, url: str, path: str, size: int) -> None:
        self._say("done", url=url, path=path, bytes=size)

    def failed(self, url: str, path: str, error: TesazureError) -> None:
        self._say("failed", url=url, path=path, error=str(error), exit_code=code_of(error))

    def end(self, watch: _Watch, how: str) -> None:
        self._say(
            how,
            files=watch.done_files,
            failures=watch.failures,
            bytes=watch.done_size,
            seconds=round(watch.seconds, 3),
        )

    def _say(self, event: str, **facts: Any) -> None:
        time_ = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        print(show.compact({"time": time_, "event": event, **facts}), flush=True)


class _Lines:
    """Plain lines on standard error; `brief`: only failures, where events say the rest."""

    def __init__(self, *, brief: bool) -> None:
        self._brief = brief

    def begin(self, watch: _Watch) -> None:
        if not self._brief:
            size = "" if watch.size is None else f", {show.size(watch.size)}"
            show.say(f"{_files(watch.files)}{size}")

    def tick(self, watch: _Watch) -> None:
        if not self._brief:
            whole = "" if watch.size is None else f" of {show.size(watch.size)}"
            show.say(f"{show.size(watch.moved_size)}{whole}, {_rate(watch.moved_size, watch)}")

    def done(self, url: str, path: str, size: int) -> None:
        """The sum is enough."""

    def failed(self, url: str, path: str, error: TesazureError) -> None:
        show.say(f"tesazure: {error}")

    def end(self, watch: _Watch, how: str) -> None:
        if not self._brief:
            show.say(_summary(watch, how))


class _Bar:
    """Files, bytes, rate and the time that is left, on a terminal's standard error."""

    def __init__(self) -> None:
        from rich import progress

        self._console = show.console(stderr=True)
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=self._console,
            get_time=time.monotonic,
            transient=True,
            redirect_stdout=False,  # where events go
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("looking", total=None)
        self._bar.start()

    def begin(self, watch: _Watch) -> None:
        self._bar.update(self._task, total=watch.size)
        self.tick(watch)

    def tick(self, watch: _Watch) -> None:
        self._bar.update(
            self._task,
            description=f"{watch.done_files}/{_files(watch.files)}",
            completed=min(watch.moved_size, watch.size or watch.moved_size),
        )

    def done(self, url: str, path: str, size: int) -> None:
        """The next tick shows it."""

    def failed(self, url: str, path: str, error: TesazureError) -> None:
        self._console.print(f"tesazure: {error}", style="red")

    def end(self, watch: _Watch, how: str) -> None:
        self._bar.stop()
        show.say(_summary(watch, how))


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _rate(size: int, watch: _Watch) -> str:
    return f"{show.size(round(size / watch.seconds))}/s"


def _summary(watch: _Watch, how: str) -> str:
    failed = f"; {watch.failures} failed" if watch.failures else ""
    stopped = "" if how == "finished" else f"{how}: "
    done = f"{_files(watch.done_files)}, {show.size(watch.done_size)}"
    return f"{stopped}{done} in {watch.seconds:.1f} s ({_rate(watch.done_size, watch)}){failed}"

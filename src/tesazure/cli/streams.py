"""`logs`: an executor's whole standard output and error, also while it runs."""

from __future__ import annotations

import sys
import threading
import time
from typing import BinaryIO, NamedTuple
from urllib.parse import quote

import httpx

from tesazure.cli import show as printing
from tesazure.cli.client import Json, TesClient
from tesazure.cli.exits import Code, Failure
from tesazure.model import TERMINAL

RETRY_S = 0.25
"""Between questions whether an executor has started."""
PATIENCE_S = 60.0
"""How long a followed server may be away."""


class Choice(NamedTuple):
    """Which streams: of one executor (None: all, in order), of one attempt (None: the newest)."""

    executor: int | None
    names: tuple[str, ...]
    attempt: int | None


def show(client: TesClient, task_id: str, choice: Choice, follow: bool) -> None:
    """Copy the streams to standard output and standard error, until they end if `follow`."""
    count = len(client.get(task_id, "BASIC").get("executors") or [])
    if choice.executor is not None and choice.executor >= count:
        said = f"{task_id} has {count} executor{'s' if count != 1 else ''}, numbered from 0"
        raise Failure(Code.NOT_FOUND, said)
    chosen = range(count) if choice.executor is None else [choice.executor]
    for executor in chosen:
        copies = [
            _Copy(client, task_id, executor, name, choice.attempt, follow) for name in choice.names
        ]
        if follow:
            _together(copies)
        else:
            for copy in copies:
                copy.run()


def system(client: TesClient, task_id: str, attempt: int | None) -> None:
    """Print the system logs of an attempt."""
    for line in _attempt(client, task_id, attempt).get("system_logs") or []:
        print(line)


def _together(copies: list[_Copy]) -> None:
    threads = [threading.Thread(target=copy.run_quietly, daemon=True) for copy in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for copy in copies:
        if copy.failure:
            raise copy.failure


class _Copy:
    """One stream on its way to ours."""

    def __init__(
        self,
        client: TesClient,
        task_id: str,
        executor: int,
        name: str,
        attempt: int | None,
        follow: bool,
    ) -> None:
        self._client = client
        self._task_id = task_id
        self._executor = executor
        self._name = name
        self._attempt = attempt
        self._follow = follow
        self._target: BinaryIO = getattr(sys, name).buffer
        self._copied = 0
        self.failure: Failure | None = None

    def run_quietly(self) -> None:
        """`run`, keeping its Failure for the caller."""
        try:
            self.run()
        except Failure as failure:
            self.failure = failure

    def run(self) -> None:
        """Copy to the end. What breaks off is taken up where it was."""
        contact = time.monotonic()
        while True:
            before = self._copied
            try:
                self._read()
                if not self._follow or self._is_over():
                    return
                contact = time.monotonic()  # the server closed the stream early: it is stopping
                failure = Failure(Code.UNREACHABLE, "the server ended the stream")
            except httpx.HTTPError as error:
                said = f"the connection broke off: {str(error) or type(error).__name__}"
                failure = Failure(Code.UNREACHABLE, said)
            except Failure as error:
                failure = error
            if failure.code == Code.NOT_FOUND:
                if not self._follow or self._client.state(self._task_id) in TERMINAL:
                    self._tail()
                    return
            elif failure.code != Code.UNREACHABLE or not self._follow:
                raise failure
            if self._copied > before or failure.code == Code.NOT_FOUND:
                contact = time.monotonic()
            elif time.monotonic() - contact > PATIENCE_S:
                raise failure
            time.sleep(RETRY_S)

    def _is_over(self) -> bool:
        """Whether nothing more will come: the executor has ended, or its attempt or task has."""
        task = self._client.get(self._task_id, "BASIC")
        attempts = task.get("logs") or []
        number = self._attempt or len(attempts)
        if task["state"] in TERMINAL or number < len(attempts):
            return True
        if number > len(attempts):
            return False
        logs = printing.last_attempt(task).get("logs") or []
        return self._executor < len(logs) and logs[self._executor].get("exit_code") is not None

    def _read(self) -> None:
        task = quote(self._task_id, safe="")
        params = {"follow": "1"} if self._follow else {}
        if self._attempt is not None:
            params["attempt"] = str(self._attempt)
        headers = {"Range": f"bytes={self._copied}-"} if self._copied else {}
        path = f"/tasks/{task}/logs/{self._executor}/{self._name}"
        with self._client.stream(path, params, headers) as response:
            for chunk in response.iter_bytes():
                self._target.write(chunk)
                self._target.flush()
                self._copied += len(chunk)

    def _tail(self) -> None:
        """What the task's document holds of the stream: its end, on any TES server."""
        if self._copied:
            return
        logs = _attempt(self._client, self._task_id, self._attempt).get("logs") or []
        text = logs[self._executor].get(self._name) if self._executor < len(logs) else None
        if text:
            printing.say(f"(the end of {self._name}; the whole of it is not to be had)")
            self._target.write(text.encode())
            self._target.flush()


def _attempt(client: TesClient, task_id: str, attempt: int | None) -> Json:
    logs = client.get(task_id, "FULL").get("logs") or []
    if attempt is None:
        return dict(logs[-1]) if logs else {}
    if attempt > len(logs):
        raise Failure(Code.NOT_FOUND, f"{task_id} has {len(logs)} attempts, numbered from 1")
    return dict(logs[attempt - 1])

"""A client that keeps a stream open."""

from __future__ import annotations

import json
import threading
import time

import httpx


class Listener:
    """Reads a stream in a thread: its `lines`; of an event stream also its `events`, as (id, data,
    seconds on the wall clock)."""

    def __init__(self, client: httpx.Client, path: str, **headers: str) -> None:
        self.lines: list[str] = []
        self.events: list[tuple[int, dict[str, str], float]] = []
        self.opened = threading.Event()
        self.ended = threading.Event()
        self.status = 0
        self.whole = False  # once it ended as HTTP says that a body ends
        self._client, self._path, self._headers = client, path, headers
        threading.Thread(target=self._read, daemon=True).start()
        assert self.opened.wait(60)

    def _read(self) -> None:
        number, data = 0, ""
        try:
            with self._client.stream("GET", self._path, headers=self._headers) as reply:
                self.status = reply.status_code
                self.opened.set()
                for line in reply.iter_lines():
                    self.lines.append(line)
                    name, _, value = line.partition(": ")
                    if name == "id":
                        number = int(value)
                    elif name == "data":
                        data = value
                    elif not line and data:
                        self.events.append((number, json.loads(data), time.time()))
                        data = ""
            self.whole = True
        except httpx.HTTPError:
            pass
        self.ended.set()

    def states(self, task_id: str) -> list[str]:
        return [data["state"] for _, data, _ in list(self.events) if data["id"] == task_id]

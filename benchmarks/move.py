"""Moves files in a process of its own, so that seconds and memory are those of moving files.

    python -m benchmarks.move < ORDER.json

Ours goes through the runner's own threads. "sdk" is what one would write with Microsoft's
azure-storage-blob: a loop, one file after the other, with a client that keeps its connection.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import msgspec


class Order(msgspec.Struct, omit_defaults=True):
    """What to move: (URL, path) pairs, one way."""

    way: Literal["get", "put"]
    items: list[tuple[str, str]]
    blob_endpoint: str = ""
    by: Literal["tesazure", "sdk"] = "tesazure"


class Moved(msgspec.Struct):
    """Seconds from the first import that moving needs to the last byte, bytes, peak resident MB of
    the process (10**6 bytes), CPU seconds."""

    seconds: float
    bytes: int
    peak_mb: float
    cpu_s: float


def move(order: Order) -> Moved:
    """Do it in a new process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.move"],
        input=msgspec.json.encode(order),
        stdout=subprocess.PIPE,
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=Moved)


def by_tesazure(order: Order) -> int:
    """As the runner stages files."""
    from tesazure.access import Endpoints
    from tesazure.runner.transfers import Transfers
    from tesazure.storage.base import Progress
    from tesazure.storage.registry import Storages

    storages = Storages((), endpoints=Endpoints(blob=order.blob_endpoint))

    def one(position: int, progress: Progress) -> int:
        url, path = order.items[position]
        storage = storages.for_url(url)
        if order.way == "put":
            return storage.put(Path(path), url, progress)
        return storage.get(url, Path(path), progress)

    sizes: list[int] = []
    transfers = Transfers(len(order.items), lambda _: 0, one, all_or_nothing=True)
    failures = transfers.run(lambda _, size: sizes.append(size))
    storages.close()
    if failures:
        raise failures[0]
    return sum(sizes)


def by_sdk(order: Order) -> int:
    """One after the other with Microsoft's SDK."""
    from azure.storage.blob import ContainerClient

    first = urlsplit(order.items[0][0])
    account, container = first.path.split("/")[1:3]
    base = f"{first.scheme}://{first.netloc}/{account}/{container}"
    total = 0
    with ContainerClient.from_container_url(f"{base}?{first.query}") as client:
        for url, name in order.items:
            path = Path(name)
            blob = client.get_blob_client(unquote(urlsplit(url).path.split("/", 3)[3]))
            if order.way == "get":
                with path.open("wb") as target:
                    blob.download_blob().readinto(target)
            else:
                with path.open("rb") as source:
                    blob.upload_blob(source, overwrite=True)
            total += path.stat().st_size
    return total


def peak_mb() -> float:
    """Of this process alone: ru_maxrss would begin with what its parent had."""
    text = Path("/proc/self/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def main() -> None:
    """Move as standard input says; tell on standard output."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    began, cpu = time.perf_counter(), time.process_time()
    size = by_tesazure(order) if order.by == "tesazure" else by_sdk(order)
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    moved = Moved(round(seconds, 4), size, round(peak_mb(), 1), round(cpu_s, 2))
    sys.stdout.buffer.write(msgspec.json.encode(moved))


if __name__ == "__main__":
    main()

"""Storage: rates beside curl's single stream, memory, many small files, the runner's own costs.

Rates are MB (10**6 bytes) a second, as the transfer itself took; curl's by its own `time_total`.
Every byte that arrives is compared with what was sent, outside of what is timed.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import runner
from benchmarks.block_sink import ACCOUNT, BlockSink
from benchmarks.capped_proxy import CAP, LATENCY_S, capped
from benchmarks.move import Order, move
from tests.services.azurite import Azurite
from tests.services.base import Unavailable

MB = 1e6
GIB = 2**30
SMALL = 4096


class Sizes(msgspec.Struct, frozen=True):
    """How much to move: of one object and of a large one (bytes), small files (number), and of
    these by the SDK's loop; how often each rate is measured."""

    object: int = GIB
    large: int = 4 * GIB
    files: int = 10_000
    files_by_sdk: int = 1_000
    rounds: int = 3


def run(sizes: Sizes) -> dict[str, Any]:
    """All of it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        root = Path(name)
        source = root / "source"
        fill(source, sizes.object)
        found: dict[str, Any] = {"object_bytes": sizes.object}
        (root / "web").mkdir()
        with BlockSink(root / "web") as web:
            os.link(source, web.files / "object")
            found["capped_40_mb_s_20_ms"] = through_proxy(web, source, sizes.rounds)
            found["nginx"] = from_nginx(web, source, sizes.rounds)
            found["input_cache"] = runner.input_cache(web, root, sizes.rounds)
            found["memory"] = memory(web, root, sizes)
        try:
            with Azurite(root / "azurite") as azurite:
                found["azurite"] = with_azurite(azurite, source, sizes.rounds)
                found["small_files"] = small_files(azurite, root, sizes)
        except Unavailable as reason:
            sys.stderr.write(f"Azurite is left out: {reason}\n")
    found["runner_start"] = runner.start(10 * sizes.rounds)
    return found


def through_proxy(web: BlockSink, source: Path, rounds: int) -> dict[str, Any]:
    """One object both ways where every connection has a cap, as cloud stores have it."""
    size = source.stat().st_size
    with capped(web.port, CAP, LATENCY_S) as port:
        base = f"http://127.0.0.1:{port}"
        target = source.with_name("down")
        url = f"{base}/files/object"
        down_curl = size / curl(url, "-o", str(target))
        down = received(url, target, source, rounds)
        ceiling = parallel_curls(url, 8)
        blob = f"{base}/{ACCOUNT}/bench/by-curl?sig=unchecked"
        up_curl = size / curl(blob, "-T", str(source), "-H", "x-ms-blob-type: BlockBlob")
        up = sent(web, f"{base}/{ACCOUNT}", source, rounds)
    return {
        "curl_down_mb_s": mb(down_curl),
        "eight_curls_down_mb_s": mb(ceiling),
        "down": rate(down, down_curl, ">= 6"),
        "curl_up_mb_s": mb(up_curl),
        "up": rate(up, up_curl, ">= 6"),
    }


def from_nginx(web: BlockSink, source: Path, rounds: int) -> dict[str, Any]:
    """One object down, as fast as the machine can."""
    url, target = f"{web.base}/files/object", source.with_name("down")
    reference, ours = [], []
    for _ in range(rounds):
        reference.append(source.stat().st_size / curl(url, "-o", str(target)))
        ours += received(url, target, source, 1)
    best = statistics.median(reference)
    return {"curl_down_mb_s": mb(best), "down": rate(ours, best, ">= 0.5")}


def memory(web: BlockSink, root: Path, sizes: Sizes) -> dict[str, Any]:
    """Peak memory of a process that moves one object, and one several times as large, both ways.

    The objects have no content (sparse files), so that reading them costs no disk.
    """
    found: dict[str, Any] = {}
    for size in (sizes.object, sizes.large):
        file, target = web.files / "sparse", root / "down"
        with file.open("wb") as sparse:
            sparse.truncate(size)
        down = move(Order("get", [(f"{web.base}/files/sparse", str(target))]))
        target.unlink()
        up = move(_upload(f"{web.base}/{ACCOUNT}", file))
        web.forget()
        file.unlink()
        found[f"{size / GIB:g}_gib"] = {"down_peak_mb": down.peak_mb, "up_peak_mb": up.peak_mb}
    return {**found, "wanted": "<= 200 MB each, the same for both sizes"}


def with_azurite(azurite: Azurite, source: Path, rounds: int) -> dict[str, Any]:
    """One object to and from Azurite, which is itself the bottleneck: it has one thread."""
    size, target = source.stat().st_size, source.with_name("down")
    figures: dict[str, list[float]] = {"curl_up": [], "up": [], "curl_down": [], "down": []}
    with azurite.container() as container:
        sas = azurite.container_sas(container, minutes=600)
        url = f"{azurite.endpoint}/{container}/by-curl?{sas}"
        for number in range(rounds):
            whole = ["-T", str(source), "-H", "x-ms-blob-type: BlockBlob"]
            figures["curl_up"].append(size / curl(url, *whole))
            own = f"{azurite.endpoint}/{container}/ours-{number}?{sas}"
            order = Order("put", [(own, str(source))], azurite.endpoint)
            figures["up"].append(size / move(order).seconds)
            figures["curl_down"].append(size / curl(url, "-o", str(target)))
            figures["down"] += received(url, target, source, 1, azurite.endpoint)
            curl(own, "-o", str(target))
            compare(source, target)
    down, up = statistics.median(figures["curl_down"]), statistics.median(figures["curl_up"])
    return {
        "curl_down_mb_s": mb(down),
        "down": rate(figures["down"], down, ">= 0.9"),
        "curl_up_mb_s": mb(up),
        "up": rate(figures["up"], up, ">= 0.9"),
    }


def small_files(azurite: Azurite, root: Path, sizes: Sizes) -> dict[str, Any]:
    """Many files of 4 KiB beside the SDK's loop, with Azurite near and far.

    The loop runs before and after ours: a request costs Azurite more the more blobs it holds.
    """
    there, back = root / "small", root / "small-down"
    there.mkdir()
    for number in range(sizes.files):
        (there / f"{number}").write_bytes(os.urandom(SMALL))
    found: dict[str, Any] = {}
    with capped(azurite.port, CAP, LATENCY_S) as port:
        for name, at in (("azurite", azurite.port), ("azurite_20_ms_away", port)):
            endpoint = f"http://127.0.0.1:{at}/{azurite.account}"
            with azurite.container() as container:
                sas = azurite.container_sas(container, minutes=600)
                for way in ("put", "get"):
                    files = {"sdk": 0, "tesazure": 0}
                    seconds = {"sdk": 0.0, "tesazure": 0.0}
                    sdk = ("sdk", sizes.files_by_sdk)
                    for by, count in (sdk, ("tesazure", sizes.files), sdk):
                        back.mkdir()
                        folder = there if way == "put" else back
                        items = [
                            (f"{endpoint}/{container}/{n}?{sas}", str(folder / f"{n}"))
                            for n in range(count)
                        ]
                        order = Order(way, items, endpoint, by)  # type: ignore[arg-type]
                        files[by] += count
                        seconds[by] += move(order).seconds
                        for n in range(count if way == "get" else 0):
                            if (back / f"{n}").read_bytes() != (there / f"{n}").read_bytes():
                                raise RuntimeError(f"small file {n} differs after its way")
                        subprocess.run(["rm", "-r", str(back)], check=True)
                    rates = {by: files[by] / seconds[by] for by in files}
                    found[f"{name}_{way}"] = {
                        "sdk_files_per_s": round(rates["sdk"], 1),
                        "files_per_s": round(rates["tesazure"], 1),
                        "vs_sdk": round(rates["tesazure"] / rates["sdk"], 2),
                        "wanted": ">= 4",
                    }
    return found


def received(
    url: str, target: Path, source: Path, rounds: int, blob_endpoint: str = ""
) -> list[float]:
    """Our rates of getting `source` from a URL, bytes a second."""
    rates = []
    for _ in range(rounds):
        target.unlink(missing_ok=True)
        done = move(Order("get", [(url, str(target))], blob_endpoint))
        rates.append(done.bytes / done.seconds)
        compare(source, target)
    return rates


def sent(web: BlockSink, endpoint: str, source: Path, rounds: int) -> list[float]:
    """Our rates of sending `source` to the sink, bytes a second."""
    rates = []
    for _ in range(rounds):
        web.forget()
        done = move(_upload(endpoint, source))
        rates.append(done.bytes / done.seconds)
        if web.sha256("bench/ours") != sha256(source):
            raise RuntimeError("what was stored is not what was sent")
    web.forget()
    return rates


def _upload(endpoint: str, source: Path) -> Order:
    return Order("put", [(f"{endpoint}/bench/ours?sig=unchecked", str(source))], endpoint)


def curl(url: str, *options: str) -> float:
    """Seconds that curl took, by its own clock. Raises RuntimeError unless it succeeded."""
    command = ["curl", "--silent", "--fail", "--show-error", "--write-out", "%{time_total}"]
    # The URL, which may be signed, goes by standard input and not on the command line.
    done = subprocess.run(
        [*command, *options, "--config", "-"],
        input=f'url = "{url}"\n',
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"curl: {done.stderr}")
    return float(done.stdout)


def parallel_curls(url: str, count: int) -> float:
    """Bytes a second that as many curls get together, each for itself: what the proxy and the
    server can do at least. Nothing is kept."""
    command = ["curl", "--silent", "--fail", "--output", "/dev/null", "--write-out"]
    command += ["%{size_download}", url]
    began = time.perf_counter()
    curls = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(count)]
    total = sum(int(one.communicate()[0]) for one in curls)
    return total / (time.perf_counter() - began)


def rate(ours: list[float], reference: float, wanted: str) -> dict[str, Any]:
    """The median beside its reference, and the spread."""
    median = statistics.median(ours)
    return {
        "mb_s": mb(median),
        "mb_s_of_rounds": [mb(one) for one in ours],
        "vs_curl": round(median / reference, 2),
        "wanted": wanted,
    }


def fill(path: Path, size: int) -> None:
    """A file of this size whose content cannot be compressed or guessed."""
    with path.open("wb") as file:
        for start in range(0, size, 2**24):
            file.write(os.urandom(min(2**24, size - start)))


def compare(source: Path, target: Path) -> None:
    """Raises RuntimeError unless both files hold the same."""
    if sha256(source) != sha256(target):
        raise RuntimeError("what came is not what was asked for")


def sha256(path: Path) -> str:
    """Of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mb(bytes_per_s: float) -> float:
    """MB a second, to a tenth."""
    return round(bytes_per_s / MB, 1)

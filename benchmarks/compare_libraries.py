"""What other libraries make of the same transfers; docs/adr/0006-transport.md has the outcome.

    python -m benchmarks.compare_libraries [--mib N] [--files N]

Installs azure-storage-blob, obstore and adlfs into a temporary virtual environment, and gives each
the same objects to move as ours, each in a process of its own. JSON on standard output. Each is
used as its documentation says, with as many connections as ours where it has such a setting;
`obstore-ranges` is our logic (8 MiB ranges in as many threads) on top of obstore's single requests.
Only ours verifies what comes.

This file also runs inside that environment (with an order on standard input), so it imports nothing
of this project before `main` knows which of both it is.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = ["azure-storage-blob==12.31.1", "obstore==0.12.1", "adlfs==2026.8.0"]
CONNECTIONS = 12
PART = 8 * 2**20


class Order(NamedTuple):
    """Move all `names` between a container (or, for `web`, a plain web server's directory) and a
    local directory, one way: `get` or `put`. `endpoint` has the account and no container."""

    library: str
    way: str
    names: list[str]
    directory: str
    endpoint: str
    container: str
    sas: str


def sdk(order: Order) -> Callable[[str], None]:
    """Microsoft's azure-storage-blob."""
    from azure.storage.blob import ContainerClient

    client = ContainerClient.from_container_url(f"{order.endpoint}/{order.container}?{order.sas}")

    def one(name: str) -> None:
        path = Path(order.directory, name)
        if order.way == "get":
            with path.open("wb") as target:
                client.download_blob(name, max_concurrency=CONNECTIONS).readinto(target)
        else:
            with path.open("rb") as source:
                client.upload_blob(name, source, overwrite=True, max_concurrency=CONNECTIONS)

    return one


def obstore(order: Order) -> Callable[[str], None]:
    """The Rust object_store crate, by obstore."""
    import obstore as module

    store = _obstore(order)

    def one(name: str) -> None:
        path = Path(order.directory, name)
        if order.way == "get":
            with path.open("wb") as target:
                for chunk in module.get(store, name).stream():
                    target.write(chunk)
        else:
            module.put(store, name, path, chunk_size=PART, max_concurrency=CONNECTIONS)

    return one


def obstore_ranges(order: Order) -> Callable[[str], None]:
    """Our ranges on top of obstore's requests; it uploads in parts itself."""
    import obstore as module

    if order.way == "put":
        return obstore(order)
    store = _obstore(order)

    def one(name: str) -> None:
        size = module.head(store, name)["size"]
        target = os.open(Path(order.directory, name), os.O_WRONLY | os.O_CREAT)

        def part(start: int) -> None:
            end = min(start + PART, size)
            os.pwrite(target, module.get_range(store, name, start=start, end=end), start)

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(part, range(0, size, PART)))
        os.close(target)

    return one


def _obstore(order: Order) -> Any:
    from obstore.store import AzureStore, HTTPStore

    if order.container == "web":
        return HTTPStore.from_url(order.endpoint, client_options={"allow_http": True})
    return AzureStore(
        order.container,
        account_name=order.endpoint.rpartition("/")[2],
        endpoint=order.endpoint,
        sas_key=order.sas,
        client_options={"allow_http": True},
    )


def adlfs(order: Order) -> Callable[[Iterable[str]], None]:
    """fsspec's file system for Azure, which moves many files at once by itself."""
    from adlfs import AzureBlobFileSystem

    account = order.endpoint.rpartition("/")[2]
    files = AzureBlobFileSystem(
        account_name=account,
        connection_string=f"BlobEndpoint={order.endpoint};SharedAccessSignature={order.sas}",
        max_concurrency=CONNECTIONS,
    )

    def every(names: Iterable[str]) -> None:
        there = [f"{order.container}/{name}" for name in names]
        here = [str(Path(order.directory, name)) for name in names]
        if order.way == "get":
            files.get(there, here)
        else:
            files.put(here, there)

    return every


LIBRARIES: dict[str, Callable[[Order], Callable[[Any], None]]] = {
    "azure-storage-blob": sdk,
    "obstore": obstore,
    "obstore-ranges": obstore_ranges,
    "adlfs": adlfs,
}


IMPORTS = {
    "tesazure": "import tesazure.storage.registry, tesazure.storage.blob, pycurl",
    "azure-storage-blob": "import azure.storage.blob",
    "obstore": "import obstore, obstore.store",
    "obstore-ranges": "import obstore, obstore.store",
    "adlfs": "import adlfs",
}
"""What a process imports to move its first blob."""


def child() -> None:
    """Do what standard input says; seconds, with the import, and peak MB on standard output."""
    order = Order(*json.load(sys.stdin))
    began = time.perf_counter()
    action = LIBRARIES[order.library](order)
    if order.library == "adlfs":
        action(order.names)
    elif len(order.names) == 1:
        action(order.names[0])
    else:
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(action, order.names))
    seconds = time.perf_counter() - began
    status = Path("/proc/self/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+)", status)
    json.dump([seconds, int(peak[1]) * 1024 / 1e6 if peak else 0], sys.stdout)


def main() -> None:
    """Make the environment and the servers, and give every library every task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--files", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        root = Path(name)
        venv.create(root / "venv", with_pip=True)
        python = str(root / "venv" / "bin" / "python")
        quiet = ["--quiet", "--disable-pip-version-check"]
        install = [python, "-m", "pip", "install", *quiet, *PACKAGES]
        subprocess.run(install, check=True, stdout=sys.stderr)
        json.dump(_compare(root, python, given.mib * 2**20, given.files), sys.stdout, indent=1)


def _compare(root: Path, python: str, size: int, files: int) -> dict[str, Any]:
    from benchmarks.block_sink import ACCOUNT, BlockSink
    from benchmarks.capped_proxy import CAP, LATENCY_S, capped
    from benchmarks.storage import fill
    from tests.services.azurite import Azurite

    here, web_root = root / "here", root / "web"
    here.mkdir()
    web_root.mkdir()
    fill(here / "object", size)
    small = [f"{number}" for number in range(files)]
    for one in small:
        fill(here / one, 4096)
    found: dict[str, Any] = {"object_bytes": size, "files": files}
    with (
        Azurite(root / "azurite") as azurite,
        BlockSink(web_root) as web,
        capped(azurite.port, CAP, LATENCY_S) as far,
        capped(web.port, CAP, LATENCY_S) as far_web,
        azurite.container() as container,
    ):
        os.link(here / "object", web.files / "object")
        sas = azurite.container_sas(container, minutes=600)
        near = azurite.endpoint
        away = f"http://127.0.0.1:{far}/{azurite.account}"
        sink = f"http://127.0.0.1:{far_web}/{ACCOUNT}"
        run = _Runner(root, here, python)
        for library in ("tesazure", *LIBRARIES):
            interpreter = sys.executable if library == "tesazure" else python
            of: dict[str, Any] = {"import_ms": _import_ms(interpreter, IMPORTS[library])}
            found[library] = of
            blobs = {"container": container, "sas": sas}
            of["azurite_up"] = run(library, "put", ["object"], near, **blobs)
            of["azurite_down"] = run(library, "get", ["object"], near, **blobs)
            of["azurite_capped_down"] = run(library, "get", ["object"], away, **blobs)
            unchecked = {"container": "bench", "sas": "sv=2021-01-01&sig=dW5jaGVja2Vk"}
            of["sink_capped_up"] = run(library, "put", ["object"], sink, **unchecked)
            web.forget()
            if library in ("tesazure", "obstore", "obstore-ranges"):
                plain = {"container": "web", "sas": ""}
                served = f"{web.base}/files"
                of["nginx_down"] = run(library, "get", ["object"], served, **plain)
                capped_web = f"http://127.0.0.1:{far_web}/files"
                of["nginx_capped_down"] = run(library, "get", ["object"], capped_web, **plain)
            for where, endpoint in (("azurite", near), ("azurite_20_ms_away", away)):
                of[f"{where}_small_up"] = run(library, "put", small, endpoint, **blobs)
                of[f"{where}_small_down"] = run(library, "get", small, endpoint, **blobs)
    return found


def _import_ms(python: str, statement: str) -> float:
    """The median of nine new processes, of which the first ones may have to read the disk."""
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    command = [python, "-c", code]
    taken = [float(subprocess.check_output(command)) for _ in range(9)]
    return round(statistics.median(taken) * 1000, 1)


class _Runner:
    """Gives an order to a library, in a new process; looks whether what came is what was sent."""

    def __init__(self, root: Path, here: Path, python: str) -> None:
        self._root, self._here, self._python = root, here, python

    def __call__(
        self, library: str, way: str, names: list[str], endpoint: str, *, container: str, sas: str
    ) -> dict[str, Any]:
        """Figures, or what it said when it failed."""
        directory = self._here
        if way == "get":
            directory = Path(tempfile.mkdtemp(dir=self._root))
        order = Order(library, way, names, str(directory), endpoint, container, sas)
        sys.stderr.write(f"{library} {way} {len(names)} {endpoint}\n")
        try:
            seconds, peak = self._move(order)
        except subprocess.CalledProcessError as error:
            return {"failed": (error.stderr or b"").decode(errors="replace")[-300:]}
        size = sum((self._here / name).stat().st_size for name in names)
        if way == "get":
            self._compare(directory, names)
        speed = {"files_per_s": round(len(names) / seconds, 1)}
        if len(names) == 1:
            speed = {"mb_s": round(size / seconds / 1e6, 1)}
        return {**speed, "peak_mb": round(peak, 1)}

    def _move(self, order: Order) -> tuple[float, float]:
        if order.library == "tesazure":
            return self._move_ours(order)
        command = [self._python, "-P", str(Path(__file__).absolute()), "--child"]
        text = json.dumps(order).encode()
        done = subprocess.run(command, input=text, capture_output=True, check=True)
        seconds, peak = json.loads(done.stdout)
        return seconds, peak

    def _move_ours(self, order: Order) -> tuple[float, float]:
        from benchmarks import move

        base = order.endpoint
        if order.container != "web":
            base += f"/{order.container}"
        query = f"?{order.sas}" if order.sas else ""
        items = [(f"{base}/{n}{query}", str(Path(order.directory, n))) for n in order.names]
        endpoint = "" if order.container == "web" else order.endpoint
        way: Any = order.way
        moved = move.move(move.Order(way, items, endpoint))
        return moved.seconds, moved.peak_mb

    def _compare(self, directory: Path, names: list[str]) -> None:
        for name in names:
            if not filecmp.cmp(self._here / name, directory / name, shallow=False):
                raise RuntimeError(f"{name} differs after its way")
        subprocess.run(["rm", "-r", str(directory)], check=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--child"]:
        child()
    else:
        main()

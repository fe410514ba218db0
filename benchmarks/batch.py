"""What thousands of tasks on Azure Batch cost: requests, time, the server's processor and memory.

The server is a process of its own, as in production. Batch is its stand-in, whose nodes are
simulated; what they report goes through Azurite, which on two cores serves some 30 tasks a second:
tasks per minute are those of the whole lab, the server's own part is its processor time. See
docs/batch-stand-in.md.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.load import cpu_seconds, post, tesazure
from benchmarks.tasks import document, events
from tests.services.azurite import Azurite
from tests.services.batch_nodes import SimulatedTask, Simulation
from tests.services.batch_runner import PlayedRunner
from tests.services.batch_server import BatchServer
from tests.services.batch_storm import Storm

if TYPE_CHECKING:
    from azure.batch import BatchClient

SECONDS = 3.0
"""How long most executors run; a tenth of them four times as long."""
LONGER = 10
"""By how much executors run longer in the second run."""
DEADLINE_S = 3600.0
END_STATES = {"COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "PREEMPTED", "CANCELED"}
_REQUEST = re.compile(r'"([A-Z]+) /[^/]+/[^/?"]+(?:/[^/]+/([a-z]+)/[^?"]*)?(\?[^ "]*)? HTTP')


def run(count: int) -> dict[str, Any]:
    """`count` tasks, once more with tasks that run `LONGER`, once more while three nodes of ten
    are preempted and one request to Batch of fifty fails; and the bare loop beside them."""
    return {
        "tasks": count,
        "server": _served(count, SECONDS),
        f"server_tasks_{LONGER}_times_as_long": _served(count, SECONDS * LONGER),
        "server_in_a_storm": _served(count, SECONDS, in_storm=True),
        "bare_loop": _bare(count, SECONDS),
        "wanted": "no task lost, none twice; calls for each task as many however long it runs",
    }


class _LoggedAzurite(Azurite):
    logs_requests = True


def _served(count: int, seconds: float, *, in_storm: bool = False) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        azurite = _LoggedAzurite(Path(name) / "azurite")
        azurite.start()
        try:
            runner = PlayedRunner(azurite.endpoint, lambda key: _lasts(key, seconds))
            with closing(runner), _account(Path(name), runner) as batch:
                settings = _settings(azurite, batch, count)
                storm = Storm(batch, share=0.3, within_s=2 * seconds, every=50)
                with tesazure(Path(name) / "data", **settings) as (base, child):
                    begun, used = time.perf_counter(), cpu_seconds(child.pid)
                    with storm if in_storm else nullcontext():
                        states = _carried_out(base, count)
                    took = time.perf_counter() - begun
                    batch.wait_for(lambda _: batch.calls["Task_Delete"] >= count, 600)
                    used = cpu_seconds(child.pid) - used
                    peak_mb = _peak_mb(child.pid)
                    calls = Counter(batch.calls)
            requests = _requests(azurite.log)
        finally:
            azurite.stop()
    return {
        "executors_run_s": seconds,
        "tasks_per_min": round(count / took * 60),
        "server_cpu_ms_per_task": round(used / count * 1000, 2),
        "server_cpu_share": round(used / took, 3),
        "tasks_per_min_of_a_core": round(count / used * 60),
        "server_peak_mb": peak_mb,
        "ended": dict(states),
        "lost": count - sum(states.values()),
        "nodes_preempted": storm.preempted,
        "failed_calls": storm.troubles,
        "run_again": sum(number > 1 for number in runner.begun.values()),
        "run_twice_at_once": len(runner.together),
        "took_s": round(took, 1),
        "batch_calls_per_1000_tasks": _per_1000(calls, count),
        "batch_lists_per_min": round(calls["Task_List"] / took * 60, 1),
        "storage_requests_per_1000_tasks": _per_1000(requests["server"], count),
        "storage_requests_of_a_node_per_1000_tasks": _per_1000(requests["nodes"], count),
    }


def _bare(count: int, seconds: float) -> dict[str, Any]:
    """The same tasks by Microsoft's SDK alone: no plan, no report, no record of any of them."""

    def play(task: SimulatedTask) -> int:
        task.killed.wait(_lasts(task.id, seconds))
        return 0

    found: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        _account(Path(name), play) as batch,
    ):
        thread = threading.Thread(target=lambda: found.update(_loop(batch, count)))
        thread.start()
        thread.join()
        found["batch_calls_per_1000_tasks"] = _per_1000(batch.calls, count)
    return found


def _loop(batch: BatchServer, count: int) -> dict[str, Any]:
    from azure.batch import BatchClient, models
    from azure.core.credentials import AzureNamedKeyCredential

    credential = AzureNamedKeyCredential(batch.account, batch.key)
    with BatchClient(batch.url, credential) as client:
        _make_job(client, models, count)
        begun, used = time.perf_counter(), time.thread_time()
        ids = [f"bare-{number}" for number in range(count)]
        for first in range(0, count, 100):
            tasks = [
                models.BatchTaskCreateOptions(id=id_, command_line="true")
                for id_ in ids[first : first + 100]
            ]
            client.create_task_collection("bare", models.BatchTaskGroup(task_values=tasks))
        done: set[str] = set()
        while len(done) < count:
            time.sleep(1)
            some = client.list_tasks("bare", filter="state eq 'completed'", select=["id"])
            done = {task.id for task in some}
        took = time.perf_counter() - begun
        for id_ in ids:
            client.delete_task("bare", id_)
        used = time.thread_time() - used
    return {
        "tasks_per_min": round(count / took * 60),
        "cpu_ms_per_task": round(used / count * 1000, 2),
        "tasks_per_min_of_a_core": round(count / used * 60),
        "took_s": round(took, 1),
    }


def _make_job(client: BatchClient, models: Any, nodes: int) -> None:
    image = models.BatchVmImageReference(
        publisher="microsoft-dsvm", offer="ubuntu-hpc", sku="2404", version="latest"
    )
    machine = models.VirtualMachineConfiguration(
        image_reference=image, node_agent_sku_id="batch.node.ubuntu 24.04"
    )
    client.create_pool(
        models.BatchPoolCreateOptions(
            id="bare",
            vm_size="Standard_D2s_v5",
            virtual_machine_configuration=machine,
            target_dedicated_nodes=nodes,
        )
    )
    pool = models.BatchPoolInfo(pool_id="bare")
    client.create_job(models.BatchJobCreateOptions(id="bare", pool_info=pool))


@contextmanager
def _account(directory: Path, play: Simulation) -> Iterator[BatchServer]:
    """Nodes enough for all tasks at once, which come and go slowly enough not to matter."""
    before = threading.stack_size(256 * 1024)
    try:
        with BatchServer(directory / "batch", simulation=play) as batch:
            batch.timing.autoscale_s = 1.0
            batch.timing.shrink_s = 600.0
            yield batch
    finally:
        threading.stack_size(before)


def _settings(azurite: Azurite, batch: BatchServer, count: int) -> dict[str, str]:
    return {
        "APP_COMPUTE_BACKEND": "batch",
        "APP_BATCH_ACCOUNT_NAME": batch.account,
        "APP_BATCH_ACCOUNT_KEY": batch.key,
        "APP_BATCH_ACCOUNT_URL": batch.url,
        "APP_BATCH_MAX_NODES": str(count),
        "APP_BATCH_SPOT": "true",
        "APP_FILETRANSFER_CONTAINER_IMAGE": "runner:1",
        "APP_STORAGE_ACCOUNT_NAME": azurite.account,
        "APP_STORAGE_ACCOUNT_KEY": azurite.key,
        "APP_STORAGE_BLOB_ENDPOINT": azurite.endpoint,
        "APP_RETAIL_PRICES_URL": "",
    }


def _carried_out(base: str, count: int) -> Counter[str]:
    """Submit so many tasks; in which states they ended."""
    stream = events(base)
    next(stream)
    ended: dict[str, str] = {}
    begun = shown = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        submitting = [pool.submit(post, base, document(["true"])) for _ in range(count)]
        for task, state in stream:
            if state in END_STATES:
                ended[task] = state
            if len(ended) == count:
                break
            if time.monotonic() > shown + 10:
                shown = time.monotonic()
                sys.stderr.write(f"  {len(ended)} of {count} after {shown - begun:.0f} s\n")
            if time.monotonic() > begun + DEADLINE_S:
                break
        wanted = {each.result() for each in submitting}
    return Counter(state for task, state in ended.items() if task in wanted)


def _lasts(key: str, seconds: float) -> float:
    """How long the executor of an attempt runs: by its name, so that it can be told again."""
    draw = int.from_bytes(hashlib.sha256(key.encode()).digest()[:2], "big") / 65536
    return seconds * (4 if draw < 0.1 else 0.5 + draw)


def _requests(log: Path) -> dict[str, Counter[str]]:
    """Requests to storage by what they were for, of the server and of the nodes."""
    found: dict[str, Counter[str]] = {"server": Counter(), "nodes": Counter()}
    with log.open(errors="replace") as lines:
        for line in lines:
            if (seen := _REQUEST.search(line)) is None:
                continue
            method, kind, query = seen[1], seen[2] or "", seen[3] or ""
            is_node = kind == "attempts" and method == "GET"
            is_node = is_node or (kind in ("reports", "streams") and method == "PUT")
            what = "list" if "comp=list" in query else f"{method} {kind}".strip()
            what += " append" * ("comp=appendblock" in query)
            found["nodes" if is_node else "server"][what] += 1
    return found


def _per_1000(counted: Counter[str], count: int) -> dict[str, float]:
    return {name: round(number / count * 1000, 1) for name, number in sorted(counted.items())}


def _peak_mb(pid: int) -> float:
    with suppress(OSError):
        text = Path(f"/proc/{pid}/status").read_text()
        found = re.search(r"^VmHWM:\s+(\d+)", text, re.MULTILINE)
        if found is not None:
            return round(int(found[1]) / 1024, 1)
    return 0.0

"""The Batch backend when Batch, storage, nodes or people get in its way: nothing is lost, nothing
runs twice, and what happened is said."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest

from tesazure.access import Access
from tesazure.backends.azure_batch.backend import AzureBatchBackend
from tesazure.errors import BackendUnavailable, ConfigurationError, PermissionDenied
from tesazure.lifecycle import Handle, Observation, Phase
from tesazure.model import State
from tests.contract.backend_site import (
    MARKS,
    BatchSite,
    complete,
    ended,
    look,
    runs,
    seconds,
    sleeper,
    until,
)
from tests.services.batch_server import Failed

# Other tests' attempts have the same keys, by which sandboxes are ended.
pytestmark = pytest.mark.xdist_group("attempt-keys")

WAITS = f"echo x >> {MARKS}/n; until [ -e {MARKS}/go ]; do sleep 0.05; done"


async def waits(backend: AzureBatchBackend, handle: Handle, words: str) -> None:
    """Until an attempt that waits says so."""

    async def is_said() -> bool:
        seen = await look(backend, handle)
        assert seen.phase is Phase.PENDING
        return words in seen.reason

    await until(is_said)


# -- Batch does not answer as it should ---------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        {"status": 429, "retry_after_s": 0.3},
        {"status": 429},
        {"status": 500},
        {"status": 503, "retry_after_s": 0.2},
        {"cut": "before"},
        {"cut": "after"},
        {"slow_s": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("operation", ["Pool_Add", "Job_Add", "Task_AddCollection", "Task_Delete"])
async def test_a_call_that_fails_is_made_again(
    backend: AzureBatchBackend, site: BatchSite, operation: str, how: dict[str, object]
) -> None:
    site.lab.batch.trouble(operation, times=2, **how)
    handle = await site.submit(backend, f"echo x >> {MARKS}/n", "k")
    await complete(backend, handle)
    await backend.release(handle)
    assert site.mark("n") == "x\n"
    assert site.lab.batch.task(handle["job"], "k") is None


async def test_one_throttled_call_holds_all_back(
    backend: AzureBatchBackend, site: BatchSite
) -> None:
    """Whoever goes on asking a service that throttles is throttled for longer."""
    await site.submit(backend, WAITS, "k0")
    await until(lambda: bool(site.mark("n")))
    begun, calls = time.monotonic(), site.lab.batch.calls
    site.lab.batch.trouble("*", status=429, retry_after_s=1.5)
    await until(lambda: backend.account._closed_until > begun)
    before = sum(calls.values())
    both = (site.submit(backend, "true", f"k{n}") for n in (1, 2))
    submitting = asyncio.gather(*both)
    while time.monotonic() - begun < 1.5:
        assert sum(calls.values()) == before
        await asyncio.sleep(0.02)
    handles = await submitting
    assert handles[0]["job"] == handles[1]["job"]
    (site.marks / "go").touch()
    for handle in handles:
        await complete(backend, handle)


@pytest.mark.parametrize("code", ["", "ResourceNotFound", "PoolNotFound"])
async def test_an_answer_that_is_not_about_the_task_says_nothing_of_it(
    backend: AzureBatchBackend, site: BatchSite, caplog: pytest.LogCaptureFixture, code: str
) -> None:
    """A 404 of a proxy, or of an account's URL that is wrong."""
    handle = await site.submit(backend, WAITS, "k")
    await until(lambda: bool(site.mark("n")))
    troubles = [
        site.lab.batch.trouble(operation, status=404, code=code, times=10**6)
        for operation in ("Task_List", "Task_Get")
    ]
    await until(lambda: any("cannot be looked at" in record.message for record in caplog.records))
    assert (await look(backend, handle)).phase is Phase.RUNNING
    for trouble in troubles:
        trouble.times = 0
    (site.marks / "go").touch()
    await complete(backend, handle)


async def test_a_job_that_is_being_deleted_is_not_gone_yet(
    backend: AzureBatchBackend, site: BatchSite
) -> None:
    handle = await site.submit(backend, WAITS, "k")
    await until(lambda: bool(site.mark("n")))
    troubles = [
        site.lab.batch.trouble(operation, status=409, code="JobBeingDeleted", times=10**6)
        for operation in ("Task_List", "Task_Get", "Task_Terminate")
    ]
    releasing = asyncio.create_task(backend.release(handle))
    listed = site.lab.batch.calls["Task_Get"]
    await until(lambda: site.lab.batch.calls["Task_Get"] > listed + 2)
    assert not releasing.done()
    assert (await look(backend, handle)).phase is Phase.RUNNING
    for trouble in troubles:
        trouble.times = 0
    (site.marks / "go").touch()
    await releasing
    assert site.lab.batch.task(handle["job"], "k") is None


async def test_lists_that_fail_for_long_lose_nothing(
    backend: AzureBatchBackend, site: BatchSite, caplog: pytest.LogCaptureFixture
) -> None:
    handle = await site.submit(backend, WAITS, "k")
    await until(lambda: bool(site.mark("n")))
    trouble = site.lab.batch.trouble("Task_List", status=400, code="Broken", times=10**6)
    await until(lambda: any("Broken" in record.message for record in caplog.records))
    (site.marks / "go").touch()
    await complete(backend, handle)  # its report tells
    trouble.times = 0
    await backend.release(handle)
    assert len([r for r in caplog.records if "cannot be looked at" in r.message]) == 1


async def test_an_account_that_is_away_at_the_start_is_waited_for(site: BatchSite) -> None:
    trouble = site.lab.batch.trouble("*", status=400, code="Away", times=10**6)
    backend = await site.server()
    with pytest.raises(BackendUnavailable, match="Away"):
        await backend.submit(site.plan("true"), "k", Access())
    assert [check.ok for check in await backend.check()] == [False, True]
    trouble.times = 0
    await complete(backend, await site.submit(backend, "true", "k"))


async def test_storage_that_is_away_at_the_start_is_waited_for(site: BatchSite) -> None:
    backend = AzureBatchBackend(site.lab.config(storage_url="http://127.0.0.1:1/account"))
    await backend.start()
    with pytest.raises(BackendUnavailable, match="the attempts' blobs"):
        await backend.submit(site.plan("true"), "k", Access())
    account, storage = await backend.check()
    assert (account.ok, storage.ok) == (True, False)
    assert "STORAGE_ACCOUNT_NAME" in storage.remedy
    assert sum(site.lab.batch.calls.values()) <= 3
    for _ in range(20):
        await backend.check()
    assert sum(site.lab.batch.calls.values()) <= 3
    await backend.stop()


@pytest.mark.parametrize("skew_s", [-600, 600])
async def test_clocks_that_differ_are_no_matter(site: BatchSite, skew_s: float) -> None:
    site.lab.batch.skew(skew_s)
    backend = await site.server()
    handle = await site.submit(backend, WAITS, "k")
    await until(lambda: bool(site.mark("n")))
    (site.marks / "go").touch()
    await complete(backend, handle)


async def test_a_wrong_key_is_said_with_the_remedy_and_without_a_secret(
    site: BatchSite, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = "d3JvbmcgYW5kIHBsYW50ZWQgd3Jvbmc="
    backend = AzureBatchBackend(site.lab.config(key=wrong))
    await backend.start()
    with pytest.raises(BackendUnavailable, match="BATCH_ACCOUNT_KEY") as refused:
        await backend.submit(site.plan("true"), "k", Access())
    account, _ = await backend.check()
    assert not account.ok
    assert "BATCH_ACCOUNT_KEY" in account.remedy
    await backend.stop()
    for text in (str(refused.value), account.detail, caplog.text):
        assert wrong not in text
        assert "SharedKey" not in text


async def test_a_wrong_key_of_the_storage_is_a_wrong_setting(site: BatchSite) -> None:
    backend = AzureBatchBackend(site.lab.config(storage_key="d3Jvbmc="))
    with pytest.raises(ConfigurationError, match="check the storage account's key") as refused:
        await backend.start()
    assert isinstance(refused.value.__cause__, PermissionDenied), "it is kept why"


async def test_pages_that_change_while_they_are_read(
    backend: AzureBatchBackend, site: BatchSite
) -> None:
    handles = [await site.submit(backend, WAITS, f"k{n:02}") for n in range(8)]
    for n in (1, 3):  # ended and released by somebody, while pages of three are read
        with site.lab.client() as client:
            client.terminate_task(handles[n]["job"], f"k{n:02}")
    site.lab.batch.page(3)
    other = await site.server("two")
    left = {h["task"]: h for n, h in enumerate(handles) if n not in (1, 3)}
    deletes = iter(("k01", "k03"))

    def delete_one(operation: str, _: object) -> None:
        key = next(deletes, None) if operation == "Task_List" else None
        task = site.lab.batch.task(handles[0]["job"], key) if key else None
        if task is not None:
            with site.lab.batch.world.lock:
                site.lab.batch.tasks.drop(task)

    site.lab.batch.before = delete_one
    seen = await other.observe(left)
    assert {each.phase for each in seen.values()} <= {Phase.PENDING, Phase.RUNNING}
    assert seen.keys() == left.keys()
    (site.marks / "go").touch()
    for handle in left.values():
        await complete(other, handle)


# -- people -------------------------------------------------------------------------------------


async def test_terminated_by_somebody_while_it_runs(
    backend: AzureBatchBackend, site: BatchSite
) -> None:
    handle = await site.submit(backend, sleeper("t"), "t")
    await until(lambda: bool(site.mark("t")))
    with site.lab.client() as client:
        client.terminate_task(handle["job"], "t")
    seen = await ended(backend, handle)
    assert seen.report.ended is not None
    assert seen.report.ended.state is State.CANCELED


async def test_terminated_by_somebody_while_it_waits(
    backend: AzureBatchBackend, site: BatchSite
) -> None:
    site.lab.batch.shortage()
    handle = await site.submit(backend, "true", "t")
    await waits(backend, handle, "AllocationFailed")
    with site.lab.client() as client:
        client.terminate_task(handle["job"], "t")
    seen = await ended(backend, handle)
    assert seen.phase is Phase.EXITED
    assert "terminated, not by this server (TaskEnded)" in seen.reason


@pytest.mark.parametrize("running", [True, False])
async def test_deleted_by_somebody(
    backend: AzureBatchBackend, site: BatchSite, running: bool
) -> None:
    if not running:
        site.lab.batch.shortage()
    handle = await site.submit(backend, sleeper("d"), "d")
    if running:
        await until(lambda: bool(site.mark("d")))
    else:
        await waits(backend, handle, "AllocationFailed")
    with site.lab.client() as client:
        client.delete_task(handle["job"], "d")
    seen = await ended(backend, handle)
    stopped = seen.report.ended is not None and seen.report.ended.state is State.CANCELED
    assert seen.phase is Phase.MISSING or (running and stopped)
    await backend.release(handle)
    assert not runs(seconds("d"))


@pytest.mark.parametrize("how", ["delete", "terminate"])
async def test_a_job_that_somebody_ended_is_made_anew(
    backend: AzureBatchBackend, site: BatchSite, how: str
) -> None:
    first = await site.submit(backend, sleeper("first"), "first")
    await until(lambda: bool(site.mark("first")))
    with site.lab.client() as client:
        if how == "delete":
            client.begin_delete_job(first["job"])
        else:
            options: Any = {"terminateReason": "by hand"}
            client.begin_terminate_job(first["job"], options)
    await ended(backend, first)
    await backend.release(first)
    handles: list[Handle] = []

    async def is_submitted() -> bool:
        try:
            handles.append(await site.submit(backend, "true", "second"))
        except BackendUnavailable:  # the old job is still being deleted
            return False
        return True

    await until(is_submitted)
    await complete(backend, handles[0])


async def test_a_pool_that_somebody_deleted_is_made_anew_for_what_waits(
    backend: AzureBatchBackend, site: BatchSite
) -> None:
    site.lab.batch.shortage()
    handle = await site.submit(backend, "true", "k")
    await waits(backend, handle, "AllocationFailed")
    with site.lab.client() as client:
        client.begin_delete_pool(handle["job"])
    site.lab.batch.plenty()
    await complete(backend, handle)


async def test_a_container_that_somebody_deleted_is_made_anew(
    backend: AzureBatchBackend, site: BatchSite
) -> None:
    with site.lab.azurite.client() as client:
        client.delete_container(site.lab.container)
        handle = await site.submit(backend, "true", "k")
        await complete(backend, handle)


# -- nodes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (Failed("DiskFull", "There is not enough disk space"), "the node's disk is full"),
        (Failed("BlobAccessDenied", "Access is denied"), "signature has expired"),
        (Failed("ContainerInvalidImage", "It is invalid"), "FILETRANSFER_CONTAINER_IMAGE"),
        (Failed("Novelty", "Nobody has seen this"), r"Nobody has seen this \(Novelty\)"),
        (70, r"died on its node.*\(exit code 70\)"),
        (69, r"cannot reach the storage.*\(exit code 69\)"),
        (137, "ended with exit code 137"),
    ],
    ids=str,
)
async def test_what_a_node_fails_with_is_said(
    backend: AzureBatchBackend, site: BatchSite, failure: Failed | int, words: str
) -> None:
    site.lab.batch.fail_tasks(failure)
    seen = await ended(backend, await site.submit(backend, "true", "k"))
    assert seen.phase is Phase.EXITED
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(seen.reason)


async def test_an_attempt_that_its_node_could_not_read_is_named(
    backend: AzureBatchBackend, site: BatchSite
) -> None:
    """The real download fails, with the real code."""
    site.lab.batch.shortage()
    handle = await site.submit(backend, "true", "k")
    await waits(backend, handle, "AllocationFailed")
    with site.lab.azurite.client() as client:
        name = f"{site.lab.installation}/attempts/k"
        client.get_blob_client(site.lab.container, name).delete_blob()
    site.lab.batch.plenty()
    seen = await ended(backend, handle)
    assert seen.phase is Phase.EXITED
    assert "gone from storage (BlobNotFound)" in seen.reason


# -- servers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", ["before", "after"])
@pytest.mark.parametrize("operation", ["Pool_Add", "Job_Add", "Task_AddCollection"])
@pytest.mark.parametrize("then", ["submit", "find"])
async def test_a_server_dies_while_it_submits(
    site: BatchSite, operation: str, cut: str, then: str
) -> None:
    """At every step, before and after it was done. The next one begins the attempt once, or sees to
    it that nothing begins."""
    one = await site.server("one")
    trouble = site.lab.batch.trouble(operation, cut=cut, times=10**6)
    plan = site.plan(f"echo ran >> {MARKS}/n")
    submitting = asyncio.create_task(one.submit(plan, "k", Access()))
    await until(lambda: site.lab.batch.calls[operation] > 0)
    submitting.cancel()
    await asyncio.wait([submitting])
    await one.stop()
    trouble.times = 0
    two = await site.server("two")
    if then == "submit":
        handle = await two.submit(plan, "k", Access())
        assert await two.find("k") == handle
        assert await two.held(time.time() + 10) == {"k": handle}
        await complete(two, handle)
        assert site.mark("n") == "ran\n"
    else:
        handle = await two.find("k")
        assert handle is not None
        if handle["job"]:
            await look(two, handle)
        else:
            assert (await look(two, handle)).phase is Phase.EXITED
    await two.release(handle)
    ran = site.mark("n")
    # Whoever is late with the same begins nothing any more.
    assert await two.submit(plan, "k", Access()) == handle
    assert not handle["job"] or site.lab.batch.task(handle["job"], "k") is None
    await two.discard(handle)
    assert await two.held(time.time() + 10) == {}
    assert site.mark("n") == ran


async def test_one_server_releases_what_another_submitted(site: BatchSite) -> None:
    one, two = await site.server("one"), await site.server("two")
    handle = await site.submit(one, sleeper("r"), "r")
    await until(lambda: bool(site.mark("r")))
    assert (await look(one, handle)).phase is Phase.RUNNING
    await two.release(handle)
    assert not runs(seconds("r"))
    seen = await ended(one, handle)
    assert seen.phase in (Phase.MISSING, Phase.EXITED)
    await one.release(handle)
    await two.discard(handle)
    assert await one.held(time.time() + 10) == {}


async def test_what_nobody_asks_for_any_more_is_forgotten(site: BatchSite) -> None:
    """It is another server's by now; nothing is asked about it, and its pool is not held."""
    backend = await site.server()
    handle = await site.submit(backend, WAITS, "k")
    await until(lambda: bool(site.mark("n")))
    known = backend._watch.find("k")
    assert known is not None
    known.asked -= 10**6
    await until(lambda: backend._watch.find("k") is None)
    assert (await look(backend, handle)).phase is Phase.RUNNING
    (site.marks / "go").touch()
    await complete(backend, handle)


async def test_two_installations_share_an_account(site: BatchSite) -> None:
    one = await site.server("one")
    handle = await site.submit(one, "true", "k")
    site.lab.installation = "another1"
    two = await site.server("two")
    assert await two.held(time.time() + 10) == {}
    await complete(one, handle)  # their nodes are one machine here: not at the same time
    other = await site.submit(two, "exit 5", "k")
    assert other["job"] != handle["job"]
    seen: Observation = await ended(two, other)
    assert seen.report.log.logs[0].exit_code == 5
    await one.release(handle)
    assert (await two.held(time.time() + 10)).keys() == {"k"}
    site.submitted = [(two, other)]


async def test_nothing_secret_is_logged_or_in_a_handle(
    site: BatchSite, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    backend = await site.server()
    site.lab.batch.trouble("Task_AddCollection", status=400, code="InvalidPropertyValue")
    with pytest.raises(BackendUnavailable) as refused:
        await backend.submit(site.plan("true"), "k", Access())
    handle = await site.submit(backend, "true", "k")
    await complete(backend, handle)
    await backend.release(handle)
    for text in (caplog.text, str(refused.value), str(handle)):
        assert "sig=" not in text
        assert site.lab.batch.key not in text
        assert site.lab.azurite.key not in text

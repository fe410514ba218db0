"""Runs of the provisioner: what is recorded, who goes on, what is made and removed, once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tesazure.errors import Conflict, InvalidInput
from tesazure.provision.logbook import Logbook
from tesazure.provisioning import Failure, ProvisionFailed, Request, Run, StepRecord, StoredRun
from tesazure.store.sql_store import SqlStore, open_store
from tests.service.provision_site import (
    BATCH_KEY,
    BY_PRINCIPAL,
    MADE,
    OWN,
    POINTS,
    PRINCIPAL,
    SECRET,
    STEPS,
    SUBSCRIPTION,
    Installation,
    ended,
    made,
    until,
)

ALL = (*STEPS, "test-task", "settings")


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Installation]:
    """On SQLite alone."""
    installation = Installation(tmp_path, "")
    yield installation
    await installation.close()


def states(run: Run) -> dict[str, str]:
    return {record.name: record.state for record in run.steps}


async def test_a_run_makes_everything_in_order_and_says_so(place: Installation) -> None:
    site = await place.server()
    begun = await site.conductor.begin(OWN)
    assert (begun.status, begun.held) == ("INPROGRESS", True)
    run = await ended(site, begun.run.id)
    assert run.state == "CREATED", run
    assert states(run) == dict.fromkeys(ALL, "done")
    assert place.cloud.journal() == MADE
    assert run.note == "in effect: COMPUTE_BACKEND=batch"
    for record in run.steps:
        assert record.started is not None
        assert record.ended is not None
        assert run.created <= record.started <= record.ended <= run.updated
    assert [r.resource_id for r in run.steps[:4]] == [f"/subscriptions/s/{s}" for s in STEPS]
    assert all(record.made for record in run.steps if record.name != "test-task")
    assert run.request.resource_group == "tesazure"
    assert run.request.batch_account_name == f"tesazure{run.id.replace('-', '')[:12]}"
    assert [stored.run.id for stored in await site.conductor.runs()] == [run.id]
    assert await site.conductor.run("0b1f6471-1bf0-4dda-aec3-000000000000") is None


async def test_the_same_request_again_changes_nothing_that_is_right(here: Installation) -> None:
    site = await here.server()
    first = await made(site)
    again = await made(site)
    assert (again.id, again.state, again.created) == (first.id, "CREATED", first.created)
    assert here.cloud.journal() == [*MADE, "test", "publish"]
    assert [r.made for r in again.steps] == [r.made for r in first.steps]


@pytest.mark.parametrize("point", POINTS)
async def test_a_step_that_fails_once_is_named_and_then_continued(
    here: Installation, point: str
) -> None:
    site = await here.server()
    here.cloud.fault(point, "fail")
    failed = await made(site, BY_PRINCIPAL)
    at = {"test": "test-task", "publish": "settings", "published": "settings"}.get(
        point, point.partition(".")[0]
    )
    assert failed.state == "ERROR"
    assert "QuotaExceeded" in failed.note
    assert "post the same request again" in failed.note
    index = ALL.index(at)
    expected = ["done"] * index + ["failed"] + ["waiting"] * (len(ALL) - index - 1)
    assert states(failed) == dict(zip(ALL, expected, strict=True))
    failure = failed.steps[index].failure
    assert failure is not None
    assert (failure.code, failure.remedy) == ("QuotaExceeded", "ask for more")
    assert failure.message == f"quota of 0 at {point}, asked with ***"
    run = await made(site, BY_PRINCIPAL)
    assert (run.id, run.state) == (failed.id, "CREATED"), run
    assert [line for line in here.cloud.journal() if line.startswith("make")] == MADE[:4]
    assert all(record.failure is None for record in run.steps)


async def test_a_step_that_fails_for_good_fails_each_time(here: Installation) -> None:
    site = await here.server()
    here.cloud.fault("storage.begin", "fail", times=2)
    for _ in range(2):
        assert (await made(site)).state == "ERROR"
    assert here.cloud.journal() == ["make group"]
    assert not here.cloud.settings.exists()


async def test_an_unforeseen_error_is_told_without_its_text(
    here: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    site = await here.server()
    here.cloud.fault("batch.half", "crash")
    run = await made(site, BY_PRINCIPAL)
    failure = run.steps[3].failure
    assert failure is not None
    assert failure.code == "Internal"
    assert "RuntimeError" in failure.message
    assert "pass_by" in caplog.text, "the log says where"
    assert SECRET not in caplog.text
    assert SECRET not in str(run)


async def test_the_secret_and_keys_are_nowhere(
    here: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    site = await here.server()
    here.cloud.fault("storage.half", "fail")
    failed = await made(site, BY_PRINCIPAL)
    run = await made(site, BY_PRINCIPAL)
    assert run.request.service_principal == msgspec.structs.replace(PRINCIPAL, secret="")
    seen = [str(failed), str(run), msgspec.json.encode(run).decode(), caplog.text]
    await here.stop(site)
    files = [file for file in here.directory.glob("tesazure.db*") if file.is_file()]
    assert files
    seen += [file.read_bytes().decode("latin-1") for file in files]
    for text in seen:
        assert SECRET not in text
        assert BATCH_KEY not in text
    assert "a task ran on" in str(run)


async def test_what_azure_says_is_in_the_way_comes_before_anything(here: Installation) -> None:
    site = await here.server()
    wrong = Request(
        subscription_id=SUBSCRIPTION,
        location="atlantis",
        service_principal=msgspec.structs.replace(PRINCIPAL, secret="wrong"),
    )
    for ask in (site.conductor.begin, site.conductor.dry_run):
        with pytest.raises(InvalidInput) as caught:
            await ask(wrong)
        fields = [error.field for error in caught.value.errors]
        assert fields == ["service_principal.secret", "location"]
    assert await site.conductor.runs() == []
    assert here.cloud.journal() == []


async def test_a_dry_run_makes_nothing_and_shows_the_names_to_come(here: Installation) -> None:
    site = await here.server()
    here.cloud.write("group", "stranger's but fine")
    seen = await site.conductor.dry_run(BY_PRINCIPAL)
    assert [(step.name, step.found) for step in seen.steps] == [
        *(("group", "right"), ("storage", "missing")),
        *(("container", "missing"), ("batch", "missing")),
    ]
    assert [line.usd_a_month for line in seen.idle_cost] == [1.5, None]
    assert SECRET not in str(seen)
    assert here.cloud.journal() == []
    assert await site.conductor.runs() == []
    run = await made(site)
    assert (run.id, run.request.batch_account_name) == (seen.id, seen.request.batch_account_name)


async def test_a_name_that_is_taken_ends_the_run(here: Installation) -> None:
    site = await here.server()
    here.cloud.write("storage", "stranger")
    run = await made(site)
    failure = run.steps[1].failure
    assert failure is not None
    assert failure.code == "NameTaken"
    assert failure.message == "storage_name: is taken by another subscription"
    assert here.cloud.read("storage") == {"run": "stranger"}


async def test_another_server_takes_up_the_run_of_one_that_died(place: Installation) -> None:
    """The first one's lease ends without a word: its process hangs, as far as others can tell."""
    one = await place.server("one")
    place.cloud.fault("storage.half", "hold")
    begun = await one.conductor.begin(OWN)
    await until(lambda: place.cloud.reached("storage.half"))
    stored = await one.store.provision_run(begun.run.id)
    assert stored is not None
    # As if its lease had run out: a write of the next owner of the row.
    two = await place.server("two", lease_s=1)
    silent = msgspec.structs.replace(stored.run, server="gone")
    await take(two.store, silent)
    run = await ended(two, begun.run.id)
    assert (run.state, run.server) == ("CREATED", "two")
    place.cloud.release("storage.half")
    assert place.cloud.journal() == MADE
    await place.stop(one)
    stored = await two.store.provision_run(begun.run.id)
    assert stored is not None
    assert stored.run.server == "two", "the first one found that it had lost the run"


async def take(store: SqlStore, run: Run) -> None:
    """Write a run without a lease, whoever writes it meanwhile."""
    async with asyncio.timeout(30):
        while True:
            stored = await store.provision_run(run.id)
            assert stored is not None
            try:
                await store.put_provision_run(run, stored.version, 0)
                return
            except Exception:
                await asyncio.sleep(0)


async def test_a_run_with_the_servers_identity_goes_on_after_a_stop(place: Installation) -> None:
    one = await place.server("one")
    place.cloud.fault("storage.half", "hold")
    begun = await one.conductor.begin(OWN)
    await until(lambda: place.cloud.reached("storage.half"))
    await place.stop(one)
    again = await place.server("one")
    assert (await ended(again, begun.run.id)).state == "CREATED"
    place.cloud.release("storage.half")
    assert place.cloud.journal() == MADE


async def test_a_run_with_a_principal_says_that_it_was_interrupted(place: Installation) -> None:
    one = await place.server("one")
    place.cloud.fault("storage.half", "hold")
    begun = await one.conductor.begin(BY_PRINCIPAL)
    await until(lambda: place.cloud.reached("storage.half"))
    await place.stop(one)
    again = await place.server("one")
    run = await ended(again, begun.run.id)
    assert (run.state, run.note) == ("ERROR", "interrupted: post the same request again")
    assert states(run)["storage"] == "failed"
    assert run.steps[1].failure is not None
    assert run.steps[1].failure.code == "Interrupted"
    place.cloud.release("storage.half")
    run = await made(again, BY_PRINCIPAL)
    assert (run.id, run.state) == (begun.run.id, "CREATED")
    assert place.cloud.journal() == MADE


async def test_nobody_works_on_it_is_unknown(here: Installation) -> None:
    site = await here.server()
    run = await made(site)
    await take(site.store, msgspec.structs.replace(run, state="INPROGRESS", server="gone"))
    # This server looks after such runs only every ten seconds.
    stored = await site.conductor.run(run.id)
    assert stored is not None
    assert stored.status == "UNKNOWN"
    assert (await made(site)).state == "CREATED"


async def test_removal_takes_what_the_run_made_and_nothing_else(place: Installation) -> None:
    site = await place.server()
    place.cloud.write("container", "somebody's")
    run = await made(site)
    assert not run.steps[2].made
    removing = await site.conductor.remove(run.id, None)
    assert removing is not None
    assert removing.run.state == "DELETING"
    gone = await ended(site, run.id)
    assert (gone.state, gone.note) == ("DELETED", "")
    removed = ["withdraw", "remove batch", "remove storage", "remove group"]
    assert place.cloud.journal()[-4:] == removed
    assert place.cloud.read("container") == {"run": "somebody's"}
    skipped = ("container", "test-task")
    assert gone.steps[2].detail == "stays: this run did not make it"
    assert states(gone) == {**dict.fromkeys(ALL, "done"), **dict.fromkeys(skipped, "skipped")}
    assert not any(record.made for record in gone.steps)
    again = await site.conductor.remove(run.id, None)
    assert again is not None
    assert again.run.state == "DELETED"
    assert place.cloud.journal()[-4:] == removed
    fresh = await made(site)
    assert (fresh.id, fresh.state) == (run.id, "CREATED")
    assert fresh.created > run.created


async def test_a_group_with_others_things_in_it_stays(here: Installation) -> None:
    site = await here.server()
    run = await made(site)
    here.cloud.write("stranger", "nobody")
    await site.conductor.remove(run.id, None)
    gone = await ended(site, run.id)
    assert gone.state == "DELETED"
    assert gone.note == "The group stays: stranger is in it, which this run did not make"
    assert gone.steps[0].made
    assert here.cloud.read("group") is not None
    (here.cloud.directory / "stranger.json").unlink()
    await site.conductor.remove(run.id, None)
    assert (await ended(site, run.id)).note == ""
    assert here.cloud.read("group") is None


async def test_what_a_server_looks_after_no_more_is_named(here: Installation) -> None:
    """As roles, once the identity that had them is taken out of the settings."""
    site = await here.server()
    run = await made(site)
    stored = await site.store.provision_run(run.id)
    assert stored is not None
    stored.run.steps.insert(4, StepRecord(name="roles", title="Role assignments", made=True))
    await site.store.put_provision_run(stored.run, stored.version, 0)
    await site.conductor.remove(run.id, None)
    gone = await ended(site, run.id)
    assert gone.state == "DELETED"
    assert gone.note.startswith("Role assignments stays: this server, as it is set up now")


async def test_what_was_half_made_is_removed_too(here: Installation) -> None:
    """Found by its tag: the server died before it could record what it made."""
    site = await here.server()
    here.cloud.fault("storage.half", "fail")
    run = await made(site)
    assert run.state == "ERROR"
    assert here.cloud.read("storage") is not None
    await site.conductor.remove(run.id, None)
    assert (await ended(site, run.id)).state == "DELETED"
    assert [here.cloud.read(step) for step in STEPS] == [None] * 4
    assert "withdraw" not in here.cloud.journal(), "no setting had been changed"


async def test_a_removal_that_fails_goes_on_when_asked_again(here: Installation) -> None:
    site = await here.server()
    run = await made(site)
    here.cloud.fault("storage.remove", "fail")
    await site.conductor.remove(run.id, None)
    failed = await ended(site, run.id)
    assert failed.state == "ERROR"
    assert "ask for the removal again" in failed.note
    assert failed.steps[1].made
    await site.conductor.remove(run.id, None)
    assert (await ended(site, run.id)).state == "DELETED"
    assert [here.cloud.read(step) for step in STEPS] == [None] * 3 + [None]


async def test_the_removal_of_a_principals_run_needs_its_secret(here: Installation) -> None:
    site = await here.server()
    run = await made(site, BY_PRINCIPAL)
    with pytest.raises(InvalidInput, match="service_principal: is required"):
        await site.conductor.remove(run.id, None)
    await site.conductor.remove(run.id, PRINCIPAL)
    gone = await ended(site, run.id)
    assert gone.state == "DELETED"
    assert SECRET not in str(gone)


async def test_a_removal_goes_on_after_a_stop(here: Installation) -> None:
    site = await here.server()
    run = await made(site)
    here.cloud.fault("storage.remove", "hold")
    await site.conductor.remove(run.id, None)
    await until(lambda: here.cloud.reached("storage.remove"))
    with pytest.raises(Conflict, match="is being removed"):
        await site.conductor.begin(OWN)
    await here.stop(site)
    here.cloud.release("storage.remove")
    again = await here.server()
    assert (await ended(again, run.id)).state == "DELETED"


async def test_stopping_twice_and_starting_twice_does_no_harm(
    here: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    site = await here.server()
    await site.conductor.start()
    await made(site)
    await site.conductor.stop()
    await here.close()
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("late", [False, True])
async def test_the_end_of_a_run_is_the_last_that_is_written(tmp_path: Path, late: bool) -> None:
    """And is written once, whatever a step says as it fails, or later: who has read it posts again,
    and of two that write only one can."""
    store = await open_store("", tmp_path / "tesazure.db")
    run = Run(id="r", fingerprint="f", request=OWN, created=1.0, updated=1.0)
    version = await store.put_provision_run(run, 0, 60)
    logbook = Logbook(store, StoredRun(run, version, True), 60, lambda: 2.0)
    keeping = asyncio.create_task(logbook.keep())
    logbook.expect([("group", "The group")])
    ends = set()

    async def watch() -> None:
        while not keeping.done():
            stored = await store.provision_run("r")
            assert stored is not None
            if stored.run.state == "ERROR":
                ends.add(stored.version)
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    with pytest.raises(ProvisionFailed):
        async with logbook.step("group") as record:
            logbook.tell(record)("quota")
            await asyncio.sleep(0)
            raise ProvisionFailed(Failure("QuotaExceeded", "none left", "ask for more"))
    await logbook.end("ERROR", "quota")
    first = await store.provision_run("r")
    if late:
        record.state = "running"
        logbook.tell(record)("quota, once more")
        await asyncio.sleep(0.1)
    await logbook.save()
    logbook.over()
    await keeping
    await watching
    last = await store.provision_run("r")
    assert first is not None
    assert last is not None
    assert last.run.state == "ERROR"
    assert ends | {last.version} == {first.version}
    await store.close()

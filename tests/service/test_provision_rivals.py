"""Requests for the same things at once, of one server or of several."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from tesazure.errors import Conflict
from tests.service.provision_site import (
    BY_PRINCIPAL,
    MADE,
    OWN,
    Installation,
    ended,
    made,
    until,
)


async def test_two_at_once_are_one_run(place: Installation) -> None:
    one, two = await place.server("one"), await place.server("two")
    place.cloud.fault("storage.half", "hold")
    begun = await asyncio.gather(*(s.conductor.begin(OWN) for s in (one, two, one, two)))
    assert len({stored.run.id for stored in begun}) == 1
    await until(lambda: place.cloud.reached("storage.half"))
    joined = await two.conductor.begin(BY_PRINCIPAL)
    assert (joined.run.id, joined.status) == (begun[0].run.id, "INPROGRESS")
    place.cloud.release("storage.half")
    for site in (one, two):
        assert (await ended(site, begun[0].run.id)).state == "CREATED"
    assert place.cloud.journal() == MADE


async def test_another_request_for_the_same_names_waits(place: Installation) -> None:
    site = await place.server()
    place.cloud.fault("storage.half", "hold")
    first = await site.conductor.begin(msgspec.structs.replace(OWN, batch_account_name="mine"))
    await until(lambda: place.cloud.reached("storage.half"))
    other = msgspec.structs.replace(OWN, batch_account_name="mine", tags={"a": "b"})
    with pytest.raises(Conflict, match=first.run.id):
        await site.conductor.begin(other)
    with pytest.raises(Conflict, match="is under way"):
        await site.conductor.remove(first.run.id, None)
    place.cloud.release("storage.half")
    assert (await ended(site, first.run.id)).state == "CREATED"


async def test_of_different_requests_for_one_name_at_once_one_is_made(place: Installation) -> None:
    sites = [await place.server("one"), await place.server("two")]
    place.cloud.fault("storage.half", "hold")
    same = msgspec.structs.replace(OWN, batch_account_name="mine", resource_group="Lab")
    others = [
        same,
        msgspec.structs.replace(same, resource_group="other", tags={"a": "b"}),
        msgspec.structs.replace(same, resource_group="other", storage_account_name="mine"),
    ]
    tries = [site.conductor.begin(each) for each in others for site in sites]
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    begun = {o.run.id for o in outcomes if not isinstance(o, BaseException)}
    assert len(begun) == 1, outcomes
    (run_id,) = begun
    refused = [o for o in outcomes if isinstance(o, BaseException)]
    assert len(refused) == 4
    for error in refused:
        assert isinstance(error, Conflict)
        assert str(error).startswith(f"run {run_id} is under way")
    assert [stored.run.id for stored in await sites[0].conductor.runs()] == [run_id]
    await until(lambda: place.cloud.reached("storage.half"))
    place.cloud.release("storage.half")
    assert (await ended(sites[0], run_id)).state == "CREATED"
    assert place.cloud.journal() == MADE


@pytest.mark.parametrize(("asked", "joins"), [("the same", True), ("something else", False)])
async def test_what_a_run_makes_meanwhile_is_nobody_elses(
    place: Installation, asked: str, joins: bool
) -> None:
    """Between two questions of the checks, the account that is to be made is there."""
    site = await place.server()
    place.cloud.fault("problems", "hold")
    first = msgspec.structs.replace(OWN, storage_account_name="mine")
    second = first if joins else msgspec.structs.replace(first, tags={"for": asked})
    slow = asyncio.create_task(site.conductor.begin(second))
    await until(lambda: place.cloud.reached("problems"))
    place.cloud.fault("storage.made", "hold")
    begun = await site.conductor.begin(first)
    await until(lambda: place.cloud.reached("storage.made"))
    place.cloud.release("problems")
    if joins:
        assert (await slow).run.id == begun.run.id
    else:
        with pytest.raises(Conflict, match=begun.run.id):
            await slow
    place.cloud.release("storage.made")
    assert (await ended(site, begun.run.id)).state == "CREATED"
    assert place.cloud.journal() == MADE


async def test_what_another_run_may_be_using_is_not_removed(place: Installation) -> None:
    site = await place.server()
    first = await made(site, msgspec.structs.replace(OWN, tags={"a": "b"}))
    place.cloud.fault("storage.look", "hold")
    other = msgspec.structs.replace(OWN, storage_account_name="another")
    begun = await site.conductor.begin(other)
    await until(lambda: place.cloud.reached("storage.look"))
    with pytest.raises(Conflict, match=begun.run.id):
        await site.conductor.remove(first.id, None)
    place.cloud.release("storage.look")
    await ended(site, begun.run.id)
    await site.conductor.remove(first.id, None)
    assert (await ended(site, first.id)).state == "DELETED"

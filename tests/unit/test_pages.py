"""Page tokens: they say where to go on, and nothing else can be made of them."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tesazure.api import pages
from tesazure.api.ids import is_task_id, new_task_id, request_id
from tesazure.api.pages import Filters, Place
from tesazure.errors import InvalidInput
from tesazure.model import State

AUDIENCE = ("1.1.0", "")
FILTERS = Filters((State.QUEUED,), "näme", (("k", ""), ("l", "v")))
PLACE = Place(12345, AUDIENCE, FILTERS)
OURS = "5c8bb3ffb6b14c1e8d3b4bb1b6d4b3a2"


def test_a_token_carries_its_place_and_filters() -> None:
    token = pages.encode(PLACE, OURS)
    assert pages.decode(token, OURS, AUDIENCE, FILTERS) == PLACE
    assert pages.decode(token, OURS, AUDIENCE, Filters()) == PLACE
    assert not set(token) - set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@pytest.mark.parametrize(
    ("audience", "filters"),
    [
        (("1.0.0", ""), FILTERS),
        (("1.1.0", "somebody"), FILTERS),
        (AUDIENCE, Filters(name_prefix="other")),
        (AUDIENCE, Filters((State.RUNNING,), "näme", FILTERS.tags)),
    ],
)
def test_a_foreign_token_is_refused(audience: tuple[str, str], filters: Filters) -> None:
    with pytest.raises(InvalidInput) as caught:
        pages.decode(pages.encode(PLACE, OURS), OURS, audience, filters)
    assert [error.field for error in caught.value.errors] == ["page_token"]


def test_a_token_of_another_installation_is_refused() -> None:
    with pytest.raises(InvalidInput):
        pages.decode(pages.encode(PLACE, OURS), OURS[::-1], AUDIENCE, FILTERS)


@pytest.mark.parametrize("before", [-(2**63) - 1, -1, 2**62, 2**63, 10**30])
def test_a_place_beyond_all_tasks_is_refused(before: int) -> None:
    token = pages.encode(Place(before, AUDIENCE, FILTERS), OURS)
    with pytest.raises(InvalidInput):
        pages.decode(token, OURS, AUDIENCE, FILTERS)


@given(st.integers(0, 200), st.integers(1, 255))
def test_a_damaged_token_is_refused(position: int, change: int) -> None:
    raw = bytearray(base64.urlsafe_b64decode(pages.encode(PLACE, OURS) + "=="))
    raw[position % len(raw)] ^= change
    token = base64.urlsafe_b64encode(raw).decode().rstrip("=")
    with pytest.raises(InvalidInput):
        pages.decode(token, OURS, AUDIENCE, Filters())


@given(st.text())
def test_any_other_text_is_refused(token: str) -> None:
    with pytest.raises(InvalidInput):
        pages.decode(token, OURS, AUDIENCE, Filters())


def test_ids_sort_by_time_and_do_not_repeat() -> None:
    ids = [new_task_id(1.7e9 + n / 1000) for n in range(1000)]
    assert ids == sorted(ids)
    assert all(is_task_id(i) for i in ids)
    assert len({new_task_id(1.7e9) for _ in range(1000)}) == 1000
    assert not any(map(is_task_id, ("", "x" * 26, "A" * 26, "0" * 25, "0" * 26 + "\n", "0\0" * 13)))


def test_only_sane_request_ids_are_taken_over() -> None:
    assert request_id([(b"x-request-id", b"abc-1.2")]) == b"abc-1.2"
    for bad in (b"", b"a" * 65, b"a b", b'"', b"a\xff"):
        assert request_id([(b"x-request-id", bad)]) != bad

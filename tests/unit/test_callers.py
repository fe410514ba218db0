"""Roles, and whose tasks are seen."""

from __future__ import annotations

from itertools import product

import pytest

from tesazure.api.replies import Route
from tesazure.callers import (
    EVERYTHING,
    NOTHING,
    OPEN,
    Role,
    Visibility,
    local_caller,
    visibility_of,
    with_implied,
)

WORDS = (None, "", "a", "b")


@pytest.mark.parametrize(
    ("given", "all_of_them"),
    [
        ([], set()),
        ([Role.READ], {Role.READ}),
        ([Role.WRITE], {Role.READ, Role.WRITE}),
        ([Role.ADMIN], set(Role)),
        ([Role.READ, Role.ADMIN], set(Role)),
    ],
)
def test_roles_imply_lesser_ones(given: list[Role], all_of_them: set[Role]) -> None:
    assert with_implied(given) == all_of_them


def test_what_is_seen() -> None:
    for owner, tenant in product(WORDS, WORDS):
        assert EVERYTHING.sees(owner, tenant)
        assert not NOTHING.sees(owner, tenant)
        assert Visibility(everyone=False, owner="a").sees(owner, tenant) == (owner == "a")
        assert Visibility(everyone=False, tenant="a").sees(owner, tenant) == (tenant == "a")
        both = Visibility(everyone=False, owner="a", tenant="b")
        assert both.sees(owner, tenant) == ((owner, tenant) == ("a", "b"))


def test_audiences_are_the_same_only_for_those_who_see_the_same() -> None:
    every = [
        Visibility(everyone=False, owner=o or None, tenant=t or None) for o in WORDS for t in WORDS
    ]
    for one, other in product([*every, EVERYTHING], repeat=2):
        assert (one.audience == other.audience) == (one == other)


def test_the_callers_of_an_open_server_and_of_api_tokens() -> None:
    for restrictions in ("none", "per-user", "per-tenant"):
        assert visibility_of(OPEN, restrictions) == EVERYTHING
    ann = local_caller("ann", [Role.WRITE])
    assert visibility_of(ann, "per-user") == Visibility(everyone=False, owner="local/ann")
    assert visibility_of(ann, "per-tenant") == Visibility(everyone=False, tenant="local")
    assert visibility_of(local_caller("root", [Role.ADMIN]), "per-user") == EVERYTHING


def test_a_route_that_says_nothing_is_closed() -> None:
    route = Route("/x")
    assert route.needs("GET") is Role.READ
    assert route.needs("HEAD") is Role.READ
    assert route.needs("POST") is Role.WRITE
    for method in ("PUT", "DELETE", "PATCH", "BREW"):
        assert route.needs(method) is Role.ADMIN
    assert Route("/x", open=True).needs("GET") is None
    assert Route("/x", roles={"GET": Role.ADMIN}).needs("POST") is Role.ADMIN

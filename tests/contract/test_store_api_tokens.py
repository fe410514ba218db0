"""What every Store promises of API tokens, on each database."""

from __future__ import annotations

import pytest

from tesazure.store.records import ApiToken
from tesazure.store.sql_store import SqlStore
from tests.contract.store_tasks import Place


def token(name: str, expires: float | None = None, created: float = 5.5) -> ApiToken:
    roles = ("Tasks.Read", "Tasks.Write")
    return ApiToken(name, "ann@example.org", bytes(range(32)), roles, created, expires)


async def test_tokens_come_back_as_they_were_given(store: SqlStore) -> None:
    given = [token("b", created=1.25), token("a", 7.0, created=2)]
    for each in reversed(given):
        await store.add_api_token(each)
    assert await store.api_tokens() == given


async def test_expired_ones_are_not_valid(store: SqlStore) -> None:
    for name, expires in (("a", None), ("b", 10.0), ("c", 10.5)):
        await store.add_api_token(token(name, expires))
    assert {each.id for each in await store.valid_api_tokens(10.0)} == {"a", "c"}
    assert len(await store.api_tokens()) == 3


async def test_a_revoked_token_is_gone(store: SqlStore) -> None:
    await store.add_api_token(token("a"))
    assert await store.revoke_api_token("a")
    assert not await store.revoke_api_token("a")
    assert await store.api_tokens() == []


async def test_use_is_noted(store: SqlStore) -> None:
    await store.add_api_token(token("a"))
    await store.add_api_token(token("b"))
    await store.note_api_token_use("a", 86400.0)
    await store.note_api_token_use("gone", 86400.0)
    assert {each.id: each.last_used for each in await store.api_tokens()} == {
        "a": 86400.0,
        "b": None,
    }


async def test_an_id_is_taken_once(store: SqlStore) -> None:
    await store.add_api_token(token("a"))
    with pytest.raises(ValueError, match="refuses"):
        await store.add_api_token(token("a"))


async def test_another_server_sees_them_at_once(place: Place, store: SqlStore) -> None:
    other = await place.open()
    await store.add_api_token(token("a"))
    assert [each.id for each in await other.valid_api_tokens(0)] == ["a"]
    assert await other.revoke_api_token("a")
    assert await store.valid_api_tokens(0) == []

"""API tokens on a real store: who is let in, how soon a change counts, what wrong ones cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tesazure.callers import Role
from tesazure.errors import InvalidInput, StoreUnavailable
from tesazure.signin.ledger import Ledger
from tesazure.signin.tokens import AGAIN_S, DAY_S, TokenSource
from tesazure.store.records import ApiToken
from tesazure.store.sql_store import SqlStore, open_store

NOW = 1_800_000_000.0


class Counting:
    """A real store; counts what is asked of it, and is away when told so."""

    def __init__(self, store: SqlStore) -> None:
        self.store = store
        self.reads = self.writes = 0
        self.away = False

    async def valid_api_tokens(self, now: float) -> list[ApiToken]:
        self.reads += 1
        if self.away:
            raise StoreUnavailable("gone fishing")
        return await self.store.valid_api_tokens(now)

    async def note_api_token_use(self, token_id: str, day: float) -> None:
        self.writes += 1
        if self.away:
            raise StoreUnavailable("gone fishing")
        await self.store.note_api_token_use(token_id, day)


class Desk:
    """Makes tokens, and a server that takes them, by one clock."""

    def __init__(self, store: SqlStore) -> None:
        self.now = NOW
        self.store = Counting(store)
        self.ledger = Ledger(store, self.time)
        self.changes: list[tuple[str, str]] = []
        self.source = TokenSource(self.store, self.time, self.note)

    def time(self) -> float:
        return self.now

    def note(self, change: str, token: ApiToken) -> None:
        self.changes.append((change, token.user))

    async def made(self, user: str = "ann", lifetime_s: float | None = None) -> str:
        return (await self.ledger.create(user, [Role.WRITE], lifetime_s))[1]


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    store = await open_store("", tmp_path / "t.db")
    yield Desk(store)
    await store.close()


def contents(directory: Path) -> bytes:
    """All files of a directory, one after the other."""
    return b"".join(file.read_bytes() for file in directory.iterdir())


async def test_a_token_is_its_users(desk: Desk) -> None:
    secret = await desk.made()
    caller = await desk.source.caller(secret)
    assert caller is not None
    assert (caller.owner, caller.tenant, caller.name) == ("local/ann", "local", "ann")
    assert (caller.roles, caller.how) == ({Role.READ, Role.WRITE}, "token")
    by_basic = await desk.source.caller(secret, "ann")
    assert by_basic is not None
    assert by_basic.how == "basic"
    assert await desk.source.caller(secret, "bob") is None


async def test_a_role_that_there_is_not_is_none_and_told_once(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    secrets = []
    for names in (("Tasks.Gone",), ("Tasks.Gone", "Tasks.Read")):
        secrets.append(await desk.made())
        [made] = [each for each in await desk.ledger.all() if each.id in secrets[-1]]
        await desk.ledger.revoke([made.id])
        await desk.store.store.add_api_token(msgspec.structs.replace(made, roles=names))
    for roles, secret in zip((set(), {Role.READ}), secrets, strict=True):
        for _ in range(2):
            caller = await desk.source.caller(secret)
            assert caller is not None
            assert caller.roles == roles
    assert caplog.text.count("there is no role 'Tasks.Gone'") == 1


async def test_what_is_no_token_is_nobodys(desk: Desk) -> None:
    secret = await desk.made()
    last = "0" if secret[-1] != "0" else "1"
    other = await desk.made("bob")
    mixed = secret[:22] + other[22:]
    for wrong in (
        "",
        secret[:-1],
        secret + "0",
        secret[:-1] + last,
        secret.upper(),
        mixed,
        "tesz_",
    ):
        assert await desk.source.caller(wrong) is None
    assert await desk.source.caller(secret) is not None


async def test_only_a_hash_is_kept(desk: Desk, tmp_path: Path) -> None:
    secret = await desk.made()
    await desk.source.caller(secret)
    hidden = secret.rpartition("_")[2].encode()
    raw = contents(tmp_path)
    assert b"ann" in raw
    assert hidden not in raw
    assert bytes.fromhex(hidden.decode()) not in raw
    (kept,) = await desk.ledger.all()
    assert secret not in repr(kept)


async def test_a_new_token_counts_at_once(desk: Desk) -> None:
    assert await desk.source.caller(await desk.made("ann")) is not None
    assert await desk.source.caller(await desk.made("bob")) is not None


async def test_a_revoked_token_ends_within_seconds(desk: Desk) -> None:
    secret = await desk.made()
    assert await desk.source.caller(secret) is not None
    (kept,) = await desk.ledger.all()
    assert await desk.ledger.revoke([kept.id, "nonsense"]) == ["nonsense"]
    # Whoever asks for an unknown one makes all others count, too.
    await desk.source.caller(await desk.made("bob"))
    assert await desk.source.caller(secret) is None


async def test_a_token_ends_in_time(desk: Desk) -> None:
    secret = await desk.made(lifetime_s=60)
    desk.now += 59
    assert await desk.source.caller(secret) is not None
    desk.now += 1
    assert await desk.source.caller(secret) is None


async def test_wrong_tokens_cost_no_queries_and_lock_nobody_out(desk: Desk) -> None:
    secret = await desk.made()
    await desk.source.caller(secret)
    (kept,) = await desk.ledger.all()
    foreign = [f"tesz_{number:016x}_{'0' * 64}" for number in range(500)]
    guesses = [f"tesz_{kept.id}_{number:064x}" for number in range(500)]
    began, reads = time.monotonic(), desk.store.reads
    attack = [asyncio.create_task(desk.source.caller(wrong)) for wrong in foreign + guesses]
    assert await desk.source.caller(secret) is not None
    assert set(await asyncio.gather(*attack)) == {None}
    took = time.monotonic() - began
    assert desk.store.reads - reads <= 1 + took / AGAIN_S


async def test_use_is_noted_once_a_day(desk: Desk) -> None:
    secret = await desk.made()
    await asyncio.gather(*(desk.source.caller(secret) for _ in range(20)))
    assert desk.store.writes == 1
    (kept,) = await desk.ledger.all()
    assert kept.last_used == NOW // DAY_S * DAY_S
    desk.now += DAY_S
    await desk.source.caller(secret)
    await desk.source.caller(secret)
    assert desk.store.writes == 2


async def test_a_store_that_is_away_is_said_so_and_forgotten(desk: Desk) -> None:
    secret = await desk.made()
    desk.store.away = True
    answers = await asyncio.gather(
        *(desk.source.caller(secret) for _ in range(10)), return_exceptions=True
    )
    assert {type(answer) for answer in answers} == {StoreUnavailable}
    assert desk.store.reads == 1
    desk.store.away = False
    assert await desk.source.caller(secret) is not None


async def test_a_use_that_cannot_be_noted_hinders_nobody(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    secret = await desk.made()
    await desk.source.caller("tesz_" + "0" * 16 + "_" + "0" * 64)
    desk.store.away = True
    assert await desk.source.caller(secret) is not None
    assert "is not noted" in caplog.text
    assert secret not in caplog.text


async def test_a_client_that_leaves_ends_nobody_elses_reading(desk: Desk) -> None:
    secret = await desk.made()
    leaving = asyncio.create_task(desk.source.caller(secret))
    staying = asyncio.create_task(desk.source.caller(secret))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying is not None


async def test_changes_are_told(desk: Desk) -> None:
    ann = await desk.made("ann", lifetime_s=60)
    await desk.source.caller(ann)
    bob = await desk.made("bob")
    await desk.source.caller(bob)
    assert desk.changes == [("token.create", "bob")]
    desk.now += 60
    await desk.ledger.revoke([bob.split("_")[1]])
    await desk.source.caller(f"tesz_{'f' * 16}_{'f' * 64}")
    assert sorted(desk.changes[1:]) == [("token.expire", "ann"), ("token.revoke", "bob")]


@pytest.mark.parametrize("user", ["", "a:b", "a/b", "-a", "a b", "ä", "x" * 65, "a\n"])
async def test_users_who_cannot_be(desk: Desk, user: str) -> None:
    with pytest.raises(InvalidInput):
        await desk.made(user)
    assert await desk.ledger.all() == []

"""Streams end when their callers could no longer begin them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Literal

import httpx
import msgspec
import pytest
from starlette.requests import Request

from tesazure.api.events import Events
from tesazure.api.feed import Feed
from tesazure.api.renewal import AGAIN_S, Renewal
from tesazure.callers import EVERYTHING, Role
from tesazure.errors import StoreUnavailable
from tesazure.signin.gate import Gate, SignIn
from tesazure.signin.ledger import Ledger
from tesazure.signin.tokens import FRESH_S, TokenSource
from tesazure.store.records import ApiToken
from tesazure.store.sql_store import SqlStore, open_store
from tests.contract.store_tasks import new_task
from tests.service.listener import Listener
from tests.service.server import TES, create, get, start_server, task, until
from tests.service.signed_in import api_token, bearer, entra, settings
from tests.service.test_api_parts import parts
from tests.services.entra_server import EntraServer

__all__ = ["entra"]

LATE_S = 2 * AGAIN_S + FRESH_S
"""After which no stream is left of a token that is no longer good."""


def test_streams_end_with_their_tokens(entra: EntraServer, tmp_path: Path) -> None:
    with start_server(tmp_path, **settings(entra)) as running:
        good, revoked = (api_token(running.data, user, "Tasks.Read") for user in ("ann", "bob"))
        with running.client(headers=bearer(entra.issue())) as client:
            task_id = create(client, task("sh", "-c", "echo begun; sleep 300"))
            until(lambda: get(client, task_id, "MINIMAL")["state"] == "RUNNING")
            paths = (
                "/api/v1/events",
                f"/api/v1/tasks/{task_id}/events",
                f"/api/v1/tasks/{task_id}/logs/0/stdout?follow=1",
            )
            # Clocks may differ by a minute.
            expiring = entra.issue({"exp": int(time.time()) - 50})
            with running.client() as nobody:
                streams = {
                    token: [Listener(nobody, path, **bearer(token)) for path in paths]
                    for token in (good, revoked, expiring)
                }
                everyone = [stream for some in streams.values() for stream in some]
                assert {stream.status for stream in everyone} == {200}
                _revoke(running.data, revoked)
                for token in (revoked, expiring):
                    until(partial(_is_refused, nobody, token))
                refused = time.monotonic()
                for token, reason in (
                    (revoked, "the API token is not known, or has expired"),
                    (expiring, "the token has expired"),
                ):
                    for stream in streams[token]:
                        left = refused + LATE_S - time.monotonic()
                        assert stream.ended.wait(left)
                        assert stream.whole
                    *events, log = streams[token]
                    assert [stream.lines[-2:] for stream in events] == [
                        [f": this stream ends: {reason}", ""]
                    ] * 2
                    assert log.lines == ["begun"]
                # Whoever may go on is told what happens afterwards.
                client.post(f"{TES}/tasks/{task_id}:cancel")
                until(lambda: streams[good][0].states(task_id)[-1:] == ["CANCELED"])
                assert streams[good][1].ended.wait(10)
                assert streams[good][2].ended.wait(10)
                for stream in (*streams[revoked], *streams[expiring]):
                    assert "CANCELING" not in stream.states(task_id)


def _is_refused(client: httpx.Client, token: str) -> bool:
    return client.get(f"{TES}/tasks", headers=bearer(token)).status_code == 401


def _revoke(data: Path, secret: str) -> None:
    async def run() -> None:
        store = await open_store("", data / "tesazure.db")
        assert await Ledger(store).revoke([secret.split("_")[1]]) == []
        await store.close()

    asyncio.run(run())


# -- the question itself, on a clock of the tests' own --------------------------------------------


class Moments:
    """A clock that stands still between steps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self) -> None:
        """The time after which the gate is asked again."""
        self.now += AGAIN_S


class Closing(asyncio.Event):
    """Notes when somebody has waited for it to its end, and no pause for that somebody."""

    heard = False

    async def wait(self) -> Literal[True]:
        self.heard = await super().wait()
        return True


class Fickle:
    """A store of API tokens that is away until told otherwise."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self.away = True

    async def valid_api_tokens(self, now: float) -> list[ApiToken]:
        if self.away:
            raise StoreUnavailable("away")
        return await self._store.valid_api_tokens(now)

    async def note_api_token_use(self, token_id: str, day: float) -> None:
        await self._store.note_api_token_use(token_id, day)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    opened = await open_store("", tmp_path / "tesazure.db")
    yield opened
    await opened.close()


def _begun(
    gate: Gate, secret: str, clock: Callable[[], float], closing: asyncio.Event | None = None
) -> Renewal:
    """The admission of a stream that begins now, with everybody's tasks."""
    headers = [(b"authorization", b"Bearer " + secret.encode())] if secret else []
    request = Request({"type": "http", "headers": headers, "visibility": EVERYTHING})
    return Renewal(gate, closing or asyncio.Event(), request, clock)


async def test_sign_in_that_is_switched_on_ends_what_was_begun_without(store: SqlStore) -> None:
    clock = Moments()
    gate = Gate(SignIn(), TokenSource(store))
    renewal = _begun(gate, "", clock)
    clock.pass_by()
    assert await renewal.refusal() == ""
    await gate.use(SignIn(api_tokens=True))
    assert await renewal.refusal() == ""  # asked just now
    clock.pass_by()
    assert "sign-in" in await renewal.refusal()


async def test_restrictions_that_change_what_is_seen_end_it(store: SqlStore) -> None:
    clock = Moments()
    sign_in = SignIn(api_tokens=True)
    gate = Gate(sign_in, TokenSource(store))
    _, reader = await Ledger(store).create("ann", [Role.READ], None)
    _, admin = await Ledger(store).create("eve", [Role.ADMIN], None)
    renewals = [_begun(gate, secret, clock) for secret in (reader, admin)]
    await gate.use(msgspec.structs.replace(sign_in, restrictions="per-user"))
    clock.pass_by()
    assert ["sees other tasks" in await renewal.refusal() for renewal in renewals] == [True, False]


async def test_a_token_that_expires_ends_it(store: SqlStore) -> None:
    clock = Moments()
    gate = Gate(SignIn(api_tokens=True), TokenSource(store, clock))
    _, secret = await Ledger(store, clock).create("ann", [Role.READ], 2 * AGAIN_S)
    renewal = _begun(gate, secret, clock)
    clock.pass_by()
    assert await renewal.refusal() == ""
    clock.pass_by()
    assert "expired" in await renewal.refusal()


async def test_while_the_gate_cannot_tell_nothing_is_sent_but_heartbeats(store: SqlStore) -> None:
    clock, fickle = Moments(), Fickle(store)
    _, secret = await Ledger(store).create("ann", [Role.READ], None)
    gate = Gate(SignIn(api_tokens=True), TokenSource(fickle))
    renewal = _begun(gate, secret, clock)
    stream = Events(parts(store), Feed(store))._events(b"begin", 0, {}, renewal)
    async with asyncio.timeout(20), contextlib.aclosing(stream):
        assert await anext(stream) == b"begin"
        clock.pass_by()
        await store.create(new_task())
        assert [await anext(stream) for _ in range(2)] == [b": still here\n\n"] * 2
        fickle.away = False
        assert b'"QUEUED"' in await anext(stream)


async def test_a_gate_that_cannot_tell_does_not_hold_up_the_servers_stop(store: SqlStore) -> None:
    clock, closing, fickle = Moments(), Closing(), Fickle(store)
    _, secret = await Ledger(store).create("ann", [Role.READ], None)
    gate = Gate(SignIn(api_tokens=True), TokenSource(fickle))
    renewal = _begun(gate, secret, clock, closing)
    clock.pass_by()
    closing.set()
    assert await renewal.refusal() is None
    assert closing.heard

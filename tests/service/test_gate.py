"""The gate, against an issuer over TLS: who is let in, who is not, and what an outage does."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tesazure.callers import Caller, Restrictions, Role, Visibility, visibility_of, with_implied
from tesazure.errors import ConfigurationError, NotAllowed, NotSignedIn, SignInUnavailable
from tesazure.signin.bearer import Trusted
from tesazure.signin.gate import Gate, SignIn
from tesazure.signin.keys import Pace
from tesazure.signin.ledger import Ledger
from tesazure.signin.tokens import TokenSource
from tesazure.signin.verified import LONGEST_S, Verified
from tesazure.store.sql_store import SqlStore, open_store
from tests.service.forged_tokens import forgeries
from tests.services.entra_server import (
    AUDIENCE,
    CLIENT,
    OTHER_TENANT,
    OTHER_USER,
    TENANT,
    USER,
    EntraServer,
)

QUICK = Pace(refresh_s=0.2, cooldown_s=0.3, retry_s=0.02)
ALL_ROLES = frozenset(Role)
READ_WRITE = frozenset({Role.READ, Role.WRITE})


@pytest.fixture(scope="module")
def entra(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EntraServer]:
    with EntraServer(tmp_path_factory.mktemp("entra")) as running:
        yield running


@pytest.fixture
def lonely(tmp_path: Path) -> Iterator[EntraServer]:
    """An issuer that the test may break."""
    with EntraServer(tmp_path / "lonely") as running:
        yield running


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    opened = await open_store("", tmp_path / "tesazure.db")
    yield opened
    await opened.close()


def trusted(entra: EntraServer, **changes: Any) -> Trusted:
    values: dict[str, Any] = {
        "authority": entra.authority,
        "tenants": (TENANT,),
        "audiences": (AUDIENCE,),
        "ca_bundle": entra.ca_bundle,
    }
    return Trusted(**values | changes)


@contextlib.asynccontextmanager
async def gate(
    store: SqlStore, entra: EntraServer, pace: Pace | None = None, **changes: Any
) -> AsyncIterator[Gate]:
    made = Gate(SignIn(trusted=trusted(entra, **changes)), TokenSource(store), pace=pace)
    async with made.standing():
        yield made


def bearer(token: str | bytes) -> list[tuple[bytes, bytes]]:
    raw = token if isinstance(token, bytes) else token.encode("latin-1")
    return [(b"host", b"x"), (b"authorization", b"Bearer " + raw)]


def basic(user: str, password: str) -> list[tuple[bytes, bytes]]:
    pair = base64.b64encode(f"{user}:{password}".encode())
    return [(b"authorization", b"Basic " + pair)]


async def refused(made: Gate, headers: list[tuple[bytes, bytes]]) -> NotSignedIn:
    with pytest.raises(NotSignedIn) as caught:
        await made.admit(Role.READ, headers)
    assert not isinstance(caught.value, NotAllowed)
    return caught.value


async def test_every_forged_or_broken_token_is_refused(store: SqlStore, entra: EntraServer) -> None:
    tokens = forgeries(entra)
    assert len(tokens) > 80
    async with gate(store, entra) as made:
        await made.admit(Role.WRITE, bearer(entra.issue()))
        taken = {}
        for name, token in tokens.items():
            try:
                taken[name] = await made.admit(Role.READ, bearer(token))
            except NotSignedIn as error:
                assert not isinstance(error, NotAllowed), name
                assert error.challenges[0].startswith('Bearer realm="tesazure", error="inv'), name
        assert taken == {}
    asked = {line.partition(" ")[2] for line in entra.asked}
    assert all(path.startswith(f"/{TENANT}/") for path in asked), "a token led somewhere"


@pytest.mark.parametrize(
    ("claims", "roles"),
    [
        ({}, READ_WRITE),
        ({"scp": "access offline"}, READ_WRITE),
        ({"scp": "Tasks.Read"}, {Role.READ}),
        ({"scp": "access Tasks.Write"}, READ_WRITE),
        ({"scp": "Tasks.Admin"}, READ_WRITE),
        ({"roles": ["Tasks.Read"]}, {Role.READ}),
        ({"roles": ["Tasks.Write"]}, READ_WRITE),
        ({"roles": ["Tasks.Admin"]}, ALL_ROLES),
        ({"roles": ["Tasks.Admin"], "scp": "Tasks.Read"}, {Role.READ}),
        ({"roles": ["Tasks.Admin"], "scp": "Tasks.Write Tasks.Admin"}, ALL_ROLES),
        ({"roles": ["Tasks.Read"], "scp": "Tasks.Write"}, {Role.READ}),
        ({"roles": ["Tasks.Read", "Other", 7]}, {Role.READ}),
        ({"roles": ["Other"]}, set()),
        ({"roles": []}, set()),
        ({"roles": 7}, set()),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
async def test_a_users_roles(
    store: SqlStore, entra: EntraServer, claims: dict[str, Any], roles: set[Role], version: Any
) -> None:
    async with gate(store, entra) as made:
        headers = bearer(entra.issue(claims, version=version))
        if not roles:
            with pytest.raises(NotAllowed):
                await made.admit(Role.READ, headers)
            return
        caller = await made.admit(Role.READ, headers)
        assert caller == Caller(
            f"{TENANT}/{USER}", TENANT, "user@example.org", frozenset(roles), "bearer"
        )
        for role in Role:
            if role not in roles:
                with pytest.raises(NotAllowed, match=str(role)):
                    await made.admit(role, headers)


async def test_an_application_needs_to_be_granted_a_role(
    store: SqlStore, entra: EntraServer
) -> None:
    async with gate(store, entra) as made:
        with pytest.raises(NotAllowed, match="grant the app role") as caught:
            await made.admit(Role.READ, bearer(entra.issue_app_only()))
        [challenge] = caught.value.challenges
        assert 'error="insufficient_scope"' in challenge
        assert 'scope="Tasks.Read"' in challenge
        token = entra.issue_app_only({"roles": ["Tasks.Write"]})
        caller = await made.admit(Role.WRITE, bearer(token))
        assert (caller.name, caller.roles) == (CLIENT, READ_WRITE)


async def test_several_tenants_and_another_provider(store: SqlStore, entra: EntraServer) -> None:
    more = {"tenants": (TENANT, OTHER_TENANT), "issuer": entra.oidc_issuer}
    async with gate(store, entra, **more) as made:
        for tenant in (TENANT, OTHER_TENANT):
            for version in (1, 2):
                token = entra.issue({"tid": tenant, "oid": OTHER_USER.upper()}, version=version)
                caller = await made.admit(Role.WRITE, bearer(token))
                assert (caller.owner, caller.tenant) == (f"{tenant}/{OTHER_USER}", tenant)
        lab = entra.oidc_issuer.removeprefix("https://")
        caller = await made.admit(Role.WRITE, bearer(entra.issue_oidc({"scope": "openid"})))
        assert (caller.owner, caller.tenant) == (f"{lab}/lab-user-1", lab)
        narrow = entra.issue_oidc({"scp": ["openid", "Tasks.Read"], "nbf": None})
        assert (await made.admit(Role.READ, bearer(narrow))).roles == {Role.READ}
        for claims in ({"sub": None}, {"sub": ""}, {"aud": "x"}, {"iss": entra.issuer()}):
            await refused(made, bearer(entra.issue_oidc(claims)))
        crossed = entra.issue({"iss": entra.oidc_issuer, "sub": "lab-user-1"})
        await refused(made, bearer(crossed))


async def test_an_application_is_named_by_its_id_or_its_uri(
    store: SqlStore, entra: EntraServer
) -> None:
    for audience in (AUDIENCE, f"api://{AUDIENCE}"):
        async with gate(store, entra, audiences=("other", audience)) as made:
            for said in (AUDIENCE, f"api://{AUDIENCE}", "other", ["x", AUDIENCE]):
                await made.admit(Role.WRITE, bearer(entra.issue({"aud": said})))
    async with gate(store, entra, audiences=("api://tes",)) as made:
        await made.admit(Role.WRITE, bearer(entra.issue({"aud": "api://tes"})))
        await refused(made, bearer(entra.issue({"aud": "tes"})))


async def test_the_clocks_may_differ_a_little(store: SqlStore, entra: EntraServer) -> None:
    now = int(time.time())
    async with gate(store, entra) as made:
        await made.admit(Role.READ, bearer(entra.issue({"exp": now - 20})))
        await made.admit(Role.READ, bearer(entra.issue({"nbf": now + 20, "iat": now + 20})))
        error = await refused(made, bearer(entra.issue({"exp": now - 90})))
        assert str(error) == "the token has expired"
        error = await refused(made, bearer(entra.issue({"nbf": now + 120})))
        assert str(error) == "the token is not valid yet"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", b"Digest username=x")],
        [(b"authorization", b"\xff\xfe")],
        basic("ann", "tesz_" + "0" * 16 + "_" + "0" * 64),
        basic("ann", ""),
        [(b"authorization", b"Basic !!")],
        bearer("tesz_"),
        bearer("tesz_" + "0" * 16 + "_" + "0" * 64),
    ],
)
async def test_without_a_sign_in_the_reply_says_how(
    store: SqlStore, entra: EntraServer, headers: list[tuple[bytes, bytes]]
) -> None:
    sign_in = SignIn(trusted=trusted(entra), api_tokens=True)
    made = Gate(sign_in, TokenSource(store))
    async with made.standing():
        error = await refused(made, headers)
        ours, others = error.challenges
        assert ours.startswith('Bearer realm="tesazure"')
        assert ("error=" in ours) == bool(headers)
        assert others == 'Basic realm="tesazure", charset="UTF-8"'
        twice = await refused(made, [*bearer(entra.issue()), *bearer(entra.issue())])
        assert "more than one" in str(twice)


async def test_api_tokens_by_bearer_and_by_basic(store: SqlStore, entra: EntraServer) -> None:
    _, secret = await Ledger(store).create("ann", [Role.WRITE], None)
    sign_in = SignIn(api_tokens=True, restrictions="per-user")
    made = Gate(sign_in, TokenSource(store))
    async with made.standing():
        for headers, how in ((bearer(secret), "token"), (basic("ann", secret), "basic")):
            caller = await made.admit(Role.WRITE, headers)
            assert (caller.owner, caller.tenant, caller.how) == ("local/ann", "local", how)
            assert made.visibility(caller) == Visibility(everyone=False, owner="local/ann")
            with pytest.raises(NotAllowed, match=r"Tasks\.Admin"):
                await made.admit(Role.ADMIN, headers)
        await refused(made, basic("bob", secret))
        assert "no issuer" in str(await refused(made, bearer(entra.issue())))
        await made.use(SignIn(trusted=trusted(entra)))
        await refused(made, bearer(secret))
        await refused(made, basic("ann", secret))
        await made.admit(Role.READ, bearer(entra.issue()))


async def test_an_open_gate_asks_nobody(store: SqlStore) -> None:
    made = Gate(SignIn(restrictions="per-user"), TokenSource(store))
    async with made.standing():
        caller = await made.admit(Role.ADMIN, bearer("whatever"))
        assert (caller.owner, caller.how) == (None, "open")
        assert made.visibility(caller) == Visibility()


OWNER, TEAM = Visibility(everyone=False, owner="t/o"), Visibility(everyone=False, tenant="t")


@pytest.mark.parametrize(
    ("restrictions", "role", "sees"),
    [
        ("none", Role.READ, Visibility()),
        ("per-user", Role.WRITE, OWNER),
        ("per-tenant", Role.WRITE, TEAM),
        ("per-user", Role.ADMIN, Visibility()),
        ("per-tenant", Role.ADMIN, Visibility()),
    ],
)
def test_whose_tasks_a_caller_sees(
    restrictions: Restrictions, role: Role, sees: Visibility
) -> None:
    caller = Caller("t/o", "t", "name", with_implied([role]), "bearer")
    assert visibility_of(caller, restrictions) == sees
    nobody = Caller(None, None, "name", with_implied([role]), "bearer")
    if not sees.everyone:
        assert visibility_of(nobody, restrictions).nothing


async def test_keys_change_under_load_and_nobody_is_refused(
    store: SqlStore, lonely: EntraServer
) -> None:
    async with gate(store, lonely, Pace(cooldown_s=60)) as made:
        admitted = 0
        done = False

        async def client() -> None:
            nonlocal admitted
            while not done:
                # A token of its own each time, so that none comes from the cache.
                await made.admit(Role.WRITE, bearer(lonely.issue()))
                admitted += 1
                await asyncio.sleep(0)

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            clients = [group.create_task(client()) for _ in range(64)]
            for _ in range(5):
                before = admitted
                old = lonely.issue()
                await asyncio.to_thread(lonely.rotate)
                await _until(lambda at_least=before + 200: admitted >= at_least)
                await made.admit(Role.READ, bearer(old))
            done = True
        assert all(each.exception() is None for each in clients)
    # The two versions have keys of their own: read at the start, and once for each new key at most.
    assert 2 <= lonely.count("keys") <= 2 + 5


async def test_unknown_keys_do_not_make_us_a_burden(store: SqlStore, lonely: EntraServer) -> None:
    async with gate(store, lonely, Pace(cooldown_s=60)) as made:
        await made.admit(Role.READ, bearer(lonely.issue()))
        await _until(lambda: lonely.count("keys") == 2)
        async with asyncio.TaskGroup() as group:
            for number in range(200):
                group.create_task(refused(made, bearer(lonely.issue(kid=f"made-up-{number}"))))
        for number in range(50):
            await refused(made, bearer(lonely.issue(kid=f"made-up-later-{number}")))
        assert lonely.count("keys") <= 4


async def test_a_withdrawn_key_is_no_longer_good(store: SqlStore, lonely: EntraServer) -> None:
    async with gate(store, lonely, QUICK) as made:
        await made.admit(Role.READ, bearer(lonely.issue()))
        old = lonely.issue()
        lonely.rotate(keep=False)
        await made.admit(Role.READ, bearer(lonely.issue()))
        await refused(made, bearer(old))


@pytest.mark.parametrize("trouble", ["closed", "silent", 500])
async def test_an_outage_of_the_issuer_is_ridden_out(
    store: SqlStore, lonely: EntraServer, trouble: Any
) -> None:
    async with gate(store, lonely, QUICK) as made:
        await made.admit(Role.READ, bearer(lonely.issue()))
        lonely.down(trouble)
        ends = time.monotonic() + 3 * QUICK.refresh_s
        while time.monotonic() < ends:
            await made.admit(Role.READ, bearer(lonely.issue()))
            await asyncio.sleep(0.01)
        lonely.up()
        lonely.rotate()
        await _until_admitted(made, lonely)


async def test_without_keys_nobody_is_called_a_forger(store: SqlStore, lonely: EntraServer) -> None:
    lonely.down()
    async with gate(store, lonely, QUICK) as made:
        with pytest.raises(SignInUnavailable):
            await made.admit(Role.READ, bearer(lonely.issue()))
        [(host, known, said)] = made.state()
        assert host in lonely.url
        assert not known
        assert "no keys yet" in said
        lonely.up()
        await _until_admitted(made, lonely)
        assert made.state()[0][1]


async def test_an_issuer_speaks_for_itself_alone(store: SqlStore, entra: EntraServer) -> None:
    """A discovery document that names another issuer is not believed."""
    for changes in (
        {"tenants": ("common",)},
        {"tenants": (), "issuer": f"{entra.authority}/{TENANT}"},
        {"tenants": (), "issuer": f"{entra.oidc_issuer}/nothing-here"},
    ):
        async with gate(store, entra, QUICK, **changes) as made:
            for token in (entra.issue(), entra.issue(version=1), entra.issue_oidc()):
                with pytest.raises(SignInUnavailable):
                    await made.admit(Role.READ, bearer(token))


async def test_an_issuer_is_believed_over_trusted_tls_alone(
    store: SqlStore, entra: EntraServer
) -> None:
    for changes in ({"ca_bundle": ""}, {"authority": entra.authority.replace("https", "http")}):
        async with gate(store, entra, QUICK, **changes) as made:
            with pytest.raises(SignInUnavailable):
                await made.admit(Role.READ, bearer(entra.issue()))


async def test_what_is_demanded_changes_while_the_gate_stands(
    store: SqlStore, entra: EntraServer
) -> None:
    async with gate(store, entra) as made:
        theirs = bearer(entra.issue({"tid": OTHER_TENANT}))
        ours = bearer(entra.issue())
        await made.admit(Role.READ, ours)
        await refused(made, theirs)
        await made.use(SignIn(trusted=trusted(entra, tenants=(OTHER_TENANT,))))
        await made.admit(Role.READ, theirs)
        await refused(made, ours)
        with pytest.raises(ConfigurationError, match="CA_BUNDLE"):
            await made.use(SignIn(trusted=trusted(entra, ca_bundle="/nowhere.pem")))
        await made.admit(Role.READ, theirs)
        await made.use(SignIn())
        assert made.open
        assert (await made.admit(Role.READ, [])).how == "open"


def test_a_verified_token_is_remembered_for_a_while() -> None:
    now = [1000.0]
    kept = Verified(most=3, clock=lambda: now[0])
    caller = Caller("o", "t", "n", READ_WRITE, "bearer")
    kept.keep(b"long", caller, 10_000)
    kept.keep(b"short", caller, 1010)
    kept.keep(b"past", caller, 999)
    assert kept.get(b"long") is caller
    assert kept.get(b"other") is None
    assert kept.get(b"past") is None
    now[0] += 10
    assert kept.get(b"short") is None
    assert kept.get(b"long") is caller
    now[0] += LONGEST_S
    assert kept.get(b"long") is None
    for number in range(10):
        kept.keep(b"%d" % number, caller, 10_000)
    assert len(kept) == 3
    assert kept.get(b"9") is caller


async def _until_admitted(made: Gate, entra: EntraServer) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            await made.admit(Role.READ, bearer(entra.issue()))
            return
        except (SignInUnavailable, NotSignedIn):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)


async def _until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)

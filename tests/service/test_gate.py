"""The gate, against an issuer over TLS: who is let in, who is not, and what each may do."""

from __future__ import annotations

import base64
import time
from typing import Any

import pytest

from tesazure.callers import Caller, Restrictions, Role, Visibility, visibility_of, with_implied
from tesazure.errors import ConfigurationError, NotAllowed, NotSignedIn
from tesazure.signin.gate import Gate, SignIn
from tesazure.signin.ledger import Ledger
from tesazure.signin.tokens import TokenSource
from tesazure.signin.verified import LONGEST_S, Verified
from tesazure.store.sql_store import SqlStore
from tests.service.forged_tokens import forgeries
from tests.service.gates import QUICK, bearer, entra, gate, refused, store, trusted
from tests.services.entra_server import (
    AUDIENCE,
    CLIENT,
    OTHER_TENANT,
    OTHER_USER,
    TENANT,
    USER,
    EntraServer,
)

__all__ = ["entra", "store"]

ALL_ROLES = frozenset(Role)
READ_WRITE = frozenset({Role.READ, Role.WRITE})


def basic(user: str, password: str) -> list[tuple[bytes, bytes]]:
    pair = base64.b64encode(f"{user}:{password}".encode())
    return [(b"authorization", b"Basic " + pair)]


async def test_every_forged_or_broken_token_is_refused(store: SqlStore, entra: EntraServer) -> None:
    tokens = forgeries(entra)
    assert len(tokens) > 80
    async with gate(store, entra, QUICK) as made:
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
        ({"scp": None}, set()),
        ({"scp": None, "roles": ["Tasks.Write"]}, READ_WRITE),
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


async def test_roles_may_be_required_of_users(store: SqlStore, entra: EntraServer) -> None:
    """With less than `Tasks.Read`, nobody may do more than with it."""
    more = {"issuer": entra.oidc_issuer, "roles_required": True}
    async with gate(store, entra, **more) as made:
        for token in (
            entra.issue(),
            entra.issue(version=1),
            entra.issue({"scp": "Tasks.Write"}),
            entra.issue({"roles": []}),
            entra.issue_oidc({"scope": "openid"}),
            entra.issue_app_only(),
        ):
            with pytest.raises(NotAllowed) as caught:
                await made.admit(Role.READ, bearer(token))
            assert str(caught.value) == (
                "this needs the role Tasks.Read, which the caller does not have (nor any other of"
                " Tasks.Read, Tasks.Write, Tasks.Admin); grant the app role Tasks.Read to the"
                " application or user where they sign in"
            )
        caller = await made.admit(Role.READ, bearer(entra.issue({"roles": ["Tasks.Read"]})))
        assert caller.roles == {Role.READ}


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"scope": "Tasks.Write"},
        {"scp": ["Tasks.Admin"]},
        {"scope": "openid", "client_id": "robot", "sub": "robot"},
        {"scope": "openid", "cid": "robot", "sub": "robot"},
        {"scope": "openid", "azp": "robot", "sub": "robot@clients"},
        {"scope": "openid", "azp": "robot", "gty": "client-credentials"},
        {"scope": "openid profile", "preferred_username": "service-account-robot"},
    ],
)
async def test_another_providers_application_needs_a_role(
    store: SqlStore, entra: EntraServer, claims: dict[str, Any]
) -> None:
    async with gate(store, entra, tenants=(), issuer=entra.oidc_issuer) as made:
        with pytest.raises(NotAllowed, match=r"grant the app role .* with the scope openid counts"):
            await made.admit(Role.READ, bearer(entra.issue_oidc(claims)))
        both = {"scope": "openid", "roles": ["Tasks.Write"]}
        assert (await made.admit(Role.WRITE, bearer(entra.issue_oidc(claims | both)))).roles
        user = claims | {"scope": "openid", "sub": "ann", "gty": None, "preferred_username": "ann"}
        assert (await made.admit(Role.WRITE, bearer(entra.issue_oidc(user)))).name == "ann"


async def test_an_application_needs_to_be_granted_a_role(
    store: SqlStore, entra: EntraServer
) -> None:
    async with gate(store, entra) as made:
        with pytest.raises(NotAllowed, match="grant the app role") as caught:
            await made.admit(Role.READ, bearer(entra.issue_app_only()))
        assert str(caught.value).endswith(", or let the application call in a user's name")
        [challenge] = caught.value.challenges
        assert 'error="insufficient_scope"' in challenge
        assert 'scope="Tasks.Read"' in challenge
        token = entra.issue_app_only({"roles": ["Tasks.Write"]})
        caller = await made.admit(Role.WRITE, bearer(token))
        assert (caller.name, caller.roles) == (CLIENT, READ_WRITE)


async def test_several_tenants_and_another_provider(store: SqlStore, entra: EntraServer) -> None:
    more = {"tenants": (TENANT, OTHER_TENANT), "issuer": entra.oidc_issuer}
    async with gate(store, entra, QUICK, **more) as made:
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

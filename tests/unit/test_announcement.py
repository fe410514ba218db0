"""What a server says about signing in, for each kind of sign-in."""

from __future__ import annotations

import pytest

from tesazure.api.sign_in import announcement
from tesazure.signin.bearer import Trusted
from tesazure.signin.gate import SignIn

AUTHORITY = "https://login.example"
TENANT = "11111111-2222-3333-4444-555555555555"
APPLICATION = "cccccccc-7777-8888-9999-dddddddddddd"
KEPT = "openid profile offline_access"


def entra(*tenants: str, audience: str = APPLICATION) -> Trusted:
    return Trusted(authority=AUTHORITY, tenants=tenants, audiences=(audience, "api://other"))


@pytest.mark.parametrize(
    ("sign_in", "said"),
    [
        (SignIn(), {"required": False, "api_tokens": False}),
        (SignIn(api_tokens=True), {"required": True, "api_tokens": True}),
        (
            SignIn(trusted=entra(TENANT)),
            {
                "required": True,
                "api_tokens": False,
                "issuer": f"{AUTHORITY}/{TENANT}/v2.0",
                "client_id": APPLICATION,
                "scope": f"{APPLICATION}/.default {KEPT}",
            },
        ),
        (
            SignIn(
                trusted=entra(TENANT, "other", audience=f"api://{APPLICATION}"), client_id="own"
            ),
            {
                "required": True,
                "api_tokens": False,
                "issuer": f"{AUTHORITY}/organizations/v2.0",
                "client_id": "own",
                "scope": f"api://{APPLICATION}/.default {KEPT}",
            },
        ),
        (
            SignIn(trusted=entra(TENANT, audience=f"api://{APPLICATION}"), api_tokens=True),
            {
                "required": True,
                "api_tokens": True,
                "issuer": f"{AUTHORITY}/{TENANT}/v2.0",
                "client_id": APPLICATION,
                "scope": f"api://{APPLICATION}/.default {KEPT}",
            },
        ),
        (
            SignIn(trusted=Trusted(issuer="https://id.example/lab", audiences=("tes",))),
            {"required": True, "api_tokens": False, "issuer": "https://id.example/lab"},
        ),
        (
            SignIn(
                trusted=Trusted(issuer="https://id.example/lab", audiences=("tes",)),
                client_id="tes-cli",
            ),
            {
                "required": True,
                "api_tokens": False,
                "issuer": "https://id.example/lab",
                "client_id": "tes-cli",
                "scope": KEPT,
            },
        ),
    ],
)
def test_what_is_said(sign_in: SignIn, said: dict[str, object]) -> None:
    assert announcement(sign_in) == said

"""Who may provision where nobody signs in, by the connection and its headers."""

from __future__ import annotations

import pytest
from starlette.requests import Request

from tesazure.api.provision_access import demand
from tesazure.errors import NotAllowed

TOKEN = "a-token-for-provisioning"


def request(client: str | None, **headers: str) -> Request:
    """One from an address, to localhost."""
    sent = {"host": "localhost:8000", **{n.replace("_", "-"): v for n, v in headers.items()}}
    return Request(
        {
            "type": "http",
            "http_version": "1.1",
            "client": None if client is None else (client, 4711),
            "headers": [(n.encode(), v.encode("latin-1")) for n, v in sent.items()],
        }
    )


@pytest.mark.parametrize("client", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_loopback_is_let_in(client: str) -> None:
    demand(request(client), "")
    demand(request(client, origin="http://localhost:8000"), TOKEN)


@pytest.mark.parametrize(
    "client", [None, "172.17.0.1", "10.0.0.4", "::ffff:10.0.0.4", "fe80::1", "2001:db8::7", "", "x"]
)
def test_others_need_the_token(client: str | None) -> None:
    for token in ("", TOKEN):
        with pytest.raises(NotAllowed, match=r"comes from another machine; .*PROVISION_TOKEN"):
            demand(request(client), token)
    demand(request(client, x_provision_token=TOKEN), TOKEN)


@pytest.mark.parametrize("given", ["", "x", TOKEN[:-1], TOKEN + "x", "\xe9" * 20])
def test_a_wrong_token_is_refused_also_from_here(given: str) -> None:
    for token in ("", TOKEN):
        with pytest.raises(NotAllowed, match="is not the setting"):
            demand(request("127.0.0.1", x_provision_token=given), token)


@pytest.mark.parametrize(
    "headers",
    [
        {"x_forwarded_for": ""},
        {"forwarded": "for=_hidden"},
        {"via": "1.1 x"},
        {"x_real_ip": "127.0.0.1"},
        {"x_forwarded_host": "localhost"},
        {"host": "localhost.attacker.example"},
        {"host": ""},
        {"host": "[::1"},
        {"origin": "null"},
        {"origin": "http://localhost:8001"},
        {"origin": "https://attacker.example"},
        {"origin": "http://[::1"},
    ],
)
def test_what_a_proxy_or_a_web_page_sends_is_not_from_here(headers: dict[str, str]) -> None:
    with pytest.raises(NotAllowed):
        demand(request("127.0.0.1", **headers), TOKEN)


def test_a_proxy_that_says_nothing_is_known_by_its_http() -> None:
    asked = request("127.0.0.1")
    asked.scope["http_version"] = "1.0"
    with pytest.raises(NotAllowed, match=r"HTTP/1\.0"):
        demand(asked, TOKEN)


def test_this_machine_does_not_count_where_tasks_have_its_network() -> None:
    with pytest.raises(NotAllowed, match=r"tasks in the sandbox .*PROVISION_TOKEN"):
        demand(request("127.0.0.1"), TOKEN, shares_loopback=True)
    demand(request("127.0.0.1", x_provision_token=TOKEN), TOKEN, shares_loopback=True)

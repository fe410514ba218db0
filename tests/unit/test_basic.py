"""HTTP Basic headers, well formed and not."""

from __future__ import annotations

import base64

import pytest

from tesazure.signin import basic


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("header", "pair"),
    [
        (f"Basic {encoded('ann:secret')}", ("ann", "secret")),
        (f"basic  {encoded('ann:se:cr:et')} ", ("ann", "se:cr:et")),
        (f"BASIC {encoded(':x')}", ("", "x")),
        (f"Basic {encoded('änn:ü')}", ("änn", "ü")),
        (f"Basic {encoded('ann')}", None),
        (f"Bearer {encoded('ann:secret')}", None),
        ("Basic", None),
        ("Basic ", None),
        ("Basic not/base64!", None),
        ("Basic YW5uOnNlY3JldA", None),
        (f"Basic {base64.b64encode(bytes([0xFF, 0x3A])).decode()}", None),
        (f"Basic {encoded('ann:' + 'x' * 2000)}", None),
        ("Basic \xa0\xff", None),
    ],
)
def test_user_and_password_are_found(header: str, pair: tuple[str, str] | None) -> None:
    assert basic.parse(header) == pair

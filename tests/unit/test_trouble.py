"""How long what failed is left alone."""

from __future__ import annotations

import pytest

from tesazure.scheduler.trouble import pause_after


def test_pauses_double_up_to_the_longest() -> None:
    assert [pause_after(n, 0.5, 60.0) for n in range(1, 10)] == [
        *(0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
        *(60.0, 60.0),
    ]


@pytest.mark.parametrize("failures", [1024, 1025, 10_000_000])
def test_the_longest_outage_has_a_pause(failures: int) -> None:
    assert pause_after(failures, 0.2, 2.0) == 2.0
    assert pause_after(failures, 0.5, 60.0) == 60.0

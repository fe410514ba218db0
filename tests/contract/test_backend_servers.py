"""What every Backend promises of streams, and to servers that come and go. As test_backend.py."""

from __future__ import annotations

import pytest

from tesazure.backends.base import Backend
from tesazure.errors import NotFound
from tesazure.lifecycle import Phase
from tests.contract.backend_site import (
    DEADLINE_S,
    MARKS,
    Site,
    ended,
    look,
    runs,
    seconds,
    sleeper,
    until,
)

# -- streams ------------------------------------------------------------------------------------


async def test_streams_can_be_read_while_they_grow(backend: Backend, site: Site) -> None:
    script = (
        f"printf 0123456789; printf warn >&2; until [ -e {MARKS}/go ]; do sleep 0.05; done; echo"
    )
    handle = await site.submit(backend, script, "s")

    async def written() -> bool:
        try:
            return (await backend.read_stream(handle, 0, "stdout", 0, 99)).size == 10
        except NotFound:
            return False

    await until(written)
    whole = await backend.read_stream(handle, 0, "stdout", 0, 100)
    assert (whole.data, whole.offset, whole.ended) == (b"0123456789", 0, False)
    for offset, limit, data, start in [
        (4, 3, b"456", 4),
        (-3, 100, b"789", 7),
        (-100, 2, b"01", 0),
        (10, 5, b"", 10),
        (99, 5, b"", 10),
    ]:
        part = await backend.read_stream(handle, 0, "stdout", offset, limit)
        assert (part.data, part.offset, part.size) == (data, start, 10)
    assert (await backend.read_stream(handle, 0, "stderr", 0, 100)).data == b"warn"
    (site.marks / "go").touch()
    await ended(backend, handle)
    last = await backend.read_stream(handle, 0, "stdout", 10, 100)
    assert (last.data, last.size, last.ended) == (b"\n", 11, True)
    with pytest.raises(NotFound):
        await backend.read_stream(handle, 1, "stdout", 0, 100)


# -- servers that come and go -------------------------------------------------------------------


async def test_another_server_adopts_what_one_left(site: Site) -> None:
    one = await site.server("one")
    handle = await site.submit(one, sleeper("adopted"), "adopted")
    await until(lambda: bool(site.mark("adopted")))
    await one.stop()
    assert runs(seconds("adopted"))
    for name in ("one", "two"):
        server = await site.server(name)
        assert (await look(server, handle)).phase is Phase.RUNNING
        if name == "one":
            await server.stop()
    server = await site.server("one")
    await server.cancel(handle)
    seen = await ended(server, handle)
    assert seen.report.ended is not None
    await server.release(handle)
    assert not runs(seconds("adopted"))


async def test_runners_that_outlived_a_server_wake_the_next_one(site: Site) -> None:
    one = await site.server("one")
    script = f"until [ -e {MARKS}/go ]; do sleep 0.05; done"
    handle = await site.submit(one, script, "k")
    await one.stop()
    again = await site.server("one")
    assert (await look(again, handle)).phase in (Phase.PENDING, Phase.RUNNING)
    while await again.changed(0.2):
        await look(again, handle)
    (site.marks / "go").touch()
    assert await again.changed(DEADLINE_S)
    assert (await ended(again, handle)).report.ended

"""What every Backend promises of streams, and to servers that come and go. As test_backend.py."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import msgspec
import pytest

from tesazure.backends.local import LocalBackend
from tesazure.errors import NotFound
from tesazure.lifecycle import Phase
from tesazure.model import State
from tesazure.runner.config import NodeConfig
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


async def test_streams_can_be_read_while_they_grow(backend: LocalBackend, site: Site) -> None:
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
    assert (await look(again, handle)).phase is Phase.RUNNING
    while await again.changed(0.2):
        await look(again, handle)
    (site.marks / "go").touch()
    assert await again.changed(DEADLINE_S)
    assert (await ended(again, handle)).report.ended


async def test_a_dead_spawner_is_replaced(backend: LocalBackend, site: Site) -> None:
    pid = backend._spawner.pid
    assert pid is not None
    stays = await site.submit(backend, sleeper("stays"), "stays")
    os.kill(pid, signal.SIGKILL)
    await until(lambda: backend._spawner.pid is None)
    handle = await site.submit(backend, "true", "k")
    seen = await ended(backend, handle)
    assert seen.report.ended is not None
    assert seen.report.ended.state is State.COMPLETE
    assert (await look(backend, stays)).phase in (Phase.RUNNING, Phase.PENDING)


async def test_tasks_are_kept_out_of_all_servers_data(site: Site) -> None:
    one, two = await site.server("one"), await site.server("two")
    handle = await site.submit(two, "true", "k")
    node = msgspec.json.decode((Path(handle["dir"]) / "node.json").read_bytes(), type=NodeConfig)
    assert set(node.hidden) == {str(site.directory / name) for name in ("one", "two")}
    assert set(one.data_dirs()) == set(two.data_dirs()) == set(node.hidden)
    await ended(two, handle)


async def test_a_shared_directory_that_others_can_enter_is_warned_of(site: Site) -> None:
    """A task of root can leave a setuid program there."""
    open_to_all = (await site.server("one")).capabilities.warnings
    assert any(str(site.marks) in warning and "setuid" in warning for warning in open_to_all)
    site.directory.chmod(0o700)
    closed = (await site.server("two")).capabilities.warnings
    assert not any("setuid" in warning for warning in closed)

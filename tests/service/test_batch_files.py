"""The attempts' blobs in a real Azurite, as the Batch backend writes, reads and deletes them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest

from tesazure.access import Access, RegistryLogin
from tesazure.backends.azure_batch.config import BatchConfig
from tesazure.backends.azure_batch.files import BEGUN, CHUNK, AttemptFiles, StreamPart
from tesazure.backends.azure_batch.names import attempt_blob, report_blob, stream_blob
from tesazure.errors import BackendUnavailable, ConfigurationError, NotFound
from tesazure.runner.node import NodeAttempt
from tests.conftest import shared
from tests.service.node_bench import bundle_of, config_of, identity_of, plan_of
from tests.services import base
from tests.services.azurite import Azurite, AzuriteTls
from tests.services.entra_server import EntraServer

VERSION = {"x-ms-version": "2021-12-02"}
APPEND = {"x-ms-blob-type": "AppendBlob"}


@pytest.fixture
def azurite() -> Azurite:
    return shared(Azurite)


@pytest.fixture
def config(azurite: Azurite) -> BatchConfig:
    return config_of(azurite)


@pytest.fixture
async def files(config: BatchConfig) -> AsyncIterator[AttemptFiles]:
    files = AttemptFiles(config)
    await files.start()
    yield files
    await files.stop()


async def attempt_of(files: AttemptFiles, key: str, executors: int = 1) -> NodeAttempt:
    access = Access(registry=RegistryLogin("registry.example", "me", "the-password"))
    channel = await files.channel(key, executors, 3600)
    return NodeAttempt(key=key, plan=plan_of("true"), access=access, channel=channel)


async def put(files: AttemptFiles, attempt: NodeAttempt, job: str = "job-1") -> str:
    """The URL at which a node finds what was put."""
    url = await files.put(attempt, job, 600)
    assert url is not None
    return url


async def send(method: str, url: str, **options: object) -> httpx.Response:
    """A request of a node, with a URL that it was given."""
    headers = {**VERSION, **options.pop("headers", {})}  # type: ignore[dict-item]
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.request(method, url, headers=headers, **options)  # type: ignore[arg-type]


async def write(url: str, *blocks: bytes) -> None:
    """Make an append blob of these blocks."""
    assert (await send("PUT", url, headers=APPEND)).status_code == 201
    for block in blocks:
        assert (await send("PUT", f"{url}&comp=appendblock", content=block)).status_code == 201


def elsewhere(url: str, before: str, after: str) -> str:
    """The same signature for another blob."""
    assert before in url
    return url.replace(before, after)


async def test_what_is_put_is_what_the_node_reads(files: AttemptFiles) -> None:
    attempt = await attempt_of(files, "k", executors=2)
    answer = await send("GET", await put(files, attempt))
    assert msgspec.json.decode(answer.content, type=NodeAttempt) == attempt
    assert await files.job_of("k") == "job-1"
    assert await files.job_of("other") is None
    assert not await files.is_released("k")
    assert not await files.is_released("other")
    assert "sig=" not in repr(attempt) + repr(attempt.channel)
    assert "password" not in repr(attempt)


async def test_newer_secrets_replace_older_ones(files: AttemptFiles) -> None:
    attempt = await attempt_of(files, "k")
    await files.put(attempt, "job-1", 600)
    newer = msgspec.structs.replace(attempt, facts={"vm_size": "other"})
    answer = await send("GET", await put(files, newer, "job-2"))
    assert msgspec.json.decode(answer.content, type=NodeAttempt) == newer
    assert await files.job_of("k") == "job-2"


async def test_a_released_attempt_stays_so(files: AttemptFiles) -> None:
    attempt = await attempt_of(files, "k")
    url = await put(files, attempt)
    await write(attempt.channel.report, b"a report\n")
    await write(attempt.channel.streams["0.stdout"], b"printed")
    await files.bury("k")
    await files.bury("k")
    assert await files.is_released("k")
    assert await files.job_of("k") == "job-1"
    assert await files.reports() == {}
    assert (await files.read_stream("k", 0, "stdout", 0, 100)).data == b"printed"

    assert await files.put(attempt, "job-2", 600) is None
    assert (await send("GET", url)).content == b""
    assert await files.job_of("k") == "job-1"


async def test_what_began_leaves_no_secret_behind(files: AttemptFiles) -> None:
    attempt = await attempt_of(files, "k")
    await put(files, attempt, "job-1")
    for _ in range(2):
        await files.strip("k")
        answer = await send("GET", attempt.channel.attempt)
        assert answer.content == BEGUN
    assert (await files.job_of("k"), await files.is_released("k")) == ("job-1", False)
    assert await files.held(time.time() + 10) == {"k": "job-1"}
    await files.bury("k")
    await files.strip("k")
    assert await files.is_released("k")
    assert await files.job_of("k") == "job-1"


async def test_bury_and_forget_succeed_when_all_is_gone(files: AttemptFiles) -> None:
    await files.bury("k")
    await files.forget("k")
    assert await files.job_of("k") is None
    assert await files.held(time.time() + 60) == {}


async def test_a_fence_keeps_out_what_was_not_put(files: AttemptFiles) -> None:
    assert await files.fence("k")
    assert not await files.fence("k")
    attempt = await attempt_of(files, "k")
    assert await files.put(attempt, "job", 600) is None
    assert (await send("GET", attempt.channel.attempt)).content == b""
    await files.put(await attempt_of(files, "other"), "job", 600)
    assert not await files.fence("other")
    assert not await files.is_released("other")


async def test_nobody_wins_against_a_release(files: AttemptFiles) -> None:
    attempt = await attempt_of(files, "k")
    await files.put(attempt, "job", 600)
    for _ in range(5):
        puts = [files.put(attempt, "job", 600) for _ in range(4)]
        await asyncio.gather(*puts, files.bury("k"), return_exceptions=True)
        await files.bury("k")
        assert await files.is_released("k")


async def test_all_that_is_forgotten_is_gone(files: AttemptFiles, azurite: Azurite) -> None:
    for key in ("k", "k-2"):
        attempt = await attempt_of(files, key, executors=2)
        await files.put(attempt, "job", 600)
        await write(attempt.channel.report, b"a report\n")
        for url in attempt.channel.streams.values():
            await write(url, b"printed")
    await files.forget("k")
    assert await files.held(time.time() + 60) == {"k-2": "job"}
    assert await files.reports() == {"k-2": 9}
    with azurite.client() as client:
        container = client.get_container_client(files._config.container)
        names = list(container.list_blob_names(name_starts_with=files._installation))
    assert len(names) == 6
    assert all("/k-2" in name for name in names)


async def test_what_is_held_has_an_age(files: AttemptFiles) -> None:
    before = time.time()
    await files.put(await attempt_of(files, "one"), "job-1", 600)
    await files.put(await attempt_of(files, "two"), "job-2", 600)
    await files.bury("two")
    await files.fence("three")
    assert await files.held(before - 1) == {}
    late = {"one": "job-1", "two": "job-2", "three": ""}
    assert await files.held(time.time() + 1) == late


async def test_what_a_node_wrote_too_late_is_held(files: AttemptFiles) -> None:
    attempt = await attempt_of(files, "k")
    await write(attempt.channel.streams["0.stderr"], b"late")
    assert await files.held(time.time() - 60) == {}
    assert await files.held(time.time() + 60) == {"k": ""}
    await write(attempt.channel.report)
    assert await files.held(time.time() + 60) == {"k": ""}
    await files.forget("k")
    assert await files.held(time.time() + 60) == {}


async def test_reports_are_read_as_they_grow(files: AttemptFiles) -> None:
    url = (await files.channel("k", 1, 60)).report
    assert await files.reports() == {}
    assert await files.read_report("k", 0) == b""
    await write(url)
    assert await files.reports() == {"k": 0}
    assert await files.read_report("k", 0) == b""
    await send("PUT", f"{url}&comp=appendblock", content=b"one\n")
    assert await files.read_report("k", 0) == b"one\n"
    assert await files.read_report("k", 4) == b""
    await send("PUT", f"{url}&comp=appendblock", content=b"two\n")
    assert await files.reports() == {"k": 8}
    assert await files.read_report("k", 4) == b"two\n"
    assert await files.read_report("k", 99) == b""


async def test_a_long_report_is_read_in_chunks(files: AttemptFiles) -> None:
    block = bytes(3 * 2**20)
    await write((await files.channel("k", 1, 60)).report, *[block] * 4, b"end")
    first = await files.read_report("k", 0)
    assert len(first) == CHUNK
    assert await files.read_report("k", CHUNK) == bytes(4 * len(block) - CHUNK) + b"end"


@pytest.mark.parametrize(
    ("offset", "limit", "expected"),
    [
        (0, 4, StreamPart(b"0123", 0, 10)),
        (0, 100, StreamPart(b"0123456789", 0, 10)),
        (7, 100, StreamPart(b"789", 7, 10)),
        (10, 5, StreamPart(b"", 10, 10)),
        (99, 5, StreamPart(b"", 10, 10)),
        (-3, 100, StreamPart(b"789", 7, 10)),
        (-3, 2, StreamPart(b"78", 7, 10)),
        (-99, 2, StreamPart(b"01", 0, 10)),
        (3, 0, StreamPart(b"", 3, 10)),
    ],
)
async def test_streams_are_read_from_anywhere(
    files: AttemptFiles, offset: int, limit: int, expected: StreamPart
) -> None:
    channel = await files.channel("k", 1, 60)
    await write(channel.streams["0.stdout"], b"01234", b"56789")
    assert await files.read_stream("k", 0, "stdout", offset, limit) == expected


async def test_an_empty_stream_is_one(files: AttemptFiles) -> None:
    channel = await files.channel("k", 1, 60)
    with pytest.raises(NotFound, match="executor 0 has no stderr"):
        await files.read_stream("k", 0, "stderr", 0, 10)
    with pytest.raises(NotFound):
        await files.read_stream("k", 0, "stderr", -5, 10)
    await write(channel.streams["0.stderr"])
    for offset in (0, 5, -5):
        assert await files.read_stream("k", 0, "stderr", offset, 10) == StreamPart(b"", 0, 0)


async def test_nodes_may_do_what_they_must_and_no_more(files: AttemptFiles) -> None:
    attempt = await attempt_of(files, "k")
    url = await put(files, attempt)
    channel, installation = attempt.channel, files._installation
    report, stream = channel.report, channel.streams["0.stdout"]
    await write(report, b"x")
    await write(stream, b"x")
    for wrong in (
        await send("PUT", url, headers={"x-ms-blob-type": "BlockBlob"}, content=b"mine"),
        await send("DELETE", url),
        await send("PUT", f"{url}&comp=appendblock", content=b"x"),
        await send("PUT", report, headers=APPEND),
        await send("DELETE", report),
        await send("GET", stream),
        await send("PUT", stream, headers=APPEND),
        await send("DELETE", stream),
        await send("GET", channel.attempt.replace("/attempts/k?", "/attempts/other?")),
        await send("GET", elsewhere(url, "/attempts/k", "/attempts/other")),
        await send("PUT", elsewhere(stream, "0.stdout", "1.stdout"), headers=APPEND),
        await send("PUT", elsewhere(report, "/reports/k", "/reports/other"), headers=APPEND),
    ):
        assert wrong.status_code == 403, wrong.request
    assert attempt_blob(installation, "k") in url
    assert report_blob(installation, "k") in report
    assert stream_blob(installation, "k", 0, "stdout") in stream
    # Nor is anything to be had without a signature: the container is private.
    assert (await send("GET", url.partition("?")[0])).status_code in (403, 404)


async def test_two_installations_do_not_see_each_other(
    files: AttemptFiles, azurite: Azurite
) -> None:
    other = AttemptFiles(config_of(azurite))
    await other.start()
    await files.put(await attempt_of(files, "k"), "job", 600)
    assert await other.held(time.time() + 60) == {}
    assert await other.job_of("k") is None
    await other.forget("k")
    assert await files.job_of("k") == "job"
    await other.stop()


# -- trouble --------------------------------------------------------------------------------------


async def test_the_container_is_made_and_made_again(azurite: Azurite) -> None:
    config = config_of(azurite)
    config = msgspec.structs.replace(config, container=f"c-{config.installation}")
    files = AttemptFiles(config)
    await files.start()
    await files.check()
    with azurite.client() as client:
        client.delete_container(config.container)
        with pytest.raises(BackendUnavailable, match="ContainerNotFound"):
            await files.check()
        await files.put(await attempt_of(files, "k"), "job", 600)
        await files.check()
        client.delete_container(config.container)
    await files.stop()


async def test_storage_that_refuses_us_is_a_wrong_setting(azurite: Azurite) -> None:
    wrong = AttemptFiles(config_of(azurite, storage_key="d3Jvbmc="))
    with pytest.raises(ConfigurationError, match="check the storage account's key") as refused:
        await wrong.start()
    assert "d3Jvbmc" not in str(refused.value)
    assert "sig=" not in str(refused.value)
    with pytest.raises(BackendUnavailable, match=r"the attempts' blobs: .*403"):
        await wrong.check()
    await wrong.stop()

    nobody = AttemptFiles(config_of(azurite, storage_key=""))
    with pytest.raises(ConfigurationError, match="neither the account's key nor an identity"):
        await nobody.start()
    await nobody.stop()

    bundle = AttemptFiles(config_of(azurite, ca_bundle="/nowhere/ca.pem"))
    with pytest.raises(ConfigurationError, match=r"ca\.pem: cannot be read"):
        await bundle.start()
    await bundle.stop()


async def test_storage_that_is_away_changes_nothing(azurite: Azurite) -> None:
    with base.nobodys_port() as port:
        url = f"http://127.0.0.1:{port}/{azurite.account}"
        files = AttemptFiles(config_of(azurite, storage_url=url))
        with pytest.raises(BackendUnavailable, match="Connection refused"):
            await files.start()
        with pytest.raises(BackendUnavailable, match="Connection refused"):
            await files.reports()
        await files.stop()
        await files.stop()


async def test_an_identity_needs_no_key(tmp_path: Path) -> None:
    azurite = shared(AzuriteTls)
    with EntraServer(tmp_path / "issuer") as issuer:
        bundle = bundle_of(tmp_path, azurite.ca, issuer)
        identity = msgspec.structs.replace(identity_of(issuer), ca_bundle=str(bundle))
        config = config_of(azurite, storage_key="", identity=identity, ca_bundle=str(bundle))
        config = msgspec.structs.replace(config, container=f"c-{config.installation}")
        files = AttemptFiles(config)
        await files.start()
        attempt = await attempt_of(files, "k")
        url = await put(files, attempt, "job")
        assert "skoid=" in url
        assert "sp=r&" in url
        assert await files.held(time.time() + 60) == {"k": "job"}
        await files.forget("k")
        assert issuer.issued <= 3  # whatever was asked for meanwhile
        await files.stop()


async def test_many_at_once(files: AttemptFiles) -> None:
    attempt = await attempt_of(files, "k")

    async def all_of_it(number: int) -> None:
        key = f"k{number}"
        await files.put(msgspec.structs.replace(attempt, key=key), "job", 600)
        await files.bury(key)
        await files.forget(key)

    await asyncio.gather(*map(all_of_it, range(100)))
    assert await files.held(time.time() + 60) == {}

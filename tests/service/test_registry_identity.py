"""Images of a private registry, pulled by the node's managed identity."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tesazure.access import Endpoints, RegistryIdentity, RegistryLogin
from tesazure.errors import EngineUnavailable, ImageUnavailable
from tesazure.model import Executor, State
from tesazure.runner import registry_login
from tesazure.runner.registry_login import USER, login_by
from tests.service.runner_bench import RunnerBench, ended, folded, lines, wait_for_exit
from tests.services import base, images
from tests.services.azure_registry import AzureRegistry
from tests.services.docker_engine import DockerEngine
from tests.services.metadata_service import POOL_IDENTITY, MetadataService

# All registries have one layer, and an engine that has it from another test pulls no more.
pytestmark = pytest.mark.xdist_group("registry")

AT_ONCE = (0.0,) * len(registry_login.PAUSES_S)
"""As many tries as on a node, which waits between them."""


@pytest.fixture
def metadata() -> Iterator[MetadataService]:
    with MetadataService() as service:
        yield service


@pytest.fixture
def registry(metadata: MetadataService, short_dir: Path) -> Iterator[AzureRegistry]:
    layer = images.root_filesystem(images.RECIPES["busybox"])
    with AzureRegistry(layer, short_dir / "registry", metadata) as registry:
        yield registry


@pytest.fixture
def identity(registry: AzureRegistry, metadata: MetadataService) -> RegistryIdentity:
    return RegistryIdentity(host=registry.host, id=POOL_IDENTITY, metadata=metadata.origin)


def login(identity: RegistryIdentity, registry: AzureRegistry) -> RegistryLogin:
    return login_by(identity, registry.ca_bundle, AT_ONCE)


def test_a_token_is_exchanged_for_a_login(
    identity: RegistryIdentity, registry: AzureRegistry, metadata: MetadataService
) -> None:
    found = login(identity, registry)
    assert (found.host, found.user) == (registry.host, USER)
    assert [found.password] == registry.tokens
    assert (metadata.asked, registry.asked) == (1, ["/oauth2/exchange"])


def test_a_node_without_the_identity_says_so(
    identity: RegistryIdentity, registry: AzureRegistry, metadata: MetadataService
) -> None:
    metadata.identity = POOL_IDENTITY.replace("puller", "another")
    with pytest.raises(ImageUnavailable, match=r"userAssignedIdentities/puller .*not found; check"):
        login(identity, registry)
    assert metadata.asked == len(AT_ONCE) + 1
    assert registry.asked == []


def test_a_node_that_is_given_its_identity_just_now_has_it_soon(
    identity: RegistryIdentity, registry: AzureRegistry, metadata: MetadataService
) -> None:
    metadata.troubles = [400, 400]
    assert login(identity, registry).password
    assert metadata.asked == 3


@pytest.mark.parametrize("status", [401, 403, 405])
def test_what_the_metadata_service_refuses_for_good_is_not_asked_again(
    identity: RegistryIdentity, registry: AzureRegistry, metadata: MetadataService, status: int
) -> None:
    metadata.troubles = [status]
    with pytest.raises(ImageUnavailable, match=rf"status {status}; check BATCH_POOL_IDENTITY_ID"):
        login(identity, registry)
    assert metadata.asked == 1


def test_the_last_answer_of_the_metadata_service_counts(
    identity: RegistryIdentity, registry: AzureRegistry, metadata: MetadataService
) -> None:
    metadata.troubles = [*(400 for _ in AT_ONCE), None]
    with pytest.raises(EngineUnavailable, match="it does not answer"):
        login(identity, registry)
    metadata.troubles = [*(500 for _ in AT_ONCE), 400]
    with pytest.raises(ImageUnavailable, match="Identity not found"):
        login(identity, registry)


def test_an_identity_that_the_registry_does_not_know_says_so(
    identity: RegistryIdentity, registry: AzureRegistry, metadata: MetadataService
) -> None:
    registry.pullers.clear()
    with pytest.raises(ImageUnavailable, match=r"status 401\): give it the role AcrPull") as caught:
        login(identity, registry)
    assert not any(token in str(caught.value) for token in metadata.tokens)


@pytest.mark.parametrize(
    ("status", "words"), [(403, "its firewall"), (404, "is an Azure Container Registry")]
)
def test_what_a_registry_refuses_for_other_reasons_is_told_apart(
    identity: RegistryIdentity, registry: AzureRegistry, status: int, words: str
) -> None:
    registry.troubles = [(status, b"")]
    with pytest.raises(ImageUnavailable, match=rf"status {status}\): .*{words}"):
        login(identity, registry)


@pytest.mark.parametrize("trouble", [404, 410, 429, 500, 503, None])
def test_a_metadata_service_is_asked_again_after_what_passes(
    identity: RegistryIdentity,
    registry: AzureRegistry,
    metadata: MetadataService,
    trouble: int | None,
) -> None:
    metadata.troubles = [trouble]
    assert login(identity, registry).password
    assert metadata.asked == 2


def test_a_metadata_service_that_stays_away_is_the_nodes_failure(
    identity: RegistryIdentity, registry: AzureRegistry, metadata: MetadataService
) -> None:
    metadata.troubles = [500] * 20
    with pytest.raises(EngineUnavailable, match="gives no token for its login: status 500"):
        login(identity, registry)
    assert metadata.asked == len(AT_ONCE) + 1


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"refresh_token": 7}'])
def test_an_answer_that_is_no_token_is_said_and_not_shown(
    identity: RegistryIdentity, registry: AzureRegistry, body: bytes
) -> None:
    registry.troubles = [(200, body)]
    with pytest.raises(ImageUnavailable, match="answers a login with what is no token") as caught:
        login(identity, registry)
    assert "html" not in str(caught.value)


def test_a_registry_is_asked_again_after_what_passes(
    identity: RegistryIdentity, registry: AzureRegistry
) -> None:
    registry.troubles = [(503, b""), (429, b"")]
    assert login(identity, registry).password
    assert registry.asked == ["/oauth2/exchange"] * 3


def test_tokens_go_to_nobody_whose_certificate_is_not_trusted(
    identity: RegistryIdentity, registry: AzureRegistry
) -> None:
    with pytest.raises(ImageUnavailable, match="certificate"):
        login_by(identity, "")
    assert registry.asked == []


# -- in the pipeline


def task_of(image: str) -> Executor:
    return Executor(image=image, command=["echo", "pulled"])


@pytest.fixture
def on_docker(docker_engine: DockerEngine, identity: RegistryIdentity) -> dict[str, object]:
    return {"engine": "docker", "engine_host": docker_engine.url, "registry_identity": identity}


@pytest.mark.docker
def test_an_executors_image_is_pulled_by_the_nodes_identity(
    bench: RunnerBench,
    on_docker: dict[str, object],
    docker_engine: DockerEngine,
    registry: AzureRegistry,
    metadata: MetadataService,
) -> None:
    image = f"{registry.host}/some/tool:1"
    on_docker["endpoints"] = Endpoints(ca_bundle=registry.ca_bundle)
    found = bench.run(task_of(image), task_of(image), node=on_docker)
    assert ended(found).state is State.COMPLETE, lines(found)
    assert [log.stdout for log in found.log.logs] == ["pulled\n"] * 2
    assert f"pulled {image} in" in lines(found)
    assert metadata.asked == registry.asked.count("/oauth2/exchange") == 1
    kept = b"".join(path.read_bytes() for path in bench.last.path.rglob("*") if path.is_file())
    secrets = [*metadata.tokens, *registry.tokens]
    assert len(secrets) > 2
    assert not [secret for secret in secrets if secret.encode() in kept]
    # What is here needs no login.
    again = bench.run(task_of(image), node=on_docker)
    assert ended(again).state is State.COMPLETE
    assert metadata.asked == 1
    with contextlib.closing(docker.APIClient(docker_engine.url)) as client:
        client.remove_image(image, force=True)


@pytest.mark.docker
def test_other_registries_hear_nothing_of_the_identity(
    bench: RunnerBench, on_docker: dict[str, object], metadata: MetadataService
) -> None:
    with base.nobodys_port() as port:
        found = bench.run(task_of(f"127.0.0.1:{port}/some/tool:1"), node=on_docker)
    assert ended(found).state is State.SYSTEM_ERROR
    assert metadata.asked == 0


@pytest.mark.docker
def test_why_there_was_no_login_is_in_the_log(
    bench: RunnerBench,
    on_docker: dict[str, object],
    registry: AzureRegistry,
    metadata: MetadataService,
) -> None:
    registry.pullers.clear()
    on_docker["endpoints"] = Endpoints(ca_bundle=registry.ca_bundle)
    found = bench.run(task_of(f"{registry.host}/some/tool:1"), node=on_docker)
    assert ended(found).state is State.SYSTEM_ERROR
    assert not ended(found).retryable
    assert "give it the role AcrPull" in lines(found)
    assert not any(token in json.dumps(found.log.system_logs) for token in metadata.tokens)


@pytest.mark.docker
def test_a_pull_that_waits_for_its_login_can_be_stopped(
    bench: RunnerBench,
    on_docker: dict[str, object],
    metadata: MetadataService,
    registry: AzureRegistry,
) -> None:
    metadata.troubles = [500] * 100
    begun = bench.attempt(bench.plan(task_of(f"{registry.host}/some/tool:1")), **on_docker)
    pid = bench.begin(begun)
    deadline = time.monotonic() + 30
    while not metadata.asked:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(pid, signal.SIGTERM)
    wait_for_exit(pid)
    assert ended(folded(begun)).state is State.CANCELED

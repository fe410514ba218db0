"""Images that are here, that are pulled, and that cannot be had, with a real dockerd."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tesazure.access import RegistryLogin
from tesazure.errors import ImageUnavailable
from tesazure.runner.engines.docker import DockerEngine
from tests.service.engine_case import Attempt, attempt_on, in_background, wait_for
from tests.services import base, images
from tests.services import docker_engine as service
from tests.services.registry import PASSWORD, USER, Registry

pytestmark = [
    pytest.mark.docker,
    # All registries have one layer, and an engine that has it from another test pulls no more.
    pytest.mark.xdist_group("registry"),
]


@pytest.fixture
def attempt(
    docker_engine: service.DockerEngine, busybox_image: str, short_dir: Path
) -> Iterator[Attempt]:
    yield from attempt_on(DockerEngine(docker_engine.url), busybox_image, short_dir)


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry(images.root_filesystem(images.RECIPES["busybox"])) as registry:
        yield registry


def forget(attempt: Attempt, image: str) -> None:
    with contextlib.closing(docker.APIClient(attempt.url)) as client:
        client.remove_image(image, force=True)


def test_an_image_that_is_here_is_not_pulled(attempt: Attempt) -> None:
    attempt.engine.prepare(attempt.image, attempt.say)
    assert attempt.said == []


def test_an_image_is_pulled_and_runs(attempt: Attempt, registry: Registry) -> None:
    image = f"{registry.host}/some/tool"
    attempt.engine.prepare(image, attempt.say)
    assert attempt.said[0] == ("info", f"pulling {image}")
    assert attempt.said[-1][1].startswith(f"pulled {image} in ")
    assert attempt.sh("echo pulled", image=image) == "pulled\n"
    # Without a tag it is `latest` alone that is pulled.
    assert not [path for path in registry.asked if "tags/list" in path]
    assert any("/manifests/latest" in path for path in registry.asked)
    forget(attempt, image)


@pytest.mark.parametrize(
    ("repository", "reason"),
    [("missing/a:1", "manifest"), ("private/a:1", "unauthorized|no basic auth|denied")],
)
def test_an_image_that_cannot_be_had(
    attempt: Attempt, registry: Registry, repository: str, reason: str
) -> None:
    image = f"{registry.host}/{repository}"
    with pytest.raises(ImageUnavailable, match=reason) as caught:
        attempt.engine.prepare(image, attempt.say)
    assert image in str(caught.value)
    assert not [message for level, message in attempt.said if level == "warning"]


def test_an_image_of_a_private_registry(attempt: Attempt) -> None:
    layer = images.root_filesystem(images.RECIPES["busybox"])
    with Registry(layer, closed=True) as registry:
        pull_with_and_without_a_login(attempt, registry)


def pull_with_and_without_a_login(attempt: Attempt, registry: Registry) -> None:
    image = f"{registry.host}/some/tool:1"
    wrong = RegistryLogin(registry.host, USER, "a-wrong-password")
    with pytest.raises(ImageUnavailable) as caught:
        attempt.engine.prepare(image, attempt.say, lambda _: wrong)
    assert "a-wrong-password" not in str(caught.value)
    right = RegistryLogin(registry.host, USER, PASSWORD)
    asked: list[str] = []

    def login(image: str) -> RegistryLogin:
        asked.append(image)
        return right

    attempt.engine.prepare(image, attempt.say, login)
    attempt.engine.prepare(image, attempt.say, login)
    assert asked == [image]
    assert attempt.sh("echo pulled", image=image) == "pulled\n"
    assert PASSWORD not in str(attempt.said)
    forget(attempt, image)
    # What was pulled by a login cannot be pulled without one afterwards.
    with pytest.raises(ImageUnavailable):
        attempt.engine.prepare(image, attempt.say)


def test_a_registry_that_is_not_there(attempt: Attempt) -> None:
    with base.nobodys_port() as port, pytest.raises(ImageUnavailable, match="refused"):
        attempt.engine.prepare(f"127.0.0.1:{port}/a/b", attempt.say)


def test_a_broken_connection_is_tried_again(attempt: Attempt, registry: Registry) -> None:
    image = f"{registry.host}/flaky/a:1"
    attempt.engine.prepare(image, attempt.say)
    assert len([path for path in registry.asked if path.endswith("/manifests/1")]) > 1
    forget(attempt, image)


@pytest.mark.slow
def test_progress_is_said_now_and_then(attempt: Attempt, registry: Registry) -> None:
    image = f"{registry.host}/slow/a:1"
    with in_background(lambda: attempt.engine.prepare(image, attempt.say)) as results:
        wait_for(lambda: any("of 1 layers" in message for _, message in attempt.said))
        assert not results
        assert len(attempt.said) == 2
        registry.go_on.set()
    assert results == [None]
    forget(attempt, image)


def test_a_bad_reference_never_reaches_the_engine(attempt: Attempt) -> None:
    for image in ("-x", "a b", "../../containers/json"):
        with pytest.raises(ImageUnavailable):
            attempt.engine.prepare(image, attempt.say)
        with pytest.raises(ImageUnavailable):
            attempt.run("true", image=image)

"""The Docker-compatible HTTP API through the Docker SDK: connecting, and naming its failures."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, Literal

import docker
import requests
import urllib3
from docker.errors import (
    APIError,
    DockerException,
    NotFound,
    create_api_error_from_http_exception,
)

from tesazure.errors import EngineError, EngineUnavailable
from tesazure.runner.engines import podman_create

TIMEOUT_S = 120
"""For one answer. Creating and starting take this long only on a machine in distress."""

PING_S = 20
"""For the first answer of all."""

OLDEST_API = "1.41"
"""Docker 20.10's and Podman 4's."""

LOST = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    urllib3.exceptions.HTTPError,
    ConnectionError,
)
"""What the SDK lets through when the engine's end of the connection is gone."""


def connect(host: str, name: str) -> docker.APIClient:
    """A client for the engine at `host`, a unix:// or tcp:// URL as in DOCKER_HOST.

    One cheap request tells the version of the API to speak; the SDK's own way to find out takes
    Podman a quarter of a second. Raises EngineUnavailable.
    """
    try:
        client = _client(host, OLDEST_API)
        reply = client.get(f"{client.base_url}/_ping", timeout=PING_S)
        newest = reply.headers.get("Api-Version", OLDEST_API)
        return client if newest == OLDEST_API else _client(host, newest)
    except (*LOST, DockerException, ValueError) as error:
        raise EngineUnavailable(f"{name} does not answer at {host}: {_reason(error)}") from error


def _client(host: str, version: str) -> docker.APIClient:
    client = docker.APIClient(base_url=host, version=version, timeout=TIMEOUT_S)
    # An engine is never behind a proxy, and looking for one costs more than some requests.
    client.trust_env = False
    return client


@contextmanager
def speaking(name: str, what: str) -> Iterator[None]:
    """Turns the SDK's errors in the body into EngineUnavailable, if the engine is gone or says that
    the fault is its own, or EngineError."""
    try:
        yield
    except LOST as error:
        raise EngineUnavailable(f"{name} went away: {what}: {_reason(error)}") from error
    except APIError as error:
        kind = EngineUnavailable if error.is_server_error() else EngineError
        raise kind(f"{name}: {what}: {words(error)}") from error
    except DockerException as error:
        raise EngineError(f"{name}: {what}: {_reason(error)}") from error


def create(
    client: docker.APIClient, engine: str, body: dict[str, Any], name: str, *, volumes: bool = True
) -> str:
    """Create a container, `body` being Docker's; its id. Raises APIError.

    Without `volumes`, the image's VOLUMEs are plain directories in Podman. It copies the image's
    files into a volume only at the start, and only if nothing is there; Docker does so at once.
    """
    if engine == "podman":
        url = f"{client.base_url}/{podman_create.VERSION}/libpod/containers/create"
        specification = podman_create.specification(body, name, volumes=volumes)
        reply = client.post(url, json=specification, timeout=client.timeout)
        return str(_checked(reply).json()["Id"])
    identifier: str = client.create_container_from_config(body, name)["Id"]
    return identifier


def attach(
    client: docker.APIClient, container: str, *streams: Literal["stdin", "stdout", "stderr"]
) -> socket.socket:
    """A raw connection to some of a container's streams; see docker_streams. Raises APIError.

    The SDK's own `attach_socket` hands out a file, through which the end of stdin cannot be told.
    """
    url = f"{client.base_url}/v{client.api_version}/containers/{container}/attach"
    params = dict.fromkeys(("stream", *streams), "1")
    headers = {"Connection": "Upgrade", "Upgrade": "tcp"}
    reply = client.post(url, params=params, headers=headers, stream=True, timeout=client.timeout)
    with closing(_checked(reply)):
        return socket.socket(fileno=os.dup(reply.raw.fileno()))


def _checked(reply: requests.Response) -> requests.Response:
    try:
        reply.raise_for_status()
    except requests.HTTPError as error:
        create_api_error_from_http_exception(error)
    return reply


def remove(client: docker.APIClient, container: str, *, running: bool = False) -> None:
    """Remove a container with its anonymous volumes; fine if it is gone or going.

    One that may be `running` is killed first: Podman would ask it to stop, and wait ten seconds.
    Raises APIError, or what is in `LOST`.
    """
    if running:
        with suppress(APIError):
            client.kill(container)
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            client.remove_container(container, v=True, force=True)
            return
        except NotFound:
            return
        except APIError as error:
            # 409: somebody else is removing it.
            if error.status_code != 409 or time.monotonic() > deadline:
                raise
        time.sleep(0.02)


def words(error: APIError) -> str:
    """What the engine said, without what may be secret."""
    return without_queries(str(error.explanation or error))


def without_queries(text: str) -> str:
    """`text` with the query taken off each URL: registries redirect to signed ones."""
    return re.sub(r"""(https?://[^\s"'?]+)\?[^\s"']*""", r"\1?...", " ".join(text.split()))


def _reason(error: Exception) -> str:
    """The innermost cause, which says more than the wrappers around it."""
    inner: BaseException = error
    while (cause := inner.__cause__ or inner.__context__) is not None:
        inner = cause
    return without_queries(str(inner) or type(inner).__name__)

"""Images: whether a reference can be one at all, and pulling with progress."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

import docker
from docker.errors import APIError, DockerException, ImageNotFound

from tesazure.errors import EngineUnavailable, ImageUnavailable
from tesazure.runner.engines.base import Login, Say, nobody
from tesazure.runner.engines.docker_client import LOST, without_queries, words

PROGRESS_S = 5.0
"""At most one line of progress in so many seconds."""

TRIES = 3

_PATIENCE_S = 2.0
"""Before another try."""

# Source: the distribution project, reference/regexp.go.
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_NAME = rf"(?:{_HOST}/)?{_COMPONENT}(?:/{_COMPONENT})*"
_TAG = r":[A-Za-z0-9_][\w.-]{0,127}"
_DIGEST = r"@[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE = re.compile(rf"{_NAME}(?:{_TAG})?(?:{_DIGEST})?", re.ASCII)

_PASSING = re.compile(
    r"\bEOF\b|connection reset|timeout|timed out|deadline exceeded|toomanyrequests"
    r"|received unexpected HTTP status: 5|50[0234] |429 ",
    re.IGNORECASE,
)


def check_reference(image: str) -> None:
    """Raises ImageUnavailable, with the reason, for what cannot be an image reference.

    Such a one must not get into a URL or an engine's own parsing.
    """
    if _REFERENCE.fullmatch(image):
        return
    reason = "it is not of the form [HOST[:PORT]/]NAME[:TAG][@DIGEST]"
    if not image:
        reason = "it is empty"
    elif any(character.isspace() for character in image):
        reason = "it holds white space"
    elif image.startswith("-"):
        reason = "it begins with a dash"
    elif _REFERENCE.fullmatch(image.lower()):
        reason = "a repository's name is in lower case"
    raise ImageUnavailable(f"{image!r} is not an image reference: {reason}")


def prepare(
    client: docker.APIClient,
    engine: str,
    image: str,
    say: Say,
    login: Login = nobody,
) -> None:
    """Have the image here, pulling it unless it is. See Engine.prepare."""
    check_reference(image)
    try:
        client.inspect_image(image)
        return
    except ImageNotFound:
        pass
    except LOST as error:
        raise EngineUnavailable(f"{engine} went away: inspecting {image}") from error
    except APIError as error:
        kind = EngineUnavailable if error.is_server_error() else ImageUnavailable
        raise kind(f"{image}: {engine}: {words(error)}") from error
    for left in reversed(range(TRIES)):
        reason = _pull(client, engine, image, say, login)
        if not reason:
            return
        if not left or not _PASSING.search(reason):
            raise ImageUnavailable(f"cannot pull {image}: {reason}")
        say("warning", f"pulling {image} failed, trying again: {reason}")
        time.sleep(_PATIENCE_S)


def _pull(client: docker.APIClient, engine: str, image: str, say: Say, login: Login) -> str:
    """One try: why it failed, or nothing."""
    say("info", f"pulling {image}")
    start = spoken = time.monotonic()
    found = login(image)
    own = None if found is None else {"username": found.user, "password": found.password}
    progress = Progress()
    try:
        for event in client.pull(image, stream=True, decode=True, auth_config=own):
            if reason := event.get("error"):
                return without_queries(str(reason))
            progress.take(event)
            if time.monotonic() - spoken >= PROGRESS_S:
                spoken = time.monotonic()
                say("info", f"pulling {image}: {progress}")
        # A connection that is cut looks like the end of the events.
        client.inspect_image(image)
    except ImageNotFound as error:
        return words(error)
    except LOST as error:
        raise EngineUnavailable(f"{engine} went away: pulling {image}") from error
    except APIError as error:
        return words(error)
    except DockerException as error:
        return without_queries(str(error))
    say("info", f"pulled {image} in {time.monotonic() - start:.1f} s")
    return ""


class Progress:
    """What the events of a pull have said so far."""

    def __init__(self) -> None:
        self._done: set[str] = set()
        self._bytes: dict[str, tuple[int, int]] = {}

    def take(self, event: Mapping[str, Any]) -> None:
        """Source: Docker Engine API, "Create an image": a stream of status objects."""
        layer, status = event.get("id"), event.get("status", "")
        if not layer or status.startswith("Pulling from"):
            return
        self._bytes.setdefault(layer, (0, 0))
        detail = event.get("progressDetail") or {}
        if status == "Downloading" and detail.get("total"):
            self._bytes[layer] = (detail.get("current", 0), detail["total"])
        elif status in ("Download complete", "Verifying Checksum"):
            self._bytes[layer] = (self._bytes[layer][1],) * 2
        elif status in ("Pull complete", "Already exists"):
            self._done.add(layer)

    def __str__(self) -> str:
        current, total = (_sum(self._bytes.values(), i) / 1e6 for i in (0, 1))
        layers = f"{len(self._done)} of {len(self._bytes)} layers"
        return f"{layers}, {current:.0f} of {total:.0f} MB"


def _sum(pairs: Iterable[tuple[int, int]], index: int) -> int:
    return sum(pair[index] for pair in pairs)

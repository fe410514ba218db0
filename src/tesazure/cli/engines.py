"""Images of a container engine, for the demo."""

from __future__ import annotations

import time
from typing import Any

import httpx
import msgspec

TIMEOUT_S = 5.0


class EngineError(Exception):
    """The engine does not answer, or not as it should."""


class Engine:
    """Docker's API at `url`: unix:///path or tcp://host:port. Podman serves it too."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.url = url
        scheme, _, rest = url.partition("://")
        uds = rest if scheme == "unix" else None
        self._http = httpx.Client(
            base_url="http://engine" if uds else f"http://{rest}",
            transport=httpx.HTTPTransport(uds=uds) if uds else None,
            timeout=TIMEOUT_S,
            trust_env=False,
        )

    def images(self) -> list[str]:
        """References (name:tag) of the images it has. Raises EngineError."""
        return [tag for image in self._get("/images/json") for tag in image.get("RepoTags") or []]

    def pull(self, image: str, timeout_s: float) -> bool:
        """Try to get the image registry/name:tag; whether it is here now. Takes at most about
        `timeout_s` seconds."""
        name, _, tag = image.rpartition(":")
        deadline = time.monotonic() + timeout_s
        parameters = {"fromImage": name, "tag": tag}
        try:
            with self._http.stream(
                "POST", "/images/create", params=parameters, timeout=timeout_s
            ) as response:
                for _ in response.iter_lines():
                    if time.monotonic() > deadline:
                        return False
            short = image.rpartition("/")[2]
            return any(reference.rpartition("/")[2] == short for reference in self.images())
        except (httpx.HTTPError, EngineError):
            return False

    def _get(self, path: str) -> Any:
        try:
            response = self._http.get(path).raise_for_status()
            return msgspec.json.decode(response.content)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, msgspec.DecodeError) as error:
            raise EngineError(f"{self.url}: {error}") from error

"""The HTTP client of the command line: every failure becomes one clear line and an exit code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from tesazure.cli.credentials import choose, without_userinfo
from tesazure.cli.exits import Code, Failure
from tesazure.cli.logins import Logins
from tesazure.cli.oidc import LOOPBACK
from tesazure.model import State
from tesazure.settings import Client

API = "/ga4gh/tes/v1"
EXTENSIONS = "/api/v1"
PROVISION_S = 180.0
"""For a reply of the provisioner; the server gives Azure two minutes of it."""
_SUFFIXES = (API, "/ga4gh/tes", "/ga4gh", "/v1")

Json = dict[str, Any]


def root_of(server: str) -> str:
    """The server's root from what a user may give: host:port, a root, or the URL of the API. User
    and password are left out."""
    text, _ = split(server)
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Failure(
            Code.USAGE,
            f"not a server's URL: {text}",
            "give one like http://127.0.0.1:8000 by --server or TESAZURE_SERVER",
        )
    for suffix in _SUFFIXES:
        if parts.path.endswith(suffix):
            return text.removesuffix(suffix)
    return text


def split(server: str) -> tuple[str, str]:
    """A server's URL and the `user:password` in it; empty when it is no URL."""
    text = server.strip()
    try:
        url, userinfo = without_userinfo(text if "://" in text else f"http://{text}")
    except ValueError:
        return "", ""
    return url.rstrip("/"), userinfo


class TesClient:
    """One server. Methods raise Failure; ids are sent quoted, so any text is safe to pass."""

    def __init__(self, client: Client, logins: Logins | None = None) -> None:
        """`logins`: where to look for a login at this server, if anywhere."""
        self.root = root_of(client.server)
        _, userinfo = split(client.server)
        self._credentials = choose(client, self.root, userinfo, logins)
        self._provision_token = client.provision_token
        self.is_local = urlsplit(self.root).hostname in LOOPBACK
        self._http = httpx.Client(
            auth=self._credentials,
            timeout=httpx.Timeout(60, connect=10),
            # A proxy of the environment cannot reach this machine's own servers.
            trust_env=not self.is_local,
        )

    def close(self) -> None:
        """Close the connections; streams that other threads read end."""
        self._http.close()

    def service_info(self) -> Json:
        """The service-info document."""
        return self._json("GET", f"{API}/service-info")

    def create(self, document: bytes) -> str:
        """Submit a task document; its id."""
        headers = {"Content-Type": "application/json"}
        created = self._json("POST", f"{API}/tasks", content=document, headers=headers)
        if not created.get("id"):
            raise Failure(Code.UNREACHABLE, f"{self.root} accepted the task but gave it no id")
        return str(created["id"])

    def get(self, task_id: str, view: str) -> Json:
        """A task in a view."""
        return self._json("GET", f"{API}/tasks/{quote(task_id, safe='')}", params={"view": view})

    def state(self, task_id: str) -> State:
        """A task's state now; UNKNOWN for one that the standard does not have."""
        text = str(self.get(task_id, "MINIMAL").get("state"))
        return State(text) if text in State.__members__ else State.UNKNOWN

    def page(self, query: list[tuple[str, str]], token: str | None) -> Json:
        """One page of the list of tasks."""
        params = [*query, ("page_token", token)] if token else query
        return self._json("GET", f"{API}/tasks", params=params)

    def cancel(self, task_id: str) -> None:
        """Ask for a task to be canceled."""
        self._json("POST", f"{API}/tasks/{quote(task_id, safe='')}:cancel")

    def workflows(self, token: str | None) -> Json:
        """One page of the list of workflows."""
        params = {"page_token": token} if token else {}
        return self._json("GET", f"{EXTENSIONS}/workflows", params=params)

    def workflow(self, workflow_id: str) -> Json:
        """A workflow's counts."""
        return self._json("GET", f"{EXTENSIONS}/workflows/{quote(workflow_id, safe='')}")

    def cancel_workflow(self, workflow_id: str) -> Json:
        """Ask for the tasks of a workflow to be canceled; what became of them."""
        path = f"{EXTENSIONS}/workflows/{quote(workflow_id, safe='')}:cancel"
        return self._json("POST", path)

    def costs(self, query: list[tuple[str, str]]) -> Json:
        """What tasks cost together."""
        return self._json("GET", f"{EXTENSIONS}/costs", params=query)

    def provision(self, method: str, path: str, **more: Any) -> Json:
        """Ask the server's provisioner, which may ask Azure before it answers."""
        token = self._provision_token
        headers = {"X-Provision-Token": token} if token else {}
        timeout = httpx.Timeout(PROVISION_S, connect=10)
        return self._json(method, f"/provision{path}", headers=headers, timeout=timeout, **more)

    def sign_in(self) -> Json | None:
        """What the server says about signing in; None from one that says nothing of it."""
        try:
            return self._json("GET", f"{EXTENSIONS}/sign-in")
        except Failure as failure:
            if failure.code == Code.NOT_FOUND:
                return None
            raise

    def readiness(self) -> tuple[bool, Json, str | None]:
        """Whether the server is ready, the document of /readyz, and the reply's Date header."""
        with self._failures():
            response = self._http.get(f"{self.root}/readyz")
        return response.is_success, _object(response), response.headers.get("Date")

    @contextmanager
    def stream(
        self, path: str, params: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> Iterator[httpx.Response]:
        """An open response of one of our extensions, to be read as it comes. Raises Failure; while
        it is read, httpx.HTTPError when the connection breaks."""
        request = self._http.build_request(
            "GET",
            f"{self.root}{EXTENSIONS}{path}",
            params=dict(params),
            headers=dict(headers or {}),
            timeout=httpx.Timeout(60, connect=10, read=None),
        )
        with self._failures():
            response = self._http.send(request, stream=True)
        try:
            if not response.is_success:
                with self._failures():
                    response.read()
                raise self._refusal(response)
            yield response
        finally:
            response.close()

    def _json(self, method: str, path: str, **more: Any) -> Json:
        with self._failures():
            response = self._http.request(method, self.root + path, **more)
        if not response.is_success:
            raise self._refusal(response)
        return _object(response)

    def _refusal(self, response: httpx.Response) -> Failure:
        failure = refusal(response)
        if failure.code == Code.SIGN_IN:
            return Failure(failure.code, str(failure), self._credentials.remedy)
        return failure

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            remedy = "is the server running? start one here: tesazure serve"
            raise Failure(
                Code.UNREACHABLE,
                f"no server answers at {self.root} ({_reason(error)})",
                *([remedy] if self.is_local else []),
                "to use another one: --server URL or TESAZURE_SERVER",
            ) from error
        except httpx.TimeoutException as error:
            said = f"the server at {self.root} did not answer in time"
            raise Failure(Code.UNREACHABLE, said, "its log says more") from error
        except (httpx.TransportError, httpx.InvalidURL) as error:
            said = f"the connection to {self.root} failed: {_reason(error)}"
            raise Failure(Code.UNREACHABLE, said) from error


def refusal(response: httpx.Response) -> Failure:
    """The Failure for an error response: the server's message, then each field's error."""
    body = _object(response) if _is_json(response) else {}
    error = body.get("error")
    fields = error.get("fields") if isinstance(error, dict) else None
    details = [
        f"{item.get('field') or 'body'}: {item.get('message', '')}"
        for item in fields or []
        if isinstance(item, dict)
    ]
    message = str(body.get("message") or f"HTTP {response.status_code} {response.reason_phrase}")
    if response.status_code == 404:
        return Failure(Code.NOT_FOUND, message)
    if response.status_code == 401:
        return Failure(Code.SIGN_IN, message)
    if response.status_code == 403:
        return Failure(Code.DENIED, message)
    if response.status_code >= 500:
        after = response.headers.get("Retry-After")
        details += [f"try again in {after} s"] if after else []
        if isinstance(error, dict) and error.get("request_id"):
            details.append(f"request id: {error['request_id']}")
        return Failure(Code.UNREACHABLE, f"the server cannot do this now: {message}", *details)
    if fields:
        return Failure(Code.REFUSED, "the server refused this:", *details)
    return Failure(Code.REFUSED, f"the server refused this: {message}", *details)


def _is_json(response: httpx.Response) -> bool:
    return "json" in response.headers.get("Content-Type", "")


def _object(response: httpx.Response) -> Json:
    try:
        value = msgspec.json.decode(response.content)
    except msgspec.DecodeError:
        value = None
    if not isinstance(value, dict):
        url = response.request.url
        said = f"{url.copy_with(query=None)} answered something that is not a JSON object"
        raise Failure(Code.UNREACHABLE, said, "is this the URL of a TES server?")
    return value


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__

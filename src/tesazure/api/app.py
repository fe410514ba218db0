"""All routes together: the ASGI application."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp

from tesazure.api import docs, provision_access, service_info, sign_in
from tesazure.api.access_log import AccessLog
from tesazure.api.bodies import BodyReader
from tesazure.api.costs import CostsOfTasks
from tesazure.api.edge import Edge
from tesazure.api.events import Events
from tesazure.api.feed import Feed
from tesazure.api.flavour import V1_0, V1_1
from tesazure.api.health import Health
from tesazure.api.metrics import Latencies, Metrics
from tesazure.api.parts import Parts
from tesazure.api.provision import Provision
from tesazure.api.replies import Route
from tesazure.api.routing import Routes
from tesazure.api.streams import Streams
from tesazure.api.submission import Submission
from tesazure.api.tasks import Tasks
from tesazure.api.workflows import Workflows


class Application:
    """The ASGI application and what its owner needs of it."""

    def __init__(self, parts: Parts, log: AccessLog, more: Iterable[Route] = ()) -> None:
        """`more` are routes of others, such as a dashboard."""
        latencies = Latencies()
        bodies = BodyReader(parts.settings.max_body_bytes)
        submission = Submission(parts)
        self._feed = Feed(parts.store)
        self._closing = parts.closing
        self.metrics = Metrics(parts, latencies)
        self.routes = Routes(
            [
                *service_info.routes(parts),  # before tasks/{id}: tasks/service-info is no task
                *Tasks(parts, V1_1, bodies, submission).routes(),
                *Tasks(parts, V1_0, bodies, submission).routes(),
                *Workflows(parts).routes(),
                *CostsOfTasks(parts).routes(),
                *Streams(parts, self._feed).routes(),
                *Events(parts, self._feed).routes(),
                *sign_in.routes(parts.gate),
                *_provision(parts, bodies),
                *Health(parts).routes(),
                *self.metrics.routes(),
                *docs.routes(parts.settings),
                *more,
            ]
        )
        edge = Edge(self.routes, parts.gate, latencies, log)
        self.refused = edge.refused
        """Notes requests that the protocol refused."""
        self.asgi: ASGIApp = edge
        if parts.settings.cors_origins:
            self.asgi = CORSMiddleware(
                self.asgi,
                allow_origins=parts.settings.cors_origins,
                allow_methods=["GET", "HEAD", "POST", "OPTIONS"],
                allow_headers=["*"],
                expose_headers=["Content-Range", "Retry-After", "WWW-Authenticate", "X-Request-ID"],
                max_age=3600,
            )

    def close(self) -> None:
        """Let streams end; new requests are still answered."""
        self._closing.set()
        self._feed.nudge()


def _provision(parts: Parts, bodies: BodyReader) -> list[Route]:
    if parts.provisioner is None:
        return []

    def demand(request: Request) -> None:
        settings = parts.settings
        shares = settings.task_network and "sandbox" in parts.stations.engines
        provision_access.demand(request, settings.provision_token, shares)

    return Provision(parts.provisioner, parts.gate, parts.audit, bodies, demand).routes()

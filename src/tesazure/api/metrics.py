"""Prometheus metrics. Latencies are counted by hand: a client's locks would cost more than that."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.process_collector import ProcessCollector
from starlette.requests import Request

from tesazure.api.parts import Parts
from tesazure.api.replies import Reply, Route
from tesazure.budgets import EVERYBODYS
from tesazure.model import State
from tesazure.money import dollars

_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets, in seconds."""
_NAMES = [*map(str, _BOUNDS), "+Inf"]


class _Series:
    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * len(_NAMES)
        self.total = 0.0


class Latencies:
    """How long requests took, by route template, method and class of status."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str, int], _Series] = {}

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request."""
        key = (route, method, status // 100)
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = _Series()
        series.counts[bisect_left(_BOUNDS, seconds)] += 1
        series.total += seconds

    def family(self) -> Metric:
        """The histogram."""
        family = HistogramMetricFamily(
            "tesazure_http_request_duration_seconds",
            "Time from a request's head to the end of its reply.",
            labels=["route", "method", "status"],
        )
        for (route, method, status), series in self._series.items():
            sums = list(accumulate(series.counts))
            buckets = list(zip(_NAMES, map(float, sums), strict=True))
            family.add_metric([route, method, f"{status}xx"], buckets, series.total)
        return family


class _Collected:
    """Families that are known already, as the exposition format's writer wants them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


class Metrics:
    """The handler of /metrics."""

    def __init__(self, parts: Parts, latencies: Latencies) -> None:
        self._parts = parts
        self._latencies = latencies
        self._process = ProcessCollector(registry=CollectorRegistry())

    def routes(self) -> list[Route]:
        """One."""
        return [Route("/metrics", {"GET": self.metrics})]

    async def metrics(self, request: Request) -> Reply:
        """Everything, in the text format 0.0.4. Raises StoreUnavailable."""
        counts = await self._parts.store.count_by_state()
        oldest = await self._parts.store.oldest_queued()
        cost = (await self._parts.store.spent([EVERYBODYS]))[EVERYBODYS]
        registry = CollectorRegistry()
        families = [
            *self._tasks(counts, oldest),
            self._cost(float(dollars(cost))),
            *self._scheduler(),
        ]
        registry.register(_Collected(families))
        registry.register(_Collected([self._latencies.family(), *self._process.collect()]))
        content_type = b"text/plain; version=0.0.4; charset=utf-8"
        return Reply(200, generate_latest(registry), [(b"content-type", content_type)])

    def _tasks(self, counts: dict[State, int], oldest: float | None) -> list[Metric]:
        states = GaugeMetricFamily("tesazure_tasks", "Tasks in each state.", labels=["state"])
        for state in State:
            states.add_metric([state.value], counts.get(state, 0))
        age = 0.0 if oldest is None else max(0.0, self._parts.clock() - oldest)
        text = "Age of the oldest queued task; 0 when none is."
        return [states, GaugeMetricFamily("tesazure_queue_age_seconds", text, value=age)]

    def _cost(self, cost: float) -> Metric:
        text = "What attempts said that they cost, in US dollars, also of deleted tasks."
        return CounterMetricFamily("tesazure_estimated_cost_usd", text, value=cost)

    def _scheduler(self) -> list[Metric]:
        pulse = self._parts.pulse
        if pulse is None:
            return []
        lag = "From the first signal that the scheduler's last tick served to its end."
        age, since = time.monotonic() - pulse.last_tick, "Since the last tick that ended well."
        return [
            GaugeMetricFamily("tesazure_scheduler_lag_seconds", lag, value=pulse.lag_s),
            GaugeMetricFamily("tesazure_scheduler_seconds_since_tick", since, value=age),
            CounterMetricFamily("tesazure_attempts_placed", "Placed here.", value=pulse.placed),
            CounterMetricFamily("tesazure_tasks_finished", "Ended here.", value=pulse.finished),
            CounterMetricFamily("tesazure_attempts_retried", "Tried again.", value=pulse.retries),
        ]

"""Prometheus metrics. Latencies are counted by hand: a client's locks would cost more than that."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping
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
from tesazure.backends.base import Gauge
from tesazure.budgets import EVERYBODYS, Purse, period
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
        registry = CollectorRegistry()
        registry.register(_Collected(await self.families()))
        content_type = b"text/plain; version=0.0.4; charset=utf-8"
        return Reply(200, generate_latest(registry), [(b"content-type", content_type)])

    async def families(self) -> list[Metric]:
        """Everything. Raises StoreUnavailable."""
        counts = await self._parts.store.count_by_state()
        oldest = await self._parts.store.oldest_queued()
        return [
            *self._tasks(counts, oldest),
            *await self._costs(),
            *self._scheduler(),
            *(
                gauge_families(self._parts.stations.current.backend.gauges())
                if self._parts.pulse
                else ()
            ),
            self._latencies.family(),
            *self._process.collect(),
        ]

    def _tasks(self, counts: dict[State, int], oldest: float | None) -> list[Metric]:
        states = GaugeMetricFamily("tesazure_tasks", "Tasks in each state.", labels=["state"])
        for state in State:
            states.add_metric([state.value], counts.get(state, 0))
        age = 0.0 if oldest is None else max(0.0, self._parts.clock() - oldest)
        text = "Age of the oldest queued task; 0 when none is."
        return [states, GaugeMetricFamily("tesazure_queue_age_seconds", text, value=age)]

    async def _costs(self) -> list[Metric]:
        """What was spent, and the budgets that are one sum: not those that each owner, or each
        value of a tag, has."""
        now = self._parts.clock()
        purses = {
            budget: Purse(budget.kind, budget.key, budget.value or "", period(budget.period, now))
            for budget in self._parts.budgets.all
            if budget.kind == "all" or budget.value is not None
        }
        spent = await self._parts.store.spent({EVERYBODYS, *purses.values()})
        text = "What attempts said that they cost, in US dollars, also of deleted tasks."
        cost = float(dollars(spent[EVERYBODYS]))
        limits = GaugeMetricFamily(
            "tesazure_budget_limit_usd", "What may be spent.", labels=["budget"]
        )
        used = GaugeMetricFamily(
            "tesazure_budget_spent_usd", "What was, in its present time.", labels=["budget"]
        )
        for budget, purse in purses.items():
            limits.add_metric([budget.name], float(dollars(budget.limit)))
            used.add_metric([budget.name], float(dollars(spent[purse])))
        return [CounterMetricFamily("tesazure_estimated_cost_usd", text, value=cost), limits, used]

    def _ends(self, ends: Mapping[tuple[State, str], int]) -> Metric:
        text = "Ended here, and of failures why."
        family = CounterMetricFamily("tesazure_tasks_finished", text, labels=["state", "reason"])
        for (state, reason), count in ends.items():
            family.add_metric([state.value, reason], count)
        return family

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
            self._ends(pulse.ends),
            CounterMetricFamily("tesazure_attempts_retried", "Tried again.", value=pulse.retries),
        ]


def gauge_families(gauges: Iterable[Gauge]) -> list[Metric]:
    """What a backend tells."""
    families: dict[str, GaugeMetricFamily] = {}
    for gauge in gauges:
        if gauge.name not in families:
            labels = list(gauge.labels)
            families[gauge.name] = GaugeMetricFamily(gauge.name, gauge.help, labels=labels)
        families[gauge.name].add_metric(list(gauge.labels.values()), gauge.value)
    return list(families.values())

"""Dashboard and alerts ask for what /metrics tells: a real Prometheus scrapes a server and answers
every question of theirs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

from tesazure.api.metrics import gauge_families
from tesazure.backends.azure_batch.gauges import gauges
from tesazure.backends.azure_batch.pool_words import Look
from tesazure.backends.azure_batch.sizes import Quotas, Sizes, VmSize
from tests.conftest import refuse
from tests.service.server import create, ended, start_server, task, until
from tests.services import base
from tests.services.loopback_http import LoopbackHttp, QuietHandler
from tests.services.prometheus import Prometheus

GRAFANA = Path(__file__).parents[2] / "deploy/grafana"
DASHBOARD = json.loads((GRAFANA / "dashboard.json").read_text())
RULES = [
    rule
    for group in json.loads((GRAFANA / "alerts.json").read_text())["groups"]
    for rule in group["rules"]
]


FAILED = 'tesazure_tasks_finished_total{state="SYSTEM_ERROR",reason="stage_in"}'
POSTS = 'tesazure_http_request_duration_seconds_count{method="POST"}'


def batch_families() -> list[Metric]:
    """What a server on Azure Batch tells besides: a pool of two nodes that a quota holds up."""
    size = VmSize(name="Standard_D2s_v5", cores=2, ram_bytes=8 * 2**30)
    sizes = Sizes(
        items=(size,), source="", date="", quotas=Quotas(dedicated_cores=4, spot_cores=100)
    )
    errors = (("AccountCoreQuotaReached", ""),)
    look = Look(vm_size=size.name, target=9, running=2, errors=errors)
    return gauge_families(gauges(sizes, [look]))


class _OnBatch(QuietHandler):
    def do_GET(self) -> None:
        """The page."""
        registry = CollectorRegistry()
        registry.register(self)
        self.reply(200, generate_latest(registry), {"Content-Type": "text/plain; version=0.0.4"})

    def collect(self) -> list[Metric]:
        """As a collector of the client library."""
        return batch_families()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """One that has scraped a server, which has run tasks that end in several ways."""
    directory = tmp_path_factory.mktemp("grafana")
    try:
        base.require_program("prometheus", "prometheus")
    except base.Unavailable as error:
        refuse(str(error))
    with (
        start_server(directory / "server", budgets="all=5/month", allow_dir=directory) as server,
        LoopbackHttp(_OnBatch) as batch,
        Prometheus(directory / "p", [f"127.0.0.1:{server.port}", batch.host]) as running,
        server.client() as client,
    ):
        until(lambda: running.query("tesazure_tasks_finished_total"), 60)
        absent = [{"url": str(directory / "absent"), "path": "/tes-wd/in"}]
        documents = [task(), task("false"), *[task(inputs=absent)] * 12]
        for task_id in [create(client, document) for document in documents]:
            ended(client, task_id, 60)
        # What grew, and a rate, are told once two looks have seen a series.
        until(lambda: running.query(f"sum(increase({FAILED}[30m])) > 9"), 60)
        until(lambda: running.query(f"min(count_over_time({POSTS}[1m])) > 2"), 60)
        yield running


def asked(expression: str) -> str:
    """As Grafana sends it."""
    return expression.replace("$__rate_interval", "30s").replace("$job", ".*")


@pytest.mark.parametrize("panel", DASHBOARD["panels"], ids=lambda panel: panel["title"])
def test_every_panel_shows_something(prometheus: Prometheus, panel: dict[str, Any]) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        found = prometheus.query(asked(target["expr"]))
        assert found, target["expr"]
        for name in labels_in(target["legendFormat"]):
            assert all(name in series["metric"] for series in found), (name, found)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["uid"])
def test_every_alert_has_a_value(prometheus: Prometheus, rule: dict[str, Any]) -> None:
    value, threshold = rule["data"]
    assert rule["condition"] == threshold["refId"]
    assert threshold["model"]["expression"] == value["refId"]
    found = prometheus.query(value["model"]["expr"])
    assert found or rule["uid"] in QUIET, value["model"]["expr"]
    named = labels_in(rule["annotations"]["summary"])
    assert all(name.removeprefix("$labels.") in s["metric"] for s in found for name in named)


QUIET = {"tesazure-errors"}
"""What nothing is told of while all is well."""


def fires(prometheus: Prometheus, uid: str) -> set[str]:
    """The label values of those series for which an alert's condition holds now."""
    [rule] = [rule for rule in RULES if rule["uid"] == f"tesazure-{uid}"]
    value, threshold = rule["data"]
    [condition] = threshold["model"]["conditions"]
    [limit] = condition["evaluator"]["params"]
    compared = {"gt": float.__gt__, "lt": float.__lt__}[condition["evaluator"]["type"]]
    return {
        " ".join(series["metric"].values())
        for series in prometheus.query(value["model"]["expr"])
        if compared(float(series["value"][1]), float(limit))
    }


def test_alerts_hold_for_what_is_wrong_and_for_nothing_else(prometheus: Prometheus) -> None:
    assert fires(prometheus, "failures-of-system") == {"stage_in"}
    assert fires(prometheus, "quota") == {""}
    assert fires(prometheus, "quota-near") == {"dedicated"}
    # A scrape has one second here, and the rule more patience than its condition.
    until(lambda: fires(prometheus, "server-silent") == set())
    for uid in ("scheduler-silent", "queue-age", "failures-of-commands"):
        assert fires(prometheus, uid) == set(), uid
    for uid in ("budget", "errors"):
        assert fires(prometheus, uid) == set(), uid


def test_panels_and_rules_have_names_of_their_own() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    uids = [rule["uid"] for rule in RULES]
    assert len(set(ids)) == len(ids)
    assert len(set(uids)) == len(uids)


def labels_in(text: str) -> list[str]:
    """What stands in braces in a legend or an annotation, but for values."""
    parts = (part.partition("}}")[0].strip() for part in text.split("{{")[1:])
    return [part for part in parts if not part.startswith("$values")]

"""Traces and metrics of a whole server, as what takes them sees them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from threading import Thread
from threading import enumerate as enumerate_threads
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.metrics.export import MetricExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.core import GaugeMetricFamily

from tesazure.model import State
from tesazure.settings import quieten_azure_monitor
from tesazure.telemetry.export import application_insights, otlp
from tesazure.telemetry.measures import Measures
from tests.service.server import (
    RunningServer,
    create,
    ended,
    environment,
    get,
    start_server,
    task,
    until,
)
from tests.services.base import nobodys_port
from tests.services.certificates import make
from tests.services.telemetry_receivers import ApplicationInsights, Collector, attributes

KEY = "0f2a6e52-5c1c-4f0e-9d0b-0c5b8a4f7e11"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
SENT = {"traceparent": f"00-{TRACE}-{CALLER}-01"}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running
    assert running.wrong == []


def log_of(server: RunningServer) -> list[dict[str, Any]]:
    lines = server.log.read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def parents(spans: dict[str, Span]) -> dict[str, str]:
    """Each span's name and its parent's; the id where that is none of these."""
    names = {span.span_id: name for name, span in spans.items()}
    return {
        name: names.get(span.parent_span_id, span.parent_span_id.hex())
        for name, span in spans.items()
    }


WHOLE = {
    "place": "attempt",
    "attempt": "POST /ga4gh/tes/v1/tasks",
    "runner": "attempt",
    "stage in": "runner",
    "pull image": "runner",
    "executor": "runner",
    "executor #1": "runner",
    "stage out": "runner",
}


def test_a_task_is_one_trace_from_its_request_to_its_outputs(
    tmp_path: Path, collector: Collector
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "in").write_text("12345")
    document = task("sh", "-c", "cat /tes-wd/in /tes-wd/in > /tes-wd/out")
    document["executors"].append({"image": "busybox", "command": ["sh", "-c", "echo $TRACEPARENT"]})
    document["inputs"] = [{"url": str(files / "in"), "path": "/tes-wd/in"}]
    document["outputs"] = [{"url": str(files / "out"), "path": "/tes-wd/out"}]
    before = time.time()
    with start_server(tmp_path, otlp_endpoint=collector.origin, allow_dir=files) as server:
        with server.client() as client:
            task_id = create(client, document)
            done = ended(client, task_id)
        assert done["state"] == "COMPLETE"
        assert server.stop() == 0

    spans = collector.of_trace(f"7e5a{task_id}")
    assert parents(spans) == {"POST /ga4gh/tes/v1/tasks": "", **WHOLE}
    for span in spans.values():
        assert before <= span.start_time_unix_nano / 1e9 <= span.end_time_unix_nano / 1e9
        assert span.end_time_unix_nano / 1e9 <= time.time()
        assert attributes(span.attributes)["tesazure.task_id"] == task_id
        assert span.status.code != Status.STATUS_CODE_ERROR
    assert attributes(spans["stage in"].attributes)["tesazure.bytes"] == 5
    assert attributes(spans["stage out"].attributes)["tesazure.bytes"] == 10
    request = attributes(spans["POST /ga4gh/tes/v1/tasks"].attributes)
    assert request["http.response.status_code"] == 200
    # The log has the same request, task and attempt.
    [created] = [line for line in log_of(server) if line.get("action") == "task.create"]
    assert created["request_id"] == request["tesazure.request_id"]
    attempt = attributes(spans["attempt"].attributes)["tesazure.attempt"]
    states = [line for line in log_of(server) if line.get("attempt") == attempt]
    assert [line["event"] for line in states][-1] == "RUNNING -> COMPLETE"
    assert {line["task"] for line in states} == {task_id}
    # The node's side is another service, and its command is told where it stands.
    services = {span.name: about["service.name"] for about, span in collector.spans}
    assert services["runner"] == services["stage out"] == "tesazure-runner"
    assert services["attempt"] == "tesazure"
    context = f"00-7e5a{task_id}-{spans['executor #1'].span_id.hex()}-01"
    [log] = done["logs"]
    assert log["logs"][1]["stdout"] == f"{context}\n"
    place = f"00-7e5a{task_id}-{spans['POST /ga4gh/tes/v1/tasks'].span_id.hex()}-01"
    assert log["metadata"]["traceparent"] == place


def test_a_clients_trace_goes_on(tmp_path: Path, collector: Collector) -> None:
    with start_server(tmp_path, otlp_endpoint=collector.origin, trace_ratio=0) as server:
        with server.client() as client:
            reply = client.post("/v1/tasks", json=task(), headers=SENT)
            task_id = reply.json()["id"]
            assert ended(client, task_id)["tags"]["traceparent"].startswith(f"00-{TRACE}-")
            client.get("/healthz", headers=SENT)
            # Not wanted by the client, and none of ours is.
            client.post(
                "/v1/tasks", json=task(), headers={"traceparent": f"00-{'1' * 32}-{CALLER}-00"}
            )
            other = create(client)
            ended(client, other)
            until(lambda: len(client.get("/v1/tasks?state=COMPLETE").json()["tasks"]) == 3)
        assert server.stop() == 0
    spans = collector.of_trace(TRACE)
    names = {**WHOLE, "attempt": "POST /v1/tasks"}
    del names["executor #1"]
    names |= {"POST /v1/tasks": CALLER, "GET /healthz": CALLER}
    assert parents(spans) == names
    assert {span.trace_id.hex() for _, span in collector.spans} == {TRACE}


def test_a_task_may_name_its_trace_itself(tmp_path: Path, collector: Collector) -> None:
    document = task("sh", "-c", "echo $TRACEPARENT", tags={"traceparent": SENT["traceparent"]})
    document["executors"][0]["env"] = {"TRACEPARENT": "mine"}
    with start_server(tmp_path, otlp_endpoint=collector.origin) as server:
        with server.client() as client:
            done = ended(client, create(client, document))
        assert server.stop() == 0
    assert done["logs"][0]["logs"][0]["stdout"] == "mine\n"
    assert parents(collector.of_trace(TRACE))["attempt"] == CALLER


NONSENSE = [
    "",
    "00-0-0-01",
    f"00-{'0' * 32}-{CALLER}-01",
    f"ff-{TRACE}-{CALLER}-01",
    "\x80" * 55,
    "a" * 9000,
]


def test_what_is_no_context_counts_for_nothing(tmp_path: Path, collector: Collector) -> None:
    with start_server(tmp_path, otlp_endpoint=collector.origin, scheduler="false") as server:
        with server.client() as client:
            ids = []
            for sent in (*([each] for each in NONSENSE), [SENT["traceparent"]] * 2):
                headers = [(b"traceparent", each.encode("latin-1")) for each in sent]
                task_id = client.post("/v1/tasks", json=task(), headers=headers).json()["id"]
                assert "tags" not in get(client, task_id), sent
                ids.append(task_id)
        assert server.stop() == 0
    assert {span.trace_id.hex() for _, span in collector.spans} == {f"7e5a{each}" for each in ids}


def test_failures_are_marked(tmp_path: Path, collector: Collector) -> None:
    with start_server(tmp_path, otlp_endpoint=collector.origin, allow_dir=tmp_path) as server:
        with server.client() as client:
            failed = create(client, task("sh", "-c", "exit 7"))
            absent = [{"url": str(tmp_path / "absent"), "path": "/tes-wd/in"}]
            missing = create(client, task(inputs=absent))
            for task_id in (failed, missing):
                ended(client, task_id)
            canceled = create(client, task("sleep", "600"))
            until(lambda: get(client, canceled, "MINIMAL")["state"] == "RUNNING")
            client.post(f"/v1/tasks/{canceled}:cancel")
            ended(client, canceled)
        assert server.stop() == 0
    spans = collector.of_trace(f"7e5a{failed}")
    assert spans["executor"].status.message == "exit code 7"
    assert attributes(spans["executor"].attributes)["process.exit.code"] == 7
    for name in ("attempt", "runner"):
        assert spans[name].status.code == Status.STATUS_CODE_ERROR
        assert attributes(spans[name].attributes)["tesazure.state"] == "EXECUTOR_ERROR"
    assert spans["stage out"].status.code != Status.STATUS_CODE_ERROR
    spans = collector.of_trace(f"7e5a{missing}")
    assert attributes(spans["attempt"].attributes)["tesazure.state"] == "SYSTEM_ERROR"
    assert "absent" in spans["runner"].status.message
    assert spans["stage in"].status == spans["runner"].status
    assert "executor" not in spans
    ends = {(State.EXECUTOR_ERROR, "executor"): 1, (State.SYSTEM_ERROR, "stage_in"): 1}
    ends[State.CANCELED, ""] = 1
    counted = collector.values("tesazure_tasks_finished")
    assert {end: count for end, count in counted.items() if count} == {
        (("reason", reason), ("state", state)): count for (state, reason), count in ends.items()
    }
    spans = collector.of_trace(f"7e5a{canceled}")
    assert spans["attempt"].status.code != Status.STATUS_CODE_ERROR
    assert attributes(spans["attempt"].attributes)["tesazure.state"] == "CANCELED"


def test_an_attempt_that_outlives_its_server_is_told_by_the_next(
    tmp_path: Path, collector: Collector
) -> None:
    gate = tmp_path / "gate"
    gate.mkdir()
    document = task("sh", "-c", "until [ -e /tes-wd/gate/open ]; do sleep 0.05; done")
    document["inputs"] = [{"url": str(gate), "path": "/tes-wd/gate", "type": "DIRECTORY"}]
    options: dict[str, object] = {"otlp_endpoint": collector.origin, "mount_dir": tmp_path}
    with start_server(tmp_path, allow_dir=tmp_path, **options) as server, server.client() as client:
        reply = client.post("/v1/tasks", json=document, headers=SENT)
        task_id = reply.json()["id"]
        until(lambda: get(client, task_id, "MINIMAL")["state"] == "RUNNING")
        server.process.kill()
        server.process.wait()
        command = [sys.executable, "-m", "tesazure.cli.main", "serve", "--port", "0"]
        with (tmp_path / "second.log").open("wb") as log:
            second = subprocess.Popen(
                [*command, "--data-dir", str(server.data)],
                env=environment(local_engine="sandbox", allow_dir=tmp_path, **options),
                stdout=log,
                stderr=log,
            )
        try:
            (gate / "open").touch()
            text = tmp_path / "second.log"
            until(lambda: "RUNNING -> COMPLETE" in text.read_text(), 60)
            second.terminate()
            assert second.wait(30) == 0
        finally:
            second.kill()
            second.wait()
    told = parents(collector.of_trace(TRACE))
    assert told["runner"] == "attempt"
    assert told["executor"] == "runner"


def test_metrics_are_those_of_the_page(tmp_path: Path, collector: Collector) -> None:
    with start_server(
        tmp_path, otlp_endpoint=collector.origin, metrics_export_s=1, budgets="all=5"
    ) as server:
        with server.client() as client:
            ended(client, create(client))
            collector.until(
                lambda: collector.values("tesazure_tasks").get((("state", "COMPLETE"),)) == 1
            )
            page = client.get("/metrics").text
        assert server.stop() == 0
    ends = {end: n for end, n in collector.values("tesazure_tasks_finished").items() if n}
    assert ends == {(("reason", ""), ("state", "COMPLETE")): 1}
    assert collector.values("tesazure_budget_limit_usd") == {(("budget", "all"),): 5}
    # What did not happen yet is there, too: a series that begins with 1 has not grown.
    assert 'tesazure_tasks_finished_total{reason="lost",state="SYSTEM_ERROR"} 0.0' in page
    told = {metric.name for _, metric in collector.metrics}
    shown = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")}
    assert {name.removesuffix("_total") for name in shown} <= told
    [*_, latency] = [
        metric
        for _, metric in collector.metrics
        if metric.name == "tesazure_http_request_duration_seconds"
    ]
    posts = [
        p for p in latency.histogram.data_points if attributes(p.attributes)["method"] == "POST"
    ]
    assert [point.count for point in posts] == [1]
    assert posts[0].min <= posts[0].sum <= posts[0].max


def test_application_insights_gets_requests_dependencies_and_metrics(tmp_path: Path) -> None:
    with (
        ApplicationInsights(KEY) as insights,
        start_server(
            tmp_path,
            applicationinsights_connection_string=f"{insights.connection_string};",
            metrics_export_s=1,
        ) as server,
    ):
        with server.client() as client:
            insights.until(lambda: insights.value("tesazure_queue_age_seconds"))
            task_id = create(client)
            ended(client, task_id)
            insights.until(lambda: sum(insights.value("tesazure_tasks_finished")) == 1)
        assert server.stop() == 0
        # Nothing else is asked of Microsoft.
        assert set(insights.asked) == {"/v2.1/track"}
        assert insights.wrong == []
    trace = f"7e5a{task_id}"
    requests = [
        each for each in insights.of_kind("RequestData") if each["tags"]["ai.operation.id"] == trace
    ]
    assert {each["name"] for each in requests} == {"POST /ga4gh/tes/v1/tasks", "runner"}
    roles = {each["name"]: each["tags"]["ai.cloud.role"] for each in requests}
    assert roles == {"POST /ga4gh/tes/v1/tasks": "tesazure", "runner": "tesazure-runner"}
    below = [
        each["name"]
        for each in insights.of_kind("RemoteDependencyData")
        if each["tags"]["ai.operation.id"] == trace
    ]
    assert {"place", "attempt", "stage in", "executor", "stage out"} <= set(below)
    # Counters are told by what they grew by: it adds them up.
    assert sum(insights.value("tesazure_tasks_finished")) == 1
    assert sum(insights.value("tesazure_attempts_placed")) == 1
    assert KEY not in server.log.read_text()


def test_the_key_of_2019_is_taken_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APPINSIGHTS_INSTRUMENTATIONKEY", KEY.upper())
    done = subprocess.run(
        [sys.executable, "-m", "tesazure.cli.main", "config"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    [line] = [x for x in done.stdout.splitlines() if "APPINSIGHTS_INSTRUMENTATIONKEY" in x]
    assert "***" in line and "environment" in line
    assert KEY.upper() not in done.stdout + done.stderr
    assert "no longer supports" in done.stderr


def test_tls_and_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = make(tmp_path, "127.0.0.1")
    with Collector(certificate, {"api-key": "s3 cret"}) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"{collector.origin}/")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=s3%20cret")
        with start_server(tmp_path, ca_bundle=certificate.authority) as server:
            with server.client() as client:
                task_id = create(client, task("env"))
                done = ended(client, task_id)
            assert server.stop() == 0
        assert collector.wrong == []
        assert "attempt" in collector.of_trace(f"7e5a{task_id}")
    assert "cret" not in server.log.read_text()
    assert "cret" not in json.dumps(done)


@pytest.fixture
def silent() -> Iterator[str]:
    """Origin of a receiver that takes connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["otlp", "application_insights"])
def test_a_receiver_that_never_answers_is_given_up(silent: str, kind: str) -> None:
    if kind == "otlp":
        receiver = otlp(silent, {}, "", send_s=0.2)
    else:
        names, threads = set(os.environ), set(enumerate_threads())
        quieten_azure_monitor()
        where = f"InstrumentationKey={KEY};IngestionEndpoint={silent}"
        receiver = application_insights(where, "", send_s=0.2)
        # What it would tell Microsoft, and ask there, it would by threads.
        assert set(enumerate_threads()) <= threads
        for name in set(os.environ) - names:  # other tests' servers have to do that themselves
            del os.environ[name]
    found: Queue[object] = Queue()
    measures = Measures(Resource({}), InstrumentationScope("t"), 1, changes_only=False)
    data = measures.of([GaugeMetricFamily("tasks", "…", value=1)], 2)
    Thread(target=lambda: found.put(receiver.metrics.export(data)), daemon=True).start()
    assert found.get(timeout=60) is MetricExportResult.FAILURE


def test_receivers_that_never_answer_hold_nothing_up(tmp_path: Path, silent: str) -> None:
    with start_server(
        tmp_path,
        otlp_endpoint=silent,
        applicationinsights_connection_string=f"InstrumentationKey={KEY};IngestionEndpoint={silent}",
        metrics_export_s=1,
    ) as server:
        with server.client() as client:
            assert ended(client, create(client))["state"] == "COMPLETE"
            assert client.get("/readyz").status_code == 200
        assert server.stop(60) == 0


@pytest.fixture
def away() -> Iterator[str]:
    """Origin of a receiver that is not there."""
    with nobodys_port() as port:
        yield f"http://127.0.0.1:{port}"


def test_a_receiver_that_is_away_holds_nothing_up(tmp_path: Path, away: str) -> None:
    insights = f"InstrumentationKey={KEY};IngestionEndpoint={away}"
    with start_server(
        tmp_path,
        otlp_endpoint=away,
        applicationinsights_connection_string=insights,
        metrics_export_s=1,
    ) as server:
        with server.client() as client:
            assert ended(client, create(client))["state"] == "COMPLETE"
            assert client.get("/readyz").status_code == 200
        assert server.stop(60) == 0
    assert KEY not in server.log.read_text()
    said = [line for line in log_of(server) if line["level"] in ("warning", "error")]
    loggers = [line["logger"].partition(".")[0] for line in said if "refused" in line["event"]]
    assert sorted(loggers) == ["azure", "opentelemetry"]


def test_a_receiver_that_refuses_is_asked_again(tmp_path: Path) -> None:
    with Collector() as collector:
        collector.refusals = [503, 503]
        with start_server(tmp_path, otlp_endpoint=collector.origin) as server:
            with server.client() as client:
                task_id = create(client)
                ended(client, task_id)
                collector.until(lambda: "attempt" in collector.of_trace(f"7e5a{task_id}"))
            assert server.stop() == 0


def imports(tmp_path: Path, **settings: object) -> set[str]:
    """What a server imports until it has run a task."""
    os.environ["PYTHONPROFILEIMPORTTIME"] = "1"
    try:
        with start_server(tmp_path, **settings) as server:
            with server.client() as client:
                ended(client, create(client))
            assert server.stop() == 0
    finally:
        del os.environ["PYTHONPROFILEIMPORTTIME"]
    lines = server.log.read_text().splitlines()
    times = [line for line in lines if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in times}


def test_without_it_none_of_it_is_imported(tmp_path: Path, collector: Collector) -> None:
    assert not imports(tmp_path / "off") & {"opentelemetry", "google.protobuf", "psutil"}
    assert "opentelemetry" in imports(tmp_path / "on", otlp_endpoint=collector.origin)


def test_without_its_packages_the_server_says_which_extra(tmp_path: Path) -> None:
    absent = tmp_path / "absent" / "opentelemetry"
    absent.mkdir(parents=True)
    (absent / "__init__.py").write_text(
        "raise ModuleNotFoundError('No module named opentelemetry', name='opentelemetry')"
    )
    done = subprocess.run(
        [sys.executable, "-m", "tesazure.cli.main", "serve", "--port", "0"],
        check=False,
        env=environment(otlp_endpoint="http://127.0.0.1:1", data_dir=tmp_path / "data")
        | {"PYTHONPATH": str(absent.parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "tesazure[telemetry]" in done.stderr
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in done.stderr
    assert "APPINSIGHTS" not in done.stderr

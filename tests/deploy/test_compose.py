"""The compose files, brought up as their first lines say, and at work.

Images of others are stand-ins made of Debian packages, and of Cromwell a double; no registry is
asked.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest

from tests.conftest import refuse
from tests.deploy.composed import Composed, composed, documented
from tests.docs.blocks import ROOT, blocks
from tests.service.server import create, ended, get, until
from tests.services import base, project_images
from tests.services.docker_engine import DockerEngine

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.xdist_group("compose"),
]

LONG_S = 240
UP, CURL, UP_WITH_AZURITE, LIST_BLOBS, UP_WITH_BATCH = documented("docs/deployment.md")


@pytest.fixture(scope="module")
def engine(docker_engine: DockerEngine) -> DockerEngine:
    """One whose directories are this machine's."""
    if docker_engine.offered is not None:
        pytest.skip("the engine that DOCKER_HOST names has its directories elsewhere")
    try:
        base.require_program("docker-compose", "docker-compose")
    except base.Unavailable as error:
        refuse(str(error))
    return docker_engine


@pytest.fixture(scope="module")
def client(engine: DockerEngine) -> Iterator[docker.DockerClient]:
    with project_images.connected(engine) as client:
        yield client


@pytest.fixture(scope="module")
def site(engine: DockerEngine) -> Iterator[Composed]:
    """deploy/compose, with Azurite."""
    try:
        stand_ins = {
            "POSTGRES_IMAGE": project_images.postgres(engine),
            "AZURITE_IMAGE": project_images.azurite(engine),
        }
    except base.Unavailable as error:
        refuse(str(error))
    with project_images.checkout(engine, "deploy/compose") as (checkout, arguments):
        environment = {
            **stand_ins,
            "TESAZURE_IMAGE": "tesazure-test/composed:1",
            "TESAZURE_PORT": str(base.free_port()),
            "AZURITE_PORT": str(base.free_port()),
            "DOCKER_ROOT": str(engine.root / "data"),
            "DOCKER_SOCKET": str(engine.socket),
        }
        directory = checkout / "deploy/compose"
        site = Composed(directory, engine, ("compose.yaml",), environment, "azurite.env")
        with composed(site, arguments, "api", "secrets"):
            site.type(UP_WITH_AZURITE)
            assert UP_WITH_AZURITE.replace(" --env-file azurite.env", "") == UP
            site.type(CURL, ("8000", environment["TESAZURE_PORT"]))
            site.wait_ready()
            yield site


def document(image: str, script: str, **more: Any) -> dict[str, Any]:
    """A task."""
    return {"executors": [{"image": image, "command": ["sh", "-c", script]}], **more}


def test_a_task_runs_in_the_machines_docker(site: Composed, busybox_image: str) -> None:
    files = site.directory / "files"
    (files / "in.txt").write_text("hello\n")
    given = document(
        busybox_image,
        "tr a-z A-Z < /in/in.txt > /out/out.txt; id -u",
        inputs=[{"url": "file:///files/in.txt", "path": "/in/in.txt"}],
        outputs=[{"url": "file:///files/out/", "path": "/out", "type": "DIRECTORY"}],
    )
    with site.client() as http:
        assert http.get("/v1/tasks/service-info").status_code == 200
        record = ended(http, create(http, given), LONG_S)
    assert record["state"] == "COMPLETE", record
    assert record["logs"][0]["logs"][0]["stdout"] == "0\n"
    assert (files / "out/out.txt").read_text() == "HELLO\n"


def test_what_a_task_writes_as_another_user_arrives(site: Composed, client: Any) -> None:
    """The server has no more of root's rights than that needs."""
    image = site.engine.image("configured")  # its user is 1000
    given = document(
        image,
        "umask 077; mkdir /out/d; echo mine > /out/d/made",
        outputs=[{"url": "file:///files/of-1000/", "path": "/out", "type": "DIRECTORY"}],
    )
    with site.client() as http:
        record = ended(http, create(http, given), LONG_S)
    assert record["state"] == "COMPLETE", record
    assert (site.directory / "files/of-1000/d/made").read_text() == "mine\n"


def test_blobs_in_azurite(site: Composed, client: Any, busybox_image: str) -> None:
    """By the settings of azurite.env, from one task to the next, and with the command line."""
    script = """if True:
        import os
        from azure.storage.blob import BlobServiceClient
        name, key, url = (os.environ[f"APP_STORAGE_{each}"] for each in
            ("ACCOUNT_NAME", "ACCOUNT_KEY", "BLOB_ENDPOINT"))
        credential = {"account_name": name, "account_key": key}
        BlobServiceClient(url, credential).create_container("runs")
    """
    site.run("exec", "-T", "api", "python", "-c", script)
    out = [{"url": "az://runs/said", "path": "/said"}]
    again = [{"url": "az://runs/said", "path": "/in"}]
    with site.client() as http:
        for given in (
            document(busybox_image, "echo to a blob > /said", outputs=out),
            document(busybox_image, "cat /in", inputs=again),
        ):
            record = ended(http, create(http, given), LONG_S)
            assert record["state"] == "COMPLETE", record
    assert record["logs"][0]["logs"][0]["stdout"] == "to a blob\n"
    assert "said" in site.type(LIST_BLOBS)


def test_no_secret_is_where_it_can_be_read(site: Composed, client: docker.DockerClient) -> None:
    """Neither in what Docker tells of the containers nor in their logs; the volume has it."""
    ids = [site.container(name) for name in ("api", "postgres", "secrets")]
    chunks, _ = client.containers.get(ids[1]).get_archive("/run/tesazure/postgres-password")
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        [member] = tar.getmembers()
        file = tar.extractfile(member)
        assert file is not None
        password = file.read().decode()
    assert len(password) > 40
    told = json.dumps([client.api.inspect_container(each) for each in ids])
    logged = "".join(client.containers.get(each).logs().decode() for each in ids)
    assert password not in told + logged + site.run("config")
    assert site.run("exec", "-T", "api", "env").find(password) == -1


def test_the_server_has_few_rights(site: Composed, client: docker.DockerClient) -> None:
    script = "grep -E '^(CapEff|NoNewPrivs)' /proc/1/status; touch /opt/x 2>&1; true"
    said = site.run("exec", "-T", "api", "sh", "-c", script)
    # Capabilities 0, 1 and 3: chown, dac_override, fowner.
    assert "CapEff:\t000000000000000b" in said
    assert "NoNewPrivs:\t1" in said
    assert "Read-only file system" in said


def test_tasks_outlive_the_servers_container(
    site: Composed, client: docker.DockerClient, busybox_image: str
) -> None:
    """An attempt ends with the container that its runner is in; another one follows."""
    with site.client() as http:
        done = create(http, document(busybox_image, "echo before"))
        ended(http, done, LONG_S)
        task_id = create(http, document(busybox_image, "echo begun; sleep 5; echo ended"))
        until(lambda: get(http, task_id, "MINIMAL")["state"] == "RUNNING", LONG_S)
        before = site.container("api")
        site.run("up", "--detach", "--no-deps", "--force-recreate", "api")
        assert site.container("api") != before
        site.wait_ready()
        record = ended(http, task_id, LONG_S)
        assert record["state"] == "COMPLETE", record
        assert [log["logs"][0].get("exit_code") for log in record["logs"]] == [None, 0]
        assert "another attempt follows" in str(record["logs"][0]["system_logs"])
        assert get(http, done)["state"] == "COMPLETE"
    left = client.api.containers(all=True, filters={"label": "tesazure.attempt"})
    assert not [each for each in left if task_id in str(each["Labels"])]


def test_the_database_may_be_away_for_a_while(site: Composed, busybox_image: str) -> None:
    site.run("stop", "postgres")
    with site.client() as http:
        until(lambda: http.get("/readyz").status_code == 503, LONG_S)
        assert http.get("/healthz").status_code == 200
        healthy = "python /opt/ready.py && echo well || echo ill"
        assert site.run("exec", "-T", "api", "sh", "-c", healthy).split()[-1] == "ill"
        site.run("start", "postgres")
        site.wait_ready()
        assert site.run("exec", "-T", "api", "sh", "-c", healthy).split()[-1] == "well"
        assert ended(http, create(http, document(busybox_image, "true")), LONG_S)


def test_everything_is_there_again_after_down_and_up(site: Composed, busybox_image: str) -> None:
    """`down` deletes containers, not volumes; the password stays what it was."""
    with site.client() as http:
        task_id = create(http, document(busybox_image, "echo kept"))
        ended(http, task_id, LONG_S)
    site.run("down", "--timeout", "30")
    site.run("up", "--detach")
    site.wait_ready()
    with site.client() as http:
        record = get(http, task_id)
    assert record["logs"][0]["logs"][0]["stdout"] == "kept\n"


def test_with_azure_batch_it_is_not_root_and_has_no_socket(site: Composed) -> None:
    """batch.yaml laid over it. There is no Batch account: so it starts, and is not ready."""
    key = base64.b64encode(b"a key for tests").decode()
    (site.directory / "mine.env").write_text(
        f"""APP_BATCH_ACCOUNT_URL=https://127.0.0.1:1
APP_BATCH_REGION=westeurope
APP_STORAGE_BLOB_ENDPOINT=http://127.0.0.1:1/none
APP_BATCH_ACCOUNT_KEY={key}
APP_BATCH_ACCOUNT_NAME=none
APP_STORAGE_ACCOUNT_NAME=none
APP_STORAGE_ACCOUNT_KEY={key}
APP_FILETRANSFER_CONTAINER_IMAGE=none.azurecr.io/tesazure/container-filetransfer:1
APP_RETAIL_PRICES_URL=
"""
    )
    with_batch = replace(
        site,
        files=("compose.yaml", "batch.yaml", *site.files[1:]),
        environment={**site.environment, "TESAZURE_SETTINGS": "mine.env"},
        env_file="",
    )
    with_batch.type(UP_WITH_BATCH)
    with with_batch.client() as http:
        until(lambda: alive(http), LONG_S)
        reply = http.get("/readyz")
    assert reply.status_code == 503
    checks = {each["name"]: each["ok"] for each in reply.json()["checks"]}
    assert checks["store"]
    assert not all(checks.values())
    script = "id -u; test -S /var/run/docker.sock || echo none; echo $APP_DATA_DIR"
    said = with_batch.run("exec", "-T", "api", "sh", "-c", script)
    assert said.split() == ["10001", "none", "/data"]


def alive(client: httpx.Client) -> bool:
    """Whether the server answers."""
    with contextlib.suppress(httpx.TransportError):
        return client.get("/healthz").status_code == 200
    return False


def test_a_workflow_of_cromwells(
    engine: DockerEngine, client: docker.DockerClient, python_image: str, short_dir: Path
) -> None:
    """deploy/cromwell: directories, names, ports and configuration fit together."""
    # What the double's calls ask for: an image with bash.
    client.images.get(python_image).tag("ubuntu", "22.04")
    parts = ("deploy/cromwell",)
    with contextlib.ExitStack() as stack:
        stack.callback(client.images.remove, "ubuntu:22.04")
        checkout, arguments = stack.enter_context(project_images.checkout(engine, *parts))
        port = base.free_port()
        environment = {
            "TESAZURE_IMAGE": "tesazure-test/composed:1",
            "CROMWELL_IMAGE": project_images.cromwell(engine),
            "TESAZURE_PORT": str(base.free_port()),
            "CROMWELL_PORT": str(port),
            "CROMWELL_DIR": str(short_dir / "cromwell"),
            "DOCKER_SOCKET": str(engine.socket),
        }
        site = Composed(checkout / "deploy/cromwell", engine, ("compose.yaml",), environment)
        stack.enter_context(composed(site, arguments, "tesazure", "directories"))
        (wdl,) = blocks(ROOT / "docs/cromwell.md", "wdl")
        (site.directory / "hello.wdl").write_text(wdl.text)
        up, version, submit, status, outputs, workflows = documented("docs/cromwell.md")
        site.type(up)
        at, to = ("8001", str(port)), ("@", f"@{site.directory}/")
        site.type(version, at)
        workflow = json.loads(site.type(submit, at, to))["id"]
        ask = (status, at, ("ID", workflow))
        until(lambda: json.loads(site.type(*ask))["status"] != "Running", LONG_S)
        state = json.loads(site.type(*ask))["status"]
        assert state == "Succeeded", site.run("logs", check=False)[-4000:]
        made = json.loads(site.type(outputs, at, ("ID", workflow)))["outputs"]["hello.all"]
        assert workflow in site.type(workflows)
        private = f"ls {short_dir}/cromwell/tesazure 2>&1 || true"
        assert "No such file" in site.run("exec", "-T", "cromwell", "sh", "-c", private)
        with site.client() as http:
            reply = http.get("/ga4gh/tes/v1/tasks", params={"view": "FULL"})
        tags = {task["tags"]["ms-submitter-workflow-id"] for task in reply.json()["tasks"]}
        assert made.startswith(f"{short_dir}/cromwell/files/executions/hello/{workflow}/")
        assert Path(made).read_text() == "hello one\nhello two\nof a table\n"
        assert tags == {workflow}

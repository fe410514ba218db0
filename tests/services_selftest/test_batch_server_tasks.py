"""The Batch stand-in's tasks: what runs really runs, and ends as Batch would end it."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import math
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from azure.batch import models
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError

from tests.conftest import shared
from tests.services.azurite import Azurite
from tests.services.base import processes_naming
from tests.services.batch_machines import RealMachine
from tests.services.docker_engine import DockerEngine
from tests.services_selftest.batch_account import (
    BatchAccount,
    code_of,
    machine,
    script,
)


@pytest.fixture
def real(tmp_path: Path) -> Iterator[BatchAccount]:
    """An account whose command lines run as processes."""
    with BatchAccount(tmp_path / "batch") as found:
        yield found


def in_image(image: str, options: str = "") -> models.BatchTaskContainerSettings:
    return models.BatchTaskContainerSettings(
        image_name=image, container_run_options=options or None
    )


def test_a_process_has_what_a_task_of_batch_has(real: BatchAccount) -> None:
    real.pool()
    text = (
        "import json, os; print(json.dumps([os.getcwd(),"
        " {k: v for k, v in os.environ.items() if k.startswith('AZ_BATCH') or k == 'MINE'}]))"
    )
    setting = models.EnvironmentSetting(name="MINE", value="a b")
    real.wait(real.run(script(text), environment_settings=[setting]))
    assert real.info("t0").result == "success"
    where, found = json.loads(real.text("t0"))
    assert where == found["AZ_BATCH_TASK_WORKING_DIR"] == found["AZ_BATCH_TASK_DIR"] + "/wd"
    assert where.startswith(found["AZ_BATCH_NODE_ROOT_DIR"] + "/workitems/p/job-1/t0")
    assert found["MINE"] == "a b"
    assert found["AZ_BATCH_NODE_ID"] == real.server.node_of("p", "t0")
    assert found["AZ_BATCH_NODE_IS_DEDICATED"] == "true"
    assert (found["AZ_BATCH_POOL_ID"], found["AZ_BATCH_JOB_ID"]) == ("p", "p")


def test_no_shell_reads_a_command_line(real: BatchAccount) -> None:
    real.pool()
    real.wait(real.run("echo $HOME; false"))
    assert real.text("t0") == "$HOME; false\n"


def test_exit_codes(real: BatchAccount) -> None:
    real.pool()
    ids = real.run(script("raise SystemExit(7)"), "/no/such/program", script("print(1)"))
    real.wait(ids)
    found = [real.info(id_) for id_ in ids]
    assert [each.exit_code for each in found] == [7, None, 0]
    codes = [each.failure_info and each.failure_info.code for each in found]
    assert codes == ["FailureExitCode", "CommandProgramNotFound", None]


def test_task_files(real: BatchAccount) -> None:
    real.pool()
    text = "import sys; print('0123456789'); print('bad', file=sys.stderr); open('f', 'w')"
    real.wait(real.run(script(text)))
    assert real.text("t0") == "0123456789\n"
    assert real.text("t0", ocp_range="bytes=2-4") == "234"
    assert real.text("t0", "stderr.txt") == "bad\n"
    files = list(real.client.list_task_files("p", "t0", recursive=True))
    assert [file.name for file in files] == ["stderr.txt", "stdout.txt", "wd", "wd/f"]
    assert files[1].properties is not None
    assert files[1].properties["contentLength"] == "11"
    assert real.client.get_task_file_properties("p", "t0", "stdout.txt").content_length == 11
    for name in ("none.txt", "../../t1/stdout.txt"):
        with pytest.raises(ResourceNotFoundError):
            real.text("t0", name)
    with pytest.raises(HttpResponseError) as refused:
        real.text("t0", ocp_range="bytes=99-")
    assert refused.value.status_code == 416
    real.client.delete_task("p", "t0")
    with pytest.raises(ResourceNotFoundError):
        real.text("t0")


def test_files_of_a_task_that_waits(real: BatchAccount) -> None:
    real.pool(target_dedicated_nodes=0)
    real.run("true")
    with pytest.raises(ResourceExistsError) as raised:
        list(real.client.list_task_files("p", "t0"))
    assert code_of(raised.value) == "TaskFilesUnavailable"


def test_files_come_and_go(real: BatchAccount) -> None:
    azurite = shared(Azurite)
    real.pool()
    with azurite.container() as container:
        blobs = azurite.client().get_container_client(container)
        blobs.upload_blob("in.json", b"1 2 3")
        url = f"{azurite.endpoint}/{container}"
        sas = azurite.blob_sas(container, "in.json")
        expired = azurite.blob_sas(container, "in.json", minutes=-5)
        missing = azurite.blob_sas(container, "none")

        def resource(what: str) -> list[models.ResourceFile]:
            return [models.ResourceFile(http_url=f"{url}/{what}", file_path="sub/in.json")]

        output = models.OutputFile(
            file_pattern="**/*.txt",
            destination=models.OutputFileDestination(
                container=models.OutputFileBlobContainerDestination(
                    container_url=f"{url}?{azurite.container_sas(container)}", path="out"
                )
            ),
            upload_options=models.OutputFileUploadConfiguration(upload_condition="tasksuccess"),
        )
        text = "open('sub/o.txt', 'w').write(open('sub/in.json').read()[::-1])"
        for what in (f"in.json?{sas}", f"in.json?{expired}", f"none?{missing}"):
            real.run(script(text), resource_files=resource(what), output_files=[output])
        real.wait(["t0", "t1", "t2"])
        assert blobs.download_blob("out/sub/o.txt").readall() == b"3 2 1"
        failures = [real.info(id_).failure_info for id_ in ("t0", "t1", "t2")]
        assert [each and each.code for each in failures] == [
            None,
            "BlobAccessDenied",
            "BlobNotFound",
        ]
        assert "sig=" not in str(failures)
        assert real.info("t2").exit_code is None


def test_a_file_cannot_leave_the_working_directory(real: BatchAccount) -> None:
    real.pool()
    file = models.ResourceFile(http_url=f"{real.server.url}/x", file_path="../../../x")
    real.wait(real.run("echo x", resource_files=[file]))
    assert real.failure("t0") == "ResourceDirectoryCreateFailed"


def test_what_a_task_leaves_running_ends_with_it(real: BatchAccount, tmp_path: Path) -> None:
    real.pool()
    mark = tmp_path / "left-behind"
    text = (
        "import subprocess; subprocess.Popen(['sh', '-c', 'sleep 60; : '+"
        f"{str(mark / 'x')!r}], start_new_session=True)"
    )
    real.wait(real.run(script(text)))
    assert list(processes_naming(mark)) == []


def test_terminate_asks_first(real: BatchAccount) -> None:
    real.pool()
    text = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(3));"
        " open('ready', 'w'); time.sleep(60)"
    )
    real.run(script(text))
    real.wait_for_file("t0", "wd/ready")
    real.client.terminate_task("p", "t0")
    real.wait(["t0"])
    found = real.info("t0")
    assert found.exit_code == 3
    assert found.failure_info is not None
    assert found.failure_info.code == "TaskEnded"
    with pytest.raises(ResourceExistsError) as raised:
        real.client.terminate_task("p", "t0")
    assert code_of(raised.value) == "TaskCompleted"


def test_terminate_kills_in_the_end(real: BatchAccount) -> None:
    real.server.timing.grace_s = 0.2
    real.pool()
    text = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); open('ready', 'w'); time.sleep(60)"
    )
    real.run(script(text))
    real.wait_for_file("t0", "wd/ready")
    real.client.terminate_task("p", "t0")
    real.wait(["t0"])
    assert real.info("t0").exit_code == 137


def test_a_deleted_task_is_gone_at_once_and_ended(real: BatchAccount, tmp_path: Path) -> None:
    real.server.timing.grace_s = 0.1
    real.pool()
    mark = tmp_path / "running"
    text = f"open('ready', 'w'); import time; time.sleep(60) # {mark}/"
    real.run(script(text))
    real.wait_for_file("t0", "wd/ready")
    assert list(processes_naming(mark))
    real.client.delete_task("p", "t0")
    with pytest.raises(ResourceNotFoundError):
        real.client.get_task("p", "t0")
    real.server.wait_for(lambda it: it.nodes("p", "idle") != [])
    assert list(processes_naming(mark)) == []
    real.wait(real.run("echo again"))
    assert real.text("t0") == "again\n"


def test_the_wall_clock(real: BatchAccount) -> None:
    real.pool()
    limits = models.BatchTaskConstraints(max_wall_clock_time=dt.timedelta(seconds=0.3))
    real.wait(
        real.run(
            "sleep 60",
            constraints=limits,
        )
    )
    assert real.failure("t0") == "TaskEnded"


def test_retention(real: BatchAccount) -> None:
    real.pool()
    limits = models.BatchTaskConstraints(retention_time=dt.timedelta(seconds=0.1))
    real.wait(
        real.run(
            "echo x",
            constraints=limits,
        )
    )
    task = real.server.task("p", "t0")
    assert task is not None
    assert task.execution is not None
    directory = task.execution.directory
    assert directory is not None
    real.server.wait_for(lambda _: not directory.exists())
    assert real.client.get_task("p", "t0").state == "completed"


def test_batchs_own_retries(real: BatchAccount) -> None:
    real.pool()
    text = "raise SystemExit(4)"
    limits = models.BatchTaskConstraints(max_task_retry_count=2)
    real.wait(real.run(script(text), constraints=limits))
    assert real.info("t0").retry_count == 2
    assert real.info("t0").exit_code == 4


def test_a_share_is_one_for_all_nodes(real: BatchAccount) -> None:
    url = "https://account.file.core.windows.net/share"
    mount = models.MountConfiguration(
        azure_file_share_configuration=models.AzureFileShareConfiguration(
            account_name="account",
            account_key="secret",
            azure_file_url=url,
            relative_mount_path="global",
        )
    )
    for id_ in ("p", "q"):
        real.pool(id_, mount_configuration=[mount])
    text = (
        "import os, pathlib; f = pathlib.Path(os.environ['AZ_BATCH_NODE_MOUNTS_DIR'], 'global/f');"
        " f.open('a').write('x'); print(f.read_text())"
    )
    real.wait(real.run(script(text)))
    real.wait(real.run(script(text), job="q"), job="q")
    assert real.text("t0", job="q") == "xx\n"
    assert (real.server.share(url) / "f").read_text() == "xx"


# ---------------------------------------------------------------------- containers


def test_a_pool_must_be_for_containers(real: BatchAccount) -> None:
    real.pool()
    real.wait(real.run("true", container_settings=in_image("x")))
    assert real.failure("t0") == "ContainerPoolNotSupported"


def test_an_image_that_no_registry_has(real: BatchAccount) -> None:
    assert isinstance(real.server.machine, RealMachine)
    real.server.machine.missing_images.add("none:1")
    real.pool(virtual_machine_configuration=machine(containers=True))
    ids = real.run("true", container_settings=in_image("none:1"))
    ids += real.run("echo x", container_settings=in_image("any:1"))
    real.wait(ids)
    assert real.failure("t0") == "ContainerInvalidImage"
    container = real.info("t1").container_info
    assert container is not None
    assert container.state == "exited"


@pytest.mark.docker
def test_containers(short_dir: Path, docker_engine: DockerEngine, busybox_image: str) -> None:
    with BatchAccount(short_dir / "b", docker=docker_engine.url) as real:
        real.server.timing.grace_s = 1
        real.pool(virtual_machine_configuration=machine(containers=True), task_slots_per_node=4)
        settings = in_image(
            busybox_image, "--rm --user 0 --init -v /var/run/docker.sock:/var/run/docker.sock"
        )
        ids = real.run("sh -c 'pwd; env; ls /var/run; echo x > f'", container_settings=settings)
        ids += real.run("sh -c 'exit 9'", container_settings=settings)
        ids += real.run("true", container_settings=in_image("tesazure-test/none:1"))
        real.wait(ids)
        printed = real.text("t0").splitlines()
        assert printed[0].endswith("/workitems/p/job-1/t0/wd")
        assert f"AZ_BATCH_TASK_WORKING_DIR={printed[0]}" in printed
        assert "docker.sock" in printed
        assert Path(printed[0], "f").read_text() == "x\n"
        assert real.info("t1").exit_code == 9
        assert real.failure("t2") == "ContainerInvalidImage"
        real.run("sh -c 'touch ready; sleep 60'", container_settings=settings)
        real.wait_for_file("t3", "wd/ready")
        real.client.terminate_task("p", "t3")
        real.wait(["t3"])
        real.run("sh -c 'touch ready; sleep 60'", container_settings=settings)
        real.wait_for_file("t4", "wd/ready")
        real.client.delete_task("p", "t4")
        real.server.wait_for(lambda it: it.nodes("p", "idle") != [])


@pytest.mark.docker
def test_a_lost_node_takes_all_its_containers(
    short_dir: Path, docker_engine: DockerEngine, busybox_image: str
) -> None:
    with (
        BatchAccount(short_dir / "b", docker=docker_engine.url) as real,
        contextlib.closing(docker.DockerClient(docker_engine.url)) as engine,
    ):
        real.server.timing.replacement_s = math.inf
        real.pool(
            target_low_priority_nodes=1, virtual_machine_configuration=machine(containers=True)
        )
        real.run("sh -c 'touch ready; sleep 60'", container_settings=in_image(busybox_image))
        real.wait_for_file("t0", "wd/ready")
        task = real.server.task("p", "t0")
        assert task is not None
        assert task.execution is not None
        root = str(task.execution.root)
        beside = engine.containers.run(
            busybox_image, ["sleep", "60"], detach=True, volumes={root: {"bind": root}}
        )
        real.client.terminate_task("p", "t0")
        real.server.preempt(real.server.node_of("p", "t0"))
        real.server.wait_for(lambda _: not Path(root).exists())
        # Other tests' containers come and go meanwhile.
        left = engine.containers.list(all=True, ignore_removed=True)
        assert beside.id not in {container.id for container in left}
        assert not any(root in str(container.attrs["Mounts"]) for container in left)
        real.wait(["t0"])
        assert real.failure("t0") == "TaskEnded"

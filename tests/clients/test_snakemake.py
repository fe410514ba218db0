"""A real Snakemake workflow on real sequencing reads, each job of it a task of the server.

Snakemake's TES executor waits 40 s before it first asks for a task's state
(`init_seconds_before_status_checks`): that is what these tests spend their time on.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import docker
import httpx
import pytest

from tests.clients.conftest import ClientImage, ClientPython, Server, serving
from tests.clients.documented import snippet
from tests.clients.shared_global import seeing
from tests.conftest import refuse
from tests.services import base
from tests.services.docker_engine import DockerEngine

HERE = Path(__file__).parent
WORKFLOW = HERE / "workflow"
S3_SERVER = HERE / "scripts" / "s3_server.py"
EXAMPLES = "/usr/share/doc/bowtie2/examples/reads"
SAMPLES = ("reads_1", "reads_2")
JOBS = ["snakejob.statistics", "snakejob.statistics", "snakejob.summary"]

pytestmark = [
    pytest.mark.clients,
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]


@pytest.fixture
def image(image_of: ClientImage) -> str:
    """Reference of an image that has Snakemake."""
    return image_of("snakemake")


@pytest.fixture
def reads(docker_engine: DockerEngine, genomics_image: str) -> dict[str, bytes]:
    """The gzipped lambda phage reads that bowtie2 comes with, by sample."""
    with contextlib.closing(docker.DockerClient(docker_engine.url)) as client:
        container = client.containers.create(genomics_image, ["true"])
        try:
            chunks, _ = container.get_archive(EXAMPLES)
            packed = io.BytesIO(b"".join(chunks))
        finally:
            container.remove()
    found = {}
    with tarfile.open(fileobj=packed) as tar:
        for sample in SAMPLES:
            member = tar.extractfile(f"reads/{sample}.fq.gz")
            assert member is not None
            found[sample] = member.read()
    return found


def test_files_in_s3(
    client_python: ClientPython,
    docker_engine: DockerEngine,
    image: str,
    reads: dict[str, bytes],
    short_dir: Path,
) -> None:
    """With py-tes 0.4, which Snakemake's plugin asks for; it adds /v1/tasks to the URL."""
    settings = {"local_engine": "docker", "docker_host": docker_engine.url}
    with (
        s3(client_python("s3-server"), docker_engine.gateway) as storage,
        serving(short_dir, image, **settings) as server,
        httpx.Client(base_url=f"{storage}/phage/", headers={"Authorization": "AWS any:"}) as bucket,
    ):
        bucket.put("").raise_for_status()
        for sample, packed in reads.items():
            bucket.put(f"run/reads/{sample}.fq.gz", content=packed).raise_for_status()
        here = {
            "http://127.0.0.1:8000": server.url,
            "snakemake/snakemake:v9.27.1": image,
            "s3://bucket": "s3://phage",
            "http://storage.example:9000": storage,
        }
        profile = short_dir / "workflow" / "profile" / "config.yaml"
        profile.parent.mkdir(parents=True)
        profile.write_text(snippet("Snakemake", "executor: tes", here))
        script = snippet("Snakemake", "--profile", {"…": "any"})
        run(["sh", "-ec", script], client_python("snakemake"), server, short_dir)
        assert bucket.get("run/results/summary.tsv").text == summary_of(reads)
        assert bucket.get("run/logs/reads_1.log").text == "10000 reads\n"
        assert sorted(jobs(server)) == JOBS


def test_files_in_shared_global(
    client_python: ClientPython,
    docker_engine: DockerEngine,
    image: str,
    reads: dict[str, bytes],
    short_dir: Path,
) -> None:
    """With py-tes 1.x, and files in a directory that tasks and Snakemake see at one path."""
    try:
        base.require_program("rsync", "rsync")  # the fs storage plugin copies with it
    except base.Unavailable as error:
        refuse(str(error))
    shared = short_dir / "shared"
    (shared / "my-run" / "reads").mkdir(parents=True)
    for sample, packed in reads.items():
        (shared / "my-run" / "reads" / f"{sample}.fq.gz").write_bytes(packed)
    settings = {
        "local_engine": "docker",
        "docker_host": docker_engine.url,
        "shared_global_dir": str(shared),
    }
    with serving(short_dir, image, **settings) as server:
        here = {
            "http://127.0.0.1:8000/ga4gh/tes": server.url,
            "snakemake/snakemake:v9.27.1": image,
        }
        script = snippet("Snakemake", "--default-storage-provider fs", here)
        command = [*seeing(shared), "sh", "-ec", script]
        run(command, client_python("snakemake-py-tes-1"), server, short_dir)
        assert (shared / "my-run" / "results" / "summary.tsv").read_text() == summary_of(reads)
        assert sorted(jobs(server)) == JOBS


def run(command: Sequence[object], python: Path, server: Server, root: Path) -> None:
    """Run the command, which has `snakemake` on its PATH, where the workflow is."""
    directory = root / "workflow"
    shutil.copytree(WORKFLOW, directory, dirs_exist_ok=True)
    done = subprocess.run(
        list(map(str, command)),
        cwd=directory,
        env={**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-6000:] + server.account()


def jobs(server: Server) -> list[str]:
    """Names of the completed tasks, without the job's number."""
    reply = httpx.get(f"{server.url}/ga4gh/tes/v1/tasks", params={"view": "BASIC"})
    tasks = reply.raise_for_status().json()["tasks"]
    assert [task["state"] for task in tasks] == ["COMPLETE"] * len(tasks)
    return [".".join(task["name"].split(".")[:2]) for task in tasks]


@contextlib.contextmanager
def s3(python: Path, address: str) -> Iterator[str]:
    """URL of an S3 server that listens on `address`."""
    process = subprocess.Popen(
        [python, S3_SERVER, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def summary_of(reads: dict[str, bytes]) -> str:
    """What the workflow must find."""
    lines = ["sample\treads\tbases\tgc\n"]
    for sample, packed in reads.items():
        sequences = gzip.decompress(packed).splitlines()[1::4]
        gc = sum(sequence.count(b"G") + sequence.count(b"C") for sequence in sequences)
        lines.append(f"{sample}\t{len(sequences)}\t{sum(map(len, sequences))}\t{gc}\n")
    return "".join(lines)

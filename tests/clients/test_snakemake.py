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

from tests.clients import snakemake_image
from tests.clients.conftest import ClientPython, Server, serving
from tests.conftest import refuse
from tests.services import base
from tests.services.docker_engine import DockerEngine

HERE = Path(__file__).parent
WORKFLOW = HERE / "workflow"
S3_SERVER = HERE / "scripts" / "s3_server.py"
EXAMPLES = "/usr/share/doc/bowtie2/examples/reads"
SAMPLES = ("reads_1", "reads_2")
JOBS = ["snakejob.statistics", "snakejob.statistics", "snakejob.summary"]
SHARED_GLOBAL = "/tes-wd/shared-global"

pytestmark = [
    pytest.mark.clients,
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]


@pytest.fixture
def image(docker_engine: DockerEngine, python_image: str) -> str:
    """Reference of an image that has Snakemake."""
    try:
        return snakemake_image.image(docker_engine, python_image, "snakemake")
    except base.Unavailable as error:
        refuse(str(error))


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
        workflow = [
            *(client_python("snakemake"), "-m", "snakemake"),
            *("--default-storage-provider", "s3", "--default-storage-prefix", "s3://phage/run"),
            *("--storage-s3-endpoint-url", storage),
        ]
        keys = {"SNAKEMAKE_STORAGE_S3_ACCESS_KEY": "any", "SNAKEMAKE_STORAGE_S3_SECRET_KEY": "any"}
        run(workflow, f"{server.url}/ga4gh/tes", server, short_dir, keys)
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
        bubblewrap = base.require_program("bwrap", "bubblewrap")
        base.require_program("rsync", "rsync")  # the fs storage plugin copies with it
    except base.Unavailable as error:
        refuse(str(error))
    shared = short_dir / "shared"
    (shared / "reads").mkdir(parents=True)
    for sample, packed in reads.items():
        (shared / "reads" / f"{sample}.fq.gz").write_bytes(packed)
    settings = {
        "local_engine": "docker",
        "docker_host": docker_engine.url,
        "shared_global_dir": str(shared),
    }
    with serving(short_dir, image, **settings) as server:
        python = client_python("snakemake-py-tes-1")
        workflow = [
            *(bubblewrap, *with_shared_global(shared), python, "-m", "snakemake"),
            *("--default-storage-provider", "fs", "--default-storage-prefix", SHARED_GLOBAL),
        ]
        run(workflow, server.url, server, short_dir, {})
        assert (shared / "results" / "summary.tsv").read_text() == summary_of(reads)
        assert sorted(jobs(server)) == JOBS


def run(
    snakemake: Sequence[object], url: str, server: Server, root: Path, environ: dict[str, str]
) -> None:
    """Run the workflow to its end."""
    directory = root / "workflow"
    shutil.copytree(WORKFLOW, directory)
    options = ["--executor", "tes", "--tes-url", url, "--container-image", server.image]
    done = subprocess.run(
        [*map(str, snakemake), *options, "--jobs", "2", "--seconds-between-status-checks", "1"],
        cwd=directory,
        env={**os.environ, **environ},
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


def with_shared_global(shared: Path) -> list[str | Path]:
    """bwrap arguments for this machine's file system with `shared` at /tes-wd/shared-global."""
    arguments: list[str | Path] = []
    for entry in Path("/").iterdir():
        if entry.is_symlink():
            arguments += ["--symlink", entry.readlink(), entry]
        elif entry.is_dir() and entry.name not in {"proc", "dev", "tes-wd"}:
            arguments += ["--dev-bind", entry, entry]
    arguments += ["--dev-bind", "/dev", "/dev", "--proc", "/proc"]
    return [*arguments, "--bind", shared, SHARED_GLOBAL, "--die-with-parent"]


def summary_of(reads: dict[str, bytes]) -> str:
    """What the workflow must find."""
    lines = ["sample\treads\tbases\tgc\n"]
    for sample, packed in reads.items():
        sequences = gzip.decompress(packed).splitlines()[1::4]
        gc = sum(sequence.count(b"G") + sequence.count(b"C") for sequence in sequences)
        lines.append(f"{sample}\t{len(sequences)}\t{sum(map(len, sequences))}\t{gc}\n")
    return "".join(lines)

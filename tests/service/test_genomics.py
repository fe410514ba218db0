"""Real work: one task of four executors aligns the lambda phage reads that bowtie2 comes with.

What the task leaves must equal what the same tools leave when they are run by hand.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.service.server import RunningServer, create, ended, start_server
from tests.services.docker_engine import DockerEngine

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]

EXAMPLES = "/usr/share/doc/bowtie2/examples"
PAIR = ("/in/reads/reads_1.fq.gz", "/in/reads/reads_2.fq.gz")

INDEX = """\
set -e
mkdir /index/bwa /index/bowtie2
bwa index -p /index/bwa/lambda /in/reference/lambda_virus.fa
bowtie2-build --seed 1 /in/reference/lambda_virus.fa /index/bowtie2/lambda
"""
SORT = """\
set -e
samtools sort -o /results/alignments/bwa.bam /scratch/bwa.sam
samtools index /results/alignments/bwa.bam
samtools flagstat /results/alignments/bwa.bam > /results/bwa.flagstat
"""
BWA_MEM = ["bwa", "mem", "-t", "1", "/index/bwa/lambda", *PAIR]
BOWTIE2 = """\
set -e
bowtie2 -p 1 --seed 1 -x /index/bowtie2/lambda -1 "$1" -2 "$2" -S /results/alignments/bowtie2.sam
samtools flagstat /results/alignments/bowtie2.sam > /results/bowtie2.flagstat
"""
BY_HAND = f"""\
set -e
mkdir /index /scratch /results/alignments
{INDEX}
{" ".join(BWA_MEM)} > /scratch/bwa.sam
{SORT}
set -- {" ".join(PAIR)}
({BOWTIE2}) 2> /results/bowtie2.summary
"""


@pytest.fixture
def data(docker_engine: DockerEngine, genomics_image: str, short_dir: Path) -> Path:
    """The phage's genome and paired reads below `in`, and a directory `out` for results."""
    source = short_dir / "allowed" / "in"
    source.mkdir(parents=True)
    with contextlib.closing(docker.DockerClient(docker_engine.url)) as client:
        container = client.containers.create(genomics_image, ["true"])
        try:
            for name in ("reads", "reference"):
                chunks, _ = container.get_archive(f"{EXAMPLES}/{name}")
                # Not by `tarfile`, whose filters Python has since 3.11.4.
                command = ["tar", "--extract", "--file=-", "--no-same-owner", "--directory", source]
                subprocess.run(command, input=b"".join(chunks), check=True, timeout=60)
        finally:
            container.remove()
    genome = source / "reference" / "lambda_virus.fa.gz"
    genome.with_suffix("").write_bytes(gzip.decompress(genome.read_bytes()))
    genome.unlink()
    return short_dir / "allowed"


@pytest.fixture
def server(docker_engine: DockerEngine, data: Path, short_dir: Path) -> Iterator[RunningServer]:
    """A server whose tasks run in Docker and may use `data`."""
    settings = {"local_engine": "docker", "docker_host": docker_engine.url}
    with start_server(short_dir / "server", allow_dir=data, **settings) as running:
        yield running


def alignment_task(image: str, data: Path) -> dict[str, Any]:
    """The TES task; inputs are directories, results a directory, a pattern and a stream."""

    def shell(script: str, *arguments: str, **more: str) -> dict[str, Any]:
        return {"image": image, "command": ["sh", "-c", script, "sh", *arguments], **more}

    return {
        "name": "lambda phage, bwa and bowtie2",
        "inputs": [
            {"url": f"file://{data}/in/{name}", "path": f"/in/{name}", "type": "DIRECTORY"}
            for name in ("reads", "reference")
        ],
        "outputs": [
            {
                "url": f"file://{data}/out/alignments",
                "path": "/results/alignments",
                "type": "DIRECTORY",
            },
            {
                "url": f"file://{data}/out/counts",
                "path": "/results/*.flagstat",
                "path_prefix": "/results",
            },
            {"url": f"file://{data}/out/bowtie2.summary", "path": "/results/bowtie2.summary"},
        ],
        "executors": [
            shell(INDEX),
            {"image": image, "command": BWA_MEM, "stdout": "/scratch/bwa.sam"},
            shell(SORT),
            shell(BOWTIE2, *PAIR, stderr="/results/bowtie2.summary"),
        ],
        "volumes": ["/index", "/scratch"],
        "resources": {"cpu_cores": 1, "ram_gb": 2, "disk_gb": 1},
    }


def test_task_aligns_as_the_tools_do(
    docker_engine: DockerEngine,
    genomics_image: str,
    data: Path,
    server: RunningServer,
    short_dir: Path,
) -> None:
    by_hand = run_by_hand(docker_engine, genomics_image, data, short_dir / "by-hand")

    with server.client() as client:
        task = ended(client, create(client, alignment_task(genomics_image, data)), timeout_s=300)

    (log,) = task["logs"]
    assert task["state"] == "COMPLETE", log
    assert [step["exit_code"] for step in log["logs"]] == [0, 0, 0, 0]
    out = data / "out"
    for tool in ("bwa", "bowtie2"):
        counts = (out / "counts" / f"{tool}.flagstat").read_text()
        assert counts == (by_hand / f"{tool}.flagstat").read_text()
        assert aligned(counts) > 18_000
    summary = (out / "bowtie2.summary").read_text()
    assert summary == (by_hand / "bowtie2.summary").read_text()
    assert summary.startswith("10000 reads; of these:\n")
    name = "alignments/bowtie2.sam"
    assert records(out / name) == records(by_hand / name)
    sizes = {entry["path"]: int(entry["size_bytes"]) for entry in log["outputs"]}
    assert sizes == {
        container_path: (out / local).stat().st_size
        for container_path, local in {
            "/results/alignments/bwa.bam": "alignments/bwa.bam",
            "/results/alignments/bwa.bam.bai": "alignments/bwa.bam.bai",
            "/results/alignments/bowtie2.sam": "alignments/bowtie2.sam",
            "/results/bwa.flagstat": "counts/bwa.flagstat",
            "/results/bowtie2.flagstat": "counts/bowtie2.flagstat",
            "/results/bowtie2.summary": "bowtie2.summary",
        }.items()
    }, json.dumps(log["outputs"])


def run_by_hand(engine: DockerEngine, image: str, data: Path, results: Path) -> Path:
    """The same tools in the same image by plain `docker run`; the directory of their results."""
    results.mkdir()
    mounts = {
        str(data / "in"): {"bind": "/in", "mode": "ro"},
        str(results): {"bind": "/results", "mode": "rw"},
    }
    with contextlib.closing(docker.DockerClient(engine.url, timeout=300)) as client:
        client.containers.run(
            image,
            ["sh", "-c", BY_HAND],
            volumes=mounts,
            network_mode="none",
            remove=True,
        )
    return results


def aligned(flagstat: str) -> int:
    """Number of reads in the `mapped` line of samtools flagstat."""
    (line,) = [
        line for line in flagstat.splitlines() if " mapped (" in line and "primary" not in line
    ]
    return int(line.split()[0])


def records(sam: Path) -> list[str]:
    """The alignments of a SAM file, without its header."""
    return [line for line in sam.read_text().splitlines() if not line.startswith("@")]

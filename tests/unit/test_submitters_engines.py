"""submitters: the tasks of every engine but Cromwell, and those that only resemble them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tesazure.model import Task
from tesazure.submitters import Submitter, recognise
from tests.submitted import (
    WORKFLOW,
    Document,
    cwl_tes,
    galaxy,
    nextflow,
    snakemake,
    toil,
)

COUNT = Submitter("nextflow", stage="ALIGN:COUNT", optional_outputs=True)


def changed(document: Document, executor: int = 0, **fields: Any) -> Document:
    """The task with other fields in one of its executors."""
    executors = [dict(each) for each in document["executors"]]
    executors[executor] |= fields
    return {**document, "executors": executors}


def without(document: Document, field: str, name: str) -> Document:
    """The task without the inputs or outputs at one path."""
    return {**document, field: [x for x in document[field] if not x["path"].endswith(name)]}


def repeated(document: Document) -> Document:
    """The task with one more executor."""
    return {**document, "executors": [*document["executors"], *document["executors"]]}


@pytest.mark.parametrize(
    ("document", "submitter"),
    [
        (nextflow(), COUNT),
        (nextflow(since_2024=False), COUNT),
        (nextflow("/tmp/nxf"), COUNT),
        (nextflow(name="COUNT"), Submitter("nextflow", stage="COUNT", optional_outputs=True)),
        (nextflow(name=None), Submitter("nextflow", optional_outputs=True)),
        (snakemake(), Submitter("snakemake", stage="count")),
        (
            snakemake(name=f"snakejob.group.a.{WORKFLOW}.sh"),
            Submitter("snakemake", stage="group.a"),
        ),
        (snakemake(name="my-count-1"), Submitter("snakemake")),
        (
            changed(snakemake(), command=["/bin/sh", "/tmp/run_snakemake.sh"]),
            Submitter("snakemake", stage="count"),
        ),
        (toil(), Submitter("toil", stage="hello.say")),
        (toil(name="'it's' kind-x/instance-y v12"), Submitter("toil", stage="it's")),
        (toil(name="something else"), Submitter("toil")),
        (toil(name="'a' b' c d v1"), Submitter("toil", stage="c")),
        (toil(name="'a' step v1x"), Submitter("toil")),
        (toil(name="'a' v1"), Submitter("toil")),
        (toil(inputs=None), Submitter("toil", stage="hello.say")),
        (cwl_tes(), Submitter("cwl-tes", stage="count_2")),
        (cwl_tes({"CWLDocumentId": "file:///tool.cwl"}), Submitter("cwl-tes", stage="count_2")),
        (
            cwl_tes({"CWLDocumentId": None, "tool_name": "count_2", "workflow_id": WORKFLOW}),
            Submitter("cwl-tes", workflow_id=WORKFLOW, stage="count_2"),
        ),
        (
            cwl_tes({"CWLDocumentId": None, "workflow_id": "mine"}),
            Submitter("cwl-tes", stage="count_2"),
        ),
        (galaxy(), Submitter("galaxy")),
        (galaxy(container=False), Submitter("galaxy")),
        (galaxy(name="pulsar-42"), Submitter("galaxy")),
    ],
)
def test_engines_tasks(document: Document, submitter: Submitter) -> None:
    assert recognise(msgspec.convert(document, Task)) == submitter


@pytest.mark.parametrize(
    "document",
    [
        without(nextflow(), "inputs", ".command.sh"),
        without(nextflow(), "inputs", ".command.run"),
        without(nextflow(), "outputs", ".exitcode"),
        without(nextflow(), "outputs", ".command.log"),
        changed(nextflow(), workdir="/elsewhere"),
        changed(nextflow(), workdir=None),
        changed(nextflow(), command=["bash", "/elsewhere/.command.run"]),
        repeated(nextflow()),
        snakemake(inputs=None),
        without(snakemake(), "inputs", "run_snakemake.sh"),
        changed(snakemake(), workdir="/elsewhere"),
        changed(snakemake(), command=["/tmp/run_snakemake.sh"]),
        changed(snakemake(), command=["/bin/bash", "/tmp/my_run_snakemake.sh"]),
        repeated(snakemake()),
        changed(toil(), command=["_toil_contained_executor"]),
        changed(toil(), command=["_toil_contained_executor", "--help"]),
        changed(toil(), command=["toil", *toil()["executors"][0]["command"]]),
        repeated(toil()),
        cwl_tes({}),
        cwl_tes({"cwlDocumentId": None}),
        changed(cwl_tes(), workdir=None),
        changed(cwl_tes(), workdir="/elsewhere"),
        changed(cwl_tes(), env=None),
        changed(cwl_tes(), env={"HOME": "/root"}),
        cwl_tes(outputs=None),
        cwl_tes(outputs=[cwl_tes()["outputs"][0] | {"type": "FILE"}]),
        cwl_tes(outputs=[cwl_tes()["outputs"][0] | {"name": "results"}]),
        repeated(cwl_tes()),
        galaxy(name="galaxy job"),
        galaxy(name=None),
        galaxy(volumes=None),
        galaxy(volumes=["/pulsar_staging/", "/other"]),
        changed(galaxy(), command=["pulsar-submit", "--base64", "eyJhIjogMX0="]),
        changed(galaxy(), command=["sh", "-c", "pulsar-submit --base64 x --app_conf_base64 y"]),
        changed(galaxy(), 2, command=["sh", "-c", "pulsar-finish"]),
        galaxy(executors=galaxy()["executors"][:2]),
    ],
)
def test_tasks_that_only_resemble_theirs(document: Document) -> None:
    assert recognise(msgspec.convert(document, Task)) == Submitter()

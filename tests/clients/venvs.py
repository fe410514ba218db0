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


@dataclass(frozen=True)
class Client:
    """What a client's lock is compiled from; `overrides` win over what its packages declare."""

    requirements: tuple[str, ...]
    overrides: tuple[str, ...] = ()


# py-tes 0.4 imports six without declaring it; Snakemake's plugin declares py-tes < 1.
SNAKEMAKE = (
    "snakemake==9.27.1",
    "snakemake-executor-plugin-tes==0.1.3",
    "snakemake-storage-plugin-fs==1.1.3",
    "snakemake-storage-plugin-s3==0.3.6",
    "six",
)
CLIENTS = {
    "py-tes": Client(("py-tes==1.1.4",)),
    "py-tes-0.4": Client(("py-tes==0.4.2", "six")),
    "galaxy": Client(("pydantic-tes==0.4.0",)),
    "snakemake": Client(SNAKEMAKE),
    "snakemake-py-tes-1": Client(SNAKEMAKE, overrides=("py-tes==1.1.4",)),
    # Not a client of TES: the S3 server that Snakemake's tasks keep their files in.
    "s3-server": Client(("moto[s3,server]==5.2.5",)),
    # Nor is this: Google's own SDK, which proves the stand-in for its service right.
    "gcs-sdk": Client(("google-cloud-storage==3.17.1",)),
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
    with images.lock(f"venv-{name}"):
        if not complete.exists():
            # Scripts of a venv name its path, so it is made in its place, not renamed into it.
            remove_versions(name)
            install(lock, directory)
            complete.touch()
    return directory / "bin" / "python"


def remove_versions(name: str) -> None:
    """Delete the client's venvs of other locks, and what a killed run left."""
    for old in CACHE.glob(f"{name}-*"):
        if old.name.removeprefix(f"{name}-").isalnum():
            shutil.rmtree(old)


def install(lock: Path, directory: Path) -> None:
    """Make a venv with exactly what the lock names."""
    packages = ("--require-hashes", "--no-deps", "--requirement", str(lock))
    commands = [
        [sys.executable, "-m", "venv", directory],
        [directory / "bin" / "python", "-m", "pip", "install", "--quiet", *packages],
    ]
    for command in commands:
        pip(command, lock.name)


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

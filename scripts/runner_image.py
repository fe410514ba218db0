"""Make the build context of deploy/images/runner: everything that its Dockerfile needs.

    python -m scripts.runner_image DIRECTORY [--python 3.12]
    docker build -t tesazure-runner DIRECTORY

The wheels are those of requirements/image.txt, fetched by pip, which checks their hashes, and that
of this checkout. --python is the version in the base image; without it, that of the running Python.
Needs what `make setup` or `make base` installs.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMAGE = ROOT / "deploy/images/runner"
LOCK = ROOT / "requirements/image.txt"
_NEWEST_GLIBC = 28
"""Wheels for glibc 2.28 and older run on Debian 10, Ubuntu 20.04 and all that is newer."""


def make_context(directory: Path, python: str = "") -> None:
    """Fill a directory, made if need be; wheels that are there already are not fetched again."""
    wheels = directory / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    fetch: list[str | Path] = [
        "download",
        "--require-hashes",
        "--no-deps",
        "--only-binary=:all:",
        "-r",
        LOCK,
    ]
    fetch += ["--dest", wheels, "--find-links", wheels, *target(python)]
    try:
        pip(*fetch, "--no-index", said=subprocess.DEVNULL)
    except subprocess.CalledProcessError:  # not all of them are there
        pip(*fetch)
    for old in wheels.glob("tesazure-*.whl"):
        old.unlink()
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, ROOT)
    [ours] = wheels.glob("tesazure-*.whl")
    version = ours.name.split("-")[1]
    digest = hashlib.sha256(ours.read_bytes()).hexdigest()
    requirements = f"{LOCK.read_text()}tesazure=={version} --hash=sha256:{digest}\n"
    (directory / "requirements.txt").write_text(requirements)
    shutil.copy(IMAGE / "Dockerfile", directory)


def target(python: str) -> list[str]:
    """pip's options for another version of Python than the running one."""
    if python in ("", platform.python_version().rpartition(".")[0]):
        return []
    machine = platform.machine()
    names = [f"manylinux_2_{minor}" for minor in range(_NEWEST_GLIBC, 4, -1)]
    names += ["manylinux2014", "manylinux2010", "manylinux1"]
    options = ["--python-version", python, "--implementation", "cp"]
    return [*options, *(f"--platform={name}_{machine}" for name in names)]


def pip(*arguments: str | Path, said: int | None = None) -> None:
    """Run this Python's pip; `said`: where its errors go. Raises CalledProcessError."""
    words = [str(word) for word in arguments]
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", *words, *quiet], check=True, stderr=said)


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path, help="where the context goes")
    parser.add_argument("--python", default="", help="version in the base image, such as 3.12")
    arguments = parser.parse_args()
    try:
        make_context(arguments.directory, arguments.python)
    except subprocess.CalledProcessError as error:
        sys.exit(f"pip failed with exit code {error.returncode}")


if __name__ == "__main__":
    main()

"""Make a build context for an image where its build can reach no package index.

    python -m scripts.image_context api|runner DIRECTORY [--python 3.12]
    docker build -f DIRECTORY/deploy/images/api/Dockerfile --build-arg PIP_NO_INDEX=1 DIRECTORY

It is what the build needs of a checkout, and the wheels of requirements/*.txt, fetched by pip,
which checks their hashes. --python is the version in the base image; without it, that of the
running Python. Needs what `make setup` or `make base` installs.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = (
    *(".dockerignore", "LICENSE", "README.md", "pyproject.toml"),
    *("deploy/images", "requirements/build.txt", "src"),
)
_NEWEST_GLIBC = 28
"""Wheels for glibc 2.28 and older run on Debian 10, Ubuntu 20.04 and all that is newer."""


def make_context(image: str, directory: Path, python: str = "") -> None:
    """Fill a directory, made if need be; wheels that are there already are not fetched again."""
    lock = f"requirements/{image}.txt"
    for part in (*PARTS, lock):
        source, target = ROOT / part, directory / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    wheels = directory / "wheels"
    for name in (lock, "requirements/build.txt"):
        fetch: list[str | Path] = ["download", "--require-hashes", "--no-deps", "-r", ROOT / name]
        fetch += ["--only-binary=:all:", "--dest", wheels, "--find-links", wheels]
        fetch += target_of(python)
        try:
            pip(*fetch, "--no-index", said=subprocess.DEVNULL)
        except subprocess.CalledProcessError:  # not all of them are there
            pip(*fetch)


def target_of(python: str) -> list[str]:
    """pip's options for what runs in the base image, which is no matter of this machine's system: a
    newer one would take wheels that the image cannot load."""
    version = python or f"{sys.version_info.major}.{sys.version_info.minor}"
    machine = platform.machine().replace("arm64", "aarch64")
    names = [f"manylinux_2_{minor}" for minor in range(_NEWEST_GLIBC, 4, -1)]
    names += ["manylinux2014", "manylinux2010", "manylinux1"]
    options = ["--python-version", version, "--implementation", "cp"]
    return [*options, *(f"--platform={name}_{machine}" for name in names)]


def pip(*arguments: str | Path, said: int | None = None) -> None:
    """Run this Python's pip; `said`: where its errors go. Raises CalledProcessError."""
    words = [str(word) for word in arguments]
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", *words, *quiet], check=True, stderr=said)


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("image", choices=["api", "runner"])
    parser.add_argument("directory", type=Path, help="where the context goes")
    parser.add_argument("--python", default="", help="version in the base image, such as 3.12")
    arguments = parser.parse_args()
    try:
        make_context(arguments.image, arguments.directory, arguments.python)
    except subprocess.CalledProcessError as error:
        sys.exit(f"pip failed with exit code {error.returncode}")


if __name__ == "__main__":
    main()

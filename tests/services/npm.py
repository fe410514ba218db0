"""Packages from npm, in the versions that a lock file names, kept between runs."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from tests.services import base, images

LOCKS = Path(__file__).parents[2] / "requirements"


@functools.cache
def installed(name: str) -> Path:
    """The directory that holds node_modules for requirements/NAME, made now if it is not in the
    cache. Raises Unavailable when the packages cannot be had."""
    npm = base.require_program("npm", "npm")
    lock = LOCKS / name
    digest = hashlib.sha256((lock / "package-lock.json").read_bytes()).hexdigest()[:16]
    directory = images.CACHE / "node" / f"{name}-{digest}"
    with images.lock(name):
        if not (directory / "complete").exists():
            base.remove_tree(directory)
            shutil.copytree(lock, directory)
            # No program of a package runs while it is installed.
            options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            done = subprocess.run(
                [npm, "ci", *options],
                cwd=directory,
                env={**os.environ, "CI": "true"},
                capture_output=True,
                text=True,
                check=False,
                timeout=500,
            )
            if done.returncode != 0:
                raise base.Unavailable(f"{name} cannot be installed: {done.stderr[-1500:]}")
            (directory / "complete").touch()
    return directory

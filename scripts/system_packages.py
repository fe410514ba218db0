"""Install the system packages that tesazure's tests or its demo use, where they are missing.

    python3 scripts/system_packages.py demo|test|bench|docs|pictures

On Debian and Ubuntu as root they are installed with apt-get. Otherwise the program says what is
missing and what is lost without it, and succeeds: the tests skip what they cannot run (and fail
for it where CI=true). Needs nothing but Python's standard library.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Package:
    """A Debian package, a program that shows it is there, and what needs it."""

    name: str
    program: str
    loss: str

    def is_installed(self) -> bool:
        """Whether its program is found; PostgreSQL's are outside PATH, busybox must be static."""
        if self.name == "postgresql":
            return any(Path("/usr/lib/postgresql").glob(f"*/bin/{self.program}"))
        path = shutil.which(self.program, path=PATH)
        if path is not None and self.name == "busybox-static":
            return subprocess.run(["ldd", path], check=False, capture_output=True).returncode != 0
        return path is not None


BUBBLEWRAP = Package("bubblewrap", "bwrap", "the sandbox engine: tasks need Docker or Podman")
CHROMIUM = Package("chromium", "chromium", "the tests of pages, and pictures of them")
GRAPHVIZ = Package("graphviz", "dot", "the documentation's site, whose diagrams it draws")

TEST = [
    BUBBLEWRAP,
    Package("busybox-static", "busybox", "the test images, so all tests with containers"),
    CHROMIUM,
    Package("curl", "curl", "the tests of commands in the documentation"),
    Package("debootstrap", "debootstrap", "the test images with real tools"),
    Package("docker-compose", "docker-compose", "the tests of the compose files"),
    Package("docker.io", "dockerd", "the tests with a Docker engine of their own"),
    GRAPHVIZ,
    Package("iproute2", "ip", "the tests with a Docker engine of their own"),
    Package("iptables", "iptables", "containers with a network"),
    Package("jq", "jq", "the test of a command in the documentation"),
    Package("nginx-light", "nginx", "the tests that download from a real web server"),
    Package("nodejs", "node", "the tests with Azurite"),
    Package("npm", "npm", "the tests with Azurite, and Terraform's"),
    Package("openssh-server", "sshd", "the tests with an SFTP server"),
    Package("podman", "podman", "the tests with Podman"),
    Package("postgresql", "initdb", "the tests with PostgreSQL"),
    Package("prometheus", "prometheus", "the test of the Grafana dashboard and alerts"),
    Package("rsync", "rsync", "the test with Snakemake's files in a shared directory"),
    Package("runc", "runc", "the tests with Podman"),
    Package("sqlite3", "sqlite3", "the test of the documented backup"),
]

_ALSO_FOR_BENCHMARKS = {
    *("bubblewrap", "busybox-static", "docker.io", "iproute2"),
    *("nginx-light", "nodejs", "npm", "postgresql"),
}

BENCH = [
    *(p for p in TEST if p.name in _ALSO_FOR_BENCHMARKS),
    Package("curl", "curl", "the rates that those of storage are compared with"),
    Package("wrk", "wrk", "the request rates of the benchmarks"),
]

# The demo falls back to bubblewrap where an engine has no images.
PURPOSES = {
    "demo": [BUBBLEWRAP],
    "test": TEST,
    "bench": BENCH,
    "docs": [GRAPHVIZ],
    "pictures": [BUBBLEWRAP, CHROMIUM],
}


def install(packages: list[Package]) -> bool:
    """Install with apt-get, refreshing its lists first; whether it succeeded."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    options = ["--yes", "--no-install-recommends", "-qq"]
    commands = [
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", *options, *(package.name for package in packages)],
    ]
    for command in commands:
        # apt's output goes to standard error: `make bench` keeps standard output for JSON.
        done = subprocess.run(command, env=environment, stdout=sys.stderr, check=False)
        if done.returncode != 0 and command[1] == "install":
            return False
    return True


def main(purpose: str) -> None:
    """Install or report."""
    missing = [package for package in PURPOSES[purpose] if not package.is_installed()]
    if not missing:
        return
    names = " ".join(package.name for package in missing)
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"installing system packages: {names}", file=sys.stderr)
        if install(missing):
            return
    print(f"missing system packages: {names}; without them there is no", file=sys.stderr)
    for package in missing:
        print(f"  {package.name}: {package.loss}", file=sys.stderr)
    print(f"as root: apt-get install --no-install-recommends {names}", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in PURPOSES:
        sys.exit(__doc__)
    main(sys.argv[1])

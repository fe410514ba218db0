"""Container images for tests, made without any image registry.

`python -m tests.services.images NAME…` fills the cache ahead of a test run.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import docker
from docker.errors import ImageNotFound

from tests.services import base


@dataclass(frozen=True)
class Recipe:
    """How to make an image: busybox alone, or Debian with some packages."""

    tag: str
    packages: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    version: int = 1  # raise it to have cached root file systems made again


RECIPES = {
    "busybox": Recipe("tesazure-test/busybox:1"),
    # Its ENTRYPOINT writes a line and then runs its arguments: a task's command must not see it.
    "entrypoint": Recipe(
        "tesazure-test/entrypoint:1",
        changes=('ENTRYPOINT ["/bin/sh", "-c", "echo entrypoint ran; exec \\"$@\\"", "entry"]',),
    ),
    # An image that says who and where it wants to run, and sets a variable.
    "configured": Recipe(
        "tesazure-test/configured:1",
        changes=("USER 1000:1000", "WORKDIR /srv", "ENV FROM_IMAGE=yes", 'CMD ["false"]'),
    ),
    "genomics": Recipe(
        "tesazure-test/genomics:1",
        packages=("samtools", "bwa", "bcftools", "bowtie2", "bowtie2-examples", "seqtk"),
    ),
    "python": Recipe(
        "tesazure-test/python:1",
        packages=("ca-certificates", "python3", "python3-pip", "python3-venv", "rsync"),
    ),
    # The same, to build the project's own images in.
    "python-build": Recipe(
        "tesazure-test/python-build:1",
        packages=("binutils", "ca-certificates", "python3", "python3-pip", "python3-venv"),
    ),
    # What stands in for the images of other services in compose files.
    "services": Recipe("tesazure-test/services:1", packages=("nodejs", "postgresql")),
}

CACHE = Path.home() / ".cache" / "tesazure-test"

PASSWD = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"
GROUP = "root:x:0:\nuser:x:1000:\n"


def load(engine_url: str, name: str) -> str:
    """Reference of the image; imported into the engine, by one caller at a time, if not there."""
    recipe = RECIPES[name]
    with lock(f"load-{name}"), contextlib.closing(docker.DockerClient(engine_url)) as client:
        client.api.timeout = 300
        try:
            client.images.get(recipe.tag)
        except ImageNotFound:
            repository, _, tag = recipe.tag.partition(":")
            answer = client.api.import_image_from_file(
                str(root_filesystem(recipe)), repository, tag, changes=list(recipe.changes)
            )
            # Podman 4.3 takes the repository from the request, but not the tag.
            client.api.tag(json.loads(answer.splitlines()[-1])["status"], repository, tag)
    return recipe.tag


def root_filesystem(recipe: Recipe) -> Path:
    """Tar file of the image's root, from the cache or made now (a minute for Debian ones)."""
    if not recipe.packages:
        return busybox_tar()
    facts = {**asdict(recipe), "changes": (), "suite": suite(), "machine": os.uname().machine}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    name = re.sub(r"\W+", "-", recipe.tag)
    target = CACHE / f"{name}-{digest}.tar"
    with lock(name):
        if not target.exists():
            debian_tar(recipe, target)
            for older in set(CACHE.glob(f"{name}-*.tar")) - {target}:
                older.unlink()
    return target


def busybox_tar() -> Path:
    """A static busybox with its applets as links, a few users and the usual directories."""
    binary = Path(base.require_program("busybox", "busybox-static"))
    program = binary.resolve().read_bytes()
    if subprocess.run(["ldd", binary], check=False, capture_output=True).returncode == 0:
        raise base.Unavailable(f"{binary} is not static (Debian package busybox-static)")
    digest = hashlib.sha256(program + Path(__file__).read_bytes()).hexdigest()[:16]
    target = CACHE / f"busybox-{digest}.tar"
    with lock("busybox"):
        if not target.exists():
            applets = base.run([binary, "--list"]).split()
            with partial(target) as path, tarfile.open(path, "w") as tar:
                add_busybox(tar, program, applets)
    return target


def add_busybox(tar: tarfile.TarFile, program: bytes, applets: list[str]) -> None:
    """Write the members of the busybox root."""
    for name, mode in {
        **dict.fromkeys(
            ("bin", "dev", "etc", "proc", "srv", "sys", "usr", "usr/bin", "var"), 0o755
        ),
        **dict.fromkeys(("tmp", "var/tmp"), 0o1777),
        **dict.fromkeys(("root", "home", "home/user"), 0o755),
    }.items():
        member = tarfile.TarInfo(name)
        member.type, member.mode = tarfile.DIRTYPE, mode
        if name == "home/user":
            member.uid = member.gid = 1000
        tar.addfile(member)
    files = {
        "bin/busybox": (program, 0o755),
        "etc/passwd": (PASSWD.encode(), 0o644),
        "etc/group": (GROUP.encode(), 0o644),
    }
    for name, (content, mode) in files.items():
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(content), mode
        tar.addfile(member, io.BytesIO(content))
    for applet in sorted(set(applets) - {"busybox"}):
        member = tarfile.TarInfo(f"bin/{applet}")
        member.type, member.linkname, member.mode = tarfile.SYMTYPE, "busybox", 0o777
        tar.addfile(member)


def debian_tar(recipe: Recipe, target: Path) -> None:
    """Run debootstrap against this machine's own Debian or Ubuntu mirror, and pack the result."""
    base.require_root("debootstrap")
    debootstrap = base.require_program("debootstrap", "debootstrap")
    mirror, components = package_source()
    with tempfile.TemporaryDirectory(prefix="tesazure-image-") as directory:
        root = Path(directory) / "root"
        base.run(
            [
                *(debootstrap, "--variant=minbase", f"--components={','.join(components)}"),
                *(f"--include={','.join(recipe.packages)}", suite(), root, mirror),
            ],
            timeout=900,
        )
        base.unmount_below(root)
        clutter = ["var/cache/apt", "var/lib/apt/lists", "usr/share/locale", "usr/share/man"]
        with partial(target) as path:
            excluded = [f"--exclude=./{name}/*" for name in [*clutter, "dev", "proc", "sys"]]
            argv = ["tar", "-C", root, *excluded, "--numeric-owner", "-cf", path, "."]
            base.run(argv, timeout=300)


def suite() -> str:
    """Code name of the distribution that runs here, e.g. `bookworm`."""
    for line in Path("/etc/os-release").read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME":
            return value.strip('"')
    raise base.Unavailable("/etc/os-release names no VERSION_CODENAME: not Debian or Ubuntu")


def package_source() -> tuple[str, list[str]]:
    """Mirror address and components for `suite()`, as the machine's apt sources name them."""
    apt = Path("/etc/apt")
    for path in sorted(apt.glob("sources.list.d/*.sources")):
        for stanza in path.read_text().split("\n\n"):
            pairs = re.findall(r"^([\w-]+):[ \t]*(.+)$", stanza, re.MULTILINE)
            fields = {key: value.split() for key, value in pairs}
            if "deb" in fields.get("Types", []) and suite() in fields.get("Suites", []):
                return fields["URIs"][0], fields.get("Components", ["main"])
    for path in [apt / "sources.list", *sorted(apt.glob("sources.list.d/*.list"))]:
        for line in path.read_text().splitlines() if path.exists() else []:
            words = re.sub(r"\[.*?\]", "", line.partition("#")[0]).split()
            if len(words) > 3 and words[0] == "deb" and words[2] == suite():
                return words[1], words[3:]
    raise base.Unavailable(f"no apt source under {apt} offers {suite()}")


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold a lock of that name against every other process of this user."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def partial(target: Path) -> Iterator[Path]:
    """A path to write to, which becomes `target` only if the block succeeds."""
    path = target.with_suffix(".partial")
    try:
        yield path
        path.rename(target)
    finally:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    for wanted in sys.argv[1:] or RECIPES:
        try:
            print(root_filesystem(RECIPES[wanted]))
        except (base.Unavailable, base.StartFailed, subprocess.TimeoutExpired) as problem:
            sys.exit(f"{wanted}: {problem}")

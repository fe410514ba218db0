"""What is installed: pinned, hashed, licensed, needed, and audited for known vulnerabilities."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from scripts import licences
from tests.clients import venvs
from tests.conftest import refuse
from tests.docs.blocks import blocks
from tests.services import base
from tests.services.loopback_http import LoopbackHttp, QuietHandler

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "requirements"
FILES = sorted(LOCKS.glob("*.txt"))
OWN = ["api", "base", "build", "dev", "runner"]
ENTRY = re.compile(
    r"^(?P<name>[a-z0-9._-]+)==(?P<version>[^\s;\\]+)(?: ; (?P<when>[^\\]+?))? ?"
    r"(?P<hashes>(?:\\\n    --hash=sha256:[0-9a-f]{64} ?)+)$",
    re.MULTILINE,
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
GROUPS: dict[str, list[str]] = PROJECT["dependency-groups"]
LINUX = {"sys_platform": "linux", "platform_system": "Linux"}


def asked_for(*names: str) -> list[Requirement]:
    """What the project itself needs, with the extras and groups of these names."""
    lines = list(PROJECT["project"]["dependencies"])
    for name in names:
        lines += EXTRAS.get(name, []) + GROUPS.get(name, [])
    return [Requirement(line) for line in lines]


NEEDED = {
    "api": asked_for("all"),
    "base": asked_for("docker", "build"),
    "build": [Requirement(line) for line in GROUPS["build"]],
    "dev": asked_for("all", "build", "dev"),
}


def below(needed: list[Requirement]) -> set[str]:
    """All packages that these need, and those need, as what is installed here declares it."""
    found: set[tuple[str, str]] = set()
    left = list(needed)
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in found:
                continue
            found.add((name, extra))
            if name == "tesazure":  # as it is installed, it may be of another day
                lines = EXTRAS.get(extra, [])
            else:
                lines = distribution(name).requires or []
            for below_it in map(Requirement, lines):
                marker = below_it.marker
                if marker is None or marker.evaluate({**LINUX, "extra": extra}):
                    left.append(below_it)
    return {name for name, _ in found} - {"tesazure"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_package_has_a_version_and_hashes(file: Path) -> None:
    text = file.read_text()
    entries = list(ENTRY.finditer(text))
    assert entries
    assert "://" not in text, "no index, no URL"
    left = re.sub(r"^ *#.*$", "", ENTRY.sub("", text), flags=re.MULTILINE)
    assert left.split() == [], "nothing but entries and remarks"


@pytest.mark.parametrize(
    "file", sorted(LOCKS.glob("*/package-lock.json")), ids=lambda f: f.parent.name
)
def test_every_npm_package_has_a_hash(file: Path) -> None:
    lock = json.loads(file.read_text())
    assert lock["lockfileVersion"] == 3
    packages = {name: each for name, each in lock["packages"].items() if name}
    assert packages
    for name, package in packages.items():
        assert package["integrity"].startswith("sha512-"), name
        assert "resolved" not in package, name


def test_the_locks_agree() -> None:
    versions = defaultdict(set)
    for name in OWN:
        for entry in ENTRY.finditer((LOCKS / f"{name}.txt").read_text()):
            versions[entry["name"]].add(entry["version"])
    assert {name: each for name, each in versions.items() if len(each) > 1} == {}


@pytest.mark.parametrize("name", NEEDED)
def test_a_lock_has_what_the_project_needs_and_nothing_else(name: str) -> None:
    text = (LOCKS / f"{name}.txt").read_text()
    entries = {canonicalize_name(entry["name"]): entry for entry in ENTRY.finditer(text)}
    for requirement in NEEDED[name]:
        if requirement.name != "tesazure":
            locked = entries[canonicalize_name(requirement.name)]["version"]
            assert requirement.specifier.contains(locked, prereleases=True), requirement
    try:
        needed = below(NEEDED[name])
    except PackageNotFoundError as error:
        pytest.fail(f"{error.name} is not installed: make setup")
    # What is for other systems and other Pythons alone has a condition.
    assert needed <= entries.keys()
    assert {each for each in entries.keys() - needed if not entries[each]["when"]} == set()


def test_what_a_runner_has_the_server_has() -> None:
    assert licences.locked("runner").items() <= licences.locked("api").items()
    assert licences.locked("base").items() <= licences.locked("dev").items()


@pytest.mark.parametrize("package", sorted(licences.locked("dev") | licences.locked("build")))
def test_a_licence_is_known_and_free(package: str) -> None:
    assert licences.parts(licences.licence(package)) <= licences.FREE


def test_a_licence_that_is_not_free_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    for number, said in enumerate(["License-Expression: SSPL-1.0", "License: Proprietary", ""]):
        about = tmp_path / f"closed{number}-1.dist-info"
        about.mkdir()
        lines = ["Metadata-Version: 2.4", f"Name: closed{number}", "Version: 1", said]
        (about / "METADATA").write_text("\n".join(filter(None, lines)) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    for number in range(3):
        with pytest.raises(LookupError, match=f"closed{number}: no licence that is known to be"):
            licences.licence(f"closed{number}")


def test_the_exceptions_are_those_that_are_needed() -> None:
    """pyftpdlib's metadata tells no licence, its licence's text does."""
    assert licences.DECLARED.keys() <= licences.locked("dev").keys()
    assert not licences.sbom.licences(distribution("pyftpdlib"))
    (text,) = [f for f in distribution("pyftpdlib").files or () if f.name.startswith("LICENSE")]
    assert "Permission is hereby granted, free of charge" in Path(str(text.locate())).read_text()


@pytest.mark.parametrize(
    ("expression", "must"),
    [
        ("MIT", False),
        ("LGPL-3.0-only", True),
        ("LGPL-2.1-only OR MIT", False),
        ("MIT AND MPL-2.0", True),
        ("Apache-2.0 AND BSD-2-Clause", False),
    ],
)
def test_whose_source_must_be_offered(expression: str, must: bool) -> None:
    assert licences.must_offer(expression) == must


def test_every_extra_is_documented() -> None:
    page = (ROOT / "docs/supply-chain.md").read_text()
    table = page.split("## Extras")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)) >= {"`docker`", "`all`"}
    assert set(EXTRAS) <= set(re.findall(r"`(\w+)`", table))
    for file in OWN:
        assert f"`requirements/{file}.txt`" in page


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_no_version_was_withdrawn() -> None:
    """pip says so of a pinned version, and installs it all the same."""
    install = ["install", "--dry-run", "--ignore-installed", "--no-deps", "--require-hashes"]
    command = [sys.executable, "-m", "pip", *install, "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, "-r", LOCKS / "dev.txt"],  # which has what the others have
        capture_output=True,
        text=True,
        check=False,
        timeout=380,
    )
    if done.returncode != 0:
        refuse(f"no package index: {done.stderr.strip()[-500:]}")
    assert "Would install" in done.stdout
    assert "yanked" not in done.stderr


# --------------------------------------------------------------- known vulnerabilities

FAULTY = "starlette"


class Osv(QuietHandler):
    """OSV's API ("POST /v1/query"), with one fault of one package. Anything else is refused."""

    asked: set[str]

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        package = question["package"]
        if self.path != "/v1/query" or package["ecosystem"] != "PyPI":
            self.reply(400)
            return
        Version(question["version"])
        self.asked.add(package["name"])
        fault = {
            "id": "OSV-0000-1",
            "summary": "A fault of a test",
            "published": "2026-01-01T00:00:00Z",
            "affected": [{"package": package, "ranges": [], "versions": [question["version"]]}],
        }
        found = {"vulns": [fault]} if package["name"] == FAULTY else {}
        self.reply(200, json.dumps(found).encode(), {"Content-Type": "application/json"})


@pytest.fixture(scope="module")
def audit() -> list[str]:
    """The page's command for the server's lock, as pip-audit in its own environment."""
    try:
        program = venvs.python("pip-audit").parent / "pip-audit"
    except base.Unavailable as error:
        refuse(str(error))
    (block,) = blocks(ROOT / "docs/supply-chain.md", "sh")
    first = block.text.splitlines()[0].split()
    assert first[0] == "pip-audit"
    return [str(program), *first[1:], "--progress-spinner", "off", "--timeout", "10"]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.timeout(400)
@pytest.mark.parametrize("clean", [False, True])
def test_the_audit_reads_the_lock_and_finds_what_is_known(
    audit: list[str], tmp_path: Path, clean: bool
) -> None:
    asked: set[str] = set()
    handler = type("Asked", (Osv,), {"asked": asked})
    lock = tmp_path / "lock.txt"
    text = (LOCKS / "api.txt").read_text()
    lock.write_text(re.sub(rf"^{FAULTY}==(.*\\\n)*.*\n", "", text, flags=re.M) if clean else text)
    with LoopbackHttp(handler) as osv:
        service = ["-s", "osv", "--osv-url", f"{osv.origin}/v1/query", "--cache-dir", str(tmp_path)]
        done = run([word.replace("requirements/api.txt", str(lock)) for word in audit] + service)
    assert done.returncode == (0 if clean else 1), done.stderr
    assert ("OSV-0000-1" in done.stdout) != clean
    assert asked == licences.locked("api").keys() - ({FAULTY} if clean else set())


def test_an_audit_that_can_ask_nobody_fails(audit: list[str], tmp_path: Path) -> None:
    with base.nobodys_port() as port:
        nowhere = f"http://127.0.0.1:{port}/v1/query"
        service = ["-s", "osv", "--osv-url", nowhere, "--cache-dir", str(tmp_path)]
        assert run([*audit, *service]).returncode != 0

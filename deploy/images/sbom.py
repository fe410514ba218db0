"""Print what an image's virtual environment is made of, as a CycloneDX 1.6 document.

    python sbom.py LOCK

Run by the Python of that environment. Names, versions, licences and dependencies are those that
the installed packages declare; hashes are of the files that LOCK allows, one of which was
installed. The same environment gives the same document. The base image's packages are not in it.
"""

from __future__ import annotations

import json
import re
import sys
import uuid
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

OURS = "tesazure"


def document(lock: str) -> dict[str, Any]:
    """The SBOM of the running Python's environment."""
    hashes = {
        canonical(name): sorted(re.findall(r"--hash=sha256:([0-9a-f]{64})", rest))
        for name, rest in re.findall(r"^([\w.-]+)==((?:.*\\\n)*.*)", lock, re.MULTILINE)
    }
    found = {canonical(each.name): each for each in distributions()}
    components = {name: component(each, hashes.get(name, [])) for name, each in found.items()}
    ours = components.pop(OURS)
    body = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {**ours, "type": "application"}},
        "components": [components[name] for name in sorted(components)],
        "dependencies": [
            {"ref": reference(found[name]), "dependsOn": [reference(found[n]) for n in needed]}
            for name, needed in sorted((n, needs(each, found)) for n, each in found.items())
        ],
    }
    number = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(body, sort_keys=True))
    return {**body, "serialNumber": f"urn:uuid:{number}"}


def component(package: Distribution, hashes: list[str]) -> dict[str, Any]:
    """A package."""
    made: dict[str, Any] = {
        "type": "library",
        "bom-ref": reference(package),
        "name": canonical(package.name),
        "version": package.version,
        "purl": reference(package),
    }
    if words := licences(package):
        made["licenses"] = words
    if hashes:
        made["properties"] = [{"name": "tesazure:allowed-sha256", "value": each} for each in hashes]
    return made


def licences(package: Distribution) -> list[dict[str, Any]]:
    """As declared: an SPDX expression, else the classifiers, else the first line of the field."""
    about: Any = package.metadata
    if expression := about.get("License-Expression"):
        return [{"expression": expression}]
    prefix = "License :: "
    classified = [c for c in about.get_all("Classifier", []) if c.startswith(prefix)]
    names = [c.rpartition(" :: ")[2] for c in classified if c != f"{prefix}OSI Approved"]
    names = names or [line for line in about.get("License", "").splitlines()[:1] if line]
    return [{"license": {"name": name}} for name in names]


def needs(package: Distribution, found: dict[str, Distribution]) -> list[str]:
    """Those of its requirements that are installed; of its extras, those that anybody asks for."""
    asked = extras_asked_for(canonical(package.name), found)
    names = set()
    for line in package.requires or []:
        extra = re.search(r"extra == ['\"]([\w.-]+)", line)
        if extra is None or canonical(package.name) == OURS or canonical(extra[1]) in asked:
            names.add(canonical(line_name(line)))
    return sorted(names & found.keys() - {canonical(package.name)})


def extras_asked_for(name: str, found: dict[str, Distribution]) -> set[str]:
    """Of a package, by the requirements of the others."""
    asked: set[str] = set()
    for line in (line for each in found.values() for line in each.requires or []):
        extras = re.match(r"[\w.-]+\s*\[([^]]*)]", line)
        if extras and canonical(line_name(line)) == name:
            asked.update(canonical(extra.strip()) for extra in extras[1].split(","))
    return asked


def line_name(line: str) -> str:
    """The package that a requirement names."""
    return re.split(r"[^\w.-]", line, maxsplit=1)[0]


def reference(package: Distribution) -> str:
    """Its package URL."""
    return f"pkg:pypi/{canonical(package.name)}@{package.version}"


def canonical(name: str) -> str:
    """A package's name in one spelling ("Names and normalization" of the PyPA's specifications)."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    json.dump(document(Path(sys.argv[1]).read_text()), sys.stdout, indent=1)

"""The page docs/licences.md, from what packages declare. scripts.generate_docs writes it.

Needs what `make setup` installs: requirements/dev.txt, which has the packages of the images.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from deploy.images import sbom

LOCKS = Path(__file__).parents[1] / "requirements"
SPDX = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "ISC License (ISCL)": "ISC",
    "LGPL-2.1": "LGPL-2.1-only",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
"""What packages write instead of SPDX's identifiers. BSD: not said with how many clauses."""
NOT_A_LICENCE = {"DFSG approved"}
DECLARED = {
    # Its metadata has none; the file LICENSE in it is the MIT licence.
    "pyftpdlib": "MIT",
    # Installed from Python 3.12 on.
    "pyasynchat": "PSF-2.0",
    "pyasyncore": "PSF-2.0",
}
FREE = {
    *("Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MIT-0", "PSF-2.0"),
    # Who changes their files passes the changes on. Nothing here is changed.
    *("MPL-2.0", "LGPL-2.1-only", "LGPL-3.0-only"),
}
"""What may be in a lock."""
OTHERS_CODE = {"LGPL-2.1-only", "LGPL-3.0-only", "MPL-2.0"}
"""Whose sources have to be offered to whoever gets a copy."""


def locked(name: str) -> dict[str, str]:
    """Package -> version, of requirements/NAME.txt, without those of Windows."""
    text = (LOCKS / f"{name}.txt").read_text()
    lines = re.findall(r"^([\w.-]+)==([\w.]+)(.*)", text, re.MULTILINE)
    return {package: version for package, version, when in lines if "win32" not in when}


def licence(package: str) -> str:
    """An expression of SPDX identifiers. Raises LookupError where the package tells none."""
    if package in DECLARED:
        return DECLARED[package]
    found = distribution(package)
    said = [each.get("expression") or each["license"]["name"] for each in sbom.licences(found)]
    names = [SPDX.get(name, name) for name in said if name not in NOT_A_LICENCE]
    expression = " OR ".join(dict.fromkeys(names))
    if not expression or parts(expression) - FREE:
        raise LookupError(f"{package}: no licence that is known to be free: {said}")
    return expression


def parts(expression: str) -> set[str]:
    """The identifiers in an expression."""
    return set(re.split(r" (?:AND|OR|WITH) ", expression))


def must_offer(expression: str) -> bool:
    """Whether no other licence can be chosen than one that asks for the source."""
    return any(parts(each) <= OTHERS_CODE for each in re.split(r" AND ", expression))


def page(notice: str) -> str:
    """docs/licences.md."""
    try:
        offered = [name for name in sorted(locked("api")) if must_offer(licence(name))]
        return f"{notice}{_INTRODUCTION.format(offered=', '.join(offered))}{_table()}"
    except PackageNotFoundError as error:
        raise SystemExit(f"{error.name} is not installed: make setup") from None


def _table() -> str:
    server, runner = locked("api"), locked("runner")
    rows = ["| package | version | licence | in |", "|---|---|---|---|"]
    for package, version in sorted({**locked("dev"), **locked("build")}.items()):
        where = [
            name
            for name, lock in (("server", server), ("runner", runner))
            if lock.get(package) == version
        ]
        rows.append(f"| {package} | {version} | {licence(package)} | {', '.join(where)} |")
    return "\n".join(rows) + "\n"


_INTRODUCTION = """\
# Licences

tesazure has the Apache License 2.0. What its images are made of, and what it is developed with, has
the licences below, as each package's own metadata declares them; a test refuses a package that says
nothing, or has a licence that is not on its list. *server* and *runner* are the
[images](deployment.md#images) that a package is in; without either, it is for development alone.
BSD is where a package does not say which of the BSD licences it has.

The LGPL and the MPL ask whoever passes the images on to offer the sources of what is under them:
{offered}. They are in there unchanged, but compiled only; their source
distributions in these versions are what to offer.

The list does not tell what is compiled into wheels, such as OpenSSL, libpq and libcurl, nor the
packages of the images' bases, nor what only tests install (`requirements/clients-*.txt`,
`requirements/*/package-lock.json`).

"""

"""checkov, a linter for what is deployed, without what it would download."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.clients import venvs
from tests.conftest import refuse
from tests.services import base


def checked(framework: str, directory: Path) -> dict[str, Any]:
    """Its answer on the files of a directory: `results` and their `summary`."""
    try:
        program = venvs.python("checkov").parent / "checkov"
    except base.Unavailable as error:
        refuse(str(error))
    options = ["--framework", framework, "--skip-download", "--compact", "--output", "json"]
    done = subprocess.run(
        [program, *options, "--directory", directory],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["summary"]["parsing_errors"] == 0
    return answer

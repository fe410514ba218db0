"""`python -m tesazure.runner DIRECTORY`: run the attempt prepared there, in the foreground."""

from __future__ import annotations

import sys
from pathlib import Path

from tesazure.runner.config import AttemptDir
from tesazure.runner.run import run_attempt

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    run_attempt(AttemptDir(Path(sys.argv[1]).absolute()))

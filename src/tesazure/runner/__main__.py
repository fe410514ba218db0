"""Run a prepared attempt in the foreground: `python -m tesazure.runner [--access] DIRECTORY`.

With --access, standard input holds the secrets that it needs, as the JSON of `access.Access`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from tesazure.access import Access
from tesazure.runner.config import AttemptDir
from tesazure.runner.run import run_attempt

if __name__ == "__main__":
    arguments = sys.argv[1:]
    access = Access()
    if arguments[:1] == ["--access"]:
        arguments = arguments[1:]
        try:
            access = msgspec.json.decode(sys.stdin.buffer.read(), type=Access)
        except msgspec.MsgspecError as error:
            sys.exit(f"standard input is no Access: {error}")
    if len(arguments) != 1:
        sys.exit(__doc__)
    run_attempt(AttemptDir(Path(arguments[0]).absolute()), access)

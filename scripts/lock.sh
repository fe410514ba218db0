#!/usr/bin/env bash
# Compile requirements/*.txt from pyproject.toml. Needs `uv` on PATH or in $UV.
# Extra arguments go to uv, e.g. `scripts/lock.sh --upgrade-package httpx`.
set -euo pipefail
cd "$(dirname "$0")/.."

compile() {
    "${UV:-uv}" --no-config pip compile --quiet --universal --python-version 3.11 \
        --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
        "$@" pyproject.toml
}

compile --extra docker --group build -o requirements/base.txt "$@"
compile --all-extras --group build --group dev -c requirements/base.txt -o requirements/dev.txt "$@"
# What a node can use: everything but what places attempts and keeps their records.
compile --extra azure --extra docker --extra gcs --extra s3 --extra sftp -c requirements/dev.txt -o requirements/image.txt "$@"

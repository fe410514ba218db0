#!/usr/bin/env bash
# Compile requirements/*.txt from pyproject.toml. Needs `uv` on PATH or in $UV.
# Extra arguments go to uv, e.g. `scripts/lock.sh --upgrade-package httpx`.
set -euo pipefail
cd "$(dirname "$0")/.."

compile() {
    "${UV:-uv}" --no-config pip compile --quiet --universal --python-version 3.11 \
        --generate-hashes --no-emit-index-url --no-emit-find-links --no-header "$@"
}

more=("$@")
from=(-c requirements/dev.txt "${more[@]}")
compile --extra docker --group build -o requirements/base.txt "${more[@]}" pyproject.toml
compile --all-extras --group build --group dev -c requirements/base.txt \
    -o requirements/dev.txt "${more[@]}" pyproject.toml

# Of the images: what builds the package, what a server has, and what a node can use, which is all but
# what serves requests, places attempts and keeps their records.
compile --group build -o requirements/build.txt "${from[@]}"
compile --all-extras -o requirements/api.txt "${from[@]}" pyproject.toml
server=(alembic httptools jinja2 mako markupsafe prometheus-client sqlalchemy starlette uvicorn uvloop)
compile --extra azure --extra docker --extra gcs --extra s3 --extra sftp \
    "${server[@]/#/--no-emit-package=}" -o requirements/runner.txt "${from[@]}" pyproject.toml

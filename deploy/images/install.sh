#!/bin/sh
# install.sh LOCK, in the build stage of an image: make what goes into the image below /image, which is
# /opt/tesazure: a virtual environment with what LOCK names and with this checkout, and a note of what it
# is made of. The same input gives the same bytes.
set -eu
lock=$1
here=$(dirname "$0")
build=/build/bin/python
target=/opt/tesazure
quiet="--quiet --disable-pip-version-check --no-deps"
# What is not in /wheels comes from the package index, unless PIP_NO_INDEX is set.
locked="--find-links /wheels --require-hashes --only-binary=:all:"

python3 -m venv /build
$build -m pip install $quiet $locked -r requirements/build.txt
$build -m pip wheel $quiet --no-build-isolation --no-index --wheel-dir /build/wheel .

# Neither pip nor what builds packages is part of the image.
python3 -m venv --without-pip "$target"
install="$build -m pip --python $target/bin/python install --no-compile"
$install $quiet $locked -r "$lock"
$install $quiet --no-index /build/wheel/tesazure-*.whl
"$target/bin/python" "$here/sbom.py" "$lock" > "$target/sbom.cdx.json"

cd "$target"/lib/python3.*/site-packages
# What nothing here reads: the sources and types of compiled modules, Azure's asynchronous clients,
# its clients of other versions of an API, tools to test programs with, and, as only its signing is
# used, the descriptions of AWS's services.
find . -name '*.[ch]' -delete -o -name '*.py[ix]' -delete -o -name '*.pxd' -delete
find azure -depth -path '*/aio*' -delete
find azure -depth -path 'azure/mgmt/authorization/v*' ! -path '*/v2022_04_01*' -delete
rm -rf botocore/data sqlalchemy/testing alembic/testing
# Symbols for debuggers, as wheels often have them. Libraries that came with a wheel (*.libs) were
# edited when it was made, which strip does not always bear.
find . -name '*.so' ! -path './*.libs/*' -exec strip --strip-unneeded {} +

# Compiled now, as the root file system may be read-only later. Of all but our own only that is kept: the
# sources are as much again (docs/deployment.md says what is lost by it). Hashes instead of time stamps,
# and no time stamps on the files, so that nothing depends on the clock.
export PYTHONHASHSEED=0
python="$target/bin/python -m compileall -q --invalidation-mode unchecked-hash"
$python tesazure
$python -b -x '/tesazure/' .
find . -name '*.py' ! -path './tesazure/*' -delete
mkdir -p /image/opt
mv "$target" /image/opt
find /image -exec touch --no-dereference --date=@0 {} +

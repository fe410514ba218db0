#!/bin/sh
# make_venv.sh PYTHON DIRECTORY: create a virtual environment; as root on Debian and Ubuntu install
# the package that `python3 -m venv` lacks there.
set -eu
python=$1 directory=$2

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "tesazure needs Python 3.11 or newer, and $python is $("$python" --version 2>&1):" \
        "use make PYTHON=/path/to/python3.11" >&2
    exit 1
}

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq || echo "apt-get update failed; going on with the lists there are" >&2
        apt-get install --yes -qq --no-install-recommends "$package"
    else
        echo "$python cannot make virtual environments." \
            "On Debian and Ubuntu, as root: apt-get install $package" >&2
        exit 1
    fi
fi

rm -rf "$directory"
"$python" -m venv "$directory"

#!/bin/sh
# Makes a Python environment in build/wheel/tools with what builds and checks the wheel, unless it exists, and prints the path of its
# python. python/pyproject.toml has the same version of cffi.
set -eu
cd "$(dirname "$0")/.."
venv=$PWD/build/wheel/tools
if [ ! -e "$venv/complete" ]; then
    rm -rf "$venv"
    mkdir -p build/wheel
    scripts/venv.sh "$venv" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check cffi==2.0.0 'tomli==2.2.1; python_version < "3.11"' \
        auditwheel==6.8.2 mypy==2.4.1 >&2
    touch "$venv/complete"
fi
echo "$venv/bin/python"

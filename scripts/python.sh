#!/bin/sh
# Makes a Python environment with the packages for checks and benchmarks, unless it exists, and prints the path of its python.
set -eu
cd "$(dirname "$0")/.."
venv=$PWD/build/python
if [ ! -e "$venv/complete" ]; then
    rm -rf "$venv"
    scripts/venv.sh "$venv" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6 >&2
    touch "$venv/complete"
fi
echo "$venv/bin/python"

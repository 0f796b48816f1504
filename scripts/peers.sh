#!/bin/sh
# Runs the loaders, planners and recorders of other systems against the program eplb and its Python package, in both directions:
# peers.sh PROGRAM [NAME ...]. A NAME is one of peers/NAME.py; all of them by default. scripts/peers_packages.sh installs the
# systems, scripts/wheel.sh makes the package.
set -eu
program=$(realpath "$1")
shift
cd "$(dirname "$0")/.."
versions=$(scripts/peers_packages.sh)
scripts/wheel.sh >/dev/null
build/peers/venv/bin/pip install --quiet --disable-pip-version-check --force-reinstall --no-deps build/wheel/eplb-*.whl cffi==2.0.0

[ $# -gt 0 ] || set -- trtllm vllm ascend lmdeploy sglang
for name in "$@"; do
    [ -e "peers/$name.py" ] || continue
    echo "$name"
    PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$PWD/build/peers/packages build/peers/venv/bin/python "peers/$name.py" "$program"
done
echo "passed on $(date +%F) with $versions"

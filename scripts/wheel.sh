#!/bin/sh
# Makes build/wheel/eplb-VERSION-py3-none-manylinux_2_17_MACHINE....whl and eplb-VERSION.tar.gz: the Python package with the tree of
# `make dist`, and its source. The same source gives the same bytes.
set -eu
cd "$(dirname "$0")/.."
machine=$(uname -m)
wheel=$PWD/build/wheel
scripts/dist.sh
rm -rf "$wheel/tree" "$wheel"/*.whl "$wheel"/*.tar.gz
mkdir -p "$wheel/tree"
tar -C "$wheel/tree" --strip-components=1 -xzf build/dist/eplb-*.tar.gz

# manylinux2014 is the name that older installers know.
EPLB_TREE=$wheel/tree EPLB_PLATFORM=manylinux_2_17_$machine.manylinux2014_$machine
export EPLB_TREE EPLB_PLATFORM
python=$(scripts/wheel_tools.sh)
PYTHONDONTWRITEBYTECODE=1 "$python" - "$wheel" <<'PYTHON'
import sys

sys.path.insert(0, "python")
import backend

for build in (backend.build_wheel, backend.build_sdist):
    print(f"{sys.argv[1]}/{build(sys.argv[1])}")
PYTHON

#!/bin/sh
# Makes a Python environment in a folder, for tools that are wheels: venv.sh FOLDER. Debian's python3 needs a package for it.
set -eu
cd "$(dirname "$0")/.."
scripts/need.sh python3:python3
python3 -c 'import ensurepip, venv' 2>/dev/null || scripts/need.sh python3-venv:/usr/share/doc/python3-venv
python3 -m venv "$1"

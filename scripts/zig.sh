#!/bin/sh
# Installs cargo-zigbuild and Zig, whose linker knows the symbols of each glibc, from Python wheels into build/zig, unless they
# are there, and prints the folder to put on the PATH. The versions are pinned: the same source gives the same bytes.
set -eu
cd "$(dirname "$0")/.."
venv=$PWD/build/zig
if [ ! -e "$venv/complete" ]; then
    rm -rf "$venv"
    scripts/venv.sh "$venv" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps cargo-zigbuild==0.23.4 ziglang==0.15.2 >&2
    touch "$venv/complete"
fi
echo "$venv/bin"

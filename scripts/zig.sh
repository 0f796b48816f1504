#!/bin/sh
# Installs cargo-zigbuild and Zig from Python wheels into build/zig, unless installed, and prints the folder for the PATH. Zig's
# linker knows the symbols of each glibc. The versions are pinned, so that the same source gives the same bytes.
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

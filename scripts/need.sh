#!/bin/sh
# Checks that tools are installed: need.sh PACKAGE:PROBE ..., where PROBE is a command or, with a slash, a file.
# As root on Debian or Ubuntu, installs missing packages. Otherwise prints the command to install them.
set -eu

if ! command -v cargo >/dev/null; then
    echo "eplb is built with cargo, from Rust 1.89 or newer: see https://rustup.rs" >&2
    exit 1
fi

missing=
for pair in "$@"; do
    probe=${pair#*:}
    case $probe in
    */*) [ -e "$probe" ] || missing="$missing ${pair%%:*}" ;;
    *) command -v "$probe" >/dev/null || missing="$missing ${pair%%:*}" ;;
    esac
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing$missing"
    # Concurrent calls would fail on apt's locks.
    exec 9<"$0"
    flock 9
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null
else
    echo "missing; on Debian or Ubuntu: sudo apt-get install$missing" >&2
    exit 1
fi

#!/bin/sh
# The shared library exports exactly the functions that the header declares.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

nm -D --defined-only "${EPLB_LIBRARY:-target/release/libeplb.so}" | awk '{ print $3 }' | sort >"$work/exported"
# Declarations, as the compiler sees them: the header without its comments.
gcc -E -P include/eplb.h | grep -oE '\beplb_[a-z_]+\(' | tr -d '(' | sort -u >"$work/declared"
if ! diff "$work/declared" "$work/exported" >"$work/difference"; then
    echo "declared in include/eplb.h (<) and exported by libeplb.so (>):" >&2
    cat "$work/difference" >&2
    exit 1
fi
echo "$(wc -l <"$work/exported") functions declared, and exactly those exported"

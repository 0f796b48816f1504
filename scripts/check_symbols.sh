#!/bin/sh
# Checks that the shared library exports exactly the functions that the headers declare. Checks that its SONAME, the headers and
# cargo-c's metadata have the same EPLB_ABI_VERSION.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
library=${EPLB_LIBRARY:-target/release/libeplb.so}

nm -D --defined-only "$library" | awk '{ print $3 }' | LC_ALL=C sort >"$work/exported"
scripts/exports.sh >"$work/declared"
if ! diff "$work/declared" "$work/exported" >"$work/difference"; then
    echo "declared in include/ (<) and exported by libeplb.so (>):" >&2
    cat "$work/difference" >&2
    exit 1
fi

abi_version=$(sed -n 's/^#define EPLB_ABI_VERSION //p' include/eplb.h)
soname=$(readelf -d "$library" | sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p')
if [ "$soname" != "libeplb.so.$abi_version" ]; then
    echo "the SONAME is $soname, and include/eplb.h has EPLB_ABI_VERSION $abi_version" >&2
    exit 1
fi
if ! sed -n '/^\[package.metadata.capi.library\]/,/^$/p' Cargo.toml | grep -qx "version = \"$abi_version\.0\.0\""; then
    echo "Cargo.toml: version in [package.metadata.capi.library] is not $abi_version.0.0, from EPLB_ABI_VERSION" >&2
    exit 1
fi
echo "$(wc -l <"$work/exported") functions declared, and exactly those exported by $soname"

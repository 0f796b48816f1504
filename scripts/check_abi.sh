#!/bin/sh
# Compares the binary interface with the baseline in abi/. CONTRIBUTING.md says how to change it.
#
#   check_abi.sh            fails on any difference
#   check_abi.sh --update   makes the interface as it is the baseline
#
# What is compared is the interface as callers compile it: a library of stubs made from the header, in which handles are
# opaque and every constant has its type. That libeplb.so is the same interface is shown elsewhere: layouts and constants
# by abi_tests, signatures in src/ffi, symbols by check_symbols.sh.
set -eu
cd "$(dirname "$0")/.."
baseline=abi/libeplb.abi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Each declaration becomes a definition; the types stay as they are.
{
    echo '#include <eplb.h>'
    echo 'extern "C" {'
    g++ -E -P -x c++ include/eplb.h | tr '\n' ' ' | tr ';' '\n' |
        sed -nE 's/^.*__attribute__\(\(visibility\("default"\)\)\) +(.*)$/\1/p' |
        sed -E 's/^(void eplb.*)$/\1 {}/; t; s/$/ { return {}; }/'
    echo '}'
} >"$work/stubs.cpp"
abi_version=$(sed -n 's/^#define EPLB_ABI_VERSION //p' include/eplb.h)
g++ -std=c++17 -shared -fPIC -g -fno-eliminate-unused-debug-types -Wno-unused-parameter -Iinclude \
    -ffile-prefix-map="$work=." -ffile-prefix-map="$PWD=." -Wl,-soname,"libeplb.so.$abi_version" "$work/stubs.cpp" -o "$work/libeplb.so"
abidw --load-all-types --headers-dir include --drop-private-types --no-show-locs --no-comp-dir-path \
    --no-corpus-path --no-elf-needed "$work/libeplb.so" >"$work/now.abi"

if [ "${1:-}" = --update ]; then
    cp "$work/now.abi" "$baseline"
    echo "wrote $baseline"
else
    abidiff "$baseline" "$work/now.abi"
    # What abidiff takes for harmless (a function more, a constant more) changes the baseline too.
    cmp "$baseline" "$work/now.abi" || {
        echo "the interface changed: if that is meant, run scripts/check_abi.sh --update" >&2
        exit 1
    }
    echo "the binary interface is that of $baseline"
fi

#!/bin/sh
# Compares the binary interface with the baseline in abi/. CONTRIBUTING.md says how to change it.
#
#   check_abi.sh            fails on any difference
#   check_abi.sh --update   makes the interface as it is the baseline
#
# It compares the interface that callers compile: a library of stubs made from all headers, with opaque handles and all
# constants. Other gates compare the headers with libeplb.so: abi_tests layouts and constants, src/ffi signatures,
# check_symbols.sh symbols.
set -eu
cd "$(dirname "$0")/.."
baseline=abi/libeplb.abi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for header in include/eplb*.h; do
    echo "#include <${header#include/}>"
done >"$work/headers.h"
# Each declaration becomes a definition; the types stay as they are.
{
    echo '#include "headers.h"'
    echo 'extern "C" {'
    g++ -E -P -x c++ -Iinclude "$work/headers.h" | tr '\n' ' ' | tr ';' '\n' |
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
    # abidiff accepts additions, and changes of constants that no function takes.
    cmp "$baseline" "$work/now.abi" || {
        echo "the interface changed: if that is meant, run scripts/check_abi.sh --update" >&2
        exit 1
    }
    echo "the binary interface is that of $baseline"
fi

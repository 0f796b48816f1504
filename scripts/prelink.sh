#!/bin/sh
# Turns cargo's static library into one that links anywhere: prelink.sh CARGOS_LIBRARY OUT.
#
# cargo's archive carries Rust's standard library with global symbols, which collide with those of any other Rust static
# library, and LLVM bitcode. OUT has one object with the functions of the headers and the code that they need. These functions
# are its only global symbols. They are hidden, so a shared object that links OUT does not export them.
set -eu
raw=$1
out=$2
scripts=$(dirname "$0")
# If OUT is newer than all its inputs, there is nothing to do.
if [ -e "$out" ] && [ -z "$(find "$raw" "$scripts/prelink.sh" "$scripts/exports.sh" "$scripts"/../include/eplb*.h -newer "$out")" ]; then
    exit 0
fi
mkdir -p "$(dirname "$out")"
work=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$work"' EXIT

"$scripts/exports.sh" >"$work/exports"
# A reference that is hidden makes the definition hidden. objcopy has no option for that.
{
    echo '.section .eplb_exports,"",%progbits'
    sed 's/.*/.hidden &\n.quad &/' "$work/exports"
    echo '.section .note.GNU-stack,"",%progbits'
} >"$work/exports.s"
"${CC:-cc}" -c "$work/exports.s" -o "$work/exports.o"

"${OBJCOPY:-objcopy}" --remove-section=.llvmbc --remove-section=.llvmcmd "$raw" "$work/raw.a"
# The linker would discard the section group of rust_eh_personality if another Rust library has one of that name. References
# here are local and would break, so groups are dissolved.
sed 's/^/--undefined=/' "$work/exports" >"$work/options"
"${LD:-ld}" -r --gc-sections --force-group-allocation "@$work/options" "$work/exports.o" "$work/raw.a" -o "$work/all.o"
# Removed code leaves undefined symbols behind, and weak ones have become strong.
export LC_ALL=C
"${OBJDUMP:-objdump}" -r "$work/all.o" | awk 'NF == 3 { sub(/[-+]0x.*/, "", $3); print $3 }' | sort -u >"$work/referenced"
"${NM:-nm}" --undefined-only "$work/all.o" | awk '{ print $2 }' | sort -u | comm -23 - "$work/referenced" >"$work/unused"
"${OBJCOPY:-objcopy}" --strip-debug --remove-section=.eplb_exports --strip-symbols="$work/unused" \
    --keep-global-symbols="$work/exports" "$work/all.o" "$work/eplb.o"
"${AR:-ar}" rcD "$work/libeplb.a" "$work/eplb.o"
"${AR:-ar}" sD "$work/libeplb.a"
mv "$work/libeplb.a" "$out"

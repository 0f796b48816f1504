#!/bin/sh
# Compiles the headers as every language they are for, with gcc and clang, warnings as errors. Each header is included
# twice in two units, which are linked together. Then compiles the samples in the comments of the headers as C and C++, and
# runs them in order: collect, generate, run, live.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
library=$(realpath "${EPLB_LIBRARY:-target/release/libeplb.so}")
warnings="-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror"

check() { # LANGUAGE STANDARD COMPILER HEADER
    for unit in one two; do
        main=$([ $unit = one ] && echo "int main(void) { return 0; }" || echo "int two(void);")
        printf '#include <%s>\n#include <%s>\n%s\n' "$4" "$4" "$main" >"$work/$unit.$1"
    done
    # shellcheck disable=SC2086
    "$3" -std="$2" $warnings -Iinclude "$work/one.$1" "$work/two.$1" -o "$work/program" "$library"
}

for header in eplb.h eplb_tools.h eplb_live.h; do
    for standard in c99 c11 c17; do
        check c $standard gcc $header
        check c $standard clang $header
    done
done
for header in eplb.h eplb_tools.h eplb_live.h eplb.hpp eplb_tools.hpp eplb_live.hpp; do
    for standard in c++17 c++20; do
        check cpp $standard g++ $header
        check cpp $standard clang++ $header
    done
done
echo "eplb.h, eplb_tools.h, eplb_live.h and their .hpp: C99 to C17 and C++17 to C++20, gcc and clang"

# samples HEADER NAME...: writes the samples of a header, in their order, to NAME.c and NAME.cpp.
samples() {
    header=$1
    shift
    rm -f "$work"/sample.*
    awk -v to="$work/sample." '
        /^ \*   #include/ && !inside { inside = 1; count++ }
        !/^ \*($|   )/ { inside = 0 }
        inside { print substr($0, 6) > (to count) }' "include/$header"
    number=0
    for name; do
        number=$((number + 1))
        cp "$work/sample.$number" "$work/$name.c"
        cp "$work/sample.$number" "$work/$name.cpp"
    done
    [ ! -e "$work/sample.$((number + 1))" ] || {
        echo "include/$header has more samples than this script runs" >&2
        exit 1
    }
}
samples eplb.h collect run
samples eplb_tools.h generate
samples eplb_live.h live

# The loader finds the library by its SONAME.
soname=$(readelf -d "$library" | sed -n 's/.*SONAME.*\[\(.*\)\]$/\1/p')
ln -s "$library" "$work/$soname"

run_samples() { # LANGUAGE STANDARD COMPILER
    place=$work/$3
    mkdir "$place"
    for name in collect generate run live; do
        # shellcheck disable=SC2086
        "$3" -std="$2" $warnings -Iinclude "$work/$name.$1" -o "$place/$name" "$library"
        (cd "$place" && LD_LIBRARY_PATH=$work "./$name" >"$name.out")
    done
    # An imbalance, and six lines "expert E: slot S", where the file has expert E in slot S of layer 3.
    if ! grep -qxE 'imbalance ratio: [0-9.]+, was [0-9.]+' "$place/generate.out" || ! awk '
        NR == FNR { if ($1 == "3:") { gsub(/[][,]/, " "); for (i = 2; i <= NF; i++) held[i - 2] = $i }; next }
        { right += /^expert [0-9]+: slot [0-9]+$/ && ($4 in held) && held[$4] == $2 + 0; lines++ }
        END { exit !(lines == 6 && right == 6) }' "$place/moe_load_balancer.yaml" "$place/run.out"; then
        echo "the samples, compiled by $3, printed:" >&2
        cat "$place/generate.out" "$place/run.out" "$place/moe_load_balancer.yaml" >&2
        exit 1
    fi
    # One of the two hot experts goes to the other rank, and comes not back.
    if [ "$(grep -c '^expert [0-3] from slot [0-3] to slot [0-3]$' "$place/live.out")" != 2 ] ||
        ! grep -q '^2 slots of 1 layers receive an expert$' "$place/live.out"; then
        echo "the sample of eplb_live.h, compiled by $3, printed:" >&2
        cat "$place/live.out" >&2
        exit 1
    fi
}
run_samples c c99 gcc
run_samples c c99 clang
run_samples cpp c++17 g++
run_samples cpp c++17 clang++
echo "the samples of the headers: C99 and C++17, gcc and clang; they route each id to a slot of its expert"

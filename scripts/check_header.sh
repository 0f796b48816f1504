#!/bin/sh
# Compiles both headers as every language they are for, with gcc and clang, warnings as errors: each included twice, in two
# units that are linked together.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

check() { # LANGUAGE STANDARD COMPILER HEADER
    for unit in one two; do
        main=$([ $unit = one ] && echo "int main(void) { return 0; }" || echo "int two(void);")
        printf '#include <%s>\n#include <%s>\n%s\n' "$4" "$4" "$main" >"$work/$unit.$1"
    done
    "$3" -std="$2" -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror -Iinclude \
        "$work/one.$1" "$work/two.$1" -o "$work/program" -Ltarget/release -leplb
}

for standard in c99 c11 c17; do
    check c $standard gcc eplb.h
    check c $standard clang eplb.h
done
for standard in c++17 c++20; do
    for header in eplb.h eplb.hpp; do
        check cpp $standard g++ $header
        check cpp $standard clang++ $header
    done
done
echo "eplb.h and eplb.hpp: C99 to C17 and C++17 to C++20, gcc and clang"

#!/bin/sh
# Builds the libraries and the program here, and in another folder as a part of another project. The bytes must be equal.
set -eu
cd "$(dirname "$0")/.."
make -s build
scripts/check_submodule.sh
other=build/check_submodule/make/eplb
compare() { # FILE OTHER
    cmp "$1" "$2"
    echo "${1##*/}: the same $(stat -c %s "$1") bytes from both builds"
}
compare target/release/eplb $other/target/release/eplb
compare target/release/libeplb.so $other/lib/libeplb.so
compare build/lib/libeplb.a $other/lib/libeplb.a
rm -rf build/check_submodule

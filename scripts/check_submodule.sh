#!/bin/sh
# Builds eplb as a part of another project, from a read-only copy, with make and with Ninja. Builds both C examples by the targets
# of the source tree, and from the tree that the project installs. The copy must not change.
set -eu
cd "$(dirname "$0")/.."
scripts/need.sh cmake:cmake g++:g++ ninja-build:ninja pkg-config:pkg-config
root=$PWD
work=$root/build/check_submodule
rm -rf "$work"

source=$work/engine/eplb
mkdir -p "$source"
git ls-files -z CMakeLists.txt Cargo.toml Cargo.lock LICENSE NOTICE build.rs include kernels packaging scripts src benches tests |
    xargs -0 cp --parents -t "$source"
cp -r examples/minimal_c examples/collect_c "$work/engine"
cat >"$work/engine/CMakeLists.txt" <<'CMAKE'
cmake_minimum_required(VERSION 3.20)
project(engine C CXX)
add_subdirectory(eplb)
foreach(example minimal_c collect_c)
    foreach(kind eplb static)
        add_executable(${example}_${kind} ${example}/main.c)
        target_link_libraries(${example}_${kind} PRIVATE eplb::${kind})
    endforeach()
endforeach()
CMAKE
trap 'chmod -R u+w "$source"' EXIT
chmod -R a-w "$source"
# Root can write nevertheless, so the files are compared before and after.
listed() { (cd "$source" && find . -printf '%p %y %s %T@\n' | sort); }
listed >"$work/before.txt"

# A build for another machine must name it.
if cmake -S "$work/engine" -B "$work/cross" -DCMAKE_SYSTEM_NAME=Linux >"$work/cross.log" 2>&1 ||
    ! grep -q EPLB_CARGO_TARGET "$work/cross.log"; then
    cat "$work/cross.log" >&2
    echo "a cross build without EPLB_CARGO_TARGET is not refused" >&2
    exit 1
fi
rm -r "$work/cross"

# check_reproducible.sh compares the output with that of `make build`, so features and program are the same. Ninja reuses cargo's
# output of the first build.
built=$work/make/eplb/target
for generator in make ninja; do
    name="Unix Makefiles"
    if [ $generator = ninja ]; then name=Ninja; fi
    cmake -G "$name" -S "$work/engine" -B "$work/$generator" -DCMAKE_INSTALL_PREFIX="$work/tree-$generator" \
        -DCMAKE_INSTALL_LIBDIR=lib "-DEPLB_CARGO_OPTIONS=--features;cli;--bin;eplb" -DEPLB_TARGET_DIR="$built" >/dev/null
    cmake --build "$work/$generator" >/dev/null
    for kind in eplb static; do
        "$work/$generator/minimal_c_$kind" data/dumps/dsv2lite-translation 8 72 "$work/config.yaml" >/dev/null
        cmp "$work/config.yaml" data/expected/dsv2lite-translation.ep8.slots72.yaml
        EXPERT_STATISTIC_ITER_RANGE=100-200 EXPERT_STATISTIC_PATH="$work/dump-$generator-$kind" \
            "$work/$generator/collect_c_$kind" >/dev/null
        target/release/eplb inspect "$work/dump-$generator-$kind" >/dev/null
    done
    cmake --install "$work/$generator" >/dev/null
    echo "add_subdirectory with $name: both C examples, shared and static"
done
diff -r "$work/tree-make" "$work/tree-ninja"
dangling=$(find "$work/make" "$work/ninja" -xtype l)
if [ -n "$dangling" ]; then
    echo "dangling links: $dangling" >&2
    exit 1
fi
listed >"$work/after.txt"
diff "$work/before.txt" "$work/after.txt"
scripts/check_tree.sh "$work/tree-make" "$work/check_tree"

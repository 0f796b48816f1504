#!/bin/sh
# Builds and runs both C examples from an installed tree, on a PATH without Rust: check_tree.sh TREE WORK. Builds them shared and
# static, with CMake and pkg-config, and with -static. Also checks that the tree has the licences.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
tree=$(realpath "$1")
rm -rf "$2"
mkdir -p "$2"
work=$(realpath "$2")

PATH=/usr/bin:/bin
export PATH
if command -v cargo >/dev/null || command -v rustc >/dev/null; then
    echo "this PATH has Rust, so the check would not show that the tree builds without it" >&2
    exit 1
fi
PKG_CONFIG_PATH=$(dirname "$(find "$tree" -name eplb.pc)")
LD_LIBRARY_PATH=
export PKG_CONFIG_PATH LD_LIBRARY_PATH

for file in LICENSE NOTICE THIRD-PARTY; do
    [ -s "$tree/share/doc/eplb/$file" ] || {
        echo "$tree lacks share/doc/eplb/$file" >&2
        exit 1
    }
done
for header in include/*.h include/*.hpp; do
    cmp "$header" "$tree/$header"
done
dangling=$(find "$tree" -xtype l)
if [ -n "$dangling" ]; then
    echo "dangling links: $dangling" >&2
    exit 1
fi

# Runs an example. minimal_c must write the file that TensorRT-LLM's script wrote. eplb must read the dump of collect_c.
run() { # EXAMPLE PROGRAM
    rm -rf "$work/config.yaml" "$work/dump"
    case $1 in
    minimal_c)
        "$2" "$root/data/dumps/dsv2lite-translation" 8 72 "$work/config.yaml" >"$work/out.txt" 2>&1 &&
            cmp "$work/config.yaml" "$root/data/expected/dsv2lite-translation.ep8.slots72.yaml"
        ;;
    collect_c)
        EXPERT_STATISTIC_ITER_RANGE=100-200 EXPERT_STATISTIC_PATH="$work/dump" "$2" >"$work/out.txt" 2>&1 &&
            "$root/target/release/eplb" inspect "$work/dump" >>"$work/out.txt" 2>&1
        ;;
    esac || {
        cat "$work/out.txt" >&2
        echo "$2 failed" >&2
        exit 1
    }
}

for example in minimal_c collect_c; do
    for kind in eplb static; do
        source=$work/$example-$kind
        cp -r "examples/$example" "$source"
        sed -i "s/eplb::eplb/eplb::$kind/" "$source/CMakeLists.txt"
        cmake -S "$source" -B "$source/build" -DCMAKE_PREFIX_PATH="$tree" >/dev/null
        cmake --build "$source/build" >/dev/null
        run $example "$source/build/$example"
    done

    compile="cc -std=c99 examples/$example/main.c"
    # shellcheck disable=SC2046
    {
        $compile $(pkg-config --cflags --libs eplb) -o "$work/shared"
        $compile $(pkg-config --cflags eplb) $(pkg-config --static --libs eplb | sed 's/-leplb/-l:libeplb.a/') -o "$work/archive"
        # The linker warns of dlopen and name lookups, which a static program must not call. eplb does not call them.
        $compile -static $(pkg-config --cflags --static --libs eplb) -o "$work/static" 2>"$work/log" || {
            cat "$work/log" >&2
            exit 1
        }
    }
    LD_LIBRARY_PATH=$(pkg-config --variable=libdir eplb) run $example "$work/shared"
    run $example "$work/archive"
    run $example "$work/static"
    if readelf -l "$work/static" | grep -q INTERP; then
        echo "$work/static is not a static program" >&2
        exit 1
    fi
    echo "$example: CMake and pkg-config, shared and static, and linked with -static"
done
echo "the licences are in ${tree##*/}/share/doc/eplb"

#!/bin/sh
# Installs eplb, moves the tree, and builds and runs the examples from it. Checks what the shared library needs and what
# loading it does.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
work=$root/build/check_install
rm -rf "$work"
mkdir -p "$work"

libdir=lib/$(cc -dumpmachine)
make -s install DESTDIR="$work/stage" PREFIX=/opt/eplb LIBDIR="$libdir" >/dev/null
mv "$work/stage/opt/eplb" "$work/moved"
rm -r "$work/stage"
tree=$work/moved

scripts/check_tree.sh "$tree" "$work/check_tree"

# C++, with CMake and with pkg-config.
run() {
    output=$work/config.yaml
    rm -f "$output"
    "$@" "$root/data/dumps/dsv2lite-translation" 8 72 "$output" >"$work/out.txt" 2>&1 || {
        cat "$work/out.txt"
        exit 1
    }
    cmp "$output" "$root/data/expected/dsv2lite-translation.ep8.slots72.yaml"
}
for kind in eplb static; do
    source=$work/cmake_project-$kind
    cp -r examples/cmake_project "$source"
    sed -i "s/eplb::eplb/eplb::$kind/" "$source/CMakeLists.txt"
    cmake -S "$source" -B "$source/build" -DCMAKE_PREFIX_PATH="$tree" >/dev/null
    cmake --build "$source/build" >/dev/null
    run "$source/build/my_engine"
done
PKG_CONFIG_PATH=$tree/$libdir/pkgconfig
LD_LIBRARY_PATH=
export PKG_CONFIG_PATH LD_LIBRARY_PATH
# shellcheck disable=SC2046
c++ -std=c++17 examples/cmake_project/main.cpp $(pkg-config --cflags --libs eplb) -o "$work/shared"
LD_LIBRARY_PATH=$(pkg-config --variable=libdir eplb) run "$work/shared"
# shellcheck disable=SC2046
c++ -std=c++17 examples/cmake_project/main.cpp $(pkg-config --cflags eplb) \
    $(pkg-config --static --libs eplb | sed 's/-leplb/-l:libeplb.a/') -o "$work/static"
run "$work/static"
echo "cmake_project: CMake and pkg-config, shared and static"

# Version 0.1 is installed, so CMake must refuse 0.2, 1.0 and 0.1.99.
for version in 0.2 1.0 0.1.99; do
    mkdir -p "$work/version"
    printf 'cmake_minimum_required(VERSION 3.20)\nproject(p C)\nfind_package(eplb %s CONFIG REQUIRED)\n' $version \
        >"$work/version/CMakeLists.txt"
    if cmake -S "$work/version" -B "$work/version/build" -DCMAKE_PREFIX_PATH="$tree" >/dev/null 2>&1; then
        echo "find_package(eplb $version) accepted $(sed -n 's/^Version: //p' "$tree/$libdir/pkgconfig/eplb.pc")" >&2
        exit 1
    fi
done
echo "CMake: other versions are refused"

"$tree/bin/eplb" --version
for page in eplb eplb-generate eplb-inspect; do
    grep -q "^.TH" "$tree/share/man/man1/$page.1"
done

# The library needs only libraries that every Linux program has, and is small.
library=$tree/$libdir/libeplb.so
ldd "$library" | sed 's/ (0x.*//; s/ =>.*//; s/^[[:space:]]*//' >"$work/needed.txt"
if grep -vE '^(linux-vdso|libc|libm|libgcc_s)\.so|^/lib.*/ld-linux' "$work/needed.txt"; then
    echo "libeplb.so needs more than libc, libm, libgcc_s and the loader" >&2
    exit 1
fi
strip -o "$work/stripped.so" "$library"
size=$(stat -c %s "$work/stripped.so")
[ "$size" -lt 5000000 ] || { echo "the stripped library has $size bytes" >&2; exit 1; }

# Loading starts no thread and opens no file except the libraries.
cat >"$work/load.c" <<'C'
#include <dlfcn.h>
#include <stdio.h>
#include <unistd.h>
int main(int argc, char **argv) {
    (void)argc;
    if (access("/before", F_OK) == 0 || dlopen(argv[1], RTLD_NOW) == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    return access("/after", F_OK) == 0;
}
C
cc "$work/load.c" -o "$work/load" -ldl
strace -f -e trace=access,faccessat,faccessat2,open,openat,openat2,creat,socket,pipe,pipe2,clone,clone3,fork,vfork \
    -o "$work/trace.txt" "$work/load" "$library"
sed -n '/"\/before"/,/"\/after"/p' "$work/trace.txt" | grep -vE '"/(before|after)"|lib(eplb|gcc_s|m|c)\.so|ld\.so\.cache' \
    >"$work/did.txt" || true
if [ -s "$work/did.txt" ]; then
    echo "loading libeplb.so does more than load it:" >&2
    cat "$work/did.txt" >&2
    exit 1
fi
echo "libeplb.so: $size bytes stripped, needs only libc, libm and libgcc_s, and loading it does nothing else"

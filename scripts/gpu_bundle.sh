#!/bin/sh
# Makes build/gpu-bundle: the device tests, the three steps with the example engine, and the benchmark, as a folder that runs on
# any x86-64 Linux with only an NVIDIA driver. Its run.sh is scripts/gpu_run.sh.
set -eu
cd "$(dirname "$0")/.."
scripts/need.sh cmake:cmake g++:g++ libgtest-dev:/usr/include/gtest/gtest.h \
    nlohmann-json3-dev:/usr/include/nlohmann/json.hpp
bundle=$PWD/build/gpu-bundle
tests="collect_test dispatch_test cuda_test hot_calls_test"

# All libraries are linked in except glibc and Rust's libgcc_s. The bundle has both: they may be older or missing there.
cmake -S cpp_tests -B build/gpu -Wno-dev -DEPLB_VALGRIND=OFF -DEPLB_MPI=OFF \
    -DCMAKE_EXE_LINKER_FLAGS="-static-libstdc++ -static-libgcc" \
    -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON "-DCMAKE_INSTALL_RPATH=\$ORIGIN/lib" "-DCMAKE_CXX_FLAGS=-ffile-prefix-map=$PWD=." >/dev/null
# shellcheck disable=SC2086
cmake --build build/gpu -j 2 --target $tests gpu_bench moe_engine >/dev/null
cargo build --locked --quiet --release --features cli

rm -rf "$bundle"
mkdir -p "$bundle/lib" "$bundle/glibc"
for program in $tests gpu_bench/gpu_bench harness/moe_engine/moe_engine; do
    strip -g -o "$bundle/${program##*/}" "build/gpu/$program"
done
strip -g -o "$bundle/eplb" target/release/eplb
mkdir "$bundle/tiny-moe"
for file in config.json model.safetensors gsm8k-test.jsonl LICENSE.gsm8k README.md; do
    install -m 644 "data/tiny-moe/$file" "$bundle/tiny-moe"
done
# The file's name is the SONAME, since a copy of the bundle may lose links.
soname=$(readelf -d target/release/libeplb.so | sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p')
install -m 755 target/release/libeplb.so "$bundle/lib/$soname"
ln -s "$soname" "$bundle/lib/libeplb.so"
for library in ld-linux-x86-64.so.2 libc.so.6 libm.so.6 libdl.so.2 libpthread.so.0 librt.so.1 libgcc_s.so.1; do
    install -m 755 "$(g++ -print-file-name=$library)" "$bundle/glibc/$library"
done
install -m 755 scripts/gpu_run.sh "$bundle/run.sh"

# PTX alone: the driver compiles it. Lowered as in kernels/compile.sh, for drivers older than nvcc.
nvcc=$(scripts/nvcc.sh)
"$nvcc" -std=c++17 -O3 -ptx -arch=compute_80 -o build/gpu/baselines.ptx cpp_tests/gpu_bench/baselines.cu
sed 's/^\.version .*/.version 7.0/' build/gpu/baselines.ptx >"$bundle/baselines.ptx"
"${nvcc%/*}/ptxas" -arch=sm_80 -o /dev/null "$bundle/baselines.ptx"

# The bundle must have every library that its programs need, and no path of this machine.
for file in "$bundle"/*_test "$bundle/gpu_bench" "$bundle/moe_engine" "$bundle/eplb" "$bundle/lib/$soname"; do
    for library in $(readelf -d "$file" | sed -n 's/.*NEEDED.*\[\(.*\)\]/\1/p'); do
        if ! [ -e "$bundle/lib/$library" ] && ! [ -e "$bundle/glibc/$library" ]; then
            echo "$file needs $library, which is not in the bundle" >&2
            exit 1
        fi
    done
    path=$(readelf -d "$file" | sed -n 's/.*R.*PATH.*\[\(.*\)\]/\1/p')
    if [ -n "$path" ] && [ "$path" != "\$ORIGIN/lib" ]; then
        echo "$file looks for libraries in $path" >&2
        exit 1
    fi
done
# A larger bundle would contain a library by mistake.
size=$(du -sm "$bundle" | cut -f 1)
if [ "$size" -gt 32 ]; then
    echo "$bundle has grown to $size MiB" >&2
    exit 1
fi
echo "$bundle: $size MiB; on a machine with a GPU, run its run.sh"

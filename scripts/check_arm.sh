#!/bin/sh
# Compiles eplb for 64-bit Arm, with CMake as an engine would, and runs tests of the library and of the C interface under QEMU: on
# the host, over the fake driver, and the kernels' emulation. Plans must have the same bytes as on this machine. Takes half an hour.
# Not run: tests that start other programs or fork, where QEMU 7.2's user mode fails.
set -eu
cd "$(dirname "$0")/.."
scripts/need.sh cmake:cmake gcc-aarch64-linux-gnu:aarch64-linux-gnu-gcc g++-aarch64-linux-gnu:aarch64-linux-gnu-g++ \
    qemu-user:qemu-aarch64 googletest:/usr/src/googletest/CMakeLists.txt nlohmann-json3-dev:/usr/include/nlohmann/json.hpp
target=aarch64-unknown-linux-gnu
if [ ! -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; then
    echo "Rust's standard library for $target is missing: rustup target add $target" >&2
    exit 1
fi
build=$PWD/build/arm
emulator="qemu-aarch64 -L /usr/aarch64-linux-gnu"
mkdir -p "$build"
cat >"$build/toolchain.cmake" <<CMAKE
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR $emulator)
CMAKE
configure() {
    cmake "-DCMAKE_TOOLCHAIN_FILE=$build/toolchain.cmake" "$@" >/dev/null
}
configure -S /usr/src/googletest -B "$build/gtest" "-DCMAKE_INSTALL_PREFIX=$build/prefix"
cmake --build "$build/gtest" -j 2 >/dev/null
cmake --install "$build/gtest" >/dev/null
configure -S cpp_tests -B "$build/cpp_tests" "-DCMAKE_PREFIX_PATH=$build/prefix" -DEPLB_CARGO_TARGET=$target -DEPLB_MPI=OFF \
    -DEPLB_VALGRIND=OFF -Wno-dev
cmake --build "$build/cpp_tests" -j 2 >/dev/null
ctest --test-dir "$build/cpp_tests" -j 2 --output-on-failure -E '^(harness|recorder)$'

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="$emulator"
there() {
    cargo test --quiet --locked --features cli --target $target --lib -- "$@"
}
there --skip plans_are_the_same_in_every_process
plans=live::planning_tests::plans_are_the_same_in_every_process_with_any_threads_and_instructions
export EPLB_TEST_THREADS=1
there $plans --exact --nocapture >"$build/plans_of_arm"
cargo test --quiet --locked --features cli --lib -- $plans --exact --nocapture >"$build/plans_of_this"
of_arm=$(grep '^plans ' "$build/plans_of_arm")
of_this=$(grep '^plans ' "$build/plans_of_this")
if [ "$of_arm" != "$of_this" ]; then
    echo "$of_arm on 64-bit Arm, $of_this here" >&2
    exit 1
fi
echo "the same plans on 64-bit Arm and here: $of_arm"

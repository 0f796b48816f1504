#!/bin/sh
# Compiles the kernels with NVIDIA's compiler, which scripts/nvcc.sh installs, and compares with the checked-in image.
#
#   check_kernels.sh            fails on any difference
#   check_kernels.sh --update   updates kernels/prebuilt and the table in docs/gpu.md
set -eu
cd "$(dirname "$0")/.."
nvcc=$(scripts/nvcc.sh)
bin=$(dirname "$nvcc")
work=build/check_kernels
rm -rf "$work"
mkdir -p "$work"

image=$work
[ "${1:-}" != --update ] || image=kernels/prebuilt
kernels/compile.sh "$nvcc" "$image"
python3 scripts/kernel_facts.py "$bin" "$image/eplb.fatbin" >"$work/facts"
sed -e "/^<!-- facts -->/r $work/facts" -e '/^<!-- facts -->/,/^<!-- \/facts -->/ { /^|/d }' docs/gpu.md >"$work/gpu.md"
if [ "${1:-}" = --update ]; then
    cp "$work/gpu.md" docs/gpu.md
    exit
fi

for name in eplb.fatbin eplb.ptx; do
    cmp "$work/$name" "kernels/prebuilt/$name" || {
        echo "kernels/prebuilt differs from the output of kernels/: run scripts/check_kernels.sh --update" >&2
        exit 1
    }
done
cmp "$work/gpu.md" docs/gpu.md || {
    echo "the table in docs/gpu.md is out of date: run scripts/check_kernels.sh --update" >&2
    exit 1
}

# The assembler of driver 525's time must accept the PTX.
for arch in sm_80 sm_90; do
    "$bin/ptxas-12.0" -arch=$arch -o /dev/null kernels/prebuilt/eplb.ptx
done

# build.rs with nvcc must give the same image, and a failing nvcc must fail the build.
rm -rf target/nvcc
EPLB_NVCC=$nvcc cargo check --quiet --locked --lib --target-dir target/nvcc
for image in target/nvcc/debug/build/eplb-*/out/eplb.fatbin; do
    cmp "$image" kernels/prebuilt/eplb.fatbin
done
if EPLB_NVCC=/bin/false cargo check --quiet --locked --lib --target-dir target/nvcc 2>"$work/log"; then
    echo "an nvcc that fails does not fail the build" >&2
    exit 1
fi
grep -q "EPLB_NVCC= takes the kernels in kernels/prebuilt" "$work/log"

# Compares the declarations of the driver with NVIDIA's header.
g++ -std=c++17 -fsyntax-only -Wall -Wextra -isystem "$(dirname "$bin")/include" \
    cpp_tests/fake_cuda/check_against_cuda_h.cpp
echo "kernels/prebuilt equals the compiled source, and driver 525 accepts the PTX"

#!/bin/sh
# Compiles the kernels: compile.sh NVCC OUT, into OUT/eplb.fatbin and OUT/eplb.ptx. build.rs runs it, and so does
# scripts/check_kernels.sh, which compares prebuilt/ with it.
#
# The fatbin has machine code for A100, H100/H200 and B200. The PTX is for other GPUs since the A100, and for drivers that reject
# the fatbin because its machine code is newer than they are. nvcc writes its latest PTX version, but these kernels need only 7.0
# (CUDA 11.0), which ptxas checks.
set -eu
nvcc=$1 out=$2
here=$(dirname "$0")
bin=$(dirname "$(command -v "$nvcc")")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

compile() { "$nvcc" -std=c++17 -O3 "$@" "$here/eplb.cu"; }

compile -ptx -arch=compute_80 -o "$work/new.ptx"
# The pragma, of 8.3, only tells ptxas which bytes of a load are used.
sed -e 's/^\.version .*/.version 7.0/' -e '/^[[:space:]]*\.pragma "used_bytes_mask/d' "$work/new.ptx" >"$out/eplb.ptx"
"$bin/ptxas" -arch=sm_80 -o /dev/null "$out/eplb.ptx"

images=''
for arch in 80 90 100; do
    compile -cubin -arch=sm_$arch -o "$work/sm_$arch.cubin"
    images="$images --image3=kind=elf,sm=$arch,file=$work/sm_$arch.cubin"
done
# shellcheck disable=SC2086
"$bin/fatbinary" -64 --create="$out/eplb.fatbin" $images

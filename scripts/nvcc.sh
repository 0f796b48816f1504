#!/bin/sh
# Installs NVIDIA's compiler from Python wheels into build/nvcc, unless installed, and prints the path of nvcc. Needs no GPU and
# no CUDA toolkit. The versions are pinned, so that the same source gives the same bytes.
#
# The version is 13.0, since driver 580 refuses PTX and machine code of newer ones. Beside it, ptxas-12.0 is the assembler of
# driver 525's time.
set -eu
cd "$(dirname "$0")/.."
root=$PWD/build/nvcc
bin=$root/lib/cu13/bin

if [ ! -e "$root/complete" ]; then
    rm -rf "$root"
    scripts/venv.sh "$root/venv" >&2
    "$root/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps \
        nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 \
        nvidia-cuda-cccl==13.0.85 nvidia-cuda-cuobjdump==13.2.51 nvidia-cuda-nvdisasm==13.2.51 >&2
    # The wheel of 12.0 would unpack over the others.
    "$root/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$root/12.0" \
        nvidia-cuda-nvcc-cu12==12.0.140 >&2
    mkdir "$root/lib"
    ln -s "$(echo "$root"/venv/lib/python3*/site-packages/nvidia/cu13)" "$root/lib/cu13"
    ln -s "$root/12.0/nvidia/cuda_nvcc/bin/ptxas" "$bin/ptxas-12.0"
    chmod +x "$root/12.0/nvidia/cuda_nvcc/bin/ptxas"
    touch "$root/complete"
fi
echo "$bin/nvcc"

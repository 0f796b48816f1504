#!/bin/sh
# Installs the pinned packages of other systems in build/peers, for scripts/peers.sh and scripts/bench_peers.sh. Prints their
# versions.
#
# They come from PyPI: 3 GB of download and 7 GB of disk, since PyPI's torch has CUDA with it.
# PEERS_TORCH_INDEX=https://download.pytorch.org/whl/cpu takes 300 MB instead. Of a system's own package only the Python files
# are unpacked, and none of its dependencies are installed: the scripts say what stands in for the rest.
set -eu
cd "$(dirname "$0")/.."

installed="torch==2.15.0 numpy==2.4.6 safetensors==0.8.0 pydantic==2.12.5 PyYAML==6.0.3"
unpacked="vllm==0.33.0 vllm-ascend==0.23.0 lmdeploy==0.18.0 sglang==0.5.23"

dir=build/peers
if [ "$(cat $dir/complete 2>/dev/null)" != "$installed $unpacked" ]; then
    rm -rf $dir
    mkdir -p $dir
    scripts/venv.sh $dir/venv
    python=$dir/venv/bin/python
    pip="$python -m pip --disable-pip-version-check --quiet"
    # shellcheck disable=SC2086
    $pip install ${PEERS_TORCH_INDEX:+--extra-index-url "$PEERS_TORCH_INDEX"} $installed
    for package in $unpacked; do
        $pip download --no-deps --only-binary :all: --python-version 3.11 --platform manylinux_2_34_x86_64 \
            --platform manylinux_2_28_x86_64 -d $dir "$package"
        "$python" - $dir/*.whl $dir/packages <<'PY'
import sys, zipfile

with zipfile.ZipFile(sys.argv[1]) as wheel:
    wheel.extractall(sys.argv[2], [name for name in wheel.namelist() if name.endswith(".py")])
PY
        rm $dir/*.whl
    done
    echo "$installed $unpacked" >$dir/complete
fi
echo "$installed $unpacked"

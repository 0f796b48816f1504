#!/bin/sh
# Makes the bundle and runs it over the fake driver, with this machine's glibc and with the bundle's. Without a driver it must
# report a failure.
set -eu
cd "$(dirname "$0")/.."
make gpu-bundle
cmake --build build/gpu -j 2 --target fake_cuda >/dev/null
run() {
    env -i PATH=/usr/bin:/bin "$@" build/gpu-bundle/run.sh --quick build/gpu-results >build/gpu-results.log 2>&1
}
passes() {
    run LD_LIBRARY_PATH="$PWD/build/gpu/fake_cuda/lib" "$@" || {
        cat build/gpu-results.log >&2
        exit 1
    }
}
# With the bundle's glibc, only starting the programs is tested.
passes EPLB_BUNDLE_GLIBC=1 GTEST_FILTER='Collect.*:Dispatch.Tables*:Cuda.*'
passes EPLB_BUNDLE_GLIBC=
sed -n '/^program/,$p' build/gpu-results.log
if [ ! -e /proc/driver/nvidia/version ] && run; then
    echo "run.sh passes without a driver" >&2
    exit 1
fi
echo "the bundle runs, and fails where there is no driver"

#!/bin/sh
# Makes the bundle and runs it over the driver of the tests, on this machine's glibc and on the bundle's; without a driver it
# must say that it failed.
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
# On the bundle's glibc it is starting that is in question.
passes EPLB_BUNDLE_GLIBC=1 GTEST_FILTER='Collect.*:Dispatch.Tables*:Cuda.*'
passes EPLB_BUNDLE_GLIBC=
sed -n '/^program/,$p' build/gpu-results.log
if [ ! -e /proc/driver/nvidia/version ] && run; then
    echo "run.sh passes without a driver" >&2
    exit 1
fi
echo "the bundle runs, and fails where there is no driver"

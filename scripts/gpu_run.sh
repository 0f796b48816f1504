#!/bin/sh
# Runs eplb's device tests on this machine's GPU, then the benchmark: run.sh [--quick] [RESULTS]. Logs, and the benchmark's
# tables as gpu_bench.md, go to the folder RESULTS, ./results by default. The last line is PASS or FAIL.
#
# Wants an NVIDIA driver and nothing else. Where the programs do not start with the system's glibc they take the one in glibc/;
# EPLB_BUNDLE_GLIBC=1 has them take it anyway.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
quick='' results=./results
for argument in "$@"; do
    case $argument in
    --quick) quick=--quick ;;
    -*)
        echo "usage: run.sh [--quick] [RESULTS]" >&2
        exit 2
        ;;
    *) results=$argument ;;
    esac
done
mkdir -p "$results"
results=$(cd "$results" && pwd)
PATH=${PATH:-/usr/bin:/bin}:/usr/sbin:/sbin # ldconfig is there.

# The paths that the driver's library may have, best first.
candidates() {
    echo "${LD_LIBRARY_PATH-}" | tr ':' '\n' | sed -n 's|..*|&/libcuda.so.1|p'
    ldconfig -p 2>/dev/null | sed -n 's|.*libcuda\.so\.1 (.*x86-64.*) => ||p'
    for folder in /usr/lib/x86_64-linux-gnu /usr/lib64 /usr/lib /usr/local/nvidia/lib64 /usr/local/nvidia/lib \
        /usr/lib64/nvidia /usr/lib/nvidia /usr/lib/wsl/lib /run/opengl-driver/lib; do
        echo "$folder/libcuda.so.1"
    done
}
driver=$(candidates | while read -r path; do
    if [ -e "$path" ]; then
        echo "$path"
        break
    fi
done)

user_libraries=${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}${driver:+:${driver%/*}}
limit=''
if command -v timeout >/dev/null; then
    limit='timeout 300' # A test that hangs should fail.
fi
glibc=${EPLB_BUNDLE_GLIBC-}

# start PROGRAM ARGUMENT...
start() {
    program=$here/$1
    shift
    if [ -n "$glibc" ]; then
        $limit "$here/glibc/ld-linux-x86-64.so.2" --library-path "$here/lib:$here/glibc$user_libraries" "$program" "$@"
    else
        # The shell's own libraries, and those of `timeout`, stay the system's.
        LD_LIBRARY_PATH=$here/lib$user_libraries $limit "$program" "$@"
    fi
}
if [ -z "$glibc" ] && ! start collect_test --gtest_list_tests >"$results/start.log" 2>&1; then
    glibc=1
fi

# For the tests' files.
if ! [ -w "${TMPDIR:-/tmp}" ]; then
    mkdir -p "$results/tmp"
    export TMPDIR="$results/tmp"
fi

{
    uname -srm
    echo "driver: ${driver:-no libcuda.so.1 was found}"
    if [ -n "$glibc" ]; then
        echo "glibc: the bundle's"
    else
        echo "glibc: the system's"
    fi
    cat /proc/driver/nvidia/version 2>/dev/null || true
    nvidia-smi 2>/dev/null || true
} | tee "$results/system.txt"

summary=$results/summary.txt
printf '%-26s %-14s %8s\n' program result seconds >"$summary"
outcome=PASS

# check DEVICE LOG PROGRAM ARGUMENT...
check() {
    export EPLB_TEST_DEVICE="$1"
    title="$3 on $1" log=$results/$2
    shift 2
    echo "$title ..."
    began=$(date +%s)
    result=passed
    start "$@" >"$log" 2>&1 || result="failed ($?)"
    ended=$(date +%s)
    if [ "$result" != passed ]; then
        outcome=FAIL
        tail -n 20 "$log"
    fi
    printf '%-26s %-14s %8s\n' "$title" "$result" $((ended - began)) >>"$summary"
}
check host collect_test_host.log collect_test
check host dispatch_test_host.log dispatch_test
check host hot_calls_test_host.log hot_calls_test
check cuda collect_test_cuda.log collect_test
check cuda dispatch_test_cuda.log dispatch_test
check cuda cuda_test_cuda.log cuda_test
check cuda hot_calls_test_cuda.log hot_calls_test
check cuda gpu_bench.md gpu_bench --image "$here/baselines.ptx" $quick

echo
cat "$results/gpu_bench.md"
echo
cat "$summary"
echo "$outcome"
[ "$outcome" = PASS ]

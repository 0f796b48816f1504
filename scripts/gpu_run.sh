#!/bin/sh
# Runs eplb's device tests on this machine's GPU, the three steps with a real model, then the benchmark:
# run.sh [--quick] [RESULTS]. Logs, and the benchmark's tables as gpu_bench.md, go to the folder RESULTS, ./results by default. The last
# line is PASS or FAIL.
#
# Needs an NVIDIA driver and nothing else. Programs that do not start with the system's glibc use the one in glibc/;
# EPLB_BUNDLE_GLIBC=1 makes all use it.
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

# check DEVICE LOG TITLE COMMAND...
check() {
    export EPLB_TEST_DEVICE="$1"
    title="$3 on $1" log=$results/$2
    shift 3
    echo "$title ..."
    began=$(date +%s)
    result=passed
    "$@" >"$log" 2>&1 || result="failed ($?)"
    ended=$(date +%s)
    if [ "$result" != passed ]; then
        outcome=FAIL
        tail -n 20 "$log"
    fi
    printf '%-26s %-14s %8s\n' "$title" "$result" $((ended - began)) >>"$summary"
}
test_on() {
    check "$1" "$2_$1.log" "$2" start "$2"
}

unset EXPERT_STATISTIC_PATH EXPERT_STATISTIC_ITER_RANGE # Each step sets what it counts.

# engine DEVICE ARGUMENT...
engine() {
    device=$1
    shift
    start moe_engine --model "$here/tiny-moe" --ep_size 8 --batch 1 --device "$device" "$@"
}
same() {
    for rank in 0 1 2 3 4 5 6 7; do
        cmp "$1/rank$rank.safetensors" "$2/rank$rank.safetensors" || return 1
    done
}
# The three steps with a real model. The GPU must count and route as the host does, and no rule may change an output.
three_steps() {
    flow=$results/flow
    rm -rf "$flow"
    mkdir -p "$flow/plain" "$flow/routed"
    for device in host cuda; do
        (
            export EXPERT_STATISTIC_PATH="$flow/dump_$device" EXPERT_STATISTIC_ITER_RANGE=1-3
            export SOURCE_DATE_EPOCH=0 # The dumps are compared.
            engine $device --questions 0-24
        ) || return 1
    done
    same "$flow/dump_host" "$flow/dump_cuda" || return 1
    start eplb generate --expert_statistic_path "$flow/dump_cuda" --ep_size 8 --num_slots 320 \
        --output_path "$flow/config.yaml" || return 1
    engine host --questions 0-16 --outputs "$flow/plain" || return 1
    for rule in round-robin token-hash nearest least-loaded; do
        engine cuda --questions 0-16 --outputs "$flow/routed" --route $rule \
            --moe_load_balancer "$flow/config.yaml" || return 1
        same "$flow/plain" "$flow/routed" || return 1
    done
}

test_on host collect_test
test_on host dispatch_test
test_on host hot_calls_test
test_on cuda collect_test
test_on cuda dispatch_test
test_on cuda cuda_test
test_on cuda hot_calls_test
check cuda three_steps.log "three steps" three_steps
check cuda gpu_bench.md gpu_bench start gpu_bench --image "$here/baselines.ptx" $quick

echo
cat "$results/gpu_bench.md"
echo
cat "$summary"
echo "$outcome"
[ "$outcome" = PASS ]

#!/bin/sh
# Reads a dump of examples/collect_c with the format's own Python package.
set -eu
cd "$(dirname "$0")/.."
work=build/check_format
rm -rf "$work"
mkdir -p "$work"
make -s build
cc -std=c99 -Iinclude examples/collect_c/main.c -o "$work/collect_c" build/lib/libeplb.a -lm -lpthread -ldl
EXPERT_STATISTIC_ITER_RANGE=100-200 EXPERT_STATISTIC_PATH=$work/dump "$work/collect_c" >"$work/out.txt"
grep -qx "rank 3: 28584 ids counted in iterations 100..200, 29016 of padding" "$work/out.txt"
python=$(scripts/python.sh)
"$python" scripts/check_format.py "$work/dump" 100 200

# A run that ends within the range writes an incomplete dump, which eplb refuses.
EXPERT_STATISTIC_ITER_RANGE=100-300 EXPERT_STATISTIC_PATH=$work/early "$work/collect_c" >/dev/null
if target/release/eplb inspect "$work/early" 2>"$work/log"; then
    echo "an incomplete dump is accepted" >&2
    exit 1
fi
grep -q "iteration 210 is missing, it has 100..210 of 100..300" "$work/log"

# Without the variable nothing is counted or written.
env -u EXPERT_STATISTIC_ITER_RANGE EXPERT_STATISTIC_PATH="$work/empty" "$work/collect_c" | grep -q "rank 3: 0 ids counted"
[ ! -e "$work/empty" ]
target/release/eplb inspect "$work/dump" >/dev/null
target/release/eplb generate --expert_statistic_path "$work/dump" --num_slots 72 --output_path "$work/config.yaml" >/dev/null
echo "eplb reads it too"

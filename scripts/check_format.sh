#!/bin/sh
# The recorder's dump as other programs see it: examples/collect_c records, Python reads with the format's own package.
set -eu
cd "$(dirname "$0")/.."
work=build/check_format
if [ ! -e "$work/venv/complete" ]; then
    rm -rf "$work"
    mkdir -p "$work"
    scripts/venv.sh "$work/venv"
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
    touch "$work/venv/complete"
fi
rm -rf "$work/dump" "$work/empty"
cc -std=c99 -Iinclude examples/collect_c/main.c -o "$work/collect_c" target/release/libeplb.a -lm -lpthread -ldl
EXPERT_STATISTIC_ITER_RANGE=100-200 EXPERT_STATISTIC_PATH=$work/dump "$work/collect_c"
"$work/venv/bin/python" scripts/check_format.py "$work/dump" 100 200

# And without the variable, nothing.
env -u EXPERT_STATISTIC_ITER_RANGE EXPERT_STATISTIC_PATH="$work/empty" "$work/collect_c" | grep -q "rank 3: 0 ids counted"
[ ! -e "$work/empty" ]
target/release/eplb inspect "$work/dump" >/dev/null
target/release/eplb generate --expert_statistic_path "$work/dump" --num_slots 72 --output_path "$work/config.yaml" >/dev/null
echo "eplb reads it, too"

#!/bin/sh
# The three steps with a real model on 8 ranks, threads of one process, and then live rebalancing: demo.sh ENGINE_FOLDER EPLB MODEL OUTPUT_FOLDER
#
# The configuration is generated from the first half of GSM8K's test questions. The gain is measured on the other half.
set -eu
engine=$1/moe_engine before_after=$1/before_after eplb=$2 model=$3 out=$4
unset EXPERT_STATISTIC_PATH EXPERT_STATISTIC_ITER_RANGE # Each step sets its own range.
rm -rf "$out"
mkdir -p "$out"

heading() {
    printf '\n== %s\n' "$1"
}
# Prints a command with its environment, and runs it.
show() {
    echo "\$ $*"
    env "$@"
}

heading "Step 1, collect: reads questions 0 to 659, and counts the experts chosen in iterations 100 to 199"
show EXPERT_STATISTIC_PATH="$out/expert_statistic" EXPERT_STATISTIC_ITER_RANGE=100-200 \
    "$engine" --model "$model" --ep_size 8 --questions 0-660 --batch 1 --iterations 200

heading "Step 2, generate: which expert each of 320 slots holds"
show "$eplb" generate --expert_statistic_path "$out/expert_statistic" --ep_size 8 --num_slots 320 \
    --output_path "$out/moe_load_balancer.yaml"

heading "Before: questions 660 to 1318 without it, 21 iterations; the counts are for the projection"
show EXPERT_STATISTIC_PATH="$out/held_out" EXPERT_STATISTIC_ITER_RANGE=0-21 \
    "$engine" --model "$model" --ep_size 8 --questions 660-1319 --report "$out/before.json"

heading "Step 3, run: the same questions with it"
show "$engine" --model "$model" --ep_size 8 --questions 660-1319 --report "$out/after.json" \
    --moe_load_balancer "$out/moe_load_balancer.yaml"

heading "Before and after"
"$before_after" "$out/before.json" "$out/after.json" "$out/held_out" "$out/moe_load_balancer.yaml"

# Round robin splits evenly, so what is even is the placement's work. The other text is eplb's own.
here=$(dirname "$0")/../..
live="--model $model --ep_size 8 --num_slots 320 --route round-robin --questions 660-1319 --batch 1 --iterations 48"
texts=$here/LICENSE,$here/docs/routing.md,$here/docs/glossary.md,$here/docs/exchange.md@24

heading "Without a configuration file: questions, then other text from iteration 24 on; the experts stay where they are"
# shellcheck disable=SC2086
show "$engine" $live --texts "$texts" --report "$out/never.json" --outputs "$out/outputs-never"

heading "Live: the same, and every 4 iterations a plan moves experts while the engine answers, at most 32 a layer"
# shellcheck disable=SC2086
show "$engine" $live --texts "$texts" --rebalance 4 --max_moves 32 --report "$out/live.json" --outputs "$out/outputs-live"

heading "Over time"
"$1/over_time" "$out/never.json" "$out/live.json" 4 24
for rank in 0 1 2 3 4 5 6 7; do
    cmp "$out/outputs-never/rank$rank.safetensors" "$out/outputs-live/rank$rank.safetensors"
done
echo "every answer is the same, bit for bit"

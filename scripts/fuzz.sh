#!/bin/sh
# Fuzzes what reads files of others and routing by placements of others: fuzz.sh [SECONDS], so many for configuration files and
# for routing, and a third of it for each kind of file in a dump. The corpus in fuzz/corpus is the start and stays as it is; an
# input that breaks a target is left in build/fuzz.
#
# libFuzzer with the stable compiler: the coverage pass is LLVM's own, and no sanitizer is needed for safe code. Integer
# overflow and debug assertions are on.
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-30}
host=$(rustc -vV | sed -n 's/^host: //p')

RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cdebug-assertions -Coverflow-checks" \
    cargo build --quiet --locked --release --manifest-path fuzz/Cargo.toml --target "$host" --target-dir target/fuzz

for target in config_file meta_info rank_file routing; do
    work=build/fuzz/$target
    mkdir -p "$work/corpus" "fuzz/corpus/$target" # git keeps no empty folder
    case $target in
    meta_info | rank_file) time=$((seconds / 3)) ;;
    *) time=$seconds ;;
    esac
    echo "$target for $time s"
    "target/fuzz/$host/release/$target" -max_total_time="$time" -timeout=10 -rss_limit_mb=1024 -max_len=4096 \
        -artifact_prefix="$work/" "$work/corpus" "fuzz/corpus/$target" 2>"$work/log" || {
        tail -n 40 "$work/log" >&2
        exit 1
    }
    grep -E '^(Done|#[0-9]+.*DONE)' "$work/log"
done
rm -rf /dev/shm/eplb-fuzz-*

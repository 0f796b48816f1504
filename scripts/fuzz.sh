#!/bin/sh
# Fuzzes the readers of files, routing and plans: fuzz.sh [SECONDS]. Configuration files and routing take SECONDS each, all other
# targets a third of it. Two targets run at a time. Starts from the corpus in fuzz/corpus, which stays unchanged. An input that
# fails is left in build/fuzz.
#
# Uses libFuzzer with the stable compiler and LLVM's coverage pass. Safe code needs no sanitizer. Checks of integer overflow and
# debug assertions are on.
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-30}
host=$(rustc -vV | sed -n 's/^host: //p')

RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cdebug-assertions -Coverflow-checks" \
    cargo build --quiet --locked --release --manifest-path fuzz/Cargo.toml --target "$host" --target-dir target/fuzz

# fuzz TARGET SECONDS
fuzz() {
    work=build/fuzz/$1
    mkdir -p "$work/corpus" "fuzz/corpus/$1" # git keeps no empty folder
    "target/fuzz/$host/release/$1" -max_total_time="$2" -timeout=10 -rss_limit_mb=1024 -max_len=4096 \
        -artifact_prefix="$work/" "$work/corpus" "fuzz/corpus/$1" 2>"$work/log" || {
        echo "$1 fails:" >&2
        tail -n 40 "$work/log" >&2
        return 1
    }
    echo "$1 for $2 s: $(grep '^Done' "$work/log")"
}
# both TARGET TARGET SECONDS
both() {
    fuzz "$1" "$3" &
    first=$!
    failed=
    fuzz "$2" "$3" || failed=1
    wait "$first" || failed=1
    [ -z "$failed" ]
}
both config_file routing "$seconds"
both meta_info rank_file $((seconds / 3))
both exchange torch $((seconds / 3))
fuzz plans $((seconds / 3))
rm -rf /dev/shm/eplb-fuzz-*

#!/bin/sh
# Runs the test of an engine's threads under ThreadSanitizer: planning and flips beside counting and routing. Compiles the standard
# library, too, whose locks it would not know otherwise, from rustup's component rust-src.
set -eu
cd "$(dirname "$0")/.."
source=$(rustc --print sysroot)/lib/rustlib/src/rust/library
if [ ! -d "$source" ]; then
    echo "the standard library's source is missing: rustup component add rust-src" >&2
    exit 1
fi
# Options of a nightly compiler, by the stable one.
RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=thread EPLB_LIVE_FLIPS=${EPLB_LIVE_FLIPS:-1000} \
    cargo test -Zbuild-std --locked --target "$(rustc -vV | sed -n 's/^host: //p')" --target-dir target/threads --test live_threads

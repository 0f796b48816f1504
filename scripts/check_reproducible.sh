#!/bin/sh
# Builds what ships twice, from two folders of different names, and compares the bytes.
set -eu
cd "$(dirname "$0")/.."
work=$PWD/build/check_reproducible
rm -rf "$work"

for folder in one another-folder; do
    mkdir -p "$work/$folder"
    git ls-files -z Cargo.toml Cargo.lock build.rs kernels src benches tests | xargs -0 cp --parents -t "$work/$folder"
    (cd "$work/$folder" && cargo build --quiet --locked --release --features cli)
done
for file in libeplb.so libeplb.a eplb; do
    cmp "$work/one/target/release/$file" "$work/another-folder/target/release/$file"
    echo "$file: the same $(stat -c %s "$work/one/target/release/$file") bytes from both builds"
done
rm -rf "$work"

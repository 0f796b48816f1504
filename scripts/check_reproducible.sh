#!/bin/sh
# What ships, built here, and built in a folder of another name: the same bytes.
set -eu
cd "$(dirname "$0")/.."
work=$PWD/build/check_reproducible
rm -rf "$work"

mkdir -p "$work/another-folder"
git ls-files -z Cargo.toml Cargo.lock build.rs kernels src benches tests | xargs -0 cp --parents -t "$work/another-folder"
for folder in . "$work/another-folder"; do
    (cd "$folder" && cargo build --quiet --locked --release --features cli)
done
for file in libeplb.so libeplb.a eplb; do
    cmp "target/release/$file" "$work/another-folder/target/release/$file"
    echo "$file: the same $(stat -c %s "target/release/$file") bytes from both builds"
done
rm -rf "$work"

#!/bin/sh
# Makes build/dist/eplb-VERSION-linux-MACHINE.tar.gz: the installed tree with a bill of materials, built for glibc 2.17 and newer.
# The same source gives the same bytes.
set -eu
cd "$(dirname "$0")/.."
machine=$(uname -m)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=eplb-$version-linux-$machine
dist=$PWD/build/dist
built=target/dist/$machine-unknown-linux-gnu/release

# Messages of panics name source files. Paths of this machine would give other bytes on another one.
std=$(rustc --print sysroot)/lib/rustlib/src/rust
RUSTFLAGS="--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo --remap-path-prefix=$std=/rustc/$(rustc -vV | sed -n 's/^commit-hash: //p')"
export RUSTFLAGS
path=$(scripts/zig.sh):$PATH
PATH=$path XDG_CACHE_HOME=$PWD/build/zig/cache cargo zigbuild --quiet --locked --release --features cli --lib --bin eplb \
    --target "$machine-unknown-linux-gnu.2.17" --target-dir target/dist
rm -rf "$dist"
scripts/prelink.sh "$built/libeplb.a" "$dist/libeplb.a"
scripts/check_glibc.sh "$built/libeplb.so" "$built/eplb"

make -s install-built DESTDIR="$dist/" PREFIX="$name" LIBDIR=lib \
    SHARED="$built/libeplb.so" STATIC="$dist/libeplb.a" PROGRAM="$built/eplb"
python3 scripts/third_party.py sbom >"$dist/$name/share/doc/eplb/eplb.cdx.json"
chmod -R u=rwX,go=rX "$dist/$name"
tar -C "$dist" --sort=name --mtime="@${SOURCE_DATE_EPOCH:-315532800}" --owner=0 --group=0 --numeric-owner --format=gnu \
    -cf - "$name" | gzip -9n >"$dist/$name.tar.gz"
rm -r "$dist/libeplb.a" "${dist:?}/$name"
echo "$dist/$name.tar.gz: $(stat -c %s "$dist/$name.tar.gz") bytes"

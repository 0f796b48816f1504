#!/bin/sh
# Makes the tarball of a release, unpacks it, and builds from it. Its library, its program, and a program that links its archive
# must need no glibc newer than 2.17. The check must fail on a library that is built for this machine.
set -eu
cd "$(dirname "$0")/.."
scripts/need.sh cmake:cmake g++:g++ pkg-config:pkg-config python3:python3
make -s build
make -s dist
work=$PWD/build/check_dist
rm -rf "$work"
mkdir -p "$work"
tar -C "$work" -xzf build/dist/eplb-*.tar.gz
tree=$(echo "$work"/eplb-*)

scripts/check_glibc.sh "$tree/lib/libeplb.so" "$tree/bin/eplb"
for file in lib/libeplb.so lib/libeplb.a bin/eplb; do
    if grep -qF -e "${CARGO_HOME:-$HOME/.cargo}/" -e "$(rustc --print sysroot)/" -e "$PWD/" "$tree/$file"; then
        echo "$file has a path of this machine" >&2
        exit 1
    fi
done
if scripts/check_glibc.sh target/release/libeplb.so 2>"$work/log"; then
    echo "check_glibc.sh accepts a library that is built for $(getconf GNU_LIBC_VERSION)" >&2
    exit 1
fi
"$(scripts/zig.sh)/python" -m ziglang cc -target "$(uname -m)-linux-gnu.2.17" -std=c99 -I "$tree/include" \
    examples/minimal_c/main.c "$tree/lib/libeplb.a" -lpthread -ldl -lm -lunwind -o "$work/minimal_c"
scripts/check_glibc.sh "$work/minimal_c"

# The shared library has its own unwinder, so a panic in it must become a status.
cc -std=c99 -I "$tree/include" tests/linking/host.c tests/linking/use_eplb.c -L "$tree/lib" -leplb -ldl -o "$work/host"
LD_LIBRARY_PATH=$tree/lib "$work/host" 2>"$work/log" || {
    cat "$work/log" >&2
    exit 1
}

EPLB_LIBRARY="$tree/lib/libeplb.so" scripts/check_symbols.sh
"$tree/bin/eplb" --version
python3 - "$tree/share/doc/eplb" <<'PYTHON'
import json
import sys

folder = sys.argv[1]
with open(f"{folder}/eplb.cdx.json", encoding="utf-8") as file:
    bill = json.load(file)
with open(f"{folder}/THIRD-PARTY", encoding="utf-8") as file:
    notices = file.read()
assert bill["bomFormat"] == "CycloneDX"
crates = [component for component in bill["components"] if component["purl"].startswith("pkg:cargo/")]
for crate in crates:
    assert f"{crate['name']} {crate['version']}, in the " in notices, crate["name"]
print(f"bill of materials: {len(crates)} crates, each with its licence")
PYTHON
scripts/check_tree.sh "$tree" "$work/check_tree"

#!/bin/sh
# Shows that the gates of the C interface hold: in a copy of the tree, breaks the interface in one way after the other, and
# expects the gate meant for it to fail, which passes on the tree as it is.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
tree=$root/build/check_mutations
rm -rf "$tree"
mkdir -p "$tree"
git ls-files -z | grep -zv '^data/' | xargs -0 cp --parents -t "$tree"
cd "$tree"
export CARGO_TARGET_DIR="$root/target/mutations"
export CARGO_PROFILE_TEST_OPT_LEVEL=0
export EPLB_LIBRARY="$CARGO_TARGET_DIR/debug/libeplb.so"

header() { cargo test --quiet --locked --test header; }
layouts() { cargo run --quiet --locked --manifest-path abi_tests/Cargo.toml; }
rust_signatures() { cargo check --quiet --locked --lib --profile test; }
cpp_signatures() { g++ -std=c++17 -fsyntax-only -Iinclude cpp_tests/signatures.cpp; }
padding() { gcc -std=c99 -fsyntax-only -Wpadded -Werror -x c include/eplb.h; }
symbols() { cargo build --quiet --locked --lib && scripts/check_symbols.sh; }
abi() { scripts/check_abi.sh; }

for gate in header layouts rust_signatures cpp_signatures padding symbols abi; do
    "$gate" >"$tree/log" 2>&1 || {
        cat "$tree/log" >&2
        echo "$gate fails on the tree as it is" >&2
        exit 1
    }
done

# breaks GATE WHAT FILE SED-SCRIPT
breaks() {
    cp "$3" "$tree/original"
    sed -i -E "$4" "$3"
    if cmp -s "$3" "$tree/original"; then
        echo "the mutation \"$2\" changes nothing: $3 has moved on" >&2
        exit 1
    fi
    if "$1" >"$tree/log" 2>&1; then
        echo "$1 does not notice: $2" >&2
        exit 1
    fi
    cp "$tree/original" "$3"
    echo "$1 notices: $2"
}

field='/^typedef struct eplb_solve_config/,/^}/ s/uint32_t num_slots/uint64_t num_slots/'
breaks header "a field's type changed in the code" src/ffi/solve.rs 's/pub num_slots: u32/pub num_slots: u64/'
breaks layouts "a field's type changed in the header" include/eplb.h "$field"
breaks abi "a field's type changed" include/eplb.h "$field"
breaks layouts "a field gone from the header" include/eplb.h '/^  const int32_t \*missing_ranks;/d'
breaks layouts "two fields swapped" include/eplb.h \
    '/^typedef struct eplb_placement_issue/,/^}/ { s/int32_t rank;/int32_t swap;/; s/int32_t slot;/int32_t rank;/; s/int32_t swap;/int32_t slot;/ }'
breaks layouts "a constant's value changed in the header" include/eplb.h 's/(EPLB_STATUS_CANCELLED) = 2/\1 = 9/'
breaks header "a constant's value changed in the code" src/ffi/status.rs 's/Cancelled = 2/Cancelled = 9/'
breaks abi "a constant's value changed" include/eplb.h 's/(EPLB_STATUS_CANCELLED) = 2/\1 = 9/'
breaks abi "the value of a constant that no function takes changed" include/eplb.h 's/(EPLB_POLICY_TRTLLM) = 1/\1 = 2/'
breaks rust_signatures "a parameter's type changed in the code" src/ffi/placement.rs 's/^    rank: u32,/    rank: u64,/'
breaks cpp_signatures "a parameter's type changed in the header" include/eplb.h 's/uint32_t rank,/uint64_t rank,/'
breaks cpp_signatures "const dropped from a handle" include/eplb.h 's/const eplb_placement \*placement,/eplb_placement *placement,/'
breaks abi "a parameter's type changed" include/eplb.h 's/uint32_t rank,/uint64_t rank,/'
breaks symbols "a function no longer exported" src/ffi/solve.rs '/no_mangle/d'
breaks symbols "a function gone from the header" include/eplb.h 's/^eplb_status eplb_suggest_num_slots/static eplb_status removed/'
breaks abi "a function gone" include/eplb.h '/^EPLB_API$/ { N; /eplb_version_string/d }'
breaks padding "a field appended where older callers have padding" include/eplb.h \
    's/^\} eplb_solve_config;/  uint32_t extra;\n} eplb_solve_config;/'
breaks abi "a field appended without a word" include/eplb.h \
    's/^\} eplb_solve_config;/  uint64_t extra;\n} eplb_solve_config;/'

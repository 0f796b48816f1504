#!/bin/sh
# Shows that the gates of the C interface work. In a copy of the tree it breaks the interface in one way after another, and
# expects the gate for it to fail. Each gate passes on the unchanged tree first.
set -eu
cd "$(dirname "$0")/.."
scripts/need.sh g++:g++ clang:clang abigail-tools:abidw
root=$PWD
tree=$root/build/check_mutations
rm -rf "$tree"
mkdir -p "$tree"
git ls-files -z | grep -zv '^data/' | xargs -0 cp --parents -t "$tree"
cd "$tree"
# Shares the dependencies that other checks and tests compile.
export CARGO_TARGET_DIR="$root/target"
export CARGO_PROFILE_TEST_OPT_LEVEL=0
export CARGO_INCREMENTAL=1
export EPLB_LIBRARY="$CARGO_TARGET_DIR/debug/libeplb.so"

header() { cargo test --quiet --locked --test header; }
layouts() { cargo run --quiet --locked --manifest-path abi_tests/Cargo.toml; }
rust_signatures() { cargo check --quiet --locked --lib --profile test; }
cpp_signatures() { g++ -std=c++17 -fsyntax-only -Iinclude cpp_tests/signatures.cpp; }
padding() { gcc -std=c99 -fsyntax-only -Wpadded -Werror -x c include/eplb_live.h; }
symbols() { cargo build --quiet --locked --lib && scripts/check_symbols.sh; }
abi() { scripts/check_abi.sh; }
languages() { scripts/check_header.sh; }

# symbols builds the library that languages links.
for gate in header layouts rust_signatures cpp_signatures padding symbols abi languages; do
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
        echo "the mutation \"$2\" does not match any line of $3" >&2
        exit 1
    fi
    if "$1" >"$tree/log" 2>&1; then
        echo "$1 does not notice: $2" >&2
        exit 1
    fi
    cp "$tree/original" "$3"
    echo "$1 notices: $2"
}

engine=include/eplb.h
tools=include/eplb_tools.h
live=include/eplb_live.h
config='/^typedef struct eplb_placement_config/,/^}/ s/uint32_t num_slots/uint64_t num_slots/'
options='/^typedef struct eplb_solve_options/,/^}/ s/uint32_t num_groups/uint64_t num_groups/'
breaks header "a field's type changed in the code" src/ffi/solve.rs 's/pub num_groups: u32/pub num_groups: u64/'
breaks layouts "a field's type changed in eplb.h" $engine "$config"
breaks layouts "a field's type changed in eplb_tools.h" $tools "$options"
breaks layouts "a field's type changed in eplb_live.h" $live \
    '/^typedef struct eplb_plan_limits/,/^}/ s/uint32_t max_moves/uint64_t max_moves/'
breaks abi "a field's type changed in eplb.h" $engine "$config"
breaks abi "a field's type changed in eplb_tools.h" $tools "$options"
breaks layouts "a field removed from the header" $tools '/^  const int32_t \*missing_ranks;/d'
breaks layouts "a field removed from a struct without struct_size" $engine \
    '/^typedef struct eplb_expert_ids/,/^}/ { /^  uint32_t row_stride;/d }'
breaks layouts "two fields swapped" $engine \
    '/^typedef struct eplb_placement_issue/,/^}/ { s/int32_t rank;/int32_t swap;/; s/int32_t slot;/int32_t rank;/; s/int32_t swap;/int32_t slot;/ }'
breaks layouts "a constant's value changed in eplb.h" $engine 's/(EPLB_STATUS_CANCELLED) = 2/\1 = 9/'
breaks layouts "a constant's value changed in eplb_tools.h" $tools 's/(EPLB_POLICY_TRTLLM) = 1/\1 = 9/'
breaks header "a constant's value changed in the code" src/ffi/status.rs \
    's/(EPLB_STATUS_CANCELLED: eplb_status) = 2/\1 = 9/'
breaks abi "a constant's value changed in eplb.h" $engine 's/(EPLB_STATUS_CANCELLED) = 2/\1 = 9/'
breaks abi "a constant's value changed in eplb_tools.h" $tools 's/(EPLB_POLICY_TRTLLM) = 1/\1 = 9/'
breaks abi "a constant removed" $engine '/^  EPLB_RULE_TOKEN_HASH = /d'
breaks abi "a constant added" $engine 's/^(  EPLB_RULE_TOKEN_HASH = .*)/\1\n  EPLB_RULE_EXTRA = 9,/'
breaks layouts "an enumeration of another width" $engine 's/^typedef int32_t eplb_rule;/typedef int64_t eplb_rule;/'
breaks cpp_signatures "an enumeration of another width" $tools \
    's/^typedef int32_t eplb_policy;/typedef int64_t eplb_policy;/'
breaks rust_signatures "a parameter's type changed in the code" src/ffi/placement.rs 's/^    rank: u32,/    rank: u64,/'
breaks cpp_signatures "a parameter's type changed in eplb.h" $engine 's/uint32_t rank,/uint64_t rank,/'
breaks cpp_signatures "a parameter's type changed in eplb_tools.h" $tools 's/size_t num_samples,/uint32_t num_samples,/'
breaks cpp_signatures "a parameter's type changed in eplb_live.h" $live 's/uint32_t num_samples,/uint64_t num_samples,/'
breaks cpp_signatures "const removed from a handle" $engine 's/const eplb_placement \*placement,/eplb_placement *placement,/'
breaks cpp_signatures "const removed from a handle that may be shared" $engine \
    's/const eplb_recorder \*recorder,/eplb_recorder *recorder,/'
breaks abi "a parameter's type changed in eplb.h" $engine 's/uint32_t rank,/uint64_t rank,/'
breaks abi "a parameter's type changed in eplb_tools.h" $tools 's/size_t num_samples,/uint32_t num_samples,/'
breaks symbols "a function no longer exported" src/ffi/solve.rs '/no_mangle/d'
breaks symbols "a function removed from eplb.h" $engine 's/^(EPLB_API .*)eplb_version_string/\1removed/'
breaks symbols "a function removed from eplb_tools.h" $tools 's/^(EPLB_API .*)eplb_suggest_num_slots/\1removed/'
breaks symbols "a function removed from eplb_live.h" $live 's/^(EPLB_API .*)eplb_recorder_snapshot/\1removed/'
breaks symbols "an ABI version that is not the SONAME's" $engine 's/^(#define EPLB_ABI_VERSION) .*/\1 99/'
breaks abi "a function removed" $engine '/^EPLB_API .*eplb_version_string/d'
breaks padding "a field appended where older callers have padding" $tools \
    's/^\} eplb_solve_options;/  uint32_t extra;\n} eplb_solve_options;/'
breaks padding "the same in eplb.h" $engine \
    's/^\} eplb_placement_config;/  uint32_t extra;\n} eplb_placement_config;/'
breaks abi "a field appended without a new baseline" $tools \
    's/^\} eplb_solve_options;/  uint64_t extra;\n} eplb_solve_options;/'
breaks languages "a declaration that C does not have" $tools \
    's/^typedef int32_t eplb_policy;/using eplb_policy = int32_t;/'
breaks languages "a name that C++ does not allow" $engine 's/const char \*path, const/const char *this, const/'
breaks languages "a sample that prints another slot" $engine 's/(slots\[i \/ 2\]\[i % 2\])\);/\1 + 1);/'

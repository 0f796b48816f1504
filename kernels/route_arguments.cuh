// The arguments of the routing kernels.
#pragma once

#include <cstdint>

#include "count.cuh"

/// Threads of a block for the rules that depend on the position of an id, and for EPLB_ROUTE_TOKEN_HASH,
/// whose ids are independent of each other.
constexpr uint32_t EPLB_ROUTE_THREADS = 512;
constexpr uint32_t EPLB_HASH_THREADS = 128;

/// Ids that a block takes at a time: the block of round robin and nearest.
constexpr uint32_t EPLB_ROUTE_BLOCK = 1024;

/// In place of an index in shared memory, for a part that does not fit.
constexpr uint32_t EPLB_NO_ROOM = 0xffffffff;

/// The most blocks that count a batch by EPLB_ROUTE_LEAST_LOADED.
constexpr uint32_t EPLB_SPLIT_BLOCKS = 64;

/// The most bits of all units of a split.
constexpr uint32_t EPLB_SPLIT_BITS = 31;

/// Further arguments of EPLB_ROUTE_LEAST_LOADED, with its tables and workspace: split_memory.
struct eplb_split_arguments {
    /// Workspace of split_memory, used where it does not fit shared memory.
    uint64_t *memory;
    /// Workspace: the end of each replica's tokens among this rank's tokens of the expert, [num_slots].
    uint32_t *ends;
    /// Workspace: the counts of each block, later the sums of the counts of the blocks before,
    /// [EPLB_SPLIT_BLOCKS][num_experts].
    uint32_t *block_counts;
    /// Workspace: blocks that have counted. It is 0 between launches.
    uint32_t *blocks_done;
    /// The counts of all ranks, [num_ranks][num_experts], int32 or int64. NULL: this rank splits its own
    /// tokens.
    const void *rank_counts;
    uint32_t rank_counts_are_64_bits;
    /// The most holders that a placement of this shape has.
    uint32_t num_holders;
    uint32_t num_ranks;
    uint32_t slots_per_rank;
    /// This rank.
    uint32_t rank;
    /// Ids of a block, a multiple of EPLB_ROUTE_BLOCK.
    uint32_t ids_per_block;
    /// 0: count and compute quotas, and with one block also assign slots. 1: assign slots. The general kernel
    /// only counts and only assigns. In between, a block of another one computes quotas: 2.
    uint32_t phase;
    /// Where the rule's tables begin, in words, one behind the other, after the tables of every rule.
    /// `edges_at` is a multiple of 4.
    uint32_t edges_at, row_start_at, holder_rank_at, holder_first_at, holder_size_at, holder_place_at,
        experts_at, holder_start_at, sizes_at;
    /// Where in shared memory split_memory and a block's counts [num_experts] begin, in words. A copy of
    /// `ends` follows the counts, at a multiple of 4.
    uint32_t shared_memory_at, shared_counts_at;
};

/// How ids and slots lie in memory, for the kernels that take any layout, and the shared experts.
struct eplb_layout_arguments {
    /// The slots of the experts from num_experts on, [num_shared].
    const int32_t *shared_slots;
    uint32_t num_shared;
    /// Ids from one row to the next.
    uint32_t ids_stride, slots_stride;
    uint32_t ids_are_64_bits, slots_are_64_bits;
    /// Blocks that have counted, for phase 2 of EPLB_ROUTE_LEAST_LOADED.
    uint32_t num_counted;
};

/// One launch. src/dispatch/kernel.rs and src/dispatch/least_loaded/kernel.rs have the same structs. The
/// arguments that every launch reads come first, in one line of the constant cache.
struct eplb_route_arguments {
    /// [num_tokens][experts_per_token], aligned as its type.
    const void *expert_ids;
    /// Same shape, and unless `layout` is used the same type. May be the same array.
    void *slot_ids;
    /// The number of valid tokens, clamped to [0, num_tokens]. NULL: all.
    const int32_t *num_valid;
    /// The tables, one behind the other: replica_count [num_experts], and at the words below replica_start
    /// [num_experts], replica_slots [num_slots], and for EPLB_ROUTE_NEAREST shares [num_slots].
    const uint32_t *tables;
    uint32_t num_tokens;
    uint32_t experts_per_token;
    uint32_t num_experts;
    /// The slot of ids without an expert.
    int32_t invalid_slot;
    uint32_t start_at;
    uint32_t slots_at;
    /// Words of the tables that are copied to shared memory, a multiple of 4.
    uint32_t table_words;
    /// Where in shared memory a copy of the tables begins, in words, a multiple of 4.
    uint32_t shared_tables_at;

    uint32_t shares_at;
    /// Added to a block's index: the rank or 0.
    uint32_t offset;
    /// Where in shared memory the rows of block_ids::find_positions() and the bins of route_counter begin, in
    /// words.
    uint32_t shared_rows_at;
    uint32_t shared_bins_at;
    /// Where to count, as in eplb_count_arguments. `row` is NULL where nothing is counted.
    const uint32_t *row;
    void *cells;
    uint64_t row_stride;
    eplb_count_totals *totals;
    /// Experts, or slots where these are counted.
    uint32_t num_cells;
    uint32_t cells_are_64_bits;
    uint32_t counts_slots;
    uint32_t num_slots;
    eplb_split_arguments split;
    eplb_layout_arguments layout;
};

static_assert(sizeof(eplb_split_arguments) == 112 && sizeof(eplb_route_arguments) == 272,
              "see src/dispatch/kernel.rs");

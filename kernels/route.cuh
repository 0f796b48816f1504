// Routing: which slot serves each (token, choice) pair. include/eplb.h defines the rules (eplb_route).
//
// Plain CUDA C++ without the runtime's headers, as count.cuh.
#pragma once

#include <cstdint>

#include "count.cuh"

/// Threads of a block by the rules that go by position, and by EPLB_ROUTE_TOKEN_HASH, whose ids need not
/// meet.
constexpr uint32_t EPLB_ROUTE_THREADS = 512;
constexpr uint32_t EPLB_HASH_THREADS = 128;

/// Ids that a block takes at a time, and of which the round robin's blocks are made.
constexpr uint32_t EPLB_ROUTE_BLOCK = 1024;

/// Where in shared memory a part begins for which there is no room.
constexpr uint32_t EPLB_NO_ROOM = 0xffffffff;

/// What EPLB_ROUTE_LEAST_LOADED needs beside; see level.cuh.
struct eplb_level_arguments {
    /// Workspace, where shared memory has no room for it: see level_memory.
    uint64_t *memory;
    /// Workspace: this rank's tokens up to and with each replica, [num_slots].
    uint32_t *ends;
    /// Workspace: first the counts of each block, then those of the blocks before,
    /// [EPLB_LEVEL_BLOCKS][num_experts].
    uint32_t *block_counts;
    /// Workspace: blocks that have counted. It is 0 between launches.
    uint32_t *blocks_done;
    /// All ranks' counts, [num_ranks][num_experts], int32 or int64; NULL: only this rank's are known.
    const void *rank_counts;
    uint32_t rank_counts_are_64_bits;
    uint32_t num_replicated;
    uint32_t num_groups;
    uint32_t num_steps;
    uint32_t num_ranks;
    uint32_t slots_per_rank;
    /// This rank.
    uint32_t rank;
    /// Ids of a block, a multiple of EPLB_ROUTE_BLOCK.
    uint32_t ids_per_block;
    /// 0: count and plan, and deal if there is but one block; 1: deal.
    uint32_t phase;
    /// Where its parts of the tables begin, in words, one behind the other and all behind those of every
    /// rule.
    uint32_t group_rank_at, group_place_at, group_first_at, group_size_at, experts_at, group_start_at,
        step_start_at, group_ranks_at, rank_groups_at;
    /// Where in shared memory begin, in words, what `memory` is for, and a block's counts [num_experts],
    /// followed, at a multiple of 4, by a copy of `ends`.
    uint32_t shared_memory_at, shared_counts_at;
};

/// One launch. src/device/route.rs has the same struct. What every launch reads comes first, in one line of
/// the constant cache.
struct eplb_route_arguments {
    /// [num_tokens][experts_per_token], aligned as its type.
    const void *expert_ids;
    /// The same, of the same type; may be the same array.
    void *slot_ids;
    /// How many of the tokens are valid, clamped to [0, num_tokens]; NULL: all.
    const int32_t *num_valid;
    /// The dispatch tables, one behind the other: replica_count [num_experts], and so many words from there
    /// replica_start [num_experts], replica_slots [num_slots], and by EPLB_ROUTE_NEAREST shares [num_slots].
    const uint32_t *tables;
    uint32_t num_tokens;
    uint32_t experts_per_token;
    uint32_t num_experts;
    uint32_t num_slots;
    uint32_t start_at;
    uint32_t slots_at;
    /// Words of the tables that go to shared memory, a multiple of 4.
    uint32_t table_words;
    /// Where in shared memory a copy of the tables begins, in words, a multiple of 4.
    uint32_t shared_tables_at;

    uint32_t shares_at;
    /// Added to the block's index: the rank or 0.
    uint32_t offset;
    /// Where in shared memory the rows of block_ids::find_positions() and the bins of what is counted begin,
    /// in words.
    uint32_t shared_rows_at;
    uint32_t shared_bins_at;
    /// What is counted, as in eplb_count_arguments; row is NULL where nothing is.
    const uint32_t *row;
    void *cells;
    uint64_t row_stride;
    eplb_count_totals *totals;
    /// Experts or slots.
    uint32_t num_cells;
    uint32_t cells_are_64_bits;
    uint32_t counts_slots;
    uint32_t unused;
    eplb_level_arguments level;
};

static_assert(sizeof(eplb_level_arguments) == 120 && sizeof(eplb_route_arguments) == 248,
              "see src/device/route.rs");

namespace eplb {

constexpr uint32_t route_warps = EPLB_ROUTE_THREADS / 32;
constexpr uint32_t ids_per_thread = EPLB_ROUTE_BLOCK / EPLB_ROUTE_THREADS;
constexpr uint32_t golden_ratio = 2654435769u;

static_assert(route_warps == 16 && ids_per_thread * 32 < 256, "a row is 16 bytes, one for each warp");

/// Ids of valid tokens.
__device__ inline uint32_t num_valid_ids(const eplb_route_arguments &args) {
    uint32_t tokens = args.num_tokens;
    if (args.num_valid != nullptr) {
        const int32_t valid = *args.num_valid;
        const uint32_t known = valid < 0 ? 0 : static_cast<uint32_t>(valid);
        tokens = known < tokens ? known : tokens;
    }
    return tokens * args.experts_per_token;
}

/// Copies words to shared memory, `count` rounded up to a multiple of 4; both are aligned to 16 bytes. A
/// thread waits for so many loads at once. In use after a barrier.
template <uint32_t at_once> __device__ void stage(uint32_t *to, const uint32_t *from, uint32_t count) {
    const uint4 *source = reinterpret_cast<const uint4 *>(from);
    uint4 *target = reinterpret_cast<uint4 *>(to);
    const uint32_t vectors = (count + 3) / 4;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < vectors; i += at_once * blockDim.x) {
        uint4 taken[at_once];
#pragma unroll
        for (uint32_t j = 0; j < at_once; j++) {
            if (i + j * blockDim.x < vectors) {
                taken[j] = source[i + j * blockDim.x];
            }
        }
#pragma unroll
        for (uint32_t j = 0; j < at_once; j++) {
            if (i + j * blockDim.x < vectors) {
                target[i + j * blockDim.x] = taken[j];
            }
        }
    }
}

/// The dispatch tables, in shared memory where there is room.
struct route_tables {
    const uint32_t *count, *start, *slots, *shares;

    /// In use after a barrier. A block of EPLB_ROUTE_THREADS threads has one for each vector of most tables.
    template <uint32_t at_once = 1> __device__ void find(const eplb_route_arguments &args) {
        const uint32_t *words = args.tables;
        if (args.shared_tables_at != EPLB_NO_ROOM) {
            words = eplb_bins + args.shared_tables_at;
            stage<at_once>(eplb_bins + args.shared_tables_at, args.tables, args.table_words);
        }
        count = words;
        start = words + args.start_at;
        slots = words + args.slots_at;
        shares = words + args.shares_at;
    }
};

/// Counts in the same pass what is routed. Every thread of the block calls begin(), and end() after the last
/// add(); between begin() and the first add() stands a barrier.
struct route_counter {
    bool on = false;
    uint32_t row = 0;

    __device__ uint32_t *bins(const eplb_route_arguments &args) const {
        return eplb_bins + args.shared_bins_at;
    }

    __device__ void begin(const eplb_route_arguments &args, uint32_t valid_ids) {
        if (args.row == nullptr) {
            return;
        }
        row = *args.row;
        on = row != EPLB_COUNT_OFF;
        if (!on) {
            return;
        }
        if (args.shared_bins_at != EPLB_NO_ROOM) {
#pragma unroll 1
            for (uint32_t bin = threadIdx.x; bin <= args.num_cells; bin += blockDim.x) {
                bins(args)[bin] = 0;
            }
        }
        if (blockIdx.x == 0 && threadIdx.x == 0) {
            const uint32_t all = args.num_tokens * args.experts_per_token;
            atomicAdd(&args.totals->ids, static_cast<unsigned long long>(valid_ids));
            atomicAdd(&args.totals->padding, static_cast<unsigned long long>(all - valid_ids));
        }
    }

    __device__ void add_to_cell(const eplb_route_arguments &args, uint32_t cell, uint32_t more) const {
        const uint64_t at = row * args.row_stride + cell;
        if (cell == args.num_cells) {
            atomicAdd(&args.totals->out_of_range, static_cast<unsigned long long>(more));
        } else if (args.cells_are_64_bits != 0) {
            atomicAdd(static_cast<unsigned long long *>(args.cells) + at,
                      static_cast<unsigned long long>(more));
        } else {
            atomicAdd(static_cast<unsigned *>(args.cells) + at, more);
        }
    }

    /// Counts an id of a valid token. `bin` is num_experts and `slot` num_slots where it is out of range.
    __device__ void add(const eplb_route_arguments &args, uint32_t bin, uint32_t slot) const {
        if (!on) {
            return;
        }
        const uint32_t cell = args.counts_slots != 0 ? slot : bin;
        if (args.shared_bins_at != EPLB_NO_ROOM) {
            atomicAdd(&bins(args)[cell], 1u);
        } else {
            add_to_cell(args, cell, 1);
        }
    }

    __device__ void end(const eplb_route_arguments &args) const {
        if (!on || args.shared_bins_at == EPLB_NO_ROOM) {
            return;
        }
        __syncthreads();
#pragma unroll 1
        for (uint32_t bin = threadIdx.x; bin <= args.num_cells; bin += blockDim.x) {
            if (bins(args)[bin] != 0) {
                add_to_cell(args, bin, bins(args)[bin]);
            }
        }
    }
};

/// A thread's share of a block's ids: `ids_per_thread` of them, 32 apart, so that each load of a warp is one
/// line, and the ids of a warp lie side by side.
template <class Id> struct block_ids {
    uint32_t first;
    Id ids[ids_per_thread];
    uint32_t bins[ids_per_thread];
    /// How many ids of the same bin stand before each in the block.
    uint32_t positions[ids_per_thread];

    __device__ uint32_t index(uint32_t i) const {
        return first + threadIdx.x / 32 * (32 * ids_per_thread) + i * 32 + threadIdx.x % 32;
    }

    /// Loads the ids from `start` on.
    __device__ void load(const eplb_route_arguments &args, uint32_t start, uint32_t end) {
        first = start;
#pragma unroll
        for (uint32_t i = 0; i < ids_per_thread; i++) {
            ids[i] = index(i) < end ? static_cast<const Id *>(args.expert_ids)[index(i)] : Id(-1);
        }
    }

    /// Finds the bins; ids that are not before `valid_ids` are as good as out of range.
    __device__ void find_bins(const eplb_route_arguments &args, uint32_t valid_ids) {
#pragma unroll
        for (uint32_t i = 0; i < ids_per_thread; i++) {
            bins[i] = index(i) < valid_ids ? bin_of(ids[i], args.num_experts) : args.num_experts;
        }
    }

    /// Clears what find_positions() needs; a barrier stands between.
    __device__ static void clear_rows(const eplb_route_arguments &args) {
        if (args.shared_rows_at == EPLB_NO_ROOM) {
            return;
        }
        uint4 *rows = reinterpret_cast<uint4 *>(eplb_bins + args.shared_rows_at);
#pragma unroll 1
        for (uint32_t bin = threadIdx.x; bin < args.num_experts; bin += blockDim.x) {
            rows[bin] = {0, 0, 0, 0};
        }
    }

    __device__ void find_positions(const eplb_route_arguments &args) {
        if (args.shared_rows_at == EPLB_NO_ROOM) {
            scan();
        } else {
            count_by_warp(args.num_experts, reinterpret_cast<uint8_t *>(eplb_bins + args.shared_rows_at));
        }
    }

  private:
    /// A row for each bin has a byte for each warp, how many of the warp's ids are of it: equal ids of a warp
    /// find each other, and those of the warps before are added up four bytes at a time.
    __device__ void count_by_warp(uint32_t num_experts, uint8_t *rows) {
        const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
        for (uint32_t i = 0; i < ids_per_thread; i++) {
            const uint32_t bin = bins[i];
            const uint32_t same = __match_any_sync(0xffffffff, bin);
            const uint32_t before = static_cast<uint32_t>(__popc(same & ((1u << lane) - 1)));
            uint8_t *count = rows + bin * route_warps + warp;
            const uint32_t seen = i > 0 && bin < num_experts ? *count : 0;
            positions[i] = seen + before;
            __syncwarp();
            if (bin < num_experts && before == 0) {
                *count = static_cast<uint8_t>(seen + static_cast<uint32_t>(__popc(same)));
            }
            __syncwarp();
        }
        __syncthreads();
#pragma unroll
        for (uint32_t i = 0; i < ids_per_thread; i++) {
            if (bins[i] < num_experts) {
                const uint4 row = reinterpret_cast<const uint4 *>(rows)[bins[i]];
                positions[i] += sum_of_bytes(row.x, warp) + sum_of_bytes(row.y, warp - 4) +
                                sum_of_bytes(row.z, warp - 8) + sum_of_bytes(row.w, warp - 12);
            }
        }
    }

    /// Of the first `count` of four bytes, none if it wrapped below 0.
    __device__ static uint32_t sum_of_bytes(uint32_t bytes, uint32_t count) {
        const uint32_t mask = count < 4 ? (1u << 8 * count) - 1 : count < route_warps ? 0xffffffff : 0;
        return __dp4a(bytes & mask, 0x01010101u, 0u);
    }

    /// More experts than shared memory has rows for: each id looks at all before it.
    __device__ void scan() {
        static __shared__ uint32_t block_bins[EPLB_ROUTE_BLOCK];
        __syncthreads();
#pragma unroll
        for (uint32_t i = 0; i < ids_per_thread; i++) {
            block_bins[index(i) - first] = bins[i];
            positions[i] = 0;
        }
        __syncthreads();
#pragma unroll 1
        for (uint32_t other = 0; other < EPLB_ROUTE_BLOCK; other++) {
#pragma unroll
            for (uint32_t i = 0; i < ids_per_thread; i++) {
                positions[i] += block_bins[other] == bins[i] && other < index(i) - first;
            }
        }
    }
};

/// Writes the slots of a block's ids and counts them. `pick` tells the replica of an expert of several slots
/// from its id, its first replica, their number, and the id's position.
template <class Id, class Pick>
__device__ void write_slots(const eplb_route_arguments &args, const route_tables &tables,
                            const block_ids<Id> &block, uint32_t end, uint32_t valid_ids,
                            const route_counter &counter, Pick pick) {
    // All are looked up before any is written: for all the compiler knows, a slot written may be one of the
    // tables'.
    uint32_t slots[ids_per_thread];
#pragma unroll
    for (uint32_t i = 0; i < ids_per_thread; i++) {
        const uint32_t bin = block.bins[i];
        slots[i] = args.num_slots;
        if (bin < args.num_experts) {
            const uint32_t start = tables.start[bin], count = tables.count[bin];
            const uint32_t replica = count == 1 ? 0 : pick(bin, start, count, block.positions[i]);
            slots[i] = tables.slots[start + replica];
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < ids_per_thread; i++) {
        const uint32_t index = block.index(i);
        if (index < end) {
            static_cast<Id *>(args.slot_ids)[index] = static_cast<Id>(slots[i]);
        }
        if (index < valid_ids) {
            counter.add(args, block.bins[i], slots[i]);
        }
    }
}

/// One block of ids a block of threads, by a rule that goes by an id's position in it: `rule` makes of the
/// tables and of this block's turn what write_slots() picks by.
template <class Id, class Rule> __device__ void route_block(const eplb_route_arguments &args, Rule rule) {
    const uint32_t all = args.num_tokens * args.experts_per_token;
    // What comes from memory is asked for at once: a small batch is all waiting.
    block_ids<Id> block;
    block.load(args, blockIdx.x * EPLB_ROUTE_BLOCK, all);
    const uint32_t valid_ids = num_valid_ids(args);
    block.clear_rows(args);
    route_tables tables;
    tables.find(args);
    route_counter counter;
    counter.begin(args, valid_ids);
    block.find_bins(args, valid_ids);
    __syncthreads();
    block.find_positions(args);
    write_slots(args, tables, block, all, valid_ids, counter, rule(tables, blockIdx.x + args.offset));
    counter.end(args);
}

template <class Id> __device__ void round_robin(const eplb_route_arguments &args) {
    route_block<Id>(args, [](const route_tables &, uint32_t turn) {
        return [turn](uint32_t, uint32_t, uint32_t count, uint32_t position) {
            return (position + turn) % count;
        };
    });
}

template <class Id> __device__ void nearest(const eplb_route_arguments &args) {
    route_block<Id>(args, [](const route_tables &tables, uint32_t turn) {
        const uint32_t *shares = tables.shares;
        return [turn, shares](uint32_t, uint32_t start, uint32_t count, uint32_t position) {
            const uint32_t point = (position + turn) * golden_ratio;
            uint32_t replica = 0;
            while (replica + 1 < count && point >= shares[start + replica]) {
                replica++;
            }
            return replica;
        };
    });
}

template <class SlotOf> __device__ int4 slots_of(int4 ids, SlotOf slot_of) {
    const int4 slots = {slot_of(ids.x, 0), slot_of(ids.y, 1), slot_of(ids.z, 2), slot_of(ids.w, 3)};
    return slots;
}
template <class SlotOf> __device__ longlong2 slots_of(longlong2 ids, SlotOf slot_of) {
    const longlong2 slots = {slot_of(ids.x, 0), slot_of(ids.y, 1)};
    return slots;
}
template <class Count> __device__ void count_each(int4 ids, int4 slots, Count count) {
    count(ids.x, slots.x, 0);
    count(ids.y, slots.y, 1);
    count(ids.z, slots.z, 2);
    count(ids.w, slots.w, 3);
}
template <class Count> __device__ void count_each(longlong2 ids, longlong2 slots, Count count) {
    count(ids.x, slots.x, 0);
    count(ids.y, slots.y, 1);
}

/// As many ids as fit 16 bytes a thread.
template <class Id> __device__ void token_hash(const eplb_route_arguments &args) {
    using vector = typename id_traits<Id>::vector;
    constexpr uint32_t width = sizeof(vector) / sizeof(Id);
    const uint32_t all = args.num_tokens * args.experts_per_token;
    const Id *ids = static_cast<const Id *>(args.expert_ids);
    Id *slots = static_cast<Id *>(args.slot_ids);
    const uint32_t first = (blockIdx.x * blockDim.x + threadIdx.x) * width;
    const bool is_vector =
        (reinterpret_cast<uintptr_t>(ids) | reinterpret_cast<uintptr_t>(slots)) % sizeof(vector) == 0 &&
        first + width <= all;
    vector these = {};
    if (is_vector) {
        these = *reinterpret_cast<const vector *>(ids + first);
    }
    const uint32_t valid_ids = num_valid_ids(args);
    route_tables tables;
    tables.find<EPLB_ROUTE_THREADS / EPLB_HASH_THREADS>(args);
    route_counter counter;
    counter.begin(args, valid_ids);
    // Of the first id; a division for each would cost more than all the rest.
    const uint32_t token = first / args.experts_per_token, choice = first - token * args.experts_per_token;
    __syncthreads();

    const auto slot_of = [&](Id id, uint32_t i) {
        const uint32_t bin = first + i < valid_ids ? bin_of(id, args.num_experts) : args.num_experts;
        if (bin == args.num_experts) {
            return static_cast<Id>(args.num_slots);
        }
        uint32_t row = token;
#pragma unroll 1
        for (uint32_t left = choice + i; left >= args.experts_per_token; left -= args.experts_per_token) {
            row++;
        }
        const uint32_t count = tables.count[bin], hash = row * golden_ratio;
        const uint32_t replica = count <= 2 ? hash & (count - 1) : hash % count;
        return static_cast<Id>(tables.slots[tables.start[bin] + replica]);
    };
    const auto count = [&](Id id, Id slot, uint32_t i) {
        if (first + i < valid_ids) {
            counter.add(args, bin_of(id, args.num_experts), static_cast<uint32_t>(slot));
        }
    };
    if (is_vector) {
        const vector those = slots_of(these, slot_of);
        *reinterpret_cast<vector *>(slots + first) = those;
        if (counter.on) {
            count_each(these, those, count);
        }
    } else {
#pragma unroll 1
        for (uint32_t i = 0; i < width && first + i < all; i++) {
            const Id id = ids[first + i], slot = slot_of(id, i);
            slots[first + i] = slot;
            count(id, slot, i);
        }
    }
    counter.end(args);
}

} // namespace eplb

// One entry for each rule and type of ids. By round robin and nearest a block of EPLB_ROUTE_THREADS threads
// for each EPLB_ROUTE_BLOCK ids; by token hash one of EPLB_HASH_THREADS for as many as fit 16 bytes a thread.
#define EPLB_ROUTE_ENTRY(name, rule, Id, threads)                                                            \
    extern "C" __global__ void __launch_bounds__(threads, 1) name(const eplb_route_arguments args) {         \
        eplb::rule<Id>(args);                                                                                \
    }
EPLB_ROUTE_ENTRY(eplb_route_round_robin_i32, round_robin, int32_t, EPLB_ROUTE_THREADS)
EPLB_ROUTE_ENTRY(eplb_route_round_robin_i64, round_robin, int64_t, EPLB_ROUTE_THREADS)
EPLB_ROUTE_ENTRY(eplb_route_token_hash_i32, token_hash, int32_t, EPLB_HASH_THREADS)
EPLB_ROUTE_ENTRY(eplb_route_token_hash_i64, token_hash, int64_t, EPLB_HASH_THREADS)
EPLB_ROUTE_ENTRY(eplb_route_nearest_i32, nearest, int32_t, EPLB_ROUTE_THREADS)
EPLB_ROUTE_ENTRY(eplb_route_nearest_i64, nearest, int64_t, EPLB_ROUTE_THREADS)

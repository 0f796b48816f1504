// Routing: which slot serves each (token, choice) pair. include/eplb.h defines the rules (eplb_route).
//
// Plain CUDA C++ without the runtime's headers, as count.cuh.
#pragma once

#include <cstdint>

#include "count.cuh"

/// Threads of a block.
constexpr uint32_t EPLB_ROUTE_THREADS = 256;

/// Ids that a block takes at a time, and of which the round robin's blocks are made.
constexpr uint32_t EPLB_ROUTE_BLOCK = 1024;

/// Blocks that count and deal a batch by EPLB_ROUTE_LEAST_LOADED at most.
constexpr uint32_t EPLB_LEVEL_BLOCKS = 64;

/// How often it goes over all replicated experts at most.
constexpr uint32_t EPLB_LEVEL_SWEEPS = 4;

/// What EPLB_ROUTE_LEAST_LOADED needs beside the tables. A group is the replicas of an expert on one rank.
struct eplb_level_arguments {
    /// Experts of several slots, by ascending number of groups and then by id, [num_experts].
    const uint32_t *experts;
    /// The groups of each, [num_experts + 1].
    const uint32_t *group_start;
    /// The rank, the first replica and the number of replicas of each group, [num_groups].
    const uint32_t *group_rank;
    const uint32_t *group_first;
    const uint32_t *group_size;
    /// Workspace: tokens of each expert, of each group, of each rank.
    uint64_t *totals;
    uint64_t *quotas;
    uint64_t *rank_loads;
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
    uint32_t num_experts;
    uint32_t num_groups;
    uint32_t num_ranks;
    uint32_t slots_per_rank;
    /// This rank.
    uint32_t rank;
    /// Ids of a block, a multiple of EPLB_ROUTE_BLOCK.
    uint32_t ids_per_block;
    /// 0: count and plan, and deal if there is but one block; 1: deal.
    uint32_t phase;
};

/// One launch. src/device/route.rs has the same struct.
struct eplb_route_arguments {
    /// [num_tokens][experts_per_token], aligned as its type.
    const void *expert_ids;
    /// The same, of the same type; may be the same array.
    void *slot_ids;
    /// How many of the tokens are valid, clamped to [0, num_tokens]; NULL: all.
    const int32_t *num_valid;
    /// The dispatch tables.
    const int32_t *replica_count;
    const int32_t *replica_start;
    const int32_t *replica_slots;
    /// Of EPLB_ROUTE_NEAREST, [num_slots].
    const uint32_t *shares;
    eplb_level_arguments level;
    /// What is counted, as in eplb_count_arguments; row is NULL where nothing is.
    const uint32_t *row;
    void *cells;
    uint64_t row_stride;
    eplb_count_totals *totals;
    /// Experts or slots.
    uint32_t num_cells;
    uint32_t cells_are_64_bits;
    uint32_t counts_slots;
    /// Not 0: the launch has shared memory for num_cells + 1 bins.
    uint32_t has_bins;
    uint32_t num_tokens;
    uint32_t experts_per_token;
    uint32_t num_experts;
    uint32_t num_slots;
    /// Added to the block's index: the rank or 0.
    uint32_t offset;
    /// Where the rows of positions_in_block() begin in shared memory, in words; 0xffffffff: there is no room
    /// for them.
    uint32_t rows_at;
};

static_assert(sizeof(eplb_level_arguments) == 128 && sizeof(eplb_route_arguments) == 256,
              "see src/device/route.rs");

namespace eplb {

constexpr uint32_t route_warps = EPLB_ROUTE_THREADS / 32;
constexpr uint32_t ids_per_thread = EPLB_ROUTE_BLOCK / EPLB_ROUTE_THREADS;
constexpr uint32_t no_rows = 0xffffffff;
constexpr uint32_t golden_ratio = 2654435769u;

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

/// Counts in the same pass what is routed. Every thread of the block calls begin(), and end() after the last
/// add().
struct route_counter {
    bool on = false;
    uint32_t row = 0;

    /// Leaves the bins cleared, though other threads may not have come that far.
    __device__ void begin(const eplb_route_arguments &args, uint32_t valid_ids) {
        if (args.row == nullptr) {
            return;
        }
        row = *args.row;
        on = row != EPLB_COUNT_OFF;
        if (!on) {
            return;
        }
        if (args.has_bins != 0) {
#pragma unroll 1
            for (uint32_t bin = threadIdx.x; bin <= args.num_cells; bin += blockDim.x) {
                eplb_bins[bin] = 0;
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
        if (args.has_bins != 0) {
            atomicAdd(&eplb_bins[cell], 1u);
        } else {
            add_to_cell(args, cell, 1);
        }
    }

    __device__ void end(const eplb_route_arguments &args) const {
        if (!on || args.has_bins == 0) {
            return;
        }
        __syncthreads();
#pragma unroll 1
        for (uint32_t bin = threadIdx.x; bin <= args.num_cells; bin += blockDim.x) {
            if (eplb_bins[bin] != 0) {
                add_to_cell(args, bin, eplb_bins[bin]);
            }
        }
    }
};

/// A thread's share of a block's ids: `ids_per_thread` of them, 32 apart, so that each load of a warp is one
/// line.
struct block_ids {
    uint32_t first;
    uint32_t bins[ids_per_thread];
    /// How many ids of the same bin stand before each in the block.
    uint32_t positions[ids_per_thread];

    __device__ uint32_t index(uint32_t i) const {
        return first + threadIdx.x / 32 * (32 * ids_per_thread) + i * 32 + threadIdx.x % 32;
    }

    /// Loads the ids from `start` on; those that are not before `valid_ids` are as good as out of range.
    template <class Id>
    __device__ void load(const eplb_route_arguments &args, uint32_t start, uint32_t valid_ids) {
        first = start;
        const Id *ids = static_cast<const Id *>(args.expert_ids);
#pragma unroll
        for (uint32_t i = 0; i < ids_per_thread; i++) {
            bins[i] = index(i) < valid_ids ? bin_of(ids[index(i)], args.num_experts) : args.num_experts;
        }
    }

    /// Finds the positions. Begins and ends with a barrier or with nothing shared in use.
    __device__ void find_positions(const eplb_route_arguments &args) {
        if (args.rows_at == no_rows) {
            scan();
        } else {
            count_by_warp(args.num_experts, reinterpret_cast<uint16_t *>(eplb_bins + args.rows_at));
        }
    }

  private:
    /// A row of counts for each warp: equal ids of a warp find each other, and the rows add up.
    __device__ void count_by_warp(uint32_t num_experts, uint16_t *rows) {
        const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        __syncthreads();
        uint32_t *words = reinterpret_cast<uint32_t *>(rows);
#pragma unroll 1
        for (uint32_t word = threadIdx.x; word < route_warps / 2 * num_experts; word += blockDim.x) {
            words[word] = 0;
        }
        __syncthreads();
        uint16_t *row = rows + warp * num_experts;
#pragma unroll
        for (uint32_t i = 0; i < ids_per_thread; i++) {
            const uint32_t bin = bins[i];
            const uint32_t same = __match_any_sync(0xffffffff, bin);
            const uint32_t before = static_cast<uint32_t>(__popc(same & ((1u << lane) - 1)));
            const uint32_t seen = bin < num_experts ? row[bin] : 0;
            positions[i] = seen + before;
            __syncwarp();
            if (bin < num_experts && before == 0) {
                row[bin] = static_cast<uint16_t>(seen + static_cast<uint32_t>(__popc(same)));
            }
            __syncwarp();
        }
        __syncthreads();
#pragma unroll 1
        for (uint32_t bin = threadIdx.x; bin < num_experts; bin += blockDim.x) {
            uint32_t before = 0;
#pragma unroll
            for (uint32_t w = 0; w < route_warps; w++) {
                const uint32_t count = rows[w * num_experts + bin];
                rows[w * num_experts + bin] = static_cast<uint16_t>(before);
                before += count;
            }
        }
        __syncthreads();
#pragma unroll
        for (uint32_t i = 0; i < ids_per_thread; i++) {
            positions[i] += bins[i] < num_experts ? row[bins[i]] : 0;
        }
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
__device__ void write_slots(const eplb_route_arguments &args, const block_ids &block, uint32_t end,
                            uint32_t valid_ids, const route_counter &counter, Pick pick) {
    // All are looked up before any is written: for all the compiler knows, a slot written may be one of the
    // tables'.
    uint32_t slots[ids_per_thread];
#pragma unroll
    for (uint32_t i = 0; i < ids_per_thread; i++) {
        const uint32_t bin = block.bins[i];
        slots[i] = args.num_slots;
        if (bin < args.num_experts) {
            const uint32_t start = static_cast<uint32_t>(args.replica_start[bin]);
            const uint32_t count = static_cast<uint32_t>(args.replica_count[bin]);
            const uint32_t replica = count == 1 ? 0 : pick(bin, start, count, block.positions[i]);
            slots[i] = static_cast<uint32_t>(args.replica_slots[start + replica]);
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

/// One block of ids a block of threads, by a rule that goes by an id's position in it.
template <class Id, class Pick> __device__ void route_block(const eplb_route_arguments &args, Pick pick) {
    const uint32_t all = args.num_tokens * args.experts_per_token;
    const uint32_t valid_ids = num_valid_ids(args);
    route_counter counter;
    counter.begin(args, valid_ids);
    block_ids block;
    block.load<Id>(args, blockIdx.x * EPLB_ROUTE_BLOCK, valid_ids);
    block.find_positions(args);
    write_slots<Id>(args, block, all, valid_ids, counter, pick);
    counter.end(args);
}

template <class Id> __device__ void round_robin(const eplb_route_arguments &args) {
    const uint32_t turn = blockIdx.x + args.offset;
    route_block<Id>(args, [turn](uint32_t, uint32_t, uint32_t count, uint32_t position) {
        return (position + turn) % count;
    });
}

template <class Id> __device__ void nearest(const eplb_route_arguments &args) {
    const uint32_t turn = blockIdx.x + args.offset;
    const uint32_t *shares = args.shares;
    route_block<Id>(args, [turn, shares](uint32_t, uint32_t start, uint32_t count, uint32_t position) {
        const uint32_t point = (position + turn) * golden_ratio;
        uint32_t replica = 0;
        while (replica + 1 < count && point >= shares[start + replica]) {
            replica++;
        }
        return replica;
    });
}

template <class SlotOf> __device__ int4 slots_of(int4 ids, uint32_t first, SlotOf slot_of) {
    const int4 slots = {slot_of(ids.x, first), slot_of(ids.y, first + 1), slot_of(ids.z, first + 2),
                        slot_of(ids.w, first + 3)};
    return slots;
}
template <class SlotOf> __device__ longlong2 slots_of(longlong2 ids, uint32_t first, SlotOf slot_of) {
    const longlong2 slots = {slot_of(ids.x, first), slot_of(ids.y, first + 1)};
    return slots;
}
template <class Count> __device__ void count_each(int4 ids, int4 slots, uint32_t first, Count count) {
    count(ids.x, slots.x, first);
    count(ids.y, slots.y, first + 1);
    count(ids.z, slots.z, first + 2);
    count(ids.w, slots.w, first + 3);
}
template <class Count>
__device__ void count_each(longlong2 ids, longlong2 slots, uint32_t first, Count count) {
    count(ids.x, slots.x, first);
    count(ids.y, slots.y, first + 1);
}

/// As many ids as fit 16 bytes a thread.
template <class Id> __device__ void token_hash(const eplb_route_arguments &args) {
    using vector = typename id_traits<Id>::vector;
    constexpr uint32_t width = sizeof(vector) / sizeof(Id);
    const uint32_t all = args.num_tokens * args.experts_per_token;
    const uint32_t valid_ids = num_valid_ids(args);
    route_counter counter;
    counter.begin(args, valid_ids);
    __syncthreads();
    const Id *ids = static_cast<const Id *>(args.expert_ids);
    Id *slots = static_cast<Id *>(args.slot_ids);
    const bool aligned =
        (reinterpret_cast<uintptr_t>(ids) | reinterpret_cast<uintptr_t>(slots)) % sizeof(vector) == 0;
    const uint32_t first = (blockIdx.x * blockDim.x + threadIdx.x) * width;

    const auto slot_of = [&](Id id, uint32_t index) {
        const uint32_t bin = index < valid_ids ? bin_of(id, args.num_experts) : args.num_experts;
        if (bin == args.num_experts) {
            return static_cast<Id>(args.num_slots);
        }
        const uint32_t start = static_cast<uint32_t>(args.replica_start[bin]);
        const uint32_t count = static_cast<uint32_t>(args.replica_count[bin]);
        const uint32_t hash = index / args.experts_per_token * golden_ratio;
        return static_cast<Id>(args.replica_slots[start + (count == 1 ? 0 : hash % count)]);
    };
    const auto count = [&](Id id, Id slot, uint32_t index) {
        if (index < valid_ids) {
            counter.add(args, bin_of(id, args.num_experts), static_cast<uint32_t>(slot));
        }
    };
    if (aligned && first + width <= all) {
        const vector these = *reinterpret_cast<const vector *>(ids + first);
        const vector those = slots_of(these, first, slot_of);
        *reinterpret_cast<vector *>(slots + first) = those;
        if (counter.on) {
            count_each(these, those, first, count);
        }
    } else {
#pragma unroll 1
        for (uint32_t index = first; index < first + width && index < all; index++) {
            const Id id = ids[index], slot = slot_of(id, index);
            slots[index] = slot;
            count(id, slot, index);
        }
    }
    counter.end(args);
}

/// What a rank counted for an expert.
__device__ inline uint64_t rank_count(const eplb_level_arguments &level, uint32_t rank, uint32_t expert,
                                      uint32_t num_experts) {
    const uint64_t at = uint64_t(rank) * num_experts + expert;
    const int64_t count = level.rank_counts_are_64_bits != 0
                              ? static_cast<const int64_t *>(level.rank_counts)[at]
                              : static_cast<const int32_t *>(level.rank_counts)[at];
    return count < 0 ? 0 : count > 0x7fffffff ? 0x7fffffff : static_cast<uint64_t>(count);
}

template <class T> __device__ T warp_sum(T value) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        value += __shfl_xor_sync(0xffffffff, value, lanes);
    }
    return value;
}

struct quotient {
    uint64_t whole;
    uint32_t rest;
};

/// By at most 2^20, the most of anything in a placement, 12 bits at a time: a division of 64 bits would be a
/// call, and spill.
__device__ inline quotient divide(uint64_t value, uint32_t by) {
    quotient result = {0, 0};
#pragma unroll 1
    for (int shift = 60; shift >= 0; shift -= 12) {
        const uint32_t part = result.rest << 12 | (static_cast<uint32_t>(value >> shift) & 0xfff);
        result.whole = result.whole << 12 | part / by;
        result.rest = part % by;
    }
    return result;
}

/// Deals an expert's tokens to its groups as levels water, after taking back what they had; one warp. Returns
/// whether that changed anything.
__device__ inline bool level_expert(const eplb_level_arguments &level, uint32_t place) {
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t first = level.group_start[place];
    const uint32_t count = level.group_start[place + 1] - first;
    const uint64_t tokens = level.totals[level.experts[place]];
    const uint32_t *ranks = level.group_rank + first;
    uint64_t *quotas = level.quotas + first;
    for (uint32_t g = lane; g < count; g += 32) {
        level.rank_loads[ranks[g]] -= quotas[g];
    }
    __syncwarp();
    // Those that the water reaches: to raise all others to their height takes no more than there is.
    uint32_t reached = 0;
    uint64_t sum = 0;
    for (uint32_t g = lane; g < count; g += 32) {
        const uint64_t load = level.rank_loads[ranks[g]];
        uint64_t needed = 0;
#pragma unroll 1
        for (uint32_t other = 0; other < count; other++) {
            const uint64_t lower = level.rank_loads[ranks[other]];
            needed += load > lower ? load - lower : 0;
        }
        if (needed <= tokens) {
            reached++;
            sum += load;
        }
    }
    reached = warp_sum(reached);
    sum = warp_sum(sum) + tokens;
    const auto [height, one_more] = divide(sum, reached);
    const uint32_t turn = divide(tokens, count).rest;
    uint32_t given = 0;
    bool changed = false;
#pragma unroll 1
    for (uint32_t from = 0; from < count; from += 32) {
        const bool is_group = from + lane < count;
        const uint32_t g = is_group ? (from + lane + turn) % count : 0;
        const uint64_t load = level.rank_loads[ranks[g]];
        const bool is_reached = is_group && load <= height;
        const uint32_t others = __ballot_sync(0xffffffff, is_reached);
        if (is_group) {
            const uint32_t before = given + static_cast<uint32_t>(__popc(others & ((1u << lane) - 1)));
            const uint64_t quota = is_reached ? height - load + (before < one_more ? 1 : 0) : 0;
            changed |= quota != quotas[g];
            quotas[g] = quota;
        }
        given += static_cast<uint32_t>(__popc(others));
    }
    __syncwarp();
    for (uint32_t g = lane; g < count; g += 32) {
        level.rank_loads[ranks[g]] += quotas[g];
    }
    __syncwarp();
    return __ballot_sync(0xffffffff, changed) != 0;
}

/// From all blocks' counts, the tokens of this rank up to each replica; one block of threads.
__device__ inline void plan(const eplb_route_arguments &args) {
    const eplb_level_arguments &level = args.level;
    for (uint32_t expert = threadIdx.x; expert < args.num_experts; expert += blockDim.x) {
        uint32_t before = 0;
#pragma unroll 1
        for (uint32_t block = 0; block < gridDim.x; block++) {
            // Other blocks wrote it while this one ran.
            volatile uint32_t *count = level.block_counts + block * args.num_experts + expert;
            const uint32_t more = *count;
            *count = before;
            before += more;
        }
        uint64_t total = before;
        if (level.rank_counts != nullptr) {
            total = 0;
#pragma unroll 1
            for (uint32_t rank = 0; rank < level.num_ranks; rank++) {
                total += rank_count(level, rank, expert, args.num_experts);
            }
        }
        level.totals[expert] = total;
    }
    for (uint32_t rank = threadIdx.x; rank < level.num_ranks; rank += blockDim.x) {
        level.rank_loads[rank] = 0;
    }
    for (uint32_t g = threadIdx.x; g < level.num_groups; g += blockDim.x) {
        level.quotas[g] = 0;
    }
    __syncthreads();
    for (uint32_t expert = threadIdx.x; expert < args.num_experts; expert += blockDim.x) {
        if (args.replica_count[expert] == 1 && level.totals[expert] != 0) {
            const uint32_t slot = static_cast<uint32_t>(args.replica_slots[args.replica_start[expert]]);
            atomicAdd(reinterpret_cast<unsigned long long *>(&level.rank_loads[slot / level.slots_per_rank]),
                      static_cast<unsigned long long>(level.totals[expert]));
        }
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        bool changed = true;
#pragma unroll 1
        for (uint32_t sweep = 0; sweep < EPLB_LEVEL_SWEEPS && changed; sweep++) {
            changed = false;
#pragma unroll 1
            for (uint32_t place = 0; place < level.num_experts; place++) {
                changed |= level_expert(level, place);
            }
        }
    }
    __syncthreads();
    for (uint32_t place = threadIdx.x; place < level.num_experts; place += blockDim.x) {
        const uint32_t expert = level.experts[place];
        uint64_t before = 0, own = level.totals[expert];
        if (level.rank_counts != nullptr) {
#pragma unroll 1
            for (uint32_t rank = 0; rank < level.rank; rank++) {
                before += rank_count(level, rank, expert, args.num_experts);
            }
            own = rank_count(level, level.rank, expert, args.num_experts);
        }
        uint64_t dealt = 0;
#pragma unroll 1
        for (uint32_t g = level.group_start[place]; g < level.group_start[place + 1]; g++) {
            const uint64_t quota = level.quotas[g];
            const uint32_t size = level.group_size[g];
#pragma unroll 1
            for (uint32_t replica = 0; replica < size; replica++) {
                const uint64_t end = dealt + divide(quota * (replica + 1) + size - 1, size).whole;
                const uint64_t mine = end <= before ? 0 : end - before;
                level.ends[level.group_first[g] + replica] = static_cast<uint32_t>(mine < own ? mine : own);
            }
            dealt += quota;
        }
    }
    __syncthreads();
}

/// A block's counts of its ids, [first, end), to its row.
template <class Id>
__device__ void count_block(const eplb_route_arguments &args, uint32_t first, uint32_t end) {
    uint32_t *row = args.level.block_counts + blockIdx.x * args.num_experts;
    uint32_t *counts = args.rows_at == no_rows ? row : eplb_bins + args.rows_at;
    for (uint32_t bin = threadIdx.x; bin < args.num_experts; bin += blockDim.x) {
        counts[bin] = 0;
    }
    __syncthreads();
    const Id *ids = static_cast<const Id *>(args.expert_ids);
#pragma unroll 1
    for (uint32_t index = first + threadIdx.x; index < end; index += blockDim.x) {
        const uint32_t bin = bin_of(ids[index], args.num_experts);
        if (bin < args.num_experts) {
            atomicAdd(&counts[bin], 1u);
        }
    }
    __syncthreads();
    if (counts != row) {
        for (uint32_t bin = threadIdx.x; bin < args.num_experts; bin += blockDim.x) {
            row[bin] = counts[bin];
        }
    }
}

/// Whether this block is the last to come here, so that all others' writes before are to be seen.
__device__ inline bool is_last_block(uint32_t *blocks_done) {
    static __shared__ uint32_t is_last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        is_last = atomicAdd(blocks_done, 1u) + 1 == gridDim.x;
    }
    __syncthreads();
    if (is_last == 0) {
        return false;
    }
    __threadfence();
    if (threadIdx.x == 0) {
        *blocks_done = 0;
    }
    return true;
}

template <class Id> __device__ void least_loaded(const eplb_route_arguments &args) {
    const uint32_t all = args.num_tokens * args.experts_per_token;
    const uint32_t valid_ids = num_valid_ids(args);
    const uint32_t first = blockIdx.x * args.level.ids_per_block;
    const uint32_t end = all - first < args.level.ids_per_block ? all : first + args.level.ids_per_block;
    if (args.level.phase == 0) {
        count_block<Id>(args, first, end < valid_ids ? end : valid_ids);
        if (!is_last_block(args.level.blocks_done)) {
            return;
        }
        plan(args);
        if (gridDim.x > 1) {
            return;
        }
    }
    route_counter counter;
    counter.begin(args, valid_ids);
    const uint32_t *ends = args.level.ends;
    volatile uint32_t *before = args.level.block_counts + blockIdx.x * args.num_experts;
#pragma unroll 1
    for (uint32_t start = first; start < end; start += EPLB_ROUTE_BLOCK) {
        block_ids block;
        block.load<Id>(args, start, valid_ids);
        block.find_positions(args);
        write_slots<Id>(args, block, end, valid_ids, counter,
                        [=](uint32_t expert, uint32_t at, uint32_t count, uint32_t position) {
                            const uint32_t token = position + before[expert];
                            uint32_t replica = 0;
                            while (replica < count && token >= ends[at + replica]) {
                                replica++;
                            }
                            return replica < count ? replica : token % count;
                        });
        if (end - start > EPLB_ROUTE_BLOCK) {
            __syncthreads();
#pragma unroll
            for (uint32_t i = 0; i < ids_per_thread; i++) {
                if (block.bins[i] < args.num_experts) {
                    atomicAdd(const_cast<uint32_t *>(&before[block.bins[i]]), 1u);
                }
            }
            __threadfence();
        }
    }
    counter.end(args);
}

} // namespace eplb

// One entry for each rule and type of ids: blocks of EPLB_ROUTE_THREADS threads. By round robin and nearest a
// block of threads for each EPLB_ROUTE_BLOCK ids, by token hash for as many as fit 16 bytes a thread, by
// least loaded one for each ids_per_block, and the launch of phase 0 is followed by the same with phase 1
// unless it has one block.
#define EPLB_ROUTE_ENTRY(name, rule, Id)                                                                     \
    extern "C" __global__ void __launch_bounds__(EPLB_ROUTE_THREADS, 4)                                      \
        name(const eplb_route_arguments args) {                                                              \
        eplb::rule<Id>(args);                                                                                \
    }
EPLB_ROUTE_ENTRY(eplb_route_round_robin_i32, round_robin, int32_t)
EPLB_ROUTE_ENTRY(eplb_route_round_robin_i64, round_robin, int64_t)
EPLB_ROUTE_ENTRY(eplb_route_token_hash_i32, token_hash, int32_t)
EPLB_ROUTE_ENTRY(eplb_route_token_hash_i64, token_hash, int64_t)
EPLB_ROUTE_ENTRY(eplb_route_nearest_i32, nearest, int32_t)
EPLB_ROUTE_ENTRY(eplb_route_nearest_i64, nearest, int64_t)
EPLB_ROUTE_ENTRY(eplb_route_least_loaded_i32, least_loaded, int32_t)
EPLB_ROUTE_ENTRY(eplb_route_least_loaded_i64, least_loaded, int64_t)
#undef EPLB_ROUTE_ENTRY

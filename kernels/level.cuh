// Routing by EPLB_ROUTE_LEAST_LOADED: count the batch, deal the experts' tokens to the ranks, write the
// slots.
//
// Dealing is one expert after the other by its definition, which took one warp 90 µs. Experts that
// share no rank do not see each other's tokens, though, so the host sorts them into steps, and all of a step
// are dealt at once. Up to 32 ranks are the lanes of a warp, which keep the ranks' tokens in their registers;
// of more, each group of a step is a thread's, and tokens are in shared memory.
#pragma once

#include <cstdint>

#include "route.cuh"

/// Blocks that count and deal a batch at most.
constexpr uint32_t EPLB_LEVEL_BLOCKS = 64;

/// How often it goes over all replicated experts at most.
constexpr uint32_t EPLB_LEVEL_SWEEPS = 4;

/// So many ranks can be a warp's lanes.
constexpr uint32_t EPLB_LEVEL_LANES = 32;

/// In the place of a group where there is none.
constexpr uint32_t EPLB_NO_GROUP = 0xffffffff;

namespace eplb {

/// Where the tokens are dealt, in shared memory where there is room. A group is the replicas of an expert on
/// one rank; groups come by the step in which they are dealt and then by expert, each expert's by rank.
struct level_memory {
    /// Tokens of each rank, of each group, of each group's rank without the group, of each group's expert,
    /// and of each expert.
    uint64_t *rank_loads, *quotas, *loads, *tokens, *totals;
    /// Of each group, which of its expert's gets the first token more than others: tokens mod their number.
    uint32_t *turns;
    /// Of each sweep, whether it changed anything; and whether the tokens may be 2^32 or more.
    uint32_t *changed, *is_large;
    const uint32_t *group_rank, *group_place, *group_first, *group_size, *experts, *group_start, *step_start;
    /// Of up to EPLB_LEVEL_LANES ranks: by group the ranks of its expert's groups, a bit each, and the group
    /// that each rank has in each step, [num_steps][num_ranks].
    const uint32_t *group_ranks, *rank_groups;

    /// `words` is where the tables are, those of the rule behind those of every rule.
    __device__ level_memory(const eplb_route_arguments &args, const uint32_t *words) {
        const eplb_level_arguments &level = args.level;
        const bool is_shared = level.shared_memory_at != EPLB_NO_ROOM;
        rank_loads =
            is_shared ? reinterpret_cast<uint64_t *>(eplb_bins + level.shared_memory_at) : level.memory;
        quotas = rank_loads + level.num_ranks;
        loads = quotas + level.num_groups;
        tokens = loads + level.num_groups;
        totals = tokens + level.num_groups;
        turns = reinterpret_cast<uint32_t *>(totals + args.num_experts);
        changed = turns + level.num_groups;
        is_large = changed + EPLB_LEVEL_SWEEPS;
        group_rank = words + level.group_rank_at;
        group_place = words + level.group_place_at;
        group_first = words + level.group_first_at;
        group_size = words + level.group_size_at;
        experts = words + level.experts_at;
        group_start = words + level.group_start_at;
        step_start = words + level.step_start_at;
        group_ranks = words + level.group_ranks_at;
        rank_groups = words + level.rank_groups_at;
    }
};

/// What a rank counted for an expert.
__device__ inline uint64_t rank_count(const eplb_level_arguments &level, uint32_t rank, uint32_t expert,
                                      uint32_t num_experts) {
    const uint64_t at = uint64_t(rank) * num_experts + expert;
    const int64_t count = level.rank_counts_are_64_bits != 0
                              ? static_cast<const int64_t *>(level.rank_counts)[at]
                              : static_cast<const int32_t *>(level.rank_counts)[at];
    return count < 0 ? 0 : count > 0x7fffffff ? 0x7fffffff : static_cast<uint64_t>(count);
}

/// What the ranks in [first, end) counted for an expert; several of them are waited for at once.
__device__ inline uint64_t sum_of_ranks(const eplb_level_arguments &level, uint32_t first, uint32_t end,
                                        uint32_t expert, uint32_t num_experts) {
    uint64_t sum = 0;
#pragma unroll 4
    for (uint32_t rank = first; rank < end; rank++) {
        sum += rank_count(level, rank, expert, num_experts);
    }
    return sum;
}

template <class T> struct quotient {
    T whole;
    uint32_t rest;
};

__device__ inline quotient<uint32_t> divide(uint32_t value, uint32_t by) { return {value / by, value % by}; }

/// By at most 2^20, the most of anything in a placement, beyond 32 bits 12 bits at a time: a division of 64
/// bits would be a call, and spill.
__device__ inline quotient<uint64_t> divide(uint64_t value, uint32_t by) {
    if (value >> 32 == 0) {
        const auto [whole, rest] = divide(static_cast<uint32_t>(value), by);
        return {whole, rest};
    }
    quotient<uint64_t> result = {0, 0};
#pragma unroll 1
    for (int shift = 60; shift >= 0; shift -= 12) {
        const uint32_t part = result.rest << 12 | (static_cast<uint32_t>(value >> shift) & 0xfff);
        result.whole = result.whole << 12 | part / by;
        result.rest = part % by;
    }
    return result;
}

/// Of `tokens` poured over two groups, what the one at `place` gets, whose rank has `load`.
template <class T> __device__ T pour_over_two(T tokens, T load, T other, uint32_t place) {
    // Half of what the lower one does not need to reach the higher one is for either.
    const T apart = load < other ? other - load : load - other;
    const T both = tokens > apart ? tokens - apart : 0;
    const T lower = load < other ? tokens - both : 0;
    return both / 2 + lower + (both & (place == (tokens & 1) ? 1 : 0));
}

/// Of `tokens` poured over `count` groups, what the one at `place` gets; `loads` are those of their ranks,
/// and `turn` is where the first token goes that not all get.
template <class T>
__device__ T pour(T tokens, const uint64_t *loads, uint32_t count, uint32_t place, uint32_t turn) {
    // Loads are looked up side by side: those of most experts at once.
    constexpr uint32_t at_once = 8;
    T some[at_once];
#pragma unroll
    for (uint32_t g = 0; g < at_once; g++) {
        some[g] = static_cast<T>(loads[g < count ? g : 0]);
    }
    // What stands out of the water of all takes no part; without it the water stands lower, and more may
    // stand out.
    quotient<T> height = {static_cast<T>(~T(0)), 0};
    T top;
    do {
        T sum = tokens;
        uint32_t reached = 0;
        top = 0;
        const auto take = [&](T load, bool is_group) {
            if (is_group && load <= height.whole) {
                reached++;
                sum += load;
                top = top > load ? top : load;
            }
        };
#pragma unroll
        for (uint32_t g = 0; g < at_once; g++) {
            take(some[g], g < count);
        }
#pragma unroll 4
        for (uint32_t g = at_once; g < count; g++) {
            take(static_cast<T>(loads[g]), true);
        }
        height = divide(sum, reached);
    } while (top > height.whole);
    const T mine = static_cast<T>(loads[place]);
    if (mine > height.whole) {
        return 0;
    }
    uint32_t before = 0;
    const uint32_t wait = place >= turn ? place - turn : place + count - turn;
    const auto comes_before = [&](T load, uint32_t g) {
        const uint32_t other = g >= turn ? g - turn : g + count - turn;
        return g < count && other < wait && load <= height.whole ? 1u : 0u;
    };
#pragma unroll
    for (uint32_t g = 0; g < at_once; g++) {
        before += comes_before(some[g], g);
    }
#pragma unroll 4
    for (uint32_t g = at_once; g < count; g++) {
        before += comes_before(static_cast<T>(loads[g]), g);
    }
    return height.whole - mine + (before < height.rest ? 1 : 0);
}

/// What a thread deals in a step: a group, or nothing.
struct seat {
    uint32_t thread, group, end, rank, first, count, place;
    uint64_t tokens, quota;
    bool is_taken;

    __device__ seat(const level_memory &memory, uint32_t step, uint32_t thread) : thread(thread) {
        group = memory.step_start[step] + thread;
        end = memory.step_start[step + 1];
        is_taken = group < end;
        if (is_taken) {
            rank = memory.group_rank[group];
            place = memory.group_place[group];
            first = memory.group_start[place];
            count = memory.group_start[place + 1] - first;
            tokens = memory.tokens[group];
            quota = memory.quotas[group];
        }
    }

    /// Deals, all of the expert having been taken back, and returns whether that changed anything. T has room
    /// for all tokens.
    template <class T> __device__ bool deal(const level_memory &memory) const {
        const uint64_t *loads = memory.loads + first;
        const uint32_t at = group - first;
        const T poured = static_cast<T>(tokens);
        const uint64_t dealt =
            count == 1   ? poured
            : count == 2 ? pour_over_two(poured, static_cast<T>(loads[at]), static_cast<T>(loads[1 - at]), at)
                         : pour(poured, loads, count, at, memory.turns[group]);
        memory.quotas[group] = dealt;
        memory.rank_loads[rank] = loads[at] + dealt;
        return dealt != quota;
    }
};

/// Deals all experts' tokens until nothing changes, by all threads of the block. T has room for all tokens.
template <class T>
__device__ void deal_by_block(const level_memory &memory, const eplb_level_arguments &level) {
    const uint32_t width = blockDim.x;
#pragma unroll 1
    for (uint32_t sweep = 0; sweep < EPLB_LEVEL_SWEEPS && level.num_steps > 0; sweep++) {
        bool changed = false;
        // Of the next step all but the loads can be looked up before this one is done.
        seat next(memory, 0, threadIdx.x);
#pragma unroll 1
        for (uint32_t step = 0; step < level.num_steps; step++) {
            seat mine = next;
#pragma unroll 1
            for (seat taking = mine; taking.is_taken; taking = seat(memory, step, taking.thread + width)) {
                memory.loads[taking.group] = memory.rank_loads[taking.rank] - taking.quota;
                if (taking.group + width >= taking.end) {
                    break;
                }
            }
            next = seat(memory, step + 1 < level.num_steps ? step + 1 : step, threadIdx.x);
            __syncthreads();
#pragma unroll 1
            while (mine.is_taken) {
                changed |= mine.deal<T>(memory);
                if (mine.group + width >= mine.end) {
                    break;
                }
                mine = seat(memory, step, mine.thread + width);
            }
            __syncthreads();
        }
        if (changed) {
            memory.changed[sweep] = 1;
        }
        __syncthreads();
        if (memory.changed[sweep] == 0) {
            return;
        }
    }
}

/// What a lane deals in a step: its rank's group, or nothing. The warp makes it together, ahead of the step:
/// nothing in it depends on the loads.
template <class T> struct lot {
    uint32_t group;
    /// The ranks of the expert's groups, a bit each.
    uint32_t ranks = 0;
    T tokens = 0, quota = 0;
    /// How many groups the expert has on lower ranks, and the one that gets the first token more.
    uint32_t place, turn = 0;
    /// The ranks whose groups stand before that one among their expert's.
    uint32_t before_turn;
    /// Whether all experts of the step have two groups.
    bool are_pairs;

    __device__ lot(const level_memory &memory, uint32_t group, uint32_t lane) : group(group) {
        if (group != EPLB_NO_GROUP) {
            ranks = memory.group_ranks[group];
            tokens = static_cast<T>(memory.tokens[group]);
            quota = static_cast<T>(memory.quotas[group]);
            turn = memory.turns[group];
        }
        place = static_cast<uint32_t>(__popc(ranks & ((1u << lane) - 1)));
        before_turn = __ballot_sync(0xffffffff, ranks != 0 && place < turn);
        are_pairs = __ballot_sync(0xffffffff, ranks != 0 && __popc(ranks) != 2) == 0;
    }

    /// What the group gets, by the definition; `load` is that of the lane's rank without it. The whole warp.
    __device__ T pour(T load, uint32_t lane) const {
        const uint32_t others = ranks & ~(1u << lane);
        if (are_pairs) {
            const T other =
                __shfl_sync(0xffffffff, load, others != 0 ? __ffs(static_cast<int>(others)) - 1 : 0);
            return ranks != 0 ? pour_over_two(tokens, load, other, place) : 0;
        }
        // What stands out of the water of all takes no part; without it the water stands lower, and more may
        // stand out.
        uint32_t out = 0, before, reached;
        quotient<T> height;
        do {
            before = out;
            reached = ranks & ~out;
            T sum = tokens + ((reached >> lane & 1) != 0 ? load : 0);
            uint32_t left = others & reached;
#pragma unroll 1
            while (__ballot_sync(0xffffffff, left != 0) != 0) {
                const T other =
                    __shfl_sync(0xffffffff, load, left != 0 ? __ffs(static_cast<int>(left)) - 1 : 0);
                sum += left != 0 ? other : 0;
                left &= left - 1;
            }
            height = divide(sum, reached != 0 ? static_cast<uint32_t>(__popc(reached)) : 1);
            out = __ballot_sync(0xffffffff, ranks != 0 && load > height.whole);
        } while (out != before);
        if ((reached >> lane & 1) == 0) {
            return 0;
        }
        // Who comes before in turn: from the one whose turn it is up, and then from the first.
        const uint32_t below = (1u << lane) - 1;
        const uint32_t first = reached & ~before_turn, last = reached & before_turn & below;
        const uint32_t earlier = place >= turn ? first & below : first | last;
        return height.whole - load + (static_cast<uint32_t>(__popc(earlier)) < height.rest ? 1 : 0);
    }
};

/// The same by one warp, whose lanes are the ranks.
template <class T>
__device__ void deal_by_lanes(const level_memory &memory, const eplb_level_arguments &level) {
    const uint32_t lane = threadIdx.x;
    T load = lane < level.num_ranks ? static_cast<T>(memory.rank_loads[lane]) : 0;
    const auto group_in = [&](uint32_t step) {
        return lane < level.num_ranks && step < level.num_steps
                   ? memory.rank_groups[step * level.num_ranks + lane]
                   : EPLB_NO_GROUP;
    };
#pragma unroll 1
    for (uint32_t sweep = 0; sweep < EPLB_LEVEL_SWEEPS; sweep++) {
        bool changed = false;
        // Looked up before they are needed: of the next step what is dealt, of the one after it where it is.
        lot<T> next(memory, group_in(0), lane);
        uint32_t after = group_in(1);
#pragma unroll 1
        for (uint32_t step = 0; step < level.num_steps; step++) {
            const lot<T> mine = next;
            next = lot<T>(memory, after, lane);
            after = group_in(step + 2);
            load -= mine.quota;
            const T dealt = mine.pour(load, lane);
            load += dealt;
            changed |= dealt != mine.quota;
            if (mine.group != EPLB_NO_GROUP) {
                memory.quotas[mine.group] = dealt;
            }
        }
        if (__ballot_sync(0xffffffff, changed) == 0) {
            return;
        }
    }
}

/// Deals by the warp or by the block; all threads of the block call.
template <class T> __device__ void deal(const level_memory &memory, const eplb_level_arguments &level) {
    if (level.num_ranks > EPLB_LEVEL_LANES) {
        deal_by_block<T>(memory, level);
    } else if (threadIdx.x < 32) {
        deal_by_lanes<T>(memory, level);
    }
}

/// Makes of each block's count of an expert the sum of those before, and returns that of all. Other blocks
/// wrote them while this one ran; several are waited for at once.
__device__ inline uint32_t add_up_blocks(const eplb_route_arguments &args, uint32_t expert) {
    constexpr uint32_t at_once = 16;
    uint32_t before = 0;
#pragma unroll 1
    for (uint32_t first = 0; first < gridDim.x; first += at_once) {
        uint32_t counts[at_once];
        volatile uint32_t *cells = args.level.block_counts + first * args.num_experts + expert;
#pragma unroll
        for (uint32_t i = 0; i < at_once; i++) {
            counts[i] = first + i < gridDim.x ? cells[i * args.num_experts] : 0;
        }
#pragma unroll
        for (uint32_t i = 0; i < at_once; i++) {
            if (first + i < gridDim.x) {
                cells[i * args.num_experts] = before;
            }
            before += counts[i];
        }
    }
    return before;
}

/// Tells the tokens of this rank up to and with each replica; `counts` are this block's where it is the only
/// one, otherwise NULL. One block of threads.
__device__ inline void plan(const eplb_route_arguments &args, const route_tables &tables,
                            const uint32_t *counts, uint32_t *ends) {
    const eplb_level_arguments &level = args.level;
    const bool are_staged = args.table_words > level.group_rank_at;
    const level_memory memory(args, are_staged ? tables.count : args.tables);
    if (threadIdx.x <= EPLB_LEVEL_SWEEPS) {
        memory.changed[threadIdx.x] = 0; // And is_large.
    }
    __syncthreads();
#pragma unroll 1
    for (uint32_t expert = threadIdx.x; expert < args.num_experts; expert += blockDim.x) {
        const uint32_t own = counts != nullptr ? counts[expert] : add_up_blocks(args, expert);
        const uint64_t total = level.rank_counts == nullptr
                                   ? own
                                   : sum_of_ranks(level, 0, level.num_ranks, expert, args.num_experts);
        memory.totals[expert] = total;
        if (total > 0xffffffff / args.num_experts) {
            *memory.is_large = 1;
        }
    }
#pragma unroll 1
    for (uint32_t rank = threadIdx.x; rank < level.num_ranks; rank += blockDim.x) {
        memory.rank_loads[rank] = 0;
    }
#pragma unroll 1
    for (uint32_t g = threadIdx.x; g < level.num_groups; g += blockDim.x) {
        memory.quotas[g] = 0;
    }
    __syncthreads();
    const bool is_large = *memory.is_large != 0;
#pragma unroll 1
    for (uint32_t expert = threadIdx.x; expert < args.num_experts; expert += blockDim.x) {
        if (tables.count[expert] == 1 && memory.totals[expert] != 0) {
            const uint32_t slot = tables.slots[tables.start[expert]];
            uint64_t *load = &memory.rank_loads[slot / level.slots_per_rank];
            if (is_large) {
                atomicAdd(reinterpret_cast<unsigned long long *>(load),
                          static_cast<unsigned long long>(memory.totals[expert]));
            } else {
                // To the low half: shared memory has atomics of 32 bits, while those of 64 are a loop.
                atomicAdd(reinterpret_cast<unsigned *>(load), static_cast<unsigned>(memory.totals[expert]));
            }
        }
    }
#pragma unroll 1
    for (uint32_t g = threadIdx.x; g < level.num_groups; g += blockDim.x) {
        const uint32_t place = memory.group_place[g];
        const uint64_t tokens = memory.totals[memory.experts[place]];
        memory.tokens[g] = tokens;
        memory.turns[g] = divide(tokens, memory.group_start[place + 1] - memory.group_start[place]).rest;
    }
    __syncthreads();
    if (is_large) {
        deal<uint64_t>(memory, level);
    } else {
        deal<uint32_t>(memory, level);
    }
    __syncthreads();
#pragma unroll 1
    for (uint32_t place = threadIdx.x; place < level.num_replicated; place += blockDim.x) {
        const uint32_t expert = memory.experts[place];
        uint64_t before = 0, own = memory.totals[expert];
        if (level.rank_counts != nullptr) {
            before = sum_of_ranks(level, 0, level.rank, expert, args.num_experts);
            own = rank_count(level, level.rank, expert, args.num_experts);
        }
        uint64_t dealt = 0;
#pragma unroll 1
        for (uint32_t g = memory.group_start[place]; g < memory.group_start[place + 1]; g++) {
            const uint64_t quota = memory.quotas[g];
            const uint32_t size = memory.group_size[g];
#pragma unroll 1
            for (uint32_t replica = 0; replica < size; replica++) {
                const uint64_t end =
                    dealt + (size == 1 ? quota : divide(quota * (replica + 1) + size - 1, size).whole);
                const uint64_t mine = end <= before ? 0 : end - before;
                ends[memory.group_first[g] + replica] = static_cast<uint32_t>(mine < own ? mine : own);
            }
            dealt += quota;
        }
    }
    __syncthreads();
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

/// Adds the block's ids, [first, end) of the valid ones, to its counts; of `block` the first are loaded.
/// Begins and ends with a barrier.
template <class Id>
__device__ void count_block(const eplb_route_arguments &args, uint32_t *counts, block_ids<Id> block,
                            uint32_t first, uint32_t end) {
#pragma unroll 1
    for (uint32_t bin = threadIdx.x; bin < args.num_experts; bin += blockDim.x) {
        counts[bin] = 0;
    }
    __syncthreads();
#pragma unroll 1
    for (uint32_t start = first; start < end; start += EPLB_ROUTE_BLOCK) {
        if (start != first) {
            block.load(args, start, end);
        }
        block.find_bins(args, end);
#pragma unroll
        for (uint32_t i = 0; i < ids_per_thread; i++) {
            if (block.bins[i] < args.num_experts) {
                atomicAdd(&counts[block.bins[i]], 1u);
            }
        }
    }
    __syncthreads();
}

template <class Id> __device__ void least_loaded(const eplb_route_arguments &args) {
    const eplb_level_arguments &level = args.level;
    const uint32_t all = args.num_tokens * args.experts_per_token;
    const uint32_t first = blockIdx.x * level.ids_per_block;
    const uint32_t end = all - first < level.ids_per_block ? all : first + level.ids_per_block;
    // What comes from memory is asked for at once: a small batch is all waiting.
    block_ids<Id> block;
    block.load(args, first, all);
    const uint32_t valid_ids = num_valid_ids(args);
    route_tables tables;
    tables.find<2>(args);
    uint32_t *const row = level.block_counts + blockIdx.x * args.num_experts;
    // Of this block, first its counts, then how many ids of each expert stand before the next.
    uint32_t *counts = row, *ends = level.ends;
    if (level.shared_counts_at != EPLB_NO_ROOM) {
        counts = eplb_bins + level.shared_counts_at;
        if (level.phase == 1) {
            stage<1>(counts + (args.num_experts + 3) / 4 * 4, ends, args.num_slots);
        }
        if (gridDim.x == 1 || level.phase == 1) {
            ends = counts + (args.num_experts + 3) / 4 * 4;
        }
    }
    if (level.phase == 0) {
        count_block(args, counts, block, first, end < valid_ids ? end : valid_ids);
        if (gridDim.x > 1) {
#pragma unroll 1
            for (uint32_t bin = threadIdx.x; counts != row && bin < args.num_experts; bin += blockDim.x) {
                row[bin] = counts[bin];
            }
            if (is_last_block(level.blocks_done)) {
                plan(args, tables, nullptr, ends);
            }
            return;
        }
        plan(args, tables, counts, ends);
    }
    route_counter counter;
    counter.begin(args, valid_ids);
    if (level.phase == 0 || counts != row) {
#pragma unroll 1
        for (uint32_t bin = threadIdx.x; bin < args.num_experts; bin += blockDim.x) {
            counts[bin] = level.phase == 0 ? 0 : row[bin];
        }
    }
#pragma unroll 1
    for (uint32_t start = first; start < end; start += EPLB_ROUTE_BLOCK) {
        if (start != first) {
            block.load(args, start, all);
        }
        block.clear_rows(args);
        block.find_bins(args, valid_ids);
        __syncthreads();
        block.find_positions(args);
        write_slots(args, tables, block, end, valid_ids, counter,
                    [=](uint32_t expert, uint32_t at, uint32_t count, uint32_t position) {
                        const uint32_t token = position + counts[expert];
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
                    atomicAdd(&counts[block.bins[i]], 1u);
                }
            }
        }
    }
    counter.end(args);
}

} // namespace eplb

// One entry for each type of ids: blocks of EPLB_ROUTE_THREADS threads, each of ids_per_block ids. The launch
// of phase 0 is followed by the same with phase 1 unless it has one block.
EPLB_ROUTE_ENTRY(eplb_route_least_loaded_i32, least_loaded, int32_t, EPLB_ROUTE_THREADS)
EPLB_ROUTE_ENTRY(eplb_route_least_loaded_i64, least_loaded, int64_t, EPLB_ROUTE_THREADS)

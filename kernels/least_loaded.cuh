// Routing by EPLB_ROUTE_LEAST_LOADED: count the batch, split each expert's tokens over the ranks that hold
// it, assign slots.
#pragma once

#include <cstdint>

#include "route.cuh"
#include "split.cuh"

namespace eplb {

/// The count of a rank for an expert.
__device__ inline uint64_t rank_count(const eplb_split_arguments &split, uint32_t rank, uint32_t expert,
                                      uint32_t num_experts) {
    const uint64_t at = uint64_t(rank) * num_experts + expert;
    const int64_t count = split.rank_counts_are_64_bits != 0
                              ? static_cast<const int64_t *>(split.rank_counts)[at]
                              : static_cast<const int32_t *>(split.rank_counts)[at];
    return count < 0 ? 0 : count > 0x7fffffff ? 0x7fffffff : static_cast<uint64_t>(count);
}

/// The sum of the counts of the ranks in [first, end) for an expert. A thread waits for several loads at
/// once.
__device__ inline uint64_t sum_of_ranks(const eplb_split_arguments &split, uint32_t first, uint32_t end,
                                        uint32_t expert, uint32_t num_experts) {
    uint64_t sum = 0;
#pragma unroll 4
    for (uint32_t rank = first; rank < end; rank++) {
        sum += rank_count(split, rank, expert, num_experts);
    }
    return sum;
}

/// Replaces each block's count of an expert by the sum of those before, and returns the sum of all. Other
/// blocks wrote them while this one ran. A thread waits for several loads at once.
__device__ inline uint32_t add_up_blocks(const eplb_route_arguments &args, uint32_t expert) {
    constexpr uint32_t at_once = 16;
    const uint32_t blocks = args.split.phase == 2 ? args.layout.num_counted : gridDim.x;
    uint32_t before = 0;
#pragma unroll 1
    for (uint32_t first = 0; first < blocks; first += at_once) {
        uint32_t counts[at_once];
        volatile uint32_t *cells = args.split.block_counts + first * args.num_experts + expert;
#pragma unroll
        for (uint32_t i = 0; i < at_once; i++) {
            counts[i] = first + i < blocks ? cells[i * args.num_experts] : 0;
        }
#pragma unroll
        for (uint32_t i = 0; i < at_once; i++) {
            if (first + i < blocks) {
                cells[i * args.num_experts] = before;
            }
            before += counts[i];
        }
    }
    return before;
}

/// Computes quotas, and from them the end of each replica's tokens among this rank's. `counts` are this
/// block's where it is the only one, otherwise NULL. One block of threads calls.
__device__ inline void compute_ends(const eplb_route_arguments &args, const route_tables &tables,
                                    const uint32_t *counts, uint32_t *ends) {
    const eplb_split_arguments &split = args.split;
    const bool are_staged = args.table_words > split.holder_rank_at;
    const split_memory memory(args, are_staged ? tables.count : args.tables);
    if (threadIdx.x <= EPLB_SPLIT_SWEEPS) {
        memory.changed[threadIdx.x] = 0; // And is_large.
    }
    __syncthreads();
#pragma unroll 1
    for (uint32_t expert = threadIdx.x; expert < args.num_experts; expert += blockDim.x) {
        const uint32_t own = counts != nullptr ? counts[expert] : add_up_blocks(args, expert);
        const uint64_t total = split.rank_counts == nullptr
                                   ? own
                                   : sum_of_ranks(split, 0, split.num_ranks, expert, args.num_experts);
        memory.totals[expert] = total;
        if (total > 0xffffffff / args.num_experts) {
            *memory.is_large = 1;
        }
    }
#pragma unroll 1
    for (uint32_t rank = threadIdx.x; rank < split.num_ranks; rank += blockDim.x) {
        memory.rank_loads[rank] = 0;
    }
#pragma unroll 1
    for (uint32_t g = threadIdx.x; g < split.num_holders; g += blockDim.x) {
        memory.quotas[g] = 0;
    }
    __syncthreads();
    const bool is_large = *memory.is_large != 0;
#pragma unroll 1
    for (uint32_t expert = threadIdx.x; expert < args.num_experts; expert += blockDim.x) {
        if (tables.count[expert] == 1 && memory.totals[expert] != 0) {
            const uint32_t slot = tables.slots[tables.start[expert]];
            uint64_t *load = &memory.rank_loads[slot / split.slots_per_rank];
            if (is_large) {
                atomicAdd(reinterpret_cast<unsigned long long *>(load),
                          static_cast<unsigned long long>(memory.totals[expert]));
            } else {
                // Adds to the low half, since 64-bit atomics in shared memory are a loop.
                atomicAdd(reinterpret_cast<unsigned *>(load), static_cast<unsigned>(memory.totals[expert]));
            }
        }
    }
#pragma unroll 1
    for (uint32_t g = threadIdx.x; g < split.num_holders; g += blockDim.x) {
        const uint32_t place = memory.holder_place[g];
        const uint64_t tokens = memory.totals[memory.experts[place]];
        memory.tokens[g] = tokens;
        memory.turns[g] = divide(tokens, memory.holder_start[place + 1] - memory.holder_start[place]).rest;
    }
    __syncthreads();
    if (is_large) {
        split_tokens<uint64_t>(memory, split);
    } else {
        split_tokens<uint32_t>(memory, split);
    }
    __syncthreads();
#pragma unroll 1
    for (uint32_t place = threadIdx.x; place < split.num_replicated; place += blockDim.x) {
        const uint32_t expert = memory.experts[place];
        uint64_t before = 0, own = memory.totals[expert];
        if (split.rank_counts != nullptr) {
            before = sum_of_ranks(split, 0, split.rank, expert, args.num_experts);
            own = rank_count(split, split.rank, expert, args.num_experts);
        }
        uint64_t served = 0;
#pragma unroll 1
        for (uint32_t g = memory.holder_start[place]; g < memory.holder_start[place + 1]; g++) {
            const uint64_t quota = memory.quotas[g];
            const uint32_t size = memory.holder_size[g];
#pragma unroll 1
            for (uint32_t replica = 0; replica < size; replica++) {
                const uint64_t end =
                    served + (size == 1 ? quota : divide(quota * (replica + 1) + size - 1, size).whole);
                const uint64_t mine = end <= before ? 0 : end - before;
                ends[memory.holder_first[g] + replica] = static_cast<uint32_t>(mine < own ? mine : own);
            }
            served += quota;
        }
    }
    __syncthreads();
}

/// Whether this block is the last to call. Then the writes of all others before their calls are visible.
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

/// Counts the block's ids, [first, end) of the valid ones. `block` has the first of them. Begins and ends
/// with a barrier.
template <class Layout>
__device__ void count_block(const eplb_route_arguments &args, uint32_t *counts, block_ids<Layout> block,
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

template <class Layout> __device__ void least_loaded(const eplb_route_arguments &args) {
    const eplb_split_arguments &split = args.split;
    const uint32_t all = args.num_tokens * args.experts_per_token;
    const uint32_t first = blockIdx.x * split.ids_per_block;
    const uint32_t end = all - first < split.ids_per_block ? all : first + split.ids_per_block;
    // All loads are requested at once, since a small batch takes no longer than its loads.
    block_ids<Layout> block;
    block.load(args, first, all);
    const uint32_t valid_ids = num_valid_ids(args);
    route_tables tables;
    tables.find<2>(args);
    uint32_t *const row = split.block_counts + blockIdx.x * args.num_experts;
    // The block's counts, later how many ids of each expert are before the next.
    uint32_t *counts = row, *ends = split.ends;
    if (split.shared_counts_at != EPLB_NO_ROOM) {
        counts = eplb_bins + split.shared_counts_at;
        if (split.phase == 1) {
            stage<1>(counts + (args.num_experts + 3) / 4 * 4, ends, args.num_slots);
        }
        if (split.phase == 1 || (split.phase == 0 && gridDim.x == 1)) {
            ends = counts + (args.num_experts + 3) / 4 * 4;
        }
    }
    if (split.phase != 1) {
        if (split.phase == 0) {
            count_block(args, counts, block, first, end < valid_ids ? end : valid_ids);
        }
        if (!Layout::is_plain || gridDim.x > 1 || split.phase == 2) {
#pragma unroll 1
            for (uint32_t bin = threadIdx.x; split.phase == 0 && counts != row && bin < args.num_experts;
                 bin += blockDim.x) {
                row[bin] = counts[bin];
            }
            if constexpr (Layout::is_plain) {
                if (split.phase == 2 || is_last_block(split.blocks_done)) {
                    compute_ends(args, tables, nullptr, ends);
                }
            }
            return;
        }
        if constexpr (Layout::is_plain) {
            compute_ends(args, tables, counts, ends);
        }
    }
    route_counter counter;
    counter.begin(args, valid_ids);
    if (split.phase == 0 || counts != row) {
#pragma unroll 1
        for (uint32_t bin = threadIdx.x; bin < args.num_experts; bin += blockDim.x) {
            counts[bin] = split.phase == 0 ? 0 : row[bin];
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

// Blocks of threads, each of ids_per_block ids. With more than one block, the launch of phase 0 is followed
// by the same with phase 1. The general kernel does either phase, and computes no quotas, which would make
// the image a third larger: in between, one block of another kernel does, by phase 2.
EPLB_ROUTE_ENTRIES(least_loaded, EPLB_ROUTE_THREADS)

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

/// Divides by at most 2^20, the largest size of a placement. Beyond 32 bits it takes 12 bits at a time, since
/// a division of 64 bits would be a call, and spill.
__device__ inline uint64_t divide(uint64_t value, uint32_t by) {
    if (value >> 32 == 0) {
        return static_cast<uint32_t>(value) / by;
    }
    uint64_t whole = 0;
    uint32_t rest = 0;
#pragma unroll 1
    for (int shift = 60; shift >= 0; shift -= 12) {
        const uint32_t part = rest << 12 | (static_cast<uint32_t>(value >> shift) & 0xfff);
        whole = whole << 12 | part / by;
        rest = part % by;
    }
    return whole;
}

/// Finds the tokens of all experts. `counts` are this block's where it is the only one, otherwise NULL. A
/// thread waits for several loads at once.
__device__ inline void find_totals(const eplb_route_arguments &args, const split_memory &memory,
                                   const uint32_t *counts) {
    const eplb_split_arguments &split = args.split;
#pragma unroll 1
    for (uint32_t first = 0; first < args.num_experts; first += blockDim.x) {
        const uint32_t expert = first + threadIdx.x;
        uint64_t total = 0;
        if (expert < args.num_experts) {
            total = counts != nullptr ? counts[expert] : add_up_blocks(args, expert);
            if (split.rank_counts != nullptr) {
                total = 0;
#pragma unroll 4
                for (uint32_t rank = 0; rank < split.num_ranks; rank++) {
                    const uint64_t count = rank_count(split, rank, expert, args.num_experts);
                    if (rank == split.rank) {
                        memory.before[expert] = total;
                        memory.own[expert] = static_cast<uint32_t>(count);
                    }
                    total += count;
                }
            }
            memory.totals[expert] = total;
        }
        // 64-bit atomics in shared memory are a loop, so a warp makes one.
        uint64_t sum = total;
        if (split.rank_counts == nullptr) {
            sum = __reduce_add_sync(all_lanes, static_cast<uint32_t>(total));
        } else {
#pragma unroll
            for (int distance = 16; distance > 0; distance /= 2) {
                sum += __shfl_xor_sync(all_lanes, sum, distance);
            }
        }
        const uint32_t products = __reduce_add_sync(all_lanes, expert * static_cast<uint32_t>(total));
        if (threadIdx.x % 32 == 0 && sum != 0) {
            atomicAdd(memory.products, products);
            atomicAdd(reinterpret_cast<unsigned long long *>(memory.sum),
                      static_cast<unsigned long long>(sum));
        }
    }
}

/// Writes the end of each replica of a holder among this rank's tokens.
__device__ inline void write_ends(const eplb_route_arguments &args, const split_memory &memory,
                                  uint32_t holder, uint32_t *ends) {
    const uint32_t place = memory.holder_place[holder], expert = memory.experts[place];
    uint32_t units = 0;
#pragma unroll 4
    for (uint32_t earlier = memory.holder_start[place]; earlier < holder; earlier++) {
        units += static_cast<uint32_t>(memory.units[earlier]);
    }
    const bool is_own = args.split.rank_counts == nullptr;
    const bool is_last = holder + 1 == memory.holder_start[place + 1];
    const uint64_t total = memory.totals[expert], served = uint64_t(units) << memory.down;
    // The last one has the rest, which is less than a unit, as well.
    const uint64_t quota =
        is_last ? total - served : uint64_t(static_cast<uint32_t>(memory.units[holder])) << memory.down;
    const uint64_t before = is_own ? 0 : memory.before[expert], own = is_own ? total : memory.own[expert];
    const uint32_t size = memory.holder_size[holder];
#pragma unroll 1
    for (uint32_t replica = 0; replica < size; replica++) {
        const uint64_t end = served + (size == 1 ? quota : divide(quota * (replica + 1) + size - 1, size));
        const uint64_t mine = end <= before ? 0 : end - before;
        ends[memory.holder_first[holder] + replica] = static_cast<uint32_t>(mine < own ? mine : own);
    }
}

/// Computes quotas, and from them the end of each replica's tokens among this rank's. `counts` are this
/// block's where it is the only one, otherwise NULL. One block of threads calls.
__device__ inline void compute_ends(const eplb_route_arguments &args, const route_tables &tables,
                                    const uint32_t *counts, uint32_t *ends) {
    const eplb_split_arguments &split = args.split;
    const bool are_staged = args.table_words > split.edges_at && args.shared_tables_at != EPLB_NO_ROOM;
    // The tables in shared memory are complete after this barrier.
    __syncthreads();
    split_memory memory(args, are_staged ? tables.count : args.tables);
    memory.clear();
    __syncthreads();
    find_totals(args, memory, counts);
    __syncthreads();
    memory.find_units();
#pragma unroll 1
    for (uint32_t expert = threadIdx.x; expert < args.num_experts; expert += blockDim.x) {
        if (tables.count[expert] == 1 && memory.totals[expert] != 0) {
            const uint32_t slot = tables.slots[tables.start[expert]];
            memory.add_to_rank(slot / split.slots_per_rank, memory.units_of(memory.totals[expert]));
        }
    }
    split_evenly(memory);
    __syncthreads();
    if (threadIdx.x < 32) {
        sweep_edges(args, memory, are_staged);
    }
    __syncthreads();
#pragma unroll 1
    for (uint32_t holder = threadIdx.x; holder < memory.num_holders; holder += blockDim.x) {
        write_ends(args, memory, holder, ends);
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

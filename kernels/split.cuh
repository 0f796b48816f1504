// Splits the tokens of experts with several slots over the ranks that hold them, for EPLB_ROUTE_LEAST_LOADED.
//
// By its definition, the rule splits the tokens of one expert after another, which took one warp 90 µs.
// Experts that share no rank do not see each other's tokens. So the host sorts experts into steps, and all of
// a step are split at once. Up to 32 ranks are the lanes of a warp, which keep the loads in registers. With
// more ranks, each holder of a step is a thread's, and the loads are in shared memory.
#pragma once

#include <cstdint>

#include "route_arguments.cuh"
#include "water_filling.cuh"

namespace eplb {

/// The tables and the working memory of a split, in shared memory where it fits. A holder is a rank that
/// holds an expert, with its replicas there. Holders are ordered by step, then by expert, then by rank.
struct split_memory {
    /// Tokens of each rank, of each holder, of each holder's rank without the holder's, of each holder's
    /// expert, and of each expert.
    uint64_t *rank_loads, *quotas, *loads, *tokens, *totals;
    /// Of each holder, which of its expert's holders gets the first token left: tokens mod their number.
    uint32_t *turns;
    /// Of each sweep, whether it changed a quota. Whether the tokens may be 2^32 or more.
    uint32_t *changed, *is_large;
    const uint32_t *holder_rank, *holder_place, *holder_first, *holder_size, *experts, *holder_start,
        *step_start;
    /// For up to EPLB_SPLIT_LANES ranks: of each holder the ranks of its expert's holders, a bit each, and
    /// the holder on each rank in each step, [num_steps][num_ranks].
    const uint32_t *holder_ranks, *rank_holders;

    /// `words` has all tables: those of the rule after those of every rule.
    __device__ split_memory(const eplb_route_arguments &args, const uint32_t *words) {
        const eplb_split_arguments &split = args.split;
        const bool is_shared = split.shared_memory_at != EPLB_NO_ROOM;
        rank_loads =
            is_shared ? reinterpret_cast<uint64_t *>(eplb_bins + split.shared_memory_at) : split.memory;
        quotas = rank_loads + split.num_ranks;
        loads = quotas + split.num_holders;
        tokens = loads + split.num_holders;
        totals = tokens + split.num_holders;
        turns = reinterpret_cast<uint32_t *>(totals + args.num_experts);
        changed = turns + split.num_holders;
        is_large = changed + EPLB_SPLIT_SWEEPS;
        holder_rank = words + split.holder_rank_at;
        holder_place = words + split.holder_place_at;
        holder_first = words + split.holder_first_at;
        holder_size = words + split.holder_size_at;
        experts = words + split.experts_at;
        holder_start = words + split.holder_start_at;
        step_start = words + split.step_start_at;
        holder_ranks = words + split.holder_ranks_at;
        rank_holders = words + split.rank_holders_at;
    }
};

/// The holder whose quota a thread computes in a step, if any.
struct thread_split {
    uint32_t thread, holder, end, rank, first, count, place;
    uint64_t tokens, quota;
    bool has_holder;

    __device__ thread_split(const split_memory &memory, uint32_t step, uint32_t thread) : thread(thread) {
        holder = memory.step_start[step] + thread;
        end = memory.step_start[step + 1];
        has_holder = holder < end;
        if (has_holder) {
            rank = memory.holder_rank[holder];
            place = memory.holder_place[holder];
            first = memory.holder_start[place];
            count = memory.holder_start[place + 1] - first;
            tokens = memory.tokens[holder];
            quota = memory.quotas[holder];
        }
    }

    /// Computes the quota, after the previous quotas of the expert were subtracted from the loads. Returns
    /// whether it changed. T can represent all tokens.
    template <class T> __device__ bool compute_quota(const split_memory &memory) const {
        const uint64_t *loads = memory.loads + first;
        const uint32_t at = holder - first;
        const T all = static_cast<T>(tokens);
        const uint64_t filled =
            count == 1   ? all
            : count == 2 ? fill_two(all, static_cast<T>(loads[at]), static_cast<T>(loads[1 - at]), at)
                         : fill(all, loads, count, at, memory.turns[holder]);
        memory.quotas[holder] = filled;
        memory.rank_loads[rank] = loads[at] + filled;
        return filled != quota;
    }
};

/// Splits all experts' tokens until no quota changes, by all threads of the block. T can represent all
/// tokens.
template <class T>
__device__ void split_by_block(const split_memory &memory, const eplb_split_arguments &split) {
    const uint32_t width = blockDim.x;
#pragma unroll 1
    for (uint32_t sweep = 0; sweep < EPLB_SPLIT_SWEEPS && split.num_steps > 0; sweep++) {
        bool changed = false;
        // All but the loads of the next step is looked up before this step is done.
        thread_split next(memory, 0, threadIdx.x);
#pragma unroll 1
        for (uint32_t step = 0; step < split.num_steps; step++) {
            thread_split mine = next;
#pragma unroll 1
            for (thread_split taking = mine; taking.has_holder;
                 taking = thread_split(memory, step, taking.thread + width)) {
                memory.loads[taking.holder] = memory.rank_loads[taking.rank] - taking.quota;
                if (taking.holder + width >= taking.end) {
                    break;
                }
            }
            next = thread_split(memory, step + 1 < split.num_steps ? step + 1 : step, threadIdx.x);
            __syncthreads();
#pragma unroll 1
            while (mine.has_holder) {
                changed |= mine.compute_quota<T>(memory);
                if (mine.holder + width >= mine.end) {
                    break;
                }
                mine = thread_split(memory, step, mine.thread + width);
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

/// The holder whose quota a lane computes in a step: its rank's, if any. The warp constructs it together,
/// ahead of the step, since nothing in it depends on the loads.
template <class T> struct lane_split {
    uint32_t holder;
    /// The ranks that hold the expert, a bit each.
    uint32_t ranks = 0;
    T tokens = 0, quota = 0;
    /// How many holders the expert has on lower ranks, and which holder gets the first token left.
    uint32_t place, turn = 0;
    /// The ranks whose holders are before that one among their expert's.
    uint32_t before_turn;
    /// Whether all experts of the step have two holders.
    bool are_pairs;

    __device__ lane_split(const split_memory &memory, uint32_t holder, uint32_t lane) : holder(holder) {
        if (holder != EPLB_NO_HOLDER) {
            ranks = memory.holder_ranks[holder];
            tokens = static_cast<T>(memory.tokens[holder]);
            quota = static_cast<T>(memory.quotas[holder]);
            turn = memory.turns[holder];
        }
        place = static_cast<uint32_t>(__popc(ranks & ((1u << lane) - 1)));
        before_turn = __ballot_sync(0xffffffff, ranks != 0 && place < turn);
        are_pairs = __ballot_sync(0xffffffff, ranks != 0 && __popc(ranks) != 2) == 0;
    }

    /// The quota. `load` is that of the lane's rank without it. All lanes of the warp call.
    __device__ T compute_quota(T load, uint32_t lane) const {
        const uint32_t others = ranks & ~(1u << lane);
        if (are_pairs) {
            const T other =
                __shfl_sync(0xffffffff, load, others != 0 ? __ffs(static_cast<int>(others)) - 1 : 0);
            return ranks != 0 ? fill_two(tokens, load, other, place) : 0;
        }
        // A load above the height of all takes no part. Without it the height falls, and more loads may be
        // above it.
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
        // The holders before this one in turn: from the one whose turn it is up, and then from the first.
        const uint32_t below = (1u << lane) - 1;
        const uint32_t first = reached & ~before_turn, last = reached & before_turn & below;
        const uint32_t earlier = place >= turn ? first & below : first | last;
        return height.whole - load + (static_cast<uint32_t>(__popc(earlier)) < height.rest ? 1 : 0);
    }
};

/// Splits by one warp, whose lanes are the ranks.
template <class T>
__device__ void split_by_lanes(const split_memory &memory, const eplb_split_arguments &split) {
    const uint32_t lane = threadIdx.x;
    T load = lane < split.num_ranks ? static_cast<T>(memory.rank_loads[lane]) : 0;
    const auto holder_in = [&](uint32_t step) {
        return lane < split.num_ranks && step < split.num_steps
                   ? memory.rank_holders[step * split.num_ranks + lane]
                   : EPLB_NO_HOLDER;
    };
#pragma unroll 1
    for (uint32_t sweep = 0; sweep < EPLB_SPLIT_SWEEPS; sweep++) {
        bool changed = false;
        // Looked up ahead: the next step's holder, and the index of the one after it.
        lane_split<T> next(memory, holder_in(0), lane);
        uint32_t after = holder_in(1);
#pragma unroll 1
        for (uint32_t step = 0; step < split.num_steps; step++) {
            const lane_split<T> mine = next;
            next = lane_split<T>(memory, after, lane);
            after = holder_in(step + 2);
            load -= mine.quota;
            const T filled = mine.compute_quota(load, lane);
            load += filled;
            changed |= filled != mine.quota;
            if (mine.holder != EPLB_NO_HOLDER) {
                memory.quotas[mine.holder] = filled;
            }
        }
        if (__ballot_sync(0xffffffff, changed) == 0) {
            return;
        }
    }
}

/// Splits by one warp or by the block. All threads of the block call.
template <class T>
__device__ void split_tokens(const split_memory &memory, const eplb_split_arguments &split) {
    if (split.num_ranks > EPLB_SPLIT_LANES) {
        split_by_block<T>(memory, split);
    } else if (threadIdx.x < 32) {
        split_by_lanes<T>(memory, split);
    }
}

} // namespace eplb

// Splits the tokens of experts on several ranks over these ranks, for EPLB_ROUTE_LEAST_LOADED: sweeps over all
// experts at once, rounding, and rounds of repair. docs/routing.md defines each step.
//
// An expert on two ranks is a thread's, one on more a warp's. Threads take pairs from the block's end, so that
// most warps have either kind. All numbers are whole, so the order of atomics does not matter.
#pragma once

#include <cstdint>

#include "route_arguments.cuh"

namespace eplb {

/// The tables and the working memory of a split, in shared memory where it fits. A holder is a rank that
/// holds an expert, with its replicas there. Experts on three ranks or more come first, then those on two,
/// then those on one.
struct split_memory {
    /// Tokens of each expert, those of the ranks before this one, and of all experts.
    uint64_t *totals, *before, *sum;
    /// This rank's tokens of each expert.
    uint32_t *own;
    /// Tokens of each rank: of experts on one rank, and of all, three times.
    int32_t *base, *loads;
    /// Of each rank the largest key of a proposal. Of each round, whether there are proposals.
    uint32_t *largest, *proposed;
    /// Tokens of each holder, and what the last sweep changed. Later an expert's proposal: its key, the holder
    /// that gives and the one that takes.
    int32_t *tokens, *changes;
    uint32_t num_ranks, num_wide, num_split, num_replicated;
    const uint32_t *holder_rank, *holder_first, *holder_size, *experts, *holder_start, *reciprocals;
    const int32_t *steps, *momentum;
    /// How tokens become fixed-point numbers: find_scale().
    uint32_t up = 0, down = 0;

    /// `words` has all tables: those of the rule after those of every rule.
    __device__ split_memory(const eplb_route_arguments &args, const uint32_t *words) {
        const eplb_split_arguments &split = args.split;
        const bool is_shared = split.shared_memory_at != EPLB_NO_ROOM;
        totals = is_shared ? reinterpret_cast<uint64_t *>(eplb_bins + split.shared_memory_at) : split.memory;
        before = totals + args.num_experts;
        sum = before + args.num_experts;
        own = reinterpret_cast<uint32_t *>(sum + 1);
        base = reinterpret_cast<int32_t *>(own + args.num_experts);
        loads = base + split.num_ranks;
        largest = reinterpret_cast<uint32_t *>(loads + 3 * split.num_ranks);
        proposed = largest + split.num_ranks;
        tokens = reinterpret_cast<int32_t *>(proposed + EPLB_SPLIT_ROUNDS);
        changes = tokens + split.num_holders;
        num_ranks = split.num_ranks;
        const uint32_t *sizes = words + split.sizes_at;
        num_wide = sizes[0];
        num_split = sizes[1];
        num_replicated = sizes[2];
        steps = reinterpret_cast<const int32_t *>(sizes + 3);
        momentum = steps + EPLB_SPLIT_SWEEPS;
        holder_rank = words + split.holder_rank_at;
        holder_first = words + split.holder_first_at;
        holder_size = words + split.holder_size_at;
        experts = words + split.experts_at;
        holder_start = words + split.holder_start_at;
        reciprocals = words + split.reciprocals_at;
    }

    /// The words that are 0 before a split: from `base` on.
    __device__ void clear() const {
        if (threadIdx.x == 0) {
            *sum = 0;
        }
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < 5 * num_ranks + EPLB_SPLIT_ROUNDS; i += blockDim.x) {
            base[i] = 0;
        }
    }

    /// Fixed-point numbers have as many bits as leave all tokens EPLB_SPLIT_BITS.
    __device__ void find_scale() {
        const uint64_t all = *sum;
        uint32_t bits = 0;
        if (all >> 32 != 0) {
            bits = 64 - static_cast<uint32_t>(__clz(static_cast<int>(all >> 32)));
        } else {
            bits = 32 - static_cast<uint32_t>(__clz(static_cast<int>(all)));
        }
        up = bits < EPLB_SPLIT_BITS ? EPLB_SPLIT_BITS - bits : 0;
        down = bits > EPLB_SPLIT_BITS ? bits - EPLB_SPLIT_BITS : 0;
    }

    __device__ int32_t fixed(uint64_t all) const { return static_cast<int32_t>(all << up >> down); }

    __device__ int32_t *loads_of(uint32_t sweep) const { return loads + sweep % 3 * num_ranks; }

    /// Adds the tokens of an expert on one rank to what never moves.
    __device__ void add_to_rank(uint32_t rank, uint64_t all) const {
        const int32_t more = fixed(all);
        add(&base[rank], more);
        add(&loads_of(0)[rank], more);
        add(&loads_of(1)[rank], more);
    }

    __device__ static void add(int32_t *cell, int32_t more) {
        atomicAdd(reinterpret_cast<unsigned *>(cell), static_cast<unsigned>(more));
    }

    /// Calls `one` with each expert on two ranks, as a thread, and `all` with each on more, as a warp: its
    /// place and its first holder. `all` is also called with the number of holders.
    template <class Pair, class Wide> __device__ void each(Pair one, Wide all) const {
#pragma unroll 1
        for (uint32_t i = num_wide + blockDim.x - 1 - threadIdx.x; i < num_split; i += blockDim.x) {
            one(i, holder_start[i]);
        }
#pragma unroll 1
        for (uint32_t i = threadIdx.x / 32; i < num_wide; i += blockDim.x / 32) {
            all(i, holder_start[i], holder_start[i + 1] - holder_start[i]);
        }
    }
};

constexpr uint32_t all_lanes = 0xffffffff;

/// The sum of the values of the lanes up to this one.
__device__ inline int32_t sum_through_lane(int32_t value) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
        const int32_t earlier = __shfl_up_sync(all_lanes, value, distance);
        value += lane >= distance ? earlier : 0;
    }
    return value;
}

__device__ inline int32_t sum_of_lanes(int32_t value) {
    return static_cast<int32_t>(__reduce_add_sync(all_lanes, static_cast<unsigned>(value)));
}

/// The same share of an expert's tokens for each of its holders, and the rest for the last.
__device__ inline void split_evenly(const split_memory &memory) {
    int32_t *loads = memory.loads_of(0);
    const auto set = [&](uint32_t holder, int32_t tokens) {
        memory.tokens[holder] = tokens;
        memory.changes[holder] = 0;
        split_memory::add(&loads[memory.holder_rank[holder]], tokens);
    };
    memory.each(
        [&](uint32_t place, uint32_t first) {
            const int32_t tokens = memory.fixed(memory.totals[memory.experts[place]]);
            set(first, tokens / 2);
            set(first + 1, tokens - tokens / 2);
        },
        [&](uint32_t place, uint32_t first, uint32_t count) {
            const int32_t tokens = memory.fixed(memory.totals[memory.experts[place]]);
            const uint32_t share = static_cast<uint32_t>(tokens) / count;
#pragma unroll 1
            for (uint32_t x = threadIdx.x % 32; x < count; x += 32) {
                const uint32_t others = share * (count - 1);
                set(first + x, static_cast<int32_t>(x + 1 < count ? share : uint32_t(tokens) - others));
            }
        });
}

/// Moves the tokens of all experts at once.
__device__ inline void sweep_once(const split_memory &memory, uint32_t sweep) {
    const int32_t *loads = memory.loads_of(sweep);
    int32_t *next = memory.loads_of(sweep + 1);
    const int64_t step = memory.steps[sweep], momentum = memory.momentum[sweep];
    const auto moved = [&](int32_t apart, int32_t change) {
        return static_cast<int32_t>(step * apart >> EPLB_SPLIT_FRACTION) +
               static_cast<int32_t>(momentum * change >> EPLB_SPLIT_FRACTION);
    };
    memory.each(
        [&](uint32_t, uint32_t first) {
            const uint32_t rank = memory.holder_rank[first], other = memory.holder_rank[first + 1];
            const int32_t load = loads[rank], mean = (load >> 1) + (loads[other] >> 1);
            const int32_t before = memory.tokens[first], all = before + memory.tokens[first + 1];
            int32_t tokens = before + moved(mean - load, memory.changes[first]);
            tokens = tokens > all ? all : tokens;
            tokens = tokens < 0 ? 0 : tokens;
            memory.tokens[first] = tokens;
            memory.tokens[first + 1] = all - tokens;
            memory.changes[first] = tokens - before;
            split_memory::add(&next[rank], tokens);
            split_memory::add(&next[other], all - tokens);
        },
        [&](uint32_t place, uint32_t first, uint32_t count) {
            const uint32_t lane = threadIdx.x % 32;
            const uint32_t reciprocal = memory.reciprocals[place];
            const int32_t all = memory.fixed(memory.totals[memory.experts[place]]);
            if (all == 0) {
                return;
            }
            int32_t mean = 0;
#pragma unroll 1
            for (uint32_t x = first + lane; x < first + count; x += 32) {
                const uint32_t load = static_cast<uint32_t>(loads[memory.holder_rank[x]]);
                mean += static_cast<int32_t>(__umulhi(load, reciprocal));
            }
            mean = sum_of_lanes(mean);
            int32_t excess = 0, positive = 0;
#pragma unroll 1
            for (uint32_t x = first + lane; x < first + count; x += 32) {
                const int32_t before = memory.tokens[x];
                int32_t tokens = before + moved(mean - loads[memory.holder_rank[x]], memory.changes[x]);
                tokens = tokens < 0 ? 0 : tokens;
                memory.tokens[x] = tokens;
                memory.changes[x] = before;
                excess += tokens;
                positive += tokens > 0 ? 1 : 0;
            }
            excess = sum_of_lanes(excess) - all;
            if (excess > 0) {
                const uint32_t cut =
                    static_cast<uint32_t>(excess) / static_cast<uint32_t>(sum_of_lanes(positive));
                excess = 0;
#pragma unroll 1
                for (uint32_t x = first + lane; x < first + count; x += 32) {
                    const int32_t tokens = memory.tokens[x] - static_cast<int32_t>(cut);
                    memory.tokens[x] = tokens < 0 ? 0 : tokens;
                    excess += tokens < 0 ? 0 : tokens;
                }
                excess = sum_of_lanes(excess) - all;
            }
            // What is left is taken from the last holders, most of the time from one.
#pragma unroll 1
            for (uint32_t begin = (count - 1) / 32 * 32 + 32; begin > 0; begin -= 32) {
                const uint32_t at = begin - 32 + lane, x = first + at;
                int32_t tokens = at < count ? memory.tokens[x] : 0;
                bool is_last = at == count - 1;
#pragma unroll 1
                while (excess != 0) {
                    const uint32_t can = __ballot_sync(all_lanes, excess < 0 ? is_last : tokens > 0);
                    if (can == 0) {
                        break;
                    }
                    const int giver = 31 - __clz(static_cast<int>(can));
                    const int32_t has = __shfl_sync(all_lanes, tokens, giver);
                    const int32_t cut = excess < has ? excess : has;
                    tokens -= static_cast<int>(lane) == giver ? cut : 0;
                    excess -= cut;
                }
                if (at < count) {
                    memory.changes[x] = tokens - memory.changes[x];
                    memory.tokens[x] = tokens;
                    split_memory::add(&next[memory.holder_rank[x]], tokens);
                }
            }
        });
}

/// Rounds to whole tokens, or to fixed-point numbers where these are coarser. `loads` are those of the experts
/// on one rank.
__device__ inline void round_tokens(const split_memory &memory, int32_t *loads) {
    const uint32_t up = memory.up;
    const int32_t half = (1 << up) >> 1, below = (1 << up) - 1 - half;
    memory.each(
        [&](uint32_t, uint32_t first) {
            const int32_t tokens = memory.tokens[first];
            const int32_t all = (tokens + memory.tokens[first + 1]) >> up;
            const int32_t rounded = (tokens + (all % 2 == 0 ? half : below)) >> up;
            memory.tokens[first] = rounded;
            memory.tokens[first + 1] = all - rounded;
            split_memory::add(&loads[memory.holder_rank[first]], rounded);
            split_memory::add(&loads[memory.holder_rank[first + 1]], all - rounded);
        },
        [&](uint32_t place, uint32_t first, uint32_t count) {
            const uint32_t lane = threadIdx.x % 32;
            const int32_t all = memory.fixed(memory.totals[memory.experts[place]]);
            const uint32_t turn = static_cast<uint32_t>(all >> up) % count;
            int32_t sum = 0;
#pragma unroll 1
            for (uint32_t begin = 0; begin < count; begin += 32) {
                const uint32_t at = begin + lane, x = first + (turn + at < count ? turn + at : turn + at - count);
                const int32_t tokens = at < count ? memory.tokens[x] : 0;
                const int32_t through = sum + sum_through_lane(tokens);
                if (at < count) {
                    const int32_t rounded =
                        ((through + half) >> up) - ((through - tokens + half) >> up);
                    memory.tokens[x] = rounded;
                    split_memory::add(&loads[memory.holder_rank[x]], rounded);
                }
                sum = __shfl_sync(all_lanes, through, 31);
            }
        });
}

/// Proposes to move tokens of an expert from one of its holders to another. They are numbered from `first`.
__device__ inline void propose(const split_memory &memory, const int32_t *loads, uint32_t round, int32_t most,
                               uint32_t place, uint32_t first, uint32_t from, uint32_t to) {
    const uint32_t giver = memory.holder_rank[first + from], taker = memory.holder_rank[first + to];
    const int32_t load = loads[giver], apart = load - loads[taker];
    if (apart < 2 && (apart < 1 || load <= most)) {
        return;
    }
    const uint32_t factor = 2654435769u * (2 * round - 1);
    const uint32_t key = round << 28 | static_cast<uint32_t>(apart < 255 ? apart : 255) << 20 |
                         (memory.experts[place] * factor & 0xfffff);
    memory.changes[first] = static_cast<int32_t>(key);
    memory.changes[first + 1] = static_cast<int32_t>(from);
    if (place < memory.num_wide) {
        memory.changes[first + 2] = static_cast<int32_t>(to);
    }
    atomicMax(&memory.largest[giver], key);
    atomicMax(&memory.largest[taker], key);
    memory.proposed[round - 1] = 1;
}

/// Each expert proposes to move tokens from its highest rank, of those where it has some, to its lowest.
__device__ inline void propose_all(const split_memory &memory, const int32_t *loads, uint32_t round,
                                   int32_t most) {
    memory.each(
        [&](uint32_t place, uint32_t first) {
            memory.changes[first] = 0;
            const int32_t apart = loads[memory.holder_rank[first]] - loads[memory.holder_rank[first + 1]];
            const uint32_t from = apart < 0 ? 1 : 0;
            if (memory.tokens[first + from] > 0) {
                propose(memory, loads, round, most, place, first, from, 1 - from);
            }
        },
        [&](uint32_t place, uint32_t first, uint32_t count) {
            const uint32_t lane = threadIdx.x % 32;
            // Loads are one higher, so that 0 stands for no holder.
            uint32_t highest = 0, from = 0, lowest = 0xffffffff, to = 0;
#pragma unroll 1
            for (uint32_t x = lane; x < count; x += 32) {
                const uint32_t load = static_cast<uint32_t>(loads[memory.holder_rank[first + x]]) + 1;
                if (load > highest && memory.tokens[first + x] > 0) {
                    highest = load;
                    from = x;
                }
                if (load < lowest) {
                    lowest = load;
                    to = x;
                }
            }
            const uint32_t top = __reduce_max_sync(all_lanes, highest);
            const uint32_t bottom = __reduce_min_sync(all_lanes, lowest);
            from = __reduce_min_sync(all_lanes, highest == top ? from : all_lanes);
            to = __reduce_min_sync(all_lanes, lowest == bottom ? to : all_lanes);
            if (lane == 0) {
                memory.changes[first] = 0;
                if (top > bottom) {
                    propose(memory, loads, round, most, place, first, from, to);
                }
            }
        });
}

/// Moves the tokens of the proposals whose keys are the largest of both ranks.
__device__ inline void move_proposed(const split_memory &memory, int32_t *loads) {
#pragma unroll 1
    for (uint32_t place = threadIdx.x; place < memory.num_split; place += blockDim.x) {
        const uint32_t first = memory.holder_start[place];
        const uint32_t key = static_cast<uint32_t>(memory.changes[first]);
        if (key == 0) {
            continue;
        }
        const uint32_t from = static_cast<uint32_t>(memory.changes[first + 1]);
        const uint32_t to = place < memory.num_wide ? static_cast<uint32_t>(memory.changes[first + 2]) : 1 - from;
        const uint32_t giver = memory.holder_rank[first + from], taker = memory.holder_rank[first + to];
        if (memory.largest[giver] == key && memory.largest[taker] == key) {
            const int32_t half = (loads[giver] - loads[taker]) / 2, has = memory.tokens[first + from];
            const int32_t some = half > 1 ? half : 1, amount = some < has ? some : has;
            memory.tokens[first + from] -= amount;
            memory.tokens[first + to] += amount;
            loads[giver] -= amount;
            loads[taker] += amount;
        }
    }
}

/// Splits the tokens. Before, the loads of experts on one rank were added. Begins and ends with a barrier.
__device__ inline void split_tokens(const split_memory &memory, bool is_own) {
    const bool is_small = is_own && *memory.sum < EPLB_SPLIT_SMALL;
    const uint32_t sweeps = is_small ? EPLB_SPLIT_SMALL_SWEEPS : is_own ? EPLB_SPLIT_OWN_SWEEPS : EPLB_SPLIT_SWEEPS;
    const uint32_t rounds = is_small ? EPLB_SPLIT_SMALL_ROUNDS : EPLB_SPLIT_ROUNDS;
    __syncthreads();
#pragma unroll 1
    for (uint32_t sweep = 0; sweep < sweeps; sweep++) {
        sweep_once(memory, sweep);
        // The loads after the next, to which it adds. Those after the last are of whole tokens.
        const uint32_t up = sweep + 1 == sweeps ? memory.up : 0;
#pragma unroll 1
        for (uint32_t rank = threadIdx.x; rank < memory.num_ranks; rank += blockDim.x) {
            memory.loads_of(sweep + 2)[rank] = memory.base[rank] >> up;
        }
        __syncthreads();
    }
    int32_t *loads = memory.loads_of(sweeps + 1);
    round_tokens(memory, loads);
    const uint64_t units = *memory.sum >> memory.down;
    const int32_t most = static_cast<int32_t>((static_cast<uint32_t>(units) + memory.num_ranks - 1) / memory.num_ranks);
    __syncthreads();
#pragma unroll 1
    for (uint32_t round = 1; round <= rounds; round++) {
        propose_all(memory, loads, round, most);
        __syncthreads();
        if (memory.proposed[round - 1] == 0) {
            break;
        }
        move_proposed(memory, loads);
        __syncthreads();
    }
}

} // namespace eplb

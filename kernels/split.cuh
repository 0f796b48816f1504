// Splits the tokens of experts on several ranks over these ranks, for EPLB_ROUTE_LEAST_LOADED: evenly, then
// by sweeps over the edges. docs/routing.md defines each step.
#pragma once

#include <cstdint>

#include "route_arguments.cuh"

namespace eplb {

constexpr uint32_t all_lanes = 0xffffffff;

/// The tables and the working memory of a split, in shared memory where it fits. A holder is a rank that
/// holds an expert with several slots, with its replicas there.
struct split_memory {
    /// Tokens of each expert, those of the ranks before this one, and of all experts.
    uint64_t *totals, *before, *sum;
    /// The sum of each expert times its tokens.
    uint32_t *products;
    /// This rank's tokens of each expert.
    uint32_t *own;
    /// Units of each rank and of each holder. A unit is 2^down tokens.
    int32_t *loads, *units;
    uint32_t num_ranks, num_holders, num_rows, sweeps;
    /// Of each edge its expert's units on both ranks and the loads of these, in bytes from `loads` on, which
    /// `units` follow. The edges of a row, at most 32, share no rank.
    const uint4 *edges;
    const uint32_t *row_start;
    /// Of each holder its rank, its first replica, its number of replicas and its expert's place.
    const uint32_t *holder_rank, *holder_first, *holder_size, *holder_place;
    /// Of each place its expert and its first holder.
    const uint32_t *experts, *holder_start;
    uint32_t down = 0;

    __device__ static uint32_t words_before_loads(uint32_t num_experts) { return 5 * num_experts + 4; }

    /// `words` has all tables: those of the rule after those of every rule.
    __device__ split_memory(const eplb_route_arguments &args, const uint32_t *words) {
        const eplb_split_arguments &split = args.split;
        const bool is_shared = split.shared_memory_at != EPLB_NO_ROOM;
        totals = is_shared ? reinterpret_cast<uint64_t *>(eplb_bins + split.shared_memory_at) : split.memory;
        before = totals + args.num_experts;
        sum = before + args.num_experts;
        products = reinterpret_cast<uint32_t *>(sum + 1);
        own = products + 2;
        loads = reinterpret_cast<int32_t *>(own + args.num_experts);
        num_ranks = split.num_ranks;
        units = loads + num_ranks;
        edges = reinterpret_cast<const uint4 *>(words + split.edges_at);
        row_start = words + split.row_start_at;
        holder_rank = words + split.holder_rank_at;
        holder_first = words + split.holder_first_at;
        holder_size = words + split.holder_size_at;
        holder_place = words + split.holder_place_at;
        experts = words + split.experts_at;
        holder_start = words + split.holder_start_at;
        const uint32_t *sizes = words + split.sizes_at;
        num_holders = sizes[0];
        num_rows = sizes[1];
        sweeps = sizes[2];
    }

    /// Clears what tokens are added to.
    __device__ void clear() const {
        if (threadIdx.x == 0) {
            *sum = 0;
            *products = 0;
        }
#pragma unroll 1
        for (uint32_t rank = threadIdx.x; rank < num_ranks; rank += blockDim.x) {
            loads[rank] = 0;
        }
    }

    /// Finds units that leave all tokens EPLB_SPLIT_BITS.
    __device__ void find_units() {
        const uint32_t above = static_cast<uint32_t>(*sum >> EPLB_SPLIT_BITS);
        down = 32 - static_cast<uint32_t>(__clz(static_cast<int>(above)));
    }

    /// Adds units to a rank.
    __device__ void add_to_rank(uint32_t rank, uint32_t more) const {
        atomicAdd(reinterpret_cast<unsigned *>(&loads[rank]), more);
    }

    /// Which holders get the odd units. It differs from batch to batch.
    __device__ uint32_t mix() const { return *products * 2654435769u >> 16; }

    __device__ uint32_t units_of(uint64_t tokens) const { return static_cast<uint32_t>(tokens >> down); }
};

/// Gives all holders of an expert as many units, or some one more.
__device__ inline void split_evenly(const split_memory &memory) {
    const uint32_t mix = memory.mix();
#pragma unroll 1
    for (uint32_t holder = threadIdx.x; holder < memory.num_holders; holder += blockDim.x) {
        const uint32_t place = memory.holder_place[holder];
        const uint32_t first = memory.holder_start[place], count = memory.holder_start[place + 1] - first;
        const uint32_t units = memory.units_of(memory.totals[memory.experts[place]]);
        const uint32_t each = units / count, x = holder - first, from = mix % count;
        // Counted from the holder that gets the first odd unit.
        const uint32_t number = x < from ? x + count - from : x - from;
        const uint32_t mine = each + (number < units - each * count ? 1 : 0);
        memory.units[holder] = static_cast<int32_t>(mine);
        memory.add_to_rank(memory.holder_rank[holder], mine);
    }
}

/// Evens out the loads of an edge's ranks, as far as its expert has tokens there. `cells` are the loads of
/// all ranks and the units of all holders.
__device__ inline void even_out(int32_t *cells, const uint4 &edge, uint32_t turn) {
    const auto cell = [=](uint32_t at) -> int32_t & {
        return *reinterpret_cast<int32_t *>(reinterpret_cast<char *>(cells) + at);
    };
    int32_t &cell_of_one = cell(edge.x), &cell_of_other = cell(edge.y);
    int32_t &cell_of_load = cell(edge.z), &cell_of_other_load = cell(edge.w);
    const int32_t one = cell_of_one, other = cell_of_other, load = cell_of_load,
                  other_load = cell_of_other_load;
    const int32_t apart = load - other_load;
    // Half of an odd difference is rounded up or down, from edge to edge and from sweep to sweep.
    const int32_t half = (apart >> 1) + (apart & (one ^ other ^ static_cast<int32_t>(turn)) & 1);
    const int32_t most = half < one ? half : one;
    const int32_t moved = most > -other ? most : -other;
    cell_of_one = one - moved;
    cell_of_other = other + moved;
    cell_of_load = load - moved;
    cell_of_other_load = other_load + moved;
}

/// Sweeps over the edges, row by row. A lane has an edge of a row, or none. One warp calls. Where a row ends
/// is requested two rows ahead, and a lane's edge one row ahead.
__device__ inline void sweep_rows(const uint4 *edges, const uint32_t *row_start, uint32_t num_rows,
                                  int32_t *cells, uint32_t turn, uint32_t sweeps) {
    uint32_t at = threadIdx.x, end = row_start[1];
    uint32_t ahead = num_rows > 1 ? 1 : 0, ahead_end = row_start[ahead + 1];
    uint4 edge = {};
    if (at < end) {
        edge = edges[at];
    }
    const uint32_t last = turn + sweeps;
#pragma unroll 2
    while (turn != last) {
        const uint4 now = edge;
        const bool has_edge = at < end;
        const uint32_t of_now = turn;
        at = threadIdx.x + (ahead == 0 ? 0 : end);
        turn += ahead == 0 ? 1 : 0;
        end = ahead_end;
        ahead = ahead + 1 < num_rows ? ahead + 1 : 0;
        ahead_end = row_start[ahead + 1];
        if (at < end) {
            edge = edges[at];
        }
        if (has_edge) {
            even_out(cells, now, of_now);
        }
        __syncwarp();
    }
}

/// Sweeps over the edges. One warp calls. `are_staged` tells that all tables are in shared memory.
__device__ inline void sweep_edges(const eplb_route_arguments &args, const split_memory &memory,
                                   bool are_staged) {
    const eplb_split_arguments &split = args.split;
    const uint32_t sweeps = split.rank_counts == nullptr ? memory.sweeps : 2 * memory.sweeps;
    if (memory.num_rows == 0) {
        return;
    }
    if (are_staged && split.shared_memory_at != EPLB_NO_ROOM) {
        // Pointers that are known to be to shared memory take less time.
        const uint32_t *words = eplb_bins + args.shared_tables_at;
        sweep_rows(reinterpret_cast<const uint4 *>(words + split.edges_at), words + split.row_start_at,
                   memory.num_rows,
                   reinterpret_cast<int32_t *>(eplb_bins + split.shared_memory_at) +
                       split_memory::words_before_loads(args.num_experts),
                   memory.mix(), sweeps);
    } else {
        sweep_rows(memory.edges, memory.row_start, memory.num_rows, memory.loads, memory.mix(), sweeps);
    }
}

} // namespace eplb

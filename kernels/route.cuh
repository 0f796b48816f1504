// Routing: which slot serves each (token, choice) pair. docs/routing.md defines the rules, and each has a
// file here. This file has what they share.
//
// Plain CUDA C++ without the runtime's headers, as count.cuh.
#pragma once

#include <cstdint>

#include "route_arguments.cuh"

namespace eplb {

/// Ids and slots of one type, without gaps between rows or shared experts.
template <class T> struct plain_layout {
    using id = T;
    static constexpr bool is_plain = true;

    __device__ static id load(const eplb_route_arguments &args, uint32_t index) {
        return static_cast<const id *>(args.expert_ids)[index];
    }
    __device__ static void store(const eplb_route_arguments &args, uint32_t index, int32_t slot) {
        static_cast<id *>(args.slot_ids)[index] = static_cast<id>(slot);
    }
    /// The slot of an id of a valid token that names no expert.
    __device__ static int32_t slot_without_expert(const eplb_route_arguments &args, id) {
        return args.invalid_slot;
    }
    /// Its bin when it is counted, of EPLB_OTHER_BINS.
    __device__ static uint32_t other_bin(const eplb_route_arguments &, id id) { return id == T(-1); }
};

/// Ids and slots of any type and stride, with shared experts.
struct general_layout {
    using id = int32_t;
    static constexpr bool is_plain = false;

    __device__ static id load(const eplb_route_arguments &args, uint32_t index) {
        return load_id(args.expert_ids, args.layout.ids_are_64_bits,
                       place_of(index, args.experts_per_token, args.layout.ids_stride));
    }
    __device__ static void store(const eplb_route_arguments &args, uint32_t index, int32_t slot) {
        const uint64_t at = place_of(index, args.experts_per_token, args.layout.slots_stride);
        if (args.layout.slots_are_64_bits != 0) {
            static_cast<int64_t *>(args.slot_ids)[at] = slot;
        } else {
            static_cast<int32_t *>(args.slot_ids)[at] = slot;
        }
    }
    __device__ static int32_t slot_without_expert(const eplb_route_arguments &args, id id) {
        const uint32_t shared = static_cast<uint32_t>(id) - args.num_experts;
        return shared < args.layout.num_shared ? args.layout.shared_slots[shared] : args.invalid_slot;
    }
    __device__ static uint32_t other_bin(const eplb_route_arguments &args, id id) {
        return other_bin_of(id, args.num_experts, args.layout.num_shared);
    }
};

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

/// Copies words to shared memory, `count` rounded up to a multiple of 4. Both are aligned to 16 bytes. A
/// thread waits for `at_once` loads together. Valid after a barrier.
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

/// The dispatch tables, in shared memory where they fit.
struct route_tables {
    const uint32_t *count, *start, *slots, *shares;

    /// Valid after a barrier. A block of EPLB_ROUTE_THREADS threads has a thread for each vector of most
    /// tables.
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

/// Counts in the same pass. Every thread of the block calls begin(), and end() after the last add(). A
/// barrier is between begin() and the first add().
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
            for (uint32_t bin = threadIdx.x; bin < args.num_cells + EPLB_OTHER_BINS; bin += blockDim.x) {
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
        if (cell >= args.num_cells) {
            atomicAdd(other_total(args.totals, cell - args.num_cells), static_cast<unsigned long long>(more));
        } else if (args.cells_are_64_bits != 0) {
            atomicAdd(static_cast<unsigned long long *>(args.cells) + at,
                      static_cast<unsigned long long>(more));
        } else {
            atomicAdd(static_cast<unsigned *>(args.cells) + at, more);
        }
    }

    /// Counts an id of a valid token. `bin` is num_experts where it names no expert.
    template <class Layout>
    __device__ void add(const eplb_route_arguments &args, typename Layout::id id, uint32_t bin,
                        uint32_t slot) const {
        if (!on) {
            return;
        }
        const uint32_t cell = bin == args.num_experts  ? args.num_cells + Layout::other_bin(args, id)
                              : args.counts_slots != 0 ? slot
                                                       : bin;
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
        for (uint32_t bin = threadIdx.x; bin < args.num_cells + EPLB_OTHER_BINS; bin += blockDim.x) {
            if (bins(args)[bin] != 0) {
                add_to_cell(args, bin, bins(args)[bin]);
            }
        }
    }
};

/// A thread's `ids_per_thread` ids of a block, 32 apart. So each load of a warp is one line, and the ids of a
/// warp are consecutive.
template <class Layout> struct block_ids {
    using Id = typename Layout::id;
    uint32_t first;
    Id ids[ids_per_thread];
    uint32_t bins[ids_per_thread];
    /// How many ids of the same bin are before each in the block.
    uint32_t positions[ids_per_thread];

    __device__ uint32_t index(uint32_t i) const {
        return first + threadIdx.x / 32 * (32 * ids_per_thread) + i * 32 + threadIdx.x % 32;
    }

    /// Loads the ids from `start` on.
    __device__ void load(const eplb_route_arguments &args, uint32_t start, uint32_t end) {
        first = start;
#pragma unroll
        for (uint32_t i = 0; i < ids_per_thread; i++) {
            ids[i] = index(i) < end ? Layout::load(args, index(i)) : Id(-1);
        }
    }

    /// Finds the bins. Ids at or after `valid_ids` get the bin of those out of range.
    __device__ void find_bins(const eplb_route_arguments &args, uint32_t valid_ids) {
#pragma unroll
        for (uint32_t i = 0; i < ids_per_thread; i++) {
            bins[i] = index(i) < valid_ids ? bin_of(ids[i], args.num_experts) : args.num_experts;
        }
    }

    /// Clears the rows of find_positions(). A barrier is between the two.
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
    /// The row of a bin has a byte for each warp, the number of its ids in the bin. Equal ids of a warp are
    /// matched, and the bytes of the warps before are added up four at a time.
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

    /// The sum of the first `count` of four bytes. Of none where `count` wrapped below 0.
    __device__ static uint32_t sum_of_bytes(uint32_t bytes, uint32_t count) {
        const uint32_t mask = count < 4 ? (1u << 8 * count) - 1 : count < route_warps ? 0xffffffff : 0;
        return __dp4a(bytes & mask, 0x01010101u, 0u);
    }

    /// For more experts than shared memory has rows for: each id is compared with all before it.
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

/// Writes the slots of a block's ids, and counts them. `pick` returns the replica of an expert with several
/// slots, from the expert, its start in the table of slots, its replica count, and the id's position.
template <class Layout, class Pick>
__device__ void write_slots(const eplb_route_arguments &args, const route_tables &tables,
                            const block_ids<Layout> &block, uint32_t end, uint32_t valid_ids,
                            const route_counter &counter, Pick pick) {
    // All slots are looked up before any is written, since the compiler must assume that the tables alias the
    // slots.
    uint32_t slots[ids_per_thread];
#pragma unroll
    for (uint32_t i = 0; i < ids_per_thread; i++) {
        const uint32_t bin = block.bins[i];
        slots[i] = static_cast<uint32_t>(args.invalid_slot);
        if (bin < args.num_experts) {
            const uint32_t start = tables.start[bin], count = tables.count[bin];
            const uint32_t replica = count == 1 ? 0 : pick(bin, start, count, block.positions[i]);
            slots[i] = tables.slots[start + replica];
        } else if (!Layout::is_plain && block.index(i) < valid_ids) {
            slots[i] = static_cast<uint32_t>(Layout::slot_without_expert(args, block.ids[i]));
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < ids_per_thread; i++) {
        const uint32_t index = block.index(i);
        if (index < end) {
            Layout::store(args, index, static_cast<int32_t>(slots[i]));
        }
        if (index < valid_ids) {
            counter.add<Layout>(args, block.ids[i], block.bins[i], slots[i]);
        }
    }
}

/// Routes one block of ids by one block of threads, by a rule that depends on an id's position. `rule`
/// returns the `pick` of write_slots() for the tables and the block's turn.
template <class Layout, class Rule> __device__ void route_block(const eplb_route_arguments &args, Rule rule) {
    const uint32_t all = args.num_tokens * args.experts_per_token;
    // All loads are requested at once, since a small batch takes no longer than its loads.
    block_ids<Layout> block;
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

} // namespace eplb

// Each rule has an entry for each layout.
#define EPLB_ROUTE_ENTRY(name, rule, Layout, threads)                                                        \
    extern "C" __global__ void __launch_bounds__(threads, 1) name(const eplb_route_arguments args) {         \
        eplb::rule<eplb::Layout>(args);                                                                      \
    }
#define EPLB_ROUTE_ENTRIES(rule, threads)                                                                    \
    EPLB_ROUTE_ENTRY(eplb_route_##rule##_i32, rule, plain_layout<int32_t>, threads)                          \
    EPLB_ROUTE_ENTRY(eplb_route_##rule##_i64, rule, plain_layout<int64_t>, threads)                          \
    EPLB_ROUTE_ENTRY(eplb_route_##rule##_general, rule, general_layout, threads)

// Counting: how many (token, choice) pairs chose each expert.
//
// Plain CUDA C++ without the runtime's headers, so that g++ compiles it too. cpp_tests/emulation runs these
// kernels with one fiber a thread, and cpp_tests/fake_cuda launches them behind a driver.
#pragma once

#include <cstdint>

/// The value of the window's row word while nothing is counted.
constexpr uint32_t EPLB_COUNT_OFF = 0xffffffff;

/// Threads of a block.
constexpr uint32_t EPLB_COUNT_THREADS = 512;

/// Bins of ids without a cell, behind those of the cells: ids out of range, of -1, and of shared experts.
constexpr uint32_t EPLB_OTHER_BINS = 3;

/// The numbers of a layer's ids, by kind.
struct eplb_count_totals {
    /// Ids of valid tokens, of any kind.
    unsigned long long ids;
    /// Ids of valid tokens outside [0, num_experts), without those of -1.
    unsigned long long out_of_range;
    /// Ids of the tokens after the valid ones.
    unsigned long long padding;
    /// Ids of -1 of valid tokens.
    unsigned long long none;
    /// Ids of shared experts of valid tokens.
    unsigned long long shared;
};

/// One launch. src/stats/recorder/count.rs has the same struct.
struct eplb_count_arguments {
    /// [num_tokens][experts_per_token], aligned as its type.
    const void *expert_ids;
    /// The number of valid tokens, clamped to [0, num_tokens]. NULL: all.
    const int32_t *num_valid;
    /// The row of the window to count into, or EPLB_COUNT_OFF.
    const uint32_t *row;
    /// This layer's cells in row 0, [num_experts].
    void *cells;
    /// Cells from one row to the next.
    uint64_t row_stride;
    /// This layer's totals.
    eplb_count_totals *totals;
    uint32_t num_tokens;
    uint32_t experts_per_token;
    uint32_t num_experts;
    /// Not 0: the launch has shared memory for EPLB_OTHER_BINS bins more than num_experts.
    uint32_t has_bins;
    /// The rest is for eplb_count_general. Ids from one row to the next.
    uint32_t ids_stride;
    uint32_t ids_are_64_bits;
    uint32_t cells_are_64_bits;
    /// The ids from num_experts on that name shared experts, which are not counted.
    uint32_t num_shared;
};

static_assert(sizeof(eplb_count_arguments) == 80 && sizeof(eplb_count_totals) == 40,
              "see src/stats/recorder/count.rs");

/// The launch's dynamic shared memory.
extern __shared__ uint32_t eplb_bins[];

namespace eplb {

template <class Id> struct id_traits;
template <> struct id_traits<int32_t> {
    using vector = int4;
    using bits = uint32_t;
};
template <> struct id_traits<int64_t> {
    using vector = longlong2;
    using bits = uint64_t;
};

template <class Use> __device__ void each_of(int4 ids, Use use) {
    use(ids.x);
    use(ids.y);
    use(ids.z);
    use(ids.w);
}
template <class Use> __device__ void each_of(longlong2 ids, Use use) {
    use(ids.x);
    use(ids.y);
}

/// Calls `use` with each of `count` ids, once over all threads of the grid. A load has 16 bytes, except
/// before the first and after the last multiple of 16.
template <class Id, class Use> __device__ void each_id(const Id *ids, uint64_t count, Use use) {
    using vector = typename id_traits<Id>::vector;
    constexpr uint64_t width = sizeof(vector) / sizeof(Id);
    const uint64_t thread = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const uint64_t threads = uint64_t(gridDim.x) * blockDim.x;

    uint64_t head = (0 - reinterpret_cast<uintptr_t>(ids)) % sizeof(vector) / sizeof(Id);
    head = head < count ? head : count;
    const uint64_t vectors = (count - head) / width;
    const uint64_t tail = head + vectors * width;
    const vector *body = reinterpret_cast<const vector *>(ids + head);

    if (thread < head) {
        use(ids[thread]);
    }
    // A launch has about as many threads as there is work, here and below, so unrolled loops would only be
    // longer.
#pragma unroll 1
    for (uint64_t i = thread; i < vectors; i += threads) {
        each_of(body[i], use);
    }
    if (thread < count - tail) {
        use(ids[tail + thread]);
    }
}

/// The bin of an id. Ids out of range share the bin after the experts.
template <class Id> __device__ uint32_t bin_of(Id id, uint32_t num_experts) {
    using bits = typename id_traits<Id>::bits;
    return static_cast<bits>(id) < num_experts ? static_cast<uint32_t>(id) : num_experts;
}

/// How many of a thread's ids are -1. The pass before it does not tell them from those out of range, so that
/// a batch without either pays nothing.
template <class Id> __device__ uint32_t count_none(const eplb_count_arguments &args, uint64_t num_ids) {
    uint32_t none = 0;
    each_id(static_cast<const Id *>(args.expert_ids), num_ids, [&](Id id) { none += id == Id(-1); });
    return none;
}

/// Adds a block's ids without an expert to the totals. All threads of the block call. The bin after that of
/// these ids is 0.
template <class Id>
__device__ void add_others(const eplb_count_arguments &args, uint64_t num_ids, uint32_t others) {
    uint32_t *const none = &eplb_bins[args.num_experts + 1];
    const uint32_t mine = count_none<Id>(args, num_ids);
    if (mine != 0) {
        atomicAdd(none, mine);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        atomicAdd(&args.totals->out_of_range, static_cast<unsigned long long>(others - *none));
        atomicAdd(&args.totals->none, static_cast<unsigned long long>(*none));
    }
}

/// Counts in bins in shared memory, with one global atomic a bin and block for any number of ids. The caller
/// has cleared the bins, without a barrier.
template <class Id, class Cell>
__device__ void count_in_bins(const eplb_count_arguments &args, uint64_t num_ids, Cell *cells) {
    __syncthreads();
    each_id(static_cast<const Id *>(args.expert_ids), num_ids,
            [&](Id id) { atomicAdd(&eplb_bins[bin_of(id, args.num_experts)], 1u); });
    __syncthreads();
#pragma unroll 1
    for (uint32_t bin = threadIdx.x; bin < args.num_experts; bin += blockDim.x) {
        if (eplb_bins[bin] != 0) {
            atomicAdd(&cells[bin], static_cast<Cell>(eplb_bins[bin]));
        }
    }
    if (eplb_bins[args.num_experts] != 0) {
        add_others<Id>(args, num_ids, eplb_bins[args.num_experts]);
    }
}

/// For more experts than shared memory has bins for: few ids are equal, so each adds to its cell.
template <class Id, class Cell>
__device__ void count_in_cells(const eplb_count_arguments &args, uint64_t num_ids, Cell *cells) {
    uint32_t others = 0;
    each_id(static_cast<const Id *>(args.expert_ids), num_ids, [&](Id id) {
        const uint32_t bin = bin_of(id, args.num_experts);
        if (bin < args.num_experts) {
            atomicAdd(&cells[bin], Cell(1));
        } else {
            others++;
        }
    });
    if (others != 0) {
        const uint32_t none = count_none<Id>(args, num_ids);
        atomicAdd(&args.totals->out_of_range, static_cast<unsigned long long>(others - none));
        atomicAdd(&args.totals->none, static_cast<unsigned long long>(none));
    }
}

/// What a launch counts.
struct count_launch {
    uint32_t row;
    /// Ids of valid tokens.
    uint64_t num_ids;

    /// Clears the bins, and adds to the totals what needs no id. Returns whether anything is counted.
    __device__ bool begin(const eplb_count_arguments &args) {
        // Both words are requested at once, and the bins are cleared meanwhile. A small batch takes no longer
        // than its loads.
        const int32_t *const num_valid =
            args.num_valid != nullptr ? args.num_valid : reinterpret_cast<const int32_t *>(args.row);
        row = *args.row;
        const int32_t valid = *num_valid;
        if (args.has_bins != 0) {
#pragma unroll 1
            for (uint32_t bin = threadIdx.x; bin < args.num_experts + EPLB_OTHER_BINS; bin += blockDim.x) {
                eplb_bins[bin] = 0;
            }
        }
        if (row == EPLB_COUNT_OFF) {
            return false;
        }
        const uint32_t known = valid < 0 ? 0 : static_cast<uint32_t>(valid);
        const uint32_t tokens =
            args.num_valid != nullptr && known < args.num_tokens ? known : args.num_tokens;
        num_ids = uint64_t(tokens) * args.experts_per_token;
        if (blockIdx.x == 0 && threadIdx.x == 0) {
            const uint64_t padding = uint64_t(args.num_tokens - tokens) * args.experts_per_token;
            atomicAdd(&args.totals->ids, static_cast<unsigned long long>(num_ids));
            atomicAdd(&args.totals->padding, static_cast<unsigned long long>(padding));
        }
        return true;
    }
};

template <class Id, class Cell> __device__ void count(const eplb_count_arguments &args) {
    count_launch launch;
    if (!launch.begin(args)) {
        return;
    }
    Cell *cells = static_cast<Cell *>(args.cells) + launch.row * args.row_stride;
    if (args.has_bins != 0) {
        count_in_bins<Id>(args, launch.num_ids, cells);
    } else {
        count_in_cells<Id>(args, launch.num_ids, cells);
    }
}

/// Where the id at an index of `[rows][columns]` is, with `stride` ids from one row to the next.
__device__ inline uint64_t place_of(uint64_t index, uint32_t columns, uint32_t stride) {
    const uint64_t row = index <= 0xffffffff ? static_cast<uint32_t>(index) / columns : index / columns;
    return row * stride + (index - row * columns);
}

/// An id of either type. One that needs 64 bits is out of range, and so is what it becomes.
__device__ inline int32_t load_id(const void *ids, uint32_t are_64_bits, uint64_t at) {
    if (are_64_bits == 0) {
        return static_cast<const int32_t *>(ids)[at];
    }
    const int64_t id = static_cast<const int64_t *>(ids)[at];
    const int32_t narrow = static_cast<int32_t>(id);
    return narrow == id ? narrow : INT32_MIN;
}

/// The bin of an id without an expert, of EPLB_OTHER_BINS.
__device__ inline uint32_t other_bin_of(int32_t id, uint32_t num_experts, uint32_t num_shared) {
    return id == -1 ? 1 : static_cast<uint32_t>(id) - num_experts < num_shared ? 2 : 0;
}

/// The total of a bin of EPLB_OTHER_BINS.
__device__ inline unsigned long long *other_total(eplb_count_totals *totals, uint32_t bin) {
    return bin == 0 ? &totals->out_of_range : bin == 1 ? &totals->none : &totals->shared;
}

/// Adds to the cell of an expert, or to the total of one of the bins behind.
__device__ inline void add_to_cell(const eplb_count_arguments &args, uint64_t first, uint32_t bin,
                                   uint32_t more) {
    if (bin >= args.num_experts) {
        atomicAdd(other_total(args.totals, bin - args.num_experts), static_cast<unsigned long long>(more));
    } else if (args.cells_are_64_bits != 0) {
        atomicAdd(static_cast<unsigned long long *>(args.cells) + first + bin,
                  static_cast<unsigned long long>(more));
    } else {
        atomicAdd(static_cast<unsigned *>(args.cells) + first + bin, more);
    }
}

/// Counts ids of any stride and type, and with shared experts.
__device__ inline void count_general(const eplb_count_arguments &args) {
    count_launch launch;
    if (!launch.begin(args)) {
        return;
    }
    const uint64_t first = launch.row * args.row_stride;
    __syncthreads();
#pragma unroll 1
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < launch.num_ids;
         i += uint64_t(gridDim.x) * blockDim.x) {
        const uint64_t at = place_of(i, args.experts_per_token, args.ids_stride);
        const int32_t id = load_id(args.expert_ids, args.ids_are_64_bits, at);
        uint32_t bin = bin_of(id, args.num_experts);
        if (bin == args.num_experts) {
            bin += other_bin_of(id, args.num_experts, args.num_shared);
        }
        if (args.has_bins != 0) {
            atomicAdd(&eplb_bins[bin], 1u);
        } else {
            add_to_cell(args, first, bin, 1);
        }
    }
    if (args.has_bins == 0) {
        return;
    }
    __syncthreads();
#pragma unroll 1
    for (uint32_t bin = threadIdx.x; bin < args.num_experts + EPLB_OTHER_BINS; bin += blockDim.x) {
        if (eplb_bins[bin] != 0) {
            add_to_cell(args, first, bin, eplb_bins[bin]);
        }
    }
}

} // namespace eplb

// One entry for each type of ids and of cells: blocks of EPLB_COUNT_THREADS threads, any number of them.
#define EPLB_COUNT_ENTRY(name, Id, Cell)                                                                     \
    extern "C" __global__ void __launch_bounds__(EPLB_COUNT_THREADS) name(const eplb_count_arguments args) { \
        eplb::count<Id, Cell>(args);                                                                         \
    }
EPLB_COUNT_ENTRY(eplb_count_i32_u32, int32_t, unsigned)
EPLB_COUNT_ENTRY(eplb_count_i64_u32, int64_t, unsigned)
EPLB_COUNT_ENTRY(eplb_count_i32_u64, int32_t, unsigned long long)
EPLB_COUNT_ENTRY(eplb_count_i64_u64, int64_t, unsigned long long)
#undef EPLB_COUNT_ENTRY

// For any type of ids and of cells.
extern "C" __global__ void __launch_bounds__(EPLB_COUNT_THREADS)
    eplb_count_general(const eplb_count_arguments args) {
    eplb::count_general(args);
}

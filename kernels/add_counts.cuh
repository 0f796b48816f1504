// Adding counts of the engine's own kernels to the window of counts.
#pragma once

#include "count.cuh"

/// One launch. src/stats/recorder/added.rs has the same struct.
struct eplb_add_counts_arguments {
    /// [num_counts], int32 or int64, aligned as its type.
    const void *counts;
    /// The counters' last values, [num_counts], none of them negative. NULL: the counts are differences.
    int64_t *last;
    /// The row of the window to count into, or EPLB_COUNT_OFF.
    const uint32_t *row;
    /// The cells that the counts add to in row 0, [num_counts].
    void *cells;
    /// Cells from one row to the next.
    uint64_t row_stride;
    /// This layer's totals.
    eplb_count_totals *totals;
    uint32_t num_counts;
    /// Not 0: counts have 64 bits.
    uint32_t has_wide_counts;
    /// Not 0: cells have 64 bits.
    uint32_t has_wide_cells;
    uint32_t reserved;
};

static_assert(sizeof(eplb_add_counts_arguments) == 64, "see src/stats/recorder/added.rs");

namespace eplb {

/// What a counter counted since its last value, which it becomes. A counter below its last value was
/// restarted. A negative counter is not taken, and returned.
__device__ inline int64_t since_last(int64_t counter, int64_t *last) {
    if (counter < 0) {
        return counter;
    }
    const int64_t before = *last;
    *last = counter;
    return counter < before ? counter : counter - before;
}

/// The sum over a warp, on its first lane.
__device__ inline unsigned long long sum_of_warp(unsigned long long value) {
    for (unsigned delta = 16; delta != 0; delta /= 2) {
        value += __shfl_down_sync(0xffffffff, value, delta);
    }
    return value;
}

__device__ inline void add_counts(const eplb_add_counts_arguments &args) {
    const uint32_t row = *args.row;
    if (row == EPLB_COUNT_OFF && args.last == nullptr) {
        return;
    }
    unsigned long long ids = 0, negative = 0;
#pragma unroll 1
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < args.num_counts;
         i += gridDim.x * blockDim.x) {
        int64_t more;
        if (args.has_wide_counts != 0) {
            more = static_cast<const int64_t *>(args.counts)[i];
        } else if (args.last != nullptr) {
            more = static_cast<const uint32_t *>(args.counts)[i];
        } else {
            more = static_cast<const int32_t *>(args.counts)[i];
        }
        if (args.last != nullptr) {
            more = since_last(more, args.last + i);
        }
        if (row == EPLB_COUNT_OFF || more == 0) {
            continue;
        }
        if (more < 0) {
            negative++;
            continue;
        }
        ids += static_cast<unsigned long long>(more);
        // Other streams may count into the same cells. An overflow wraps, and the totals reveal it.
        const uint64_t cell = row * args.row_stride + i;
        if (args.has_wide_cells != 0) {
            atomicAdd(static_cast<unsigned long long *>(args.cells) + cell,
                      static_cast<unsigned long long>(more));
        } else {
            atomicAdd(static_cast<unsigned *>(args.cells) + cell, static_cast<unsigned>(more));
        }
    }
    ids = sum_of_warp(ids + negative);
    negative = sum_of_warp(negative);
    if (threadIdx.x % 32 == 0 && ids != 0) {
        atomicAdd(&args.totals->ids, ids);
        if (negative != 0) {
            atomicAdd(&args.totals->out_of_range, negative);
        }
    }
}

} // namespace eplb

// Blocks of EPLB_COUNT_THREADS threads, any number of them.
extern "C" __global__ void __launch_bounds__(EPLB_COUNT_THREADS)
    eplb_add_counts(const eplb_add_counts_arguments args) {
    eplb::add_counts(args);
}

// Reading and clearing the counts of a rolling recorder.
#pragma once

#include <cstdint>

/// Threads of a block.
constexpr uint32_t EPLB_SNAPSHOT_THREADS = 256;

/// One launch. src/stats/recorder/ring.rs has the same struct.
struct eplb_snapshot_arguments {
    /// [ring_rows + 1][num_cells]. The last row adds up iterations that the ring holds no more.
    unsigned long long *cells;
    /// Receives the counts, [num_samples][num_cells]. NULL: row `first` is added to the last one instead.
    int64_t *counts;
    /// Cells of a row: those of all layers.
    uint64_t num_cells;
    uint32_t ring_rows;
    /// The oldest of the rows in use, and their number.
    uint32_t first, num_rows;
    uint32_t num_samples;
};

static_assert(sizeof(eplb_snapshot_arguments) == 40, "see src/stats/recorder/ring.rs");

namespace eplb {

/// Returns a cell and clears it.
__device__ inline unsigned long long take(unsigned long long *cell) {
    const unsigned long long count = *cell;
    if (count != 0) {
        *cell = 0;
    }
    return count;
}

/// A thread takes a cell of each row. Streams order it after all counting, so it needs no atomics.
__device__ inline void snapshot(const eplb_snapshot_arguments &args) {
    const uint32_t groups = args.num_samples < args.num_rows ? args.num_samples : args.num_rows;
#pragma unroll 1
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < args.num_cells;
         i += uint64_t(gridDim.x) * blockDim.x) {
        unsigned long long *const last = args.cells + args.ring_rows * args.num_cells + i;
        if (args.counts == nullptr) {
            *last += take(args.cells + args.first * args.num_cells + i);
            continue;
        }
        uint64_t row = 0;
#pragma unroll 1
        for (uint32_t sample = 0; sample < args.num_samples; sample++) {
            unsigned long long sum = sample == 0 ? take(last) : 0;
            const uint64_t end = sample < groups ? (sample + 1ull) * args.num_rows / groups : row;
#pragma unroll 1
            for (; row < end; row++) {
                sum += take(args.cells + (args.first + row) % args.ring_rows * args.num_cells + i);
            }
            args.counts[sample * args.num_cells + i] = static_cast<int64_t>(sum);
        }
    }
}

} // namespace eplb

// Blocks of EPLB_SNAPSHOT_THREADS threads, any number of them.
extern "C" __global__ void __launch_bounds__(EPLB_SNAPSHOT_THREADS)
    eplb_snapshot(const eplb_snapshot_arguments args) {
    eplb::snapshot(args);
}

// Copying the tables of a layer: from page-locked memory to the shadow, and from either to the tables that
// route.
#pragma once

#include <cstdint>

/// Threads of the only block. Most tables have a few vectors for each.
constexpr uint32_t EPLB_COPY_THREADS = 1024;

/// One launch. src/dispatch/live/copy.rs has the same struct.
struct eplb_copy_arguments {
    /// Both aligned to 16 bytes.
    uint4 *to;
    const uint4 *from;
    /// Receives `number` once all is copied, in page-locked memory.
    uint32_t *done;
    uint32_t number;
    /// Length in 16 bytes.
    uint32_t num_vectors;
};

static_assert(sizeof(eplb_copy_arguments) == 32, "see src/dispatch/live/copy.rs");

namespace eplb {

/// One block copies, so that a barrier tells when all is copied: the host may then write to `from`.
__device__ inline void copy_tables(const eplb_copy_arguments &args) {
    constexpr uint32_t at_once = 4;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < args.num_vectors; i += at_once * blockDim.x) {
        uint4 taken[at_once];
#pragma unroll
        for (uint32_t j = 0; j < at_once; j++) {
            if (i + j * blockDim.x < args.num_vectors) {
                taken[j] = args.from[i + j * blockDim.x];
            }
        }
#pragma unroll
        for (uint32_t j = 0; j < at_once; j++) {
            if (i + j * blockDim.x < args.num_vectors) {
                args.to[i + j * blockDim.x] = taken[j];
            }
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence_system();
        *static_cast<volatile uint32_t *>(args.done) = args.number;
    }
}

} // namespace eplb

// One block of EPLB_COPY_THREADS threads.
extern "C" __global__ void __launch_bounds__(EPLB_COPY_THREADS)
    eplb_copy_tables(const eplb_copy_arguments args) {
    eplb::copy_tables(args);
}

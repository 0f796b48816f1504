// Copying the tables of layers: from page-locked memory to the shadow, and from either to the tables that
// route.
#pragma once

#include <cstdint>

/// Threads of a block. Most tables have a few vectors for each.
constexpr uint32_t EPLB_COPY_THREADS = 1024;

/// One launch, a block for each layer. src/dispatch/live/copy.rs has the same struct.
struct eplb_copy_arguments {
    /// The first layer's tables, both aligned to 16 bytes.
    uint4 *to;
    const uint4 *from;
    /// Receives `number` once all of the first layer is copied, in page-locked memory.
    uint32_t *done;
    uint32_t number;
    /// Length of a layer's tables in 16 bytes.
    uint32_t num_vectors;
    /// 16 bytes from a layer to the next. `done` has a layer's word in each stretch of `from`.
    uint32_t to_stride, from_stride;
};

static_assert(sizeof(eplb_copy_arguments) == 40, "see src/dispatch/live/copy.rs");

namespace eplb {

/// One block copies a layer, so that a barrier tells when all is copied: the host may then write to `from`.
__device__ inline void copy_tables(const eplb_copy_arguments &args) {
    constexpr uint32_t at_once = 4;
    uint4 *const to = args.to + uint64_t(blockIdx.x) * args.to_stride;
    const uint4 *const from = args.from + uint64_t(blockIdx.x) * args.from_stride;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < args.num_vectors; i += at_once * blockDim.x) {
        uint4 taken[at_once];
#pragma unroll
        for (uint32_t j = 0; j < at_once; j++) {
            if (i + j * blockDim.x < args.num_vectors) {
                taken[j] = from[i + j * blockDim.x];
            }
        }
#pragma unroll
        for (uint32_t j = 0; j < at_once; j++) {
            if (i + j * blockDim.x < args.num_vectors) {
                to[i + j * blockDim.x] = taken[j];
            }
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence_system();
        volatile uint32_t *const done = args.done + uint64_t(blockIdx.x) * args.from_stride * 4;
        *done = args.number;
    }
}

} // namespace eplb

// Blocks of EPLB_COPY_THREADS threads, one for each layer.
extern "C" __global__ void __launch_bounds__(EPLB_COPY_THREADS)
    eplb_copy_tables(const eplb_copy_arguments args) {
    eplb::copy_tables(args);
}

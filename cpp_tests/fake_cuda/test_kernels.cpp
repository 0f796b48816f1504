// Kernels for tests: one shows the order of launches, one fails.
#include "cuda_emulation.h"

namespace {

/// out[0] = out[0] * factor + summand: the result shows the order of the launches.
__global__ void fake_cuda_append(unsigned *out, unsigned factor, unsigned summand) {
    *out = *out * factor + summand;
}

/// Fails: not all threads reach the barrier.
__global__ void fake_cuda_fail() {
    if (threadIdx.x == 0) {
        __syncthreads();
    }
}

EMULATION_KERNEL(fake_cuda_append);
EMULATION_KERNEL(fake_cuda_fail);

} // namespace

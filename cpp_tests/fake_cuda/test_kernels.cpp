// Kernels by which tests of the driver, and of what it does to eplb, order and break things.
#include "cuda_emulation.h"

namespace {

/// out[0] = out[0] * factor + summand: what is left tells in which order such launches ran.
__global__ void fake_cuda_append(unsigned *out, unsigned factor, unsigned summand) {
    *out = *out * factor + summand;
}

/// Fails as a kernel does that leaves a barrier behind.
__global__ void fake_cuda_fail() {
    if (threadIdx.x == 0) {
        __syncthreads();
    }
}

EMULATION_KERNEL(fake_cuda_append);
EMULATION_KERNEL(fake_cuda_fail);

} // namespace

// The kernels of eplb, by name. A .cu file of its own needs a file like this one.
#include "cuda_emulation.h"

EMULATION_SHARED_MEMORY(uint32_t, eplb_bins);
#include "../../kernels/eplb.cu"

EMULATION_KERNEL(eplb_count_i32_u32);
EMULATION_KERNEL(eplb_count_i64_u32);
EMULATION_KERNEL(eplb_count_i32_u64);
EMULATION_KERNEL(eplb_count_i64_u64);

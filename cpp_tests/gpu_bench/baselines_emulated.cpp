// Registers the baselines by name, for fake_cuda.
#include "cuda_emulation.h"

EMULATION_SHARED_MEMORY(unsigned long long, torch_bins);
EMULATION_SHARED_MEMORY(int16_t, trtllm_slots);
#include "baselines.cu"

EMULATION_KERNEL(empty);
EMULATION_KERNEL(cub_init);
EMULATION_KERNEL(cub_sweep);
EMULATION_KERNEL(window_add);
EMULATION_KERNEL(torch_min_max);
EMULATION_KERNEL(torch_zero);
EMULATION_KERNEL(torch_histogram);
EMULATION_KERNEL(torch_add);
EMULATION_KERNEL(copy);
EMULATION_KERNEL(trtllm_route);

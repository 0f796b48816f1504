// How the baselines are launched.
#ifndef EPLB_GPU_BENCH_BASELINES_H
#define EPLB_GPU_BENCH_BASELINES_H

#include <cstdint>

/// Threads of a block of cub_init and of window_add.
constexpr uint32_t CUB_INIT_THREADS = 256;
/// Threads of a block of cub_sweep, ids of each, and most bins: CUB's choice for int32 on A100, H100 and
/// B200.
constexpr uint32_t CUB_SWEEP_THREADS = 384, CUB_SWEEP_ITEMS = 16, CUB_SWEEP_BINS = 256;

/// Threads of a block of torch_min_max and torch_histogram.
constexpr uint32_t TORCH_THREADS = 512;
/// Most ids of a thread of torch_min_max; more ids need another block.
constexpr uint32_t TORCH_MIN_MAX_ITEMS = 16;
/// Threads of a block of torch_zero and torch_add.
constexpr uint32_t TORCH_ELEMENTWISE_THREADS = 128;
/// Most blocks of torch_histogram for each multiprocessor.
constexpr uint32_t TORCH_BLOCKS_PER_SM = 4;

/// Threads of a block of copy, of 16 bytes each.
constexpr uint32_t COPY_THREADS = 256;

/// Threads of a block of trtllm_route, ids of each and of all, and most experts.
constexpr uint32_t TRTLLM_THREADS = 256, TRTLLM_ITEMS = 4, TRTLLM_BLOCK = TRTLLM_THREADS * TRTLLM_ITEMS,
                   TRTLLM_EXPERTS = 1024;

#endif

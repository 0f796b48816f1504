// Baselines for eplb's counting and routing: kernels written for this benchmark that do the work of CUB,
// PyTorch and TensorRT-LLM, with the same launches. They may do less than the originals, never more.
//
// Plain CUDA C++ like kernels/count.cuh, so that baselines_emulated.cpp runs it without a GPU.
#include <cstdint>

#include "baselines.h"

/// One for each expert; the launch sets the size.
extern __shared__ unsigned long long torch_bins[];
/// One for each slot; the launch sets the size.
extern __shared__ int16_t trtllm_slots[];

/// The cost of a launch alone.
extern "C" __global__ void empty() {}

// ---- cub::DeviceHistogram::HistogramEven, and its result added to the window ----

extern "C" __global__ void __launch_bounds__(CUB_INIT_THREADS)
    cub_init(unsigned *histogram, uint32_t num_bins) {
    const uint32_t bin = blockIdx.x * blockDim.x + threadIdx.x;
    if (bin < num_bins) {
        histogram[bin] = 0;
    }
}

/// Each block has bins in shared memory. Levels are even, so a division finds the bin. Adjacent equal ids are
/// added at once.
extern "C" __global__ void __launch_bounds__(CUB_SWEEP_THREADS)
    cub_sweep(const int *ids, uint32_t num_ids, unsigned *histogram, uint32_t num_bins, int lower,
              int upper) {
    static __shared__ unsigned privatised[CUB_SWEEP_BINS];
    constexpr uint32_t tile_size = CUB_SWEEP_THREADS * CUB_SWEEP_ITEMS;
    for (uint32_t bin = threadIdx.x; bin < num_bins; bin += blockDim.x) {
        privatised[bin] = 0;
    }
    __syncthreads();
    for (uint32_t tile = blockIdx.x * tile_size; tile < num_ids; tile += gridDim.x * tile_size) {
        const uint32_t first = tile + threadIdx.x * CUB_SWEEP_ITEMS;
        int items[CUB_SWEEP_ITEMS];
        if (tile + tile_size <= num_ids) {
#pragma unroll
            for (uint32_t i = 0; i < CUB_SWEEP_ITEMS; i += 4) {
                const int4 four = *reinterpret_cast<const int4 *>(ids + first + i);
                items[i] = four.x;
                items[i + 1] = four.y;
                items[i + 2] = four.z;
                items[i + 3] = four.w;
            }
        } else {
#pragma unroll
            for (uint32_t i = 0; i < CUB_SWEEP_ITEMS; i++) {
                items[i] = first + i < num_ids ? ids[first + i] : upper;
            }
        }
        int bins[CUB_SWEEP_ITEMS];
#pragma unroll
        for (uint32_t i = 0; i < CUB_SWEEP_ITEMS; i++) {
            bins[i] = items[i] >= lower && items[i] < upper
                          ? int(uint64_t(items[i] - lower) * num_bins / uint64_t(upper - lower))
                          : -1;
        }
        unsigned run = 0;
#pragma unroll
        for (uint32_t i = 0; i < CUB_SWEEP_ITEMS; i++) {
            run++;
            if (i + 1 == CUB_SWEEP_ITEMS || bins[i] != bins[i + 1]) {
                if (bins[i] >= 0) {
                    atomicAdd(&privatised[bins[i]], run);
                }
                run = 0;
            }
        }
    }
    __syncthreads();
    for (uint32_t bin = threadIdx.x; bin < num_bins; bin += blockDim.x) {
        if (privatised[bin] != 0) {
            atomicAdd(&histogram[bin], privatised[bin]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(CUB_INIT_THREADS)
    window_add(unsigned *row, const unsigned *histogram, uint32_t num_bins) {
    const uint32_t bin = blockIdx.x * blockDim.x + threadIdx.x;
    if (bin < num_bins) {
        row[bin] += histogram[bin];
    }
}

// ---- torch.bincount, and its result added to the window by add_ ----

/// Both extremes in one pass; torch.bincount makes two. Writes the maximum, and the complement of the
/// minimum, of the ids with their sign bit flipped. The number of ids is a multiple of 4. Several blocks
/// combine their results in `extremes`, which must then be zero.
extern "C" __global__ void __launch_bounds__(TORCH_THREADS)
    torch_min_max(const int *ids, uint32_t num_ids, unsigned *extremes) {
    static __shared__ unsigned of_warps[2][TORCH_THREADS / 32];
    unsigned most = 0, least = 0;
    const auto take = [&](int id) {
        const unsigned key = unsigned(id) ^ 0x80000000u;
        most = most > key ? most : key;
        least = least > ~key ? least : ~key;
    };
    const int4 *vectors = reinterpret_cast<const int4 *>(ids);
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < num_ids / 4; i += gridDim.x * blockDim.x) {
        const int4 four = vectors[i];
        take(four.x);
        take(four.y);
        take(four.z);
        take(four.w);
    }
    const auto reduce = [&](int lanes) {
        for (int lane = lanes / 2; lane > 0; lane /= 2) {
            const unsigned other_most = __shfl_xor_sync(0xffffffff, most, lane);
            const unsigned other_least = __shfl_xor_sync(0xffffffff, least, lane);
            most = most > other_most ? most : other_most;
            least = least > other_least ? least : other_least;
        }
    };
    reduce(32);
    if (threadIdx.x % 32 == 0) {
        of_warps[0][threadIdx.x / 32] = most;
        of_warps[1][threadIdx.x / 32] = least;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        most = of_warps[0][threadIdx.x % (TORCH_THREADS / 32)];
        least = of_warps[1][threadIdx.x % (TORCH_THREADS / 32)];
        reduce(TORCH_THREADS / 32);
        if (threadIdx.x == 0 && gridDim.x == 1) {
            extremes[0] = most;
            extremes[1] = least;
        } else if (threadIdx.x == 0) {
            atomicMax(&extremes[0], most);
            atomicMax(&extremes[1], least);
        }
    }
}

extern "C" __global__ void __launch_bounds__(TORCH_ELEMENTWISE_THREADS)
    torch_zero(unsigned long long *counts, uint32_t num_bins) {
    for (uint32_t bin = threadIdx.x; bin < num_bins; bin += blockDim.x) {
        counts[bin] = 0;
    }
}

/// Bins of 64 bits, like the result of torch.bincount.
extern "C" __global__ void __launch_bounds__(TORCH_THREADS)
    torch_histogram(const int *ids, uint32_t num_ids, unsigned long long *counts, uint32_t num_bins,
                    int64_t lower, int64_t upper) {
    for (uint32_t bin = threadIdx.x; bin < num_bins; bin += blockDim.x) {
        torch_bins[bin] = 0;
    }
    __syncthreads();
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < num_ids; i += gridDim.x * blockDim.x) {
        const int64_t id = ids[i];
        if (id >= lower && id <= upper) {
            const int64_t bin = (id - lower) * int64_t(num_bins) / (upper - lower);
            atomicAdd(&torch_bins[bin == num_bins ? bin - 1 : bin], 1ull);
        }
    }
    __syncthreads();
    for (uint32_t bin = threadIdx.x; bin < num_bins; bin += blockDim.x) {
        atomicAdd(&counts[bin], torch_bins[bin]);
    }
}

extern "C" __global__ void __launch_bounds__(TORCH_ELEMENTWISE_THREADS)
    torch_add(unsigned *row, const unsigned long long *counts, uint32_t num_bins) {
    for (uint32_t bin = threadIdx.x; bin < num_bins; bin += blockDim.x) {
        row[bin] += unsigned(counts[bin]);
    }
}

// ---- The cost of moving the bytes ----

/// The number of ids is a multiple of 4.
extern "C" __global__ void __launch_bounds__(COPY_THREADS)
    copy(const int4 *from, int4 *to, uint32_t num_ids) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < num_ids / 4) {
        to[i] = from[i];
    }
}

// ---- TensorRT-LLM's moeComputeRoute (cpp/tensorrt_llm/kernels/moeLoadBalance) ----

/// Its path for experts with replicas. The tables are copied to shared memory. Then one warp numbers the
/// block's ids by expert, 32 at a time in ascending order, while the others wait. It skips experts with one
/// slot. Like eplb's kernels, and unlike the original, it does not use programmatic dependent launch.
extern "C" __global__ void __launch_bounds__(TRTLLM_THREADS)
    trtllm_route(const int *ids, int *slots, uint32_t num_ids, const int *replica_count,
                 const int *replica_start, const int *replica_slots, uint32_t num_experts, uint32_t num_slots,
                 uint32_t offset) {
    /// Count in the upper half, start in the lower.
    static __shared__ uint32_t replicas[TRTLLM_EXPERTS];
    static __shared__ unsigned seen[TRTLLM_EXPERTS];
    /// The expert of each id, then its number.
    static __shared__ uint32_t numbers[TRTLLM_BLOCK];
    for (uint32_t expert = threadIdx.x; expert < num_experts; expert += TRTLLM_THREADS) {
        replicas[expert] = uint32_t(replica_count[expert]) << 16 | uint32_t(replica_start[expert]);
        seen[expert] = 0;
    }
    for (uint32_t slot = threadIdx.x; slot < num_slots; slot += TRTLLM_THREADS) {
        trtllm_slots[slot] = int16_t(replica_slots[slot]);
    }
    uint32_t experts[TRTLLM_ITEMS];
    const uint32_t first = blockIdx.x * TRTLLM_BLOCK + threadIdx.x;
#pragma unroll
    for (uint32_t i = 0; i < TRTLLM_ITEMS; i++) {
        const uint32_t at = first + i * TRTLLM_THREADS;
        const uint32_t id = at < num_ids ? uint32_t(ids[at]) : num_experts;
        experts[i] = id < num_experts ? id : num_experts;
    }
    __syncthreads();
#pragma unroll
    for (uint32_t i = 0; i < TRTLLM_ITEMS; i++) {
        const bool has_choice = experts[i] < num_experts && replicas[experts[i]] >> 16 > 1;
        numbers[threadIdx.x + i * TRTLLM_THREADS] = has_choice ? experts[i] : num_experts;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
#pragma unroll
        for (uint32_t row = 0; row < TRTLLM_BLOCK; row += 32) {
            const uint32_t expert = numbers[row + threadIdx.x];
            const unsigned same = __match_any_sync(0xffffffff, expert);
            const uint32_t leader = uint32_t(__ffs(int(same))) - 1;
            unsigned before = 0;
            if (threadIdx.x == leader && expert < num_experts) {
                before = atomicAdd(&seen[expert], unsigned(__popc(same)));
            }
            before = __shfl_sync(0xffffffff, before, int(leader));
            numbers[row + threadIdx.x] =
                before + uint32_t(__popc(same & ((1u << threadIdx.x) - 1))) + blockIdx.x + offset;
        }
    }
    __syncthreads();
#pragma unroll
    for (uint32_t i = 0; i < TRTLLM_ITEMS; i++) {
        const uint32_t at = first + i * TRTLLM_THREADS;
        uint32_t slot = num_slots;
        if (experts[i] < num_experts) {
            const uint32_t packed = replicas[experts[i]];
            const uint32_t number = numbers[threadIdx.x + i * TRTLLM_THREADS];
            slot = uint32_t(trtllm_slots[(packed & 0xffff) + number % (packed >> 16)]);
        }
        if (at < num_ids) {
            slots[at] = int(slot);
        }
    }
}

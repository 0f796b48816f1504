// A variant of the benchmark: a function that does a layer's work, its verification and its measurement.
#ifndef EPLB_GPU_BENCH_BENCH_H
#define EPLB_GPU_BENCH_BENCH_H

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine.h"

constexpr uint32_t num_experts = 256, experts_per_token = 8;

/// The amount of measurement.
struct effort {
    size_t layers;
    size_t repetitions;
    /// Seconds of work before the first measurement, so that the GPU reaches its clock rate.
    double warm_up;
};

inline const cuda_driver &driver() { return engine::get().driver(); }

/// The baselines' kernels.
class module {
  public:
    explicit module(const std::string &image) {
        engine::check(driver().cuModuleLoadData(&module_, image.c_str()), "cuModuleLoadData");
    }
    ~module() { driver().cuModuleUnload(module_); }
    module(const module &) = delete;
    module &operator=(const module &) = delete;

    CUfunction operator[](const char *name) const {
        CUfunction function = nullptr;
        engine::check(driver().cuModuleGetFunction(&function, module_, name), name);
        return function;
    }

  private:
    CUmodule module_ = nullptr;
};

/// A kernel and the shape of its launches.
struct kernel {
    CUfunction function;
    uint32_t blocks, threads, shared_bytes = 0;

    template <class... Args> void launch(CUstream stream, Args... args) const {
        void *parameters[] = {&args..., nullptr};
        engine::check(driver().cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, shared_bytes, stream,
                                              parameters, nullptr),
                      "cuLaunchKernel");
    }
};

inline uint32_t blocks_for(uint32_t work, uint32_t per_block) { return (work + per_block - 1) / per_block; }

/// Sets every 4 bytes.
template <class T> void fill(const engine_array<T> &array, uint32_t value, CUstream stream) {
    engine::check(driver().cuMemsetD32Async(reinterpret_cast<CUdeviceptr>(array.data()), value,
                                            array.size() * sizeof(T) / 4, stream),
                  "cuMemsetD32Async");
}

/// Memory that the device copies to while the host waits.
template <class T> class pinned {
  public:
    explicit pinned(size_t size) {
        void *memory = nullptr;
        engine::check(driver().cuMemHostAlloc(&memory, size * sizeof(T), 0), "cuMemHostAlloc");
        data_ = static_cast<T *>(memory);
        size_ = size;
    }
    ~pinned() { driver().cuMemFreeHost(data_); }
    pinned(const pinned &) = delete;
    pinned &operator=(const pinned &) = delete;

    const T &operator[](size_t i) const { return data_[i]; }

    void download(const engine_array<T> &from, CUstream stream) const {
        engine::check(driver().cuMemcpyDtoHAsync_v2(data_, reinterpret_cast<CUdeviceptr>(from.data()),
                                                    size_ * sizeof(T), stream),
                      "cuMemcpyDtoHAsync");
        engine::check(driver().cuStreamSynchronize(stream), "cuStreamSynchronize");
    }

  private:
    T *data_;
    size_t size_;
};

/// One way to do a layer's work.
struct variant {
    using run = std::function<void(size_t layer, CUstream stream)>;
    /// Clears the results, does the work of all layers, and throws if the results are wrong.
    using check = std::function<void(const std::function<void()> &work, const std::string &name)>;

    std::string name;
    run eager, captured;
    /// NULL if there is no result.
    check verify;
};

/// Times of a variant for one layer, medians of all repetitions.
struct timing {
    std::string name;
    double eager_us, graph_us;
    /// CPU time of the calling thread, eager.
    double host_ns;
};

/// Verifies each variant, eagerly and as a graph, then measures them in turn, so that a GPU that slows down
/// does so for all.
std::vector<timing> measure(const std::vector<variant> &variants, const effort &effort,
                            const engine_stream &stream);

/// The sections, on `num_ids` ids a layer. The other variants are compared with the first one.
std::vector<timing> measure_counting(uint32_t num_ids, const effort &effort, const module &module);
std::vector<timing> measure_routing(uint32_t num_ids, const effort &effort, const module &module);

#endif

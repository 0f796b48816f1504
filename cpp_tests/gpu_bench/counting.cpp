// Counts a layer's ids: eplb's kernel, compared with other kernels.
#include <stdexcept>
#include <utility>

#include "baselines.h"
#include "bench.h"
#include "recording.h"
#include "skewed_ids.h"

std::vector<timing> measure_counting(uint32_t num_ids, const effort &effort, const module &module) {
    const engine_stream stream;
    const skewed_ids ids(effort.layers, num_ids, stream);

    // eplb: a recorder that counts iteration 0, and one that waits for iteration 1.
    recording counting(ids, stream), off(ids, stream, 1);
    const auto eplb_count = [&](recording &recording) {
        for (size_t layer = 0; layer < effort.layers; layer++) {
            recording.recorder().register_buffer(int32_t(layer), ids.on_device(layer), ids.num_tokens(),
                                                 nullptr, stream);
        }
        return [&recorder = std::as_const(recording.recorder()), &ids](size_t layer, CUstream on) {
            recorder.count(int32_t(layer), ids.num_tokens(), on);
        };
    };
    const auto on_count = eplb_count(counting), off_count = eplb_count(off);
    const auto eplb_verify = [&](const std::function<void()> &work, const std::string &name) {
        counting.verify(work, name);
    };
    const auto off_verify = [&](const std::function<void()> &work, const std::string &name) {
        work();
        stream.synchronize();
        const eplb_recorder_info info = off.recorder().info();
        if (info.ids_counted + info.ids_out_of_range + info.ids_padding != 0) {
            throw std::runtime_error(name + " counts");
        }
    };

    // The baselines: a window of one iteration, and one histogram that all layers of a stream share.
    int multiprocessors = 0;
    engine::check(driver().cuDeviceGetAttribute(&multiprocessors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
                                                engine::get().device()),
                  "cuDeviceGetAttribute");
    const engine_array<uint32_t> window(effort.layers * num_experts), histogram(num_experts), extremes(2);
    const engine_array<unsigned long long> wide_histogram(num_experts);
    const pinned<uint32_t> extremes_on_host(2), window_on_host(window.size());
    const auto row_of = [&](size_t layer) { return window.data() + layer * num_experts; };
    const auto window_verify = [&](const std::function<void()> &work, const std::string &name) {
        fill(window, 0, stream);
        work();
        window_on_host.download(window, stream);
        for (size_t layer = 0; layer < effort.layers; layer++) {
            std::vector<double> counted(num_experts);
            for (size_t expert = 0; expert < num_experts; expert++) {
                counted[expert] = window_on_host[layer * num_experts + expert];
            }
            compare_counts(counted, ids.counts(layer), name);
        }
    };

    const uint32_t one_each = blocks_for(num_experts, CUB_INIT_THREADS);
    const kernel cub_init = {module["cub_init"], one_each, CUB_INIT_THREADS};
    const kernel cub_sweep = {module["cub_sweep"], blocks_for(num_ids, CUB_SWEEP_THREADS * CUB_SWEEP_ITEMS),
                              CUB_SWEEP_THREADS};
    const kernel window_add = {module["window_add"], one_each, CUB_INIT_THREADS};
    static_assert(num_experts <= CUB_SWEEP_BINS, "cub_sweep has too few bins");
    const auto cub = [&](size_t layer, CUstream on) {
        cub_init.launch(on, histogram.data(), num_experts);
        cub_sweep.launch(on, ids.on_device(layer), num_ids, histogram.data(), num_experts, 0,
                         int(num_experts));
        window_add.launch(on, row_of(layer), histogram.data(), num_experts);
    };

    const kernel min_max = {module["torch_min_max"], blocks_for(num_ids, TORCH_THREADS * TORCH_MIN_MAX_ITEMS),
                            TORCH_THREADS};
    const kernel torch_zero = {module["torch_zero"], 1, TORCH_ELEMENTWISE_THREADS};
    const kernel torch_histogram = {
        module["torch_histogram"],
        std::min(blocks_for(num_ids, TORCH_THREADS), uint32_t(multiprocessors) * TORCH_BLOCKS_PER_SM),
        TORCH_THREADS, num_experts * sizeof(unsigned long long)};
    const kernel torch_add = {module["torch_add"], 1, TORCH_ELEMENTWISE_THREADS};
    const auto torch_extremes = [&](size_t layer, CUstream on) {
        if (min_max.blocks != 1) {
            fill(extremes, 0, on);
        }
        min_max.launch(on, ids.on_device(layer), num_ids, extremes.data());
    };
    const auto torch_rest = [&](size_t layer, CUstream on) {
        torch_zero.launch(on, wide_histogram.data(), num_experts);
        torch_histogram.launch(on, ids.on_device(layer), num_ids, wide_histogram.data(), num_experts,
                               int64_t(0), int64_t(num_experts));
        torch_add.launch(on, row_of(layer), wide_histogram.data(), num_experts);
    };
    const auto torch_captured = [&](size_t layer, CUstream on) {
        torch_extremes(layer, on);
        torch_rest(layer, on);
    };
    const auto torch_eager = [&](size_t layer, CUstream on) {
        torch_extremes(layer, on);
        extremes_on_host.download(extremes, on);
        const uint32_t highest = extremes_on_host[0] ^ 0x80000000, lowest = ~extremes_on_host[1] ^ 0x80000000;
        if (highest >= num_experts || lowest > highest) {
            throw std::runtime_error("torch_min_max returns wrong extremes");
        }
        torch_rest(layer, on);
    };

    const kernel empty = {module["empty"], 1, 32};
    const auto launch_empty = [&](size_t, CUstream on) { empty.launch(on); };

    return measure(
        {
            {"eplb", on_count, on_count, eplb_verify},
            {"eplb, off", off_count, off_count, off_verify},
            {"cub-style", cub, cub, window_verify},
            {"torch.bincount-style", torch_eager, torch_captured, window_verify},
            {"empty kernel", launch_empty, launch_empty, nullptr},
        },
        effort, stream);
}

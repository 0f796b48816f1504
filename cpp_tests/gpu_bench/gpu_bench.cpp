// How long counting a layer takes on a GPU, beside what else could count it: baselines.cu.
//
//     gpu_bench [--quick] [--image FILE]
//
// FILE is baselines.cu compiled, baselines.ptx beside the program by default. `make gpu-bundle` makes a
// folder with both that runs wherever there is a driver.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <eplb.hpp>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "baselines.h"
#include "engine.h"
#include "files.h"

namespace {

constexpr uint32_t num_experts = 256, experts_per_token = 8;

/// The aim of eplb: microseconds for `aim_ids` ids of a layer in a graph, on an H100.
constexpr double aim = 3;
constexpr uint32_t aim_ids = 2048;

/// How much is measured.
struct effort {
    size_t layers;
    size_t repetitions;
    /// Seconds of work ahead of the first measurement, so that the GPU's clocks are up.
    double warm_up;
};

const cuda_driver &driver() { return engine::get().driver(); }

/// The loads of a router that prefers few experts: the n-th most popular of a layer gets 1/n of the first
/// one's. A token's choices differ, as those of a top-k do, and layers prefer different experts.
class skewed_ids {
  public:
    skewed_ids(size_t layers, uint32_t num_ids) : of_layers_(layers), counts_(layers) {
        std::vector<double> weights(num_experts);
        for (size_t i = 0; i < weights.size(); i++) {
            weights[i] = 1.0 / double(i + 1);
        }
        std::mt19937_64 random(1);
        std::discrete_distribution<int32_t> popular(weights.begin(), weights.end());
        std::vector<int32_t> places(num_ids);
        for (size_t i = 0; i < places.size(); i++) {
            const auto token = places.begin() + std::ptrdiff_t(i - i % experts_per_token);
            const auto here = places.begin() + std::ptrdiff_t(i);
            do {
                *here = popular(random);
            } while (std::find(token, here, *here) != here);
        }
        std::vector<int32_t> experts(num_experts);
        std::iota(experts.begin(), experts.end(), 0);
        for (size_t layer = 0; layer < layers; layer++) {
            std::shuffle(experts.begin(), experts.end(), random);
            counts_[layer].resize(num_experts);
            for (const int32_t place : places) {
                const int32_t id = experts[size_t(place)];
                of_layers_[layer].push_back(id);
                counts_[layer][size_t(id)]++;
            }
        }
    }

    const std::vector<int32_t> &operator[](size_t layer) const { return of_layers_[layer]; }
    /// What counting must come to.
    const std::vector<std::vector<double>> &counts() const { return counts_; }

  private:
    std::vector<std::vector<int32_t>> of_layers_;
    std::vector<std::vector<double>> counts_;
};

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

uint32_t blocks_for(uint32_t work, uint32_t per_block, uint32_t most) {
    return std::min((work + per_block - 1) / per_block, most);
}

template <class T> void zero(const engine_array<T> &array, CUstream stream) {
    engine::check(driver().cuMemsetD32Async(reinterpret_cast<CUdeviceptr>(array.data()), 0,
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

/// One way to count a layer.
struct variant {
    using count = std::function<void(size_t layer, CUstream stream)>;

    std::string name;
    count eager, captured;
    /// Empties the counts, runs the work and compares what it counted; NULL where nothing is counted.
    std::function<void(const std::function<void()> &work, const std::string &name)> verify;

    // Filled in by measure().
    std::vector<double> eager_us = {}, graph_us = {}, host_ns = {};
};

void compare(const std::vector<double> &counted, const std::vector<double> &expected,
             const std::string &name) {
    if (counted != expected) {
        const auto at = std::mismatch(counted.begin(), counted.end(), expected.begin(), expected.end());
        throw std::runtime_error(name + " counts wrong, first expert " +
                                 std::to_string(at.first - counted.begin()));
    }
}

double median(std::vector<double> values) {
    const auto middle = values.begin() + std::ptrdiff_t(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

double cpu_ns() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return double(now.tv_sec) * 1e9 + double(now.tv_nsec);
}

/// The device's time between two points of a stream.
class stopwatch {
  public:
    stopwatch() {
        for (CUevent *event : {&start_, &stop_}) {
            engine::check(driver().cuEventCreate(event, CU_EVENT_DEFAULT), "cuEventCreate");
        }
    }
    ~stopwatch() {
        driver().cuEventDestroy_v2(start_);
        driver().cuEventDestroy_v2(stop_);
    }
    stopwatch(const stopwatch &) = delete;
    stopwatch &operator=(const stopwatch &) = delete;

    double microseconds(const std::function<void()> &work, CUstream stream) const {
        engine::check(driver().cuEventRecord(start_, stream), "cuEventRecord");
        work();
        engine::check(driver().cuEventRecord(stop_, stream), "cuEventRecord");
        engine::check(driver().cuEventSynchronize(stop_), "cuEventSynchronize");
        float milliseconds = 0;
        engine::check(driver().cuEventElapsedTime(&milliseconds, start_, stop_), "cuEventElapsedTime");
        return double(milliseconds) * 1000;
    }

  private:
    CUevent start_ = nullptr, stop_ = nullptr;
};

/// Verifies each variant, eagerly and as a graph, then measures them in turn, so that a GPU that becomes
/// slower does so for all.
void measure(std::vector<variant> &variants, const effort &effort, const engine_stream &stream) {
    std::vector<std::unique_ptr<engine_graph>> graphs;
    for (const variant &variant : variants) {
        const auto all_layers = [&](const variant::count &count) {
            for (size_t layer = 0; layer < effort.layers; layer++) {
                count(layer, stream);
            }
        };
        graphs.push_back(std::make_unique<engine_graph>(stream, [&] { all_layers(variant.captured); }));
        if (variant.verify != nullptr) {
            variant.verify([&] { all_layers(variant.eager); }, variant.name + ", eager,");
            variant.verify([&] { graphs.back()->replay(stream); }, variant.name + ", in a graph,");
        }
    }

    const stopwatch stopwatch;
    const double layers = double(effort.layers);
    const auto repeat = [&] {
        for (size_t i = 0; i < variants.size(); i++) {
            variant &variant = variants[i];
            double host_ns = 0;
            const double eager_us = stopwatch.microseconds(
                [&] {
                    const double start = cpu_ns();
                    for (size_t layer = 0; layer < effort.layers; layer++) {
                        variant.eager(layer, stream);
                    }
                    host_ns = cpu_ns() - start;
                },
                stream);
            const double graph_us = stopwatch.microseconds([&] { graphs[i]->replay(stream); }, stream);
            variant.eager_us.push_back(eager_us / layers);
            variant.graph_us.push_back(graph_us / layers);
            variant.host_ns.push_back(host_ns / layers);
        }
    };
    const auto start = std::chrono::steady_clock::now();
    while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < effort.warm_up) {
        repeat();
    }
    for (variant &variant : variants) {
        for (auto *times : {&variant.eager_us, &variant.graph_us, &variant.host_ns}) {
            times->clear();
        }
    }
    for (size_t i = 0; i < effort.repetitions; i++) {
        repeat();
    }
}

/// All variants, measured, on `num_ids` ids a layer. The first is eplb.
std::vector<variant> measure(uint32_t num_ids, const effort &effort, const module &module) {
    const engine_stream stream;
    const skewed_ids ids(effort.layers, num_ids);
    const uint32_t num_tokens = num_ids / experts_per_token;
    const engine_array<int32_t> device_ids(effort.layers * num_ids);
    const auto ids_of = [&](size_t layer) -> const int32_t * { return device_ids.data() + layer * num_ids; };
    for (size_t layer = 0; layer < effort.layers; layer++) {
        engine::check(driver().cuMemcpyHtoDAsync_v2(reinterpret_cast<CUdeviceptr>(ids_of(layer)),
                                                    ids[layer].data(), num_ids * sizeof(int32_t), stream),
                      "cuMemcpyHtoDAsync");
    }
    stream.synchronize();

    // eplb: a recorder that counts iteration 0, and one that waits for iteration 1.
    const temporary_directory directory;
    eplb::recorder_config config;
    config.num_ranks = 1;
    config.num_experts = num_experts;
    config.experts_per_token = experts_per_token;
    config.device = engine::get().device();
    for (size_t layer = 0; layer < effort.layers; layer++) {
        config.layer_ids.push_back(int32_t(layer));
    }
    const auto create = [&](const std::string &path, int64_t start) {
        config.path = path;
        config.iter_start = start;
        config.iter_stop = start + 1;
        auto recorder = eplb::recorder::create(config);
        for (size_t layer = 0; layer < effort.layers; layer++) {
            recorder.register_buffer(int32_t(layer), ids_of(layer), EPLB_DTYPE_INT32, num_tokens, nullptr,
                                     stream);
        }
        recorder.begin_iteration(0, stream);
        return recorder;
    };
    const std::string dump = directory / "counting";
    const eplb::recorder counting = create(dump, 0), off = create(directory / "off", 1);
    const auto eplb_count = [num_tokens](const eplb::recorder &recorder) {
        return [&recorder, num_tokens](size_t layer, CUstream on) {
            recorder.count(int32_t(layer), num_tokens, on);
        };
    };
    const auto eplb_verify = [&](const std::function<void()> &work, const std::string &name) {
        work();
        counting.begin_iteration(1, stream);
        counting.flush();
        const auto stats = eplb::stats::load(dump);
        for (size_t layer = 0; layer < effort.layers; layer++) {
            compare(stats.layer_loads(int32_t(layer)), ids.counts()[layer], name);
        }
        counting.reset(stream);
        counting.begin_iteration(0, stream);
    };
    const auto off_verify = [&](const std::function<void()> &work, const std::string &name) {
        work();
        stream.synchronize();
        const eplb_recorder_info info = off.info();
        if (info.ids_counted + info.ids_out_of_range + info.ids_padding != 0) {
            throw std::runtime_error(name + " counts");
        }
    };

    // The baselines: a window of one iteration, and one histogram for all layers, which a stream takes in
    // turn.
    int multiprocessors = 0;
    engine::check(driver().cuDeviceGetAttribute(&multiprocessors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
                                                engine::get().device()),
                  "cuDeviceGetAttribute");
    const auto most = std::numeric_limits<uint32_t>::max();
    const engine_array<uint32_t> window(effort.layers * num_experts), histogram(num_experts), extremes(2);
    const engine_array<unsigned long long> wide_histogram(num_experts);
    const pinned<uint32_t> extremes_on_host(2), window_on_host(window.size());
    const auto row_of = [&](size_t layer) { return window.data() + layer * num_experts; };
    const auto window_verify = [&](const std::function<void()> &work, const std::string &name) {
        zero(window, stream);
        work();
        window_on_host.download(window, stream);
        for (size_t layer = 0; layer < effort.layers; layer++) {
            std::vector<double> counted(num_experts);
            for (size_t expert = 0; expert < num_experts; expert++) {
                counted[expert] = window_on_host[layer * num_experts + expert];
            }
            compare(counted, ids.counts()[layer], name);
        }
    };

    const uint32_t one_each = blocks_for(num_experts, CUB_INIT_THREADS, most);
    const kernel cub_init = {module["cub_init"], one_each, CUB_INIT_THREADS};
    const kernel cub_sweep = {module["cub_sweep"],
                              blocks_for(num_ids, CUB_SWEEP_THREADS * CUB_SWEEP_ITEMS, most),
                              CUB_SWEEP_THREADS};
    const kernel window_add = {module["window_add"], one_each, CUB_INIT_THREADS};
    static_assert(num_experts <= CUB_SWEEP_BINS, "cub_sweep has no more bins");
    const auto cub = [&](size_t layer, CUstream on) {
        cub_init.launch(on, histogram.data(), num_experts);
        cub_sweep.launch(on, ids_of(layer), num_ids, histogram.data(), num_experts, 0, int(num_experts));
        window_add.launch(on, row_of(layer), histogram.data(), num_experts);
    };

    const kernel min_max = {module["torch_min_max"],
                            blocks_for(num_ids, TORCH_THREADS * TORCH_MIN_MAX_ITEMS, most), TORCH_THREADS};
    const kernel torch_zero = {module["torch_zero"], 1, TORCH_ELEMENTWISE_THREADS};
    const kernel torch_histogram = {
        module["torch_histogram"],
        blocks_for(num_ids, TORCH_THREADS, uint32_t(multiprocessors) * TORCH_BLOCKS_PER_SM), TORCH_THREADS,
        num_experts * sizeof(unsigned long long)};
    const kernel torch_add = {module["torch_add"], 1, TORCH_ELEMENTWISE_THREADS};
    const auto torch_extremes = [&](size_t layer, CUstream on) {
        if (min_max.blocks != 1) {
            zero(extremes, on);
        }
        min_max.launch(on, ids_of(layer), num_ids, extremes.data());
    };
    const auto torch_rest = [&](size_t layer, CUstream on) {
        torch_zero.launch(on, wide_histogram.data(), num_experts);
        torch_histogram.launch(on, ids_of(layer), num_ids, wide_histogram.data(), num_experts, int64_t(0),
                               int64_t(num_experts));
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
            throw std::runtime_error("torch_min_max finds ids that are not there");
        }
        torch_rest(layer, on);
    };

    const kernel empty = {module["empty"], 1, 32};
    const auto launch_empty = [&](size_t, CUstream on) { empty.launch(on); };

    std::vector<variant> variants = {
        {"eplb", eplb_count(counting), eplb_count(counting), eplb_verify},
        {"eplb, off", eplb_count(off), eplb_count(off), off_verify},
        {"cub-style", cub, cub, window_verify},
        {"torch.bincount-style", torch_eager, torch_captured, window_verify},
        {"empty kernel", launch_empty, launch_empty, nullptr},
    };
    measure(variants, effort, stream);
    return variants;
}

/// 2,048
std::string with_comma(uint32_t number) {
    std::string text = std::to_string(number);
    if (text.size() > 3) {
        text.insert(text.size() - 3, ",");
    }
    return text;
}

void describe_device(const effort &effort) {
    char name[256] = "";
    int version = 0, multiprocessors = 0;
    const int device = engine::get().device();
    engine::check(driver().cuDeviceGetName(name, sizeof name, device), "cuDeviceGetName");
    engine::check(driver().cuDriverGetVersion(&version), "cuDriverGetVersion");
    engine::check(
        driver().cuDeviceGetAttribute(&multiprocessors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device),
        "cuDeviceGetAttribute");
    std::printf("%s, %d multiprocessors, driver for CUDA %d.%d, eplb %s\n", name, multiprocessors,
                version / 1000, version % 1000 / 10, eplb_version_string());
    if (engine::get().fake() != nullptr) {
        std::printf("THE DRIVER IS fake_cuda, WHICH EMULATES A GPU: THE TIMES BELOW MEAN NOTHING.\n");
    }
    std::printf("%u experts, %u a token, int32 ids, %zu layers, medians of %zu repetitions\n\n", num_experts,
                experts_per_token, effort.layers, effort.repetitions);
    std::fflush(stdout);
}

/// The baselines' kernels, compiled. fake_cuda has them built in, and wants no more than something that looks
/// like PTX.
std::string baselines_image(const std::string &path) {
    std::string image = read_file(path);
    if (image.empty()) {
        if (engine::get().fake() == nullptr) {
            throw std::runtime_error(path + " could not be read: --image FILE says where it is");
        }
        image = ".version 7.0\n";
    }
    return image;
}

void run(const effort &effort, const std::string &image) {
    describe_device(effort);
    const module module(baselines_image(image));
    double aim_us = 0;
    std::string table, host_table;
    char line[200];
    for (const uint32_t num_ids : {aim_ids, 65536u}) {
        const std::vector<variant> variants = measure(num_ids, effort, module);
        const auto add_rows = [&](const char *mode, std::vector<double> variant::*times) {
            const double eplb_us = median(variants.front().*times);
            for (const variant &variant : variants) {
                const double us = median(variant.*times);
                std::snprintf(line, sizeof line, "| %s | %s | %s | %.2f | %.2f |\n",
                              with_comma(num_ids).c_str(), mode, variant.name.c_str(), us, us / eplb_us);
                table += line;
            }
            return eplb_us;
        };
        add_rows("eager", &variant::eager_us);
        const double eplb_us = add_rows("graph", &variant::graph_us);
        aim_us = num_ids == aim_ids ? eplb_us : aim_us;
        for (const variant &variant : variants) {
            std::snprintf(line, sizeof line, "| %s | %s | %.0f |\n", with_comma(num_ids).c_str(),
                          variant.name.c_str(), median(variant.host_ns));
            host_table += line;
        }
    }
    std::printf("| ids | mode | variant | µs per layer | ratio to eplb |\n|---:|---|---|---:|---:|\n%s\n",
                table.c_str());
    std::printf("Every variant counted right. eager: a layer's launches one after the other on a stream. "
                "graph: all layers in one CUDA graph.\noff: nothing is being counted. torch.bincount-style: "
                "eager, the host waits for the maximum; the graph, which cannot, leaves that out.\n\n");
    std::printf(
        "| ids | variant | host ns per layer, eager (CPU time of the calling thread) |\n|---:|---|---:|\n"
        "%s\n",
        host_table.c_str());
    std::printf("%s ids in a graph take at most %.0f µs a layer (the aim on an H100): %s, %.2f µs%s\n",
                with_comma(aim_ids).c_str(), aim, aim_us <= aim ? "yes" : "no", aim_us,
                engine::get().fake() != nullptr ? ", which means nothing over fake_cuda" : "");
}

} // namespace

int main(int argc, char **argv) {
    const std::string program = argv[0];
    std::string image = program.substr(0, program.rfind('/') + 1) + "baselines.ptx";
    bool quick = false;
    for (int i = 1; i < argc; i++) {
        const std::string argument = argv[i];
        if (argument == "--quick") {
            quick = true;
        } else if (argument == "--image" && i + 1 < argc) {
            image = argv[++i];
        } else {
            std::fprintf(stderr, "usage: gpu_bench [--quick] [--image FILE]\n");
            return 2;
        }
    }
    // engine.h's way to be told that it is not to be the host.
    setenv("EPLB_TEST_DEVICE", "cuda", 1);
    try {
        const bool emulated = engine::get().fake() != nullptr;
        run(emulated ? effort{2, 1, 0} : quick ? effort{58, 50, 0.1} : effort{58, 500, 0.5}, image);
    } catch (const std::exception &error) {
        std::fflush(stdout);
        std::fprintf(stderr, "gpu_bench: %s\n", error.what());
        return 1;
    }
}

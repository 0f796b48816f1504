#include "bench.h"

#include <chrono>
#include <ctime>

namespace {

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

/// Measures the device's time between two points of a stream.
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

/// Times of a variant for one layer, of each repetition.
struct repetitions {
    std::vector<double> eager_us, graph_us, host_ns;
};

} // namespace

std::vector<timing> measure(const std::vector<variant> &variants, const effort &effort,
                            const engine_stream &stream) {
    std::vector<std::unique_ptr<engine_graph>> graphs;
    for (const variant &variant : variants) {
        const auto all_layers = [&](const variant::run &run) {
            for (size_t layer = 0; layer < effort.layers; layer++) {
                run(layer, stream);
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
    const auto repeat = [&](std::vector<repetitions> &all) {
        for (size_t i = 0; i < variants.size(); i++) {
            double host_ns = 0;
            const double eager_us = stopwatch.microseconds(
                [&] {
                    const double start = cpu_ns();
                    for (size_t layer = 0; layer < effort.layers; layer++) {
                        variants[i].eager(layer, stream);
                    }
                    host_ns = cpu_ns() - start;
                },
                stream);
            const double graph_us = stopwatch.microseconds([&] { graphs[i]->replay(stream); }, stream);
            all[i].eager_us.push_back(eager_us / layers);
            all[i].graph_us.push_back(graph_us / layers);
            all[i].host_ns.push_back(host_ns / layers);
        }
    };
    std::vector<repetitions> warm_up(variants.size()), measured(variants.size());
    const auto start = std::chrono::steady_clock::now();
    while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < effort.warm_up) {
        repeat(warm_up);
    }
    for (size_t i = 0; i < effort.repetitions; i++) {
        repeat(measured);
    }

    std::vector<timing> timings;
    for (size_t i = 0; i < variants.size(); i++) {
        timings.push_back({variants[i].name, median(measured[i].eager_us), median(measured[i].graph_us),
                           median(measured[i].host_ns)});
    }
    return timings;
}

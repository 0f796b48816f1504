// A recorder that counts the batches of the benchmark.
#ifndef EPLB_GPU_BENCH_RECORDING_H
#define EPLB_GPU_BENCH_RECORDING_H

#include <eplb_tools.hpp>
#include <stdexcept>

#include "bench.h"
#include "files.h"
#include "skewed_ids.h"

inline void compare_counts(const std::vector<double> &counted, const std::vector<double> &expected,
                           const std::string &name) {
    if (counted != expected) {
        const auto at = std::mismatch(counted.begin(), counted.end(), expected.begin(), expected.end());
        throw std::runtime_error(name + " counts wrong, first expert " +
                                 std::to_string(at.first - counted.begin()));
    }
}

/// A recorder in iteration 0. It counts the iteration `start`.
class recording {
  public:
    recording(const skewed_ids &ids, const engine_stream &stream, int64_t start = 0)
        : ids_(ids), stream_(stream), recorder_(create(start)) {
        recorder_.begin_iteration(0, stream_);
    }

    eplb::recorder &recorder() { return recorder_; }

    /// Checks that `work` counts the batches once.
    void verify(const std::function<void()> &work, const std::string &name) {
        work();
        recorder_.begin_iteration(1, stream_);
        recorder_.flush();
        const auto stats = eplb::stats::load(directory_ / "dump");
        for (size_t layer = 0; layer < ids_.layers(); layer++) {
            compare_counts(stats.layer_loads(int32_t(layer)), ids_.counts(layer), name);
        }
        recorder_.reset(stream_);
        recorder_.begin_iteration(0, stream_);
    }

  private:
    eplb::recorder create(int64_t start) const {
        eplb::recorder_config config;
        config.path = directory_ / "dump";
        config.iter_start = start;
        config.iter_stop = start + 1;
        config.num_ranks = 1;
        config.num_experts = num_experts;
        config.experts_per_token = experts_per_token;
        config.device = engine::get().device();
        for (size_t layer = 0; layer < ids_.layers(); layer++) {
            config.layer_ids.push_back(int32_t(layer));
        }
        return eplb::recorder::create(config);
    }

    temporary_directory directory_;
    const skewed_ids &ids_;
    const engine_stream &stream_;
    eplb::recorder recorder_;
};

#endif

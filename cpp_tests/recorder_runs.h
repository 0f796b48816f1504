// What the tests of several runs share: a small recorder on the host, its run, and the log.
#ifndef EPLB_TESTS_RECORDER_RUNS_H
#define EPLB_TESTS_RECORDER_RUNS_H

#include <gtest/gtest.h>

#include <mutex>
#include <string>
#include <vector>

#include <eplb_tools.hpp>

#include "dump_file.h"
#include "files.h"

/// Layer 3 of 8 experts, 2 of them per token, in iterations 5 to 7.
inline eplb::recorder_config host_config(const std::string &path, uint32_t rank = 0, uint32_t num_ranks = 1) {
    eplb::recorder_config config;
    config.path = path;
    config.iter_start = 5;
    config.iter_stop = 8;
    config.rank = rank;
    config.num_ranks = num_ranks;
    config.num_experts = 8;
    config.experts_per_token = 2;
    config.layer_ids = {3};
    return config;
}

/// Begins iterations `from` to `to` - 1 and counts `tokens` tokens in each, which chose experts 1 and 2.
inline void count(eplb::recorder &recorder, int64_t from, int64_t to, uint32_t tokens = 1) {
    const std::vector<int32_t> ids = {1, 2, 1, 2, 1, 2, 1, 2};
    for (int64_t iteration = from; iteration < to; iteration++) {
        recorder.begin_iteration(iteration);
        recorder.count_ids(3, ids.data(), tokens);
    }
}

/// A whole run of one rank.
inline void run(const eplb::recorder_config &config, uint32_t tokens = 1) {
    auto recorder = eplb::recorder::create(config);
    count(recorder, 4, 9, tokens);
    recorder.flush();
}

/// Collects what the library logs.
class log_lines {
  public:
    log_lines() { EXPECT_EQ(eplb_set_log_callback(add, this), EPLB_STATUS_OK); }
    ~log_lines() { EXPECT_EQ(eplb_set_log_callback(nullptr, nullptr), EPLB_STATUS_OK); }
    log_lines(const log_lines &) = delete;
    log_lines &operator=(const log_lines &) = delete;

    /// The first line with `part`; empty if there is none.
    std::string with(const std::string &part) const {
        const std::lock_guard<std::mutex> lock(mutex_);
        for (const std::string &line : lines_) {
            if (line.find(part) != std::string::npos) {
                return line;
            }
        }
        return "";
    }

  private:
    static void add(void *log, eplb_log_level, const char *line) {
        auto &lines = *static_cast<log_lines *>(log);
        const std::lock_guard<std::mutex> lock(lines.mutex_);
        lines.lines_.push_back(line);
    }

    mutable std::mutex mutex_;
    std::vector<std::string> lines_;
};

/// The message of `call`, which must fail with this status.
template <class Call> std::string refusal(Call call, eplb_status expected) {
    try {
        call();
    } catch (const eplb::error &error) {
        EXPECT_EQ(error.status(), expected) << error.what();
        return error.what();
    }
    ADD_FAILURE() << "it succeeded";
    return "";
}

#endif

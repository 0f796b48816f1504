// What the tests of the recorder's options share: a small config, and one token on the device.
#ifndef EPLB_TESTS_RECORDER_FIXTURE_H
#define EPLB_TESTS_RECORDER_FIXTURE_H

#include <gtest/gtest.h>

#include <eplb_tools.hpp>

#include "dump_file.h"
#include "engine.h"
#include "files.h"

/// Layer 3 of 8 experts, 4 of them per token, in iterations `start` to `stop` - 1.
inline eplb::recorder_config small_config(const std::string &path, int64_t start, int64_t stop) {
    eplb::recorder_config config;
    config.path = path;
    config.iter_start = start;
    config.iter_stop = stop;
    config.num_ranks = 1;
    config.num_experts = 8;
    config.experts_per_token = 4;
    config.layer_ids = {3};
    config.device = engine::get().device();
    return config;
}

/// A stream, and one token that chose experts 1 to 4.
struct one_token {
    engine_stream stream;
    std::vector<int32_t> values = {1, 2, 3, 4};
    engine_array<int32_t> ids = engine_array<int32_t>(4);

    one_token() { ids.upload(values, stream); }

    void count(const eplb::recorder &recorder, int32_t layer = 3) const {
        recorder.count_ids(layer, ids.data(), 1, nullptr, stream);
    }

    /// Begins iterations `from` to `to` - 1 and calls `work` in each.
    template <class Work> void run(eplb::recorder &recorder, int64_t from, int64_t to, Work work) const {
        for (int64_t iteration = from; iteration < to; iteration++) {
            recorder.begin_iteration(iteration, stream);
            work();
        }
    }

    /// As above, and counts the token once in each.
    void run(eplb::recorder &recorder, int64_t from, int64_t to) const {
        run(recorder, from, to, [&] { count(recorder); });
    }
};

/// The counts of a layer of 8 experts where experts 1 to 4 were chosen `times` times.
inline std::vector<int64_t> chosen(int64_t times) { return {0, times, times, times, times, 0, 0, 0}; }

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

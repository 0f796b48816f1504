// Counts of an engine's own kernels: on the host, over fake_cuda in both of its modes, and on a GPU.
#include <gtest/gtest.h>

#include <eplb_tools.hpp>
#include <list>

#include "engine.h"
#include "files.h"

namespace {

constexpr uint32_t num_experts = 6;

eplb::recorder_config a_config(const std::string &path) {
    eplb::recorder_config config;
    config.path = path;
    config.iter_start = 10;
    config.iter_stop = 13;
    config.num_ranks = 1;
    config.num_experts = num_experts;
    config.experts_per_token = 2;
    config.layer_ids = {3, 5};
    config.device = engine::get().device();
    return config;
}

template <class Count> constexpr eplb_dtype dtype = sizeof(Count) == 4 ? EPLB_DTYPE_INT32 : EPLB_DTYPE_INT64;

/// Counters on the device, and everything that was uploaded to them: copies may still be pending.
template <class Count> struct counters {
    engine_array<Count> device;
    std::list<std::vector<Count>> uploaded;

    explicit counters(size_t size = num_experts) : device(size) {}

    void set(const std::vector<Count> &values, CUstream stream) {
        uploaded.push_back(values);
        device.upload(uploaded.back(), stream);
    }
    void add_to(const eplb::recorder &recorder, int32_t layer, CUstream stream) const {
        recorder.add_counts(layer, device.data(), dtype<Count>, stream);
    }
};

using loads = std::vector<double>;

/// The dump of a run that ended before iteration `stop`.
eplb::stats load(const eplb::recorder_config &config, int64_t stop) {
    eplb::stats_options options;
    options.iter_stop = stop;
    return eplb::stats::load(config.path, options);
}

/// The message of a call that fails.
template <class Call> std::string message(Call call, eplb_status status = EPLB_STATUS_INVALID_ARGUMENT) {
    try {
        call();
    } catch (const eplb::error &error) {
        EXPECT_EQ(error.status(), status) << error.what();
        return error.what();
    }
    ADD_FAILURE() << "it did not fail";
    return "";
}

/// Iterations 8 to 14, of which 10 to 12 count. Layer 3 gets counts twice in each, layer 5 once beside ids.
template <class Count> void add_deltas(bool is_captured, uint64_t max_tokens) {
    SCOPED_TRACE(testing::Message() << sizeof(Count) << " bytes, captured " << is_captured << ", "
                                    << max_tokens << " tokens");
    const temporary_directory dir;
    auto config = a_config(dir / "dump");
    config.max_tokens_per_iteration = max_tokens;
    auto recorder = eplb::recorder::create(config);
    const engine_stream stream;
    counters<Count> deltas;
    counters<int32_t> ids(4);
    ids.set({0, 5, 5, 1}, stream);
    const auto count = [&] {
        deltas.add_to(recorder, 3, stream);
        deltas.add_to(recorder, 3, stream);
        deltas.add_to(recorder, 5, stream);
        recorder.count_ids(5, ids.device.data(), 2, nullptr, stream);
    };
    std::unique_ptr<engine_graph> graph;
    if (is_captured) {
        graph = std::make_unique<engine_graph>(stream, count);
    }
    for (int64_t iteration = 8; iteration < 15; iteration++) {
        deltas.set({Count(iteration), 0, 1, 2, 3, 100}, stream);
        recorder.begin_iteration(iteration, stream);
        if (graph) {
            graph->replay(stream);
        } else {
            count();
        }
    }
    recorder.flush();
    const auto stats = eplb::stats::load(config.path);
    EXPECT_EQ(stats.layer_loads(3, 3),
              (loads{20, 0, 2, 4, 6, 200, 22, 0, 2, 4, 6, 200, 24, 0, 2, 4, 6, 200}));
    EXPECT_EQ(stats.layer_loads(5, 3),
              (loads{11, 1, 1, 2, 3, 102, 12, 1, 1, 2, 3, 102, 13, 1, 1, 2, 3, 102}));
    stream.synchronize();
    // Layer 3: 212 + 2 x iteration each. Layer 5: 106 + iteration, and 4 ids. A token has 2 ids.
    EXPECT_EQ(recorder.layer_tokens(2), (std::vector<uint64_t>{(3 * 212 + 66) / 2, (3 * 110 + 33 + 1) / 2}));
    const eplb_recorder_info info = recorder.info();
    EXPECT_EQ(info.ids_counted, uint64_t(3 * 212 + 66 + 3 * 110 + 33));
    EXPECT_EQ(info.ids_out_of_range, 0u);
}

} // namespace

TEST(AddedCounts, DeltasAddUpAndMixWithCountedIds) {
    for (const bool is_captured : {false, true}) {
        for (const uint64_t max_tokens : {uint64_t(0), uint64_t(1) << 40}) {
            add_deltas<int32_t>(is_captured, max_tokens);
            add_deltas<int64_t>(is_captured, max_tokens);
        }
    }
}

namespace {

/// Counters that go on from iteration to iteration, before, in and after the range. They are restarted in the
/// middle of it.
template <class Count> void add_cumulative(bool is_captured, Count start) {
    SCOPED_TRACE(testing::Message() << sizeof(Count) << " bytes, captured " << is_captured);
    const temporary_directory dir;
    auto config = a_config(dir / "dump");
    config.added_counts = EPLB_ADDED_COUNTS_CUMULATIVE;
    config.max_tokens_per_iteration = uint64_t(1) << 40;
    auto recorder = eplb::recorder::create(config);
    const engine_stream stream;
    counters<Count> of_3, of_5;
    const auto count = [&] {
        of_3.add_to(recorder, 3, stream);
        of_5.add_to(recorder, 5, stream);
    };
    std::unique_ptr<engine_graph> graph;
    if (is_captured) {
        graph = std::make_unique<engine_graph>(stream, count);
    }
    using bits = std::make_unsigned_t<Count>;
    const auto iterate = [&](int64_t iteration, std::vector<Count> now) {
        of_3.set(now, stream);
        for (Count &counter : now) {
            counter = Count(bits(counter) / 2);
        }
        of_5.set(now, stream);
        recorder.begin_iteration(iteration, stream);
        if (graph) {
            graph->replay(stream);
        } else {
            count();
        }
    };
    const auto after = [&](bits more) { return Count(bits(start) + more); };
    iterate(8, {start, 0, 0, 0, 0, 0});
    iterate(9, {after(10), 4, 0, 0, 2, 0});
    iterate(10, {after(16), 4, 2, 0, 2, 0});
    iterate(11, {after(18), 10, 2, 8, 2, 0});
    iterate(12, {6, 0, 0, 0, 4, 2}); // Restarted.
    iterate(13, {8, 4, 0, 0, 4, 2});
    recorder.flush();
    const auto stats = eplb::stats::load(config.path);
    EXPECT_EQ(stats.layer_loads(3, 3), (loads{6, 0, 2, 0, 0, 0, 2, 6, 0, 8, 0, 0, 6, 0, 0, 0, 2, 2}));
    EXPECT_EQ(stats.layer_loads(5, 3), (loads{3, 0, 1, 0, 0, 0, 1, 3, 0, 4, 0, 0, 3, 0, 0, 0, 1, 1}));

    // A reset clears what was counted, and not the last values: the counters go on.
    recorder.reset(stream);
    iterate(10, {12, 4, 0, 0, 4, 2});
    recorder.dump(stream);
    recorder.flush();
    const auto again = load(config, 11);
    EXPECT_EQ(again.layer_loads(3), (loads{4, 0, 0, 0, 0, 0}));
    EXPECT_EQ(again.layer_loads(5), (loads{2, 0, 0, 0, 0, 0}));
    stream.synchronize();
    EXPECT_EQ(recorder.info().ids_counted, 6u);
    EXPECT_EQ(recorder.info().ids_out_of_range, 0u);
}

} // namespace

TEST(AddedCounts, CumulativeCountersAddWhatTheyGrew) {
    for (const bool is_captured : {false, true}) {
        // Beyond 2^31, int32 counters look negative.
        add_cumulative<int32_t>(is_captured, int32_t(0x90000000));
        add_cumulative<int64_t>(is_captured, int64_t(1) << 50);
    }
}

TEST(AddedCounts, FirstCumulativeCallInTheRangeAddsTheWholeCounters) {
    const temporary_directory dir;
    auto config = a_config(dir / "dump");
    config.added_counts = EPLB_ADDED_COUNTS_CUMULATIVE;
    auto recorder = eplb::recorder::create(config);
    const engine_stream stream;
    counters<int32_t> all;
    recorder.begin_iteration(10, stream);
    all.set({5, 4, 3, 2, 1, 0}, stream);
    all.add_to(recorder, 3, stream);
    all.add_to(recorder, 3, stream);
    recorder.dump(stream);
    recorder.flush();
    EXPECT_EQ(load(config, 11).layer_loads(3), (loads{5, 4, 3, 2, 1, 0}));
    stream.synchronize();
}

TEST(AddedCounts, CountersOfLocalSlotsCountThisRanksSlots) {
    for (const bool is_captured : {false, true}) {
        const temporary_directory dir;
        auto config = a_config(dir / "dump");
        config.num_ranks = 3;
        config.num_experts = 12;
        config.id_kind = EPLB_ID_KIND_SLOT;
        config.added_counts = EPLB_ADDED_COUNTS_BY_LOCAL_SLOT | EPLB_ADDED_COUNTS_CUMULATIVE;
        loads expected;
        for (config.rank = 0; config.rank < 3; config.rank++) {
            auto recorder = eplb::recorder::create(config);
            const engine_stream stream;
            // As DeepEP's cumulative_local_expert_recv_stats.
            counters<int32_t> received(4);
            const auto count = [&] { received.add_to(recorder, 5, stream); };
            std::unique_ptr<engine_graph> graph;
            if (is_captured) {
                graph = std::make_unique<engine_graph>(stream, count);
            }
            const auto rank = int32_t(config.rank);
            for (int32_t iteration = 8; iteration < 14; iteration++) {
                received.set({iteration, 2 * iteration, 3, iteration * rank}, stream);
                recorder.begin_iteration(iteration, stream);
                if (graph) {
                    graph->replay(stream);
                } else {
                    count();
                }
            }
            recorder.flush();
            stream.synchronize();
            EXPECT_EQ(recorder.info().ids_counted, 3 * (3 + config.rank));
            expected.insert(expected.end(), {1, 2, 0, double(rank)});
        }
        const auto stats = eplb::stats::load(config.path);
        EXPECT_EQ(stats.info().id_kind, EPLB_ID_KIND_SLOT);
        const loads found = stats.layer_loads(5, 3);
        for (size_t i = 0; i < found.size(); i++) {
            EXPECT_EQ(found[i], expected[i % 12]) << i;
        }
    }
}

TEST(AddedCounts, NegativeCountsAreNotAddedAndRaiseTheAlarm) {
    for (const uint32_t flags : {0u, uint32_t(EPLB_ADDED_COUNTS_CUMULATIVE)}) {
        const temporary_directory dir;
        auto config = a_config(dir / "dump");
        config.added_counts = flags;
        auto recorder = eplb::recorder::create(config);
        const engine_stream stream;
        counters<int64_t> counts;
        recorder.begin_iteration(10, stream);
        counts.set({5, -1, 3, INT64_MIN, 0, 7}, stream);
        counts.add_to(recorder, 3, stream);
        recorder.begin_iteration(11, stream);
        // A negative counter is not taken as the last value.
        counts.set({5, 0, 3, 0, 0, -7}, stream);
        counts.add_to(recorder, 3, stream);
        recorder.begin_iteration(12, stream);
        counts.set({5, 0, 3, 0, 0, 9}, stream);
        counts.add_to(recorder, 3, stream);
        recorder.dump(stream);
        recorder.flush();
        const auto stats = eplb::stats::load(config.path);
        const loads deltas = {5, 0, 3, 0, 0, 7, 5, 0, 3, 0, 0, 0, 5, 0, 3, 0, 0, 9},
                    differences = {5, 0, 3, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2};
        EXPECT_EQ(stats.layer_loads(3, 3), flags == 0 ? deltas : differences);
        stream.synchronize();
        EXPECT_EQ(recorder.info().ids_out_of_range, 3u);
        EXPECT_EQ(recorder.info().ids_counted, flags == 0 ? 40u : 17u);
    }
}

TEST(AddedCounts, OverflowOf32BitCountsIsDetected) {
    for (const int64_t more : {int64_t(1) << 32, (int64_t(1) << 32) + 5, int64_t(UINT32_MAX)}) {
        const temporary_directory dir;
        auto recorder = eplb::recorder::create(a_config(dir / "dump"));
        const engine_stream stream;
        counters<int64_t> counts;
        recorder.begin_iteration(10, stream);
        counts.set({1, 1, 1, 1, 1, more}, stream);
        counts.add_to(recorder, 3, stream);
        counts.add_to(recorder, 3, stream);
        recorder.dump(stream);
        EXPECT_NE(
            message([&] { recorder.flush(); }, EPLB_STATUS_INVALID_DUMP).find("a count overflowed 32 bits"),
            std::string::npos);
        stream.synchronize();
    }
}

TEST(AddedCounts, FailedLaunchOfCumulativeCountersLosesTheCounts) {
    const fake_cuda_controls *fake = engine::get().fake();
    if (fake == nullptr) {
        GTEST_SKIP();
    }
    for (const uint32_t flags : {0u, uint32_t(EPLB_ADDED_COUNTS_CUMULATIVE)}) {
        const temporary_directory dir;
        auto config = a_config(dir / "dump");
        config.added_counts = flags;
        auto recorder = eplb::recorder::create(config);
        const engine_stream stream;
        counters<int32_t> counts;
        counts.set({1, 2, 3, 4, 5, 6}, stream);
        recorder.begin_iteration(9, stream);
        const auto add = [&] { counts.add_to(recorder, 3, stream); };
        // Outside the range only cumulative counters need a kernel.
        fake->fake_cuda_log_clear();
        add();
        std::vector<const char *> calls(10);
        calls.resize(fake->fake_cuda_log(calls.data(), calls.size()));
        ASSERT_EQ(calls.size(), 2u);
        EXPECT_STREQ(calls[0], "cuCtxGetCurrent");
        EXPECT_STREQ(calls[1], flags == 0 ? "cuStreamIsCapturing" : "cuLaunchKernel");
        fake->fake_cuda_fail_call(2, CUDA_ERROR_UNKNOWN);
        message(add, EPLB_STATUS_CUDA);
        fake->fake_cuda_fail_call(0, 0);
        EXPECT_EQ(recorder.info().state, flags == 0 ? EPLB_RECORDER_STATE_WAITING : EPLB_RECORDER_STATE_LOST);
        recorder.reset(stream);
        recorder.begin_iteration(10, stream);
        add();
        recorder.dump(stream);
        recorder.flush();
        EXPECT_EQ(load(config, 11).layer_loads(3), flags == 0 ? (loads{1, 2, 3, 4, 5, 6}) : loads(6));
        stream.synchronize();
    }
}

TEST(AddedCounts, BadConfigsAndArgumentsAreRefusedByName) {
    const temporary_directory dir;
    const auto config_message = [&](auto change) {
        auto config = a_config(dir / "none");
        change(config);
        return message([&] { eplb::recorder::create(config); });
    };
    using config = eplb::recorder_config;
    EXPECT_EQ(config_message([](config &c) { c.added_counts = 13; }),
              "added_counts has the unknown flags 0xc; expected EPLB_ADDED_COUNTS_CUMULATIVE (0x1), "
              "EPLB_ADDED_COUNTS_BY_LOCAL_SLOT (0x2), both, or 0");
    EXPECT_EQ(
        config_message([](config &c) { c.added_counts = EPLB_ADDED_COUNTS_BY_LOCAL_SLOT; }),
        "EPLB_ADDED_COUNTS_BY_LOCAL_SLOT needs id_kind EPLB_ID_KIND_SLOT, id_kind is EPLB_ID_KIND_EXPERT: "
        "counts of this rank's slots do not say which expert; count slots, or add counts by expert");
    EXPECT_EQ(config_message([](config &c) {
                  c.added_counts = EPLB_ADDED_COUNTS_BY_LOCAL_SLOT;
                  c.id_kind = EPLB_ID_KIND_SLOT;
                  c.num_ranks = 4;
              }),
              "EPLB_ADDED_COUNTS_BY_LOCAL_SLOT needs equally many slots on each rank; num_experts is 6, "
              "num_ranks 4");
    EXPECT_FALSE(std::filesystem::exists(dir / "none"));

    auto recorder = eplb::recorder::create(a_config(dir / "dump"));
    const engine_stream stream;
    const counters<int64_t> counts;
    recorder.begin_iteration(10, stream);
    const auto call_message = [&](int32_t layer, const void *address, eplb_dtype dtype) {
        return message([&] { recorder.add_counts(layer, address, dtype, stream); });
    };
    const auto *const at = reinterpret_cast<const char *>(counts.device.data());
    EXPECT_EQ(call_message(3, nullptr, EPLB_DTYPE_INT32), "counts is NULL");
    EXPECT_EQ(call_message(3, at + 2, EPLB_DTYPE_INT32), "counts is not aligned to its 4 bytes");
    EXPECT_EQ(call_message(3, at + 4, EPLB_DTYPE_INT64), "counts is not aligned to its 8 bytes");
    EXPECT_EQ(call_message(3, at, 2), "dtype is 2; expected EPLB_DTYPE_INT32 (0), EPLB_DTYPE_INT64 (1)");
    EXPECT_EQ(call_message(-1, at, EPLB_DTYPE_INT64), "layer is -1");
    EXPECT_EQ(call_message(4, at, EPLB_DTYPE_INT64),
              "layer 4 is not one of the 2 that the recorder was created with, from 3 to 5");
    EXPECT_EQ(eplb_recorder_add_counts(nullptr, 3, at, EPLB_DTYPE_INT64, nullptr),
              EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_STREQ(eplb_last_error_message(), "recorder is NULL");
    stream.synchronize();
    EXPECT_EQ(recorder.info().ids_counted, 0u);
    recorder.dump(stream);
    recorder.flush();
}

TEST(AddedCounts, OnlyCumulativeCountersTakeMemory) {
    auto config = a_config("dump");
    const auto plain = eplb::recorder::memory_required(config);
    config.id_kind = EPLB_ID_KIND_SLOT;
    config.num_ranks = 2;
    config.added_counts = EPLB_ADDED_COUNTS_BY_LOCAL_SLOT;
    EXPECT_EQ(eplb::recorder::memory_required(config).workspace_bytes, plain.workspace_bytes);
    // 2 layers of 3 slots a rank, 8 bytes each, aligned to 64.
    config.added_counts |= EPLB_ADDED_COUNTS_CUMULATIVE;
    EXPECT_EQ(eplb::recorder::memory_required(config).workspace_bytes,
              (plain.workspace_bytes + 63) / 64 * 64 + 48);
    EXPECT_EQ(eplb::recorder::memory_required(config).host_bytes, plain.host_bytes);
}

TEST(AddedCounts, WorkspaceOfTheCallerHoldsTheLastValues) {
    const temporary_directory dir;
    auto config = a_config(dir / "dump");
    config.added_counts = EPLB_ADDED_COUNTS_CUMULATIVE;
    const size_t bytes = eplb::recorder::memory_required(config).workspace_bytes;
    const engine_stream stream;
    // It is full of ones before.
    const engine_array<int64_t> workspace(bytes / 8);
    const std::vector<int64_t> ones(bytes / 8, 1);
    workspace.upload(ones, stream);
    stream.synchronize();
    config.workspace = workspace.data();
    config.workspace_bytes = bytes;
    auto recorder = eplb::recorder::create(config);
    counters<int64_t> counts;
    recorder.begin_iteration(10, stream);
    counts.set({1, 2, 3, 4, 5, 6}, stream);
    counts.add_to(recorder, 5, stream);
    recorder.begin_iteration(11, stream);
    counts.add_to(recorder, 5, stream);
    recorder.dump(stream);
    recorder.flush();
    EXPECT_EQ(load(config, 12).layer_loads(5), (loads{1, 2, 3, 4, 5, 6}));
    stream.synchronize();
}

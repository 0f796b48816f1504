// Step 1 as an engine drives it: on the host, over fake_cuda in both of its modes, and on a GPU.
#include <gtest/gtest.h>

#include <eplb_tools.hpp>
#include <limits>
#include <map>
#include <mutex>
#include <thread>

#include "engine.h"
#include "files.h"
#include "routing.h"

namespace {

eplb::recorder_config a_config(const std::string &path, std::vector<int32_t> layers, int64_t start,
                               int64_t stop) {
    eplb::recorder_config config;
    config.path = path;
    config.iter_start = start;
    config.iter_stop = stop;
    config.num_ranks = 1;
    config.num_experts = 64;
    config.experts_per_token = 4;
    config.layer_ids = std::move(layers);
    config.device = engine::get().device();
    return config;
}

/// One layer's ids on the device, and everything that was uploaded to them: copies may still be pending.
template <class Id> struct layer_buffer {
    engine_array<Id> device;
    std::vector<std::vector<Id>> uploaded;

    explicit layer_buffer(size_t size) : device(size) {}

    const std::vector<Id> &upload(std::vector<Id> ids, CUstream stream) {
        uploaded.push_back(std::move(ids));
        device.upload(uploaded.back(), stream);
        return uploaded.back();
    }
};

void expect_state(const eplb::recorder &recorder, int32_t state) { EXPECT_EQ(recorder.info().state, state); }

/// A stream, and one token on the device that chose experts 1 to 4.
struct one_token {
    engine_stream stream;
    layer_buffer<int32_t> ids = layer_buffer<int32_t>(4);

    one_token() { ids.upload({1, 2, 3, 4}, stream); }

    void count(const eplb::recorder &recorder, int32_t layer = 0) const {
        recorder.count_ids(layer, ids.device.data(), 1, nullptr, stream);
    }

    /// Begins iterations `from` to `to` - 1 and counts the token once in each.
    void run(eplb::recorder &recorder, int64_t from, int64_t to, int32_t layer = 0) const {
        for (int64_t iteration = from; iteration < to; iteration++) {
            recorder.begin_iteration(iteration, stream);
            count(recorder, layer);
        }
    }
};

eplb_status status_of(const std::function<void()> &call) {
    try {
        call();
        return EPLB_STATUS_OK;
    } catch (const eplb::error &error) {
        return error.status();
    }
}

} // namespace

// 4 layers on 2 streams, captured once and replayed for iterations 90 to 209. Iterations 100 to 199 count.
TEST(Collect, OneCapturedGraphCountsOnlyInTheRange) {
    constexpr uint32_t experts = 64, choices = 4, max_tokens = 96;
    temporary_directory dir;
    engine_stream main, side;
    const auto config = a_config(dir / "dump", {3, 4, 5, 9}, 100, 200);
    auto recorder = eplb::recorder::create(config);
    expect_state(recorder, EPLB_RECORDER_STATE_WAITING);

    layer_buffer<int32_t> narrow[2] = {layer_buffer<int32_t>(max_tokens * choices),
                                       layer_buffer<int32_t>(max_tokens * choices)};
    layer_buffer<int64_t> wide[2] = {layer_buffer<int64_t>(max_tokens * choices),
                                     layer_buffer<int64_t>(max_tokens * choices)};
    layer_buffer<int32_t> valid(1);
    recorder.register_buffer(3, narrow[0].device.data(), max_tokens, valid.device.data(), main);
    recorder.register_buffer(4, narrow[1].device.data(), max_tokens, valid.device.data(), main);
    recorder.register_buffer(5, wide[0].device.data(), max_tokens, valid.device.data(), side);
    recorder.register_buffer(9, wide[1].device.data(), max_tokens, valid.device.data(), side);

    const engine_graph graph(main, [&] {
        side.wait_for(main);
        recorder.count(5, max_tokens, side);
        recorder.count(3, max_tokens, main);
        recorder.count(9, max_tokens, side);
        recorder.count(4, max_tokens, main);
        main.wait_for(side);
    });

    routing routing(experts, choices, 1);
    std::map<std::pair<int32_t, int64_t>, counts> expected;
    for (int64_t iteration = 90; iteration < 210; iteration++) {
        const int32_t extremes[] = {0, -3, max_tokens + 5, std::numeric_limits<int32_t>::max(), max_tokens};
        const int32_t tokens = iteration % 7 == 0 ? extremes[routing.below(5)]
                                                  : static_cast<int32_t>(routing.below(max_tokens + 1));
        valid.upload({tokens}, main);
        const auto add = [&](int32_t layer, auto &buffer, auto ids) {
            const auto &uploaded = buffer.upload(std::move(ids), main);
            if (iteration >= 100 && iteration < 200) {
                const auto cell = expected.emplace(std::make_pair(layer, iteration), counts(experts)).first;
                cell->second.add(uploaded, choices, tokens);
            }
        };
        add(3, narrow[0], routing.ids<int32_t>(max_tokens));
        add(4, narrow[1], routing.ids<int32_t>(max_tokens));
        add(5, wide[0], routing.ids<int64_t>(max_tokens));
        add(9, wide[1], routing.ids<int64_t>(max_tokens));
        recorder.begin_iteration(iteration, main);
        graph.replay(main);
    }
    recorder.flush();
    expect_state(recorder, EPLB_RECORDER_STATE_DUMPED);

    const auto stats = eplb::stats::load(config.path);
    counts all(experts);
    std::vector<uint64_t> tokens;
    for (const int32_t layer : config.layer_ids) {
        const std::vector<double> loads = stats.layer_loads(layer, 100);
        counts of_layer(experts);
        for (int64_t iteration = 100; iteration < 200; iteration++) {
            const counts &one = expected.at({layer, iteration});
            const auto row = loads.begin() + (iteration - 100) * experts;
            ASSERT_EQ(std::vector<double>(row, row + experts), one.experts)
                << "layer " << layer << ", iteration " << iteration;
            of_layer.counted += one.counted;
            of_layer.out_of_range += one.out_of_range;
            all.padding += one.padding;
        }
        all.counted += of_layer.counted;
        all.out_of_range += of_layer.out_of_range;
        tokens.push_back(of_layer.tokens(choices));
    }
    main.synchronize();
    const eplb_recorder_info info = recorder.info();
    EXPECT_EQ(info.iteration, 209);
    EXPECT_EQ(info.iter_start, 100);
    EXPECT_EQ(info.iter_stop, 200);
    EXPECT_EQ(info.ids_counted, all.counted);
    EXPECT_EQ(info.ids_out_of_range, all.out_of_range);
    EXPECT_EQ(info.ids_padding, all.padding);
    EXPECT_EQ(recorder.layer_tokens(4), tokens);

    if (engine::get().is_cuda()) {
        const cuda_driver &driver = engine::get().driver();
        CUcontext current = nullptr;
        EXPECT_EQ(driver.cuCtxGetCurrent(&current), CUDA_SUCCESS);
        EXPECT_EQ(current, engine::get().context());
        for (const CUstream stream : {CUstream(main), CUstream(side)}) {
            CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_ACTIVE;
            EXPECT_EQ(driver.cuStreamIsCapturing(stream, &status), CUDA_SUCCESS);
            EXPECT_EQ(status, CU_STREAM_CAPTURE_STATUS_NONE);
            EXPECT_EQ(driver.cuStreamSynchronize(stream), CUDA_SUCCESS);
        }
        CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
        EXPECT_EQ(driver.cuThreadExchangeStreamCaptureMode(&mode), CUDA_SUCCESS);
        EXPECT_EQ(mode, CU_STREAM_CAPTURE_MODE_GLOBAL) << "the thread's capture mode is unchanged";
    }
}

namespace {

/// Counts one random batch and checks the dump.
template <class Id>
void count_once(eplb::recorder_config config, uint32_t num_tokens, size_t offset, uint64_t seed) {
    temporary_directory dir;
    config.path = dir / "dump";
    engine_stream stream;
    auto recorder = eplb::recorder::create(config);
    routing routing(config.num_experts, config.experts_per_token, seed);
    const auto ids = routing.ids<Id>(num_tokens);
    counts expected(config.num_experts);
    expected.add(ids, config.experts_per_token, num_tokens);

    // The alignment of the ids decides which loads the kernel uses.
    std::vector<Id> shifted(offset, Id(0));
    shifted.insert(shifted.end(), ids.begin(), ids.end());
    engine_array<Id> device(shifted.size() + 1);
    device.upload(shifted, stream);
    recorder.begin_iteration(config.iter_start, stream);
    recorder.count_ids(config.layer_ids[0], device.data() + offset, num_tokens, nullptr, stream);
    recorder.dump(stream);
    recorder.flush();
    eplb::stats_options options;
    options.iter_start = config.iter_start;
    options.iter_stop = config.iter_start + 1;
    EXPECT_EQ(eplb::stats::load(config.path, options).layer_loads(config.layer_ids[0]), expected.experts)
        << config.num_experts << " experts, " << num_tokens << " tokens at " << offset;
    EXPECT_EQ(recorder.info().ids_out_of_range, expected.out_of_range);
    stream.synchronize();
}

} // namespace

TEST(Collect, CountsBatchesOfAnySizeAtAnyAlignment) {
    auto config = a_config("", {0}, 1, 2);
    uint64_t seed = 0;
    for (const uint32_t num_tokens : {0u, 1u, 3u, 16u, 500u, 3000u}) {
        for (const size_t offset : {0, 1, 2, 3}) {
            count_once<int32_t>(config, num_tokens, offset, seed++);
            count_once<int64_t>(config, num_tokens, offset, seed++);
        }
    }
}

TEST(Collect, CountsAnyNumberOfExperts) {
    uint64_t seed = 100;
    for (const uint32_t experts : {1u, 2u, 60u, 256u, 513u, 12287u, 12288u, 30000u}) {
        auto config = a_config("", {7}, 5, 6);
        config.num_experts = experts;
        config.experts_per_token = experts < 8 ? experts : 8;
        count_once<int32_t>(config, 300, 0, seed++);
        count_once<int64_t>(config, 300, 1, seed++);
    }
}

TEST(Collect, LargeMaximaSelect64BitCounts) {
    auto config = a_config("", {2}, 1, 2);
    const auto narrow = eplb::recorder::memory_required(config);
    config.max_tokens_per_iteration = (uint64_t(1) << 32) / 4;
    const auto wide = eplb::recorder::memory_required(config);
    EXPECT_EQ(wide.workspace_bytes - narrow.workspace_bytes, 64 * 4u);
    count_once<int32_t>(config, 500, 0, 1);
    count_once<int64_t>(config, 500, 0, 2);
    config.max_tokens_per_iteration--;
    EXPECT_EQ(eplb::recorder::memory_required(config).workspace_bytes, narrow.workspace_bytes)
        << "four choices of each token fit 32 bits";
}

namespace {

constexpr uint32_t shared_ranks = 8, shared_iterations = 6;

/// Runs one of 8 ranks, on its own thread: records layers 1 and 2 and adds its counts to `sums`.
void record_as_rank(uint32_t rank, const std::string &path, std::vector<double> (&sums)[2]) {
    constexpr uint32_t tokens = 40;
    static std::mutex mutex;
    engine::get().attach_thread();
    auto config = a_config(path, {1, 2}, 0, shared_iterations);
    config.rank = rank;
    config.num_ranks = shared_ranks;
    config.run_id = "all together";
    auto recorder = eplb::recorder::create(config);
    engine_stream stream;
    layer_buffer<int32_t> buffers[2] = {layer_buffer<int32_t>(tokens * 4), layer_buffer<int32_t>(tokens * 4)};
    routing routing(64, 4, rank);
    for (int64_t iteration = 0; iteration <= shared_iterations; iteration++) {
        recorder.begin_iteration(iteration, stream);
        for (int32_t layer = 1; layer <= 2; layer++) {
            layer_buffer<int32_t> &buffer = buffers[layer - 1];
            const auto &ids = buffer.upload(routing.ids<int32_t>(tokens), stream);
            recorder.count_ids(layer, buffer.device.data(), tokens, nullptr, stream);
            if (iteration < shared_iterations) {
                counts one(64);
                one.add(ids, 4, tokens);
                const std::lock_guard<std::mutex> lock(mutex);
                for (size_t expert = 0; expert < 64; expert++) {
                    sums[layer - 1][expert] += one.experts[expert];
                }
            }
        }
    }
    recorder.flush();
    stream.synchronize();
}

} // namespace

TEST(Collect, EightRanksRecordIntoOneDirectory) {
    constexpr uint32_t ranks = shared_ranks, iterations = shared_iterations;
    temporary_directory dir;
    std::vector<double> sums[2] = {std::vector<double>(64), std::vector<double>(64)};
    std::vector<std::thread> threads;
    for (uint32_t rank = 0; rank < ranks; rank++) {
        threads.emplace_back([&, rank] {
            try {
                record_as_rank(rank, dir / "dump", sums);
            } catch (const std::exception &error) {
                ADD_FAILURE() << "rank " << rank << ": " << error.what();
            }
        });
    }
    for (std::thread &thread : threads) {
        thread.join();
    }
    eplb::stats_options options;
    options.expected_ranks = ranks;
    const auto stats = eplb::stats::load(dir / "dump", options);
    EXPECT_EQ(stats.info().iter_stop, iterations);
    for (int32_t layer = 1; layer <= 2; layer++) {
        EXPECT_EQ(stats.layer_loads(layer), sums[layer - 1]);
    }
    size_t files = 0;
    for (const auto &entry : std::filesystem::directory_iterator(dir / "dump")) {
        (void)entry;
        files++;
    }
    EXPECT_EQ(files, ranks + 1u) << "rank files, meta_info.json and nothing else";
}

TEST(Collect, RecordersOfOneProcessAreIndependent) {
    temporary_directory dir;
    engine_stream stream;
    auto first = a_config(dir / "first", {0}, 0, 2), second = a_config(dir / "second", {0, 1}, 1, 3);
    second.id_kind = EPLB_ID_KIND_SLOT;
    second.num_experts = 72;
    auto one = eplb::recorder::create(first), two = eplb::recorder::create(second);
    layer_buffer<int64_t> buffer(8);
    buffer.upload({0, 1, 2, 63, 64, 71, 72, -1}, stream);
    for (int64_t iteration = 0; iteration < 4; iteration++) {
        one.begin_iteration(iteration, stream);
        two.begin_iteration(iteration, stream);
        one.count_ids(0, buffer.device.data(), 2, nullptr, stream);
        two.count_ids(0, buffer.device.data(), 2, nullptr, stream);
        // Two calls in an iteration add up.
        two.count_ids(1, buffer.device.data(), 1, nullptr, stream);
        two.count_ids(1, buffer.device.data(), 1, nullptr, stream);
    }
    one.flush();
    two.flush();
    stream.synchronize();
    const auto experts = eplb::stats::load(first.path), slots = eplb::stats::load(second.path);
    EXPECT_EQ(experts.info().id_kind, EPLB_ID_KIND_EXPERT);
    EXPECT_EQ(slots.info().id_kind, EPLB_ID_KIND_SLOT);
    EXPECT_EQ(slots.info().num_experts, 72u);
    EXPECT_EQ(experts.layer_loads(0)[63], 2);
    EXPECT_EQ(slots.layer_loads(0)[71], 2);
    EXPECT_EQ(slots.layer_loads(1)[2], 4);
    EXPECT_EQ(one.info().ids_out_of_range, 6u);
    EXPECT_EQ(one.info().ids_padding, 2u) << "the ids of -1";
    EXPECT_EQ(two.info().ids_out_of_range, 2u);
    EXPECT_EQ(two.info().ids_padding, 2u);
}

TEST(Collect, ResetClearsAWarmUp) {
    temporary_directory dir;
    const one_token token;
    const auto config = a_config(dir / "dump", {0}, 0, 2);
    auto recorder = eplb::recorder::create(config);
    token.run(recorder, 0, 1);
    recorder.reset(token.stream);
    expect_state(recorder, EPLB_RECORDER_STATE_WAITING);
    token.stream.synchronize();
    EXPECT_EQ(recorder.info().ids_counted, 0u);
    token.count(recorder);
    token.run(recorder, 0, 3);
    recorder.flush();
    EXPECT_EQ(eplb::stats::load(config.path).layer_loads(0)[1], 2);

    // After a dump, another one.
    recorder.reset(token.stream);
    token.run(recorder, 1, 3);
    recorder.flush();
    eplb::stats_options options;
    options.iter_start = 1;
    EXPECT_EQ(eplb::stats::load(config.path, options).layer_loads(0)[4], 1);
    token.stream.synchronize();
}

TEST(Collect, GraphReplayedAThousandTimesCountsExactly) {
    temporary_directory dir;
    const one_token token;
    const auto config = a_config(dir / "dump", {0}, 0, 100);
    auto recorder = eplb::recorder::create(config);
    const engine_graph graph(token.stream, [&] { token.count(recorder); });
    // Ten replays an iteration, and as many before the first.
    for (int replay = 0; replay < 1000; replay++) {
        if (replay >= 10 && replay % 10 == 0) {
            recorder.begin_iteration(replay / 10 - 1, token.stream);
        }
        graph.replay(token.stream);
    }
    recorder.begin_iteration(99, token.stream);
    recorder.begin_iteration(100, token.stream);
    recorder.flush();
    const auto loads = eplb::stats::load(config.path).layer_loads(0, 100);
    for (size_t iteration = 0; iteration < 100; iteration++) {
        for (size_t expert = 0; expert < 64; expert++) {
            const bool chosen = expert >= 1 && expert <= 4 && iteration < 99;
            ASSERT_EQ(loads[iteration * 64 + expert], chosen ? 10 : 0) << iteration << ", " << expert;
        }
    }
    token.stream.synchronize();
}

TEST(Collect, RunThatEndsEarlyDumpsItsIterations) {
    temporary_directory dir;
    const one_token token;
    const auto config = a_config(dir / "dump", {0}, 100, 200);
    auto recorder = eplb::recorder::create(config);
    EXPECT_EQ(status_of([&] { recorder.dump(token.stream); }), EPLB_STATUS_INVALID_ARGUMENT)
        << "nothing was counted";
    token.run(recorder, 98, 150);
    recorder.dump(token.stream);
    recorder.dump(token.stream);
    // Later calls do not count.
    token.count(recorder);
    token.run(recorder, 150, 202);
    recorder.flush();
    token.stream.synchronize();

    EXPECT_EQ(status_of([&] { eplb::stats::load(config.path); }), EPLB_STATUS_INCOMPLETE_DUMP);
    EXPECT_NE(
        std::string(eplb_last_error_message()).find("iteration 150 is missing, it has 100..150 of 100..200"),
        std::string::npos)
        << eplb_last_error_message();
    eplb::stats_options options;
    options.iter_stop = 150;
    EXPECT_EQ(eplb::stats::load(config.path, options).layer_loads(0)[3], 50);
}

TEST(Collect, FailedDumpKeepsTheCountsForALaterFlush) {
    temporary_directory dir;
    const one_token token;
    const auto config = a_config(dir / "dump", {0}, 0, 2);
    auto recorder = eplb::recorder::create(config);
    token.run(recorder, 0, 2);
    // A file replaces the directory.
    std::filesystem::remove_all(config.path);
    write_file(config.path, "in the way");
    recorder.begin_iteration(2, token.stream);
    EXPECT_EQ(status_of([&] { recorder.flush(); }), EPLB_STATUS_WRITE_FAILED);
    eplb_recorder_info info = recorder.info();
    EXPECT_EQ(info.state, EPLB_RECORDER_STATE_FAILED);
    EXPECT_EQ(info.error_status, EPLB_STATUS_WRITE_FAILED);
    EXPECT_NE(std::string(info.error_message).find(config.path), std::string::npos) << info.error_message;
    EXPECT_EQ(status_of([&] { recorder.flush(); }), EPLB_STATUS_WRITE_FAILED) << "the file is still there";
    // Iterations continue meanwhile.
    recorder.begin_iteration(3, token.stream);

    std::filesystem::remove(config.path);
    recorder.flush();
    info = recorder.info();
    EXPECT_EQ(info.state, EPLB_RECORDER_STATE_DUMPED);
    EXPECT_EQ(info.error_status, EPLB_STATUS_OK);
    EXPECT_EQ(eplb::stats::load(config.path).layer_loads(0)[1], 2);
    token.stream.synchronize();
}

TEST(Collect, UsesTheCallersWorkspace) {
    temporary_directory dir;
    const one_token token;
    auto config = a_config(dir / "dump", {0, 1}, 0, 3);
    const auto required = eplb::recorder::memory_required(config);
    engine_array<char> workspace(required.workspace_bytes);
    // Creation clears what was there before.
    const std::vector<char> dirt(required.workspace_bytes, 0x55);
    workspace.upload(dirt, token.stream);
    token.stream.synchronize();
    config.workspace = workspace.data();
    config.workspace_bytes = required.workspace_bytes - 1;
    EXPECT_EQ(status_of([&] { eplb::recorder::create(config); }), EPLB_STATUS_INVALID_ARGUMENT);
    config.workspace_bytes++;
    auto recorder = eplb::recorder::create(config);
    token.run(recorder, 0, 4, 1);
    recorder.flush();
    const auto stats = eplb::stats::load(config.path);
    EXPECT_EQ(stats.layer_loads(0), std::vector<double>(64));
    EXPECT_EQ(stats.layer_loads(1)[4], 3);
    EXPECT_EQ(recorder.info().workspace_bytes, required.workspace_bytes);
    EXPECT_EQ(recorder.info().host_bytes, required.host_bytes);
    token.stream.synchronize();
}

TEST(Collect, DestroyWaitsForTheDump) {
    temporary_directory dir;
    engine_stream stream;
    auto config = a_config(dir / "dump", {0, 1, 2, 3, 4, 5, 6, 7}, 0, 50);
    config.num_experts = 2048;
    {
        auto recorder = eplb::recorder::create(config);
        for (int64_t iteration = 0; iteration <= 50; iteration++) {
            recorder.begin_iteration(iteration, stream);
        }
    }
    EXPECT_EQ(eplb::stats::load(config.path).info().num_layers, 8u);
}

TEST(Collect, SkippedIterationsAreEmptyAndEarlierOnesMissing) {
    temporary_directory dir;
    const one_token token;
    const auto config = a_config(dir / "dump", {0}, 10, 20);
    auto recorder = eplb::recorder::create(config);
    for (const int64_t iteration : {12, 13, 13, 17, 19, 25}) {
        token.run(recorder, iteration, iteration + 1);
    }
    EXPECT_EQ(status_of([&] { recorder.begin_iteration(24, token.stream); }), EPLB_STATUS_INVALID_ARGUMENT);
    recorder.flush();
    token.stream.synchronize();
    EXPECT_EQ(status_of([&] { eplb::stats::load(config.path); }), EPLB_STATUS_INCOMPLETE_DUMP);
    eplb::stats_options options;
    options.iter_start = 12;
    const auto loads = eplb::stats::load(config.path, options).layer_loads(0, 8);
    std::vector<double> of_expert_1;
    for (size_t row = 0; row < 8; row++) {
        of_expert_1.push_back(loads[row * 64 + 1]);
    }
    EXPECT_EQ(of_expert_1, (std::vector<double>{1, 2, 0, 0, 0, 1, 0, 1}));
}

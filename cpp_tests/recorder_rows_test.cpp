// Rows of several iterations, and of every n-th iteration.
#include "recorder_fixture.h"

#include <map>

namespace {

/// Rows of up to 4 iterations, which are 3 apart. In a range from 100 to 124 they begin at 100, 112 and 124.
eplb::recorder_config in_rows(const std::string &path, int64_t start = 100, int64_t stop = 125) {
    auto config = small_config(path, start, stop);
    config.iter_bucket = 4;
    config.iter_stride = 3;
    return config;
}

} // namespace

TEST(RecorderRows, OneCapturedGraphCountsIntoTheRowOfEachIteration) {
    temporary_directory dir;
    one_token token;
    auto recorder = eplb::recorder::create(in_rows(dir / "dump"));
    recorder.register_buffer(3, token.ids.data(), 1, nullptr, token.stream);
    const engine_graph graph(token.stream, [&] { recorder.count(3, 1, token.stream); });
    std::map<std::string, int64_t> expected;
    uint64_t tokens = 0;
    for (int64_t iteration = 95; iteration < 130; iteration++) {
        recorder.begin_iteration(iteration, token.stream);
        const int64_t replays = iteration % 4;
        for (int64_t replay = 0; replay < replays; replay++) {
            graph.replay(token.stream);
        }
        if (iteration >= 100 && iteration < 125 && (iteration - 100) % 3 == 0) {
            expected[std::to_string(100 + (iteration - 100) / 12 * 12) + "_3"] += replays;
            tokens += static_cast<uint64_t>(replays);
        }
    }
    recorder.flush();
    token.stream.synchronize();
    const eplb_recorder_info info = recorder.info();
    EXPECT_EQ(info.state, EPLB_RECORDER_STATE_DUMPED);
    EXPECT_EQ(info.counted_start, 100);
    EXPECT_EQ(info.counted_stop, 125);
    EXPECT_EQ(info.iterations_skipped, 0u);
    EXPECT_EQ(recorder.layer_tokens(1), std::vector<uint64_t>{tokens});

    const dump_file file(dir / "dump/rank0.safetensors");
    EXPECT_EQ(file.metadata("iter_bucket"), "4");
    EXPECT_EQ(file.metadata("iter_stride"), "3");
    EXPECT_EQ(file.metadata("iter_start"), "100");
    EXPECT_EQ(file.metadata("iter_stop"), "125");
    ASSERT_EQ(expected.size(), 3u);
    EXPECT_EQ(file.num_tensors(), 3u);
    for (const auto &[name, times] : expected) {
        EXPECT_EQ(file.tensor(name), chosen(times)) << name;
    }
    const std::string meta = read_file(dir / "dump/meta_info.json");
    EXPECT_NE(meta.find("\"iter_bucket\":4,\"iter_stride\":3,"), std::string::npos) << meta;
}

TEST(RecorderRows, DumpThatIsCutShortHasTheRowsThatBegan) {
    temporary_directory dir;
    one_token token;
    auto recorder = eplb::recorder::create(in_rows(dir / "dump"));
    token.run(recorder, 113, 117);
    recorder.dump(token.stream);
    recorder.flush();
    const dump_file file(dir / "dump/rank0.safetensors");
    EXPECT_EQ(file.num_tensors(), 1u);
    EXPECT_EQ(file.tensor("112_3"), chosen(1)) << "iteration 115 alone";

    recorder.reset(token.stream);
    token.run(recorder, 100, 113);
    recorder.dump(token.stream);
    recorder.flush();
    EXPECT_EQ(recorder.info().counted_stop, 113);
    const dump_file again(dir / "dump/rank0.safetensors");
    EXPECT_EQ(again.num_tensors(), 2u);
    EXPECT_EQ(again.tensor("100_3"), chosen(4));
    EXPECT_EQ(again.tensor("112_3"), chosen(1));
}

TEST(RecorderRows, OnlyIterationsToCountAreSkipped) {
    temporary_directory dir;
    one_token token;
    auto recorder = eplb::recorder::create(in_rows(dir / "dump"));
    // Of 103, 106, 109 and 112, which are to be counted, 106 and 109 never begin.
    for (const int64_t iteration : {99, 101}) {
        recorder.begin_iteration(iteration, token.stream);
        token.count(recorder);
        EXPECT_EQ(recorder.info().state, EPLB_RECORDER_STATE_WAITING);
    }
    for (const int64_t iteration : {103, 104, 104, 112, 112, 113}) {
        recorder.begin_iteration(iteration, token.stream);
        token.count(recorder);
    }
    token.stream.synchronize();
    const eplb_recorder_info info = recorder.info();
    EXPECT_EQ(info.iteration, 113);
    EXPECT_EQ(info.counted_start, 103);
    EXPECT_EQ(info.counted_stop, 113);
    EXPECT_EQ(info.iterations_skipped, 2u);
    EXPECT_EQ(info.ids_counted, 3u * 4);
}

TEST(RecorderRows, CreateLogsThatTensorRtLlmRefusesTheDump) {
    temporary_directory dir;
    std::vector<std::string> logged;
    const auto record = [](void *user_data, eplb_log_level level, const char *message) {
        if (level == EPLB_LOG_LEVEL_WARNING) {
            static_cast<std::vector<std::string> *>(user_data)->push_back(message);
        }
    };
    ASSERT_EQ(eplb_set_log_callback(record, &logged), EPLB_STATUS_OK);
    eplb::recorder::create(small_config(dir / "plain", 0, 4));
    EXPECT_TRUE(logged.empty());
    eplb::recorder::create(in_rows(dir / "rows"));
    ASSERT_EQ(eplb_set_log_callback(nullptr, nullptr), EPLB_STATUS_OK);
    ASSERT_EQ(logged.size(), 1u);
    EXPECT_EQ(logged[0], (dir / "rows") +
                             ": each row of the dump adds up iter_bucket 4 iterations, iter_stride 3 apart: "
                             "eplb reads it, and TensorRT-LLM's reader refuses it");
}

TEST(RecorderRows, RowsOfOneIterationAreTheDefault) {
    temporary_directory dir;
    one_token token;
    std::vector<std::string> files;
    for (const uint32_t one : {0u, 1u}) {
        auto config = small_config(dir / std::to_string(one), 5, 8);
        config.iter_bucket = config.iter_stride = one;
        auto recorder = eplb::recorder::create(config);
        token.run(recorder, 5, 9);
        recorder.flush();
        files.push_back(undated_file(config.path + "/rank0.safetensors"));
        EXPECT_EQ(files.back().find("iter_bucket"), std::string::npos);
        EXPECT_EQ(read_file(config.path + "/meta_info.json").find("iter_"),
                  read_file(config.path + "/meta_info.json").find("iter_start"));
    }
    EXPECT_EQ(files[0], files[1]);
}

TEST(RecorderRows, LongRangesNeedTheMemoryOfTheirRows) {
    auto config = small_config("unused", 0, 100000);
    config.layer_ids.resize(61);
    for (int32_t layer = 0; layer < 61; layer++) {
        config.layer_ids[static_cast<size_t>(layer)] = layer;
    }
    config.num_experts = 256;
    const std::string message =
        refusal([&] { eplb::recorder::memory_required(config); }, EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(message,
              "iterations 0..100000 of 61 layers are 6100000 tensors, more than a safetensors file may "
              "have; count fewer iterations, or raise iter_bucket or iter_stride");
    config.iter_bucket = 100;
    const size_t rows = 1000, row = 61 * 256;
    const auto cells = [&](const eplb::recorder_memory &memory) {
        return memory.workspace_bytes / (rows * row);
    };
    EXPECT_EQ(cells(eplb::recorder::memory_required(config)), 4u);
    // A row adds up 100 iterations of 4 ids a token: 10,737,418 tokens overflow 32 bits.
    config.max_tokens_per_iteration = 10737418;
    EXPECT_EQ(cells(eplb::recorder::memory_required(config)), 4u);
    config.max_tokens_per_iteration = 10737419;
    EXPECT_EQ(cells(eplb::recorder::memory_required(config)), 8u);
    config.max_tokens_per_iteration = UINT64_MAX;
    EXPECT_EQ(cells(eplb::recorder::memory_required(config)), 8u);
    config.max_tokens_per_iteration = 0;
    config.iter_bucket = 0;
    config.iter_stride = 100;
    EXPECT_EQ(cells(eplb::recorder::memory_required(config)), 4u);

    config.layer_ids = {};
    config.iter_stop = INT64_MAX;
    EXPECT_EQ(refusal([&] { eplb::recorder::memory_required(config); }, EPLB_STATUS_INVALID_ARGUMENT),
              "iterations 0..9223372036854775807 are more than 2^32 - 2 rows of counts; raise iter_bucket or "
              "iter_stride");
    config.iter_bucket = config.iter_stride = 1u << 31;
    EXPECT_LE(eplb::recorder::memory_required(config).workspace_bytes, 64u);
}

TEST(RecorderRows, ThousandsOfIterationsAreWrittenInRowsOfAHundred) {
    temporary_directory dir;
    one_token token;
    // The emulated kernels are slow.
    const int64_t iterations = engine::get().is_cuda() ? 300 : 10000;
    auto config = small_config(dir / "dump", 0, iterations);
    config.layer_ids = {3, 4, 5, 6, 7, 8};
    config.iter_bucket = 100;
    auto recorder = eplb::recorder::create(config);
    token.run(recorder, 0, iterations + 1);
    recorder.flush();
    EXPECT_EQ(recorder.info().state, EPLB_RECORDER_STATE_DUMPED) << recorder.info().error_message;
    const dump_file file(dir / "dump/rank0.safetensors");
    const size_t tensors = static_cast<size_t>(iterations) / 100 * 6;
    EXPECT_EQ(file.num_tensors(), tensors);
    EXPECT_EQ(file.data_bytes(), tensors * 8 * 8);
    for (int64_t key = 0; key < iterations; key += 100) {
        ASSERT_EQ(file.tensor(std::to_string(key) + "_3"), chosen(100)) << key;
        ASSERT_EQ(file.tensor(std::to_string(key) + "_8"), chosen(0)) << key;
    }
}

TEST(RecorderRows, StrideThatNoIterationHitsIsNamed) {
    temporary_directory dir;
    one_token token;
    auto config = small_config(dir / "dump", 10, 30);
    config.iter_stride = 3;
    auto recorder = eplb::recorder::create(config);
    for (const int64_t iteration : {11, 14, 17, 32}) {
        token.run(recorder, iteration, iteration + 1);
    }
    EXPECT_EQ(recorder.info().state, EPLB_RECORDER_STATE_MISSED);
    EXPECT_EQ(refusal([&] { recorder.dump(token.stream); }, EPLB_STATUS_INVALID_ARGUMENT),
              "there is nothing to dump: none of iterations 10, 13, ... of 10..30, of which one in 3 counts, "
              "has begun");
    token.stream.synchronize();
}

TEST(RecorderRows, RowThatNoReaderTakesIsRefusedAtCreation) {
    temporary_directory dir;
    auto config = small_config(dir / "dump", 0, 2);
    config.iter_bucket = config.iter_stride = UINT32_MAX;
    const std::string message =
        refusal([&] { eplb::recorder::create(config); }, EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_NE(message.find("their product must be below 2^63"), std::string::npos) << message;
}

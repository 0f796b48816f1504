// Pausing: what runs between the tokens of users, such as dummy forwards, is not counted.
#include "recorder_fixture.h"

TEST(RecorderPause, CapturedGraphCountsNothingWhilePaused) {
    temporary_directory dir;
    one_token token;
    auto recorder = eplb::recorder::create(small_config(dir / "dump", 0, 4));
    recorder.register_buffer(3, token.ids.data(), 1, nullptr, token.stream);
    const engine_graph graph(token.stream, [&] { recorder.count(3, 1, token.stream); });
    const auto replay = [&](int times) {
        for (int i = 0; i < times; i++) {
            graph.replay(token.stream);
        }
    };
    // Warm-up before the range.
    recorder.set_paused(true, token.stream);
    EXPECT_EQ(recorder.info().paused, 1u);
    replay(1);
    // Iteration 0: paused, resumed, paused and resumed again.
    recorder.begin_iteration(0, token.stream);
    replay(10);
    recorder.set_paused(false, token.stream);
    EXPECT_EQ(recorder.info().paused, 0u);
    replay(1);
    recorder.set_paused(true, token.stream);
    recorder.set_paused(true, token.stream);
    replay(10);
    recorder.set_paused(false, token.stream);
    recorder.set_paused(false, token.stream);
    replay(2);
    // Iteration 1 is paused throughout, 2 at its start, 3 not.
    recorder.set_paused(true, token.stream);
    recorder.begin_iteration(1, token.stream);
    replay(10);
    recorder.begin_iteration(2, token.stream);
    recorder.set_paused(false, token.stream);
    replay(4);
    recorder.begin_iteration(3, token.stream);
    replay(5);
    recorder.begin_iteration(4, token.stream);
    recorder.set_paused(true, token.stream);
    recorder.set_paused(false, token.stream);
    replay(10);
    recorder.flush();
    token.stream.synchronize();
    const eplb_recorder_info info = recorder.info();
    EXPECT_EQ(info.state, EPLB_RECORDER_STATE_DUMPED);
    EXPECT_EQ(info.counted_start, 0);
    EXPECT_EQ(info.counted_stop, 4);
    EXPECT_EQ(info.iterations_skipped, 0u);
    EXPECT_EQ(info.ids_counted, (3u + 4 + 5) * 4);
    const dump_file file(dir / "dump/rank0.safetensors");
    EXPECT_EQ(file.tensor("0_3"), chosen(3));
    EXPECT_EQ(file.tensor("1_3"), chosen(0));
    EXPECT_EQ(file.tensor("2_3"), chosen(4));
    EXPECT_EQ(file.tensor("3_3"), chosen(5));
}

TEST(RecorderPause, CallsThatAreNotCapturedAndRoutingObeyIt) {
    temporary_directory dir;
    one_token token;
    auto config = small_config(dir / "dump", 0, 2);
    auto recorder = eplb::recorder::create(config);
    eplb::placement_config shape;
    shape.num_experts = 8;
    shape.num_ranks = 2;
    const auto placement = eplb::solve(shape, std::vector<int32_t>{3}, std::vector<double>(8, 1));
    eplb::dispatch_config dispatch_config;
    dispatch_config.num_ranks = 2;
    dispatch_config.experts_per_token = 4;
    dispatch_config.device = engine::get().device();
    auto dispatch = eplb::dispatch::create(placement, dispatch_config);
    engine_array<int32_t> slots(4);
    const auto route = [&] {
        dispatch.route_and_count(recorder, 3, token.ids.data(), 1, nullptr, slots.data(), token.stream);
    };
    recorder.begin_iteration(0, token.stream);
    route();
    recorder.set_paused(true, token.stream);
    route();
    token.count(recorder);
    recorder.begin_iteration(1, token.stream);
    route();
    recorder.set_paused(false, token.stream);
    token.count(recorder);
    recorder.begin_iteration(2, token.stream);
    recorder.flush();
    const dump_file file(dir / "dump/rank0.safetensors");
    EXPECT_EQ(file.tensor("0_3"), chosen(1));
    EXPECT_EQ(file.tensor("1_3"), chosen(1));
}

TEST(RecorderPause, ResetKeepsItAndARecorderThatIsOffIgnoresIt) {
    temporary_directory dir;
    one_token token;
    auto recorder = eplb::recorder::create(small_config(dir / "dump", 0, 2));
    recorder.begin_iteration(0, token.stream);
    recorder.set_paused(true, token.stream);
    recorder.reset(token.stream);
    EXPECT_EQ(recorder.info().paused, 1u);
    token.run(recorder, 0, 1);
    recorder.set_paused(false, token.stream);
    token.run(recorder, 1, 3);
    recorder.flush();
    const dump_file file(dir / "dump/rank0.safetensors");
    EXPECT_EQ(file.tensor("0_3"), chosen(0));
    EXPECT_EQ(file.tensor("1_3"), chosen(1));

    auto off = eplb::recorder::create(eplb::recorder_config());
    off.set_paused(true, token.stream);
    EXPECT_EQ(off.info().paused, 0u);
    EXPECT_EQ(off.info().max_rows, 0u);
    EXPECT_EQ(eplb_recorder_set_paused(nullptr, 1, nullptr), EPLB_STATUS_INVALID_ARGUMENT);
}

TEST(RecorderPause, CaptureRefusesIt) {
    if (!engine::get().is_cuda()) {
        GTEST_SKIP() << "EPLB_TEST_DEVICE is not cuda";
    }
    temporary_directory dir;
    one_token token;
    auto recorder = eplb::recorder::create(small_config(dir / "dump", 0, 2));
    recorder.begin_iteration(0, token.stream);
    const engine_graph graph(token.stream, [&] {
        EXPECT_NE(refusal([&] { recorder.set_paused(true, token.stream); }, EPLB_STATUS_CAPTURING)
                      .find("eplb_recorder_set_paused()"),
                  std::string::npos);
        token.count(recorder);
    });
    EXPECT_EQ(recorder.info().paused, 0u);
    EXPECT_EQ(recorder.info().state, EPLB_RECORDER_STATE_COUNTING);
    graph.replay(token.stream);
    recorder.begin_iteration(2, token.stream);
    recorder.flush();
    EXPECT_EQ(dump_file(dir / "dump/rank0.safetensors").tensor("0_3"), chosen(1));
}

TEST(RecorderPause, FailedDriverCallLosesTheCountsOfACountedIteration) {
    const fake_cuda_controls *fake = engine::get().fake();
    if (fake == nullptr) {
        GTEST_SKIP() << "there is no fake driver";
    }
    for (const bool paused : {false, true}) {
        temporary_directory dir;
        one_token token;
        auto recorder = eplb::recorder::create(small_config(dir / "dump", 0, 2));
        recorder.begin_iteration(0, token.stream);
        recorder.set_paused(paused, token.stream);
        size_t failures = 0;
        for (size_t call = 1;; call++) {
            fake->fake_cuda_fail_call(call, CUDA_ERROR_UNKNOWN);
            const eplb_status status = eplb_recorder_set_paused(recorder.get(), !paused, token.stream);
            const bool fired = fake->fake_cuda_fault_fired() != 0;
            fake->fake_cuda_fail_call(0, 0);
            if (!fired) {
                EXPECT_EQ(status, EPLB_STATUS_OK);
                break;
            }
            if (status == EPLB_STATUS_OK) {
                // A call whose failure does no harm.
                recorder.set_paused(paused, token.stream);
                continue;
            }
            failures++;
            EXPECT_EQ(status, EPLB_STATUS_CUDA);
            EXPECT_EQ(recorder.info().state, EPLB_RECORDER_STATE_LOST);
            EXPECT_EQ(recorder.info().paused, uint32_t(paused)) << "as before";
            recorder.reset(token.stream);
            recorder.begin_iteration(0, token.stream);
        }
        EXPECT_GT(failures, 0u);
    }
}

// A second range after the first.
#include "recorder_fixture.h"

TEST(RecorderRearm, OneCapturedGraphCountsTwoRanges) {
    temporary_directory dir;
    one_token token;
    auto config = small_config(dir / "dump", 10, 15);
    config.name = "model";
    auto recorder = eplb::recorder::create(config);
    EXPECT_EQ(recorder.info().max_rows, 5u);
    recorder.register_buffer(3, token.ids.data(), 1, nullptr, token.stream);
    const engine_graph graph(token.stream, [&] { recorder.count(3, 1, token.stream); });
    const auto replay = [&] { graph.replay(token.stream); };
    token.run(recorder, 8, 20, replay);
    recorder.flush();
    recorder.rearm(30, 33, token.stream);
    eplb_recorder_info info = recorder.info();
    EXPECT_EQ(info.state, EPLB_RECORDER_STATE_WAITING);
    EXPECT_EQ(info.iter_start, 30);
    EXPECT_EQ(info.iter_stop, 33);
    EXPECT_EQ(info.counted_start, 30);
    EXPECT_EQ(info.counted_stop, 30);
    EXPECT_EQ(info.num_registered_layers, 1u);
    EXPECT_EQ(info.iteration, 19);
    EXPECT_EQ(info.dumps_written, 1u);
    token.run(recorder, 20, 34, [&] {
        graph.replay(token.stream);
        graph.replay(token.stream);
    });
    recorder.flush();
    token.stream.synchronize();
    info = recorder.info();
    EXPECT_EQ(info.state, EPLB_RECORDER_STATE_DUMPED);
    EXPECT_EQ(info.counted_stop, 33);
    EXPECT_EQ(info.dumps_written, 2u);
    EXPECT_EQ(info.ids_counted, 3u * 2 * 4) << "of this range alone";
    // A third one, at once after the second.
    recorder.rearm(34, 39, token.stream);
    token.run(recorder, 34, 40, replay);
    recorder.flush();

    const dump_file first(dir / "dump/model/rank0.safetensors");
    EXPECT_EQ(first.num_tensors(), 5u);
    EXPECT_EQ(first.tensor("14_3"), chosen(1));
    const dump_file second(dir / "dump/model/30-33/rank0.safetensors");
    EXPECT_EQ(second.num_tensors(), 3u);
    EXPECT_EQ(second.metadata("iter_start"), "30");
    EXPECT_EQ(second.tensor("30_3"), chosen(2));
    EXPECT_EQ(second.tensor("32_3"), chosen(2));
    for (const auto &[path, times] : {std::pair<std::string, double>{"dump/model", 5},
                                      {"dump/model/30-33", 6},
                                      {"dump/model/34-39", 5}}) {
        EXPECT_EQ(eplb::stats::load(dir / path).layer_loads(3)[2], times) << path;
    }
}

TEST(RecorderRearm, RefusalsNameTheWayOutAndChangeNothing) {
    temporary_directory dir;
    one_token token;
    auto recorder = eplb::recorder::create(small_config(dir / "dump", 10, 12));
    const auto refused = [&](int64_t start, int64_t stop, eplb_status status = EPLB_STATUS_INVALID_ARGUMENT) {
        const eplb_recorder_info before = recorder.info();
        const std::string message = refusal([&] { recorder.rearm(start, stop, token.stream); }, status);
        const eplb_recorder_info after = recorder.info();
        EXPECT_EQ(after.state, before.state);
        EXPECT_EQ(after.iter_start, before.iter_start);
        EXPECT_EQ(after.iter_stop, before.iter_stop);
        EXPECT_EQ(after.ids_counted, before.ids_counted);
        return message;
    };
    EXPECT_EQ(refused(20, 23),
              "iterations 20..23 are 3 rows of counts, and the recorder has 2; create it with a "
              "longer range, or with a larger iter_bucket or iter_stride");
    EXPECT_EQ(refused(20, 20), "iterations 20..20: at least one expected, and none above int64");
    EXPECT_NE(refused(-1, 20).find("iter_start"), std::string::npos);
    token.run(recorder, 10, 12);
    token.stream.synchronize();
    EXPECT_EQ(refused(11, 13),
              "iteration 11 has begun, so the range 11..13 would lack iterations; it must start "
              "after 11, or call eplb_recorder_reset() first, after which any iteration may begin");
    EXPECT_EQ(refused(20, 22),
              "the counts of iterations 10..12 were not dumped: eplb_recorder_dump() dumps them, "
              "and eplb_recorder_reset() drops them");
    recorder.dump(token.stream);
    recorder.flush();
    write_file(dir / "dump/20-22", "in the way");
    EXPECT_NE(refused(20, 22, EPLB_STATUS_WRITE_FAILED).find("dump/20-22"), std::string::npos);
    EXPECT_NE(
        refusal([&] { eplb::recorder::create(small_config(dir / "dump", 0, 1)); }, EPLB_STATUS_WRITE_FAILED)
            .find("rank0.safetensors"),
        std::string::npos)
        << "the first dump's file is still held";
    recorder.rearm(21, 22, token.stream);
    refusal([&] { eplb::recorder::create(small_config(dir / "dump", 0, 1)); }, EPLB_STATUS_WRITE_FAILED);
    EXPECT_NE(refusal([&] { eplb::recorder::create(small_config(dir / "dump/21-22", 0, 1)); },
                      EPLB_STATUS_WRITE_FAILED)
                  .find("21-22/rank0.safetensors"),
              std::string::npos);

    auto off = eplb::recorder::create(eplb::recorder_config());
    EXPECT_EQ(refusal([&] { off.rearm(1, 2); }, EPLB_STATUS_INVALID_ARGUMENT),
              "the recorder is off and has no memory to count into: create it with a range");
    EXPECT_EQ(eplb_recorder_rearm(nullptr, 1, 2, nullptr), EPLB_STATUS_INVALID_ARGUMENT);
}

TEST(RecorderRearm, FailedDumpKeepsItsCountsUntilItIsRetried) {
    temporary_directory dir;
    one_token token;
    auto recorder = eplb::recorder::create(small_config(dir / "dump", 10, 12));
    token.run(recorder, 10, 12);
    std::filesystem::remove_all(dir / "dump");
    write_file(dir / "dump", "in the way");
    recorder.begin_iteration(12, token.stream);
    EXPECT_EQ(eplb_recorder_flush(recorder.get(), -1), EPLB_STATUS_WRITE_FAILED);
    const std::string message =
        refusal([&] { recorder.rearm(20, 22, token.stream); }, EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(
        message.find("the dump of iterations 10..12 failed, and the counts are kept: eplb_recorder_flush() "
                     "retries it, and eplb_recorder_reset() drops them (cannot write "),
        0u)
        << message;
    std::filesystem::remove(dir / "dump");
    recorder.flush();
    recorder.rearm(20, 22, token.stream);
    EXPECT_EQ(dump_file(dir / "dump/rank0.safetensors").tensor("11_3"), chosen(1));
}

TEST(RecorderRearm, WaitingAndResetRecordersTakeAnotherRange) {
    temporary_directory dir;
    one_token token;
    auto recorder = eplb::recorder::create(small_config(dir / "dump", 10, 12));
    recorder.rearm(20, 22, token.stream);
    EXPECT_EQ(partial_file(dir / "dump", "rank0.safetensors"), "");
    token.run(recorder, 10, 21);
    recorder.reset(token.stream);
    EXPECT_EQ(recorder.info().iter_start, 20) << "reset keeps the range";
    recorder.set_paused(true, token.stream);
    recorder.rearm(5, 7, token.stream);
    EXPECT_EQ(recorder.info().paused, 1u);
    recorder.set_paused(false, token.stream);
    token.run(recorder, 5, 8);
    recorder.flush();
    EXPECT_EQ(dump_file(dir / "dump/5-7/rank0.safetensors").tensor("6_3"), chosen(1));
    // The same range again, after the engine restarted its numbers.
    recorder.reset(token.stream);
    recorder.rearm(5, 7, token.stream);
    token.run(recorder, 5, 8, [&] {
        token.count(recorder);
        token.count(recorder);
    });
    recorder.flush();
    EXPECT_EQ(dump_file(dir / "dump/5-7/rank0.safetensors").tensor("6_3"), chosen(2));
}

TEST(RecorderRearm, RangeInRowsMayBeAsLongAsItsRows) {
    temporary_directory dir;
    one_token token;
    auto config = small_config(dir / "dump", 0, 12);
    config.iter_bucket = 2;
    config.iter_stride = 3;
    auto recorder = eplb::recorder::create(config);
    EXPECT_EQ(recorder.info().max_rows, 2u);
    EXPECT_NE(refusal([&] { recorder.rearm(100, 113, token.stream); }, EPLB_STATUS_INVALID_ARGUMENT)
                  .find("are 3 rows of counts, and the recorder has 2"),
              std::string::npos);
    recorder.rearm(100, 110, token.stream);
    token.run(recorder, 99, 111);
    recorder.flush();
    const dump_file file(dir / "dump/100-110/rank0.safetensors");
    EXPECT_EQ(file.num_tensors(), 2u);
    EXPECT_EQ(file.tensor("100_3"), chosen(2)) << "100 and 103";
    EXPECT_EQ(file.tensor("106_3"), chosen(2)) << "106 and 109";
}

TEST(RecorderRearm, CaptureRefusesItAndAFailedClearLosesTheCounts) {
    const fake_cuda_controls *fake = engine::get().fake();
    if (fake == nullptr) {
        GTEST_SKIP() << "there is no fake driver";
    }
    temporary_directory dir;
    one_token token;
    auto recorder = eplb::recorder::create(small_config(dir / "dump", 0, 2));
    token.run(recorder, 0, 3);
    recorder.flush();
    const engine_graph graph(token.stream, [&] {
        EXPECT_NE(refusal([&] { recorder.rearm(10, 12, token.stream); }, EPLB_STATUS_CAPTURING)
                      .find("eplb_recorder_rearm()"),
                  std::string::npos);
    });
    size_t lost = 0;
    for (size_t call = 1;; call++) {
        fake->fake_cuda_fail_call(call, CUDA_ERROR_UNKNOWN);
        const eplb_status status = eplb_recorder_rearm(recorder.get(), 10, 12, token.stream);
        const bool fired = fake->fake_cuda_fault_fired() != 0;
        fake->fake_cuda_fail_call(0, 0);
        if (!fired) {
            EXPECT_EQ(status, EPLB_STATUS_OK);
            break;
        }
        if (recorder.info().state == EPLB_RECORDER_STATE_LOST) {
            EXPECT_EQ(status, EPLB_STATUS_CUDA);
            lost++;
            recorder.reset(token.stream);
        }
    }
    EXPECT_GT(lost, 0u);
    token.run(recorder, 10, 13);
    recorder.flush();
    EXPECT_EQ(dump_file(dir / "dump/10-12/rank0.safetensors").tensor("11_3"), chosen(1));
    EXPECT_EQ(dump_file(dir / "dump/rank0.safetensors").tensor("1_3"), chosen(1));
}

TEST(RecorderRearm, FirstFileStaysThatOfTheRecorder) {
    temporary_directory dir;
    one_token token;
    const auto config = small_config(dir / "dump", 0, 2);
    {
        auto recorder = eplb::recorder::create(config);
        token.run(recorder, 0, 3);
        recorder.flush();
        recorder.rearm(3, 5, token.stream);
        refusal([&] { eplb::recorder::create(config); }, EPLB_STATUS_WRITE_FAILED);
        token.run(recorder, 3, 6);
        recorder.flush();
        recorder.rearm(6, 8, token.stream);
        refusal([&] { eplb::recorder::create(config); }, EPLB_STATUS_WRITE_FAILED);
        token.stream.synchronize();
    }
    EXPECT_EQ(dump_file(dir / "dump/rank0.safetensors").tensor("1_3"), chosen(1));
    eplb::recorder::create(config);
}

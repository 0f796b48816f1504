// What only CUDA devices have: contexts, captures, streams and kinds of memory. Over fake_cuda and on a GPU.
#include "cuda_fixture.h"

TEST_F(Cuda, IsAvailable) { EXPECT_EQ(eplb_cuda_available(), 1); }

TEST_F(Cuda, CreateRejectsAnUnknownDevice) {
    temporary_directory dir;
    auto config = a_config(dir / "dump");
    config.device = 1000;
    EXPECT_NE(
        message_of([&] { eplb::recorder::create(config); }, EPLB_STATUS_INVALID_ARGUMENT).find("device 1000"),
        std::string::npos);
}

TEST_F(Cuda, CurrentContextCountsLikeTheDevicesPrimaryOne) {
    temporary_directory dir;
    engine_stream stream;
    auto config = a_config(dir / "dump");
    config.device = EPLB_DEVICE_CURRENT;
    {
        auto recorder = eplb::recorder::create(config);
        const chosen_ids ids(stream);
        for (int64_t iteration = 0; iteration <= 3; iteration++) {
            recorder.begin_iteration(iteration, stream);
            recorder.count_ids(1, ids.data(), 1, nullptr, stream);
        }
        recorder.flush();
        EXPECT_EQ(eplb::stats::load(config.path).layer_loads(1)[5], 6);
        stream.synchronize();
    }
    const cuda_driver &driver = engine::get().driver();
    engine::check(driver.cuCtxSetCurrent(nullptr), "cuCtxSetCurrent");
    const std::string message =
        message_of([&] { eplb::recorder::create(config); }, EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_NE(message.find("no CUDA context is current"), std::string::npos) << message;
    engine::get().attach_thread();
}

TEST_F(Cuda, CallsLeaveTheCurrentContextUnchanged) {
    temporary_directory dir;
    const cuda_driver &driver = engine::get().driver();
    engine_stream stream;
    const chosen_ids ids(stream);
    int devices = 0;
    engine::check(driver.cuDeviceGetCount(&devices), "cuDeviceGetCount");
    CUcontext other = nullptr;
    engine::check(driver.cuCtxCreate_v2(&other, 0, devices - 1), "cuCtxCreate");
    for (CUcontext popped = other; current_context() != nullptr;) {
        engine::check(driver.cuCtxPopCurrent_v2(&popped), "cuCtxPopCurrent");
    }
    for (const CUcontext context : {other, CUcontext(nullptr)}) {
        engine::check(driver.cuCtxSetCurrent(context), "cuCtxSetCurrent");
        const auto as_found = [&](const char *call) {
            EXPECT_EQ(current_context(), context) << call;
            EXPECT_EQ(capture_mode(), CU_STREAM_CAPTURE_MODE_GLOBAL) << call;
        };
        const auto config = a_config(dir / "dump");
        {
            auto recorder = eplb::recorder::create(config);
            as_found("create");
            recorder.register_buffer(1, ids.data(), 1, nullptr, stream);
            as_found("register_buffer");
            for (int64_t iteration = 0; iteration <= 3; iteration++) {
                recorder.begin_iteration(iteration, stream);
                as_found("begin_iteration");
                recorder.count(1, 1, stream);
                as_found("count");
            }
            recorder.flush();
            as_found("flush");
            EXPECT_EQ(recorder.info().ids_counted, 12u);
            as_found("get_info");
            recorder.reset(stream);
            as_found("reset");
        }
        as_found("destroy");
        EXPECT_EQ(eplb::stats::load(config.path).layer_loads(1)[5], 6);
    }
    engine::check(driver.cuCtxDestroy_v2(other), "cuCtxDestroy");
    engine::get().attach_thread();
    stream.synchronize();
}

TEST_F(Cuda, OnlyHotCallsMayBeCaptured) {
    temporary_directory dir;
    engine_stream stream, elsewhere;
    const chosen_ids ids(stream);
    auto config = a_config(dir / "dump");
    auto recorder = eplb::recorder::create(config);
    recorder.begin_iteration(0, elsewhere);
    const engine_graph graph(stream, [&] {
        for (const auto &call : {std::function<void()>([&] { recorder.begin_iteration(1, stream); }),
                                 std::function<void()>([&] { recorder.dump(stream); }),
                                 std::function<void()>([&] { recorder.reset(stream); })}) {
            const std::string message = message_of(call, EPLB_STATUS_CAPTURING);
            EXPECT_NE(message.find("being captured"), std::string::npos) << message;
        }
        // The capture survives calls of the driver on other streams or on none.
        recorder.count_ids(0, ids.data(), 1, nullptr, stream);
        recorder.register_buffer(1, ids.data(), 1, nullptr, elsewhere);
        EXPECT_EQ(recorder.info().iteration, 0);
        auto second = config;
        second.path = dir / "second";
        const auto another = eplb::recorder::create(second);
        recorder.begin_iteration(2, elsewhere);
        recorder.begin_iteration(3, elsewhere);
        recorder.flush();
    });
    recorder.reset(elsewhere);
    recorder.begin_iteration(0, elsewhere);
    stream.wait_for(elsewhere);
    graph.replay(stream);
    graph.replay(stream);
    recorder.dump(stream);
    recorder.flush();
    eplb::stats_options options;
    options.iter_stop = 1;
    EXPECT_EQ(eplb::stats::load(config.path, options).layer_loads(0)[5], 4);
    stream.synchronize();
}

TEST_F(Cuda, RegisterBufferRejectsHostMemoryAndForeignStreams) {
    temporary_directory dir;
    const cuda_driver &driver = engine::get().driver();
    engine_stream stream;
    engine_array<int32_t> ids(4);
    auto recorder = eplb::recorder::create(a_config(dir / "dump"));
    std::vector<int32_t> on_host(4);
    int pageable = 0;
    engine::check(driver.cuDeviceGetAttribute(&pageable, CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS, 0),
                  "cuDeviceGetAttribute");
    if (pageable == 0) {
        const auto host_ids = [&] { recorder.register_buffer(0, on_host.data(), 1, nullptr, stream); };
        EXPECT_EQ(message_of(host_ids, EPLB_STATUS_INVALID_ARGUMENT),
                  "expert_ids is not memory that CUDA device 0 can reach");
        const auto host_valid = [&] { recorder.register_buffer(0, ids.data(), 1, on_host.data(), stream); };
        EXPECT_EQ(message_of(host_valid, EPLB_STATUS_INVALID_ARGUMENT),
                  "num_valid is not memory that CUDA device 0 can reach");
    }
    CUcontext other = nullptr;
    engine::check(driver.cuCtxCreate_v2(&other, 0, 0), "cuCtxCreate");
    {
        engine_stream foreign;
        const auto call = [&] { recorder.register_buffer(0, ids.data(), 1, nullptr, foreign); };
        EXPECT_NE(message_of(call, EPLB_STATUS_INVALID_ARGUMENT).find("another CUDA context"),
                  std::string::npos);
    }
    engine::check(driver.cuCtxDestroy_v2(other), "cuCtxDestroy");
    engine::get().attach_thread();
}

TEST_F(Cuda, DefaultStreamsCount) {
    // The legacy default stream and the per-thread one.
    for (const CUstream stream : {CUstream(nullptr), CU_STREAM_PER_THREAD}) {
        temporary_directory dir;
        const chosen_ids ids(stream);
        const auto config = a_config(dir / "dump");
        auto recorder = eplb::recorder::create(config);
        recorder.register_buffer(0, ids.data(), 1, nullptr, stream);
        for (int64_t iteration = 0; iteration <= 3; iteration++) {
            recorder.begin_iteration(iteration, stream);
            recorder.count(0, 1, stream);
        }
        recorder.flush();
        EXPECT_EQ(eplb::stats::load(config.path).layer_loads(0)[5], 6);
        engine::check(engine::get().driver().cuStreamSynchronize(stream), "cuStreamSynchronize");
    }
}

TEST_F(Cuda, InvalidatedCaptureLosesNoCounts) {
    temporary_directory dir;
    const cuda_driver &driver = engine::get().driver();
    engine_stream stream;
    const chosen_ids ids(stream);
    const auto config = a_config(dir / "dump");
    auto recorder = eplb::recorder::create(config);
    const auto count = [&] { recorder.count_ids(0, ids.data(), 1, nullptr, stream); };
    recorder.begin_iteration(0, stream);
    // An engine tries to capture, and continues without a graph.
    engine::check(driver.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL),
                  "cuStreamBeginCapture");
    CUdeviceptr memory = 0;
    EXPECT_NE(driver.cuMemAlloc_v2(&memory, 16), CUDA_SUCCESS) << "forbidden during the capture";
    message_of(count, EPLB_STATUS_CUDA);
    CUgraph graph = nullptr;
    EXPECT_NE(driver.cuStreamEndCapture(stream, &graph), CUDA_SUCCESS);
    count();
    for (int64_t iteration = 1; iteration <= 3; iteration++) {
        recorder.begin_iteration(iteration, stream);
    }
    recorder.flush();
    EXPECT_EQ(eplb::stats::load(config.path).layer_loads(0)[5], 2);
    stream.synchronize();
}

TEST_F(Cuda, CountForbiddenByACaptureElsewhereLosesTheCounts) {
    temporary_directory dir;
    const cuda_driver &driver = engine::get().driver();
    engine_array<int32_t> ids(4);
    auto recorder = eplb::recorder::create(a_config(dir / "dump"));
    recorder.begin_iteration(0, nullptr);
    CUstream blocking = nullptr;
    CUgraph graph = nullptr;
    engine::check(driver.cuStreamCreate(&blocking, CU_STREAM_DEFAULT), "cuStreamCreate");
    engine::check(driver.cuStreamBeginCapture_v2(blocking, CU_STREAM_CAPTURE_MODE_GLOBAL),
                  "cuStreamBeginCapture");
    const auto count = [&] { recorder.count_ids(0, ids.data(), 1, nullptr, nullptr); };
    message_of(count, EPLB_STATUS_CUDA);
    driver.cuStreamEndCapture(blocking, &graph);
    EXPECT_EQ(recorder.info().state, EPLB_RECORDER_STATE_LOST);
    message_of([&] { recorder.flush(); }, EPLB_STATUS_CUDA);
    engine::check(driver.cuStreamDestroy_v2(blocking), "cuStreamDestroy");
    recorder.reset(nullptr);
    EXPECT_EQ(recorder.info().state, EPLB_RECORDER_STATE_WAITING);
    engine::check(driver.cuStreamSynchronize(nullptr), "cuStreamSynchronize");
}

TEST_F(Cuda, OffRangeCountsDoNotTouchTheDefaultStream) {
    temporary_directory dir;
    const cuda_driver &driver = engine::get().driver();
    engine_array<int32_t> ids(4);
    auto recorder = eplb::recorder::create(a_config(dir / "dump"));
    // The default stream waits for this one.
    CUstream blocking = nullptr;
    CUgraph graph = nullptr;
    engine::check(driver.cuStreamCreate(&blocking, CU_STREAM_DEFAULT), "cuStreamCreate");
    engine::check(driver.cuStreamBeginCapture_v2(blocking, CU_STREAM_CAPTURE_MODE_GLOBAL),
                  "cuStreamBeginCapture");
    recorder.count_ids(0, ids.data(), 1, nullptr, nullptr);
    const std::string message =
        message_of([&] { recorder.begin_iteration(0, nullptr); }, EPLB_STATUS_CAPTURING);
    EXPECT_NE(message.find("the default stream must not be used"), std::string::npos) << message;
    EXPECT_EQ(driver.cuStreamEndCapture(blocking, &graph), CUDA_SUCCESS) << "the capture is unharmed";
    engine::check(driver.cuGraphDestroy(graph), "cuGraphDestroy");
    engine::check(driver.cuStreamDestroy_v2(blocking), "cuStreamDestroy");
}

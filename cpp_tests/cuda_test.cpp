// What only a CUDA device can do, and what a driver can do to us. Tests that need fake_cuda's controls are
// skipped on a genuine driver.
#include <gtest/gtest.h>

#include <csignal>
#include <eplb.hpp>
#include <set>

#include <sys/wait.h>
#include <unistd.h>

#include "engine.h"
#include "files.h"

namespace {

eplb::recorder_config a_config(const std::string &path) {
    eplb::recorder_config config;
    config.path = path;
    config.iter_stop = 3;
    config.num_ranks = 1;
    config.num_experts = 64;
    config.experts_per_token = 4;
    config.layer_ids = {0, 1};
    config.device = 0;
    return config;
}

const fake_cuda_controls &fake() { return *engine::get().fake(); }

CUcontext current_context() {
    CUcontext context = nullptr;
    engine::check(engine::get().driver().cuCtxGetCurrent(&context), "cuCtxGetCurrent");
    return context;
}

/// The thread's capture mode, which stays what it is.
CUstreamCaptureMode capture_mode() {
    const cuda_driver &driver = engine::get().driver();
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL, was = mode;
    engine::check(driver.cuThreadExchangeStreamCaptureMode(&was), "cuThreadExchangeStreamCaptureMode");
    mode = was;
    engine::check(driver.cuThreadExchangeStreamCaptureMode(&mode), "cuThreadExchangeStreamCaptureMode");
    return was;
}

std::string message_of(const std::function<void()> &call, eplb_status expected) {
    try {
        call();
    } catch (const eplb::error &error) {
        EXPECT_EQ(error.status(), expected) << error.what();
        return error.what();
    }
    ADD_FAILURE() << "it succeeded";
    return "";
}

class Cuda : public testing::Test {
  protected:
    void SetUp() override {
        if (!engine::get().is_cuda()) {
            GTEST_SKIP() << "EPLB_TEST_DEVICE is not cuda";
        }
    }
};

class FakeCuda : public Cuda {
  protected:
    void SetUp() override {
        Cuda::SetUp();
        if (!IsSkipped() && engine::get().fake() == nullptr) {
            GTEST_SKIP() << "the driver is a genuine one";
        }
    }
};

} // namespace

TEST_F(Cuda, IsAvailable) { EXPECT_EQ(eplb_cuda_available(), 1); }

TEST_F(Cuda, ADeviceThatIsNotThereIsAnError) {
    temporary_directory dir;
    auto config = a_config(dir / "dump");
    config.device = 1000;
    EXPECT_NE(
        message_of([&] { eplb::recorder::create(config); }, EPLB_STATUS_INVALID_ARGUMENT).find("device 1000"),
        std::string::npos);
}

TEST_F(Cuda, TheCurrentContextServesAsWellAsTheDevicesOwn) {
    temporary_directory dir;
    engine_stream stream;
    auto config = a_config(dir / "dump");
    config.device = EPLB_DEVICE_CURRENT;
    {
        const auto recorder = eplb::recorder::create(config);
        engine_array<int32_t> ids(4);
        const std::vector<int32_t> values = {5, 6, 7, 5};
        ids.upload(values, stream);
        for (int64_t iteration = 0; iteration <= 3; iteration++) {
            recorder.begin_iteration(iteration, stream);
            recorder.count_ids(1, ids.data(), EPLB_DTYPE_INT32, 1, nullptr, stream);
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

TEST_F(Cuda, TheHostsContextIsLeftAsFound) {
    temporary_directory dir;
    const cuda_driver &driver = engine::get().driver();
    engine_stream stream;
    engine_array<int32_t> ids(4);
    const std::vector<int32_t> values = {5, 6, 7, 5};
    ids.upload(values, stream);
    stream.synchronize();
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
            const auto recorder = eplb::recorder::create(config);
            as_found("create");
            recorder.register_buffer(1, ids.data(), EPLB_DTYPE_INT32, 1, nullptr, stream);
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

TEST_F(Cuda, WhileAStreamIsCapturedOnlyHotCallsTakePartInIt) {
    temporary_directory dir;
    engine_stream stream, elsewhere;
    engine_array<int32_t> ids(4);
    const std::vector<int32_t> values = {5, 6, 7, 5};
    ids.upload(values, stream);
    stream.synchronize();
    auto config = a_config(dir / "dump");
    const auto recorder = eplb::recorder::create(config);
    recorder.begin_iteration(0, elsewhere);
    const engine_graph graph(stream, [&] {
        for (const auto &call : {std::function<void()>([&] { recorder.begin_iteration(1, stream); }),
                                 std::function<void()>([&] { recorder.dump(stream); }),
                                 std::function<void()>([&] { recorder.reset(stream); })}) {
            const std::string message = message_of(call, EPLB_STATUS_CAPTURING);
            EXPECT_NE(message.find("being captured"), std::string::npos) << message;
        }
        // The capture survives these, which call the driver on other streams or on none.
        recorder.count_ids(0, ids.data(), EPLB_DTYPE_INT32, 1, nullptr, stream);
        recorder.register_buffer(1, ids.data(), EPLB_DTYPE_INT32, 1, nullptr, elsewhere);
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

TEST_F(Cuda, AStreamOfAnotherContextAndHostMemoryAreErrors) {
    temporary_directory dir;
    const cuda_driver &driver = engine::get().driver();
    engine_stream stream;
    engine_array<int32_t> ids(4);
    const auto recorder = eplb::recorder::create(a_config(dir / "dump"));
    std::vector<int32_t> on_host(4);
    int pageable = 0;
    engine::check(driver.cuDeviceGetAttribute(&pageable, CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS, 0),
                  "cuDeviceGetAttribute");
    if (pageable == 0) {
        const auto host_ids = [&] {
            recorder.register_buffer(0, on_host.data(), EPLB_DTYPE_INT32, 1, nullptr, stream);
        };
        EXPECT_EQ(message_of(host_ids, EPLB_STATUS_INVALID_ARGUMENT),
                  "expert_ids is not memory that CUDA device 0 can reach");
        const auto host_valid = [&] {
            recorder.register_buffer(0, ids.data(), EPLB_DTYPE_INT32, 1, on_host.data(), stream);
        };
        EXPECT_EQ(message_of(host_valid, EPLB_STATUS_INVALID_ARGUMENT),
                  "num_valid is not memory that CUDA device 0 can reach");
    }
    CUcontext other = nullptr;
    engine::check(driver.cuCtxCreate_v2(&other, 0, 0), "cuCtxCreate");
    {
        engine_stream foreign;
        const auto call = [&] {
            recorder.register_buffer(0, ids.data(), EPLB_DTYPE_INT32, 1, nullptr, foreign);
        };
        EXPECT_NE(message_of(call, EPLB_STATUS_INVALID_ARGUMENT).find("another CUDA context"),
                  std::string::npos);
    }
    engine::check(driver.cuCtxDestroy_v2(other), "cuCtxDestroy");
    engine::get().attach_thread();
}

TEST_F(FakeCuda, ADriverOlderThanTheFatbinTakesThePtx) {
    temporary_directory dir;
    fake().fake_cuda_refuse_fatbins(CUDA_ERROR_NO_BINARY_FOR_GPU);
    // Driver 525 has PTX 8.0; this asks for less.
    fake().fake_cuda_set_newest_ptx(7, 0);
    EXPECT_NO_THROW(eplb::recorder::create(a_config(dir / "dump")));
    fake().fake_cuda_set_newest_ptx(6, 5);
    const std::string message =
        message_of([&] { eplb::recorder::create(a_config(dir / "dump")); }, EPLB_STATUS_CUDA);
    EXPECT_NE(message.find("CUDA error 209, CUDA_ERROR_NO_BINARY_FOR_GPU"), std::string::npos) << message;
    EXPECT_NE(message.find("CUDA error 222, CUDA_ERROR_UNSUPPORTED_PTX_VERSION"), std::string::npos)
        << message;
    fake().fake_cuda_refuse_fatbins(0);
    fake().fake_cuda_set_newest_ptx(9, 0);
}

TEST_F(FakeCuda, MemoryThatIsNotToBeHadHasAStatusOfItsOwn) {
    temporary_directory dir;
    const auto config = a_config(dir / "dump");
    const eplb_recorder_config c = config.c();
    size_t refused = 0;
    for (size_t n = 1; n < 100; n++) {
        fake().fake_cuda_fail_call(n, CUDA_ERROR_OUT_OF_MEMORY);
        eplb_recorder *recorder = nullptr;
        if (eplb_recorder_create(&c, &recorder) == EPLB_STATUS_OUT_OF_MEMORY) {
            const std::string message = eplb_last_error_message();
            EXPECT_NE(message.find("CUDA error 2, CUDA_ERROR_OUT_OF_MEMORY"), std::string::npos) << message;
            EXPECT_NE(message.find("count fewer iterations"), std::string::npos) << message;
            refused++;
        }
        fake().fake_cuda_fail_call(0, 0);
        eplb_recorder_destroy(recorder);
    }
    EXPECT_EQ(refused, 3u) << "the window, and host memory for the counts and for the sums";
}

TEST_F(FakeCuda, MemoryOfAnotherDeviceIsAnError) {
    temporary_directory dir;
    const cuda_driver &driver = engine::get().driver();
    auto config = a_config(dir / "dump");
    const auto recorder = eplb::recorder::create(config);
    CUcontext other = nullptr;
    CUdeviceptr memory = 0;
    void *pinned = nullptr;
    engine::check(driver.cuCtxCreate_v2(&other, 0, 1), "cuCtxCreate");
    engine::check(driver.cuMemAlloc_v2(&memory, 1 << 20), "cuMemAlloc");
    engine::check(driver.cuMemHostAlloc(&pinned, 1 << 20, 0), "cuMemHostAlloc");
    const auto there = [&] {
        recorder.register_buffer(0, reinterpret_cast<void *>(memory), EPLB_DTYPE_INT32, 1);
    };
    EXPECT_EQ(message_of(there, EPLB_STATUS_INVALID_ARGUMENT),
              "expert_ids is memory of CUDA device 1, and the handle is on device 0");
    EXPECT_NO_THROW(recorder.register_buffer(0, pinned, EPLB_DTYPE_INT32, 1)) << "which kernels can read";
    config.path = dir / "second";
    config.workspace = pinned;
    config.workspace_bytes = 1 << 20;
    EXPECT_EQ(message_of([&] { eplb::recorder::create(config); }, EPLB_STATUS_INVALID_ARGUMENT),
              "workspace is host memory, and memory of CUDA device 0 is needed");
    engine::check(driver.cuMemFreeHost(pinned), "cuMemFreeHost");
    engine::check(driver.cuMemFree_v2(memory), "cuMemFree");
    engine::check(driver.cuCtxDestroy_v2(other), "cuCtxDestroy");
    engine::get().attach_thread();
}

TEST_F(Cuda, TheDefaultStreamsServeAsWell) {
    // The legacy one, and the one that a program built with per-thread default streams has.
    for (const CUstream stream : {CUstream(nullptr), CU_STREAM_PER_THREAD}) {
        temporary_directory dir;
        engine_array<int32_t> ids(4);
        const std::vector<int32_t> values = {5, 6, 7, 5};
        ids.upload(values, stream);
        const auto config = a_config(dir / "dump");
        const auto recorder = eplb::recorder::create(config);
        recorder.register_buffer(0, ids.data(), EPLB_DTYPE_INT32, 1, nullptr, stream);
        for (int64_t iteration = 0; iteration <= 3; iteration++) {
            recorder.begin_iteration(iteration, stream);
            recorder.count(0, 1, stream);
        }
        recorder.flush();
        EXPECT_EQ(eplb::stats::load(config.path).layer_loads(0)[5], 6);
        engine::check(engine::get().driver().cuStreamSynchronize(stream), "cuStreamSynchronize");
    }
}

TEST_F(Cuda, ACaptureThatWasSpoiltCostsNoCounts) {
    temporary_directory dir;
    const cuda_driver &driver = engine::get().driver();
    engine_stream stream;
    engine_array<int32_t> ids(4);
    const std::vector<int32_t> values = {5, 6, 7, 5};
    ids.upload(values, stream);
    stream.synchronize();
    const auto config = a_config(dir / "dump");
    const auto recorder = eplb::recorder::create(config);
    const auto count = [&] { recorder.count_ids(0, ids.data(), EPLB_DTYPE_INT32, 1, nullptr, stream); };
    recorder.begin_iteration(0, stream);
    // An engine that tries to capture, and goes on without.
    engine::check(driver.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL),
                  "cuStreamBeginCapture");
    CUdeviceptr memory = 0;
    EXPECT_NE(driver.cuMemAlloc_v2(&memory, 16), CUDA_SUCCESS) << "which is forbidden meanwhile";
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

TEST_F(Cuda, ACountThatACaptureElsewhereForbidsLosesTheCounts) {
    temporary_directory dir;
    const cuda_driver &driver = engine::get().driver();
    engine_array<int32_t> ids(4);
    const auto recorder = eplb::recorder::create(a_config(dir / "dump"));
    recorder.begin_iteration(0, nullptr);
    CUstream blocking = nullptr;
    CUgraph graph = nullptr;
    engine::check(driver.cuStreamCreate(&blocking, CU_STREAM_DEFAULT), "cuStreamCreate");
    engine::check(driver.cuStreamBeginCapture_v2(blocking, CU_STREAM_CAPTURE_MODE_GLOBAL),
                  "cuStreamBeginCapture");
    const auto count = [&] { recorder.count_ids(0, ids.data(), EPLB_DTYPE_INT32, 1, nullptr, nullptr); };
    message_of(count, EPLB_STATUS_CUDA);
    driver.cuStreamEndCapture(blocking, &graph);
    EXPECT_EQ(recorder.info().state, EPLB_RECORDER_STATE_LOST);
    message_of([&] { recorder.flush(); }, EPLB_STATUS_CUDA);
    engine::check(driver.cuStreamDestroy_v2(blocking), "cuStreamDestroy");
    recorder.reset(nullptr);
    EXPECT_EQ(recorder.info().state, EPLB_RECORDER_STATE_WAITING);
    engine::check(driver.cuStreamSynchronize(nullptr), "cuStreamSynchronize");
}

TEST_F(Cuda, WhileNothingIsCountedTheDefaultStreamIsLeftAlone) {
    temporary_directory dir;
    const cuda_driver &driver = engine::get().driver();
    engine_array<int32_t> ids(4);
    const auto recorder = eplb::recorder::create(a_config(dir / "dump"));
    // A stream that the default stream waits for.
    CUstream blocking = nullptr;
    CUgraph graph = nullptr;
    engine::check(driver.cuStreamCreate(&blocking, CU_STREAM_DEFAULT), "cuStreamCreate");
    engine::check(driver.cuStreamBeginCapture_v2(blocking, CU_STREAM_CAPTURE_MODE_GLOBAL),
                  "cuStreamBeginCapture");
    recorder.count_ids(0, ids.data(), EPLB_DTYPE_INT32, 1, nullptr, nullptr);
    const std::string message =
        message_of([&] { recorder.begin_iteration(0, nullptr); }, EPLB_STATUS_CAPTURING);
    EXPECT_NE(message.find("the default stream must not be used"), std::string::npos) << message;
    EXPECT_EQ(driver.cuStreamEndCapture(blocking, &graph), CUDA_SUCCESS) << "the capture is as it was";
    engine::check(driver.cuGraphDestroy(graph), "cuGraphDestroy");
    engine::check(driver.cuStreamDestroy_v2(blocking), "cuStreamDestroy");
}

namespace {

/// The driver's functions that this thread calls meanwhile.
std::set<std::string> calls_of(const std::function<void()> &work) {
    fake().fake_cuda_log_clear();
    work();
    std::vector<const char *> names(1000);
    names.resize(fake().fake_cuda_log(names.data(), names.size()));
    return {names.begin(), names.end()};
}

} // namespace

TEST_F(FakeCuda, HotCallsNeitherSynchroniseNorAllocateOnTheDevice) {
    temporary_directory dir;
    engine_stream stream;
    engine_array<int32_t> ids(4);
    const std::vector<int32_t> values = {5, 6, 7, 5};
    ids.upload(values, stream);
    const auto recorder = eplb::recorder::create(a_config(dir / "dump"));
    recorder.register_buffer(0, ids.data(), EPLB_DTYPE_INT32, 1, nullptr, stream);
    using names = std::set<std::string>;
    const auto count = [&] {
        recorder.count(0, 1, stream);
        recorder.count_ids(1, ids.data(), EPLB_DTYPE_INT32, 1, nullptr, stream);
    };
    EXPECT_EQ(calls_of(count), (names{"cuCtxGetCurrent", "cuStreamIsCapturing"}))
        << "nothing is being counted";
    EXPECT_EQ(calls_of([&] { recorder.begin_iteration(0, stream); }),
              (names{"cuCtxGetCurrent", "cuStreamIsCapturing", "cuMemsetD32Async"}));
    EXPECT_EQ(calls_of(count), (names{"cuCtxGetCurrent", "cuLaunchKernel"}));
    EXPECT_EQ(calls_of([&] { recorder.begin_iteration(3, stream); }),
              (names{"cuCtxGetCurrent", "cuStreamIsCapturing", "cuMemsetD32Async", "cuEventRecord"}));
    recorder.flush();
    stream.synchronize();
}

namespace {

/// Steers one fault to the n-th driver call that eplb makes, whoever else calls the driver meanwhile.
class fault {
  public:
    explicit fault(size_t n) : left_(n) {}

    eplb_status call(const std::function<eplb_status()> &call) {
        const size_t before = fake().fake_cuda_calls();
        fake().fake_cuda_fail_call(left_, CUDA_ERROR_UNKNOWN);
        const eplb_status status = call();
        if (left_ != 0) {
            fired_ = fired_ || fake().fake_cuda_fault_fired() != 0;
            const size_t made = fake().fake_cuda_calls() - before;
            left_ = fired_ || made >= left_ ? 0 : left_ - made;
        }
        fake().fake_cuda_fail_call(0, 0);
        EXPECT_STRNE(eplb_status_string(status), "unknown status");
        EXPECT_NE(status, EPLB_STATUS_INTERNAL) << eplb_last_error_message();
        if (status == EPLB_STATUS_CUDA) {
            EXPECT_NE(std::string(eplb_last_error_message()).find("CUDA error 999, CUDA_ERROR_UNKNOWN"),
                      std::string::npos)
                << eplb_last_error_message();
        }
        failed_ = failed_ || status != EPLB_STATUS_OK;
        return status;
    }

    bool fired() const { return fired_; }
    bool failed() const { return failed_; }

  private:
    size_t left_;
    bool fired_ = false, failed_ = false;
};

/// A whole run: layer 0 is counted by a graph, layer 1 as it comes. Returns what the dump must have of expert
/// 5, or -1 where there must be none.
void run(eplb_recorder *recorder, fault &fault, const engine_array<int32_t> &ids, const std::string &path) {
    const engine_stream stream;
    bool captured = false;
    const engine_graph graph(stream, [&] {
        captured = fault.call([&] {
            return eplb_recorder_count_ids(recorder, 0, ids.data(), EPLB_DTYPE_INT32, 1, nullptr, stream);
        }) == EPLB_STATUS_OK;
    });
    for (int64_t iteration = 0; iteration <= 3; iteration++) {
        fault.call([&] { return eplb_recorder_begin_iteration(recorder, iteration, stream); });
        graph.replay(stream);
        fault.call([&] {
            return eplb_recorder_count_ids(recorder, 1, ids.data(), EPLB_DTYPE_INT32, 1, nullptr, stream);
        });
    }
    const auto flush = [&] { return fault.call([&] { return eplb_recorder_flush(recorder, -1); }); };
    eplb_status flushed = flush();
    eplb_recorder_info info = EPLB_RECORDER_INFO_INIT;
    const auto state = [&] {
        EXPECT_EQ(fault.call([&] { return eplb_recorder_get_info(recorder, &info, nullptr, 0); }),
                  EPLB_STATUS_OK);
        return info.state;
    };
    // What is not lost is written in the end: by the next flush, or by a dump where it could not be started.
    if (flushed != EPLB_STATUS_OK && state() == EPLB_RECORDER_STATE_FAILED) {
        flushed = flush();
        if (flushed != EPLB_STATUS_OK) {
            fault.call([&] { return eplb_recorder_dump(recorder, stream); });
            flushed = flush();
        }
        EXPECT_EQ(flushed, EPLB_STATUS_OK) << eplb_last_error_message();
    }
    EXPECT_EQ(state(), flushed == EPLB_STATUS_OK ? EPLB_RECORDER_STATE_DUMPED : EPLB_RECORDER_STATE_LOST);
    EXPECT_TRUE(flushed == EPLB_STATUS_OK || info.error_status == EPLB_STATUS_CUDA);
    if (flushed == EPLB_STATUS_OK) {
        const auto stats = eplb::stats::load(path);
        EXPECT_EQ(stats.layer_loads(0)[5], captured ? 6 : 0);
        EXPECT_EQ(stats.layer_loads(1)[5], 6);
    } else {
        EXPECT_FALSE(std::filesystem::exists(path + "/rank0.safetensors"))
            << "a dump that was said to have failed";
    }
    stream.synchronize();
}

} // namespace

namespace {

/// Creates a recorder, registers a buffer and something that is none, runs, and gives it back, with a fault
/// in the n-th call of eplb. Returns whether there was a recorder.
bool live(fault &fault, int32_t device, const engine_array<int32_t> &ids, const engine_stream &stream) {
    temporary_directory dir;
    auto config = a_config(dir / "dump");
    config.device = device;
    const eplb_recorder_config c = config.c();
    eplb_recorder *recorder = nullptr;
    fault.call([&] { return eplb_recorder_create(&c, &recorder); });
    if (recorder == nullptr) {
        EXPECT_TRUE(fault.failed());
        EXPECT_FALSE(std::filesystem::exists(config.path + "/.rank0.safetensors.partial"));
        return false;
    }
    const auto register_buffer = [&](const void *memory) {
        return fault.call([&] {
            return eplb_recorder_register_buffer(recorder, 0, memory, EPLB_DTYPE_INT32, 1, nullptr, stream);
        });
    };
    const int32_t on_host = 0;
    EXPECT_NE(register_buffer(&on_host), EPLB_STATUS_OK);
    register_buffer(ids.data());
    run(recorder, fault, ids, config.path);
    // Whatever happened, it can start anew: the second run is as if nothing had been.
    fault.call([&] { return eplb_recorder_reset(recorder, stream); });
    if (fault.fired()) {
        class fault none(0);
        EXPECT_EQ(none.call([&] { return eplb_recorder_reset(recorder, stream); }), EPLB_STATUS_OK);
        stream.synchronize();
        std::filesystem::remove(config.path + "/rank0.safetensors");
        run(recorder, none, ids, config.path);
        EXPECT_FALSE(none.failed());
    }
    fault.call([&] {
        eplb_recorder_destroy(recorder);
        return EPLB_STATUS_OK;
    });
    return true;
}

} // namespace

TEST_F(FakeCuda, EveryDriverCallMayFailOnce) {
    const engine_array<int32_t> ids(4);
    const engine_stream stream;
    const std::vector<int32_t> values = {5, 6, 7, 5};
    ids.upload(values, stream);
    stream.synchronize();
    const size_t objects = fake().fake_cuda_live_objects();
    for (const int32_t device : {0, EPLB_DEVICE_CURRENT}) {
        // More calls than eplb makes: the engine's are among them, and so the last of eplb's are not missed.
        const size_t before = fake().fake_cuda_calls();
        fault none(0);
        live(none, device, ids, stream);
        const size_t calls = fake().fake_cuda_calls() - before;

        size_t refused = 0, fired = 0;
        for (size_t n = 1; n <= calls; n++) {
            fault fault(n);
            refused += !live(fault, device, ids, stream);
            fired += fault.fired();
            EXPECT_EQ(fake().fake_cuda_live_objects(), objects) << "after a fault in call " << n;
            EXPECT_EQ(current_context(), engine::get().context()) << "after a fault in call " << n;
            EXPECT_EQ(capture_mode(), CU_STREAM_CAPTURE_MODE_GLOBAL) << "after a fault in call " << n;
        }
        EXPECT_GT(refused, 20u);
        EXPECT_GT(fired, 100u);
        std::printf("device %d: %zu calls failed once, in turn, %zu of them in create\n", device, fired,
                    refused);
    }
}

TEST_F(FakeCuda, AForkedCopyDoesNotTouchTheDevice) {
    temporary_directory dir;
    auto recorder = std::make_unique<eplb::recorder>(eplb::recorder::create(a_config(dir / "dump")));
    int answer[2];
    ASSERT_EQ(pipe(answer), 0);
    const pid_t child = fork();
    if (child == 0) {
        const size_t calls = calls_of([&] { recorder.reset(); }).size();
        (void)!write(answer[1], &calls, sizeof(calls));
        pause();
    }
    size_t calls = 1;
    EXPECT_EQ(read(answer[0], &calls, sizeof(calls)), ssize_t(sizeof(calls)));
    EXPECT_EQ(calls, 0u);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    close(answer[0]);
    close(answer[1]);
}

// Old drivers, a fault in every driver call, and the calls that hot paths make. It controls fake_cuda, and is
// skipped on a genuine driver.
#include <csignal>

#include <sys/wait.h>
#include <unistd.h>

#include "fake_fixture.h"

TEST_F(FakeCuda, DriverOlderThanTheFatbinLoadsThePtx) {
    temporary_directory dir;
    fake().fake_cuda_refuse_fatbins(CUDA_ERROR_NO_BINARY_FOR_GPU);
    // Driver 525 has PTX 8.0; the library needs less.
    fake().fake_cuda_set_newest_ptx(7, 0);
    EXPECT_NO_THROW(eplb::recorder::create(a_config(dir / "dump")));
    fake().fake_cuda_set_newest_ptx(6, 5);
    const std::string message =
        message_of([&] { eplb::recorder::create(a_config(dir / "dump")); }, EPLB_STATUS_CUDA);
    EXPECT_NE(message.find("CUDA error 209, CUDA_ERROR_NO_BINARY_FOR_GPU"), std::string::npos) << message;
    EXPECT_NE(message.find("CUDA error 222, CUDA_ERROR_UNSUPPORTED_PTX_VERSION"), std::string::npos)
        << message;
    EXPECT_NE(message.find("; the driver is too old: install NVIDIA's driver 525 or newer"),
              std::string::npos)
        << message;
    fake().fake_cuda_refuse_fatbins(0);
    fake().fake_cuda_set_newest_ptx(9, 0);
}

TEST_F(FakeCuda, DriverThatIsTooOldIsRefusedWithItsVersion) {
    temporary_directory dir;
    fake().fake_cuda_set_version(11080);
    EXPECT_EQ(eplb_cuda_available(), 0);
    EXPECT_EQ(message_of([&] { eplb::recorder::create(a_config(dir / "dump")); }, EPLB_STATUS_NO_DRIVER),
              "no CUDA driver can be used: it supports CUDA 11.8, and 12.0 (driver 525) is required; install "
              "NVIDIA's driver 525 or newer, or use EPLB_DEVICE_HOST");
    fake().fake_cuda_set_version(12000);
    EXPECT_EQ(eplb_cuda_available(), 1);
}

namespace {

/// An error of the driver, and a part of its way out that no other error has.
struct trouble {
    CUresult error;
    const char *name, *way_out;
};

const trouble troubles[] = {
    {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "a fork of one that had initialised CUDA"},
    {CUDA_ERROR_DEINITIALIZED, "CUDA_ERROR_DEINITIALIZED", "destroy the handles before"},
    {CUDA_ERROR_STUB_LIBRARY, "CUDA_ERROR_STUB_LIBRARY", "is the CUDA toolkit's stub: remove its folder"},
    {CUDA_ERROR_DEVICE_UNAVAILABLE, "CUDA_ERROR_DEVICE_UNAVAILABLE", "nvidia-smi -q -d COMPUTE,PIDS"},
    {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "compare nvidia-smi -L with CUDA_VISIBLE_DEVICES"},
    {CUDA_ERROR_SYSTEM_NOT_READY, "CUDA_ERROR_SYSTEM_NOT_READY", "start nvidia-fabricmanager"},
    {CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "reboot or reload the module"},
    {CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE, "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", "cuda-compat"},
    {CUDA_ERROR_MPS_CONNECTION_FAILED, "CUDA_ERROR_MPS_CONNECTION_FAILED",
     "start nvidia-cuda-mps-control -d"},
    {CUDA_ERROR_MPS_RPC_FAILURE, "CUDA_ERROR_MPS_RPC_FAILURE",
     "restart nvidia-cuda-mps-control and this process"},
    {CUDA_ERROR_MPS_SERVER_NOT_READY, "CUDA_ERROR_MPS_SERVER_NOT_READY", "try again"},
    {CUDA_ERROR_MPS_MAX_CLIENTS_REACHED, "CUDA_ERROR_MPS_MAX_CLIENTS_REACHED", "or end idle ones"},
    {CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED, "CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED",
     "CUDA_DEVICE_MAX_CONNECTIONS"},
    {CUDA_ERROR_MPS_CLIENT_TERMINATED, "CUDA_ERROR_MPS_CLIENT_TERMINATED", "has ended this client"},
};

/// The ways out that a message has.
size_t ways_out(const std::string &message) {
    size_t found = 0;
    for (const trouble &trouble : troubles) {
        found += message.find(trouble.way_out) != std::string::npos;
    }
    return found;
}

} // namespace

TEST_F(FakeCuda, EachTroubleOfADriverHasItsOwnWayOut) {
    temporary_directory dir;
    for (const auto &[error, name, way_out] : troubles) {
        // The driver cannot be initialised.
        fake().fake_cuda_fail_call(1, error);
        EXPECT_EQ(eplb_cuda_available(), 0) << name;
        const std::string unusable = eplb_last_error_message();
        fake().fake_cuda_fail_call(0, 0);
        const std::string start = "no CUDA driver can be used: cuInit failed: CUDA error " +
                                  std::to_string(error) + ", " + name + ": ";
        EXPECT_EQ(unusable.find(start), 0u) << unusable;
        EXPECT_NE(unusable.find(way_out), std::string::npos) << unusable;
        EXPECT_EQ(ways_out(unusable), 1u) << unusable;
        EXPECT_NE(unusable.find("; or use EPLB_DEVICE_HOST"), std::string::npos) << unusable;
        EXPECT_EQ(unusable.find("install NVIDIA's driver"), std::string::npos) << unusable;

        // It fails later: in creation, and while counting.
        const engine_stream stream;
        const chosen_ids ids(stream);
        auto recorder = eplb::recorder::create(a_config(dir / "dump"));
        const auto message = [&, error = error](const std::function<void()> &call) {
            fake().fake_cuda_fail_call(3, error);
            const std::string message = message_of(call, EPLB_STATUS_CUDA);
            fake().fake_cuda_fail_call(0, 0);
            return message;
        };
        for (const std::string &failed : {message([&] { eplb::recorder::create(a_config(dir / "second")); }),
                                          message([&] { recorder.begin_iteration(0, stream); })}) {
            EXPECT_NE(failed.find(" failed: CUDA error " + std::to_string(error) + ", " + name),
                      std::string::npos)
                << failed;
            EXPECT_NE(failed.find(way_out), std::string::npos) << failed;
            EXPECT_EQ(ways_out(failed), 1u) << failed;
        }
        stream.synchronize();
    }
}

TEST_F(FakeCuda, FailedAllocationsReturnOutOfMemory) {
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

TEST_F(FakeCuda, MemoryOfAnotherDeviceIsRefused) {
    temporary_directory dir;
    const cuda_driver &driver = engine::get().driver();
    auto config = a_config(dir / "dump");
    auto recorder = eplb::recorder::create(config);
    CUcontext other = nullptr;
    CUdeviceptr memory = 0;
    void *pinned = nullptr;
    engine::check(driver.cuCtxCreate_v2(&other, 0, 1), "cuCtxCreate");
    engine::check(driver.cuMemAlloc_v2(&memory, 1 << 20), "cuMemAlloc");
    engine::check(driver.cuMemHostAlloc(&pinned, 1 << 20, 0), "cuMemHostAlloc");
    const auto there = [&] { recorder.register_buffer(0, reinterpret_cast<const int32_t *>(memory), 1); };
    EXPECT_EQ(message_of(there, EPLB_STATUS_INVALID_ARGUMENT),
              "expert_ids is memory of CUDA device 1, and the handle is on device 0");
    EXPECT_NO_THROW(recorder.register_buffer(0, static_cast<const int32_t *>(pinned), 1))
        << "kernels can read it";
    config.path = dir / "second";
    config.workspace = pinned;
    config.workspace_bytes = 1 << 20;
    EXPECT_EQ(message_of([&] { eplb::recorder::create(config); }, EPLB_STATUS_INVALID_ARGUMENT),
              "workspace is host memory; memory of CUDA device 0 expected");
    engine::check(driver.cuMemFreeHost(pinned), "cuMemFreeHost");
    engine::check(driver.cuMemFree_v2(memory), "cuMemFree");
    engine::check(driver.cuCtxDestroy_v2(other), "cuCtxDestroy");
    engine::get().attach_thread();
}

TEST_F(FakeCuda, HotCallsNeitherSynchroniseNorAllocateOnTheDevice) {
    temporary_directory dir;
    engine_stream stream;
    const chosen_ids ids(stream);
    auto recorder = eplb::recorder::create(a_config(dir / "dump"));
    recorder.register_buffer(0, ids.data(), 1, nullptr, stream);
    using names = std::set<std::string>;
    const auto count = [&] {
        recorder.count(0, 1, stream);
        recorder.count_ids(1, ids.data(), 1, nullptr, stream);
    };
    EXPECT_EQ(calls_of(count), (names{"cuCtxGetCurrent", "cuStreamIsCapturing"})) << "nothing is counted";
    EXPECT_EQ(calls_of([&] { recorder.begin_iteration(0, stream); }),
              (names{"cuCtxGetCurrent", "cuStreamIsCapturing", "cuMemsetD32Async"}));
    EXPECT_EQ(calls_of(count), (names{"cuCtxGetCurrent", "cuLaunchKernel"}));
    EXPECT_EQ(calls_of([&] { recorder.begin_iteration(3, stream); }),
              (names{"cuCtxGetCurrent", "cuStreamIsCapturing", "cuMemsetD32Async", "cuEventRecord"}));
    recorder.flush();
    stream.synchronize();
}

namespace {

/// A whole run: a graph counts layer 0, direct calls count layer 1. Checks the dump, or that there is none if
/// the counts were lost.
void run(eplb_recorder *recorder, fault &fault, const engine_array<int32_t> &ids, const std::string &path) {
    const engine_stream stream;
    const eplb_expert_ids expert_ids = {ids.data(), EPLB_DTYPE_INT32, 0};
    bool captured = false;
    const engine_graph graph(stream, [&] {
        captured = fault.call([&] {
            return eplb_recorder_count_ids(recorder, 0, &expert_ids, 1, nullptr, stream);
        }) == EPLB_STATUS_OK;
    });
    for (int64_t iteration = 0; iteration <= 3; iteration++) {
        fault.call([&] { return eplb_recorder_begin_iteration(recorder, iteration, stream); });
        graph.replay(stream);
        fault.call([&] { return eplb_recorder_count_ids(recorder, 1, &expert_ids, 1, nullptr, stream); });
    }
    const auto flush = [&] { return fault.call([&] { return eplb_recorder_flush(recorder, -1); }); };
    eplb_status flushed = flush();
    eplb_recorder_info info = EPLB_RECORDER_INFO_INIT;
    const auto state = [&] {
        EXPECT_EQ(fault.call([&] { return eplb_recorder_get_info(recorder, &info, nullptr, 0); }),
                  EPLB_STATUS_OK);
        return info.state;
    };
    // Counts that are not lost are written in the end: by the next flush, or by a dump if it failed to start.
    if (flushed != EPLB_STATUS_OK && state() == EPLB_RECORDER_STATE_FAILED) {
        flushed = flush();
        if (flushed != EPLB_STATUS_OK) {
            fault.call([&] { return eplb_recorder_dump(recorder, stream); });
            flushed = flush();
        }
        EXPECT_EQ(flushed, EPLB_STATUS_OK) << eplb_last_error_message();
        state();
        EXPECT_GT(info.dumps_failed, 0u) << "it failed to start, or to be written";
    }
    EXPECT_EQ(state(), flushed == EPLB_STATUS_OK ? EPLB_RECORDER_STATE_DUMPED : EPLB_RECORDER_STATE_LOST);
    EXPECT_TRUE(flushed == EPLB_STATUS_OK || info.error_status == EPLB_STATUS_CUDA);
    if (flushed == EPLB_STATUS_OK) {
        const auto stats = eplb::stats::load(path);
        EXPECT_EQ(stats.layer_loads(0)[5], captured ? 6 : 0);
        EXPECT_EQ(stats.layer_loads(1)[5], 6);
    } else {
        EXPECT_FALSE(std::filesystem::exists(path + "/rank0.safetensors")) << "a failed dump left a file";
    }
    stream.synchronize();
}

} // namespace

namespace {

/// Creates a recorder, registers a bad and a good buffer, runs, and destroys it, with a fault in the n-th
/// driver call of eplb. Returns whether the recorder was created.
bool create_run_destroy(fault &fault, int32_t device, const engine_array<int32_t> &ids,
                        const engine_stream &stream) {
    temporary_directory dir;
    auto config = a_config(dir / "dump");
    config.device = device;
    const eplb_recorder_config c = config.c();
    eplb_recorder *recorder = nullptr;
    fault.call([&] { return eplb_recorder_create(&c, &recorder); });
    if (recorder == nullptr) {
        EXPECT_TRUE(fault.failed());
        EXPECT_EQ(partial_file(config.path, "rank0.safetensors"), "");
        return false;
    }
    const auto register_buffer = [&](const int32_t *memory) {
        const eplb_expert_ids expert_ids = {memory, EPLB_DTYPE_INT32, 0};
        return fault.call(
            [&] { return eplb_recorder_register_buffer(recorder, 0, &expert_ids, 1, nullptr, stream); });
    };
    const int32_t on_host = 0;
    EXPECT_NE(register_buffer(&on_host), EPLB_STATUS_OK);
    register_buffer(ids.data());
    run(recorder, fault, ids, config.path);
    // After any fault a reset restarts it, and the second run succeeds.
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
    const engine_stream stream;
    const chosen_ids ids(stream);
    const size_t objects = fake().fake_cuda_live_objects();
    for (const int32_t device : {0, EPLB_DEVICE_CURRENT}) {
        // At least as many as eplb makes, since the test's own calls are among them.
        const size_t before = fake().fake_cuda_calls();
        fault none(0);
        create_run_destroy(none, device, ids, stream);
        const size_t calls = fake().fake_cuda_calls() - before;

        size_t refused = 0, fired = 0;
        for (size_t n = 1; n <= calls; n++) {
            fault fault(n);
            refused += !create_run_destroy(fault, device, ids, stream);
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

TEST_F(FakeCuda, DriverFaultWhileRoutingReturnsAStatusAndLeaksNothing) {
    const engine_stream stream;
    const chosen_ids ids(stream);
    engine_array<int32_t> slots(4);
    eplb::placement_config sizes;
    sizes.num_experts = 64;
    sizes.num_ranks = 2;
    sizes.num_slots = 66;
    std::vector<int32_t> experts(66);
    for (int32_t slot = 0; slot < 66; slot++) {
        experts[static_cast<size_t>(slot)] = slot % 64;
    }
    const std::vector<int32_t> layers = {0};
    const auto placement = eplb::placement::create(sizes, layers, experts);
    eplb::dispatch_config config;
    config.num_ranks = 2;
    config.experts_per_token = 4;
    config.device = 0;
    const eplb_dispatch_config c = config.c();
    const eplb_expert_ids expert_ids = {ids.data(), EPLB_DTYPE_INT32, 0};
    const eplb_slot_ids slot_ids = {slots.data(), EPLB_DTYPE_INT32, 0};
    const size_t objects = fake().fake_cuda_live_objects();
    size_t fired = 0;
    for (size_t n = 1; n < 100; n++) {
        fault fault(n);
        eplb_dispatch *dispatch = nullptr;
        if (fault.call([&] { return eplb_dispatch_create(placement.get(), &c, &dispatch); }) ==
            EPLB_STATUS_OK) {
            fault.call(
                [&] { return eplb_dispatch_route(dispatch, 0, &expert_ids, 1, nullptr, &slot_ids, stream); });
            // After the fault, the same call succeeds.
            EXPECT_EQ(eplb_dispatch_route(dispatch, 0, &expert_ids, 1, nullptr, &slot_ids, stream),
                      EPLB_STATUS_OK);
            stream.synchronize();
        }
        fired += fault.fired();
        eplb_dispatch_destroy(dispatch);
        EXPECT_EQ(fake().fake_cuda_live_objects(), objects) << "after a fault in call " << n;
        EXPECT_EQ(current_context(), engine::get().context()) << "after a fault in call " << n;
        EXPECT_EQ(capture_mode(), CU_STREAM_CAPTURE_MODE_GLOBAL) << "after a fault in call " << n;
    }
    EXPECT_GT(fired, 30u);
    std::printf("%zu calls failed once, in turn\n", fired);
}

TEST_F(FakeCuda, ForkedProcessMakesNoDriverCall) {
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

TEST_F(FakeCuda, ForkedProcessCannotUseCudaAndReadsWhy) {
    temporary_directory dir;
    const auto config = a_config(dir / "dump");
    const eplb_recorder_config c = config.c();
    int answer[2];
    ASSERT_EQ(pipe(answer), 0);
    const pid_t child = fork();
    if (child == 0) {
        eplb_recorder *recorder = nullptr;
        const eplb_status status = eplb_recorder_create(&c, &recorder);
        const std::string message = status == EPLB_STATUS_NO_DRIVER ? eplb_last_error_message() : "";
        (void)!write(answer[1], message.c_str(), message.size() + 1);
        pause();
    }
    char message[1000] = {};
    EXPECT_GT(read(answer[0], message, sizeof(message) - 1), 0);
    EXPECT_NE(std::string(message).find("cuInit failed: CUDA error 3, CUDA_ERROR_NOT_INITIALIZED: "),
              std::string::npos)
        << message;
    EXPECT_NE(std::string(message).find(
                  "; this process is a fork of one that had initialised CUDA, and cannot use it: "
                  "create it by exec, in Python by the multiprocessing method spawn; or use "
                  "EPLB_DEVICE_HOST"),
              std::string::npos)
        << message;
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    close(answer[0]);
    close(answer[1]);
}

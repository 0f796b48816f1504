// The recorder apart from devices: configs, files, and its info.
#include <gtest/gtest.h>

#include <csignal>
#include <eplb_tools.hpp>
#include <functional>
#include <random>
#include <thread>

#include <dlfcn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "files.h"

namespace {

eplb::recorder_config a_config(const std::string &path) {
    eplb::recorder_config config;
    config.path = path;
    config.iter_start = 100;
    config.iter_stop = 200;
    config.num_ranks = 2;
    config.num_experts = 64;
    config.experts_per_token = 4;
    config.layer_ids = {3, 4};
    return config;
}

/// The message that creating a recorder fails with.
std::string refused(const eplb::recorder_config &config, eplb_status status = EPLB_STATUS_INVALID_ARGUMENT) {
    try {
        eplb::recorder::create(config);
    } catch (const eplb::error &error) {
        EXPECT_EQ(error.status(), status) << error.what();
        return error.what();
    }
    ADD_FAILURE() << "it was created";
    return "";
}

/// The message of a call that fails with EPLB_STATUS_INVALID_ARGUMENT.
std::string message(eplb_status status) {
    EXPECT_EQ(status, EPLB_STATUS_INVALID_ARGUMENT);
    return eplb_last_error_message();
}

/// Runs `work` in a child process and returns its result. The child is killed afterwards, so that it does not
/// run this process's exit handlers.
eplb_status in_a_child(const std::function<eplb_status()> &work) {
    int answer[2];
    EXPECT_EQ(pipe(answer), 0);
    const pid_t child = fork();
    if (child == 0) {
        const eplb_status status = work();
        (void)!write(answer[1], &status, sizeof(status));
        pause();
    }
    eplb_status status = EPLB_STATUS_INTERNAL;
    EXPECT_EQ(read(answer[0], &status, sizeof(status)), ssize_t(sizeof(status)));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    close(answer[0]);
    close(answer[1]);
    return status;
}

} // namespace

TEST(Recorder, CreateRejectsADirectoryThatIsNotWritable) {
    temporary_directory dir;
    write_file(dir / "file", "");
    for (const std::string &path : {dir / "file", dir / "file/dump", std::string("/proc/dump")}) {
        EXPECT_NE(refused(a_config(path), EPLB_STATUS_WRITE_FAILED).find(path), std::string::npos);
    }
    std::filesystem::create_directories(dir / "dump/rank0.safetensors");
    EXPECT_NE(refused(a_config(dir / "dump"), EPLB_STATUS_WRITE_FAILED).find("rank0.safetensors"),
              std::string::npos);
}

TEST(Recorder, CreateNamesTheFieldThatDoesNotFit) {
    temporary_directory dir;
    const auto with = [&](auto change) {
        auto config = a_config(dir / "dump");
        change(config);
        return refused(config);
    };
    using config = eplb::recorder_config;
    EXPECT_EQ(with([](config &c) { c.rank = 2; }), "rank is 2, num_ranks 2; 0 to 1 expected");
    EXPECT_EQ(with([](config &c) { c.num_ranks = 0; }), "num_ranks is 0; at least 1 expected");
    EXPECT_EQ(with([](config &c) { c.num_experts = 0; }), "num_experts is 0; 1 to 1048576 expected");
    EXPECT_EQ(with([](config &c) { c.experts_per_token = 65; }),
              "experts_per_token is 65, num_experts 64; 1 to 64 expected");
    EXPECT_EQ(with([](config &c) { c.layer_ids = {3, 3}; }), "layer 3 is listed twice");
    EXPECT_EQ(with([](config &c) { c.layer_ids = {-1}; }), "a layer id is -1");
    EXPECT_NE(with([](config &c) { c.iter_start = 200; }).find("iter_start must be the lower one"),
              std::string::npos);
    EXPECT_NE(with([](config &c) { c.device = -3; }).find("device is -3"), std::string::npos);
    EXPECT_EQ(with([](config &c) { c.id_kind = 2; }),
              "id_kind is 2; expected EPLB_ID_KIND_EXPERT (0), EPLB_ID_KIND_SLOT (1)");
    EXPECT_NE(with([](config &c) {
                  c.iter_stop = 10'000'000;
              }).find("tensors, more than a safetensors file may have"),
              std::string::npos);
    EXPECT_FALSE(std::filesystem::exists(dir / "dump")) << "a refused config creates nothing";
}

TEST(Recorder, MemoryRequiredIsExactAndNeverGrows) {
    temporary_directory dir;
    const auto config = a_config(dir / "dump");
    const auto required = eplb::recorder::memory_required(config);
    // 100 iterations x 2 layers x 64 counts of 4 bytes, 40 bytes of sums a layer, and the row; each aligned.
    EXPECT_EQ(required.workspace_bytes, 100 * 2 * 64 * 4 + 64 + 128u);
    EXPECT_EQ(required.host_bytes, 100 * 2 * 64 * 4 + 128 + 2 * 40u);
    auto recorder = eplb::recorder::create(config);
    EXPECT_EQ(recorder.info().workspace_bytes, required.workspace_bytes);
    EXPECT_EQ(recorder.info().host_bytes, required.host_bytes);

    auto huge = config;
    huge.num_experts = 1 << 20;
    huge.layer_ids.resize(64);
    for (int32_t i = 0; i < 64; i++) {
        huge.layer_ids[static_cast<size_t>(i)] = i;
    }
    EXPECT_EQ(eplb::recorder::memory_required(huge).workspace_bytes / (uint64_t(100) * 64 * 4 << 20), 1u);
}

TEST(Recorder, OffRecorderAcceptsEveryCallAndDoesNothing) {
    const eplb_recorder_config config = EPLB_RECORDER_CONFIG_INIT;
    size_t workspace = 1, host = 1;
    ASSERT_EQ(eplb_recorder_memory_required(&config, &workspace, &host), EPLB_STATUS_OK);
    EXPECT_EQ(workspace + host, 0u);
    eplb_recorder *handle = nullptr;
    ASSERT_EQ(eplb_recorder_create(&config, &handle), EPLB_STATUS_OK);
    eplb::recorder recorder(handle);
    const int32_t ids[4] = {};
    recorder.register_buffer(77, ids, 1);
    for (int64_t iteration : {5, 3, 1000}) {
        recorder.begin_iteration(iteration);
        recorder.count(77, 1'000'000);
        recorder.count_ids(78, ids, 1);
    }
    recorder.dump();
    recorder.flush();
    recorder.reset();
    const eplb_recorder_info info = recorder.info();
    EXPECT_EQ(info.state, EPLB_RECORDER_STATE_OFF);
    EXPECT_EQ(info.iter_start + info.iter_stop, 0);
    EXPECT_EQ(info.num_layers + info.num_registered_layers, 0u);
    EXPECT_EQ(recorder.layer_tokens(3), std::vector<uint64_t>(3));
}

TEST(Recorder, WithoutADriverOnlyCudaDevicesFail) {
    if (dlopen("libcuda.so.1", RTLD_NOW) != nullptr) {
        GTEST_SKIP() << "there is a driver";
    }
    temporary_directory dir;
    auto config = a_config(dir / "dump");
    for (const int32_t device : {EPLB_DEVICE_CURRENT, 0}) {
        config.device = device;
        EXPECT_EQ(
            refused(config, EPLB_STATUS_NO_DRIVER),
            "no CUDA driver can be used: no libcuda.so.1 is installed; install NVIDIA's driver 525 or newer, "
            "or use EPLB_DEVICE_HOST");
    }
    EXPECT_EQ(eplb_cuda_available(), 0);
    EXPECT_NE(std::string(eplb_last_error_message()).find("no libcuda.so.1"), std::string::npos);
    config.device = EPLB_DEVICE_HOST;
    EXPECT_NO_THROW(eplb::recorder::create(config));
}

TEST(Recorder, CreateRejectsASecondRecorderOfOneRankFile) {
    temporary_directory dir;
    auto config = a_config(dir / "dump");
    auto first = std::make_unique<eplb::recorder>(eplb::recorder::create(config));
    EXPECT_NE(refused(config, EPLB_STATUS_WRITE_FAILED)
                  .find("rank0.safetensors: it is being written by another process"),
              std::string::npos);
    config.rank = 1;
    eplb::recorder::create(config);
    config.rank = 0;

    // The same from another process.
    EXPECT_EQ(in_a_child([&] {
                  eplb_recorder *recorder = nullptr;
                  const eplb_recorder_config c = config.c();
                  return eplb_recorder_create(&c, &recorder);
              }),
              EPLB_STATUS_WRITE_FAILED);

    first.reset();
    eplb::recorder::create(config);
    EXPECT_TRUE(std::filesystem::is_empty(dir / "dump")) << "a recorder without a dump leaves no file";
}

TEST(Recorder, RefusedCallsNameTheArgumentAndChangeNothing) {
    temporary_directory dir;
    auto recorder = eplb::recorder::create(a_config(dir / "dump"));
    eplb_recorder *handle = recorder.get();
    const int32_t ids[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    const eplb_expert_ids expert_ids = {ids, EPLB_DTYPE_INT32, 0};
    EXPECT_EQ(message(eplb_recorder_count(handle, 3, 1, nullptr)),
              "layer 3 has no registered buffer: eplb_recorder_register_buffer() names one, and "
              "eplb_recorder_count_ids() takes any");
    EXPECT_EQ(message(eplb_recorder_register_buffer(handle, 5, &expert_ids, 2, nullptr, nullptr)),
              "layer 5 is not one of the 2 that the recorder was created with, from 3 to 4");
    recorder.register_buffer(3, ids, 2);
    EXPECT_EQ(message(eplb_recorder_count(handle, 3, 3, nullptr)),
              "layer 3: 3 tokens, its buffer was registered with 2");
    recorder.begin_iteration(101);
    EXPECT_EQ(message(eplb_recorder_begin_iteration(handle, 100, nullptr)),
              "iteration 100 after iteration 101: iterations go up; eplb_recorder_reset() restarts");
    recorder.count(3, 2);
    EXPECT_EQ(recorder.info().ids_counted, 8u);
    uint64_t tokens[3] = {};
    eplb_recorder_info info = EPLB_RECORDER_INFO_INIT;
    EXPECT_EQ(message(eplb_recorder_get_info(handle, &info, tokens, 3)),
              "num_layers is 3, the recorder has 2");
    EXPECT_EQ(recorder.layer_tokens(2), (std::vector<uint64_t>{2, 0}));
    const eplb_expert_ids none = {nullptr, EPLB_DTYPE_INT32, 0};
    EXPECT_EQ(eplb_recorder_count_ids(handle, 4, &none, 0, nullptr, nullptr), EPLB_STATUS_OK)
        << "no tokens need no array";
}

TEST(Recorder, RefusesExpertIdsOfOtherStridesAndTypesAndMissingOnes) {
    temporary_directory dir;
    auto recorder = eplb::recorder::create(a_config(dir / "dump"));
    recorder.begin_iteration(101);
    const int32_t ids[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    using id_call = std::function<eplb_status(const eplb_expert_ids *)>;
    const std::pair<const char *, id_call> calls[] = {
        {"register_buffer",
         [&](const eplb_expert_ids *expert_ids) {
             return eplb_recorder_register_buffer(recorder.get(), 3, expert_ids, 1, nullptr, nullptr);
         }},
        {"count_ids",
         [&](const eplb_expert_ids *expert_ids) {
             return eplb_recorder_count_ids(recorder.get(), 3, expert_ids, 1, nullptr, nullptr);
         }},
    };
    for (const auto &[name, call] : calls) {
        const auto refused = [&call = call](const eplb_expert_ids &expert_ids) {
            return message(call(&expert_ids));
        };
        for (const uint32_t stride : {1u, 2u, 3u}) {
            EXPECT_EQ(refused({ids, EPLB_DTYPE_INT32, stride}),
                      "expert_ids->row_stride is " + std::to_string(stride) +
                          "; at least experts_per_token, 4, or 0 expected")
                << name;
        }
        for (const eplb_dtype unknown : {2, -1}) {
            EXPECT_NE(refused({ids, unknown, 0})
                          .find("dtype is " + std::to_string(unknown) +
                                "; expected EPLB_DTYPE_INT32 (0), EPLB_DTYPE_INT64 (1)"),
                      std::string::npos)
                << name;
        }
        EXPECT_EQ(refused({nullptr, EPLB_DTYPE_INT32, 0}), "expert_ids->data is NULL") << name;
        EXPECT_EQ(refused({reinterpret_cast<const char *>(ids) + 4, EPLB_DTYPE_INT64, 0}),
                  "expert_ids->data is not aligned to its 8 bytes")
            << name;
        EXPECT_EQ(message(call(nullptr)), "expert_ids is NULL") << name;
    }
    EXPECT_EQ(recorder.info().num_registered_layers, 0u);
    EXPECT_EQ(recorder.info().ids_counted, 0u);
    for (const auto &[name, call] : calls) {
        const eplb_expert_ids dense = {ids, EPLB_DTYPE_INT32, 4};
        EXPECT_EQ(call(&dense), EPLB_STATUS_OK) << name;
    }
    recorder.count(3, 1);
    EXPECT_EQ(recorder.info().ids_counted, 8u);
}

TEST(Recorder, RangeBeforeTheFirstIterationIsMissed) {
    temporary_directory dir;
    auto recorder = eplb::recorder::create(a_config(dir / "dump"));
    const int32_t ids[4] = {0, 1, 2, 3};
    for (int64_t iteration = 500; iteration < 510; iteration++) {
        recorder.begin_iteration(iteration);
        recorder.count_ids(3, ids, 1);
    }
    recorder.flush();
    EXPECT_EQ(recorder.info().state, EPLB_RECORDER_STATE_MISSED);
    EXPECT_EQ(recorder.info().ids_counted, 0u);
    recorder.reset();
    EXPECT_EQ(recorder.info().state, EPLB_RECORDER_STATE_WAITING);
}

TEST(Recorder, InfoReturnsTheRangeAndSkippedIterations) {
    temporary_directory dir;
    auto recorder = eplb::recorder::create(a_config(dir / "dump"));
    const int32_t ids[8] = {};
    recorder.register_buffer(4, ids, 2);
    eplb_recorder_info info = recorder.info();
    EXPECT_EQ(info.iter_start, 100);
    EXPECT_EQ(info.iter_stop, 200);
    EXPECT_EQ(info.counted_stop, info.counted_start);
    EXPECT_EQ(info.num_layers, 2u);
    EXPECT_EQ(info.num_registered_layers, 1u);
    EXPECT_EQ(info.iterations_skipped, 0u);
    // The dump starts at 110. Of its iterations, 112 to 114 and 118 are skipped and empty.
    for (const int64_t iteration : {3, 110, 110, 111, 115, 116, 117, 119}) {
        recorder.begin_iteration(iteration);
    }
    info = recorder.info();
    EXPECT_EQ(info.counted_start, 110);
    EXPECT_EQ(info.counted_stop, 120);
    EXPECT_EQ(info.iter_stop, 200);
    EXPECT_EQ(info.iterations_skipped, 4u);
    EXPECT_EQ(info.dumps_written, 0u);
    recorder.dump();
    recorder.flush();
    EXPECT_EQ(recorder.info().dumps_written, 1u);
    recorder.reset();
    info = recorder.info();
    EXPECT_EQ(info.iterations_skipped, 0u);
    EXPECT_EQ(info.dumps_written, 1u) << "reset does not clear it";
    EXPECT_EQ(info.num_registered_layers, 1u);
    EXPECT_EQ(info.iter_stop, 200);
}

TEST(Recorder, RelativePathIsResolvedAtCreate) {
    temporary_directory dir;
    const auto before = std::filesystem::current_path();
    std::filesystem::current_path(dir / "");
    auto recorder = eplb::recorder::create(a_config("dump"));
    std::filesystem::current_path(before);
    recorder.begin_iteration(199);
    recorder.begin_iteration(200);
    recorder.flush();
    EXPECT_TRUE(std::filesystem::exists(dir / "dump/rank0.safetensors"));
}

namespace {

/// A recorder whose dump has failed, since a file is where its directory was.
eplb::recorder with_a_failed_dump(const std::string &path) {
    auto config = a_config(path);
    config.num_ranks = 1;
    auto recorder = eplb::recorder::create(config);
    const int32_t ids[4] = {0, 1, 2, 3};
    for (int64_t iteration = 100; iteration < 200; iteration++) {
        recorder.begin_iteration(iteration);
        recorder.count_ids(3, ids, 1);
    }
    std::filesystem::remove_all(path);
    write_file(path, "in the way");
    recorder.begin_iteration(200);
    while (recorder.info().state == EPLB_RECORDER_STATE_DUMPING) {
        usleep(100);
    }
    return recorder;
}

} // namespace

TEST(Recorder, FlushReturnsAFailureOnceAndThenRetries) {
    temporary_directory dir;
    const std::string path = dir / "dump";
    auto recorder = with_a_failed_dump(path);
    const auto poll = [&] {
        for (;;) {
            const eplb_status status = eplb_recorder_flush(recorder.get(), 0);
            if (status != EPLB_STATUS_NOT_READY) {
                return status;
            }
            usleep(1000);
        }
    };
    EXPECT_EQ(poll(), EPLB_STATUS_WRITE_FAILED);
    EXPECT_EQ(poll(), EPLB_STATUS_WRITE_FAILED);
    EXPECT_EQ(recorder.info().dumps_failed, 2u);
    std::filesystem::remove(path);
    EXPECT_EQ(poll(), EPLB_STATUS_OK);
    EXPECT_EQ(recorder.info().dumps_failed, 2u);
    EXPECT_EQ(recorder.info().dumps_written, 1u);
    EXPECT_EQ(eplb::stats::load(path).layer_loads(3)[1], 100);
}

TEST(Recorder, ConcurrentFlushAndResetAreSerialised) {
    for (int round = 0; round < 100; round++) {
        temporary_directory dir;
        const std::string path = dir / "dump";
        auto recorder = with_a_failed_dump(path);
        EXPECT_EQ(eplb_recorder_flush(recorder.get(), -1), EPLB_STATUS_WRITE_FAILED);
        std::filesystem::remove(path);
        eplb_status flushed = EPLB_STATUS_OK;
        std::thread other([&] { flushed = eplb_recorder_flush(recorder.get(), -1); });
        const eplb_status reset = eplb_recorder_reset(recorder.get(), nullptr);
        other.join();
        EXPECT_EQ(flushed, EPLB_STATUS_OK);
        const bool dumped = std::filesystem::exists(path + "/rank0.safetensors");
        if (dumped) {
            EXPECT_EQ(eplb::stats::load(path).layer_loads(3)[1], 100)
                << "a dump has the counts before the reset";
        }
        if (reset == EPLB_STATUS_OK) {
            EXPECT_EQ(recorder.info().state, EPLB_RECORDER_STATE_WAITING);
            recorder.begin_iteration(100);
            EXPECT_EQ(recorder.info().state, EPLB_RECORDER_STATE_COUNTING);
        } else {
            EXPECT_EQ(reset, EPLB_STATUS_NOT_READY);
            EXPECT_TRUE(dumped);
        }
    }
}

TEST(Recorder, DestroyInAForkedProcessLeavesTheParentsFile) {
    temporary_directory dir;
    auto config = a_config(dir / "dump");
    config.num_ranks = 1;
    auto recorder = eplb::recorder::create(config);
    // Destroy neither waits for a thread that this process lacks nor removes the file.
    EXPECT_EQ(in_a_child([&] {
                  eplb_recorder_destroy(recorder.get());
                  return EPLB_STATUS_OK;
              }),
              EPLB_STATUS_OK);
    // The thread that dumps is the parent's, so that waiting for it would never end.
    const auto calls = {
        +[](eplb_recorder *of_parent) { return eplb_recorder_flush(of_parent, -1); },
        +[](eplb_recorder *of_parent) { return eplb_recorder_dump(of_parent, nullptr); },
        +[](eplb_recorder *of_parent) { return eplb_recorder_reset(of_parent, nullptr); },
        +[](eplb_recorder *of_parent) { return eplb_recorder_rearm(of_parent, 300, 301, nullptr); },
    };
    for (const auto call : calls) {
        EXPECT_EQ(in_a_child([&] { return call(recorder.get()); }), EPLB_STATUS_INVALID_ARGUMENT);
    }
    for (int64_t iteration = 100; iteration <= 200; iteration++) {
        recorder.begin_iteration(iteration);
    }
    recorder.flush();
    EXPECT_EQ(eplb::stats::load(dir / "dump").info().iter_stop, 200);
}

TEST(Recorder, FlushWritesTheDumpAfterAFullDisk) {
    temporary_directory dir;
    auto config = a_config(dir / "dump");
    config.num_ranks = 1;
    auto recorder = eplb::recorder::create(config);
    const int32_t ids[4] = {1, 2, 3, 4};
    for (int64_t iteration = 100; iteration < 200; iteration++) {
        recorder.begin_iteration(iteration);
        recorder.count_ids(4, ids, 1);
    }
    // Files are limited to 64 kB, and the dump is larger.
    rlimit before;
    ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
    const rlimit full = {1 << 16, before.rlim_max};
    const auto handler = std::signal(SIGXFSZ, SIG_IGN);
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &full), 0);
    recorder.begin_iteration(200);
    const eplb_status status = eplb_recorder_flush(recorder.get(), -1);
    const std::string message = eplb_last_error_message();
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
    std::signal(SIGXFSZ, handler);
    EXPECT_EQ(status, EPLB_STATUS_WRITE_FAILED);
    EXPECT_NE(message.find("rank0.safetensors: File too large"), std::string::npos) << message;
    EXPECT_TRUE(std::filesystem::is_empty(dir / "dump")) << "no partial file";

    recorder.flush();
    EXPECT_EQ(eplb::stats::load(dir / "dump").layer_loads(4)[2], 100);
}

TEST(Recorder, KilledProcessLeavesACompleteFileOrNone) {
    temporary_directory dir;
    const std::string path = dir / "dump", file = path + "/rank1.safetensors";
    auto config = a_config(path);
    config.iter_start = 0;
    config.iter_stop = 20;
    config.layer_ids = {0, 1, 2, 3, 4, 5, 6, 7};
    config.num_experts = 512;
    const auto counted = [&](uint32_t rank) {
        config.rank = rank;
        auto recorder = eplb::recorder::create(config);
        const int32_t ids[4] = {1, 2, 3, 4};
        for (int64_t iteration = 0; iteration < 20; iteration++) {
            recorder.begin_iteration(iteration);
            recorder.count_ids(7, ids, 1);
        }
        return recorder;
    };
    {
        auto first = counted(0);
        first.begin_iteration(20);
    }
    // The kills are spread over the time of a dump and a little beyond.
    auto timed = counted(1);
    const auto start = std::chrono::steady_clock::now();
    timed.begin_iteration(20);
    timed.flush();
    const auto took =
        std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - start);
    std::filesystem::remove(file);

    std::mt19937_64 random(7);
    size_t whole = 0, absent = 0, killed_in_between = 0;
    for (int kill_number = 0; kill_number < 200; kill_number++) {
        int started[2];
        ASSERT_EQ(pipe(started), 0);
        const pid_t child = fork();
        if (child == 0) {
            auto recorder = counted(1);
            (void)!write(started[1], "!", 1);
            recorder.begin_iteration(20);
            recorder.flush();
            pause();
            _exit(1);
        }
        char byte;
        ASSERT_EQ(read(started[0], &byte, 1), 1);
        usleep(static_cast<useconds_t>(random() % static_cast<uint64_t>(took.count() * 3 / 2 + 100)));
        kill(child, SIGKILL);
        waitpid(child, nullptr, 0);
        close(started[0]);
        close(started[1]);

        const auto partial = partial_file(path, "rank1.safetensors");
        killed_in_between += !partial.empty() && std::filesystem::file_size(partial) > 0;
        if (std::filesystem::exists(file)) {
            EXPECT_EQ(eplb::stats::load(path).layer_loads(7)[3], 40);
            std::filesystem::remove(file);
            whole++;
        } else {
            absent++;
        }
    }
    std::printf("200 kills: %zu files complete, %zu absent, %zu while bytes were being written\n", whole,
                absent, killed_in_between);
    EXPECT_GT(absent, 0u);
    EXPECT_GT(killed_in_between, 0u);
    counted(1).begin_iteration(20);
    EXPECT_EQ(eplb::stats::load(path).layer_loads(7)[3], 40) << "files of killed processes do no harm";
}

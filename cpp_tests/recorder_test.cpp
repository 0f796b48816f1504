// The recorder's promises that no device has a part in: configs, the environment, the files, and what it
// tells.
#include <gtest/gtest.h>

#include <csignal>
#include <cstdlib>
#include <eplb.hpp>
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

/// Does `work` in a child process, which is killed afterwards: its exit handlers would be this one's. Returns
/// what it returned.
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

/// The environment as an operator sets it, and as it was afterwards.
class environment {
  public:
    environment(const char *range, const char *path) {
        set("EXPERT_STATISTIC_ITER_RANGE", range);
        set("EXPERT_STATISTIC_PATH", path);
    }
    ~environment() {
        unsetenv("EXPERT_STATISTIC_ITER_RANGE");
        unsetenv("EXPERT_STATISTIC_PATH");
    }

  private:
    static void set(const char *name, const char *value) {
        if (value != nullptr) {
            setenv(name, value, 1);
        } else {
            unsetenv(name);
        }
    }
};

} // namespace

TEST(Recorder, TheEnvironmentSaysWhatToCountAndWhere) {
    const environment environment("100-200", "/data/statistic");
    eplb::recorder_config config;
    config.num_experts = 7;
    config.from_env();
    EXPECT_EQ(config.iter_start, 100);
    EXPECT_EQ(config.iter_stop, 200);
    EXPECT_EQ(config.path, "/data/statistic");
    EXPECT_EQ(config.num_experts, 7u) << "what the environment does not say stays";
    EXPECT_EQ(config.device, EPLB_DEVICE_HOST);
}

TEST(Recorder, WithoutARangeInTheEnvironmentNothingIsCounted) {
    for (const char *range : {static_cast<const char *>(nullptr), ""}) {
        const environment environment(range, nullptr);
        eplb::recorder_config config;
        config.path = "stays";
        config.iter_start = 1;
        config.iter_stop = 2;
        config.from_env();
        EXPECT_EQ(config.iter_start, 0);
        EXPECT_EQ(config.iter_stop, 0);
        EXPECT_EQ(config.path, "stays");
    }
}

TEST(Recorder, ABadRangeInTheEnvironmentIsAnErrorThatNamesIt) {
    for (const char *range : {"100-50", "abc", "-5", "7", "1-2-3", "7-7"}) {
        const environment environment(range, "/data");
        eplb_recorder_config config = EPLB_RECORDER_CONFIG_INIT;
        EXPECT_EQ(eplb_recorder_config_from_env(&config), EPLB_STATUS_INVALID_ARGUMENT) << range;
        const std::string message = eplb_last_error_message();
        EXPECT_EQ(message.find("EXPERT_STATISTIC_ITER_RANGE: \"" + std::string(range) + "\""), 0u) << message;
        EXPECT_EQ(config.iter_stop, 0);
        EXPECT_EQ(config.path, nullptr);
    }
}

TEST(Recorder, ARangeWithoutAPathIsAnErrorAtCreate) {
    const environment environment("100-200", nullptr);
    auto config = a_config("");
    config.from_env();
    EXPECT_NE(refused(config).find("EXPERT_STATISTIC_PATH"), std::string::npos);
}

TEST(Recorder, ADirectoryThatCannotBeWrittenIsAnErrorAtCreate) {
    temporary_directory dir;
    write_file(dir / "file", "");
    for (const std::string &path : {dir / "file", dir / "file/dump", std::string("/proc/dump")}) {
        EXPECT_NE(refused(a_config(path), EPLB_STATUS_WRITE_FAILED).find(path), std::string::npos);
    }
    std::filesystem::create_directories(dir / "dump/rank0.safetensors");
    EXPECT_NE(refused(a_config(dir / "dump"), EPLB_STATUS_WRITE_FAILED).find("rank0.safetensors"),
              std::string::npos);
}

TEST(Recorder, WhatDoesNotFitTogetherIsAnErrorAtCreate) {
    temporary_directory dir;
    const auto with = [&](auto change) {
        auto config = a_config(dir / "dump");
        change(config);
        return refused(config);
    };
    using config = eplb::recorder_config;
    EXPECT_EQ(with([](config &c) { c.rank = 2; }), "rank 2 of 2 ranks");
    EXPECT_EQ(with([](config &c) { c.num_ranks = 0; }), "rank 0 of 0 ranks");
    EXPECT_EQ(with([](config &c) { c.num_experts = 0; }), "4 of 0 experts a token");
    EXPECT_EQ(with([](config &c) { c.experts_per_token = 65; }), "65 of 64 experts a token");
    EXPECT_EQ(with([](config &c) { c.layer_ids = {}; }),
              "layers []: there must be some, each once, and fit int32");
    EXPECT_EQ(with([](config &c) {
                  c.layer_ids = {3, 3};
              }),
              "layers [3, 3]: there must be some, each once, and fit int32");
    EXPECT_EQ(with([](config &c) { c.layer_ids = {-1}; }), "a layer id is -1");
    EXPECT_NE(with([](config &c) { c.iter_start = 200; }).find("iter_start must be the lower one"),
              std::string::npos);
    EXPECT_NE(with([](config &c) { c.device = -3; }).find("device is -3"), std::string::npos);
    EXPECT_EQ(with([](config &c) { c.counted = eplb_counted(2); }), "counted is 2, which is no eplb_counted");
    EXPECT_NE(with([](config &c) {
                  c.iter_stop = 10'000'000;
              }).find("more tensors than a safetensors file may have"),
              std::string::npos);
    EXPECT_FALSE(std::filesystem::exists(dir / "dump")) << "nothing was made for what was refused";
}

TEST(Recorder, MemoryIsToldBeforehandAndNeverGrows) {
    temporary_directory dir;
    const auto config = a_config(dir / "dump");
    const auto required = eplb::recorder::memory_required(config);
    // 100 iterations of 2 layers of 64 counts of 4 bytes; 24 bytes of sums a layer; the row.
    EXPECT_EQ(required.workspace_bytes, 100 * 2 * 64 * 4 + 2 * 64u);
    EXPECT_EQ(required.host_bytes, 100 * 2 * 64 * 4 + 64 + 2 * 24u);
    const auto recorder = eplb::recorder::create(config);
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

TEST(Recorder, OffEveryCallSucceedsAndDoesNothing) {
    const eplb_recorder_config config = EPLB_RECORDER_CONFIG_INIT;
    size_t workspace = 1, host = 1;
    ASSERT_EQ(eplb_recorder_memory_required(&config, &workspace, &host), EPLB_STATUS_OK);
    EXPECT_EQ(workspace + host, 0u);
    eplb_recorder *handle = nullptr;
    ASSERT_EQ(eplb_recorder_create(&config, &handle), EPLB_STATUS_OK);
    const eplb::recorder recorder(handle);
    const int32_t ids[4] = {};
    recorder.register_buffer(77, ids, EPLB_DTYPE_INT32, 1);
    for (int64_t iteration : {5, 3, 1000}) {
        recorder.begin_iteration(iteration);
        recorder.count(77, 1'000'000);
        recorder.count_ids(78, ids, EPLB_DTYPE_INT32, 1);
    }
    recorder.dump();
    recorder.flush();
    recorder.reset();
    const eplb_recorder_info info = recorder.info();
    EXPECT_EQ(info.state, EPLB_RECORDER_STATE_OFF);
    EXPECT_EQ(info.range_start + info.range_stop, 0);
    EXPECT_EQ(info.num_layers + info.num_registered_layers, 0u);
    EXPECT_EQ(recorder.layer_tokens(3), std::vector<uint64_t>(3));
}

TEST(Recorder, WithoutADriverACudaDeviceIsAnErrorAndEverythingElseWorks) {
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

TEST(Recorder, TwoRecordersOfOneRankFileAreOneTooMany) {
    temporary_directory dir;
    auto config = a_config(dir / "dump");
    auto first = std::make_unique<eplb::recorder>(eplb::recorder::create(config));
    EXPECT_NE(refused(config, EPLB_STATUS_WRITE_FAILED)
                  .find("rank0.safetensors: it is being written by somebody else"),
              std::string::npos);
    config.rank = 1;
    eplb::recorder::create(config);
    config.rank = 0;

    // A process of its own is somebody else, too.
    EXPECT_EQ(in_a_child([&] {
                  eplb_recorder *recorder = nullptr;
                  const eplb_recorder_config c = config.c();
                  return eplb_recorder_create(&c, &recorder);
              }),
              EPLB_STATUS_WRITE_FAILED);

    first.reset();
    eplb::recorder::create(config);
    EXPECT_TRUE(std::filesystem::is_empty(dir / "dump")) << "what was not dumped leaves nothing behind";
}

TEST(Recorder, CallsThatDoNotFitAreErrorsAndChangeNothing) {
    temporary_directory dir;
    const auto recorder = eplb::recorder::create(a_config(dir / "dump"));
    eplb_recorder *handle = recorder.get();
    const int32_t ids[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    const auto message = [](eplb_status status) {
        EXPECT_EQ(status, EPLB_STATUS_INVALID_ARGUMENT);
        return std::string(eplb_last_error_message());
    };
    EXPECT_EQ(message(eplb_recorder_count(handle, 3, 1, nullptr)),
              "layer 3 has no registered buffer: eplb_recorder_register_buffer() names one, and "
              "eplb_recorder_count_ids() takes any");
    EXPECT_EQ(message(eplb_recorder_register_buffer(handle, 5, ids, EPLB_DTYPE_INT32, 2, nullptr, nullptr)),
              "layer 5 is not one of the 2 that the recorder was created with, from 3 to 4");
    EXPECT_EQ(message(eplb_recorder_register_buffer(handle, 3, ids, 2, 2, nullptr, nullptr)),
              "dtype is 2, which is no eplb_dtype");
    EXPECT_EQ(
        message(eplb_recorder_register_buffer(handle, 3, nullptr, EPLB_DTYPE_INT32, 2, nullptr, nullptr)),
        "expert_ids is NULL");
    EXPECT_EQ(message(eplb_recorder_register_buffer(handle, 3, reinterpret_cast<const char *>(ids) + 4,
                                                    EPLB_DTYPE_INT64, 1, nullptr, nullptr)),
              "expert_ids is not aligned to its 8 bytes");
    recorder.register_buffer(3, ids, EPLB_DTYPE_INT32, 2);
    EXPECT_EQ(message(eplb_recorder_count(handle, 3, 3, nullptr)),
              "layer 3: 3 tokens, its buffer was registered with 2");
    recorder.begin_iteration(101);
    EXPECT_EQ(message(eplb_recorder_begin_iteration(handle, 100, nullptr)),
              "iteration 100 after iteration 101: iterations go up; eplb_recorder_reset() starts anew");
    recorder.count(3, 2);
    EXPECT_EQ(recorder.info().ids_counted, 8u);
    uint64_t tokens[3] = {};
    eplb_recorder_info info = EPLB_RECORDER_INFO_INIT;
    EXPECT_EQ(message(eplb_recorder_get_info(handle, &info, tokens, 3)),
              "num_layers is 3, the recorder has 2");
    EXPECT_EQ(recorder.layer_tokens(2), (std::vector<uint64_t>{2, 0}));
    EXPECT_EQ(eplb_recorder_count_ids(handle, 4, nullptr, EPLB_DTYPE_INT32, 0, nullptr, nullptr),
              EPLB_STATUS_OK)
        << "no tokens need no buffer";
}

TEST(Recorder, ARangeThatPassedBeforeTheFirstIterationIsNoErrorButMissed) {
    temporary_directory dir;
    const auto recorder = eplb::recorder::create(a_config(dir / "dump"));
    const int32_t ids[4] = {0, 1, 2, 3};
    for (int64_t iteration = 500; iteration < 510; iteration++) {
        recorder.begin_iteration(iteration);
        recorder.count_ids(3, ids, EPLB_DTYPE_INT32, 1);
    }
    recorder.flush();
    EXPECT_EQ(recorder.info().state, EPLB_RECORDER_STATE_MISSED);
    EXPECT_EQ(recorder.info().ids_counted, 0u);
    recorder.reset();
    EXPECT_EQ(recorder.info().state, EPLB_RECORDER_STATE_WAITING);
}

TEST(Recorder, InfoTellsTheRangeAskedForAndTheIterationsOfItThatNeverBegan) {
    temporary_directory dir;
    const auto recorder = eplb::recorder::create(a_config(dir / "dump"));
    const int32_t ids[8] = {};
    recorder.register_buffer(4, ids, EPLB_DTYPE_INT32, 2);
    eplb_recorder_info info = recorder.info();
    EXPECT_EQ(info.range_start, 100);
    EXPECT_EQ(info.range_stop, 200);
    EXPECT_EQ(info.num_layers, 2u);
    EXPECT_EQ(info.num_registered_layers, 1u);
    EXPECT_EQ(info.iterations_skipped, 0u);
    // Begun late, and without 112 to 114 and 118: those before 110 are not in the dump, the others are empty
    // in it.
    for (const int64_t iteration : {3, 110, 110, 111, 115, 116, 117, 119}) {
        recorder.begin_iteration(iteration);
    }
    info = recorder.info();
    EXPECT_EQ(info.iter_start, 110);
    EXPECT_EQ(info.iter_stop, 120);
    EXPECT_EQ(info.iterations_skipped, 4u);
    EXPECT_EQ(info.dumps_written, 0u);
    recorder.dump();
    recorder.flush();
    EXPECT_EQ(recorder.info().dumps_written, 1u);
    recorder.reset();
    info = recorder.info();
    EXPECT_EQ(info.iterations_skipped, 0u);
    EXPECT_EQ(info.dumps_written, 1u) << "what was done stays done";
    EXPECT_EQ(info.num_registered_layers, 1u);
    EXPECT_EQ(info.range_stop, 200);
}

TEST(Recorder, ARelativePathStaysWhereItWasAtCreate) {
    temporary_directory dir;
    const auto before = std::filesystem::current_path();
    std::filesystem::current_path(dir / "");
    const auto recorder = eplb::recorder::create(a_config("dump"));
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
        recorder.count_ids(3, ids, EPLB_DTYPE_INT32, 1);
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

TEST(Recorder, PollingAFlushTellsOfAFailureAndThenTriesAgain) {
    temporary_directory dir;
    const std::string path = dir / "dump";
    const auto recorder = with_a_failed_dump(path);
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

TEST(Recorder, AFlushAndAResetAtOnceTakeTurns) {
    for (int round = 0; round < 100; round++) {
        temporary_directory dir;
        const std::string path = dir / "dump";
        const auto recorder = with_a_failed_dump(path);
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
                << "a dump is of counts before the reset";
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

TEST(Recorder, AForkedCopyLeavesEverythingToTheParent) {
    temporary_directory dir;
    auto config = a_config(dir / "dump");
    config.num_ranks = 1;
    auto recorder = eplb::recorder::create(config);
    // Neither waits for a thread that this process does not have, nor takes the file away.
    EXPECT_EQ(in_a_child([&] {
                  eplb_recorder_destroy(recorder.get());
                  return EPLB_STATUS_OK;
              }),
              EPLB_STATUS_OK);
    for (int64_t iteration = 100; iteration <= 200; iteration++) {
        recorder.begin_iteration(iteration);
    }
    recorder.flush();
    EXPECT_EQ(eplb::stats::load(dir / "dump").info().iter_stop, 200);
}

TEST(Recorder, AFullDiskFailsTheDumpAndALaterFlushWritesIt) {
    temporary_directory dir;
    auto config = a_config(dir / "dump");
    config.num_ranks = 1;
    const auto recorder = eplb::recorder::create(config);
    const int32_t ids[4] = {1, 2, 3, 4};
    for (int64_t iteration = 100; iteration < 200; iteration++) {
        recorder.begin_iteration(iteration);
        recorder.count_ids(4, ids, EPLB_DTYPE_INT32, 1);
    }
    // No file may grow beyond 64 kB, which the dump would.
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
    EXPECT_TRUE(std::filesystem::is_empty(dir / "dump")) << "nothing half-written";

    recorder.flush();
    EXPECT_EQ(eplb::stats::load(dir / "dump").layer_loads(4)[2], 100);
}

TEST(Recorder, AKilledProcessLeavesAWholeFileOrNone) {
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
            recorder.count_ids(7, ids, EPLB_DTYPE_INT32, 1);
        }
        return recorder;
    };
    {
        const auto first = counted(0);
        first.begin_iteration(20);
    }
    // How long a dump takes here; the kills are spread over it and a little beyond.
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
            const auto recorder = counted(1);
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

        const bool partial = std::filesystem::exists(path + "/.rank1.safetensors.partial");
        killed_in_between += partial && std::filesystem::file_size(path + "/.rank1.safetensors.partial") > 0;
        if (std::filesystem::exists(file)) {
            EXPECT_EQ(eplb::stats::load(path).layer_loads(7)[3], 40);
            std::filesystem::remove(file);
            whole++;
        } else {
            absent++;
        }
    }
    std::printf("200 kills: %zu files whole, %zu absent, %zu while bytes were being written\n", whole, absent,
                killed_in_between);
    EXPECT_GT(absent, 0u);
    EXPECT_GT(killed_in_between, 0u);
    counted(1).begin_iteration(20);
    EXPECT_EQ(eplb::stats::load(path).layer_loads(7)[3], 40) << "what the killed ones left does not disturb";
}

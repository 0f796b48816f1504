// The files of the run before, which a recorder sets aside when its range begins.
#include "recorder_runs.h"

#include <chrono>
#include <csignal>
#include <thread>

#include <sys/wait.h>
#include <unistd.h>

namespace {

using std::filesystem::exists;

bool appears(const std::string &path) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!exists(path)) {
        if (std::chrono::steady_clock::now() > deadline) {
            return false;
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
}

/// A dump of two ranks, each of which counted `tokens` tokens an iteration.
void run_of_two(const std::string &path, uint32_t tokens) {
    run(host_config(path, 0, 2), tokens);
    run(host_config(path, 1, 2), tokens);
}

double load_of_expert_1(const std::string &path) { return eplb::stats::load(path).layer_loads(3)[1]; }

/// A recorder of a process that dies.
eplb::recorder &never_destroyed(const eplb::recorder_config &config) {
    return *new eplb::recorder(eplb::recorder::create(config));
}

/// Calls `work` in a child process, and kills it once `work` has returned.
template <class Work> void in_a_process_that_dies(Work work) {
    int done[2];
    ASSERT_EQ(pipe(done), 0);
    const pid_t child = fork();
    if (child == 0) {
        work();
        (void)!write(done[1], "!", 1);
        pause();
    }
    char byte;
    EXPECT_EQ(read(done[0], &byte, 1), 1);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    close(done[0]);
    close(done[1]);
}

} // namespace

TEST(RecorderPrevious, FilesAreSetAsideWhenTheRangeBeginsAndNotBefore) {
    temporary_directory dir;
    const std::string file = dir / "dump/rank0.safetensors", meta = dir / "dump/meta_info.json";
    run(host_config(dir / "dump"));
    const std::string first = read_file(file), first_meta = read_file(meta);
    const log_lines log;
    {
        auto recorder = eplb::recorder::create(host_config(dir / "dump"));
        count(recorder, 3, 5);
        EXPECT_EQ(read_file(file), first) << "iteration 5 has not begun";
        count(recorder, 5, 6, 2);
        EXPECT_TRUE(appears(meta + ".previous"));
        EXPECT_FALSE(exists(file) || exists(meta));
        EXPECT_EQ(read_file(file + ".previous"), first);
        EXPECT_EQ(read_file(meta + ".previous"), first_meta);
        count(recorder, 6, 9, 2);
        recorder.flush();
    }
    EXPECT_EQ(log.with(".previous"),
              file + ": of the run before, renamed to " + file + ".previous, which keeps one run only");
    EXPECT_EQ(load_of_expert_1(dir / "dump"), 6);
    EXPECT_EQ(read_file(file + ".previous"), first) << "the dump sets nothing aside";

    // The next run replaces what the first one left.
    const std::string second = read_file(file);
    run(host_config(dir / "dump"), 3);
    EXPECT_EQ(load_of_expert_1(dir / "dump"), 9);
    EXPECT_EQ(read_file(file + ".previous"), second);
}

TEST(RecorderPrevious, RankThatDiesLendsNoCountsOfItsLastRun) {
    temporary_directory dir;
    const std::string dump = dir / "dump", file = dump + "/rank1.safetensors";
    run_of_two(dump, 1);
    in_a_process_that_dies([&] {
        auto &recorder = never_destroyed(host_config(dump, 1, 2));
        count(recorder, 5, 7, 2);
        appears(file + ".previous");
    });
    run(host_config(dump, 0, 2), 2);
    EXPECT_EQ(
        refusal([&] { eplb::stats::load(dump); }, EPLB_STATUS_INCOMPLETE_DUMP),
        dump +
            ": 1 of 2 ranks have no file (rank 1); copy them here, or allow missing ranks; rank 1 has begun "
            "to count and has not dumped, rank1.safetensors.previous is of the run before");
    // The way back: the names without .previous.
    for (const std::string name : {"/rank0.safetensors", "/rank1.safetensors", "/meta_info.json"}) {
        std::filesystem::rename(dump + name + ".previous", dump + name);
    }
    EXPECT_EQ(load_of_expert_1(dump), 6) << "2 ranks, 3 iterations of 1 token";
}

TEST(RecorderPrevious, RankZeroThatDiesLeavesNoMetaFile) {
    temporary_directory dir;
    const std::string dump = dir / "dump";
    run_of_two(dump, 1);
    in_a_process_that_dies([&] {
        auto &recorder = never_destroyed(host_config(dump, 0, 2));
        count(recorder, 5, 6);
        appears(dump + "/meta_info.json.previous");
    });
    EXPECT_EQ(
        refusal([&] { eplb::stats::load(dump); }, EPLB_STATUS_INCOMPLETE_DUMP),
        dump + "/meta_info.json: missing beside the rank files; rank 0 writes it, copy it here; its rank has "
               "begun to count and has not dumped, meta_info.json.previous is of the run before");
    in_a_process_that_dies([&] {
        auto &recorder = never_destroyed(host_config(dump, 1, 2));
        count(recorder, 5, 6);
        appears(dump + "/rank1.safetensors.previous");
    });
    const std::string message = refusal([&] { eplb::stats::load(dump); }, EPLB_STATUS_INCOMPLETE_DUMP);
    EXPECT_NE(message.find("no rank<R>.safetensors in this directory"), std::string::npos) << message;
    EXPECT_NE(message.find(
                  "; ranks 0, 1 have begun to count and have not dumped, rank0.safetensors.previous and the "
                  "like are of the run before"),
              std::string::npos)
        << message;
}

TEST(RecorderPrevious, RecorderThatIsDestroyedAtOnceHasSetItsFilesAside) {
    temporary_directory dir;
    const std::string file = dir / "dump/rank0.safetensors";
    run(host_config(dir / "dump"));
    {
        auto recorder = eplb::recorder::create(host_config(dir / "dump"));
        recorder.begin_iteration(5);
    }
    EXPECT_FALSE(exists(file));
    EXPECT_TRUE(exists(file + ".previous"));
    // A dump at once.
    run(host_config(dir / "dump"));
    auto recorder = eplb::recorder::create(host_config(dir / "dump"));
    recorder.begin_iteration(5);
    recorder.begin_iteration(8);
    recorder.flush();
    EXPECT_EQ(dump_file(file).tensor("5_3")[1], 0);
    EXPECT_EQ(dump_file(file + ".previous").tensor("5_3")[1], 1);
}

TEST(RecorderPrevious, EachRangeAndEachResetSetsItsOwnFilesAside) {
    temporary_directory dir;
    const std::string dump = dir / "dump", file = "/rank0.safetensors";
    auto recorder = eplb::recorder::create(host_config(dump));
    count(recorder, 5, 9);
    recorder.flush();
    // Another range, which has a directory of its own, leaves the first dump alone.
    recorder.rearm(10, 12);
    count(recorder, 10, 13, 2);
    recorder.flush();
    EXPECT_FALSE(exists(dump + file + ".previous"));
    EXPECT_EQ(dump_file(dump + file).tensor("7_3")[1], 1);
    // The same range again.
    recorder.reset();
    count(recorder, 10, 11, 3);
    EXPECT_TRUE(appears(dump + "/10-12/meta_info.json.previous"));
    EXPECT_FALSE(exists(dump + "/10-12" + file));
    count(recorder, 11, 13, 3);
    recorder.flush();
    EXPECT_EQ(dump_file(dump + "/10-12" + file).tensor("11_3")[1], 3);
    EXPECT_EQ(dump_file(dump + "/10-12" + file + ".previous").tensor("11_3")[1], 2);
    EXPECT_FALSE(exists(dump + file + ".previous"));
}

TEST(RecorderPrevious, RefusedRecorderLeavesTheFilesOfTheLivingOne) {
    temporary_directory dir;
    const std::string file = dir / "dump/rank0.safetensors";
    run(host_config(dir / "dump"));
    auto living = eplb::recorder::create(host_config(dir / "dump"));
    const auto refused = [&] {
        refusal([&] { eplb::recorder::create(host_config(dir / "dump")); }, EPLB_STATUS_WRITE_FAILED);
    };
    refused();
    count(living, 5, 6);
    EXPECT_TRUE(appears(dir / "dump/meta_info.json.previous"));
    refused();
    count(living, 6, 9);
    living.flush();
    refused();
    EXPECT_EQ(dump_file(file).tensor("5_3")[1], 1);
}

TEST(RecorderPrevious, ForkedProcessSetsNothingAside) {
    temporary_directory dir;
    const std::string file = dir / "dump/rank0.safetensors";
    run(host_config(dir / "dump"));
    auto recorder = eplb::recorder::create(host_config(dir / "dump"));
    in_a_process_that_dies([&] {
        eplb_recorder_begin_iteration(recorder.get(), 5, nullptr);
        eplb_recorder_destroy(recorder.get());
    });
    EXPECT_TRUE(exists(file));
    EXPECT_FALSE(exists(file + ".previous"));
}

TEST(RecorderPrevious, FileThatCannotBeSetAsideIsToldAndReplaced) {
    temporary_directory dir;
    const std::string file = dir / "dump/rank0.safetensors";
    run(host_config(dir / "dump"));
    std::filesystem::create_directory(file + ".previous");
    const log_lines log;
    run(host_config(dir / "dump"), 4);
    const std::string told = log.with("could not be renamed");
    EXPECT_EQ(told.find(file + ": could not be renamed to " + file + ".previous: "), 0u) << told;
    EXPECT_NE(
        told.find(
            "; remove it, or its counts are taken for those of this run if this process ends before its "
            "dump"),
        std::string::npos)
        << told;
    EXPECT_EQ(dump_file(file).tensor("5_3")[1], 4);
}

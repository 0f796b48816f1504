// What the environment of a recorder sets: the range, the directory, the run id, and the time of the dump.
#include "recorder_runs.h"

#include <cstdlib>
#include <ctime>
#include <map>

namespace {

using variables = std::map<std::string, std::string>;

/// Variables of an operator or a launcher, unset at the end. Others that eplb reads are unset meanwhile,
/// since the tests may run in such a job.
class environment {
  public:
    explicit environment(const variables &set) {
        for (const char *name : names) {
            unsetenv(name);
        }
        for (const auto &[name, value] : set) {
            setenv(name.c_str(), value.c_str(), 1);
        }
    }
    ~environment() {
        for (const char *name : names) {
            unsetenv(name);
        }
    }

  private:
    static constexpr const char *names[] = {"EXPERT_STATISTIC_ITER_RANGE",
                                            "EXPERT_STATISTIC_PATH",
                                            "EXPERT_STATISTIC_RUN_ID",
                                            "SLURM_JOB_ID",
                                            "SLURM_STEP_ID",
                                            "SLURM_RESTART_COUNT",
                                            "PMIX_NAMESPACE",
                                            "SOURCE_DATE_EPOCH"};
};

constexpr const char *RANGE = "EXPERT_STATISTIC_ITER_RANGE", *PATH = "EXPERT_STATISTIC_PATH";

} // namespace

TEST(RecorderEnvironment, SetsRangeAndPath) {
    const environment environment(variables{{RANGE, "100-200"}, {PATH, "/data/statistic"}});
    eplb::recorder_config config;
    config.num_experts = 7;
    config.from_env();
    EXPECT_EQ(config.iter_start, 100);
    EXPECT_EQ(config.iter_stop, 200);
    EXPECT_EQ(config.path, "/data/statistic");
    EXPECT_EQ(config.num_experts, 7u) << "other fields are unchanged";
    EXPECT_EQ(config.device, EPLB_DEVICE_HOST);
}

TEST(RecorderEnvironment, WithoutARangeTheRecorderIsOff) {
    const environment environment(variables{{PATH, ""}});
    eplb::recorder_config config;
    config.path = "unchanged";
    config.iter_start = 1;
    config.iter_stop = 2;
    config.from_env();
    EXPECT_EQ(config.iter_start, 0);
    EXPECT_EQ(config.iter_stop, 0);
    EXPECT_EQ(config.path, "unchanged");
}

TEST(RecorderEnvironment, ReadsARangeAsPythonDoes) {
    for (const char *range : {"100 - 200", "+100-200", "1_00-2_00", " 0100-200\n"}) {
        const environment environment(variables{{RANGE, range}});
        eplb::recorder_config config;
        config.from_env();
        EXPECT_EQ(config.iter_start, 100) << range;
        EXPECT_EQ(config.iter_stop, 200) << range;
    }
}

TEST(RecorderEnvironment, RejectsABadRangeByName) {
    const std::string name = RANGE;
    for (const char *range : {"200-100", "abc", "-5", "7", "1-2-3", "7-7", "100_-200", "", " "}) {
        const environment environment(variables{{RANGE, range}, {PATH, "/data"}});
        eplb_recorder_config config = EPLB_RECORDER_CONFIG_INIT;
        EXPECT_EQ(eplb_recorder_config_from_env(&config), EPLB_STATUS_INVALID_ARGUMENT) << range;
        const std::string message = eplb_last_error_message();
        const bool empty = std::string(range).find_first_not_of(' ') == std::string::npos;
        EXPECT_EQ(message.find(empty
                                   ? name + " is set and empty: unset it to count nothing, or give START-STOP"
                                   : name + ": \"" + range + "\" is not a range of iterations: "),
                  0u)
            << message;
        EXPECT_EQ(config.iter_stop, 0);
        EXPECT_EQ(config.path, nullptr);
    }
}

TEST(RecorderEnvironment, RangeWithoutAPathGoesToTheDefaultDirectory) {
    temporary_directory dir;
    const environment environment(variables{{RANGE, "5-8"}});
    const log_lines log;
    auto config = host_config("");
    config.from_env();
    const auto before = std::filesystem::current_path();
    std::filesystem::current_path(dir / "");
    const auto now = std::filesystem::current_path();
    auto recorder = eplb::recorder::create(config);
    std::filesystem::current_path(before);
    count(recorder, 5, 9);
    recorder.flush();
    EXPECT_EQ(log.with("path and "), "path and EXPERT_STATISTIC_PATH are not set: the dump goes to " +
                                         (now / "expert_statistic").string());
    EXPECT_EQ(eplb::stats::load(dir / "expert_statistic").layer_loads(3)[2], 3);
}

TEST(RecorderEnvironment, RunIdIsThatOfTheConfigTheOperatorOrTheLauncher) {
    temporary_directory dir;
    const variables slurm = {
        {"SLURM_JOB_ID", "1234"}, {"SLURM_STEP_ID", "0"}, {"PMIX_NAMESPACE", "slurm.pmix.1234.0"}};
    auto restarted = slurm, chosen = slurm;
    restarted["SLURM_RESTART_COUNT"] = "2";
    chosen["EXPERT_STATISTIC_RUN_ID"] = "of the operator";
    const auto id = [&](const variables &set, const char *own) {
        const environment environment(set);
        auto config = host_config(dir / "dump");
        config.run_id = own;
        run(config);
        const dump_file file(dir / "dump/rank0.safetensors");
        return file.metadata("run_id") + ", " + file.metadata("run_id_source");
    };
    EXPECT_EQ(id({}, ""), "(none), (none)");
    EXPECT_EQ(id({{"PMIX_NAMESPACE", "prterun-a-1@1"}}, ""), "prterun-a-1@1, pmix");
    EXPECT_EQ(id(slurm, ""), "1234.0, slurm");
    EXPECT_EQ(id(restarted, ""), "1234.0-restart2, slurm");
    EXPECT_EQ(id(chosen, ""), "of the operator, (none)");
    EXPECT_EQ(id(chosen, "of the host"), "of the host, (none)");
}

TEST(RecorderEnvironment, LaunchersIdsMayDifferAndChosenOnesMayNot) {
    // What rank 1 of two ranks has, beside rank 0's step 0 of job 7; and the loads of expert 1 of both.
    const auto loads = [](const variables &set, const std::string &path) {
        {
            const environment environment(variables{{"SLURM_JOB_ID", "7"}, {"SLURM_STEP_ID", "0"}});
            run(host_config(path, 0, 2));
        }
        const environment environment(set);
        run(host_config(path, 1, 2));
        return eplb::stats::load(path).layer_loads(3)[1];
    };
    temporary_directory dir;
    const std::string warning = dir / "dump" +
                                ": the run_id of rank1.safetensors is \"8\" (from slurm), that of "
                                "rank0.safetensors is \"7.0\" (from slurm); 1 of 2 files differ";
    {
        const log_lines log;
        EXPECT_EQ(loads({{"SLURM_JOB_ID", "7"}, {"SLURM_STEP_ID", "0"}}, dir / "dump"), 6);
        EXPECT_EQ(log.with("run_id"), "");
        EXPECT_EQ(loads({{"SLURM_JOB_ID", "8"}}, dir / "dump"), 6);
        EXPECT_EQ(log.with("run_id").find(warning), 0u) << log.with("run_id");
        EXPECT_EQ(loads({}, dir / "none"), 6);
        EXPECT_NE(log.with("run_id of rank1.safetensors is none, that of"), "");
    }
    EXPECT_NE(refusal(
                  [&] {
                      loads({{"EXPERT_STATISTIC_RUN_ID", "mine"}}, dir / "dump");
                  },
                  EPLB_STATUS_INVALID_DUMP)
                  .find("rank1.safetensors: its run_id is \"mine\", that of rank0.safetensors is \"7.0\" "
                        "(from slurm): "
                        "the files are of different runs"),
              std::string::npos);
}

TEST(RecorderEnvironment, DumpHasItsTimeOrThatOfTheEnvironment) {
    temporary_directory dir;
    const auto written_at = [&] { return dump_file(dir / "dump/rank0.safetensors").metadata("written_at"); };
    const auto formatted = [](std::time_t time) {
        char text[32] = {};
        std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&time));
        return std::string(text);
    };
    {
        const environment environment(variables{});
        const std::string before = formatted(std::time(nullptr));
        run(host_config(dir / "dump"));
        const std::string after = formatted(std::time(nullptr));
        EXPECT_LE(before, written_at());
        EXPECT_LE(written_at(), after);
    }
    {
        const environment environment(variables{{"SOURCE_DATE_EPOCH", "951782399"}});
        run(host_config(dir / "dump"));
        EXPECT_EQ(written_at(), "2000-02-28T23:59:59Z");
        EXPECT_NE(read_file(dir / "dump/meta_info.json").find("\"written_at\":\"2000-02-28T23:59:59Z\""),
                  std::string::npos);
    }
    const environment environment(variables{{"SOURCE_DATE_EPOCH", "yesterday"}});
    const log_lines log;
    run(host_config(dir / "dump"));
    EXPECT_GT(written_at(), "2026-01-01");
    EXPECT_EQ(log.with("SOURCE_DATE_EPOCH"),
              "SOURCE_DATE_EPOCH is ignored: it is \"yesterday\"; seconds since 1970 expected");
}

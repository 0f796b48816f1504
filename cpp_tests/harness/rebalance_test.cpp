// Live rebalancing on several ranks: the engine moves its experts while it answers, and no answer changes.
#include <numeric>

#include "flow.h"

namespace {

using json = nlohmann::json;
using flags = std::vector<std::string>;

/// Runs of `num_iterations` iterations of a question a rank, without rebalancing and with it.
class Rebalance : public testing::Test {
  protected:
    std::string path(const std::string &name) const { return dir_ / name; }

    /// The outputs of a run without rebalancing.
    std::string plain(const engine_run &run, const flags &questions) {
        return outputs_of_run(run.with(questions), path("plain" + std::to_string(number_++)));
    }

    /// The report of a run, whose outputs must be those of `expected`, bit for bit.
    json unchanged(const engine_run &run, const std::string &expected) {
        const std::string name = path("run" + std::to_string(number_++));
        const std::string folder = outputs_of_run(run.with({"--report", name + ".json"}), name);
        EXPECT_EQ(difference(folder, expected), 0);
        return report_of(name + ".json");
    }

    static flags questions(int ranks, int iterations) {
        return {"--questions", "0-" + std::to_string(ranks * iterations), "--batch", "1"};
    }

    /// The imbalance ratio that a configuration file has on the loads of a dump: the mean over layers.
    double projected_ratio(const std::string &file, const std::string &dump) const {
        const auto stats = eplb::stats::load(path(dump));
        eplb::placement_load_options expected;
        expected.num_ranks = 8;
        const auto placement = eplb::placement::load(path(file), expected);
        double sum = 0;
        for (const int32_t layer : layers) {
            sum += eplb::evaluate(placement, layer, stats.layer_loads(layer)).imbalance_ratio /
                   double(num_layers);
        }
        return sum;
    }

    temporary_directory dir_;
    int number_ = 0;
};

flags every(int iterations) { return {"--rebalance", std::to_string(iterations)}; }

TEST_F(Rebalance, NoIntervalChangesTheOutputs) {
    const flags asked = questions(8, 14);
    const std::string expected = plain(threads(), asked);
    for (const int interval : {1, 7, 64}) {
        const json report = unchanged(threads().with(asked).with(every(interval)), expected);
        const json &live = report.at("rebalancing");
        EXPECT_EQ(live.at("plans").get<int>() > 0, interval < 64) << interval;
        EXPECT_EQ(live.at("commits").get<int>() > 0, interval == 1 || interval == 7) << interval;
        EXPECT_EQ(live.at("aborted"), 0) << interval;
    }
}

TEST_F(Rebalance, NoRuleChangesTheOutputs) {
    const flags asked = questions(8, 10);
    const std::string expected = plain(threads(), asked);
    for (const std::string rule : {"round-robin", "token-hash", "nearest", "least-loaded"}) {
        const json report = unchanged(threads().with(asked).with(every(3)).with(
                                          {"--route", rule, "--num_slots", "320", "--ranks_per_node", "4"}),
                                      expected);
        EXPECT_GT(report.at("rebalancing").at("moves"), 0) << rule;
    }
}

TEST_F(Rebalance, NoBufferingChangesTheOutputs) {
    // At first each expert is on two ranks, so that slots can be emptied before they are overwritten.
    const flags asked = questions(4, 10);
    const std::string expected = plain(threads(4), asked);
    for (const std::string buffering : {"staged", "in-place", "drain"}) {
        const json report =
            unchanged(threads(4).with(asked).with(every(3)).with(
                          {"--buffering", buffering, "--num_slots", "512", "--max_moves", "8"}),
                      expected);
        const json &live = report.at("rebalancing");
        EXPECT_GT(live.at("moves"), 0) << buffering;
        EXPECT_GT(live.at("bytes_moved"), 0) << buffering;
        // Drain changes the table of a layer twice where each expert keeps a replica.
        EXPECT_EQ(live.at("commits") > live.at("layers"), buffering == "drain") << live;
    }
}

TEST_F(Rebalance, NoNumberOfRanksChangesTheOutputs) {
    for (const int ranks : {4, 12}) {
        const flags asked = questions(ranks, 8);
        const std::string expected = plain(threads(ranks).with({"--num_slots", "264"}), asked);
        const json report =
            unchanged(threads(ranks).with({"--num_slots", "264"}).with(asked).with(every(3)), expected);
        EXPECT_GT(report.at("rebalancing").at("moves"), 0) << ranks;
    }
}

#ifdef HAS_MPI
TEST_F(Rebalance, ProcessesMatchTheOutputsOfThreads) {
    const std::pair<int, const char *> runs[] = {
        {4, "round-robin"}, {8, "nearest"}, {8, "least-loaded"}, {12, "token-hash"}};
    for (const auto &[ranks, rule] : runs) {
        const flags asked = questions(ranks, 8), slots = {"--num_slots", "264"};
        const std::string expected = plain(threads(ranks).with(slots), asked);
        const json report =
            unchanged(mpi(ranks).with(slots).with(asked).with(every(3)).with({"--route", rule}), expected);
        const json of_threads = unchanged(
            threads(ranks).with(slots).with(asked).with(every(3)).with({"--route", rule}), expected);
        EXPECT_GT(report.at("rebalancing").at("moves"), 0);
        for (const char *what : {"plans", "moves", "commits", "bytes_moved", "kept"}) {
            EXPECT_EQ(report.at("rebalancing").at(what), of_threads.at("rebalancing").at(what)) << what;
        }
    }
}
#endif

TEST_F(Rebalance, DevicesMatchTheHost) {
    const flags asked = questions(8, 8);
    const std::string expected = plain(threads(), asked);
    const auto run = [&](engine_run run, const std::string &rule) {
        return unchanged(run.with(asked).with(every(3)).with({"--route", rule, "--num_slots", "288"}),
                         expected)
            .at("rebalancing");
    };
    const std::pair<const char *, const char *> runs[] = {{"round-robin", "immediate"},
                                                          {"token-hash", "deferred"},
                                                          {"nearest", "immediate"},
                                                          {"least-loaded", "deferred"}};
    for (const auto &[rule, driver] : runs) {
        const json host = run(threads(), rule);
        engine_run cuda = threads();
        cuda.environment = {std::string("LD_LIBRARY_PATH=") + FAKE_CUDA_DIR,
                            std::string("EPLB_FAKE_CUDA=") + driver};
        const json on_device = run(cuda.with({"--device", "cuda"}), rule);
        for (const char *what : {"plans", "moves", "commits", "kept"}) {
            EXPECT_EQ(on_device.at(what), host.at(what)) << rule << " " << driver << " " << what;
        }
    }
    const json host = run(threads(), "round-robin");
    const json other = run(threads().with({"--device", "other", "--counters", "cumulative"}), "round-robin");
    EXPECT_EQ(other.at("moves"), host.at("moves"));
}

/// A GPU for each of two ranks, and NCCL.
engine_run over_nccl(const char *driver) {
    engine_run run = threads(2).with({"--device", "cuda", "--num_slots", "264"});
    run.environment = {std::string("LD_LIBRARY_PATH=") + FAKE_NCCL_DIR + ":" + FAKE_CUDA_DIR,
                       std::string("EPLB_FAKE_CUDA=") + driver};
    return run;
}

TEST_F(Rebalance, WeightsTravelByNcclBetweenGpus) {
    const flags asked = {"--questions", "0-64", "--batch", "4"};
    const std::string expected = plain(threads(2).with({"--num_slots", "264"}), asked);
    const json by_threads =
        unchanged(threads(2).with({"--num_slots", "264"}).with(asked).with(every(3)), expected)
            .at("rebalancing");
    EXPECT_EQ(by_threads.at("by_nccl"), false);
    for (const char *driver : {"immediate", "deferred"}) {
        const json live = unchanged(over_nccl(driver).with(asked).with(every(3)), expected).at("rebalancing");
        EXPECT_EQ(live.at("by_nccl"), true);
        EXPECT_GT(live.at("bytes_moved"), 0);
        for (const char *what : {"plans", "moves", "commits", "bytes_moved", "kept"}) {
            EXPECT_EQ(live.at(what), by_threads.at(what)) << driver << " " << what;
        }
    }
    // Ranks that share a GPU cannot use NCCL.
    engine_run shared = over_nccl("immediate");
    shared.flags = threads(4).flags;
    const json live =
        unchanged(
            shared.with({"--device", "cuda", "--num_slots", "264"}).with(questions(4, 8)).with(every(3)),
            plain(threads(4).with({"--num_slots", "264"}), questions(4, 8)))
            .at("rebalancing");
    EXPECT_EQ(live.at("by_nccl"), false);
    EXPECT_GT(live.at("moves"), 0);
}

TEST_F(Rebalance, FailureOfNcclIsReported) {
    engine_run run = over_nccl("immediate").with({"--questions", "0-32", "--batch", "4"}).with(every(3));
    run.environment.push_back("EPLB_FAKE_NCCL_FAIL=2");
    const outcome outcome = run.try_out();
    EXPECT_EQ(WEXITSTATUS(outcome.status), 1) << outcome.output;
    EXPECT_NE(outcome.output.find("NCCL: nccl"), std::string::npos) << outcome.output;
    EXPECT_NE(outcome.output.find("remote process exited"), std::string::npos) << outcome.output;
}

TEST_F(Rebalance, SpoiltTransferIsNoticed) {
    const flags asked = questions(8, 10);
    const std::string expected = plain(threads(), asked);
    for (const std::string buffering : {"staged", "in-place"}) {
        const engine_run run =
            threads().with(asked).with(every(3)).with({"--spoil_transfer", "5", "--buffering", buffering});
        const outcome outcome = run.try_out();
        EXPECT_EQ(outcome.status, 0) << outcome.output;
        const bool is_staged = buffering == "staged";
        const std::string what =
            is_staged ? "with other bytes; the layer stays as it is" : "with other bytes; it is loaded again";
        EXPECT_NE(outcome.output.find(what), std::string::npos) << outcome.output;
        const json report = unchanged(run, expected);
        EXPECT_EQ(report.at("rebalancing").at("aborted").get<int>() > 0, is_staged);
    }
}

TEST_F(Rebalance, CountsThatDifferByOneAreNoticedBeforeAnythingMoves) {
    const flags asked = questions(8, 8);
    const std::string expected = plain(threads(), asked);
    engine_run wrong = threads();
    wrong.program = {MOE_ENGINE_WRONG_COUNT};
    // The only plan is the one with the wrong count.
    const engine_run run = wrong.with(asked).with(every(5));
    const outcome outcome = run.try_out();
    EXPECT_NE(outcome.output.find("different plans from different counts: nothing moved"), std::string::npos)
        << outcome.output;
    const json report = unchanged(run, expected);
    EXPECT_EQ(report.at("rebalancing").at("moves"), 0);
    EXPECT_EQ(report.at("rebalancing").at("aborted"), 1);
    // Without the wrong count, it moves experts.
    EXPECT_GT(unchanged(threads().with(asked).with(every(5)), expected).at("rebalancing").at("moves"), 0);
}

/// Checks the answers of all questions that a run has against those of another run.
void expect_same_answers(const std::string &folder, const std::string &expected, int but_rank) {
    for (int rank = 0; rank < 4; rank++) {
        const std::string file = "/rank" + std::to_string(rank) + ".safetensors";
        const safetensors found(folder + file), wanted(expected + file);
        EXPECT_EQ(found.names().size() < wanted.names().size(), rank == but_rank) << rank;
        for (const std::string &name : found.names()) {
            const auto shape = wanted.shape(name);
            if (name.find(".logits") != std::string::npos) {
                EXPECT_EQ(found.f32(name, shape), wanted.f32(name, shape)) << rank << " " << name;
            } else {
                EXPECT_EQ(found.i32(name, shape), wanted.i32(name, shape)) << rank << " " << name;
            }
        }
    }
}

TEST_F(Rebalance, SurvivorsGoOnWhenARankDies) {
    // Each expert is on two of four ranks.
    const flags asked = questions(4, 12), slots = {"--num_slots", "512"};
    const std::string expected = plain(threads(4).with(slots), asked);
    std::vector<engine_run> transports = {threads(4)};
#ifdef HAS_MPI
    transports.push_back(mpi(4));
#endif
    for (const engine_run &transport : transports) {
        const std::string folder =
            outputs_of_run(transport.with(slots).with(asked).with(every(6)).with(
                               {"--kill_rank", "1@5", "--report", path("killed.json")}),
                           path("killed" + std::to_string(number_++)));
        expect_same_answers(folder, expected, 1);
        const json report = report_of(path("killed.json"));
        EXPECT_GT(report.at("rebalancing").at("moves"), 0) << "the survivors are balanced again";
    }
}

TEST_F(Rebalance, DeadRankStaysDeadWhenTheOthersStartAgain) {
    const flags asked = questions(4, 14), slots = {"--num_slots", "512"};
    const std::string expected = plain(threads(4).with(slots), asked);
    // The first plan, after the death, is the one with the wrong count.
    engine_run wrong = threads(4);
    wrong.program = {MOE_ENGINE_WRONG_COUNT};
    const std::string folder = outputs_of_run(wrong.with(slots).with(asked).with(every(6)).with(
                                                  {"--kill_rank", "1@3", "--report", path("killed.json")}),
                                              path("killed"));
    expect_same_answers(folder, expected, 1);
    const json live = report_of(path("killed.json")).at("rebalancing");
    EXPECT_EQ(live.at("aborted"), 1);
    EXPECT_GT(live.at("moves"), 0) << "the survivors are balanced again";
}

TEST_F(Rebalance, LostExpertsEndTheRunBeforeAWrongAnswer) {
    std::vector<engine_run> transports = {threads()};
#ifdef HAS_MPI
    transports.push_back(mpi());
#endif
    for (const engine_run &transport : transports) {
        const outcome outcome =
            transport.with(questions(8, 6)).with(every(64)).with({"--kill_rank", "2@3"}).try_out();
        EXPECT_EQ(WEXITSTATUS(outcome.status), 3) << outcome.output;
        // In order, rank 2 of 8 has experts 64 to 95.
        EXPECT_NE(outcome.output.find("rank 2 died: "), std::string::npos) << outcome.output;
        EXPECT_NE(outcome.output.find("experts 64, 65, 66"), std::string::npos) << outcome.output;
    }
}

TEST_F(Rebalance, ThreePlansReachTheOfflineFileAndThenNothingMoves) {
    // The offline file is planned from the very iterations that the ratio is projected on.
    const flags asked = {"--questions", "0-64", "--batch", "8", "--iterations", "12"};
    threads().with(asked).counting(path("dump"), "0-12").succeed();
    generate(path("dump"), 8, 320, path("offline.yaml"));
    const json report = [&] {
        threads()
            .with(asked)
            .with(every(2))
            .with({"--num_slots", "320", "--route", "round-robin", "--report", path("live.json"),
                   "--save_moe_load_balancer", path("live.yaml")})
            .succeed();
        return report_of(path("live.json"));
    }();
    EXPECT_LE(projected_ratio("live.yaml", "dump"), 1.25 * projected_ratio("offline.yaml", "dump") + 0.01);
    const json &live = report.at("rebalancing");
    EXPECT_LE(live.at("plans"), 3) << live;
    EXPECT_GT(live.at("plans"), 0) << live;
    // The questions repeat, so the load does.
    const auto ratios = report.at("iteration_imbalance_ratios").get<std::vector<double>>();
    EXPECT_LT(ratios.back(), 0.5 * ratios.front());
}

TEST_F(Rebalance, ThreePlansFollowAShiftAndThenNothingMoves) {
    // From iteration 16 on, all iterations read the same 8 pieces of another text, one a rank.
    std::ofstream(path("text"), std::ios::binary) << read_file(data("../LICENSE")).substr(0, 8 * 256);
    const flags asked = {"--num_slots", "320",     "--route", "round-robin", "--questions",
                         "0-128",       "--batch", "1",       "--texts",     path("text") + "@16"};
    const auto live = [&](int iterations) {
        const std::string name = "live" + std::to_string(iterations);
        threads()
            .with(asked)
            .with(every(4))
            .with({"--iterations", std::to_string(iterations), "--report", path(name + ".json"),
                   "--save_moe_load_balancer", path(name + ".yaml")})
            .succeed();
        return report_of(path(name + ".json"));
    };
    threads().with(asked).with({"--iterations", "28"}).counting(path("dump"), "16-28").succeed();
    generate(path("dump"), 8, 320, path("offline.yaml"), 16);
    const double offline = projected_ratio("offline.yaml", "dump");

    live(16);
    EXPECT_GT(projected_ratio("live16.yaml", "dump"), 1.25 * offline + 0.01) << "the shift is no shift";
    // The third plan after the shift is made before iteration 28. The last of three layers moves before 30.
    live(31);
    EXPECT_LE(projected_ratio("live31.yaml", "dump"), 1.25 * offline + 0.01);
    const json report = live(60);
    const auto moves = report.at("rebalancing").at("iteration_moves").get<std::vector<int64_t>>();
    EXPECT_EQ(std::accumulate(moves.begin() + 31, moves.end(), int64_t(0)), 0) << report.at("rebalancing");
}

TEST_F(Rebalance, FlagsThatDoNothingAreRefused) {
    const auto error = [&](const flags &more) {
        const outcome outcome = threads().with(more).try_out();
        EXPECT_NE(outcome.status, 0);
        return outcome.output;
    };
    EXPECT_EQ(error({"--max_moves", "3"}),
              "error: flags of live rebalancing need --rebalance N; see --help\n");
    EXPECT_EQ(error({"--rebalance", "2", "--kill_rank", "8@1"}), "error: --kill_rank 8: there are 8 ranks\n");
    EXPECT_EQ(error({"--rebalance", "2", "--kill_rank", "8"}),
              "error: --kill_rank 8: R@ITER expected, such as 3@20\n");
    EXPECT_EQ(error({"--rebalance", "2", "--buffering", "none"}),
              "error: --buffering none: one of drain, in-place, staged expected\n");
}

} // namespace

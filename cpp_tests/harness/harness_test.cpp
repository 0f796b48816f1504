// The three steps on 8 ranks: examples/moe_engine counts, eplb generates, the engine runs with the generated
// configuration file.
#include "flow.h"

#include <unistd.h>

#include "exposition.h"
#include "golden.h"

namespace {

/// Tokens of iterations [start, stop). As in main.cpp, questions go to the ranks in turn, again and again.
size_t tokens_of(size_t first, size_t last, size_t batch, size_t ranks, size_t start, size_t stop) {
    const auto questions = read_questions(data("tiny-moe/gsm8k-test.jsonl"), 256);
    size_t tokens = 0;
    for (size_t place = start * batch * ranks; place < stop * batch * ranks; place++) {
        tokens += questions[first + place % (last - first)].size();
    }
    return tokens;
}

void expect_golden(const std::string &folder) {
    golden golden(model_folder());
    const auto files = outputs_of(folder);
    for (size_t question = 0; question < golden::num_questions; question++) {
        const std::string ids = std::to_string(question) + ".topk_ids",
                          logits = std::to_string(question) + ".logits";
        const safetensors file(files.at(ids));
        golden.compare(question, file.i32(ids, file.shape(ids)), file.f32(logits, file.shape(logits)));
    }
    golden.expect_all_compared();
}

/// Runs steps 1 and 2 on 8 ranks, once for all tests: iterations 100 to 199, on half of the questions.
class FullFlow : public testing::Test {
  protected:
    static void SetUpTestSuite() {
        dir_ = new temporary_directory;
        threads()
            .with({"--questions", "0-660", "--batch", "1", "--iterations", "200"})
            .with({"--metrics", path("metrics")})
            .counting(path("dump"), "100-200")
            .succeed();
        generate(path("dump"), 8, 320, path("8x40.yaml"));
        generate(path("dump"), 4, 320, path("4x80.yaml"));
        generate(path("dump"), 12, 432, path("12x36.yaml"));
        plain_ = outputs_of_run(threads().with(few), path("plain"));
    }
    static void TearDownTestSuite() { delete dir_; }

    static std::string path(const std::string &name) { return *dir_ / name; }

    /// In the second iteration of 8 ranks some have no question.
    static inline const std::vector<std::string> few = {"--questions", "0-20", "--batch", "2"};
    static inline temporary_directory *dir_ = nullptr;
    /// The outputs for `few` without a configuration file.
    static inline std::string plain_;
};

TEST_F(FullFlow, DumpHasExactlyTheIterationsOfTheRange) {
    size_t files = 0;
    for (const auto &file : std::filesystem::directory_iterator(path("dump"))) {
        files += file.path().extension() == ".safetensors";
    }
    EXPECT_EQ(files, 8u);
    for (int rank = 0; rank < 8; rank++) {
        const safetensors file(path("dump") + "/rank" + std::to_string(rank) + ".safetensors");
        EXPECT_EQ(file.names().size(), 100 * num_layers);
        for (size_t iteration = 100; iteration < 200; iteration++) {
            for (const int32_t layer : layers) {
                const std::string name = std::to_string(iteration) + "_" + std::to_string(layer);
                EXPECT_EQ(file.shape(name), std::vector<size_t>{num_experts});
            }
        }
    }
    const auto stats = eplb::stats::load(path("dump"));
    const double expected = double(tokens_of(0, 660, 1, 8, 100, 200) * choices);
    for (const int32_t layer : layers) {
        EXPECT_EQ(sum(stats.layer_loads(layer)), expected);
    }
}

TEST_F(FullFlow, MetricsOfTheRanksMatchTheDump) {
    const auto stats = eplb::stats::load(path("dump"));
    std::map<int32_t, double> tokens;
    std::set<exposition::labels> placements;
    for (int rank = 0; rank < 8; rank++) {
        const std::string number = std::to_string(rank);
        const exposition found(read_file(path("metrics") + "/rank" + number + ".prom"));
        EXPECT_EQ(found.at("eplb_recorder_state", {{"rank", number}, {"state", "dumped"}}), 1);
        EXPECT_EQ(found.at("eplb_recorder_iterations_total", {{"rank", number}}), 100);
        EXPECT_EQ(found.at("eplb_recorder_dumps_total", {{"rank", number}, {"result", "written"}}), 1);
        EXPECT_EQ(found.at("eplb_dispatch_slots", {{"rank", number}}), num_experts);
        for (const int32_t layer : layers) {
            tokens[layer] +=
                found.at("eplb_recorder_tokens_total", {{"rank", number}, {"layer", std::to_string(layer)}});
        }
        for (exposition::labels info : {found.metrics.at("eplb_placement_info").samples.begin()->first,
                                        found.metrics.at("eplb_dispatch_info").samples.begin()->first}) {
            placements.insert({{"hash", info.at("hash")}});
        }
    }
    for (const int32_t layer : layers) {
        EXPECT_EQ(tokens[layer] * choices, sum(stats.layer_loads(layer)));
    }
    EXPECT_EQ(placements.size(), 1u) << "all ranks serve one placement";
    const outcome printed = threads(2).with({"--questions", "0-2", "--metrics", "-"}).try_out();
    EXPECT_NE(printed.output.find("\n# TYPE eplb_dispatch_info gauge\neplb_dispatch_info{rank=\"0\",hash="),
              std::string::npos)
        << printed.output;
}

TEST_F(FullFlow, EightRanksMatchTheGoldenExpertsAndLogits) {
    expect_golden(plain_);
    const std::string balanced = outputs_of_run(
        threads().with(few).with({"--moe_load_balancer", path("8x40.yaml")}), path("golden_balanced"));
    expect_golden(balanced);
    expect_golden(outputs_of_run(threads(1).with({"--questions", "0-4"}), path("golden_one_rank")));
}

TEST_F(FullFlow, NoRuleChangesTheOutputs) {
    for (const std::string rule : {"round-robin", "token-hash", "nearest", "least-loaded"}) {
        const std::string folder =
            outputs_of_run(threads().with(few).with({"--moe_load_balancer", path("8x40.yaml"), "--route",
                                                     rule, "--ranks_per_node", "4"}),
                           path("rule_" + rule));
        // Outputs are added in the order of a token's choices, wherever they come from.
        EXPECT_EQ(difference(folder, plain_), 0) << rule;
    }
}

TEST_F(FullFlow, CorruptedTableChangesTheOutputs) {
    engine_run corrupted = threads();
    corrupted.program = {MOE_ENGINE_CORRUPTED};
    const std::string folder = outputs_of_run(
        corrupted.with(few).with({"--moe_load_balancer", path("8x40.yaml")}), path("corrupted"));
    EXPECT_GT(difference(folder, plain_), 1e-3f);
}

TEST_F(FullFlow, RanksAreBalancedOnUnseenQuestions) {
    const engine_run held_out = threads().with({"--questions", "660-1319"});
    held_out.with({"--report", path("before.json")}).counting(path("held_out"), "0-21").succeed();
    const engine_run balanced = held_out.with({"--moe_load_balancer", path("8x40.yaml")});
    balanced.with({"--report", path("least_loaded.json")}).succeed();
    balanced.with({"--report", path("round_robin.json"), "--route", "round-robin", "--count", "slots"})
        .counting(path("slots"), "0-21")
        .succeed();
    threads().with(few).with({"--report", path("few.json")}).succeed();
    const auto before = report_of(path("before.json")), least_loaded = report_of(path("least_loaded.json")),
               round_robin = report_of(path("round_robin.json"));
    EXPECT_EQ(before.at("perplexity"), least_loaded.at("perplexity"));
    EXPECT_EQ(before.at("perplexity"), round_robin.at("perplexity"));
    EXPECT_LT(before.at("perplexity"), 4.0) << "the model is trained";

    // The projection: each iteration's experts split evenly over their replicas.
    eplb::placement_load_options options;
    options.num_ranks = 8;
    const auto placement = eplb::placement::load(path("8x40.yaml"), options);
    double was = 0, is = 0, is_even = 0, projected = 0;
    for (size_t i = 0; i < num_layers; i++) {
        std::vector<double> loads;
        for (int64_t iteration = 0; iteration < 21; iteration++) {
            eplb::stats_options one;
            one.iter_start = iteration;
            one.iter_stop = iteration + 1;
            const std::vector<double> of_one =
                eplb::stats::load(path("held_out"), one).layer_loads(layers[i]);
            loads.insert(loads.end(), of_one.begin(), of_one.end());
        }
        projected += eplb::evaluate(placement, layers[i], loads, 21).imbalance_ratio;
        was += before.at("layers").at(i).at("imbalance_ratio").get<double>();
        is += least_loaded.at("layers").at(i).at("imbalance_ratio").get<double>();
        is_even += round_robin.at("layers").at(i).at("imbalance_ratio").get<double>();
        EXPECT_GT(before.at("layers").at(i).at("imbalance_ratio"), 0.4);
    }
    EXPECT_GT(was, 8 * is);
    EXPECT_GT(was, 8 * is_even);
    EXPECT_NEAR(is_even, projected, 0.1 * projected);

    // The example's own table has the same figures.
    const auto table = run({}, {BEFORE_AFTER, path("before.json"), path("round_robin.json"), path("held_out"),
                                path("8x40.yaml")});
    char average[64];
    std::snprintf(average, sizeof average, " average   %.4f     %.4f   %.4f\n", was / num_layers,
                  projected / num_layers, is_even / num_layers);
    EXPECT_NE(table.output.find(average), std::string::npos) << table.output;
    // The README shows its output, except for the times.
    const std::string shown = run({}, {BEFORE_AFTER, path("before.json"), path("least_loaded.json"),
                                       path("held_out"), path("8x40.yaml")})
                                  .output;
    const std::string times = "eplb's calls took";
    ASSERT_NE(shown.find(times), std::string::npos) << shown;
    EXPECT_NE(read_file(README).find("\n" + shown.substr(0, shown.find(times))), std::string::npos) << shown;
    const auto of_other_questions =
        run({}, {BEFORE_AFTER, path("before.json"), path("few.json"), path("held_out"), path("8x40.yaml")});
    EXPECT_NE(of_other_questions.status, 0);
    EXPECT_EQ(of_other_questions.output.find("error: the runs differ in iterations"), 0u)
        << of_other_questions.output;

    // The counts of slots match the tokens that the ranks served.
    const auto slots = eplb::stats::load(path("slots"));
    EXPECT_EQ(slots.info().num_experts, 320u);
    for (size_t i = 0; i < num_layers; i++) {
        const std::vector<double> loads = slots.layer_loads(layers[i]);
        for (size_t rank = 0; rank < 8; rank++) {
            const std::vector<double> of_rank(loads.begin() + ptrdiff_t(rank * 40),
                                              loads.begin() + ptrdiff_t(rank * 40 + 40));
            EXPECT_EQ(sum(of_rank), round_robin.at("layers").at(i).at("rank_tokens").at(rank).get<double>());
        }
    }
}

TEST_F(FullFlow, SecondRunCountsSlotsInTheSameRange) {
    threads()
        .with({"--questions", "0-660", "--batch", "1", "--iterations", "200"})
        .with({"--moe_load_balancer", path("8x40.yaml"), "--count", "slots"})
        .counting(path("second"), "100-200")
        .succeed();
    const auto stats = eplb::stats::load(path("second"));
    EXPECT_EQ(stats.info().num_experts, 320u);
    EXPECT_EQ(stats.info().iter_stop - stats.info().iter_start, 100);
    const double expected = double(tokens_of(0, 660, 1, 8, 100, 200) * choices);
    for (const int32_t layer : layers) {
        EXPECT_EQ(sum(stats.layer_loads(layer)), expected);
    }
}

TEST_F(FullFlow, ProcessesMatchTheOutputsOfThreads) {
#ifndef HAS_MPI
    GTEST_SKIP();
#endif
    const auto balanced = [](const std::string &config) {
        return std::vector<std::string>{"--moe_load_balancer", path(config)};
    };
    EXPECT_EQ(difference(outputs_of_run(mpi(8).with(few), path("mpi_plain")), plain_), 0);
    for (const auto &[ranks, config] : {std::pair{4, "4x80.yaml"}, {8, "8x40.yaml"}, {12, "12x36.yaml"}}) {
        const std::string folder =
            outputs_of_run(mpi(ranks).with(few).with(balanced(config)), path("mpi_" + std::to_string(ranks)));
        EXPECT_EQ(difference(folder, plain_), 0) << ranks;
    }
}

TEST_F(FullFlow, ProcessesMatchTheDumpsOfThreads) {
#ifndef HAS_MPI
    GTEST_SKIP();
#endif
    const std::vector<std::string> flags = {"--questions", "0-24", "--batch", "1"};
    threads().with(flags).counting(path("dump_threads"), "1-3").succeed();
    mpi().with(flags).counting(path("dump_mpi"), "1-3").succeed();
    expect_same_dumps(path("dump_threads"), path("dump_mpi"));
}

TEST_F(FullFlow, FailedDumpOfOneRankLeavesTheOthersComplete) {
#ifndef HAS_MPI
    GTEST_SKIP();
#endif
    const engine_run counted = mpi().with({"--questions", "0-32", "--batch", "1"});
    counted.counting(path("living"), "1-3").succeed();
    // The rank dies in the middle of the run, or its disk is full before other ranks are done.
    for (const auto &[how, range] : {std::pair{"die", "1-3"}, {"full", "1-3"}, {"full", "1-4"}}) {
        const std::string dump = path(std::string(how) + range);
        engine_run failing = counted.counting(dump, range);
        failing.environment.push_back(std::string("LD_PRELOAD=") + FAIL_AT_RENAME);
        failing.environment.push_back(std::string("EPLB_FAIL=") + how);
        const outcome outcome = failing.try_out();
        EXPECT_NE(outcome.status, 0) << outcome.output;
        EXPECT_FALSE(std::filesystem::exists(dump + "/rank3.safetensors"));
        if (std::string(range) == "1-3") {
            expect_same_dumps(path("living"), dump, 3);
        }
        for (int rank = 0; rank < 8; rank++) {
            EXPECT_EQ(std::filesystem::exists(dump + "/rank" + std::to_string(rank) + ".safetensors"),
                      rank != 3);
        }
        if (std::string(how) == "full") {
            EXPECT_NE(outcome.output.find("perplexity"), std::string::npos) << "the run's results are there";
            EXPECT_NE(outcome.output.find("rank3.safetensors"), std::string::npos) << outcome.output;
        }
        try {
            generate(dump, 8, 320, path("none.yaml"));
            ADD_FAILURE() << "a rank is missing";
        } catch (const eplb::error &error) {
            EXPECT_NE(std::string(error.what()).find("(rank 3)"), std::string::npos) << error.what();
        }
        EXPECT_FALSE(std::filesystem::exists(path("none.yaml")));
    }
}

TEST_F(FullFlow, RanksWithDifferentConfigurationsAreRefused) {
#ifndef HAS_MPI
    GTEST_SKIP();
#endif
    std::filesystem::create_directories(path("differ"));
    for (int rank = 0; rank < 8; rank++) {
        generate(path("dump"), 8, 320, path("differ/" + std::to_string(rank) + ".yaml"),
                 rank == 5 ? 101 : 100);
    }
    engine_run differing = mpi().with({"--questions", "0-8"});
    const std::string each_its_own =
        "exec \"$0\" \"$@\" --moe_load_balancer " + path("differ") + "/$OMPI_COMM_WORLD_RANK.yaml";
    differing.program = {MPIRUN, "8", "sh", "-c", each_its_own, MOE_ENGINE, "--transport", "mpi"};
    const outcome outcome = differing.try_out();
    EXPECT_NE(outcome.status, 0);
    EXPECT_NE(outcome.output.find("the ranks have loaded different configuration files"), std::string::npos)
        << outcome.output;
}

TEST_F(FullFlow, MpirunThatOutlivesItsRanksIsKilled) {
    const std::string folder = path("outlives");
    std::filesystem::create_directories(folder);
    // Starts the ranks and stays.
    std::ofstream(folder + "/mpirun") << "#!/bin/sh\n"
                                         "ranks=$2 rank=0\n"
                                         "shift 2\n"
                                         "while [ $rank -lt $ranks ]; do\n"
                                         "    OMPI_COMM_WORLD_RANK=$rank \"$@\" &\n"
                                         "    rank=$((rank + 1))\n"
                                         "done\n"
                                         "exec sleep 600\n";
    std::filesystem::permissions(folder + "/mpirun", std::filesystem::perms::owner_all);
    const std::vector<std::string> environment = {"MPIRUN_PATIENCE=1",
                                                  "PATH=" + folder + ":" + std::getenv("PATH")};
    for (const auto &[rank_main, fails] : {std::pair{"echo done", false}, {"echo done; exit 3", true}}) {
        const outcome outcome = run(environment, {MPIRUN, "3", "sh", "-c", rank_main});
        EXPECT_EQ(outcome.status != 0, fails) << outcome.output;
        EXPECT_NE(outcome.output.find("done\ndone\ndone\n"), std::string::npos) << outcome.output;
        EXPECT_NE(outcome.output.find("mpirun did not end"), std::string::npos) << outcome.output;
    }
}

// ---- With the ids on a CUDA device ----

/// A fake driver whose streams run at once or deferred.
class Cuda : public FullFlow, public testing::WithParamInterface<const char *> {
  protected:
    static engine_run on_device() {
        engine_run run = threads().with({"--device", "cuda"});
        run.environment = {std::string("LD_LIBRARY_PATH=") + FAKE_CUDA_DIR,
                           std::string("EPLB_FAKE_CUDA=") + GetParam()};
        return run;
    }
};
INSTANTIATE_TEST_SUITE_P(Driver, Cuda, testing::Values("immediate", "deferred"));

TEST_P(Cuda, ThreeStepsMatchTheHost) {
    const std::string name = GetParam();
    threads().with(few).counting(path("host_" + name), "0-2").succeed();
    on_device().with(few).counting(path("cuda_" + name), "0-2").succeed();
    expect_same_dumps(path("cuda_" + name), path("host_" + name));
    generate(path("cuda_" + name), 8, 320, path(name + ".yaml"));
    for (const std::string rule : {"round-robin", "token-hash", "nearest", "least-loaded"}) {
        const std::vector<std::string> balanced = {"--moe_load_balancer",
                                                   path(name + ".yaml"),
                                                   "--route",
                                                   rule,
                                                   "--ranks_per_node",
                                                   "2",
                                                   "--count",
                                                   "slots"};
        const std::string run = path(name + "_" + rule);
        threads().with(few).with(balanced).counting(run + "_host", "0-2").succeed();
        outputs_of_run(on_device().with(few).with(balanced).counting(run + "_cuda", "0-2"), run);
        EXPECT_EQ(difference(run, plain_), 0) << rule;
        expect_same_dumps(run + "_cuda", run + "_host");
    }
}

// ---- With the ids on a device that eplb does not know ----

/// Its kernels count what each iteration chose, or all so far.
class OtherDevice : public FullFlow, public testing::WithParamInterface<const char *> {
  protected:
    static engine_run on_device() { return threads().with({"--device", "other", "--counters", GetParam()}); }
};
INSTANTIATE_TEST_SUITE_P(Counters, OtherDevice, testing::Values("deltas", "cumulative"));

TEST_P(OtherDevice, ThreeStepsMatchTheHost) {
    const std::string name = GetParam();
    const auto of = [&](const std::string &what) { return path("other_" + name + "_" + what); };
    // Iterations before and after the range are not counted.
    const std::vector<std::string> four = {"--questions", "0-32", "--batch", "1"};
    threads().with(four).counting(of("host"), "1-3").succeed();
    on_device().with(four).counting(of("dump"), "1-3").succeed();
    expect_same_dumps(of("dump"), of("host"));
    generate(of("host"), 8, 320, of("host.yaml"));
    generate(of("dump"), 8, 320, of("config.yaml"));
    EXPECT_TRUE(read_file(of("config.yaml")) == read_file(of("host.yaml")));
    EXPECT_FALSE(read_file(of("config.yaml")).empty());
    // Round robin by the device's own kernel, the others on the host.
    for (const std::string rule : {"round-robin", "token-hash", "nearest", "least-loaded"}) {
        const std::vector<std::string> balanced = {"--moe_load_balancer",
                                                   of("config.yaml"),
                                                   "--route",
                                                   rule,
                                                   "--ranks_per_node",
                                                   "2",
                                                   "--count",
                                                   "slots"};
        threads().with(few).with(balanced).counting(of(rule + "_host"), "0-2").succeed();
        outputs_of_run(on_device().with(few).with(balanced).counting(of(rule + "_dump"), "0-2"), of(rule));
        EXPECT_EQ(difference(of(rule), plain_), 0) << rule;
        expect_golden(of(rule));
        expect_same_dumps(of(rule + "_dump"), of(rule + "_host"));
    }
}

TEST_F(FullFlow, ReceivedTokensSumToTheSlotsOfTheHost) {
    const engine_run slots = threads()
                                 .with({"--questions", "0-32", "--batch", "1", "--count", "slots"})
                                 .with({"--moe_load_balancer", path("8x40.yaml")});
    slots.counting(path("sent"), "1-3").succeed();
    slots.with({"--device", "other", "--counters", "received"}).counting(path("received"), "1-3").succeed();
    const auto sent = eplb::stats::load(path("sent")), received = eplb::stats::load(path("received"));
    for (const int32_t layer : layers) {
        EXPECT_EQ(received.layer_loads(layer, 2), sent.layer_loads(layer, 2)) << layer;
        EXPECT_EQ(sum(received.layer_loads(layer)), double(tokens_of(0, 32, 1, 8, 1, 3) * choices));
    }
    // Each rank has counted its own slots, not its own tokens.
    EXPECT_NE(undated_file(path("received/rank0.safetensors")), undated_file(path("sent/rank0.safetensors")));
}

TEST_F(FullFlow, EngineReportsWhatIsWrong) {
    const auto message = [](const engine_run &run) {
        const outcome outcome = run.try_out();
        EXPECT_NE(outcome.status, 0);
        return outcome.output;
    };
    EXPECT_EQ(message(threads().with({"--rout", "nearest"})), "error: --rout is unknown; see --help\n");
    EXPECT_EQ(message(threads().with({"--route", "fastest"})),
              "error: --route fastest: one of least-loaded, nearest, round-robin, token-hash expected\n");
    EXPECT_EQ(message(threads().with({"--device", "rocm"})),
              "error: --device rocm: host, cuda or other expected\n");
    EXPECT_EQ(message(threads().with({"--counters", "cumulative"})),
              "error: --counters needs --device other; elsewhere eplb counts the ids\n");
    const std::string by_slot = message(
        threads().with({"--device", "other", "--counters", "received"}).counting(path("by_slot"), "0-1"));
    EXPECT_NE(by_slot.find("EPLB_ADDED_COUNTS_BY_LOCAL_SLOT needs id_kind EPLB_ID_KIND_SLOT"),
              std::string::npos)
        << by_slot;
    EXPECT_EQ(message(threads().with({"--questions", "1300-1400"})),
              "error: --questions 1300-1400: there are 1319\n");
    // The engine prints eplb's message.
    const std::string other_ranks = message(threads(12).with({"--moe_load_balancer", path("8x40.yaml")}));
    EXPECT_NE(other_ranks.find("8x40.yaml: the file was planned for 8 ranks, 12 ranks expected"),
              std::string::npos)
        << other_ranks;
    if (access("/proc/driver/nvidia/version", F_OK) != 0) {
        EXPECT_EQ(message(threads().with({"--device", "cuda"})).find("error: --device cuda: no driver"), 0u);
    }
    // A run that counts nothing keeps its other results.
    const std::string too_late = message(threads().with(few).counting(path("late"), "100-200"));
    EXPECT_NE(too_late.find("no iteration of 100..200 has begun"), std::string::npos) << too_late;
    EXPECT_NE(too_late.find("perplexity"), std::string::npos) << too_late;
}

} // namespace

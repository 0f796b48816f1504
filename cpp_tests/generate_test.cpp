// eplb_generate: a dump directory to a configuration file.
#include <gtest/gtest.h>

#include <cmath>
#include <eplb_tools.hpp>
#include <regex>

#include "files.h"

namespace {

const std::string translation = data("dumps/dsv2lite-translation");

eplb::generate_config config_for(const std::string &from, const std::string &to) {
    eplb::generate_config config;
    config.expert_statistic_path = from;
    config.output_path = to;
    return config;
}

// Compares each expected file under `folder` with what its dump gives; returns the number of files.
int generate_all(const std::string &folder) {
    temporary_directory dir;
    const std::string output = dir / "moe_load_balancer.yaml";
    const std::regex name(R"((.*)\.ep(\d+)\.slots(\d+)(\.iters(\d+)-(\d+))?\.yaml)");
    int cases = 0;
    for (const auto &entry : std::filesystem::directory_iterator(folder + "/expected")) {
        std::smatch match;
        const std::string file = entry.path().filename();
        if (!std::regex_match(file, match, name)) {
            continue;
        }
        const std::string dump = folder + "/dumps/" + match[1].str();
        auto config = config_for(dump, output);
        config.num_ranks = std::stoul(match[2]);
        config.num_slots = std::stoul(match[3]);
        config.stats.iter_start = match[5].matched ? std::stol(match[5]) : 0;
        config.stats.iter_stop = match[6].matched ? std::stol(match[6]) : 0;
        config.solve.policy = EPLB_POLICY_TRTLLM;
        const eplb_generate_report report = eplb::generate(config);
        EXPECT_TRUE(read_file(output) == read_file(entry.path())) << file;
        EXPECT_EQ(report.num_ranks, config.num_ranks);
        EXPECT_EQ(report.num_slots, config.num_slots);

        eplb::placement_load_options options;
        options.num_ranks = config.num_ranks;
        const auto placement = eplb::placement::load(output, options);
        EXPECT_EQ(placement.hash(), report.hash);
        EXPECT_EQ(placement.info().num_duplicates, report.num_duplicates);
        cases++;
    }
    return cases;
}

} // namespace

TEST(Generate, WritesTheExpectedBytes) {
    EXPECT_EQ(generate_all(EPLB_DATA), 6);
    // A further folder of the same layout, for recordings that may not be shipped.
    if (const char *extra = std::getenv("EPLB_EXTRA_DATA")) {
        EXPECT_GT(generate_all(extra), 0);
    }
}

TEST(Generate, DefaultsExceptThePolicyAreThoseOfTensorRtLlm) {
    temporary_directory dir;
    const std::string output = dir / "config.yaml";
    auto config = config_for(translation, output);
    config.solve.policy = EPLB_POLICY_TRTLLM;
    const auto report = eplb::generate(config);
    EXPECT_EQ(report.num_ranks, 8u) << "the number of rank files";
    EXPECT_EQ(report.num_slots, 64u) << "the number of experts";
    EXPECT_EQ(report.num_layers, 26u);
    EXPECT_EQ(report.iter_start, 100);
    EXPECT_EQ(report.iter_stop, 131);
    EXPECT_LT(report.imbalance_after, report.imbalance_before);
    EXPECT_TRUE(read_file(output) == read_file(data("expected/dsv2lite-translation.ep8.slots64.yaml")));
    // The default policy balances better, and better yet with several samples, which are the default too.
    config.solve.policy = EPLB_POLICY_DEFAULT;
    const auto searched = eplb::generate(config);
    config.num_samples = 1;
    const auto for_the_sum = eplb::generate(config);
    EXPECT_LT(searched.imbalance_after, for_the_sum.imbalance_after);
    EXPECT_LT(searched.imbalance_after, report.imbalance_after);
    EXPECT_EQ(searched.num_duplicates, 0u);
}

TEST(Generate, ProgressReportsEachPhase) {
    temporary_directory dir;
    const std::string output = dir / "config.yaml";
    std::vector<eplb_phase> phases;
    std::pair<uint64_t, uint64_t> read;
    eplb::generate(config_for(translation, output), [&](eplb_phase phase, uint64_t done, uint64_t total) {
        EXPECT_LE(done, total);
        if (phases.empty() || phases.back() != phase) {
            phases.push_back(phase);
        }
        if (phase == EPLB_PHASE_READ) {
            read = {done, total};
        }
        return true;
    });
    EXPECT_EQ(phases, (std::vector<eplb_phase>{EPLB_PHASE_READ, EPLB_PHASE_SOLVE, EPLB_PHASE_WRITE}));
    // 8 ranks x 31 iterations x 26 layers x 64 experts x 8 bytes.
    EXPECT_EQ(read.first, 8u * 31 * 26 * 64 * 8);
    EXPECT_EQ(read.second, read.first);
}

TEST(Generate, CancellationAndExceptionsKeepTheOldFile) {
    temporary_directory dir;
    const std::string output = dir / "config.yaml";
    write_file(output, "old");
    const auto config = config_for(translation, output);
    for (const eplb_phase when : {EPLB_PHASE_READ, EPLB_PHASE_SOLVE, EPLB_PHASE_WRITE}) {
        try {
            eplb::generate(config, [&](eplb_phase phase, uint64_t, uint64_t) { return phase != when; });
            FAIL();
        } catch (const eplb::error &e) {
            EXPECT_EQ(e.status(), EPLB_STATUS_CANCELLED);
        }
        EXPECT_THROW(eplb::generate(config,
                                    [&](eplb_phase phase, uint64_t, uint64_t) -> bool {
                                        return phase == when ? throw std::logic_error("mine") : true;
                                    }),
                     std::logic_error);
        EXPECT_EQ(read_file(output), "old");
    }
    EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir / ""), {}), 1);
}

TEST(Generate, WrongArgumentsAreRefused) {
    temporary_directory dir;
    const std::string output = dir / "config.yaml", nowhere = dir / "no/such/config.yaml", empty = dir / "";
    eplb_generate_config config = EPLB_GENERATE_CONFIG_INIT;
    config.output_path = output.c_str();
    eplb_solve_options options = EPLB_SOLVE_OPTIONS_INIT;
    const auto status = [&] { return eplb_generate(&config, nullptr, &options, nullptr); };
    EXPECT_EQ(eplb_generate(nullptr, nullptr, nullptr, nullptr), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(status(), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_STREQ(eplb_last_error_message(), "config->expert_statistic_path is NULL");
    config.expert_statistic_path = empty.c_str();
    EXPECT_EQ(status(), EPLB_STATUS_INCOMPLETE_DUMP);
    config.expert_statistic_path = translation.c_str();
    config.num_slots = 65;
    EXPECT_EQ(status(), EPLB_STATUS_INVALID_SHAPE);
    config.num_slots = 0;
    options.policy = -1;
    EXPECT_EQ(status(), EPLB_STATUS_INVALID_ARGUMENT);
    options.policy = 0;
    config.reserved = 1;
    EXPECT_EQ(status(), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_STREQ(eplb_last_error_message(), "config->reserved is not 0");
    config.reserved = 0;
    config.output_path = nowhere.c_str();
    EXPECT_EQ(status(), EPLB_STATUS_WRITE_FAILED);
    config.output_path = output.c_str();
    eplb_generate_report report = EPLB_GENERATE_REPORT_INIT;
    report.struct_size = 1;
    EXPECT_EQ(eplb_generate(&config, nullptr, nullptr, &report), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_FALSE(std::filesystem::exists(output)) << "refused before the work";
    EXPECT_EQ(status(), EPLB_STATUS_OK) << "without a report";
}

TEST(Generate, SeveralDumpsArePlannedForTogether) {
    temporary_directory dir;
    const std::string both = dir / "both.yaml", one = dir / "one.yaml";
    auto config = config_for("", both);
    config.paths = {translation, data("dumps/dsv2lite-law")};
    config.solve.policy = EPLB_POLICY_TRTLLM;
    config.num_slots = 72;
    const eplb_generate_report equal = eplb::generate(config);
    // 2^50 apart, the other dump's counts do not change a sum in float32.
    config.path_weights = {std::pow(2.0, 25), std::pow(2.0, -25)};
    const eplb_generate_report translation_only = eplb::generate(config);
    auto single = config_for(translation, one);
    single.solve.policy = EPLB_POLICY_TRTLLM;
    single.num_slots = 72;
    EXPECT_EQ(eplb::generate(single).hash, translation_only.hash);
    EXPECT_NE(equal.hash, translation_only.hash);

    eplb_generate_config c = EPLB_GENERATE_CONFIG_INIT;
    const char *const paths[] = {translation.c_str(), nullptr};
    const double weights[] = {1, 0};
    c.output_path = both.c_str();
    c.paths = paths;
    const auto message = [&] {
        EXPECT_EQ(eplb_generate(&c, nullptr, nullptr, nullptr), EPLB_STATUS_INVALID_ARGUMENT);
        return std::string(eplb_last_error_message());
    };
    EXPECT_EQ(message(), "config->paths or path_weights is set, but num_paths is 0");
    c.num_paths = 2;
    EXPECT_EQ(message(), "config->paths is NULL");
    c.num_paths = 1;
    c.expert_statistic_path = translation.c_str();
    EXPECT_EQ(message(),
              "config->expert_statistic_path and config->paths exclude each other; add it to paths");
    c.expert_statistic_path = nullptr;
    c.path_weights = weights + 1;
    EXPECT_EQ(message(),
              "the weight of dump 0 is 0; a finite number above 0 expected (leave out a dump that should "
              "not count)");
}

TEST(Generate, ArraysWithoutTheirLengthAreRefusedByName) {
    temporary_directory dir;
    const std::string output = dir / "config.yaml";
    auto config = config_for(translation, output);
    const auto refused = [&] {
        try {
            eplb::generate(config);
            ADD_FAILURE() << "accepted";
        } catch (const eplb::error &error) {
            EXPECT_EQ(error.status(), EPLB_STATUS_INVALID_ARGUMENT);
            return std::string(error.what());
        }
        return std::string();
    };
    config.solve.sample_weights = {1, 2};
    EXPECT_EQ(refused(), "solve_options->sample_weights has num_samples values; set config->num_samples too");
    config.num_samples = 3;
    EXPECT_EQ(refused(),
              "rank_num_slots or rank_to_node is not [num_ranks] long, sample_weights not [num_samples], or "
              "pinned_experts not [num_pinned_layers][num_slots]");
    config.num_samples = 2;
    EXPECT_EQ(eplb::generate(config).num_slots, 64u);

    config.solve.sample_weights = {};
    config.solve.rank_to_node = {0, 0, 0, 0, 1, 1, 1, 1};
    EXPECT_EQ(refused(), "solve_options->rank_to_node has num_ranks values; set config->num_ranks too");
    config.num_ranks = 8;
    EXPECT_EQ(eplb::generate(config).num_ranks, 8u);
}

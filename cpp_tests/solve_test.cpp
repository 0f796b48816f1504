// eplb_solve, eplb_deepseek_rebalance and eplb_suggest_num_slots.
#include <gtest/gtest.h>

#include <cmath>
#include <eplb_tools.hpp>
#include <limits>
#include <random>

#include "files.h"

namespace {

eplb_placement_config on(uint32_t num_experts, uint32_t num_ranks, uint32_t num_slots) {
    eplb_placement_config config = EPLB_PLACEMENT_CONFIG_INIT;
    config.num_experts = num_experts;
    config.num_ranks = num_ranks;
    config.num_slots = num_slots;
    return config;
}

eplb_solve_options by(eplb_policy policy) {
    eplb_solve_options options = EPLB_SOLVE_OPTIONS_INIT;
    options.policy = policy;
    return options;
}

eplb::placement_config cpp_on(uint32_t num_experts, uint32_t num_ranks, uint32_t num_slots) {
    eplb::placement_config config;
    config.num_experts = num_experts;
    config.num_ranks = num_ranks;
    config.num_slots = num_slots;
    return config;
}

eplb::solve_options cpp_by(eplb_policy policy) {
    eplb::solve_options options;
    options.policy = policy;
    return options;
}

const std::vector<int32_t> layer_0 = {0};

std::vector<int32_t> experts(const eplb::placement &placement, int32_t layer) {
    const auto held = placement.layer_experts(layer);
    return {held.begin(), held.end()};
}

std::string refused(const eplb_placement_config &config, const eplb_solve_options &options,
                    const std::vector<double> &loads, eplb_status expected) {
    const int32_t layer = 3;
    eplb_placement *placement = nullptr;
    EXPECT_EQ(eplb_solve(&config, &options, &layer, 1, loads.data(), 1, &placement), expected);
    EXPECT_EQ(placement, nullptr);
    return eplb_last_error_message();
}

/// The example that DeepSeek published, two layers of 12 experts, and its result.
const std::vector<double> published = {90, 132, 40,  61, 104, 165, 39,  4,   73,  56, 183, 86,
                                       20, 107, 104, 64, 19,  197, 187, 157, 172, 86, 16,  27};
const std::vector<int32_t> published_phy2log = {5, 6,  5, 7, 8, 4,  3, 4, 10, 9, 10, 2, 0, 1, 11, 1,
                                                7, 10, 6, 8, 6, 11, 8, 9, 2,  4, 5,  1, 5, 0, 3,  1};

eplb::solve_options deepseek(eplb_policy policy, uint32_t num_groups, uint32_t num_nodes) {
    eplb::solve_options options = cpp_by(policy);
    options.num_groups = num_groups;
    options.num_nodes = num_nodes;
    return options;
}

} // namespace

TEST(Solve, TrtllmPlacesFiveExpertsOnThreeRanks) {
    // See src/solve/trtllm.rs: counts [2,1,1,3,2], ranks [0,3,4],[0,3,4],[1,3,2].
    const auto placement = eplb::solve(cpp_on(5, 3, 9), std::vector<int32_t>{3},
                                       std::vector<double>{10, 5, 2, 15, 8}, 1, cpp_by(EPLB_POLICY_TRTLLM));
    EXPECT_EQ(experts(placement, 3), (std::vector<int32_t>{0, 3, 4, 0, 3, 4, 1, 3, 2}));
}

TEST(Solve, DefaultIsOneSlotForEachExpert) {
    // By load 3 2 1 0 go to ranks 0 1 1 0: 4 to 0, 3 to 1, 2 to 1 (3 < 4), 1 to 0 (4 < 5).
    const auto placement =
        eplb::solve(cpp_on(4, 2, 0), layer_0, std::vector<double>{1, 2, 3, 4}, 1, cpp_by(EPLB_POLICY_TRTLLM));
    EXPECT_EQ(experts(placement, 0), (std::vector<int32_t>{3, 0, 2, 1}));
}

TEST(Solve, DefaultPolicyIsTheSearch) {
    // The greedy leaves 232 on a rank; the best known maximum is 196.67, without duplicates on a rank.
    const std::vector<double> loads = {600, 560, 120, 120, 20, 10, 10, 10};
    const auto config = cpp_on(8, 8, 16);
    eplb::solve_options options;
    for (const eplb_policy policy : std::vector<eplb_policy>{EPLB_POLICY_DEFAULT, EPLB_POLICY_SEARCH}) {
        options.policy = policy;
        const auto placement = eplb::solve(config, layer_0, loads, 1, options);
        const auto evaluation = eplb::evaluate(placement, 0, loads);
        EXPECT_LE(evaluation.max_load, 196.67);
        EXPECT_GE(evaluation.max_load, evaluation.lower_bound);
        EXPECT_EQ(evaluation.num_duplicates, 0u);
    }
    const auto without_options = eplb::solve(config, layer_0, loads);
    EXPECT_EQ(without_options.hash(), eplb::solve(config, layer_0, loads, 1, options).hash());
    // Less effort still gives no more than the greedy.
    options.effort = 1;
    EXPECT_LE(eplb::evaluate(eplb::solve(config, layer_0, loads, 1, options), 0, loads).max_load, 232);
}

TEST(Solve, SearchBalancesEachSample) {
    // Two workloads, each with two hot experts of four on two ranks. Any two experts on a rank balance the
    // sum; only one hot expert of each workload on each rank balances both.
    const std::vector<double> loads = {9, 9, 1, 1, 1, 1, 9, 9};
    const auto placement = eplb::solve(cpp_on(4, 2, 4), layer_0, loads, 2, cpp_by(EPLB_POLICY_SEARCH));
    EXPECT_EQ(eplb::evaluate(placement, 0, loads, 2).imbalance_ratio, 0);
}

TEST(Solve, SampleWeightsSelectTheSamplesToBalance) {
    // Two experts a rank. Each of the three ways to pair them balances two of the samples, none all.
    const std::vector<double> loads = {3, 3, 1, 1, 3, 1, 3, 1, 3, 1, 1, 3};
    const auto config = cpp_on(4, 2, 4);
    auto options = cpp_by(EPLB_POLICY_SEARCH);
    for (size_t sample = 0; sample < 3; sample++) {
        options.sample_weights = {0, 0, 0};
        options.sample_weights[sample] = 2;
        const auto placement = eplb::solve(config, layer_0, loads, 3, options);
        const std::vector<double> one(loads.begin() + sample * 4, loads.begin() + sample * 4 + 4);
        EXPECT_EQ(eplb::evaluate(placement, 0, one).imbalance_ratio, 0);
    }
    for (const std::vector<double> &weights :
         {std::vector<double>{0, 0, 0}, {1, -1, 1}, {1, std::nan(""), 1}, {1, 1}}) {
        options.sample_weights = weights;
        EXPECT_THROW(eplb::solve(config, layer_0, loads, 3, options), eplb::error);
    }
}

TEST(Solve, QuantileReplacesTheMeanOverSamples) {
    // 0 2 | 1 3 balances the first two samples and has 14 of 10 in the third. 0 1 | 2 3 balances the third
    // and has 21 of 20 in the others, which is the better mean.
    const std::vector<double> loads = {11, 10, 9, 10, 11, 10, 9, 10, 9, 1, 5, 5};
    const auto config = cpp_on(4, 2, 4);
    auto options = cpp_by(EPLB_POLICY_SEARCH);
    const std::vector<double> first(loads.begin(), loads.begin() + 4);
    EXPECT_EQ(eplb::evaluate(eplb::solve(config, layer_0, loads, 3, options), 0, first).max_load, 21);
    options.quantile = 0.5;
    EXPECT_EQ(eplb::evaluate(eplb::solve(config, layer_0, loads, 3, options), 0, first).max_load, 20);
    for (const double wrong : {-0.5, 1.5, std::nan("")}) {
        options.quantile = wrong;
        EXPECT_THROW(eplb::solve(config, layer_0, loads, 3, options), eplb::error);
    }
}

TEST(Solve, BestSplitObjectiveBalancesDriftedLoads) {
    // 24 experts on 8 ranks of 4 slots: the 8 spare slots can connect the ranks through hot experts.
    std::vector<double> loads;
    for (int expert = 0; expert < 24; expert++) {
        loads.push_back(100.0 / (1 + expert));
    }
    const auto config = cpp_on(24, 8, 32);
    auto options = cpp_by(EPLB_POLICY_SEARCH);
    options.objective = EPLB_OBJECTIVE_BEST_SPLIT;
    const auto best = eplb::solve(config, layer_0, loads, 1, options);
    options.objective = EPLB_OBJECTIVE_EVEN_SPLIT;
    const auto even = eplb::solve(config, layer_0, loads, 1, options);
    // The load of the most loaded rank under the best split, summed over 32 drifts of the loads.
    std::mt19937 random(1);
    double of_best = 0, of_even = 0;
    for (int drift = 0; drift < 32; drift++) {
        std::vector<double> drifted = loads;
        for (double &load : drifted) {
            load *= random() % 2 == 0 ? 1.25 : 0.8;
        }
        of_best += eplb::evaluate(best, 0, drifted).best_split_max_load;
        of_even += eplb::evaluate(even, 0, drifted).best_split_max_load;
    }
    EXPECT_LT(of_best, of_even);
    EXPECT_LE(eplb::evaluate(best, 0, loads).max_load, eplb::evaluate(even, 0, loads).max_load * 1.0101);

    options.objective = 7;
    try {
        eplb::solve(config, layer_0, loads, 1, options);
        FAIL();
    } catch (const eplb::error &error) {
        EXPECT_STREQ(error.what(), "options->objective is 7; expected EPLB_OBJECTIVE_EVEN_SPLIT (0), "
                                   "EPLB_OBJECTIVE_BEST_SPLIT (1)");
    }
    options.objective = EPLB_OBJECTIVE_BEST_SPLIT;
    options.drift = 3;
    EXPECT_THROW(eplb::solve(config, layer_0, loads, 1, options), eplb::error);
    options.drift = 0;
    options.off_node_price = 1;
    EXPECT_THROW(eplb::solve(config, layer_0, loads, 1, options), eplb::error);
    eplb_solve_options c = options.c();
    c.off_node_price = 0;
    c.reserved = 1;
    EXPECT_EQ(refused(on(24, 8, 32), c, loads, EPLB_STATUS_INVALID_ARGUMENT),
              "options->reserved is 1; it must be 0");
}

TEST(Solve, OffNodePriceKeepsGroupsOnTheirNode) {
    // Two groups of two experts on two nodes, one of one rank and one of two. Of the loads 12 and 6 a rank's
    // fair share is 6.
    const std::vector<double> loads = {6, 6, 3, 3};
    const auto config = cpp_on(4, 3, 6);
    auto options = cpp_by(EPLB_POLICY_SEARCH);
    options.num_groups = 2;
    options.rank_to_node = {7, -3, -3};
    options.off_node_price = std::numeric_limits<double>::infinity();
    const auto hard = eplb::solve(config, layer_0, loads, 1, options);
    // The heavy group is on the node of two ranks.
    EXPECT_EQ(eplb::evaluate(hard, 0, loads, 1, options).max_load, 6);
    EXPECT_EQ(eplb::evaluate(hard, 0, loads, 1, options).off_node_share, 0);
    // Ranks hold 0 1 | 2 3 | 0 1. Half of group 0, which is 6 of 18, is off its home node.
    const auto split = eplb::placement::create(config, layer_0, std::vector<int32_t>{0, 1, 2, 3, 0, 1});
    const auto evaluated = [&](int32_t layer, const std::vector<double> &loads) {
        return eplb::evaluate(split, layer, loads, 1, options).off_node_share;
    };
    EXPECT_DOUBLE_EQ(evaluated(0, loads), 6.0 / 18);
    EXPECT_TRUE(std::isnan(evaluated(0, std::vector<double>(4))));
    EXPECT_TRUE(std::isnan(eplb::evaluate(split, 0, loads).off_node_share)) << "without nodes";
    EXPECT_THROW(evaluated(1, loads), eplb::error);
    options.num_groups = 3;
    EXPECT_THROW(evaluated(0, loads), eplb::error);
    options.num_groups = 2;
    options.rank_to_node = {0, 1};
    EXPECT_THROW(evaluated(0, loads), eplb::error);
    options.rank_to_node = {7, -3, -3};
    options.off_node_price = -1;
    EXPECT_THROW(eplb::solve(config, layer_0, loads, 1, options), eplb::error);
}

TEST(Solve, NumNodesNameTheNodesOfConsecutiveRanks) {
    // Ranks hold 0 1 | 2 3 | 0 1 | 2 3 on two nodes of two ranks: half of each group is off its home node.
    const std::vector<double> loads = {6, 6, 3, 3};
    const auto placement =
        eplb::placement::create(cpp_on(4, 4, 8), layer_0, std::vector<int32_t>{0, 1, 2, 3, 0, 1, 2, 3});
    eplb::solve_options options;
    options.num_groups = 2;
    options.num_nodes = 2;
    const double share = eplb::evaluate(placement, 0, loads, 1, options).off_node_share;
    EXPECT_DOUBLE_EQ(share, 0.5);
    options.num_nodes = 0;
    options.rank_to_node = {0, 0, 1, 1};
    EXPECT_EQ(eplb::evaluate(placement, 0, loads, 1, options).off_node_share, share);
    options.rank_to_node = {};
    options.num_nodes = 3;
    try {
        eplb::evaluate(placement, 0, loads, 1, options);
        FAIL();
    } catch (const eplb::error &error) {
        EXPECT_EQ(error.status(), EPLB_STATUS_INVALID_SHAPE);
        EXPECT_STREQ(error.what(), "4 ranks cannot be split evenly over 3 nodes; set options->rank_to_node");
    }
}

TEST(Solve, AnyNumbersNameTheNodes) {
    // 8 experts in 4 groups on 6 ranks of 2 slots. Each row gives the nodes of its first list other numbers.
    constexpr int32_t least = INT32_MIN, most = INT32_MAX;
    const std::vector<double> loads = {9, 7, 4, 4, 3, 2, 1, 1, 1, 5, 2, 8, 4, 1, 6, 3};
    const auto config = cpp_on(8, 6, 12);
    using names = std::vector<std::vector<int32_t>>;
    const names same_order[] = {
        {{0, 0, 0, 1, 1, 1},
         {-9, -9, -9, -2, -2, -2},
         {-1, -1, -1, 0, 0, 0},
         {least, least, least, most, most, most}},
        {{0, 1, 1, 0, 2, 2}, {-3, -2, -2, -3, -1, -1}, {-1, 7, 7, -1, 40, 40}},
        {{0, 0, 0, 0, 0, 0}, {-4, -4, -4, -4, -4, -4}, {most, most, most, most, most, most}},
    };
    const names other_order[] = {
        {{0, 0, 0, 1, 1, 1}, {5, 5, 5, -5, -5, -5}, {most, most, most, least, least, least}},
        {{0, 1, 1, 0, 2, 2}, {7, -3, -3, 7, -1, -1}},
    };
    const auto greedy = eplb::solve(config, layer_0, loads, 2, cpp_by(EPLB_POLICY_TRTLLM));
    auto options = cpp_by(EPLB_POLICY_SEARCH);
    options.num_groups = 4;
    const auto solved = [&](const std::vector<int32_t> &nodes) {
        options.rank_to_node = nodes;
        return eplb::solve(config, layer_0, loads, 2, options);
    };
    const auto evaluated = [&](const eplb::placement &placement, const std::vector<int32_t> &nodes) {
        options.rank_to_node = nodes;
        return eplb::evaluate(placement, 0, loads, 2, options);
    };
    for (const double price : {0.5, std::numeric_limits<double>::infinity()}) {
        options.off_node_price = price;
        for (const names &numbers : same_order) {
            const auto expected = solved(numbers[0]);
            for (const auto &nodes : numbers) {
                const std::string text = ::testing::PrintToString(nodes);
                EXPECT_EQ(experts(solved(nodes), 0), experts(expected, 0)) << text;
                EXPECT_EQ(evaluated(expected, nodes).off_node_share,
                          evaluated(expected, numbers[0]).off_node_share)
                    << text;
                EXPECT_EQ(evaluated(greedy, nodes).off_node_share,
                          evaluated(greedy, numbers[0]).off_node_share)
                    << text;
            }
        }
        // In another order of the numbers the same slots may be those of another node.
        for (const names &numbers : other_order) {
            const auto expected = evaluated(solved(numbers[0]), numbers[0]);
            for (const auto &nodes : numbers) {
                const std::string text = ::testing::PrintToString(nodes);
                const auto found = evaluated(solved(nodes), nodes);
                EXPECT_NEAR(found.imbalance_ratio, expected.imbalance_ratio, 1e-12) << text;
                EXPECT_NEAR(found.off_node_share, expected.off_node_share, 1e-12) << text;
                EXPECT_NEAR(evaluated(greedy, nodes).off_node_share,
                            evaluated(greedy, numbers[0]).off_node_share, 1e-12)
                    << text;
            }
        }
    }
}

TEST(Solve, LoadsOfADumpGiveTensorRtLlmsConfigurationFile) {
    const auto stats = eplb::stats::load(data("dumps/dsr1-extreme"));
    std::vector<double> loads;
    for (const int32_t layer : stats.layer_ids()) {
        const auto more = stats.layer_loads(layer);
        loads.insert(loads.end(), more.begin(), more.end());
    }
    temporary_directory dir;
    for (const uint32_t num_threads : {1, 2, 8}) {
        auto options = cpp_by(EPLB_POLICY_TRTLLM);
        options.num_threads = num_threads;
        eplb::solve(cpp_on(stats.info().num_experts, 32, 288), stats.layer_ids(), loads, 1, options)
            .save(dir / "config.yaml");
        EXPECT_TRUE(read_file(dir / "config.yaml") ==
                    read_file(data("expected/dsr1-extreme.ep32.slots288.yaml")));
    }
}

TEST(Solve, BadLoadsAreRefusedByLayerAndExpert) {
    for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity(), -1.0}) {
        const std::string message =
            refused(on(3, 1, 3), by(EPLB_POLICY_TRTLLM), {1, bad, 1}, EPLB_STATUS_INVALID_LOADS);
        EXPECT_EQ(message.rfind("layer 3, sample 0, expert 1: load ", 0), 0u) << message;
    }
    EXPECT_EQ(
        refused(on(3, 1, 3), by(EPLB_POLICY_TRTLLM), {1, 1e300, 1}, EPLB_STATUS_INVALID_LOADS),
        "layer 3, sample 0, expert 1: load 1e300 makes a sum too large for float32; scale the loads down");
}

TEST(Solve, WrongShapesAreRefusedWithTheNearestSlotNumbers) {
    const auto trtllm = by(EPLB_POLICY_TRTLLM);
    EXPECT_EQ(
        refused(on(256, 36, 290), trtllm, std::vector<double>(256, 1.0), EPLB_STATUS_INVALID_SHAPE),
        "290 slots cannot be split evenly over 36 ranks; for 256 experts the nearest valid numbers of slots "
        "are 288 and 324");
    EXPECT_EQ(refused(on(256, 8, 100), trtllm, std::vector<double>(256, 1.0), EPLB_STATUS_INVALID_SHAPE),
              "100 slots cannot hold 256 experts; for 8 ranks the nearest valid number of slots is 256");
    EXPECT_EQ(refused(on(2, 0, 4), trtllm, {1, 1}, EPLB_STATUS_INVALID_SHAPE),
              "0 ranks: there must be 1 to 1048576");
    refused(on(2, UINT32_MAX, UINT32_MAX), trtllm, {1, 1}, EPLB_STATUS_INVALID_SHAPE);
}

TEST(Solve, ArraysOfTooManyRanksAreNotRead) {
    const int32_t values[] = {2, 2};
    const std::string number = " has num_ranks values, and num_ranks is 4294967295; at most 1048576 expected";
    const auto config = on(2, UINT32_MAX, 4);
    auto slots = config;
    auto nodes = by(EPLB_POLICY_TRTLLM);
    nodes.rank_to_node = slots.rank_num_slots = values;
    EXPECT_EQ(refused(config, nodes, {1, 1}, EPLB_STATUS_INVALID_ARGUMENT), "options->rank_to_node" + number);
    EXPECT_EQ(refused(slots, by(EPLB_POLICY_TRTLLM), {1, 1}, EPLB_STATUS_INVALID_ARGUMENT),
              "config->rank_num_slots" + number);
    const double loads[] = {1, 1};
    int32_t written[3] = {};
    EXPECT_EQ(eplb_deepseek_rebalance(&slots, nullptr, loads, 1, 3, written, written + 1, written + 2),
              EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(eplb_last_error_message(), "config->rank_num_slots" + number);
    EXPECT_EQ(eplb_deepseek_rebalance(&config, &nodes, loads, 1, 3, written, written + 1, written + 2),
              EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(eplb_last_error_message(), "options->rank_to_node" + number);
}

TEST(Solve, NullUnknownAndHugeArgumentsAreRefused) {
    const auto config = on(4, 2, 4);
    const auto options = by(EPLB_POLICY_TRTLLM);
    const double loads[4] = {1, 2, 3, 4};
    const int32_t layer = 0, negative = -1;
    eplb_placement *placement = nullptr;
    const auto huge = on(UINT32_MAX, 2, 4);
    const auto unknown = by(77);
    for (const eplb_status status : {
             eplb_solve(nullptr, &options, &layer, 1, loads, 1, &placement),
             eplb_solve(&config, &options, nullptr, 1, loads, 1, &placement),
             eplb_solve(&config, &options, &layer, 1, nullptr, 1, &placement),
             eplb_solve(&config, &options, &layer, 1, loads, 1, nullptr),
             eplb_solve(&config, &options, &layer, 0, loads, 1, &placement),
             eplb_solve(&config, &options, &layer, 1, loads, 0, &placement),
             eplb_solve(&config, &options, &layer, SIZE_MAX, loads, 1, &placement),
             eplb_solve(&config, &options, &layer, 1, loads, SIZE_MAX, &placement),
             eplb_solve(&huge, &options, &layer, 1, loads, SIZE_MAX / UINT32_MAX, &placement),
             eplb_solve(&config, &options, &negative, 1, loads, 1, &placement),
             eplb_solve(&config, &unknown, &layer, 1, loads, 1, &placement),
         }) {
        EXPECT_EQ(status, EPLB_STATUS_INVALID_ARGUMENT);
    }
    EXPECT_STREQ(eplb_last_error_message(),
                 "options->policy is 77; expected EPLB_POLICY_DEFAULT (0), EPLB_POLICY_TRTLLM (1), "
                 "EPLB_POLICY_DEEPSEEK_GLOBAL (2), EPLB_POLICY_DEEPSEEK_HIERARCHICAL (3), "
                 "EPLB_POLICY_SEARCH (4)");
    const auto no_experts = on(0, 2, 4);
    EXPECT_EQ(eplb_solve(&no_experts, &options, &layer, 1, loads, 1, &placement), EPLB_STATUS_INVALID_SHAPE);
    EXPECT_EQ(placement, nullptr);
    const int32_t twice[] = {5, 5};
    const double loads_of_two[8] = {};
    EXPECT_EQ(eplb_solve(&config, &options, twice, 2, loads_of_two, 1, &placement),
              EPLB_STATUS_INVALID_PLACEMENT);
    EXPECT_STREQ(eplb_last_error_message(), "layer 5 is given twice");
}

TEST(Solve, DeepseekReproducesThePublishedExample) {
    const auto config = cpp_on(12, 8, 16);
    const std::vector<int32_t> layers = {3, 4};
    const auto placement =
        eplb::solve(config, layers, published, 1, deepseek(EPLB_POLICY_DEEPSEEK_HIERARCHICAL, 4, 2));
    auto both = experts(placement, 3);
    const auto second = experts(placement, 4);
    both.insert(both.end(), second.begin(), second.end());
    EXPECT_EQ(both, published_phy2log);
    // One group on one node is the global policy.
    const auto global =
        eplb::solve(config, layers, published, 1, deepseek(EPLB_POLICY_DEEPSEEK_GLOBAL, 4, 2));
    const auto defaults =
        eplb::solve(config, layers, published, 1, deepseek(EPLB_POLICY_DEEPSEEK_HIERARCHICAL, 0, 0));
    EXPECT_EQ(global.hash(), defaults.hash());
    EXPECT_NE(global.hash(), placement.hash());
}

TEST(Solve, HierarchicalRefusesUnevenGroupsAndNodes) {
    const auto config = on(12, 8, 16);
    auto options = by(EPLB_POLICY_DEEPSEEK_HIERARCHICAL);
    const auto message = [&](uint32_t num_groups, uint32_t num_nodes) {
        options.num_groups = num_groups;
        options.num_nodes = num_nodes;
        return refused(config, options, std::vector<double>(12, 1.0), EPLB_STATUS_INVALID_SHAPE);
    };
    const std::string why = "; policy deepseek-hierarchical needs an even split, deepseek-global does not";
    EXPECT_EQ(message(5, 1), "12 experts cannot be split evenly over 5 groups" + why);
    EXPECT_EQ(message(4, 3), "4 groups cannot be split evenly over 3 nodes" + why);
    EXPECT_EQ(message(6, 3), "8 ranks cannot be split evenly over 3 nodes" + why);
    message(UINT32_MAX, UINT32_MAX);
    options.policy = EPLB_POLICY_DEEPSEEK_GLOBAL;
    eplb_placement *placement = nullptr;
    const int32_t layer = 3;
    EXPECT_EQ(eplb_solve(&config, &options, &layer, 1, published.data(), 1, &placement), EPLB_STATUS_OK)
        << "the global policy has no groups and nodes";
    eplb_placement_destroy(placement);
}

TEST(Solve, RebalanceReturnsTheArraysOfDeepseeksProgram) {
    const auto config = cpp_on(12, 8, 16);
    const auto arrays = eplb::deepseek_rebalance(config, published, 2, deepseek(EPLB_POLICY_DEFAULT, 4, 2));
    EXPECT_EQ(arrays.phy2log, published_phy2log) << "4 groups on 2 nodes: hierarchical by default";
    // Layer 0: two slots each of experts 1, 4, 5 and 10; layer 1: of 1, 5, 6 and 8.
    EXPECT_EQ(arrays.logcnt,
              (std::vector<int32_t>{1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1, 1, 2, 1, 1, 1, 2, 2, 1, 2, 1, 1, 1}));
    ASSERT_EQ(arrays.log2phy.size(), 2u * 12 * 2);
    for (int32_t layer = 0, row = 0; layer < 2; layer++) {
        for (int32_t expert = 0; expert < 12; expert++, row++) {
            const int32_t *slots = &arrays.log2phy[row * 2];
            EXPECT_EQ(arrays.phy2log[layer * 16 + slots[0]], expert);
            if (arrays.logcnt[row] == 2) {
                EXPECT_EQ(arrays.phy2log[layer * 16 + slots[1]], expert);
                EXPECT_NE(slots[0], slots[1]);
            } else {
                EXPECT_EQ(slots[1], -1);
            }
        }
    }

    // Groups do not split over the nodes: eplb.py places without them, and so does the default.
    const auto global =
        eplb::deepseek_rebalance(config, published, 5, deepseek(EPLB_POLICY_DEEPSEEK_GLOBAL, 4, 3));
    const auto chosen = eplb::deepseek_rebalance(config, published, 5, deepseek(EPLB_POLICY_DEFAULT, 4, 3));
    EXPECT_EQ(chosen.phy2log, global.phy2log);
    EXPECT_EQ(chosen.log2phy, global.log2phy);
    EXPECT_THROW(
        eplb::deepseek_rebalance(config, published, 5, deepseek(EPLB_POLICY_DEEPSEEK_HIERARCHICAL, 4, 3)),
        eplb::error);
    EXPECT_THROW(eplb::deepseek_rebalance(config, std::vector<double>(13), 5), eplb::error);
    EXPECT_THROW(eplb::deepseek_rebalance(cpp_on(0, 8, 16), published, 5), eplb::error);
}

TEST(Solve, ReplicasAreListedInTheOrderOfTheirCreation) {
    // See src/solve/deepseek.rs: two nodes of two ranks of three slots, 4 groups of two experts.
    const auto arrays =
        eplb::deepseek_rebalance(cpp_on(8, 4, 12), std::vector<double>{4, 1, 3, 6, 8, 2, 1, 5}, 3,
                                 deepseek(EPLB_POLICY_DEEPSEEK_HIERARCHICAL, 4, 2));
    EXPECT_EQ(arrays.phy2log, (std::vector<int32_t>{0, 4, 1, 4, 4, 5, 2, 3, 6, 3, 7, 7}));
    EXPECT_EQ(arrays.log2phy, (std::vector<int32_t>{0, -1, -1, 2, -1, -1, 6, -1, -1, 9,  7,  -1,
                                                    3, 4,  1,  5, -1, -1, 8, -1, -1, 10, 11, -1}));
    EXPECT_EQ(arrays.logcnt, (std::vector<int32_t>{1, 1, 1, 2, 3, 1, 1, 2}));
}

TEST(Solve, RebalanceWritesAllArraysOrNone) {
    auto config = on(12, 8, 16);
    auto options = by(EPLB_POLICY_DEEPSEEK_GLOBAL);
    std::vector<int32_t> phy2log(32, 7), log2phy(2 * 12 * 2, 7), logcnt(24, 7);
    const auto call = [&](const double *loads, size_t max_replicas, int32_t *to_phy2log, int32_t *to_log2phy,
                          int32_t *to_logcnt) {
        return eplb_deepseek_rebalance(&config, &options, loads, 2, max_replicas, to_phy2log, to_log2phy,
                                       to_logcnt);
    };
    int32_t *const a = phy2log.data(), *const b = log2phy.data(), *const c = logcnt.data();
    const double *const loads = published.data();
    EXPECT_EQ(call(loads, 1, a, b, c), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_STREQ(eplb_last_error_message(),
                 "max_replicas is 1, but expert 1 of layer 0 has 2 replicas; set it to 2");
    EXPECT_EQ(call(loads, 0, a, b, c), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(call(nullptr, 2, a, b, c), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(call(loads, 2, nullptr, b, c), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(call(loads, 2, a, nullptr, c), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(call(loads, 2, a, b, nullptr), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_STREQ(eplb_last_error_message(), "logcnt is NULL");
    EXPECT_EQ(call(loads, SIZE_MAX, a, b, c), EPLB_STATUS_OUT_OF_MEMORY);
    config.num_experts = 0;
    EXPECT_EQ(call(loads, 2, a, b, c), EPLB_STATUS_INVALID_SHAPE);
    config.num_experts = 12;
    const std::vector<double> bad(24, -1.0);
    EXPECT_EQ(call(bad.data(), 2, a, b, c), EPLB_STATUS_INVALID_LOADS);
    options.policy = EPLB_POLICY_TRTLLM;
    EXPECT_EQ(call(loads, 2, a, b, c), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_STREQ(eplb_last_error_message(),
                 "policy trtllm is not a DeepSeek policy; use deepseek-global or deepseek-hierarchical");
    for (const auto &array : {phy2log, log2phy, logcnt}) {
        EXPECT_EQ(array, std::vector<int32_t>(array.size(), 7));
    }
    options.policy = EPLB_POLICY_DEFAULT;
    EXPECT_EQ(call(loads, 2, a, b, c), EPLB_STATUS_OK);
}

TEST(Solve, SuggestsTheNearestValidNumbersOfSlots) {
    using pair = std::pair<uint32_t, uint32_t>;
    EXPECT_EQ(eplb::suggest_num_slots(256, 36, 290), pair(288, 324));
    EXPECT_EQ(eplb::suggest_num_slots(256, 3, 256), pair(0, 258));
    EXPECT_EQ(eplb::suggest_num_slots(256, 8, 320), pair(320, 320));
    EXPECT_EQ(eplb::suggest_num_slots(256, 8, UINT32_MAX), pair(1 << 20, 0));
    uint32_t below = 0, above = 0;
    EXPECT_EQ(eplb_suggest_num_slots(0, 8, 8, &below, &above), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(eplb_suggest_num_slots(8, 8, 8, nullptr, &above), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(eplb_suggest_num_slots(8, 8, 8, &below, nullptr), EPLB_STATUS_INVALID_ARGUMENT);
}

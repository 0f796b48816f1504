// eplb_solve, eplb_deepseek_rebalance and eplb_suggest_num_slots.
#include <gtest/gtest.h>

#include <cmath>
#include <eplb.hpp>
#include <limits>
#include <random>

#include "files.h"

namespace {

eplb_solve_config on(uint32_t num_ranks, uint32_t num_slots) {
    eplb_solve_config config = EPLB_SOLVE_CONFIG_INIT;
    config.policy = EPLB_POLICY_TRTLLM;
    config.num_ranks = num_ranks;
    config.num_slots = num_slots;
    return config;
}

eplb::solve_config cpp_on(uint32_t num_ranks, uint32_t num_slots) {
    eplb::solve_config config;
    config.policy = EPLB_POLICY_TRTLLM;
    config.num_ranks = num_ranks;
    config.num_slots = num_slots;
    return config;
}

std::vector<int32_t> experts(const eplb::placement &placement, int32_t layer) {
    const auto held = placement.layer_experts(layer);
    return {held.begin(), held.end()};
}

std::string refused(const eplb_solve_config &config, const std::vector<double> &loads, eplb_status expected) {
    const int32_t layer = 3;
    eplb_placement *placement = nullptr;
    EXPECT_EQ(eplb_solve(&config, loads.data(), &layer, 1, 1, loads.size(), &placement), expected);
    EXPECT_EQ(placement, nullptr);
    return eplb_last_error_message();
}

/// The example that DeepSeek published, two layers of 12 experts, and its result.
const std::vector<double> published = {90, 132, 40,  61, 104, 165, 39,  4,   73,  56, 183, 86,
                                       20, 107, 104, 64, 19,  197, 187, 157, 172, 86, 16,  27};
const std::vector<int32_t> published_phy2log = {5, 6,  5, 7, 8, 4,  3, 4, 10, 9, 10, 2, 0, 1, 11, 1,
                                                7, 10, 6, 8, 6, 11, 8, 9, 2,  4, 5,  1, 5, 0, 3,  1};

eplb::solve_config deepseek(eplb_policy policy, uint32_t num_groups, uint32_t num_nodes) {
    eplb::solve_config config;
    config.policy = policy;
    config.num_ranks = 8;
    config.num_slots = 16;
    config.num_groups = num_groups;
    config.num_nodes = num_nodes;
    return config;
}

} // namespace

TEST(Solve, FiveExpertsOnThreeRanksAsWorkedByHand) {
    // See src/solve/trtllm.rs: counts [2,1,1,3,2], ranks [0,3,4],[0,3,4],[1,3,2].
    const auto placement =
        eplb::solve(cpp_on(3, 9), std::vector<double>{10, 5, 2, 15, 8}, std::vector<int32_t>{3}, 1, 5);
    EXPECT_EQ(experts(placement, 3), (std::vector<int32_t>{0, 3, 4, 0, 3, 4, 1, 3, 2}));
}

TEST(Solve, NoSlotsGivenMeansOneAnExpert) {
    // By load 3 2 1 0 go to ranks 0 1 1 0: 4 to 0, 3 to 1, 2 to 1 (3 < 4), 1 to 0 (4 < 5).
    const auto placement =
        eplb::solve(cpp_on(2, 0), std::vector<double>{1, 2, 3, 4}, std::vector<int32_t>{0}, 1, 4);
    EXPECT_EQ(experts(placement, 0), (std::vector<int32_t>{3, 0, 2, 1}));
}

TEST(Solve, TheDefaultPolicyIsTheSearch) {
    // needs.md: the greedy leaves 232 on a rank, and 196.67 is the best that is known. No expert twice on a
    // rank.
    const std::vector<double> loads = {600, 560, 120, 120, 20, 10, 10, 10};
    auto config = cpp_on(8, 16);
    for (const eplb_policy policy : {EPLB_POLICY_DEFAULT, EPLB_POLICY_SEARCH}) {
        config.policy = policy;
        const auto placement = eplb::solve(config, loads, std::vector<int32_t>{0}, 1, 8);
        const auto evaluation = placement.evaluate(0, loads);
        EXPECT_LE(evaluation.max_load, 196.67);
        EXPECT_GE(evaluation.max_load, evaluation.lower_bound);
        EXPECT_EQ(evaluation.num_duplicates, 0u);
    }
    // Less effort is not more.
    config.effort = 1;
    EXPECT_LE(eplb::solve(config, loads, std::vector<int32_t>{0}, 1, 8).evaluate(0, loads).max_load, 232);
}

TEST(Solve, TheSearchLevelsEachSampleWhereItCan) {
    // Two workloads: each has two hot experts of four on two ranks. Their sum is the same for all experts, of
    // which any two on a rank level it; only one of each two of a workload levels both.
    const std::vector<double> loads = {9, 9, 1, 1, 1, 1, 9, 9};
    auto config = cpp_on(2, 4);
    config.policy = EPLB_POLICY_SEARCH;
    const auto placement = eplb::solve(config, loads, std::vector<int32_t>{0}, 2, 4);
    EXPECT_EQ(placement.evaluate(0, loads, 2).imbalance_ratio, 0);
}

TEST(Solve, ASampleCountsForItsWeight) {
    // Two experts a rank: of the three ways to pair them, each levels two of the samples, and none all.
    const std::vector<double> loads = {3, 3, 1, 1, 3, 1, 3, 1, 3, 1, 1, 3};
    auto config = cpp_on(2, 4);
    config.policy = EPLB_POLICY_SEARCH;
    for (size_t sample = 0; sample < 3; sample++) {
        config.sample_weights = {0, 0, 0};
        config.sample_weights[sample] = 2;
        const auto placement = eplb::solve(config, loads, std::vector<int32_t>{0}, 3, 4);
        const std::vector<double> one(loads.begin() + sample * 4, loads.begin() + sample * 4 + 4);
        EXPECT_EQ(placement.evaluate(0, one).imbalance_ratio, 0);
    }
    for (const std::vector<double> &weights :
         {std::vector<double>{0, 0, 0}, {1, -1, 1}, {1, std::nan(""), 1}, {1, 1}}) {
        config.sample_weights = weights;
        EXPECT_THROW(eplb::solve(config, loads, std::vector<int32_t>{0}, 3, 4), eplb::error);
    }
}

TEST(Solve, AQuantileOfTheSamplesMayStandForTheirMean) {
    // 0 2 | 1 3 levels the first two samples and leaves the third at 14 of 10; 0 1 | 2 3 levels the third and
    // leaves the others at 21 of 20, which is the better mean.
    const std::vector<double> loads = {11, 10, 9, 10, 11, 10, 9, 10, 9, 1, 5, 5};
    auto config = cpp_on(2, 4);
    config.policy = EPLB_POLICY_SEARCH;
    const std::vector<double> first(loads.begin(), loads.begin() + 4);
    EXPECT_EQ(eplb::solve(config, loads, std::vector<int32_t>{0}, 3, 4).evaluate(0, first).max_load, 21);
    config.quantile = 0.5;
    EXPECT_EQ(eplb::solve(config, loads, std::vector<int32_t>{0}, 3, 4).evaluate(0, first).max_load, 20);
    for (const double wrong : {-0.5, 1.5, std::nan("")}) {
        config.quantile = wrong;
        EXPECT_THROW(eplb::solve(config, loads, std::vector<int32_t>{0}, 3, 4), eplb::error);
    }
}

TEST(Solve, TheBestSplitMayBeWhatIsPlannedFor) {
    // 24 experts on 8 ranks of 4 slots: with 8 to spare, the hot ones can link the ranks.
    std::vector<double> loads;
    for (int expert = 0; expert < 24; expert++) {
        loads.push_back(100.0 / (1 + expert));
    }
    auto config = cpp_on(8, 32);
    config.policy = EPLB_POLICY_SEARCH;
    config.objective = EPLB_OBJECTIVE_BEST_SPLIT;
    const std::vector<int32_t> layer = {0};
    const auto linked = eplb::solve(config, loads, layer, 1, 24);
    config.objective = EPLB_OBJECTIVE_EVEN_SPLIT;
    const auto even = eplb::solve(config, loads, layer, 1, 24);
    // The loads have drifted, up or down, in many ways: what the most loaded rank carries then, all added up.
    std::mt19937 random(1);
    double of_linked = 0, of_even = 0;
    for (int way = 0; way < 32; way++) {
        std::vector<double> drifted = loads;
        for (double &load : drifted) {
            load *= random() % 2 == 0 ? 1.25 : 0.8;
        }
        of_linked += linked.evaluate(0, drifted).best_split_max_load;
        of_even += even.evaluate(0, drifted).best_split_max_load;
    }
    EXPECT_LT(of_linked, of_even);
    EXPECT_LE(linked.evaluate(0, loads).max_load, even.evaluate(0, loads).max_load * 1.0101);

    config.objective = static_cast<eplb_objective>(7);
    try {
        eplb::solve(config, loads, layer, 1, 24);
        FAIL();
    } catch (const eplb::error &error) {
        EXPECT_STREQ(error.what(),
                     "objective is 7; EPLB_OBJECTIVE_EVEN_SPLIT is 0 and EPLB_OBJECTIVE_BEST_SPLIT 1");
    }
    config.objective = EPLB_OBJECTIVE_BEST_SPLIT;
    config.drift = 3;
    EXPECT_THROW(eplb::solve(config, loads, layer, 1, 24), eplb::error);
    config.drift = 0;
    config.off_node_price = 1;
    EXPECT_THROW(eplb::solve(config, loads, layer, 1, 24), eplb::error);
    eplb_solve_config c = config.c();
    c.off_node_price = 0;
    c.reserved = 1;
    eplb_placement *placement = nullptr;
    EXPECT_EQ(eplb_solve(&c, loads.data(), layer.data(), 1, 1, 24, &placement), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_STREQ(eplb_last_error_message(), "reserved is 1; it must be 0");
}

TEST(Solve, LoadOffItsNodeHasAPrice) {
    // Two groups of two on two nodes, of one rank and of two: 12 and 6 where a rank should carry 6.
    const std::vector<double> loads = {6, 6, 3, 3};
    auto config = cpp_on(3, 6);
    config.policy = EPLB_POLICY_SEARCH;
    config.num_groups = 2;
    config.rank_to_node = {7, -3, -3};
    config.off_node_price = std::numeric_limits<double>::infinity();
    const std::vector<int32_t> layer = {0};
    const auto hard = eplb::solve(config, loads, layer, 1, 4);
    // At best the heavy group has the two ranks.
    EXPECT_EQ(hard.evaluate(0, loads).max_load, 6);
    EXPECT_EQ(hard.off_node_share(0, loads, 2, config.rank_to_node), 0);
    // Ranks hold 0 1 | 2 3 | 0 1: half of group 0, 6 of 18, is away from its home, of equal ones the lower.
    eplb::placement_config sizes;
    sizes.num_experts = 4;
    sizes.num_ranks = 3;
    sizes.num_slots = 6;
    const auto split = eplb::placement::create(sizes, layer, std::vector<int32_t>{0, 1, 2, 3, 0, 1});
    EXPECT_DOUBLE_EQ(split.off_node_share(0, loads, 2, config.rank_to_node), 6.0 / 18);
    EXPECT_TRUE(std::isnan(split.off_node_share(0, std::vector<double>(4), 2, config.rank_to_node)));
    EXPECT_THROW(split.off_node_share(0, loads, 3, config.rank_to_node), eplb::error);
    EXPECT_THROW(split.off_node_share(1, loads, 2, config.rank_to_node), eplb::error);
    EXPECT_THROW(split.off_node_share(0, loads, 2, std::vector<int32_t>{0, 1}), eplb::error);
    config.off_node_price = -1;
    EXPECT_THROW(eplb::solve(config, loads, layer, 1, 4), eplb::error);
}

TEST(Solve, LoadsOfADumpGiveTheConfigurationFileOfAnotherProgram) {
    const auto stats = eplb::stats::load(data("dumps/dsr1-extreme"));
    std::vector<double> loads;
    for (const int32_t layer : stats.layer_ids()) {
        const auto more = stats.layer_loads(layer);
        loads.insert(loads.end(), more.begin(), more.end());
    }
    temporary_directory dir;
    for (const uint32_t num_threads : {1, 2, 8}) {
        auto config = cpp_on(32, 288);
        config.num_threads = num_threads;
        eplb::solve(config, loads, stats.layer_ids(), 1, stats.info().num_experts).save(dir / "config.yaml");
        EXPECT_TRUE(read_file(dir / "config.yaml") ==
                    read_file(data("expected/dsr1-extreme.ep32.slots288.yaml")));
    }
}

TEST(Solve, BadLoadsAreNamedByLayerAndExpert) {
    for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity(), -1.0}) {
        const std::string message = refused(on(1, 3), {1, bad, 1}, EPLB_STATUS_INVALID_LOADS);
        EXPECT_EQ(message.rfind("layer 3, sample 0, expert 1: load ", 0), 0u) << message;
    }
    EXPECT_EQ(
        refused(on(1, 3), {1, 1e300, 1}, EPLB_STATUS_INVALID_LOADS),
        "layer 3, sample 0, expert 1: load 1e300 makes a sum too large for float32; scale the loads down");
}

TEST(Solve, ShapesAreCheckedFirstWithTheNearestSlotCounts) {
    EXPECT_EQ(
        refused(on(36, 290), std::vector<double>(256, 1.0), EPLB_STATUS_INVALID_SHAPE),
        "290 slots cannot be split evenly over 36 ranks; for 256 experts the nearest valid numbers of slots "
        "are 288 and 324");
    EXPECT_EQ(refused(on(8, 100), std::vector<double>(256, 1.0), EPLB_STATUS_INVALID_SHAPE),
              "100 slots cannot hold 256 experts; for 8 ranks the nearest valid number of slots is 256");
    EXPECT_EQ(refused(on(0, 4), {1, 1}, EPLB_STATUS_INVALID_SHAPE), "0 ranks: there must be 1 to 1048576");
    refused(on(UINT32_MAX, UINT32_MAX), {1, 1}, EPLB_STATUS_INVALID_SHAPE);
}

TEST(Solve, ArraysOfMoreRanksThanAnyPlacementHasAreNotRead) {
    const int32_t values[] = {2, 2};
    const std::string number = " has num_ranks values, and num_ranks is 4294967295; at most 1048576 expected";
    auto nodes = on(UINT32_MAX, 4), slots = nodes;
    nodes.rank_to_node = slots.slots_per_rank = values;
    EXPECT_EQ(refused(nodes, {1, 1}, EPLB_STATUS_INVALID_ARGUMENT), "config->rank_to_node" + number);
    EXPECT_EQ(refused(slots, {1, 1}, EPLB_STATUS_INVALID_ARGUMENT), "config->slots_per_rank" + number);
    const double loads[] = {1, 1};
    int32_t written[3] = {};
    EXPECT_EQ(eplb_deepseek_rebalance(&slots, loads, 1, 2, 3, written, written + 1, written + 2),
              EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(eplb_last_error_message(), "config->slots_per_rank" + number);
}

TEST(Solve, NullWildAndHugeArgumentsAreErrors) {
    const auto config = on(2, 4);
    const double loads[4] = {1, 2, 3, 4};
    const int32_t layer = 0, negative = -1;
    eplb_placement *placement = nullptr;
    auto wild = config;
    wild.policy = 77;
    for (const eplb_status status : {
             eplb_solve(nullptr, loads, &layer, 1, 1, 4, &placement),
             eplb_solve(&config, nullptr, &layer, 1, 1, 4, &placement),
             eplb_solve(&config, loads, nullptr, 1, 1, 4, &placement),
             eplb_solve(&config, loads, &layer, 1, 1, 4, nullptr),
             eplb_solve(&config, loads, &layer, 0, 1, 4, &placement),
             eplb_solve(&config, loads, &layer, 1, 0, 4, &placement),
             eplb_solve(&config, loads, &layer, SIZE_MAX, 1, 4, &placement),
             eplb_solve(&config, loads, &layer, 1, SIZE_MAX, 4, &placement),
             eplb_solve(&config, loads, &layer, 1, 1, SIZE_MAX, &placement),
             eplb_solve(&config, loads, &negative, 1, 1, 4, &placement),
             eplb_solve(&wild, loads, &layer, 1, 1, 4, &placement),
         }) {
        EXPECT_EQ(status, EPLB_STATUS_INVALID_ARGUMENT);
    }
    EXPECT_STREQ(
        eplb_last_error_message(),
        "policy is 77; EPLB_POLICY_DEFAULT is 0, EPLB_POLICY_TRTLLM 1, EPLB_POLICY_DEEPSEEK_GLOBAL 2, "
        "EPLB_POLICY_DEEPSEEK_HIERARCHICAL 3 and EPLB_POLICY_SEARCH 4");
    EXPECT_EQ(eplb_solve(&config, loads, &layer, 1, 1, 0, &placement), EPLB_STATUS_INVALID_SHAPE);
    EXPECT_EQ(placement, nullptr);
    const int32_t twice[] = {5, 5};
    const double loads_of_two[8] = {};
    EXPECT_EQ(eplb_solve(&config, loads_of_two, twice, 2, 1, 4, &placement), EPLB_STATUS_INVALID_PLACEMENT);
    EXPECT_STREQ(eplb_last_error_message(), "layer 5 is given twice");
}

TEST(Solve, DeepseeksPublishedExampleComesOut) {
    const auto config = deepseek(EPLB_POLICY_DEEPSEEK_HIERARCHICAL, 4, 2);
    const auto placement = eplb::solve(config, published, std::vector<int32_t>{3, 4}, 1, 12);
    auto both = experts(placement, 3);
    const auto second = experts(placement, 4);
    both.insert(both.end(), second.begin(), second.end());
    EXPECT_EQ(both, published_phy2log);
    // One group on one node is the global rule.
    const auto global = eplb::solve(deepseek(EPLB_POLICY_DEEPSEEK_GLOBAL, 4, 2), published,
                                    std::vector<int32_t>{3, 4}, 1, 12);
    const auto defaults = eplb::solve(deepseek(EPLB_POLICY_DEEPSEEK_HIERARCHICAL, 0, 0), published,
                                      std::vector<int32_t>{3, 4}, 1, 12);
    EXPECT_EQ(global.hash(), defaults.hash());
    EXPECT_NE(global.hash(), placement.hash());
}

TEST(Solve, WhatDoesNotSplitEvenlyIsNamed) {
    auto config = on(8, 16);
    config.policy = EPLB_POLICY_DEEPSEEK_HIERARCHICAL;
    const auto message = [&](uint32_t num_groups, uint32_t num_nodes) {
        config.num_groups = num_groups;
        config.num_nodes = num_nodes;
        return refused(config, std::vector<double>(12, 1.0), EPLB_STATUS_INVALID_SHAPE);
    };
    const std::string why = "; policy deepseek-hierarchical needs that, deepseek-global does not";
    EXPECT_EQ(message(5, 1), "12 experts cannot be split evenly over 5 groups" + why);
    EXPECT_EQ(message(4, 3), "4 groups cannot be split evenly over 3 nodes" + why);
    EXPECT_EQ(message(6, 3), "8 ranks cannot be split evenly over 3 nodes" + why);
    message(UINT32_MAX, UINT32_MAX);
    config.policy = EPLB_POLICY_DEEPSEEK_GLOBAL;
    eplb_placement *placement = nullptr;
    const int32_t layer = 3;
    EXPECT_EQ(eplb_solve(&config, published.data(), &layer, 1, 1, 12, &placement), EPLB_STATUS_OK)
        << "the global rule has no groups and nodes";
    eplb_placement_destroy(placement);
}

TEST(Solve, DeepseeksArraysAreThoseOfItsProgram) {
    const auto arrays = eplb::deepseek_rebalance(deepseek(EPLB_POLICY_DEFAULT, 4, 2), published, 12, 2);
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

    // Groups that cannot be split over the nodes: eplb.py places without them, and so does the default.
    const auto global =
        eplb::deepseek_rebalance(deepseek(EPLB_POLICY_DEEPSEEK_GLOBAL, 4, 3), published, 12, 5);
    const auto chosen = eplb::deepseek_rebalance(deepseek(EPLB_POLICY_DEFAULT, 4, 3), published, 12, 5);
    EXPECT_EQ(chosen.phy2log, global.phy2log);
    EXPECT_EQ(chosen.log2phy, global.log2phy);
    EXPECT_THROW(
        eplb::deepseek_rebalance(deepseek(EPLB_POLICY_DEEPSEEK_HIERARCHICAL, 4, 3), published, 12, 5),
        eplb::error);
    EXPECT_THROW(eplb::deepseek_rebalance({}, std::vector<double>(13), 12, 5), eplb::error);
    EXPECT_THROW(eplb::deepseek_rebalance({}, published, 0, 5), eplb::error);
}

TEST(Solve, ReplicasAreListedInTheOrderOfTheirCreation) {
    // See src/solve/deepseek.rs: two nodes of two ranks of three slots, 4 groups of two experts.
    eplb::solve_config config = deepseek(EPLB_POLICY_DEEPSEEK_HIERARCHICAL, 4, 2);
    config.num_ranks = 4;
    config.num_slots = 12;
    const auto arrays = eplb::deepseek_rebalance(config, std::vector<double>{4, 1, 3, 6, 8, 2, 1, 5}, 8, 3);
    EXPECT_EQ(arrays.phy2log, (std::vector<int32_t>{0, 4, 1, 4, 4, 5, 2, 3, 6, 3, 7, 7}));
    EXPECT_EQ(arrays.log2phy, (std::vector<int32_t>{0, -1, -1, 2, -1, -1, 6, -1, -1, 9,  7,  -1,
                                                    3, 4,  1,  5, -1, -1, 8, -1, -1, 10, 11, -1}));
    EXPECT_EQ(arrays.logcnt, (std::vector<int32_t>{1, 1, 1, 2, 3, 1, 1, 2}));
}

TEST(Solve, ArraysAreWrittenWholeOrNotAtAll) {
    eplb_solve_config config = on(8, 16);
    config.policy = EPLB_POLICY_DEEPSEEK_GLOBAL;
    std::vector<int32_t> phy2log(32, 7), log2phy(2 * 12 * 2, 7), logcnt(24, 7);
    const auto call = [&](const double *loads, size_t num_experts, size_t max_replicas, int32_t *to_phy2log,
                          int32_t *to_log2phy, int32_t *to_logcnt) {
        return eplb_deepseek_rebalance(&config, loads, 2, num_experts, max_replicas, to_phy2log, to_log2phy,
                                       to_logcnt);
    };
    int32_t *const a = phy2log.data(), *const b = log2phy.data(), *const c = logcnt.data();
    const double *const loads = published.data();
    EXPECT_EQ(call(loads, 12, 1, a, b, c), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_STREQ(eplb_last_error_message(),
                 "max_replicas is 1, but expert 1 of layer 0 has 2 replicas; 2 is enough");
    EXPECT_EQ(call(loads, 12, 0, a, b, c), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(call(nullptr, 12, 2, a, b, c), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(call(loads, 12, 2, nullptr, b, c), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(call(loads, 12, 2, a, nullptr, c), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(call(loads, 12, 2, a, b, nullptr), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_STREQ(eplb_last_error_message(), "logcnt is NULL");
    EXPECT_EQ(call(loads, 12, SIZE_MAX, a, b, c), EPLB_STATUS_OUT_OF_MEMORY);
    EXPECT_EQ(call(loads, 0, 2, a, b, c), EPLB_STATUS_INVALID_SHAPE);
    const std::vector<double> bad(24, -1.0);
    EXPECT_EQ(call(bad.data(), 12, 2, a, b, c), EPLB_STATUS_INVALID_LOADS);
    config.policy = EPLB_POLICY_TRTLLM;
    EXPECT_EQ(call(loads, 12, 2, a, b, c), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_STREQ(eplb_last_error_message(),
                 "policy trtllm is none of DeepSeek's; they are deepseek-global and deepseek-hierarchical");
    for (const auto &array : {phy2log, log2phy, logcnt}) {
        EXPECT_EQ(array, std::vector<int32_t>(array.size(), 7));
    }
    config.policy = EPLB_POLICY_DEFAULT;
    EXPECT_EQ(call(loads, 12, 2, a, b, c), EPLB_STATUS_OK);
}

TEST(Solve, SuggestsTheNearestValidSlotCounts) {
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

// eplb.hpp and eplb_tools.hpp: ownership, views and configs. The tests of the C objects cover the calls.
#include <gtest/gtest.h>

#include <eplb_tools.hpp>

#include "files.h"

template <class Handle>
constexpr bool moves_and_does_not_copy =
    std::is_nothrow_move_constructible_v<Handle> &&std::is_nothrow_move_assignable_v<Handle> &&
    !std::is_copy_constructible_v<Handle> && !std::is_copy_assignable_v<Handle>;
static_assert(moves_and_does_not_copy<eplb::stats>);
static_assert(moves_and_does_not_copy<eplb::placement>);

TEST(Hpp, MovedFromHandleIsRefused) {
    auto stats = eplb::stats::load(data("dumps/dsr1-all-zero"));
    const auto owner = std::move(stats);
    EXPECT_EQ(owner.info().num_experts, 256u);
    EXPECT_EQ(stats.get(), nullptr);
    try {
        stats.info();
        FAIL();
    } catch (const eplb::error &e) {
        EXPECT_EQ(e.status(), EPLB_STATUS_INVALID_ARGUMENT);
        EXPECT_STREQ(e.what(), "stats is NULL");
    }
    EXPECT_THROW(stats.layer_loads(3), eplb::error);
}

TEST(Hpp, ArraysOfTheWrongLengthAreRefusedUnread) {
    const std::vector<double> loads(7, 1.0);
    const std::vector<int32_t> layers = {0, 1}, slots = {0, 1, 0};
    eplb::placement_config config;
    config.num_experts = 4;
    config.num_ranks = 2;
    EXPECT_THROW(eplb::solve(config, layers, loads), eplb::error);
    config.num_experts = 2;
    EXPECT_THROW(eplb::placement::create(config, layers, slots), eplb::error);
    const auto placement = eplb::placement::create(config, layers, std::vector<int32_t>{0, 1, 1, 0});
    EXPECT_THROW(eplb::evaluate(placement, 0, loads, 2), eplb::error);
    EXPECT_THROW(eplb::evaluate(placement, 0, loads, 0), eplb::error);
    EXPECT_EQ(eplb::evaluate(placement, 0, std::vector<double>{1, 3}).max_load, 3.0);

    const std::vector<double> four(4, 1.0);
    eplb::solve_options options;
    options.rank_to_node = {0, 0, 1};
    EXPECT_THROW(eplb::solve(config, layers, four, 1, options), eplb::error);
    EXPECT_THROW(eplb::deepseek_rebalance(config, four, 1, options), eplb::error);
    EXPECT_THROW(eplb::evaluate(placement, 0, std::vector<double>{1, 3}, 1, options), eplb::error);
    options.rank_to_node = {};
    options.sample_weights = {1, 1, 1};
    EXPECT_THROW(eplb::solve(config, layers, four, 1, options), eplb::error);
    config.rank_num_slots = {1};
    EXPECT_THROW(eplb::solve(config, layers, four), eplb::error);
    EXPECT_THROW(eplb::placement::create(config, layers, std::vector<int32_t>{0, 1, 1, 0}), eplb::error);
    EXPECT_THROW(eplb::deepseek_rebalance(config, four, 1), eplb::error);

    eplb::stats_config arrays;
    arrays.num_experts = 4;
    arrays.layer_ids = {0};
    EXPECT_THROW(eplb::stats::create(arrays, std::vector<int32_t>(3)), eplb::error);
    EXPECT_EQ(eplb::stats::create(arrays, std::vector<int64_t>{1, 2, 3, 4}).layer_loads(0).at(3), 4.0);

    eplb::dispatch_config run;
    run.num_ranks = 2;
    run.experts_per_token = 1;
    run.rank_to_node = {0};
    EXPECT_THROW(eplb::dispatch::create(placement, run), eplb::error);
    EXPECT_THROW(eplb::dispatch::memory_required(placement, run), eplb::error);
    EXPECT_THROW(eplb::expected_load(placement, run, 0, std::vector<int64_t>(4)), eplb::error);
    EXPECT_THROW(
        eplb::routed_load<int32_t>(placement, run, 0, std::vector<int32_t>(2), std::vector<uint32_t>{1, 1}),
        eplb::error);
}

TEST(Hpp, ArraysHaveRoomForTheSlotsOfEachRank) {
    // num_slots is 0: 2 ranks of 3 slots, more than the 4 experts.
    eplb::placement_config config;
    config.num_experts = 4;
    config.num_ranks = 2;
    config.rank_num_slots = {3, 3};
    EXPECT_EQ(config.total_slots(), 6u);
    const auto arrays = eplb::deepseek_rebalance(config, std::vector<double>{4, 3, 2, 1}, 3);
    EXPECT_EQ(arrays.phy2log.size(), 6u);
}

#if __cplusplus >= 202002L
TEST(Hpp, ConfigsTakeDesignatedInitialisers) {
    temporary_directory dir;
    const auto report = eplb::generate({.expert_statistic_path = data("dumps/dsr1-extreme"),
                                        .output_path = dir / "config.yaml",
                                        .num_ranks = 32,
                                        .num_slots = 288,
                                        .solve = {.policy = EPLB_POLICY_TRTLLM}});
    EXPECT_EQ(report.num_slots, 288u);
    EXPECT_TRUE(read_file(dir / "config.yaml") ==
                read_file(data("expected/dsr1-extreme.ep32.slots288.yaml")));
}
#endif

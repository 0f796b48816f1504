// eplb.hpp: ownership, views and configs. What the calls do is tested with their C objects.
#include <gtest/gtest.h>

#include <eplb.hpp>

#include "files.h"

template <class Handle>
constexpr bool moves_and_does_not_copy =
    std::is_nothrow_move_constructible_v<Handle> &&std::is_nothrow_move_assignable_v<Handle> &&
    !std::is_copy_constructible_v<Handle> && !std::is_copy_assignable_v<Handle>;
static_assert(moves_and_does_not_copy<eplb::stats>);
static_assert(moves_and_does_not_copy<eplb::placement>);

TEST(Hpp, AMovedFromHandleIsAnErrorAndNotACrash) {
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

TEST(Hpp, ArraysOfTheWrongLengthAreRefusedBeforeTheyAreRead) {
    const std::vector<double> loads(7, 1.0);
    const std::vector<int32_t> layers = {0, 1}, slots = {0, 1, 0};
    EXPECT_THROW(eplb::solve({}, loads, layers, 1, 4), eplb::error);
    eplb::placement_config config;
    config.num_experts = config.num_ranks = 2;
    EXPECT_THROW(eplb::placement::create(config, layers, slots), eplb::error);
    const auto placement = eplb::placement::create(config, layers, std::vector<int32_t>{0, 1, 1, 0});
    EXPECT_THROW(placement.evaluate(0, loads, 2), eplb::error);
    EXPECT_THROW(placement.evaluate(0, loads, 0), eplb::error);
    EXPECT_EQ(placement.evaluate(0, std::vector<double>{1, 3}).max_load, 3.0);
}

#if __cplusplus >= 202002L
TEST(Hpp, ConfigsAreFilledInPlace) {
    temporary_directory dir;
    const auto report = eplb::generate({.expert_statistic_path = data("dumps/dsr1-extreme"),
                                        .output_path = dir / "config.yaml",
                                        .num_ranks = 32,
                                        .num_slots = 288,
                                        .policy = EPLB_POLICY_TRTLLM});
    EXPECT_EQ(report.num_slots, 288u);
    EXPECT_TRUE(read_file(dir / "config.yaml") ==
                read_file(data("expected/dsr1-extreme.ep32.slots288.yaml")));
}
#endif

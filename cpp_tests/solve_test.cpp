// eplb_solve and eplb_suggest_num_slots.
#include <gtest/gtest.h>

#include <cmath>
#include <eplb.hpp>
#include <limits>

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

} // namespace

TEST(Solve, FiveExpertsOnThreeRanksAsWorkedByHand) {
    // See src/solve/trtllm.rs: counts [2,1,1,3,2], ranks [0,3,4],[0,3,4],[1,3,2].
    const auto placement =
        eplb::solve(cpp_on(3, 9), std::vector<double>{10, 5, 2, 15, 8}, std::vector<int32_t>{3}, 1, 5);
    EXPECT_EQ(experts(placement, 3), (std::vector<int32_t>{0, 3, 4, 0, 3, 4, 1, 3, 2}));
}

TEST(Solve, NoSlotsGivenMeansOneAnExpertAndTheDefaultPolicyIsTrtllm) {
    auto config = cpp_on(2, 0);
    config.policy = EPLB_POLICY_DEFAULT;
    // By load 3 2 1 0 go to ranks 0 1 1 0: 4 to 0, 3 to 1, 2 to 1 (3 < 4), 1 to 0 (4 < 5).
    const auto placement =
        eplb::solve(config, std::vector<double>{1, 2, 3, 4}, std::vector<int32_t>{0}, 1, 4);
    EXPECT_EQ(experts(placement, 0), (std::vector<int32_t>{3, 0, 2, 1}));
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
    EXPECT_STREQ(eplb_last_error_message(),
                 "policy is 77; EPLB_POLICY_DEFAULT is 0 and EPLB_POLICY_TRTLLM 1");
    EXPECT_EQ(eplb_solve(&config, loads, &layer, 1, 1, 0, &placement), EPLB_STATUS_INVALID_SHAPE);
    EXPECT_EQ(placement, nullptr);
    const int32_t twice[] = {5, 5};
    const double loads_of_two[8] = {};
    EXPECT_EQ(eplb_solve(&config, loads_of_two, twice, 2, 1, 4, &placement), EPLB_STATUS_INVALID_PLACEMENT);
    EXPECT_STREQ(eplb_last_error_message(), "layer 5 is given twice");
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

// Empty slots of placements.
#include <gtest/gtest.h>

#include <eplb_tools.hpp>

#include "files.h"

namespace {

std::vector<int32_t> list(eplb::view<std::int32_t> values) { return {values.begin(), values.end()}; }

/// Slots 0 - 1 | 2 3 - in layer 3, and 3 - 2 | - 1 0 in layer 7.
const std::vector<int32_t> layers = {3, 7}, slots = {0, -1, 1, 2, 3, -1, 3, -1, 2, -1, 1, 0};

eplb::placement_config sizes() {
    eplb::placement_config config;
    config.num_experts = 4;
    config.num_ranks = 2;
    config.num_slots = 6;
    config.allow_empty_slots = true;
    return config;
}

std::string message_of(const eplb::placement_config &config, const std::vector<int32_t> &slot_experts) {
    try {
        eplb::placement::create(config, layers, slot_experts);
    } catch (const eplb::error &error) {
        return error.what();
    }
    return "accepted";
}

} // namespace

TEST(PlacementSlots, AnySlotMayBeEmptyByOptIn) {
    const auto placement = eplb::placement::create(sizes(), layers, slots);
    EXPECT_EQ(list(placement.layer_experts(7)), (std::vector<int32_t>{3, -1, 2, -1, 1, 0}));
    EXPECT_EQ(list(placement.rank_experts(3, 1)), (std::vector<int32_t>{2, 3, -1}));
    EXPECT_EQ(placement.distinct_experts(3, 0), (std::vector<int32_t>{0, 1}));
    EXPECT_EQ(placement.distinct_experts(7, 1), (std::vector<int32_t>{0, 1}));
    const eplb_placement_info info = placement.info();
    EXPECT_EQ(info.num_empty_slots, 4u);
    EXPECT_EQ(info.num_duplicates, 0u) << "two empty slots repeat no expert";
    EXPECT_EQ(info.slots_per_rank, 3u);
    EXPECT_TRUE(placement.issues().empty());

    auto refused = sizes();
    refused.allow_empty_slots = false;
    EXPECT_NE(message_of(refused, slots)
                  .find("layer 3, rank 0, slot 1 is empty (-1); set allow_empty_slots, or give it one of the "
                        "experts 0 to 3"),
              std::string::npos)
        << message_of(refused, slots);
    auto lacking = slots;
    lacking[4] = -1;
    EXPECT_NE(message_of(sizes(), lacking).find("layer 3: expert 3 has no slot"), std::string::npos);
    lacking[4] = -2;
    EXPECT_NE(message_of(sizes(), lacking).find("layer 3, rank 1, slot 4: expert -2 does not exist"),
              std::string::npos);
}

TEST(PlacementSlots, HashIsOfTheWordsWithMinusOneInEmptySlots) {
    // Python: h = 0xcbf29ce484222325
    //         for b in struct.pack("<4I" + "I6i" * 2, 4, 6, 2, 2, 3, 0, -1, 1, 2, 3, -1, 7, 3, -1, 2, -1, 1,
    //         0):
    //             h = ((h ^ b) * 0x100000001b3) % 2**64
    EXPECT_EQ(eplb::placement::create(sizes(), layers, slots).hash(), 0xb06c4a7d2d2cbb23u);
}

TEST(PlacementSlots, EvaluationIgnoresEmptySlots) {
    // Loads 4 3 2 1: rank 0 holds experts 0 and 1 in layer 3, 3 and 2 in layer 7.
    const std::vector<double> loads = {4, 3, 2, 1};
    const auto placement = eplb::placement::create(sizes(), layers, slots);
    EXPECT_EQ(eplb::evaluate(placement, 3, loads).max_load, 7);
    EXPECT_EQ(eplb::evaluate(placement, 7, loads).max_load, 7);
}

TEST(PlacementSlots, EachRankMayHaveAnEmptySlotAtItsEnd) {
    auto config = sizes();
    config.allow_empty_slots = false;
    config.rank_num_slots = {2, 2};
    const std::vector<int32_t> layer = {3}, experts = {0, 1, -1, 2, 3, -1};
    const auto placement = eplb::placement::create(config, layer, experts);
    EXPECT_EQ(placement.info().num_slots, 6u);
    EXPECT_EQ(placement.info().num_empty_slots, 2u);
    EXPECT_EQ(list(placement.rank_experts(3, 1)), (std::vector<int32_t>{2, 3}));
    config.num_slots = 0;
    const std::vector<int32_t> four = {0, 1, 2, 3};
    EXPECT_EQ(eplb::placement::create(config, layer, four).info().num_slots, 4u);
}

TEST(PlacementSlots, BadValuesHaveTheirOwnMessage) {
    auto config = sizes().c();
    eplb_placement *made = nullptr;
    const auto refused = [&] {
        EXPECT_EQ(eplb_placement_create(&config, layers.data(), 2, slots.data(), &made),
                  EPLB_STATUS_INVALID_ARGUMENT);
        return std::string(eplb_last_error_message());
    };
    config.allow_empty_slots = 2;
    EXPECT_EQ(refused(), "config->allow_empty_slots is 2; 0 or 1 expected");
    config.allow_empty_slots = 1;
    config.reserved = 1;
    EXPECT_EQ(refused(), "config->reserved is not 0");
    EXPECT_EQ(made, nullptr);
}

// Dispatch over placements with empty slots: on the host, over fake_cuda in both of its modes, and on a GPU.
#include <limits>
#include <map>
#include <set>

#include "dispatch_fixture.h"

namespace {

/// A random placement of which some slots are empty, in each layer others, and `empty` in all layers.
struct placement_with_empty_slots {
    std::map<int32_t, layer_placement> layers;
    eplb::placement placement;

    placement_with_empty_slots(uint32_t num_experts, uint32_t num_ranks, bool last_of_each_rank,
                               uint64_t seed)
        : placement(nullptr) {
        std::mt19937_64 random(seed);
        std::vector<int32_t> all;
        for (const int32_t number : {3, 7}) {
            layer_placement layer = a_placement(num_experts, num_ranks, 3, random());
            const size_t width = layer.experts.size() / num_ranks;
            const auto may_be_empty = [&](size_t slot) {
                return layer.slots_of(layer.experts[slot]).size() > 1;
            };
            for (size_t slot = 0; slot < layer.experts.size(); slot++) {
                if (random() % 4 == 0 && may_be_empty(slot)) {
                    layer.experts[slot] = -1;
                }
            }
            if (last_of_each_rank) {
                // One more slot of each rank, as for a fused shared expert.
                std::vector<int32_t> wider;
                for (size_t slot = 0; slot < layer.experts.size(); slot++) {
                    wider.push_back(layer.experts[slot]);
                    if (slot % width == width - 1) {
                        wider.push_back(-1);
                    }
                }
                layer.experts = wider;
            }
            all.insert(all.end(), layer.experts.begin(), layer.experts.end());
            layers.emplace(number, std::move(layer));
        }
        eplb::placement_config config;
        config.num_experts = num_experts;
        config.num_ranks = num_ranks;
        config.num_slots = static_cast<uint32_t>(all.size() / 2);
        config.allow_empty_slots = true;
        const std::vector<int32_t> numbers = {3, 7};
        placement = eplb::placement::create(config, numbers, all);
    }
};

ids32 reference(eplb_rule rule, const layer_placement &layer, const ids32 &ids, size_t valid,
                uint32_t choices, uint32_t rank) {
    const std::vector<int32_t> one_node(layer.num_ranks);
    switch (rule) {
    case EPLB_RULE_ROUND_ROBIN:
        return round_robin(layer, ids, valid * choices, 0);
    case EPLB_RULE_TOKEN_HASH:
        return token_hash(layer, ids, valid * choices, choices);
    case EPLB_RULE_NEAREST:
        return nearest(layer, ids, valid * choices, rank, one_node);
    default:
        return least_loaded(layer, ids, valid * choices);
    }
}

} // namespace

TEST(DispatchEmptySlots, EachRuleMatchesTheReferenceEagerAndReplayed) {
    uint64_t seed = 0;
    for (const bool last_of_each_rank : {false, true}) {
        for (const uint32_t num_ranks : {1u, 4u, 8u}) {
            const placement_with_empty_slots made(24, num_ranks, last_of_each_rank, ++seed);
            for (const eplb_rule rule : all_rules) {
                auto config = a_config(made.layers.at(3), rule, 4);
                config.rank = num_ranks - 1;
                const auto dispatch = eplb::dispatch::create(made.placement, config);
                for (const auto &[number, layer] : made.layers) {
                    const engine_stream stream;
                    const engine_array<int32_t> ids(1200), slots(1200), valid(1);
                    const engine_graph graph(stream, [&, number = number] {
                        dispatch.route(number, ids.data(), 300, valid.data(), slots.data(), stream);
                    });
                    routing source(24, 4, ++seed);
                    for (const int32_t tokens : {300, 77, 0}) {
                        const ids32 batch = source.ids<int32_t>(300), count = {tokens};
                        const ids32 expected =
                            reference(rule, layer, batch, static_cast<size_t>(tokens), 4, num_ranks - 1);
                        ids.upload(batch, stream);
                        valid.upload(count, stream);
                        graph.replay(stream);
                        EXPECT_EQ(download(slots.data(), 1200, stream), expected) << "rule " << rule;
                        how way;
                        way.num_valid = valid.data();
                        EXPECT_EQ(routed(dispatch, batch, 4, way, number), expected) << "rule " << rule;
                    }
                }
            }
        }
    }
}

TEST(DispatchEmptySlots, TablesListNoEmptySlot) {
    const placement_with_empty_slots made(24, 4, true, 5);
    auto config = a_config(made.layers.at(3), EPLB_RULE_ROUND_ROBIN, 4);
    const auto dispatch = eplb::dispatch::create(made.placement, config);
    for (const auto &[number, layer] : made.layers) {
        const engine_stream stream;
        const eplb_dispatch_tables tables = dispatch.tables(number);
        const size_t held = static_cast<size_t>(std::count_if(layer.experts.begin(), layer.experts.end(),
                                                              [](int32_t expert) { return expert >= 0; }));
        ASSERT_LT(held, layer.experts.size());
        std::set<int32_t> seen;
        for (const int32_t slot : download(tables.slot_ids, held, stream)) {
            ASSERT_LT(static_cast<size_t>(slot), layer.experts.size());
            EXPECT_GE(layer.experts[static_cast<size_t>(slot)], 0) << "slot " << slot;
            seen.insert(slot);
        }
        EXPECT_EQ(seen.size(), held);
    }
}

// The routing rules against docs/routing.md: on the host, over fake_cuda in both of its modes, and on a GPU.
#include <eplb_tools.hpp>
#include <limits>
#include <numeric>

#include "dispatch_fixture.h"

namespace {

/// Fewer ids where every thread is a fiber, and fewer still under the sanitizers; more than a block.
size_t scaled(size_t ids) {
#ifdef EPLB_SANITIZE
    constexpr size_t most = 1500;
#else
    constexpr size_t most = 5000;
#endif
    return engine::get().fake() != nullptr ? std::min<size_t>(ids, most) : ids;
}

std::vector<double> slot_counts(const ids32 &slots, size_t num_slots) {
    std::vector<double> counts(num_slots + 1);
    for (const int32_t slot : slots) {
        counts[static_cast<size_t>(slot)]++;
    }
    return counts;
}

double max_over_mean(const std::vector<double> &counts, const std::vector<int64_t> &slots) {
    double sum = 0, max = 0;
    for (const int64_t slot : slots) {
        sum += counts[static_cast<size_t>(slot)];
        max = std::max(max, counts[static_cast<size_t>(slot)]);
    }
    return max * static_cast<double>(slots.size()) / sum;
}

/// Expert 0 in the first slot of each of `replicas` ranks.
layer_placement one_hot(uint32_t replicas) {
    std::vector<int32_t> experts;
    for (uint32_t rank = 0; rank < replicas; rank++) {
        experts.insert(experts.end(), {0, static_cast<int32_t>(rank) + 1});
    }
    return {replicas + 1, replicas, experts};
}

} // namespace

// The worked example of docs/routing.md: 6 tokens of 2 choices, 5 of them valid.
TEST(DispatchRules, WorkedExampleOfTheDocumentsHolds) {
    const auto placement = placement_of(small);
    const engine_stream stream;
    const engine_array<int32_t> num_valid(1);
    const ids32 five = {5};
    num_valid.upload(five, stream);
    stream.synchronize();
    const auto slots = [&](eplb_rule rule, uint32_t rank, bool offset_by_rank = false) {
        auto config = a_config(small, rule, 2);
        config.rank = rank;
        config.offset_by_rank = offset_by_rank;
        how way;
        way.num_valid = num_valid.data();
        const ids32 ids = {0, 1, 0, 2, 0, 3, 1, 0, 4, -1, 0, 1};
        return routed(eplb::dispatch::create(placement, config), ids, 2, way);
    };
    EXPECT_EQ(slots(EPLB_RULE_ROUND_ROBIN, 0), (ids32{0, 1, 4, 2, 0, 3, 5, 4, 6, 6, 6, 6}));
    EXPECT_EQ(slots(EPLB_RULE_ROUND_ROBIN, 1, true), (ids32{4, 5, 0, 2, 4, 3, 1, 0, 6, 6, 6, 6}));
    EXPECT_EQ(slots(EPLB_RULE_TOKEN_HASH, 0), (ids32{0, 1, 4, 2, 0, 3, 5, 4, 6, 6, 6, 6}));
    EXPECT_EQ(slots(EPLB_RULE_NEAREST, 0), (ids32{0, 1, 0, 2, 0, 3, 1, 0, 6, 6, 6, 6}));
    EXPECT_EQ(slots(EPLB_RULE_NEAREST, 1), (ids32{4, 5, 4, 2, 4, 3, 5, 4, 6, 6, 6, 6}));
    EXPECT_EQ(slots(EPLB_RULE_LEAST_LOADED, 0), (ids32{0, 1, 0, 2, 4, 3, 5, 4, 6, 6, 6, 6}));
}

TEST(DispatchRules, RoundRobinUsesReplicasInTurn) {
    const auto placement = placement_of(small);
    auto config = a_config(small, EPLB_RULE_ROUND_ROBIN, 2);
    const ids32 ids = {0, 1, 0, 2, 0, 1, 3, -1, 1, 4};
    EXPECT_EQ(routed(eplb::dispatch::create(placement, config), ids, 2),
              (ids32{0, 1, 4, 2, 0, 5, 3, 6, 1, 6}));
    // Rank 1 starts with the second replica of each expert.
    config.rank = 1;
    config.offset_by_rank = true;
    EXPECT_EQ(routed(eplb::dispatch::create(placement, config), ids, 2),
              (ids32{4, 5, 0, 2, 4, 1, 3, 6, 5, 6}));
}

TEST(DispatchRules, TokenHashUsesTheIndexOfTheToken) {
    const auto dispatch =
        eplb::dispatch::create(placement_of(small), a_config(small, EPLB_RULE_TOKEN_HASH, 2));
    // 2654435769 t mod 2^32: 0, 2654435769, 1013904242, 3668340011: even, odd, even, odd.
    EXPECT_EQ(routed(dispatch, ids32{0, 1, 0, 1, 1, 2, 0, 9}, 2), (ids32{0, 1, 4, 5, 1, 2, 4, 6}));
}

TEST(DispatchRules, NearestKeepsTokensOnTheirRank) {
    const auto placement = placement_of(small);
    for (uint32_t rank = 0; rank < 2; rank++) {
        auto config = a_config(small, EPLB_RULE_NEAREST, 2);
        config.rank = rank;
        const int32_t zero = rank == 0 ? 0 : 4, one = rank == 0 ? 1 : 5;
        EXPECT_EQ(routed(eplb::dispatch::create(placement, config), ids32{0, 1, 1, 0, 2, 0, 3, 0}, 2),
                  (ids32{zero, one, one, zero, 2, zero, 3, zero}));
    }
}

TEST(DispatchRules, LeastLoadedEvensOutTheBatchAndIsTheDefault) {
    // Rank 0 has expert 2 five times. Expert 0, four times, goes to rank 1: loads 5 and 4. Of expert 1, three
    // times, one goes to rank 0 and two to rank 1: loads 6 and 6. The next sweep changes nothing.
    const auto dispatch =
        eplb::dispatch::create(placement_of(small), a_config(small, EPLB_RULE_LEAST_LOADED));
    EXPECT_EQ(routed(dispatch, ids32{1, 0, 2, 2, 0, 1, 2, 0, 2, 1, 0, 2}, 1),
              (ids32{1, 4, 2, 2, 4, 5, 2, 4, 2, 5, 4, 2}));
    const auto standard = eplb::dispatch::create(placement_of(small), a_config(small, EPLB_RULE_DEFAULT));
    EXPECT_EQ(routed(standard, ids32{1, 0, 2, 2, 0, 1, 2, 0, 2, 1, 0, 2}, 1),
              (ids32{1, 4, 2, 2, 4, 5, 2, 4, 2, 5, 4, 2}));
}

TEST(DispatchRules, RoundRobinMatchesTheReferenceInEveryShape) {
    uint64_t seed = 0;
    for (const uint32_t experts : {8u, 60u, 72u, 128u, 256u, 384u}) {
        for (const uint32_t ranks : {1u, 2u, 8u, 36u, 72u}) {
            seed++;
            const auto layer = a_placement(experts, ranks, seed % 4, seed);
            const uint32_t choices = static_cast<uint32_t>(seed % 8 + 1),
                           rank = static_cast<uint32_t>(seed % ranks);
            auto config = a_config(layer, EPLB_RULE_ROUND_ROBIN, choices);
            config.rank = rank;
            config.offset_by_rank = seed % 2 == 0;
            const auto dispatch = eplb::dispatch::create(placement_of(layer), config);
            routing source(experts, choices, seed);
            for (const size_t size :
                 {size_t(1), size_t(1023), size_t(2049), seed % 6 == 0 ? size_t(100000) : size_t(4100)}) {
                const auto ids = source.ids<int32_t>((scaled(size) + choices - 1) / choices);
                ASSERT_EQ(routed(dispatch, ids, choices),
                          round_robin(layer, ids, ids.size(), config.offset_by_rank ? rank : 0))
                    << experts << " experts, " << ranks << " ranks, " << size << " ids";
            }
        }
    }
}

template <class Id> class DispatchRulesOf : public testing::Test {};
using id_types = testing::Types<int32_t, int64_t>;
TYPED_TEST_SUITE(DispatchRulesOf, id_types);

TYPED_TEST(DispatchRulesOf, EveryRuleMatchesTheReference) {
    using Id = TypeParam;
    engine_stream stream;
    engine_array<int32_t> num_valid(1);
    uint64_t seed = 0;
    // 60 ranks exceed a warp's lanes, and the counts of 3000 experts exceed shared memory. Of the last
    // placement, a small batch has few of the replicated experts.
    for (const auto &[experts, ranks, spare] : {std::array<uint32_t, 3>{8, 2, 3},
                                                {64, 8, 1},
                                                {256, 8, 8},
                                                {60, 60, 24},
                                                {3000, 4, 5},
                                                {256, 40, 9}}) {
        const auto layer = a_placement(experts, ranks, spare, ++seed);
        const auto placement = placement_of(layer);
        for (const eplb_rule rule : all_rules) {
            const uint32_t choices = seed % 2 == 0 ? 6 : 1;
            auto config = a_config(layer, rule, choices);
            config.rank = ranks - 1;
            for (uint32_t rank = 0; rank < ranks; rank++) {
                config.rank_to_node.push_back(static_cast<int32_t>(rank * 3 / ranks));
            }
            const auto dispatch = eplb::dispatch::create(placement, config);
            routing source(experts, choices, seed);
            for (const size_t tokens : {size_t(0), size_t(1), size_t(20), size_t(170), size_t(700)}) {
                const auto ids = source.ids<Id>(tokens);
                for (const int32_t valid :
                     {static_cast<int32_t>(tokens), static_cast<int32_t>(tokens / 2), -1, 5000}) {
                    const std::vector<int32_t> upload = {valid};
                    num_valid.upload(upload, stream);
                    stream.synchronize();
                    how way;
                    way.in_place = valid % 2 == 0;
                    way.skew = static_cast<size_t>(valid + 1) % 3;
                    way.num_valid = num_valid.data();
                    const auto found = routed(dispatch, ids, choices, way);
                    const size_t valid_ids =
                        std::min(ids.size(), static_cast<size_t>(std::max(valid, 0)) * choices);
                    std::vector<Id> expected;
                    switch (rule) {
                    case EPLB_RULE_ROUND_ROBIN:
                        expected = round_robin(layer, ids, valid_ids, 0);
                        break;
                    case EPLB_RULE_TOKEN_HASH:
                        expected = token_hash(layer, ids, valid_ids, choices);
                        break;
                    case EPLB_RULE_LEAST_LOADED:
                        expected = least_loaded(layer, ids, valid_ids);
                        break;
                    default:
                        expected = nearest(layer, ids, valid_ids, config.rank, config.rank_to_node);
                    }
                    ASSERT_EQ(found, expected) << "rule " << rule << ", " << experts << " experts, " << tokens
                                               << " tokens, " << valid << " valid";
                    for (size_t i = 0; i < valid_ids; i++) {
                        if (found[i] < layer.num_slots()) {
                            ASSERT_EQ(layer.experts[static_cast<size_t>(found[i])], ids[i]);
                        }
                    }
                }
            }
        }
    }
}

TYPED_TEST(DispatchRulesOf, LeastLoadedMatchesTheReferenceInAnyNumberOfBlocks) {
    using Id = TypeParam;
    // With more than 64 blocks of 1024 ids, a CUDA block handles several.
    const auto layer = a_placement(16, 4, 2, 5);
    const auto dispatch =
        eplb::dispatch::create(placement_of(layer), a_config(layer, EPLB_RULE_LEAST_LOADED));
    routing source(16, 1, 3);
    for (const size_t size : {size_t(3000), size_t(70000)}) {
        const auto ids = source.ids<Id>(size);
        EXPECT_EQ(routed(dispatch, ids, 1), least_loaded(layer, ids, ids.size()));
    }
}

TYPED_TEST(DispatchRulesOf, LeastLoadedSweepsLessWhereRingsShareNoRank) {
    using Id = TypeParam;
    // Expert 0 is on the first half of the ranks. The second half holds one of the last rank, or one of rank
    // 0.
    for (const uint32_t ranks : {8u, 24u}) {
        for (const bool meet : {false, true}) {
            layer_placement layer = {3 * ranks, ranks, {}};
            const int32_t other = meet ? 1 : static_cast<int32_t>(layer.num_experts - 1);
            for (uint32_t rank = 0; rank < ranks; rank++) {
                const auto first = static_cast<int32_t>(3 * rank);
                layer.experts.insert(layer.experts.end(),
                                     {first, first + 1, first + 2, rank < ranks / 2 ? 0 : other});
            }
            const auto dispatch =
                eplb::dispatch::create(placement_of(layer), a_config(layer, EPLB_RULE_LEAST_LOADED));
            routing source(layer.num_experts, 1, ranks);
            for (const size_t size : {size_t(60), size_t(400), size_t(3000)}) {
                auto ids = source.ids<Id>(size);
                // Enough tokens for the rings to even out any load.
                for (size_t i = 0; i < ids.size(); i += 3) {
                    ids[i] = i % 2 == 0 ? 0 : other;
                }
                EXPECT_EQ(routed(dispatch, ids, 1), least_loaded(layer, ids, ids.size()))
                    << ranks << " ranks, " << size << " ids";
            }
        }
    }
}

TEST(DispatchRules, LeastLoadedSumsRankCountsBeyond32Bits) {
    const auto layer = a_placement(24, 4, 3, 9);
    const auto placement = placement_of(layer);
    std::mt19937_64 random(5);
    std::vector<int64_t> counts(4 * 24);
    for (int64_t &count : counts) {
        count = static_cast<int64_t>(random() % (uint64_t(1) << 31));
    }
    engine_stream stream;
    engine_array<int64_t> counts_there(counts.size());
    counts_there.upload(counts, stream);
    stream.synchronize();
    auto config = a_config(layer, EPLB_RULE_LEAST_LOADED, 4);
    auto there = eplb::dispatch::create(placement, config);
    config.device = EPLB_DEVICE_HOST;
    auto here = eplb::dispatch::create(placement, config);
    there.register_rank_counts(3, counts_there.data(), EPLB_DTYPE_INT64);
    here.register_rank_counts(3, counts.data(), EPLB_DTYPE_INT64);
    for (const size_t tokens : {10, 700}) {
        const auto ids = routing(24, 4, 2).ids<int32_t>(tokens);
        ids32 slots(ids.size());
        here.route(3, ids.data(), static_cast<uint32_t>(tokens), nullptr, slots.data());
        EXPECT_EQ(routed(there, ids, 4), slots);
    }
}

TEST(DispatchRules, LeastLoadedEvensOutAllRanksWithTheirCounts) {
    const auto layer = a_placement(24, 4, 3, 9);
    const auto placement = placement_of(layer);
    engine_stream stream;
    routing source(24, 4, 1);
    std::vector<ids32> batches;
    std::vector<std::vector<uint64_t>> counts(4, std::vector<uint64_t>(24));
    std::vector<int64_t> gathered;
    std::vector<uint64_t> totals(24);
    for (size_t rank = 0; rank < 4; rank++) {
        batches.push_back(source.ids<int32_t>(50 + 100 * rank));
        for (const int32_t id : batches.back()) {
            if (id >= 0 && id < 24) {
                counts[rank][static_cast<size_t>(id)]++;
                totals[static_cast<size_t>(id)]++;
            }
        }
        gathered.insert(gathered.end(), counts[rank].begin(), counts[rank].end());
    }
    const ids32 narrow(gathered.begin(), gathered.end());
    engine_array<int64_t> wide_counts(gathered.size());
    engine_array<int32_t> narrow_counts(gathered.size());
    wide_counts.upload(gathered, stream);
    narrow_counts.upload(narrow, stream);
    stream.synchronize();
    std::vector<uint64_t> rank_loads(4), expected_loads(4);
    const auto quotas = least_loaded_quotas(layer, totals, false);
    for (const auto &expert : quotas) {
        for (const auto &[rank, quota] : expert) {
            expected_loads[rank] += quota;
        }
    }
    for (uint32_t rank = 0; rank < 4; rank++) {
        auto config = a_config(layer, EPLB_RULE_LEAST_LOADED, 4);
        config.rank = rank;
        auto dispatch = eplb::dispatch::create(placement, config);
        dispatch.register_rank_counts(3, wide_counts.data(), EPLB_DTYPE_INT64);
        const auto found = routed(dispatch, batches[rank], 4);
        EXPECT_EQ(found, least_loaded(layer, batches[rank], batches[rank].size(), rank, counts));
        for (const int32_t slot : found) {
            if (slot < layer.num_slots()) {
                rank_loads[layer.rank_of(slot)]++;
            }
        }
        dispatch.register_rank_counts(3, narrow_counts.data(), EPLB_DTYPE_INT32);
        EXPECT_EQ(routed(dispatch, batches[rank], 4), found);
        // A batch that the counts do not describe is routed too.
        const auto other = source.ids<int32_t>(300);
        EXPECT_EQ(routed(dispatch, other, 4), least_loaded(layer, other, other.size(), rank, counts));
        dispatch.register_rank_counts(3, nullptr, EPLB_DTYPE_INT32);
        EXPECT_EQ(routed(dispatch, other, 4), least_loaded(layer, other, other.size()));
    }
    EXPECT_EQ(rank_loads, expected_loads);
    const auto config = a_config(layer, EPLB_RULE_LEAST_LOADED, 4);
    const std::vector<double> expected = eplb::expected_load(placement, config, 3, gathered, true);
    EXPECT_EQ(expected, std::vector<double>(rank_loads.begin(), rank_loads.end()));
    ids32 recorded;
    std::vector<uint32_t> tokens;
    for (const ids32 &batch : batches) {
        recorded.insert(recorded.end(), batch.begin(), batch.end());
        tokens.push_back(static_cast<uint32_t>(batch.size() / 4));
    }
    EXPECT_EQ(eplb::routed_load<int32_t>(placement, config, 3, recorded, tokens, true), expected);
}

TEST(DispatchRules, RoutedAndExpectedLoadMatchRoutedIds) {
    const auto layer = a_placement(24, 4, 3, 9);
    const auto placement = placement_of(layer);
    for (const eplb_rule rule : all_rules) {
        routing source(24, 4, 2);
        std::vector<int64_t> counts(4 * 24), recorded;
        std::vector<uint32_t> tokens;
        std::vector<double> found(4);
        auto config = a_config(layer, rule, 4);
        config.rank_to_node = {0, 0, -5, -5};
        for (uint32_t rank = 0; rank < 4; rank++) {
            config.rank = rank;
            const auto ids = source.ids<int32_t>(scaled(4000) / 4 + 100 * rank);
            for (const int32_t id : ids) {
                if (id >= 0 && id < 24) {
                    counts[rank * 24 + static_cast<size_t>(id)]++;
                }
            }
            recorded.insert(recorded.end(), ids.begin(), ids.end());
            tokens.push_back(static_cast<uint32_t>(ids.size() / 4));
            for (const int32_t slot : routed(eplb::dispatch::create(placement, config), ids, 4)) {
                if (slot < layer.num_slots()) {
                    found[layer.rank_of(slot)]++;
                }
            }
        }
        const std::vector<double> exact = eplb::routed_load<int64_t>(placement, config, 3, recorded, tokens);
        EXPECT_EQ(exact, found) << "rule " << rule;
        const std::vector<double> expected = eplb::expected_load(placement, config, 3, counts);
        for (size_t rank = 0; rank < 4; rank++) {
            // Exact for least loaded; for the other rules the long-run share, which is near.
            EXPECT_NEAR(expected[rank], found[rank], rule == EPLB_RULE_LEAST_LOADED ? 0 : 0.03 * found[rank])
                << "rule " << rule << ", rank " << rank;
        }
    }
}

TEST(DispatchRules, ReplicasOfAHotExpertServeEqualShares) {
    for (const uint32_t replicas : {2u, 3u, 4u, 8u, 16u}) {
        const auto layer = one_hot(replicas);
        const auto placement = placement_of(layer);
        // One expert a token, as many as there are replicas, and one more. Each token chooses expert 0.
        for (const uint32_t choices : {1u, replicas, replicas + 1}) {
            ids32 ids(1024 * choices, -1);
            for (size_t token = 0; token < 1024; token++) {
                ids[token * choices + token % choices] = 0;
            }
            const auto slots = layer.slots_of(0);
            const auto counts = [&](eplb_rule rule, const ids32 &these) {
                return slot_counts(
                    routed(eplb::dispatch::create(placement, a_config(layer, rule, choices)), these, choices),
                    layer.experts.size());
            };
            EXPECT_LT(max_over_mean(counts(EPLB_RULE_TOKEN_HASH, ids), slots), 1.15)
                << replicas << " replicas";
            const ids32 block(ids.begin(),
                              ids.begin() + static_cast<std::ptrdiff_t>(1024 / choices * choices));
            for (const auto &[rule, these] :
                 {std::pair(EPLB_RULE_ROUND_ROBIN, block), std::pair(EPLB_RULE_LEAST_LOADED, ids)}) {
                const auto found = counts(rule, these);
                double least = 1e9, most = 0;
                for (const int64_t slot : slots) {
                    least = std::min(least, found[static_cast<size_t>(slot)]);
                    most = std::max(most, found[static_cast<size_t>(slot)]);
                }
                EXPECT_LE(most - least, 1) << "rule " << rule << ", " << replicas << " replicas, " << choices;
            }
        }
    }
}

TEST(DispatchRules, NearestLeavesTheNodeOnlyToLimitAReplicasLoad) {
    // Expert 0 is on ranks 0 and 1 of node 1 and on rank 2 of node 2. Four ranks have 1024 tokens each. An
    // even share is 4096 / 3 = 1365.3 tokens, and the limit is 5/4 of it, 1706.7. So rank 2 keeps its 1024,
    // and rank 3 sends it 682.7 and the others 170.7 each.
    const layer_placement layer = {6, 4, {0, 1, 0, 2, 0, 4, 3, 5}};
    const auto placement = placement_of(layer);
    std::vector<double> sum(9);
    double crossed = 0;
    for (uint32_t rank = 0; rank < 4; rank++) {
        auto config = a_config(layer, EPLB_RULE_NEAREST);
        config.rank = rank;
        config.rank_to_node = {1, 1, 2, 2};
        const auto counts =
            slot_counts(routed(eplb::dispatch::create(placement, config), ids32(1024, 0), 1), 8);
        if (rank < 3) {
            EXPECT_EQ(counts[2 * rank], 1024) << "a rank with a replica keeps its tokens";
        } else {
            crossed = counts[0] + counts[2];
        }
        for (size_t slot = 0; slot < 9; slot++) {
            sum[slot] += counts[slot];
        }
    }
    EXPECT_NEAR(sum[4], 1706.7, 3);
    EXPECT_NEAR(crossed, 341.3, 3);
    EXPECT_NEAR(sum[0], sum[2], 3);
    EXPECT_NEAR(max_over_mean(sum, {0, 2, 4}), 1.25, 0.003);
}

TEST(DispatchRules, NodesMayHaveAnyNumber) {
    // As on nodes 1 1 2 2, in docs/routing.md.
    const layer_placement layer = {6, 4, {0, 1, 0, 2, 0, 4, 3, 5}};
    const auto placement = placement_of(layer);
    const ids32 ids(12, 0), expected = {4, 4, 0, 4, 2, 4, 4, 2, 4, 4, 0, 4};
    constexpr int32_t lowest = std::numeric_limits<int32_t>::min();
    constexpr int32_t highest = std::numeric_limits<int32_t>::max();
    const std::vector<std::vector<int32_t>> names = {{1, 1, 2, 2},
                                                     {-1, -1, -2, -2},
                                                     {-1, -1, 0, 0},
                                                     {lowest, lowest, highest, highest},
                                                     {0, 0, lowest, lowest}};
    for (const auto &rank_to_node : names) {
        auto config = a_config(layer, EPLB_RULE_NEAREST);
        config.rank = 3;
        config.rank_to_node = rank_to_node;
        EXPECT_EQ(routed(eplb::dispatch::create(placement, config), ids, 1), expected)
            << "nodes " << rank_to_node[0] << " and " << rank_to_node[2];
        EXPECT_EQ(nearest(layer, ids, ids.size(), 3, rank_to_node), expected);
        const std::vector<uint32_t> tokens = {0, 0, 0, 12};
        // Slots 4, 0 and 2 are on ranks 2, 0 and 1.
        EXPECT_EQ(eplb::routed_load<int32_t>(placement, config, 3, ids, tokens),
                  (std::vector<double>{2, 2, 8, 0}));
    }
}

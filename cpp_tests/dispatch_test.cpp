// Step 3 as an engine drives it. The same on the host, over fake_cuda in both of its modes, and on a GPU.
#include <gtest/gtest.h>

#include <eplb.hpp>
#include <limits>
#include <numeric>

#include "engine.h"
#include "files.h"
#include "route_reference.h"
#include "routing.h"

namespace {

template <class Id> constexpr eplb_dtype dtype = sizeof(Id) == 4 ? EPLB_DTYPE_INT32 : EPLB_DTYPE_INT64;

constexpr eplb_route all_rules[] = {EPLB_ROUTE_ROUND_ROBIN, EPLB_ROUTE_TOKEN_HASH, EPLB_ROUTE_NEAREST,
                                    EPLB_ROUTE_LEAST_LOADED};

/// Far fewer ids where every thread is a fiber, and fewer yet where each of its steps is looked at; more than
/// a block's.
size_t scaled(size_t ids) {
#ifdef EPLB_SANITIZE
    constexpr size_t most = 1500;
#else
    constexpr size_t most = 5000;
#endif
    return engine::get().fake() != nullptr ? std::min<size_t>(ids, most) : ids;
}

eplb::placement placement_of(const layer_placement &layer, std::vector<int32_t> layers = {3}) {
    eplb::placement_config config;
    config.num_experts = layer.num_experts;
    config.num_ranks = layer.num_ranks;
    config.num_slots = static_cast<uint32_t>(layer.experts.size());
    std::vector<int32_t> experts;
    for (size_t i = 0; i < layers.size(); i++) {
        experts.insert(experts.end(), layer.experts.begin(), layer.experts.end());
    }
    return eplb::placement::create(config, layers, experts);
}

/// Each expert somewhere and the rest anywhere: as a foreign solver may place them, with duplicates.
layer_placement a_placement(uint32_t num_experts, uint32_t num_ranks, uint32_t spare_a_rank, uint64_t seed) {
    std::mt19937_64 random(seed);
    const uint32_t slots = (num_experts + num_ranks - 1) / num_ranks * num_ranks + spare_a_rank * num_ranks;
    std::vector<int32_t> experts(slots);
    for (uint32_t slot = 0; slot < slots; slot++) {
        // Low ones are hot.
        experts[slot] =
            static_cast<int32_t>(slot < num_experts ? slot : random() % (random() % num_experts + 1));
    }
    std::shuffle(experts.begin(), experts.end(), random);
    return {num_experts, num_ranks, experts};
}

eplb::dispatch_config a_config(const layer_placement &layer, eplb_route rule, uint32_t choices = 1) {
    eplb::dispatch_config config;
    config.num_ranks = layer.num_ranks;
    config.experts_per_token = choices;
    config.rule = rule;
    config.device = engine::get().device();
    return config;
}

/// Everything a stream was given is done, and what lies there is told.
template <class T> std::vector<T> download(const T *data, size_t size, const engine_stream &stream) {
    std::vector<T> values(size);
    stream.synchronize();
    if (size == 0) {
        return values;
    }
    if (engine::get().is_cuda()) {
        engine::check(engine::get().driver().cuMemcpyDtoH_v2(
                          values.data(), reinterpret_cast<CUdeviceptr>(data), size * sizeof(T)),
                      "cuMemcpyDtoH");
    } else {
        std::memcpy(values.data(), data, size * sizeof(T));
    }
    return values;
}

struct how {
    bool in_place = false;
    /// Ids by which the arrays are off what vector loads want.
    size_t skew = 0;
    const int32_t *num_valid = nullptr;
};

template <class Id>
std::vector<Id> routed(const eplb::dispatch &dispatch, const std::vector<Id> &ids, uint32_t choices,
                       how how = {}, int32_t layer = 3) {
    engine_stream stream;
    std::vector<Id> padded(how.skew, 7);
    padded.insert(padded.end(), ids.begin(), ids.end());
    engine_array<Id> in(padded.size() + 1), out(padded.size() + 1);
    const std::vector<Id> garbage(padded.size() + 1, 77);
    in.upload(padded, stream);
    out.upload(garbage, stream);
    Id *target = (how.in_place ? in : out).data() + how.skew;
    dispatch.route(layer, in.data() + how.skew, dtype<Id>, static_cast<uint32_t>(ids.size() / choices),
                   how.num_valid, target, stream);
    if (!how.in_place) {
        const auto after = download(out.data(), padded.size() + 1, stream);
        for (size_t i = 0; i < how.skew; i++) {
            EXPECT_EQ(after[i], 77) << "written before the slots";
        }
        EXPECT_EQ(after.back(), 77) << "written behind the slots";
        EXPECT_EQ(download(in.data(), padded.size(), stream), padded) << "the ids were written to";
    }
    return download<Id>(target, ids.size(), stream);
}

using ids32 = std::vector<int32_t>;

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

/// Expert 0 on the first slot of each of `replicas` ranks, one slot for it a rank.
layer_placement one_hot(uint32_t replicas) {
    std::vector<int32_t> experts;
    for (uint32_t rank = 0; rank < replicas; rank++) {
        experts.insert(experts.end(), {0, static_cast<int32_t>(rank) + 1});
    }
    return {replicas + 1, replicas, experts};
}

} // namespace

// Slots 0 1 2 | 3 4 5 hold experts 0 1 2 | 3 0 1: expert 0 is in slots 0 and 4, expert 1 in 1 and 5.
const layer_placement small = {4, 2, {0, 1, 2, 3, 0, 1}};

TEST(Dispatch, RoundRobinTakesAnExpertsSlotsInTurn) {
    const auto placement = placement_of(small);
    auto config = a_config(small, EPLB_ROUTE_ROUND_ROBIN, 2);
    const ids32 ids = {0, 1, 0, 2, 0, 1, 3, -1, 1, 4};
    EXPECT_EQ(routed(eplb::dispatch::create(placement, config), ids, 2),
              (ids32{0, 1, 4, 2, 0, 5, 3, 6, 1, 6}));
    // Rank 1 begins with the second slot of each.
    config.rank = 1;
    config.offset_by_rank = true;
    EXPECT_EQ(routed(eplb::dispatch::create(placement, config), ids, 2),
              (ids32{4, 5, 0, 2, 4, 1, 3, 6, 5, 6}));
}

TEST(Dispatch, TokenHashGoesByTheRow) {
    const auto dispatch =
        eplb::dispatch::create(placement_of(small), a_config(small, EPLB_ROUTE_TOKEN_HASH, 2));
    // 2654435769 t mod 2^32: 0, 2654435769, 1013904242, 3668340011: even, odd, even, odd.
    EXPECT_EQ(routed(dispatch, ids32{0, 1, 0, 1, 1, 2, 0, 9}, 2), (ids32{0, 1, 4, 5, 1, 2, 4, 6}));
}

TEST(Dispatch, NearestKeepsTokensOnTheirRank) {
    const auto placement = placement_of(small);
    for (uint32_t rank = 0; rank < 2; rank++) {
        auto config = a_config(small, EPLB_ROUTE_NEAREST, 2);
        config.rank = rank;
        const int32_t zero = rank == 0 ? 0 : 4, one = rank == 0 ? 1 : 5;
        EXPECT_EQ(routed(eplb::dispatch::create(placement, config), ids32{0, 1, 1, 0, 2, 0, 3, 0}, 2),
                  (ids32{zero, one, one, zero, 2, zero, 3, zero}));
    }
}

TEST(Dispatch, LeastLoadedLevelsTheBatch) {
    // Rank 0 has expert 2 five times. Expert 0 four times: all to rank 1, 5 and 4. Expert 1 three times: one
    // to rank 0 and two to rank 1 make 6 and 6. Dealt again, nothing changes.
    const auto dispatch =
        eplb::dispatch::create(placement_of(small), a_config(small, EPLB_ROUTE_LEAST_LOADED));
    EXPECT_EQ(routed(dispatch, ids32{1, 0, 2, 2, 0, 1, 2, 0, 2, 1, 0, 2}, 1),
              (ids32{1, 4, 2, 2, 4, 5, 2, 4, 2, 5, 4, 2}));
    // The default is this rule.
    const auto standard = eplb::dispatch::create(placement_of(small), a_config(small, EPLB_ROUTE_DEFAULT));
    EXPECT_EQ(routed(standard, ids32{1, 0, 2, 2, 0, 1, 2, 0, 2, 1, 0, 2}, 1),
              (ids32{1, 4, 2, 2, 4, 5, 2, 4, 2, 5, 4, 2}));
}

TEST(Dispatch, AnIndependentRoundRobinAgreesOnEveryId) {
    uint64_t seed = 0;
    for (const uint32_t experts : {8u, 60u, 72u, 128u, 256u, 384u}) {
        for (const uint32_t ranks : {1u, 2u, 8u, 36u, 72u}) {
            seed++;
            const auto layer = a_placement(experts, ranks, seed % 4, seed);
            const uint32_t choices = static_cast<uint32_t>(seed % 8 + 1),
                           rank = static_cast<uint32_t>(seed % ranks);
            auto config = a_config(layer, EPLB_ROUTE_ROUND_ROBIN, choices);
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

template <class Id> class DispatchOf : public testing::Test {};
using id_types = testing::Types<int32_t, int64_t>;
TYPED_TEST_SUITE(DispatchOf, id_types);

TYPED_TEST(DispatchOf, EveryRuleGivesItsSlots) {
    using Id = TypeParam;
    engine_stream stream;
    engine_array<int32_t> num_valid(1);
    uint64_t seed = 0;
    // 1500 slots are more than fit a warp's lanes as groups; 3000 experts have no rows in shared memory.
    for (const auto &[experts, ranks, spare] :
         {std::array<uint32_t, 3>{8, 2, 3}, {64, 8, 1}, {256, 8, 8}, {60, 60, 24}, {3000, 4, 5}}) {
        const auto layer = a_placement(experts, ranks, spare, ++seed);
        const auto placement = placement_of(layer);
        for (const eplb_route rule : all_rules) {
            const uint32_t choices = seed % 2 == 0 ? 6 : 1;
            auto config = a_config(layer, rule, choices);
            config.rank = ranks - 1;
            for (uint32_t rank = 0; rank < ranks; rank++) {
                config.rank_to_node.push_back(static_cast<int32_t>(rank * 3 / ranks));
            }
            const auto dispatch = eplb::dispatch::create(placement, config);
            routing source(experts, choices, seed);
            for (const size_t tokens : {size_t(0), size_t(1), size_t(170), size_t(700)}) {
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
                    case EPLB_ROUTE_ROUND_ROBIN:
                        expected = round_robin(layer, ids, valid_ids, 0);
                        break;
                    case EPLB_ROUTE_TOKEN_HASH:
                        expected = token_hash(layer, ids, valid_ids, choices);
                        break;
                    case EPLB_ROUTE_LEAST_LOADED:
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

TYPED_TEST(DispatchOf, LargeBatchesOfLeastLoadedAreTheSameInAnyNumberOfBlocks) {
    using Id = TypeParam;
    // More than 64 blocks of 1024 ids take several at a time.
    const auto layer = a_placement(16, 4, 2, 5);
    const auto dispatch =
        eplb::dispatch::create(placement_of(layer), a_config(layer, EPLB_ROUTE_LEAST_LOADED));
    routing source(16, 1, 3);
    for (const size_t size : {size_t(3000), size_t(70000)}) {
        const auto ids = source.ids<Id>(size);
        EXPECT_EQ(routed(dispatch, ids, 1), least_loaded(layer, ids, ids.size()));
    }
}

TEST(Dispatch, CountsOfMoreThan32BitsAreLevelledAsOnTheHost) {
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
    auto config = a_config(layer, EPLB_ROUTE_LEAST_LOADED, 4);
    auto there = eplb::dispatch::create(placement, config);
    config.device = EPLB_DEVICE_HOST;
    auto here = eplb::dispatch::create(placement, config);
    there.register_rank_counts(3, counts_there.data(), EPLB_DTYPE_INT64);
    here.register_rank_counts(3, counts.data(), EPLB_DTYPE_INT64);
    for (const size_t tokens : {10, 700}) {
        const auto ids = routing(24, 4, 2).ids<int32_t>(tokens);
        ids32 slots(ids.size());
        here.route(3, ids.data(), EPLB_DTYPE_INT32, static_cast<uint32_t>(tokens), nullptr, slots.data());
        EXPECT_EQ(routed(there, ids, 4), slots);
    }
}

TEST(Dispatch, WithAllRanksCountsTheRanksLevelTheirSum) {
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
    const auto quotas = level(layer, totals);
    for (const auto &expert : quotas) {
        for (const auto &[rank, quota] : expert) {
            expected_loads[rank] += quota;
        }
    }
    const auto slots = layer.all_slots();
    for (uint32_t expert = 0; expert < 24; expert++) {
        if (slots[expert].size() == 1) {
            expected_loads[layer.rank_of(slots[expert][0])] += totals[expert];
        }
    }
    for (uint32_t rank = 0; rank < 4; rank++) {
        auto config = a_config(layer, EPLB_ROUTE_LEAST_LOADED, 4);
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
        // A batch that the counts do not tell of is served all the same.
        const auto other = source.ids<int32_t>(300);
        EXPECT_EQ(routed(dispatch, other, 4), least_loaded(layer, other, other.size(), rank, counts));
        dispatch.register_rank_counts(3, nullptr, EPLB_DTYPE_INT32);
        EXPECT_EQ(routed(dispatch, other, 4), least_loaded(layer, other, other.size()));
    }
    EXPECT_EQ(rank_loads, expected_loads);
    const std::vector<double> told = eplb::dispatch::expected_load(
        placement, a_config(layer, EPLB_ROUTE_LEAST_LOADED, 4), 3, gathered, true);
    EXPECT_EQ(told, std::vector<double>(rank_loads.begin(), rank_loads.end()));
    ids32 recorded;
    std::vector<uint32_t> tokens;
    for (const ids32 &batch : batches) {
        recorded.insert(recorded.end(), batch.begin(), batch.end());
        tokens.push_back(static_cast<uint32_t>(batch.size() / 4));
    }
    const std::vector<double> of_ids = eplb::dispatch::routed_load<int32_t>(
        placement, a_config(layer, EPLB_ROUTE_LEAST_LOADED, 4), 3, recorded, tokens, true);
    EXPECT_EQ(of_ids, told);
}

TEST(Dispatch, TheLoadThatIsToldIsThatOfRoutedIds) {
    const auto layer = a_placement(24, 4, 3, 9);
    const auto placement = placement_of(layer);
    for (const eplb_route rule : all_rules) {
        routing source(24, 4, 2);
        std::vector<int64_t> counts(4 * 24), recorded;
        std::vector<uint32_t> tokens;
        std::vector<double> found(4);
        auto config = a_config(layer, rule, 4);
        config.rank_to_node = {0, 0, 5, 5};
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
        const std::vector<double> exact =
            eplb::dispatch::routed_load<int64_t>(placement, config, 3, recorded, tokens);
        EXPECT_EQ(exact, found) << "rule " << rule;
        const std::vector<double> told = eplb::dispatch::expected_load(placement, config, 3, counts);
        for (size_t rank = 0; rank < 4; rank++) {
            // Exact where the rule goes by counts; what goes by rows or turns is near.
            EXPECT_NEAR(told[rank], found[rank], rule == EPLB_ROUTE_LEAST_LOADED ? 0 : 0.03 * found[rank])
                << "rule " << rule << ", rank " << rank;
        }
    }
}

TEST(Dispatch, AHotExpertsReplicasGetEquallyMuch) {
    for (const uint32_t replicas : {2u, 3u, 4u, 8u, 16u}) {
        const auto layer = one_hot(replicas);
        const auto placement = placement_of(layer);
        // One expert a token, as many as there are replicas, and one more than that; expert 0 among the
        // choices of each.
        for (const uint32_t choices : {1u, replicas, replicas + 1}) {
            ids32 ids(1024 * choices, -1);
            for (size_t token = 0; token < 1024; token++) {
                ids[token * choices + token % choices] = 0;
            }
            const auto slots = layer.slots_of(0);
            const auto counts = [&](eplb_route rule, const ids32 &these) {
                return slot_counts(
                    routed(eplb::dispatch::create(placement, a_config(layer, rule, choices)), these, choices),
                    layer.experts.size());
            };
            EXPECT_LT(max_over_mean(counts(EPLB_ROUTE_TOKEN_HASH, ids), slots), 1.15)
                << replicas << " replicas";
            const ids32 block(ids.begin(),
                              ids.begin() + static_cast<std::ptrdiff_t>(1024 / choices * choices));
            for (const auto &[rule, these] :
                 {std::pair(EPLB_ROUTE_ROUND_ROBIN, block), std::pair(EPLB_ROUTE_LEAST_LOADED, ids)}) {
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

TEST(Dispatch, NearestLeavesItsNodeNoMoreThanFairnessDemands) {
    // Expert 0 on ranks 0 and 1 of node 1 and rank 2 of node 2; four ranks with 1024 tokens each. Fair is
    // 4096 / 3 = 1365.3, and 1706.7 at most: rank 2 keeps its 1024, rank 3 sends it 682.7 and the others
    // 170.7 each.
    const layer_placement layer = {6, 4, {0, 1, 0, 2, 0, 4, 3, 5}};
    const auto placement = placement_of(layer);
    std::vector<double> sum(9);
    double crossed = 0;
    for (uint32_t rank = 0; rank < 4; rank++) {
        auto config = a_config(layer, EPLB_ROUTE_NEAREST);
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

TEST(Dispatch, TablesAreThoseOfTensorRtLlmAndStayWhereTheyAre) {
    auto config = a_config(small, EPLB_ROUTE_ROUND_ROBIN);
    config.max_replicas = 3;
    const auto dispatch = eplb::dispatch::create(placement_of(small, {3, 7}), config);
    engine_stream stream;
    for (const int32_t layer : {7, 3}) {
        const eplb_dispatch_tables tables = dispatch.tables(layer);
        EXPECT_EQ(download(tables.replica_count, 4, stream), (ids32{2, 2, 1, 1}));
        EXPECT_EQ(download(tables.replica_start, 4, stream), (ids32{0, 2, 4, 5}));
        EXPECT_EQ(download(tables.slot_ids, 6, stream), (ids32{0, 4, 1, 5, 2, 3}));
        EXPECT_EQ(download(tables.expert_slots, 12, stream),
                  (ids32{0, 4, -1, 1, 5, -1, 2, -1, -1, 3, -1, -1}));
        EXPECT_EQ(tables.num_experts, 4u);
        EXPECT_EQ(tables.num_slots, 6u);
        EXPECT_EQ(tables.slots_per_rank, 3u);
        routed(dispatch, ids32{0, 1, 2}, 1, {}, layer);
        const eplb_dispatch_tables again = dispatch.tables(layer);
        EXPECT_EQ(again.slot_ids, tables.slot_ids);
        EXPECT_EQ(again.replica_count, tables.replica_count);
    }
    config.max_replicas = 0;
    const eplb_dispatch_tables tables = eplb::dispatch::create(placement_of(small), config).tables(3);
    EXPECT_EQ(tables.expert_slots, nullptr);
}

TEST(Dispatch, InfoTellsWhatIsServedAndHow) {
    const auto placement = placement_of(small, {3, 7});
    auto config = a_config(small, EPLB_ROUTE_DEFAULT);
    config.rank = 1;
    config.max_replicas = 3;
    config.layer_ids = {7};
    auto dispatch = eplb::dispatch::create(placement, config);
    eplb_dispatch_info info = dispatch.info();
    EXPECT_EQ(info.placement_hash, placement.hash()) << "that of all layers, which all ranks have in common";
    EXPECT_EQ(info.memory_bytes, eplb::dispatch::memory_required(placement, config));
    EXPECT_EQ(info.rule, EPLB_ROUTE_LEAST_LOADED) << "which is the default";
    EXPECT_EQ(info.rank, 1u);
    EXPECT_EQ(info.num_ranks, 2u);
    EXPECT_EQ(info.num_experts, 4u);
    EXPECT_EQ(info.num_slots, 6u);
    EXPECT_EQ(info.slots_per_rank, 3u);
    EXPECT_EQ(info.experts_per_token, config.experts_per_token);
    EXPECT_EQ(info.max_replicas, 3u);
    EXPECT_EQ(info.num_layers, 1u);
    EXPECT_EQ(info.num_layers_with_rank_counts, 0u);
    const engine_array<int64_t> rank_counts(2 * 4);
    dispatch.register_rank_counts(7, rank_counts.data(), EPLB_DTYPE_INT64);
    EXPECT_EQ(dispatch.info().num_layers_with_rank_counts, 1u);
    dispatch.register_rank_counts(7, nullptr, EPLB_DTYPE_INT64);
    EXPECT_EQ(dispatch.info().num_layers_with_rank_counts, 0u);
    for (const eplb_route rule : {EPLB_ROUTE_ROUND_ROBIN, EPLB_ROUTE_TOKEN_HASH, EPLB_ROUTE_NEAREST}) {
        EXPECT_EQ(eplb::dispatch::create(placement, a_config(small, rule)).info().rule, rule);
    }
}

TEST(Dispatch, ALaterPlacementInTheSameWorkspaceHasItsTablesAtTheSameAddresses) {
    const engine_stream stream;
    for (const eplb_route rule : all_rules) {
        std::unique_ptr<engine_array<char>> workspace;
        std::vector<eplb_dispatch_tables> seen;
        for (const uint64_t seed : {1, 2, 3}) {
            const auto layer = a_placement(60, 4, 3, seed);
            const auto placement = placement_of(layer, {3, 7});
            auto config = a_config(layer, rule, 2);
            config.rank_to_node = {0, 0, 1, 1};
            config.max_replicas = static_cast<uint32_t>(layer.experts.size());
            const size_t required = eplb::dispatch::memory_required(placement, config);
            if (workspace == nullptr) {
                workspace = std::make_unique<engine_array<char>>(required + 64);
                const std::vector<char> dirt(required + 64, 0x55);
                workspace->upload(dirt, stream);
                stream.synchronize();
            }
            config.workspace = workspace->data();
            config.workspace_bytes = required - 1;
            EXPECT_THROW(eplb::dispatch::create(placement, config), eplb::error);
            config.workspace_bytes = required;
            const auto dispatch = eplb::dispatch::create(placement, config);
            for (const int32_t number : {3, 7}) {
                seen.push_back(dispatch.tables(number));
                EXPECT_EQ(seen.back().memory_bytes, required);
                const auto ids = routing(60, 2, seed).ids<int32_t>(700);
                config.workspace = nullptr;
                EXPECT_EQ(routed(dispatch, ids, 2, {}, number),
                          routed(eplb::dispatch::create(placement, config), ids, 2, {}, number));
            }
            const std::vector<char> behind = download(workspace->data() + required, 64, stream);
            EXPECT_EQ(behind, std::vector<char>(64, 0x55)) << "written behind the workspace";
        }
        for (size_t i = 2; i < seen.size(); i++) {
            EXPECT_EQ(seen[i].replica_count, seen[i - 2].replica_count);
            EXPECT_EQ(seen[i].replica_start, seen[i - 2].replica_start);
            EXPECT_EQ(seen[i].slot_ids, seen[i - 2].slot_ids);
            EXPECT_EQ(seen[i].expert_slots, seen[i - 2].expert_slots);
        }
    }
}

TEST(Dispatch, AGraphRoutesWhatIsInItsBuffersAtEachReplay) {
    const auto layer = a_placement(64, 8, 2, 4);
    for (const eplb_route rule : all_rules) {
        const auto dispatch = eplb::dispatch::create(placement_of(layer), a_config(layer, rule, 4));
        engine_stream stream;
        engine_array<int32_t> ids(2400), slots(2400), valid(1);
        const engine_graph graph(stream, [&] {
            dispatch.route(3, ids.data(), EPLB_DTYPE_INT32, 600, valid.data(), slots.data(), stream);
        });
        routing source(64, 4, 8);
        for (const int32_t tokens : {600, 100, 0, 599}) {
            const ids32 batch = source.ids<int32_t>(600), count = {tokens};
            ids.upload(batch, stream);
            valid.upload(count, stream);
            graph.replay(stream);
            const auto found = download(slots.data(), 2400, stream);
            how way;
            way.num_valid = valid.data();
            EXPECT_EQ(found, routed(dispatch, batch, 4, way)) << "rule " << rule;
        }
    }
}

TEST(Dispatch, CountsWhatItRoutesInTheSamePass) {
    const auto layer = a_placement(64, 8, 2, 4);
    const auto placement = placement_of(layer);
    for (const eplb_counted counted : {EPLB_COUNTED_EXPERTS, EPLB_COUNTED_SLOTS}) {
        const uint32_t cells = counted == EPLB_COUNTED_SLOTS ? static_cast<uint32_t>(layer.num_slots()) : 64;
        for (const bool wide : {false, true}) {
            for (const eplb_route rule : all_rules) {
                const temporary_directory directory;
                eplb::recorder_config recording;
                recording.path = directory / "dump";
                recording.iter_stop = 2;
                recording.num_ranks = 1;
                recording.num_experts = cells;
                recording.experts_per_token = 4;
                recording.layer_ids = {3};
                recording.counted = counted;
                recording.device = engine::get().device();
                recording.max_tokens_per_iteration = wide ? uint64_t(1) << 32 : 0;
                const auto recorder = eplb::recorder::create(recording);
                const auto dispatch = eplb::dispatch::create(placement, a_config(layer, rule, 4));
                engine_stream stream;
                engine_array<int32_t> ids(2400), valid(1);
                const engine_graph graph(stream, [&] {
                    dispatch.route_and_count(recorder, 3, ids.data(), EPLB_DTYPE_INT32, 600, valid.data(),
                                             ids.data(), stream);
                });
                counts expected(cells);
                routing source(64, 4, 8);
                const std::vector<int32_t> tokens = {500};
                valid.upload(tokens, stream);
                // What comes before the range is routed and not counted.
                const ids32 warm_up = source.ids<int32_t>(600);
                ids.upload(warm_up, stream);
                graph.replay(stream);
                how way;
                way.num_valid = valid.data();
                // Here and below, what is compared comes after: two streams do not share a layer's workspace.
                const auto first = download(ids.data(), 2400, stream);
                EXPECT_EQ(first, routed(dispatch, warm_up, 4, way));
                for (int64_t iteration = 0; iteration < 2; iteration++) {
                    const ids32 batch = source.ids<int32_t>(600);
                    ids.upload(batch, stream);
                    recorder.begin_iteration(iteration, stream);
                    graph.replay(stream);
                    const auto slots = download(ids.data(), 2400, stream);
                    EXPECT_EQ(slots, routed(dispatch, batch, 4, way));
                    expected.add(counted == EPLB_COUNTED_SLOTS ? slots : batch, 4, 500);
                }
                recorder.begin_iteration(2, stream);
                recorder.flush();
                const eplb_recorder_info info = recorder.info();
                EXPECT_EQ(info.ids_counted, expected.counted);
                EXPECT_EQ(info.ids_out_of_range, expected.out_of_range);
                EXPECT_EQ(info.ids_padding, expected.padding);
                const auto stats = eplb::stats::load(directory / "dump");
                EXPECT_EQ(stats.layer_loads(3), expected.experts) << "rule " << rule;
            }
        }
    }
}

TEST(Dispatch, WhatDoesNotFitIsRefusedByName) {
    const auto placement = placement_of(small);
    const auto good = a_config(small, EPLB_ROUTE_ROUND_ROBIN, 2);
    const auto message = [](const std::function<void()> &call) -> std::string {
        try {
            call();
        } catch (const eplb::error &error) {
            EXPECT_EQ(error.status(), EPLB_STATUS_INVALID_ARGUMENT);
            return error.what();
        }
        return "nothing";
    };
    const auto refused = [&](const std::function<void(eplb::dispatch_config &)> &change) {
        auto config = good;
        change(config);
        return message([&] { eplb::dispatch::create(placement, config); });
    };
    EXPECT_EQ(refused([](auto &c) { c.num_ranks = 4; }), "config->num_ranks is 4, the placement has 2 ranks");
    EXPECT_EQ(refused([](auto &c) { c.num_slots = 8; }), "config->num_slots is 8, the placement has 6 slots");
    EXPECT_EQ(refused([](auto &c) { c.rank = 2; }), "rank is 2, the placement has 2 ranks");
    EXPECT_EQ(refused([](auto &c) { c.experts_per_token = 5; }),
              "experts_per_token is 5, 1 to the 4 experts of the placement expected");
    EXPECT_EQ(refused([](auto &c) {
                  c.layer_ids = {3, 61};
              }),
              "layer 61 is not in this placement of 1 layers from 3 to 3");
    EXPECT_EQ(refused([](auto &c) { c.layer_ids = {3, 3}; }), "layer_ids names layer 3 twice");
    EXPECT_EQ(refused([](auto &c) { c.max_replicas = 1; }),
              "max_replicas is 1, and expert 0 of layer 3 has 2 slots");
    EXPECT_EQ(refused([](auto &c) { c.max_replicas = UINT32_MAX; }),
              "max_replicas is 4294967295, and no expert can have more than the 6 slots of the placement");
    EXPECT_EQ(refused([](auto &c) { c.rule = static_cast<eplb_route>(9); }),
              "rule is 9, which is no eplb_route");

    auto dispatch = eplb::dispatch::create(placement, good);
    engine_array<int32_t> ids(8);
    const auto call = [&](int32_t layer, uint32_t tokens, int32_t *slots) {
        return message([&] { dispatch.route(layer, ids.data(), EPLB_DTYPE_INT32, tokens, nullptr, slots); });
    };
    EXPECT_EQ(call(4, 2, ids.data()),
              "layer 4 is not one of the 1 that the dispatch was created with, from 3 to 3");
    EXPECT_EQ(call(3, 2, nullptr), "slot_ids is NULL");
    EXPECT_EQ(call(3, 2, ids.data() + 3), "slot_ids overlaps expert_ids: they may be the same array, or two");
    EXPECT_EQ(call(3, 1u << 31, ids.data()).substr(0, 54),
              "2147483648 tokens of 2 ids are more than the 214748364");
    EXPECT_EQ(message([&] { dispatch.register_rank_counts(3, ids.data(), EPLB_DTYPE_INT32); }),
              "only EPLB_ROUTE_LEAST_LOADED goes by the counts of all ranks");

    const temporary_directory directory;
    eplb::recorder_config recording;
    recording.path = directory / "dump";
    recording.iter_stop = 2;
    recording.num_ranks = 1;
    recording.num_experts = 6;
    recording.experts_per_token = 2;
    recording.layer_ids = {3};
    recording.device = engine::get().device();
    const auto recorder = eplb::recorder::create(recording);
    EXPECT_EQ(message([&] {
                  dispatch.route_and_count(recorder, 3, ids.data(), EPLB_DTYPE_INT32, 1, nullptr, ids.data());
              }),
              "the recorder counts 6 experts and 2 ids a token, the dispatch has 4 and 2");
}

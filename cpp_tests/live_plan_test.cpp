// eplb_rebalancer and eplb_plan, by eplb_live.hpp where it has the call: on the host, without a driver.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <eplb_live.hpp>
#include <thread>

#include "exposition.h"

template <class Handle>
constexpr bool moves_and_does_not_copy =
    std::is_nothrow_move_constructible_v<Handle> &&std::is_nothrow_move_assignable_v<Handle> &&
    !std::is_copy_constructible_v<Handle> && !std::is_copy_assignable_v<Handle>;
static_assert(moves_and_does_not_copy<eplb::plan>);
static_assert(moves_and_does_not_copy<eplb::rebalancer>);

namespace {

using slots = std::vector<int32_t>;
using counts = std::vector<int64_t>;

/// 4 experts on 2 ranks, layers 3 and 5 of the same slots.
eplb::placement a_placement(const slots &experts = {0, 1, 2, 3}, bool allow_empty_slots = false) {
    eplb::placement_config config;
    config.num_experts = 4;
    config.num_ranks = 2;
    config.num_slots = static_cast<uint32_t>(experts.size());
    config.allow_empty_slots = allow_empty_slots;
    slots both = experts;
    both.insert(both.end(), experts.begin(), experts.end());
    return eplb::placement::create(config, slots{3, 5}, both);
}

/// No gate holds its plans back.
eplb::rebalancer_config without_gates() {
    eplb::rebalancer_config config;
    config.experts_per_token = 1;
    config.min_tokens = config.cooldown = -1;
    config.trigger = config.release = config.min_gain = config.min_relative_gain = config.noise = -1;
    return config;
}

/// In layer 3 rank 0 has 180 of 200 tokens; layer 5 is even.
const counts uneven = {90, 90, 10, 10, 50, 50, 50, 50};

slots values(eplb::view<int32_t> view) { return {view.begin(), view.end()}; }

/// The status and the message of a call that is refused.
template <class Call> std::pair<eplb_status, std::string> refused(const Call &call) {
    try {
        call();
    } catch (const eplb::error &error) {
        return {error.status(), error.what()};
    }
    return {EPLB_STATUS_OK, ""};
}

using refusal = std::pair<eplb_status, std::string>;

} // namespace

TEST(LivePlan, LoopMovesTheHotExpertsApart) {
    const auto placement = a_placement();
    auto rebalancer = eplb::rebalancer::create(without_gates(), placement);
    eplb::dispatch_config routing;
    routing.num_ranks = 2;
    routing.experts_per_token = 1;
    routing.live = true;
    const auto dispatch = eplb::dispatch::create(placement, routing);
    rebalancer.observe(uneven, 1, 200);
    const auto plan = rebalancer.plan();
    const eplb_plan_info info = plan.info();
    EXPECT_EQ(info.decision, EPLB_DECISION_MOVE);
    EXPECT_EQ(info.reason, EPLB_KEEP_REASON_NONE);
    EXPECT_STREQ(info.message, "2 slots of 1 layers receive an expert");
    EXPECT_EQ(info.agreement[0], ~info.agreement[1]);
    EXPECT_EQ(values(plan.layer_ids()), slots{3});
    EXPECT_EQ(info.num_moves, 2u);
    EXPECT_EQ(info.staging_slots, 1u);
    EXPECT_EQ(info.num_rounds, 1u);
    // Layer 3: 100 of 180, then 100 of 100. Layer 5 is even before and after.
    EXPECT_DOUBLE_EQ(info.balance_before, (100.0 / 180 + 1) / 2);
    EXPECT_DOUBLE_EQ(info.balance_after, 1);
    EXPECT_DOUBLE_EQ(info.balance_bound, 1);

    const eplb_planned_layer layer = plan.layer_info(3);
    EXPECT_EQ(layer.generation, 1u);
    EXPECT_EQ(layer.num_moves, 2u);
    EXPECT_EQ(layer.num_commits, 1u);
    EXPECT_EQ(layer.buffering, EPLB_BUFFERING_STAGED);
    EXPECT_DOUBLE_EQ(layer.balance_before, 100.0 / 180);
    EXPECT_DOUBLE_EQ(layer.balance_after, 1);

    // One hot expert and one cold one change places: each rank sends and receives once, in one round.
    const slots before = {0, 1, 2, 3}, after = values(plan.layer_experts(3));
    const auto transfers = plan.transfers(3);
    ASSERT_EQ(transfers.size(), 2u);
    slots weights = before;
    for (const eplb_transfer &transfer : transfers) {
        EXPECT_EQ(transfer.layer, 3);
        EXPECT_EQ(transfer.round, 0u);
        EXPECT_EQ(transfer.kind, EPLB_TRANSFER_KIND_NODE);
        EXPECT_EQ(transfer.src_rank, transfer.src_slot / 2);
        EXPECT_EQ(transfer.dst_rank, transfer.dst_slot / 2);
        EXPECT_NE(transfer.src_rank, transfer.dst_rank);
        EXPECT_EQ(before[static_cast<size_t>(transfer.src_slot)], transfer.expert);
        weights[static_cast<size_t>(transfer.dst_slot)] = transfer.expert;
        EXPECT_EQ(plan.num_readers(3, static_cast<uint32_t>(transfer.src_slot)), 1u);
    }
    EXPECT_EQ(weights, after);
    for (const int32_t rank : {0, 1}) {
        EXPECT_EQ(plan.transfers(3, rank).size(), 2u) << "one to send, one to receive";
    }

    eplb::update_layer(dispatch, plan, 3);
    rebalancer.commit_layer(plan, 3);
    EXPECT_EQ(eplb::generation(dispatch, 3), 2u);
    EXPECT_EQ(eplb::generation(dispatch, 5), 1u);
    EXPECT_EQ(values(rebalancer.placement().layer_experts(3)), after);
    EXPECT_EQ(values(rebalancer.placement().layer_experts(5)), before);
    const int32_t ids[4] = {0, 1, 2, 3};
    int32_t routed[4];
    dispatch.route(3, ids, 4, nullptr, routed);
    for (size_t i = 0; i < 4; i++) {
        EXPECT_EQ(after[static_cast<size_t>(routed[i])], ids[i]);
    }

    rebalancer.observe(uneven, 1, 200);
    EXPECT_EQ(eplb_plan_info(rebalancer.plan().info()).reason, EPLB_KEEP_REASON_BALANCED);
    const eplb_rebalancer_info state = rebalancer.info();
    EXPECT_EQ(state.num_layers, 2u);
    EXPECT_EQ(state.layer_ids[0], 3);
    EXPECT_EQ(state.generations[0], 2u);
    EXPECT_EQ(state.generations[1], 1u);
    EXPECT_EQ(state.num_observations, 2u);
    EXPECT_EQ(state.num_windows, 2u);
    EXPECT_EQ(state.num_tokens, 400u);
    EXPECT_EQ(state.num_layers_in_flight, 0u);
    EXPECT_EQ(state.num_active_ranks, 2u);
    EXPECT_EQ(state.num_lost_experts, 0u);
    EXPECT_EQ(state.num_plans, 1u);
    EXPECT_EQ(state.num_kept[EPLB_KEEP_REASON_BALANCED], 1u);
    EXPECT_EQ(state.num_commits, 1u);
    EXPECT_EQ(state.num_moves, 2u);
    EXPECT_DOUBLE_EQ(state.balance, 1);
    EXPECT_DOUBLE_EQ(state.balance_promised, 1);
    EXPECT_DOUBLE_EQ(state.balance_measured, 1);
}

TEST(LivePlan, SnapshotsOfARollingRecorderArePlannedFrom) {
    eplb::recorder_config counting;
    counting.num_ranks = 2;
    counting.num_experts = 4;
    counting.experts_per_token = 1;
    counting.layer_ids = {3, 5};
    counting.rolling_iterations = 4;
    auto recorder = eplb::recorder::create(counting);
    const int32_t hot[4] = {0, 1, 0, 1}, even[4] = {0, 1, 2, 3};
    for (int64_t iteration = 0; iteration < 4; iteration++) {
        recorder.begin_iteration(iteration);
        recorder.count_ids(3, hot, 4);
        recorder.count_ids(5, even, 4);
    }
    counts window(2 * 8);
    eplb::snapshot(recorder, window.data(), 2);
    EXPECT_EQ(window, (counts{4, 4, 0, 0, 2, 2, 2, 2, 4, 4, 0, 0, 2, 2, 2, 2}));
    auto rebalancer = eplb::rebalancer::create(without_gates(), a_placement());
    rebalancer.observe(window, 2, 16);
    EXPECT_EQ(values(rebalancer.plan().layer_ids()), slots{3});
}

TEST(LivePlan, PlansBetweenPlacementsKeepSlotsInPlace) {
    // Expert 1 leaves rank 0 for rank 1, and 2 goes the other way; 0 and 3 keep their slots.
    const auto from = a_placement(), to = a_placement({2, 0, 3, 1});
    eplb::plan_options options;
    options.rank_to_node = {0, 1};
    const auto plan = eplb::plan::create(from, to, options);
    EXPECT_EQ(values(plan.layer_ids()), (slots{3, 5}));
    EXPECT_EQ(values(plan.layer_experts(3)), (slots{0, 2, 1, 3}));
    for (const eplb_transfer &transfer : plan.transfers(5)) {
        EXPECT_EQ(transfer.kind, EPLB_TRANSFER_KIND_REMOTE);
    }
    const eplb_plan_info info = plan.info();
    EXPECT_EQ(info.num_moves, 4u);
    EXPECT_EQ(info.balance_before, 0);

    const auto same = eplb::plan::create(from, from);
    EXPECT_EQ(eplb_plan_info(same.info()).reason, EPLB_KEEP_REASON_SAME);
    EXPECT_EQ(same.layer_ids().size(), 0u);
}

TEST(LivePlan, TransfersAreCountedBeyondTheCapacity) {
    const auto from = a_placement(), to = a_placement({2, 3, 0, 1});
    const auto plan = eplb::plan::create(from, to);
    eplb_transfer transfers[5] = {};
    size_t number = 0;
    ASSERT_EQ(eplb_plan_transfers(plan.get(), 3, -1, transfers, 1, &number), EPLB_STATUS_OK);
    EXPECT_EQ(number, 4u);
    EXPECT_EQ(transfers[1].kind + transfers[1].expert + transfers[1].dst_slot, 0) << "is not written";
    ASSERT_EQ(eplb_plan_transfers(plan.get(), 3, -1, transfers, 5, &number), EPLB_STATUS_OK);
    EXPECT_EQ(number, 4u);
    EXPECT_EQ(eplb_planned_layer(plan.layer_info(3)).num_rounds, 2u) << "each rank sends two";
    // In the order of rounds, on every rank.
    for (size_t i = 1; i < number; i++) {
        EXPECT_LE(transfers[i - 1].round, transfers[i].round);
    }
}

TEST(LivePlan, DrainedLayersAreCommittedTwice) {
    // The second replica of expert 0, in slot 3, becomes one of expert 1.
    const auto from = a_placement({0, 1, 2, 0, 3, 2}), to = a_placement({0, 1, 2, 1, 3, 2});
    eplb::plan_options options;
    options.buffering = EPLB_BUFFERING_DRAIN;
    const auto plan = eplb::plan::create(from, to, options);
    const eplb_planned_layer layer = plan.layer_info(3);
    EXPECT_EQ(layer.num_commits, 2u);
    EXPECT_EQ(layer.staging_slots, 0u);
    EXPECT_EQ(layer.buffering, EPLB_BUFFERING_DRAIN);
    EXPECT_EQ(values(plan.layer_experts(3, 0)), (slots{0, 1, 2, -1, 3, 2}));
    EXPECT_EQ(values(plan.layer_experts(3, 1)), (slots{0, 1, 2, 1, 3, 2}));
    EXPECT_EQ(refused([&] { plan.layer_experts(3, 2); }),
              refusal(EPLB_STATUS_INVALID_ARGUMENT, "commit 2 of layer 3, which has 2 commits"));

    eplb::dispatch_config routing;
    routing.num_ranks = 2;
    routing.experts_per_token = 1;
    routing.live = true;
    const auto dispatch = eplb::dispatch::create(from, routing);
    for (const uint64_t generation : {2u, 3u}) {
        eplb::stage_layer(dispatch, plan, 3);
        eplb::commit_layer(dispatch, 3);
        EXPECT_EQ(eplb::generation(dispatch, 3), generation);
    }
    EXPECT_EQ(refused([&] { eplb::stage_layer(dispatch, plan, 3); }).first, EPLB_STATUS_STALE);
}

TEST(LivePlan, OneFlippedCountDisagrees) {
    const auto words = [](const counts &observed) {
        auto rebalancer = eplb::rebalancer::create(without_gates(), a_placement());
        rebalancer.observe(observed, 1, 200);
        const eplb_plan_info info = rebalancer.plan().info();
        return std::pair(info.agreement[0], info.agreement[1]);
    };
    const auto agree = [](std::pair<uint64_t, uint64_t> one, std::pair<uint64_t, uint64_t> other) {
        return std::max(one.first, other.first) == ~std::max(one.second, other.second);
    };
    const auto own = words(uneven);
    EXPECT_TRUE(agree(own, words(uneven)));
    EXPECT_FALSE(agree(own, {EPLB_PLAN_DISAGREE, EPLB_PLAN_DISAGREE}));
    for (size_t i = 0; i < uneven.size(); i++) {
        counts flipped = uneven;
        flipped[i] ^= 1;
        EXPECT_FALSE(agree(own, words(flipped))) << "count " << i;
    }
    // A KEEP has words, too.
    const counts even(8, 50);
    EXPECT_TRUE(agree(words(even), words(even)));
    EXPECT_FALSE(agree(words(even), own));
}

TEST(LivePlan, RefusalsSayWhatAndChangeNothing) {
    auto one = eplb::rebalancer::create(without_gates(), a_placement());
    auto other = eplb::rebalancer::create(without_gates(), a_placement());
    one.observe(uneven, 1, 200);
    other.observe(uneven, 1, 200);
    const auto plan = one.plan(), foreign = other.plan();
    const eplb_rebalancer_info before = one.info();
    EXPECT_EQ(refused([&] { one.commit_layer(foreign, 3); }),
              refusal(EPLB_STATUS_INVALID_ARGUMENT, "the plan is not of this rebalancer"));
    EXPECT_EQ(
        refused([&] { one.commit_layer(plan, 5); }),
        refusal(EPLB_STATUS_INVALID_ARGUMENT,
                "the plan does not change layer 5; eplb_plan_get_info() lists the 1 layers that it does"));
    EXPECT_EQ(refused([&] { one.observe({}, 1, 0); }),
              refusal(EPLB_STATUS_INVALID_ARGUMENT, "counts is NULL"));
    counts wrong = uneven;
    wrong[6] = -1;
    EXPECT_EQ(refused([&] { one.observe(wrong, 1, 200); }),
              refusal(EPLB_STATUS_INVALID_LOADS, "sample 0, layer 5, expert 2: the count -1 is negative"));
    wrong[6] = INT64_MAX;
    EXPECT_EQ(refused([&] { one.observe(wrong, 1, 200); }),
              refusal(EPLB_STATUS_INVALID_LOADS,
                      "sample 0, layer 5, expert 2: the counts of the layer exceed 2^53; is "
                      "9223372036854775807 uninitialised?"));
    EXPECT_EQ(
        refused([&] { one.observe(uneven, 1, 200, 1); }),
        refusal(EPLB_STATUS_INVALID_ARGUMENT, "phase 1, of 1 phases; set num_phases of the configuration"));
    EXPECT_EQ(refused([&] {
                  one.set_active_ranks(std::vector<uint8_t>{1, 0});
              }),
              refusal(EPLB_STATUS_NO_REPLICA, "layer 3: the active ranks have 2 slots for 4 experts"));
    EXPECT_EQ(refused([&] { one.set_active_ranks(std::vector<uint8_t>{1}); }),
              refusal(EPLB_STATUS_INVALID_ARGUMENT, "1 ranks, the rebalancer has 2"));
    EXPECT_EQ(refused([&] { one.reset(a_placement({0, 1, 2, 3, 0, 1})); }).first, EPLB_STATUS_INVALID_SHAPE);
    eplb::plan_limits limits;
    limits.horizon = -1;
    EXPECT_EQ(refused([&] { one.plan(limits); }),
              refusal(EPLB_STATUS_INVALID_ARGUMENT, "horizon is -1; a finite number above 0 expected"));
    const eplb_plan_info in_flight = one.plan().info();
    EXPECT_EQ(in_flight.reason, EPLB_KEEP_REASON_IN_FLIGHT);
    const eplb_rebalancer_info after = one.info();
    EXPECT_EQ(after.num_observations, before.num_observations);
    EXPECT_EQ(after.num_layers_in_flight, 1u);
    EXPECT_EQ(after.num_commits, 0u);

    one.abort(plan);
    EXPECT_EQ(refused([&] { one.commit_layer(plan, 3); }).first, EPLB_STATUS_STALE);
    EXPECT_EQ(eplb_rebalancer_info(one.info()).generations[0], 1u);

    // Windows without counts are no reason to move.
    other.reset(a_placement());
    other.observe(counts(8), 1, 0);
    EXPECT_EQ(eplb_plan_info(other.plan().info()).reason, EPLB_KEEP_REASON_NO_COUNTS);
}

TEST(LivePlan, WrongConfigsAreRefused) {
    const auto message = [](const eplb::rebalancer_config &config) {
        const auto found = refused([&] { eplb::rebalancer::create(config, a_placement()); });
        EXPECT_EQ(found.first, EPLB_STATUS_INVALID_ARGUMENT);
        return found.second;
    };
    auto config = without_gates();
    config.experts_per_token = 0;
    EXPECT_EQ(message(config), "config->experts_per_token is 0; set it");
    config = without_gates();
    config.rank_to_node = {0};
    EXPECT_EQ(message(config), "rank_to_node is not [num_ranks] long, or pinned_slots not [num_slots]");
    config = without_gates();
    config.pinned_slots = {1, 0};
    EXPECT_EQ(message(config), "rank_to_node is not [num_ranks] long, or pinned_slots not [num_slots]");
    config = without_gates();
    config.objective = EPLB_OBJECTIVE_BEST_SPLIT;
    EXPECT_EQ(message(config).find("plans with few moves do not support objective best-split"), 0u);
    config = without_gates();
    config.trigger = .9;
    config.release = .8;
    EXPECT_EQ(message(config), "release is 0.8; at least trigger, 0.9 expected");
    config = without_gates();
    config.max_replicas = 1;
    EXPECT_EQ(refused([&] {
                  eplb::rebalancer::create(config, a_placement({0, 1, 2, 0, 3, 2}));
              }),
              refusal(EPLB_STATUS_INVALID_PLACEMENT, "layer 3, expert 0 has 2 replicas, max_replicas is 1"));
    eplb::plan_options options;
    options.rank_to_node = {0, 0};
    options.active = {1};
    EXPECT_EQ(refused([&] { eplb::plan::create(a_placement(), a_placement(), options); }).first,
              EPLB_STATUS_INVALID_ARGUMENT);
    options.rank_to_node = {};
    EXPECT_EQ(refused([&] { eplb::plan::create(a_placement(), a_placement(), options); }),
              refusal(EPLB_STATUS_INVALID_ARGUMENT, "options->num_ranks is 1, the placements have 2 ranks"));
    EXPECT_EQ(refused([&] {
                  eplb::plan::create(a_placement(), a_placement({0, 1, 2, 3, 0, 1}));
              }).first,
              EPLB_STATUS_INVALID_SHAPE);
}

TEST(LivePlan, DefaultGatesHoldPlansBack) {
    eplb::rebalancer_config config;
    config.experts_per_token = 1;
    auto rebalancer = eplb::rebalancer::create(config, a_placement());
    const auto reason = [&] { return eplb_plan_info(rebalancer.plan().info()).reason; };
    EXPECT_EQ(reason(), EPLB_KEEP_REASON_NO_COUNTS);
    rebalancer.observe(uneven, 1, 200);
    EXPECT_EQ(reason(), EPLB_KEEP_REASON_FEW_TOKENS) << "100 * 4 are needed";
    rebalancer.observe({}, 1, 1000, EPLB_PHASE_NOT_COUNTED);
    EXPECT_EQ(reason(), EPLB_KEEP_REASON_FEW_TOKENS);
    rebalancer.observe(uneven, 1, 200);
    EXPECT_EQ(reason(), EPLB_KEEP_REASON_NONE);
    EXPECT_EQ(reason(), EPLB_KEEP_REASON_IN_FLIGHT) << "although its handle is destroyed";
    rebalancer.abort();
    EXPECT_EQ(reason(), EPLB_KEEP_REASON_COOLDOWN);
}

TEST(LivePlan, LostExpertsAreLoadedFromTheHost) {
    // Rank 1 alone has experts 2 and 3; rank 0 has room for them.
    const auto placement = a_placement({0, 1, 0, 1, 2, 3, 2, 3});
    auto rebalancer = eplb::rebalancer::create(without_gates(), placement);
    rebalancer.set_active_ranks(std::vector<uint8_t>{1, 0});
    EXPECT_EQ(eplb_rebalancer_info(rebalancer.info()).num_lost_experts, 4u) << "two in each layer";
    const auto plan = rebalancer.plan();
    EXPECT_EQ(values(plan.layer_ids()), (slots{3, 5}));
    for (const eplb_transfer &transfer : plan.transfers(5)) {
        EXPECT_EQ(transfer.kind, EPLB_TRANSFER_KIND_HOST);
        EXPECT_EQ(transfer.src_rank, -1);
        EXPECT_EQ(transfer.src_slot, -1);
        EXPECT_EQ(transfer.dst_rank, 0);
        rebalancer.observe(counts(8), 1, 0);
    }
    for (const int32_t layer : {3, 5}) {
        rebalancer.commit_layer(plan, layer);
    }
    EXPECT_EQ(eplb_rebalancer_info(rebalancer.info()).num_lost_experts, 0u);
    EXPECT_EQ(values(rebalancer.placement().layer_experts(3))[4], -1);
}

TEST(LivePlan, LimitsReachThePlanner) {
    auto rebalancer = eplb::rebalancer::create(without_gates(), a_placement({0, 1, 2, 3}));
    counts both = uneven;
    std::copy(uneven.begin(), uneven.begin() + 4, both.begin() + 4);
    rebalancer.observe(both, 1, 200);
    const auto moves = [&](const eplb::plan_limits &limits) {
        const auto plan = rebalancer.plan(limits);
        rebalancer.abort(plan);
        return eplb_plan_info(plan.info()).num_moves;
    };
    eplb::plan_limits limits;
    EXPECT_EQ(moves(limits), 4u);
    limits.max_layers = 1;
    EXPECT_EQ(moves(limits), 2u);
    limits = {};
    limits.max_moves = 3;
    EXPECT_EQ(moves(limits), 2u) << "an exchange takes two";
    limits = {};
    limits.max_layer_moves = 1;
    EXPECT_EQ(moves(limits), 0u);
    limits = {};
    limits.max_rank_moves = 1;
    EXPECT_EQ(moves(limits), 2u) << "over all layers";
    limits = {};
    limits.max_pair_moves = 1;
    EXPECT_EQ(moves(limits), 2u) << "over all layers";
    limits = {};
    limits.node_price = 1000;
    EXPECT_EQ(moves(limits), 0u);
    limits.horizon = 1000;
    EXPECT_EQ(moves(limits), 4u);
}

TEST(LivePlan, PlansRunBesideRecorderAndRouting) {
    const auto placement = a_placement();
    eplb::dispatch_config routing;
    routing.num_ranks = 2;
    routing.experts_per_token = 1;
    routing.live = true;
    const auto dispatch = eplb::dispatch::create(placement, routing);
    eplb::recorder_config counting;
    counting.num_ranks = 2;
    counting.num_experts = 4;
    counting.experts_per_token = 1;
    counting.layer_ids = {3, 5};
    counting.rolling_iterations = 4;
    auto recorder = eplb::recorder::create(counting);
    auto config = without_gates();
    config.num_windows = 1;
    auto rebalancer = eplb::rebalancer::create(config, placement);
    std::atomic<bool> is_done = false;
    uint64_t moves = 0;
    std::thread planner([&] {
        for (int i = 0; i < 50; i++) {
            // Expert 0 is hot with another one each time, and no placement suits all three.
            counts window = {90, 10, 10, 10, 50, 50, 50, 50};
            window[static_cast<size_t>(1 + i % 3)] = 90;
            rebalancer.observe(window, 1, 200);
            const auto plan = rebalancer.plan();
            for (const int32_t layer : values(plan.layer_ids())) {
                eplb::stage_layer(dispatch, plan, layer);
                eplb::commit_layer(dispatch, layer);
                rebalancer.commit_layer(plan, layer);
            }
            moves += eplb_plan_info(plan.info()).num_moves;
        }
        is_done = true;
    });
    const int32_t ids[4] = {0, 1, 2, 3};
    int64_t iteration = 0;
    do {
        int32_t routed[4];
        recorder.begin_iteration(iteration++);
        recorder.count_ids(3, ids, 4);
        dispatch.route(3, ids, 4, nullptr, routed);
        std::sort(routed, routed + 4);
        EXPECT_EQ((slots{routed, routed + 4}), (slots{0, 1, 2, 3})) << "each expert has a slot of its own";
    } while (!is_done);
    planner.join();
    EXPECT_GE(moves, 50u);
}

TEST(LivePlan, MetricsEqualItsInfo) {
    auto rebalancer = eplb::rebalancer::create(without_gates(), a_placement());
    rebalancer.observe(uneven, 1, 200);
    const auto plan = rebalancer.plan();
    const auto read = [&](bool layer_series) {
        auto metrics = eplb::metrics::create();
        metrics.set_layer_series(layer_series);
        eplb::add(metrics, rebalancer, {{"rank", "1"}});
        return exposition(metrics.text());
    };
    const auto rank = [](exposition::labels more = {}) {
        more["rank"] = "1";
        return more;
    };
    EXPECT_EQ(read(true).at("eplb_rebalancer_layers_in_flight", rank()), 1);
    rebalancer.commit_layer(plan, 3);
    rebalancer.observe(uneven, 1, 200);
    EXPECT_EQ(eplb_plan_info(rebalancer.plan().info()).reason, EPLB_KEEP_REASON_BALANCED);
    const eplb_rebalancer_info info = rebalancer.info();
    for (const bool layer_series : {true, false}) {
        const exposition found = read(layer_series);
        EXPECT_EQ(found.at("eplb_rebalancer_balance", rank()), info.balance);
        EXPECT_EQ(found.at("eplb_rebalancer_balance_promised", rank()), info.balance_promised);
        EXPECT_EQ(found.at("eplb_rebalancer_balance_measured", rank()), info.balance_measured);
        EXPECT_EQ(found.at("eplb_rebalancer_plans_total", rank({{"reason", "none"}})), info.num_plans);
        EXPECT_EQ(found.at("eplb_rebalancer_plans_total", rank({{"reason", "balanced"}})), 1);
        EXPECT_EQ(found.metrics.at("eplb_rebalancer_plans_total").samples.size(), 10u);
        EXPECT_EQ(found.at("eplb_rebalancer_commits_total", rank()), info.num_commits);
        EXPECT_EQ(found.at("eplb_rebalancer_moves_total", rank()), info.num_moves);
        EXPECT_EQ(found.at("eplb_rebalancer_observations_total", rank()), info.num_observations);
        EXPECT_EQ(found.at("eplb_rebalancer_windows", rank()), info.num_windows);
        EXPECT_EQ(found.at("eplb_rebalancer_window_tokens", rank()), info.num_tokens);
        EXPECT_EQ(found.at("eplb_rebalancer_layers_in_flight", rank()), 0);
        EXPECT_EQ(found.at("eplb_rebalancer_active_ranks", rank()), info.num_active_ranks);
        EXPECT_EQ(found.at("eplb_rebalancer_lost_experts", rank()), info.num_lost_experts);
        if (layer_series) {
            EXPECT_EQ(found.at("eplb_rebalancer_generation", rank({{"layer", "3"}})), 2);
            EXPECT_EQ(found.at("eplb_rebalancer_generation", rank({{"layer", "5"}})), 1);
            EXPECT_EQ(found.at("eplb_rebalancer_layer_balance", rank({{"layer", "5"}})), 1);
            EXPECT_EQ(found.metrics.size(), 14u) << "each is checked";
        } else {
            EXPECT_EQ(found.at("eplb_rebalancer_generation", rank()), 2) << "the largest";
            EXPECT_EQ(found.metrics.size(), 13u) << "no balance of a layer";
        }
    }
}

TEST(LivePlan, MetricsWithoutLayersAreSums) {
    eplb::recorder_config counting;
    counting.num_ranks = 2;
    counting.num_experts = 4;
    counting.experts_per_token = 1;
    counting.layer_ids = {3, 5};
    counting.rolling_iterations = 4;
    auto recorder = eplb::recorder::create(counting);
    const int32_t ids[4] = {0, 1, 2, 99};
    recorder.begin_iteration(0);
    recorder.count_ids(3, ids, 4);
    recorder.count_ids(5, ids, 3);
    auto metrics = eplb::metrics::create();
    metrics.set_layer_series(false);
    metrics.add(recorder);
    metrics.add(a_placement({0, 1, 1, 2, 3, 1}));
    const exposition found(metrics.text());
    EXPECT_EQ(found.at("eplb_recorder_tokens_total"), 4 + 3);
    EXPECT_EQ(found.at("eplb_recorder_out_of_range_ids_total"), 1);
    EXPECT_EQ(found.at("eplb_placement_max_replicas"), 3);
    EXPECT_EQ(found.at("eplb_placement_duplicates"), 2) << "one in each layer";
}

TEST(LivePlan, MovedFromHandlesAreRefused) {
    auto rebalancer = eplb::rebalancer::create(without_gates(), a_placement());
    rebalancer.observe(uneven, 1, 200);
    auto plan = rebalancer.plan();
    const auto owner = std::move(rebalancer);
    const auto kept = std::move(plan);
    EXPECT_EQ(refused([&] { rebalancer.info(); }),
              refusal(EPLB_STATUS_INVALID_ARGUMENT, "rebalancer is NULL"));
    EXPECT_EQ(refused([&] { plan.info(); }), refusal(EPLB_STATUS_INVALID_ARGUMENT, "plan is NULL"));
    EXPECT_EQ(eplb_plan_info(kept.info()).num_moves, 2u);
    EXPECT_EQ(eplb_rebalancer_info(owner.info()).num_plans, 1u);
}

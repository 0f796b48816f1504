// eplb_plan, by eplb_live.hpp where it has the call: on the host, without a driver.
#include <gtest/gtest.h>

#include "live_plan_fixture.h"

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

// eplb_rebalancer, by eplb_live.hpp where it has the call: on the host, without a driver.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "exposition.h"
#include "live_plan_fixture.h"

template <class Handle>
constexpr bool moves_and_does_not_copy =
    std::is_nothrow_move_constructible_v<Handle> &&std::is_nothrow_move_assignable_v<Handle> &&
    !std::is_copy_constructible_v<Handle> && !std::is_copy_assignable_v<Handle>;
static_assert(moves_and_does_not_copy<eplb::plan>);
static_assert(moves_and_does_not_copy<eplb::rebalancer>);

TEST(LiveRebalancer, RefusalsSayWhatAndChangeNothing) {
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

TEST(LiveRebalancer, WrongConfigsAreRefused) {
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

TEST(LiveRebalancer, ReleaseIsAtLeastTheTriggerByDefault) {
    eplb::rebalancer_config config;
    config.experts_per_token = 1;
    for (const double trigger : {-1.0, .99, .5}) {
        config.trigger = trigger;
        EXPECT_NO_THROW(eplb::rebalancer::create(config, a_placement())) << trigger;
    }
}

TEST(LiveRebalancer, DefaultGatesHoldPlansBack) {
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

TEST(LiveRebalancer, LostExpertsAreLoadedFromTheHost) {
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

TEST(LiveRebalancer, LimitsReachThePlanner) {
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

TEST(LiveRebalancer, PlansRunBesideRecorderAndRouting) {
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

TEST(LiveRebalancer, MetricsEqualItsInfo) {
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

TEST(LiveRebalancer, MetricsWithoutLayersAreSums) {
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

TEST(LiveRebalancer, MovedFromHandlesAreRefused) {
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

// Tables that change under a running engine: on the host, over fake_cuda in both of its modes, and on a GPU.
#include <atomic>
#include <map>
#include <thread>

#include "live_fixture.h"

namespace {

/// Experts 0 and 2 change places in `small`.
const layer_placement swapped = {4, 2, {2, 1, 0, 3, 2, 1}};

eplb::dispatch_config live_config(const layer_placement &layer, eplb_rule rule, uint32_t choices = 2) {
    auto config = a_config(layer, rule, choices);
    config.live = true;
    config.max_replicas = static_cast<uint32_t>(layer.experts.size());
    return config;
}

/// The tables as the engine's own kernels read them.
std::vector<std::vector<int32_t>> tables_of(const eplb::dispatch &dispatch, const engine_stream &stream) {
    const auto tables = dispatch.tables(3);
    const size_t dense = size_t(tables.num_experts) * tables.max_replicas;
    return {download(tables.replica_count, tables.num_experts, stream),
            download(tables.replica_start, tables.num_experts, stream),
            download(tables.slot_ids, tables.num_slots, stream),
            download(tables.expert_slots, dense, stream)};
}

eplb_status stage(const eplb::dispatch &dispatch, const eplb_plan *plan, CUstream stream, int32_t layer = 3) {
    return eplb_dispatch_stage_layer(dispatch.get(), plan, layer, stream);
}

eplb_status commit(const eplb::dispatch &dispatch, CUstream stream, int32_t layer = 3) {
    return eplb_dispatch_commit_layer(dispatch.get(), layer, stream);
}

eplb_status update(const eplb::dispatch &dispatch, const eplb_plan *plan, CUstream stream,
                   int32_t layer = 3) {
    return eplb_dispatch_update_layer(dispatch.get(), plan, layer, stream);
}

eplb_status set_active(const eplb::dispatch &dispatch, const std::vector<uint8_t> &active, CUstream stream) {
    return eplb_dispatch_set_active_ranks(dispatch.get(), active.data(), static_cast<uint32_t>(active.size()),
                                          stream);
}

} // namespace

TEST(LiveTables, CapturedRouteGivesTheSlotsOfTheTableInForce) {
    for (const eplb_rule rule : all_rules) {
        // Several blocks of ids, and few ones, which least loaded routes by another kernel.
        for (const size_t num_tokens : {700, 3}) {
            SCOPED_TRACE(testing::Message() << "rule " << rule << ", " << num_tokens << " tokens");
            layer_placement now = a_placement(24, 4, 3, 1);
            auto config = live_config(now, rule, 4);
            config.rank = 1;
            const auto dispatch = eplb::dispatch::create(placement_of(now), config);
            const engine_stream forward, beside;
            const routed_batch batch(routing(24, 4, num_tokens).ids<int32_t>(num_tokens), 4, forward);
            const engine_graph graph(forward, [&] { batch.route(dispatch, forward); });
            const auto replayed = [&] {
                graph.replay(forward);
                return batch.result(forward);
            };
            const auto tables = dispatch.tables(3);
            auto before = replayed();
            EXPECT_EQ(before, slots_of_new(now, config, batch));
            for (uint64_t flip = 1; flip <= 6; flip++) {
                const auto plan = plan_of(now, a_placement(24, 4, 3, 100 * flip));
                if (flip % 2 == 0) {
                    ASSERT_EQ(update(dispatch, plan, forward), EPLB_STATUS_OK) << eplb_last_error_message();
                } else {
                    ASSERT_EQ(stage(dispatch, plan, beside), EPLB_STATUS_OK) << eplb_last_error_message();
                    EXPECT_EQ(replayed(), before) << "staging changes nothing";
                    EXPECT_EQ(generation_of(dispatch), flip);
                    forward.wait_for(beside);
                    ASSERT_EQ(commit(dispatch, forward), EPLB_STATUS_OK) << eplb_last_error_message();
                }
                now = plan.after;
                const auto after = replayed();
                EXPECT_EQ(after, slots_of_new(now, config, batch)) << "flip " << flip;
                EXPECT_NE(after, before);
                before = after;
                EXPECT_EQ(generation_of(dispatch), flip + 1);
            }
            config.live = false;
            const auto fresh = eplb::dispatch::create(placement_of(now), config);
            EXPECT_EQ(tables_of(dispatch, forward), tables_of(fresh, forward));
            EXPECT_EQ(dispatch.tables(3).slot_ids, tables.slot_ids) << "addresses never move";
        }
    }
}

TEST(LiveTables, CapturedRouteFitsAnyPlacementOfTheShape) {
    // 24 experts on 4 ranks. At first two slots of each rank are empty, then those are filled.
    const auto filled = [](auto expert) {
        layer_placement layer = {24, 4, {}};
        for (int32_t slot = 0; slot < 32; slot++) {
            const int32_t rank = slot / 8, place = slot % 8;
            layer.experts.push_back(place < 6 ? rank * 6 + place : expert(rank * 2 + place - 6));
        }
        return layer;
    };
    const layer_placement empty = filled([](int32_t) { return -1; });
    const layer_placement one = filled([](int32_t) { return 0; });
    const layer_placement wide = filled([](int32_t spare) { return spare / 2 * 7 % 24; });
    const layer_placement many = filled([](int32_t spare) { return (spare * 5 + 8) % 24; });
    for (const eplb_rule rule : all_rules) {
        for (const size_t num_tokens : {700, 3}) {
            const auto config = live_config(empty, rule, 4);
            const auto dispatch = eplb::dispatch::create(with_empty_slots(empty, {3}), config);
            const engine_stream stream;
            const routed_batch batch(routing(24, 4, num_tokens).ids<int32_t>(num_tokens), 4, stream);
            const engine_graph graph(stream, [&] { batch.route(dispatch, stream); });
            layer_placement now = empty;
            for (const layer_placement &next : {one, many, wide, empty}) {
                const auto plan = plan_of(now, next);
                ASSERT_EQ(update(dispatch, plan, stream), EPLB_STATUS_OK) << eplb_last_error_message();
                now = plan.after;
                graph.replay(stream);
                EXPECT_EQ(batch.result(stream), slots_of_new(now, config, batch)) << "rule " << rule;
            }
        }
    }
}

TEST(LiveTables, DispatchWithoutLayersMayBeLive) {
    auto config = live_config(small, EPLB_RULE_LEAST_LOADED);
    config.no_layers = true;
    const engine_stream stream;
    const auto dispatch = eplb::dispatch::create(placement_of(small), config);
    EXPECT_EQ(dispatch.info().host_bytes, 0u);
    EXPECT_EQ(set_active(dispatch, {1, 0}, stream), EPLB_STATUS_OK) << eplb_last_error_message();
    EXPECT_EQ(update(dispatch, plan_of(small, swapped), stream), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_STREQ(eplb_last_error_message(), "layer 3: the dispatch was created without layers");
}

TEST(LiveTables, EachRouteOfAStreamSeesTheTablesOfItsPlaceInTheOrder) {
    for (const eplb_rule rule : all_rules) {
        const layer_placement two[] = {a_placement(16, 4, 2, 5), a_placement(16, 4, 2, 6)};
        const auto config = live_config(two[0], rule, 4);
        const auto dispatch = eplb::dispatch::create(placement_of(two[0]), config);
        std::mt19937_64 random(static_cast<uint64_t>(rule));
        const engine_stream forward, flips, beside;
        const auto values = routing(16, 4, 9).ids<int32_t>(600);
        std::vector<std::unique_ptr<routed_batch>> batches;
        for (int i = 0; i < 4; i++) {
            batches.push_back(std::make_unique<routed_batch>(values, 4, forward));
        }
        // The slots by the table.
        std::map<std::vector<int32_t>, std::vector<int32_t>> expected;
        layer_placement now = two[0];
        const auto expect = [&](const layer_placement &layer) {
            auto &slots = expected[layer.experts];
            if (slots.empty()) {
                slots = slots_of_new(layer, config, *batches[0]);
            }
        };
        expect(now);
        std::vector<std::vector<int32_t>> seen;
        for (int step = 0; step < 24; step++) {
            // A route of this table, a flip on a stream of its own, ordered by events, and a route of the
            // next.
            batches[seen.size()]->route(dispatch, forward);
            seen.push_back(now.experts);
            const auto next = plan_of(now, two[(step + 1) % 2]);
            eplb_status staged = stage(dispatch, next, beside);
            if (staged == EPLB_STATUS_NOT_READY) {
                flips.synchronize();
                beside.synchronize();
                staged = stage(dispatch, next, beside);
            }
            ASSERT_EQ(staged, EPLB_STATUS_OK) << eplb_last_error_message();
            flips.wait_for(beside);
            flips.wait_for(forward);
            ASSERT_EQ(commit(dispatch, flips), EPLB_STATUS_OK) << eplb_last_error_message();
            forward.wait_for(flips);
            now = next.after;
            expect(now);
            batches[seen.size()]->route(dispatch, forward);
            seen.push_back(now.experts);
            // A deferred driver runs what a stream needs, in this order.
            switch (random() % 4) {
            case 0:
                beside.synchronize();
                break;
            case 1:
                flips.synchronize();
                break;
            default:
                break;
            }
            if (seen.size() == batches.size()) {
                for (size_t i = 0; i < seen.size(); i++) {
                    ASSERT_EQ(batches[i]->result(forward), expected.at(seen[i]))
                        << "rule " << rule << ", step " << step << ", route " << i;
                }
                seen.clear();
            }
        }
    }
}

TEST(LiveTables, ManyFlipsBesideRoutingKeepEachCallOnOneTable) {
    // Over all rules, 100,000 flips on the host and 200 by kernels; under a checker 1,000 and 100.
    const bool is_host = !engine::get().is_cuda();
    const size_t flips = is_host ? when_checked(250, 25000) : when_checked(25, 50);
    for (const eplb_rule rule : all_rules) {
        const auto config = live_config(small, rule);
        const auto dispatch = eplb::dispatch::create(placement_of(small), config);
        const auto there = plan_of(small, swapped), back = plan_of(there.after, small);
        ASSERT_EQ(back.after.experts, small.experts);
        const engine_stream stream;
        const routed_batch batch(routing(4, 2, 3).ids<int32_t>(40), 2, stream);
        const std::vector<int32_t> expected[] = {slots_of_new(small, config, batch),
                                                 slots_of_new(there.after, config, batch)};
        // On the host, routing takes turns with flips. On a device the engine orders them.
        std::atomic<bool> ends = false;
        std::atomic<size_t> routes = 0, torn = 0;
        std::thread reader([&] {
            std::vector<int32_t> slots(batch.values.size());
            while (is_host && !ends) {
                dispatch.route(3, batch.values.data(), 40, nullptr, slots.data());
                torn += slots != expected[0] && slots != expected[1];
                routes++;
            }
        });
        for (size_t flip = 0; flip < flips; flip++) {
            const auto &plan = flip % 2 == 0 ? there : back;
            ASSERT_EQ(stage(dispatch, plan, stream), EPLB_STATUS_OK) << eplb_last_error_message();
            ASSERT_EQ(commit(dispatch, stream), EPLB_STATUS_OK) << eplb_last_error_message();
            batch.route(dispatch, stream);
            ASSERT_EQ(batch.result(stream), expected[(flip + 1) % 2]) << "rule " << rule << ", flip " << flip;
        }
        ends = true;
        reader.join();
        EXPECT_EQ(torn, 0u) << "slots of two tables, of " << routes << " routes";
        EXPECT_EQ(generation_of(dispatch), flips + 1);
    }
}

TEST(LiveTables, RoutesCountedInTheSamePassFollowFlipsToo) {
    temporary_directory dir;
    const engine_stream stream;
    eplb::recorder_config recording;
    recording.rolling_iterations = 4;
    recording.num_ranks = 2;
    recording.num_experts = 4;
    recording.experts_per_token = 2;
    recording.layer_ids = {3};
    recording.device = engine::get().device();
    auto recorder = eplb::recorder::create(recording);
    const auto config = live_config(small, EPLB_RULE_LEAST_LOADED);
    const auto dispatch = eplb::dispatch::create(placement_of(small), config);
    const routed_batch batch({0, 1, 0, 2, 3, 0, -1, 9}, 2, stream);
    const engine_graph graph(stream, [&] {
        dispatch.route_and_count(recorder, 3, batch.ids.data(), 4, nullptr, batch.slots.data(), stream);
    });
    recorder.begin_iteration(0, stream);
    graph.replay(stream);
    EXPECT_EQ(batch.result(stream), slots_of_new(small, config, batch));
    const auto plan = plan_of(small, swapped);
    ASSERT_EQ(update(dispatch, plan, stream), EPLB_STATUS_OK);
    graph.replay(stream);
    EXPECT_EQ(batch.result(stream), slots_of_new(plan.after, config, batch));
    engine_array<int64_t> counts(4);
    ASSERT_EQ(eplb_recorder_snapshot(recorder.get(), counts.data(), 1, stream), EPLB_STATUS_OK)
        << eplb_last_error_message();
    EXPECT_EQ(download(counts.data(), 4, stream), (std::vector<int64_t>{6, 2, 2, 2})) << "by expert always";
}

TEST(LiveTables, WorkspaceOfTheEngineHoldsTablesAndShadow) {
    const bool is_cuda = engine::get().is_cuda();
    for (const eplb_rule rule : all_rules) {
        auto config = live_config(small, rule);
        const auto placement = placement_of(small, {3, 5});
        const size_t bytes = eplb::dispatch::memory_required(placement, config);
        auto fixed = config;
        fixed.live = false;
        const size_t without = eplb::dispatch::memory_required(placement, fixed);
        EXPECT_EQ(bytes > without, is_cuda) << "the shadow";
        const auto host_bytes = [&](const eplb::dispatch_config &config) {
            return static_cast<size_t>(eplb::host_memory_required(placement, config));
        };
        EXPECT_EQ(host_bytes(fixed), 0u);
        EXPECT_EQ(host_bytes(config) >= bytes - without, is_cuda || bytes == without);
        EXPECT_EQ(host_bytes(config) != 0, is_cuda);

        const engine_stream stream;
        engine_array<uint8_t> memory(bytes + 64);
        const std::vector<uint8_t> garbage(bytes + 64, 0xa5);
        memory.upload(garbage, stream);
        stream.synchronize();
        config.workspace = memory.data();
        config.workspace_bytes = bytes - 1;
        EXPECT_THROW(eplb::dispatch::create(placement, config), eplb::error);
        config.workspace_bytes = bytes;
        const auto dispatch = eplb::dispatch::create(placement, config);
        EXPECT_EQ(dispatch.info().workspace_bytes, bytes);
        EXPECT_EQ(dispatch.info().host_bytes, host_bytes(config));
        const routed_batch batch({0, 1, 2, 3, 0, 0, 1, 1}, 2, stream);
        layer_placement now = small;
        for (int flip = 0; flip < 4; flip++) {
            const auto plan = plan_of(now, flip % 2 == 0 ? swapped : small, 5);
            ASSERT_EQ(stage(dispatch, plan, stream, 5), EPLB_STATUS_OK) << eplb_last_error_message();
            ASSERT_EQ(commit(dispatch, stream, 5), EPLB_STATUS_OK);
            batch.route(dispatch, stream, 5);
            now = plan.after;
            auto own = config;
            own.workspace = nullptr;
            EXPECT_EQ(batch.result(stream), slots_of_new(now, own, batch));
            batch.route(dispatch, stream, 3);
            EXPECT_EQ(batch.result(stream), slots_of_new(small, own, batch)) << "the other layer";
        }
        const auto behind = download(memory.data() + bytes, 64, stream);
        EXPECT_EQ(behind, std::vector<uint8_t>(64, 0xa5)) << "written behind the workspace";
        const uint64_t hash = dispatch.info().placement_hash;
        uint64_t created = 0;
        EXPECT_EQ(eplb_placement_hash(placement.get(), &created), EPLB_STATUS_OK);
        EXPECT_EQ(hash, created) << "the placement at creation, whatever was committed";
    }
}

TEST(LiveTables, RefusedCallsChangeNothingAndSayWhy) {
    const engine_stream stream;
    auto config = live_config(small, EPLB_RULE_ROUND_ROBIN);
    config.max_replicas = 2;
    const auto dispatch = eplb::dispatch::create(placement_of(small), config);
    const routed_batch batch({0, 1, 2, 3, 0, 0, 1, 1}, 2, stream);
    batch.route(dispatch, stream);
    const auto before = batch.result(stream);
    const auto plan = plan_of(small, swapped), back = plan_of(plan.after, small);
    const auto message = [](eplb_status status, eplb_status expected) {
        EXPECT_EQ(status, expected) << eplb_last_error_message();
        return std::string(eplb_last_error_message());
    };
    EXPECT_EQ(message(commit(dispatch, stream), EPLB_STATUS_INVALID_ARGUMENT),
              "layer 3 has no staged tables: call eplb_dispatch_stage_layer() first");
    // The plan has another table before it.
    EXPECT_EQ(message(update(dispatch, back, stream), EPLB_STATUS_STALE)
                  .rfind("layer 3: the plan was made with", 0),
              0u);
    message(stage(dispatch, back, stream), EPLB_STATUS_STALE);
    message(stage(dispatch, plan, stream, 4), EPLB_STATUS_INVALID_ARGUMENT);
    // Three slots of an expert do not fit the dense map.
    const auto many = plan_of(small, {4, 2, {0, 1, 2, 3, 0, 0}});
    const std::string limit = message(stage(dispatch, many, stream), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_NE(limit.find("max_replicas is 2, and expert 0 of layer 3 has 3 slots"), std::string::npos)
        << limit;
    // Another shape.
    const layer_placement wide = {4, 2, {0, 1, 2, 3, 0, 1, 2, 3}};
    message(stage(dispatch, plan_of(wide, {4, 2, {0, 1, 2, 3, 0, 1, 2, 2}}), stream),
            EPLB_STATUS_INVALID_SHAPE);
    auto fixed = config;
    fixed.live = false;
    const auto unchanging = eplb::dispatch::create(placement_of(small), fixed);
    for (const eplb_status status : {stage(unchanging, plan, stream), update(unchanging, plan, stream),
                                     commit(unchanging, stream), set_active(unchanging, {1, 1}, stream)}) {
        EXPECT_EQ(message(status, EPLB_STATUS_INVALID_ARGUMENT),
                  "the tables of this dispatch do not change: create it with live set");
    }
    EXPECT_EQ(generation_of(unchanging), 1u);
    batch.route(dispatch, stream);
    EXPECT_EQ(batch.result(stream), before);
    EXPECT_EQ(generation_of(dispatch), 1u);

    // What was staged is stale once the layer changes.
    ASSERT_EQ(stage(dispatch, plan, stream), EPLB_STATUS_OK);
    stream.synchronize();
    ASSERT_EQ(update(dispatch, plan, stream), EPLB_STATUS_OK);
    EXPECT_NE(
        message(commit(dispatch, stream), EPLB_STATUS_STALE).find("has changed since its tables were staged"),
        std::string::npos);
    batch.route(dispatch, stream);
    EXPECT_EQ(batch.result(stream), slots_of_new(plan.after, config, batch));
    EXPECT_EQ(generation_of(dispatch), 2u);
}

TEST(LiveTables, DeadRanksGetNoTokensUntilACommittedPlanFillsTheirSlots) {
    // Each expert has a slot on both ranks.
    const layer_placement whole = {4, 2, {0, 1, 2, 3, 3, 2, 1, 0}};
    const layer_placement half = {4, 2, {0, 1, 2, 3, -1, -1, -1, -1}};
    for (const eplb_rule rule : all_rules) {
        const engine_stream stream;
        const auto config = live_config(whole, rule);
        const auto dispatch = eplb::dispatch::create(placement_of(whole, {3, 5}), config);
        const routed_batch batch({0, 1, 2, 3, 0, 0, 1, 1, 2, 2, 3, 3}, 2, stream);
        const engine_graph graph(stream, [&] { batch.route(dispatch, stream); });
        const auto replayed = [&] {
            graph.replay(stream);
            return batch.result(stream);
        };
        const auto before = replayed();
        const auto staged = plan_of(whole, {4, 2, {0, 1, 2, 3, 3, 2, 1, 1}}, 5);
        ASSERT_EQ(stage(dispatch, staged, stream, 5), EPLB_STATUS_OK);
        stream.synchronize();
        ASSERT_EQ(set_active(dispatch, {1, 0}, stream), EPLB_STATUS_OK) << eplb_last_error_message();
        EXPECT_EQ(replayed(), batch.values) << "slot e of rank 0 has expert e";
        batch.route(dispatch, stream, 5);
        EXPECT_EQ(batch.result(stream), batch.values) << "in every layer";
        EXPECT_EQ(generation_of(dispatch), 1u);
        EXPECT_EQ(commit(dispatch, stream, 5), EPLB_STATUS_STALE) << "it would route to the dead rank";
        stream.synchronize();

        EXPECT_EQ(set_active(dispatch, {1, 1}, stream), EPLB_STATUS_INVALID_ARGUMENT);
        EXPECT_STREQ(eplb_last_error_message(),
                     "rank 1 is not active, and its slots are empty: it becomes active "
                     "when a plan that fills them is committed");
        EXPECT_EQ(set_active(dispatch, {0, 0}, stream), EPLB_STATUS_NO_REPLICA);
        const std::string lost = eplb_last_error_message();
        EXPECT_NE(lost.find("(layer 3: experts 0, 1, 2, 3; layer 5: experts 0, 1, 2, 3)"), std::string::npos)
            << lost;
        EXPECT_EQ(set_active(dispatch, {1}, stream), EPLB_STATUS_INVALID_ARGUMENT);
        EXPECT_EQ(replayed(), batch.values);

        const auto plan = plan_of(half, whole);
        ASSERT_EQ(update(dispatch, plan, stream), EPLB_STATUS_OK) << eplb_last_error_message();
        EXPECT_EQ(replayed(), slots_of_new(plan.after, config, batch));
        EXPECT_EQ(set_active(dispatch, {1, 1}, stream), EPLB_STATUS_OK) << "it is active now";
        batch.route(dispatch, stream, 5);
        EXPECT_EQ(batch.result(stream), batch.values) << "its slots of the other layer are still empty";
        EXPECT_TRUE(before == slots_of_new(whole, config, batch));
    }
}

TEST(LiveTables, ActiveRanksKeepTheOnlySlotOfASharedExpert) {
    // The last slot of each rank is empty, and rank 1's has the shared expert.
    const layer_placement layer = {2, 2, {0, 1, -1, 1, 0, -1}};
    auto config = live_config(layer, EPLB_RULE_LEAST_LOADED);
    config.shared_slot_ids = {5};
    const engine_stream stream;
    const auto dispatch = eplb::dispatch::create(with_empty_slots(layer, {3}), config);
    const routed_batch batch({0, 2, 1, 2}, 2, stream);
    batch.route(dispatch, stream);
    const auto before = batch.result(stream);
    EXPECT_EQ(set_active(dispatch, {1, 0}, stream), EPLB_STATUS_NO_REPLICA);
    EXPECT_STREQ(eplb_last_error_message(),
                 "shared expert 0 has its only slot, 5, on rank 1, which is not active: "
                 "create a dispatch with another shared_slot_ids[0]");
    batch.route(dispatch, stream);
    EXPECT_EQ(batch.result(stream), before);
    ASSERT_EQ(set_active(dispatch, {0, 1}, stream), EPLB_STATUS_OK) << eplb_last_error_message();
    batch.route(dispatch, stream);
    EXPECT_EQ(batch.result(stream), (std::vector<int32_t>{4, 5, 3, 5}));
    // A slot beyond those of the placement belongs to no rank of it.
    config.shared_slot_ids = {7};
    const auto outside = eplb::dispatch::create(with_empty_slots(layer, {3}), config);
    EXPECT_EQ(set_active(outside, {1, 0}, stream), EPLB_STATUS_OK) << eplb_last_error_message();
    // Nor does a plan put an expert into the slot of a shared one.
    const auto plan = plan_of({2, 2, {-1, -1, -1, 1, 0, -1}}, {2, 2, {-1, -1, -1, 1, 0, 0}});
    EXPECT_EQ(update(dispatch, plan, stream), EPLB_STATUS_INVALID_ARGUMENT);
    const std::string message = eplb_last_error_message();
    EXPECT_NE(message.find("shared_slot_ids[0] is 5, and slot 5 of layer 3 holds expert 0"),
              std::string::npos)
        << message;
}

// Step 3 as an engine drives it: on the host, over fake_cuda in both of its modes, and on a GPU.
#include <eplb_tools.hpp>

#include "dispatch_fixture.h"

TEST(Dispatch, TablesMatchTensorRtLlmsAndNeverMove) {
    auto config = a_config(small, EPLB_RULE_ROUND_ROBIN);
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

TEST(Dispatch, InfoReturnsSizesRuleAndHash) {
    const auto placement = placement_of(small, {3, 7});
    auto config = a_config(small, EPLB_RULE_DEFAULT);
    config.rank = 1;
    config.max_replicas = 3;
    config.layer_ids = {7};
    auto dispatch = eplb::dispatch::create(placement, config);
    eplb_dispatch_info info = dispatch.info();
    EXPECT_EQ(info.placement_hash, placement.hash()) << "the hash of all layers, equal on all ranks";
    EXPECT_EQ(info.workspace_bytes, eplb::dispatch::memory_required(placement, config));
    EXPECT_EQ(info.rule, EPLB_RULE_LEAST_LOADED) << "the default";
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
    for (const eplb_rule rule : {EPLB_RULE_ROUND_ROBIN, EPLB_RULE_TOKEN_HASH, EPLB_RULE_NEAREST}) {
        EXPECT_EQ(eplb::dispatch::create(placement, a_config(small, rule)).info().rule, rule);
    }
}

TEST(Dispatch, TablesOfALaterPlacementInOneWorkspaceKeepTheirAddresses) {
    const engine_stream stream;
    for (const eplb_rule rule : all_rules) {
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
            EXPECT_EQ(dispatch.info().workspace_bytes, required);
            for (const int32_t number : {3, 7}) {
                seen.push_back(dispatch.tables(number));
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

TEST(Dispatch, GraphRoutesItsBuffersAtEachReplay) {
    const auto layer = a_placement(64, 8, 2, 4);
    for (const eplb_rule rule : all_rules) {
        const auto dispatch = eplb::dispatch::create(placement_of(layer), a_config(layer, rule, 4));
        engine_stream stream;
        engine_array<int32_t> ids(2400), slots(2400), valid(1);
        const engine_graph graph(
            stream, [&] { dispatch.route(3, ids.data(), 600, valid.data(), slots.data(), stream); });
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

TEST(Dispatch, RouteAndCountCountsWhatItRoutes) {
    const auto layer = a_placement(64, 8, 2, 4);
    const auto placement = placement_of(layer);
    for (const eplb_id_kind id_kind : {EPLB_ID_KIND_EXPERT, EPLB_ID_KIND_SLOT}) {
        const uint32_t cells = id_kind == EPLB_ID_KIND_SLOT ? static_cast<uint32_t>(layer.num_slots()) : 64;
        for (const bool wide : {false, true}) {
            for (const eplb_rule rule : all_rules) {
                const temporary_directory directory;
                eplb::recorder_config recording;
                recording.path = directory / "dump";
                recording.iter_stop = 2;
                recording.num_ranks = 1;
                recording.num_experts = cells;
                recording.experts_per_token = 4;
                recording.layer_ids = {3};
                recording.id_kind = id_kind;
                recording.device = engine::get().device();
                recording.max_tokens_per_iteration = wide ? uint64_t(1) << 32 : 0;
                auto recorder = eplb::recorder::create(recording);
                const auto dispatch = eplb::dispatch::create(placement, a_config(layer, rule, 4));
                engine_stream stream;
                engine_array<int32_t> ids(2400), valid(1);
                const engine_graph graph(stream, [&] {
                    dispatch.route_and_count(recorder, 3, ids.data(), 600, valid.data(), ids.data(), stream);
                });
                counts expected(cells);
                routing source(64, 4, 8);
                const std::vector<int32_t> tokens = {500};
                valid.upload(tokens, stream);
                // Ids before the range are routed and not counted.
                const ids32 warm_up = source.ids<int32_t>(600);
                ids.upload(warm_up, stream);
                graph.replay(stream);
                how way;
                way.num_valid = valid.data();
                // The comparison routes afterwards: two streams must not share a layer's workspace.
                const auto first = download(ids.data(), 2400, stream);
                EXPECT_EQ(first, routed(dispatch, warm_up, 4, way));
                for (int64_t iteration = 0; iteration < 2; iteration++) {
                    const ids32 batch = source.ids<int32_t>(600);
                    ids.upload(batch, stream);
                    recorder.begin_iteration(iteration, stream);
                    graph.replay(stream);
                    const auto slots = download(ids.data(), 2400, stream);
                    EXPECT_EQ(slots, routed(dispatch, batch, 4, way));
                    expected.add(id_kind == EPLB_ID_KIND_SLOT ? slots : batch, 4, 500);
                    if (id_kind == EPLB_ID_KIND_SLOT) {
                        // The slots do not tell ids of -1, which are padding, from those out of range.
                        const auto none = std::count(batch.begin(), batch.begin() + 4 * 500, -1);
                        expected.out_of_range -= static_cast<uint64_t>(none);
                        expected.padding += static_cast<uint64_t>(none);
                    }
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

// A pipeline stage without experts: a recorder and a dispatch of no layers.
#include "recorder_fixture.h"

TEST(NoLayers, RecorderWritesAFileWithoutTensorsAndTheMetaFile) {
    temporary_directory dir;
    one_token token;
    auto config = small_config(dir / "dump", 10, 12);
    config.layer_ids = {};
    config.num_ranks = 2;
    const auto required = eplb::recorder::memory_required(config);
    EXPECT_LE(required.workspace_bytes, 64u);
    for (const uint32_t rank : {0u, 1u}) {
        config.rank = rank;
        auto recorder = eplb::recorder::create(config);
        for (int64_t iteration = 9; iteration <= 12; iteration++) {
            recorder.begin_iteration(iteration, token.stream);
        }
        recorder.flush();
        const eplb_recorder_info info = recorder.info();
        EXPECT_EQ(info.state, EPLB_RECORDER_STATE_DUMPED);
        EXPECT_EQ(info.error_status, EPLB_STATUS_OK) << info.error_message;
        EXPECT_EQ(info.workspace_bytes, required.workspace_bytes);
        EXPECT_EQ(info.num_layers, 0u);
        EXPECT_EQ(info.ids_counted, 0u);
        EXPECT_EQ(info.counted_start, 10);
        EXPECT_EQ(info.counted_stop, 12);
        EXPECT_TRUE(recorder.layer_tokens(0).empty());

        const dump_file file(dir / ("dump/rank" + std::to_string(rank) + ".safetensors"));
        EXPECT_EQ(file.header().substr(0, 1), "{");
        EXPECT_EQ(file.num_tensors(), 0u);
        EXPECT_EQ(file.data_bytes(), 0u);
        EXPECT_EQ(file.metadata("layers"), "");
        EXPECT_EQ(file.metadata("rank"), std::to_string(rank));
    }
    const std::string meta = read_file(dir / "dump/meta_info.json");
    EXPECT_NE(meta.find("\"num_experts\":8,\"num_experts_per_token\":4"), std::string::npos) << meta;
    EXPECT_NE(meta.find("\"layers\":[]"), std::string::npos) << meta;
}

TEST(NoLayers, RecorderResetsAndDumpsEarly) {
    temporary_directory dir;
    one_token token;
    auto config = small_config(dir / "dump", 0, 100);
    config.layer_ids = {};
    auto recorder = eplb::recorder::create(config);
    recorder.begin_iteration(5, token.stream);
    recorder.reset(token.stream);
    EXPECT_EQ(recorder.info().state, EPLB_RECORDER_STATE_WAITING);
    recorder.begin_iteration(0, token.stream);
    recorder.dump(token.stream);
    recorder.flush();
    EXPECT_EQ(recorder.info().dumps_written, 1u);
    EXPECT_EQ(dump_file(dir / "dump/rank0.safetensors").num_tensors(), 0u);
}

TEST(NoLayers, CallsWithALayerFailByName) {
    temporary_directory dir;
    one_token token;
    auto config = small_config(dir / "dump", 0, 10);
    config.layer_ids = {};
    auto recorder = eplb::recorder::create(config);
    recorder.begin_iteration(0, token.stream);
    const std::string expected = "layer 3: the recorder was created without layers";
    const auto refused = [](auto call) { return refusal(call, EPLB_STATUS_INVALID_ARGUMENT); };
    EXPECT_EQ(refused([&] { token.count(recorder); }), expected);
    EXPECT_EQ(refused([&] { recorder.count(3, 1, token.stream); }), expected);
    EXPECT_EQ(refused([&] { recorder.register_buffer(3, token.ids.data(), 1, nullptr, token.stream); }),
              expected);
    EXPECT_EQ(refused([&] { recorder.layer_tokens(1); }), "num_layers is 1, the recorder has 0");

    const auto placement = eplb::placement::load(data("expected/dsv2lite-translation.ep8.slots72.yaml"), [] {
        eplb::placement_load_options options;
        options.num_experts = 64;
        options.num_ranks = 8;
        return options;
    }());
    for (const eplb_rule rule :
         {EPLB_RULE_ROUND_ROBIN, EPLB_RULE_TOKEN_HASH, EPLB_RULE_NEAREST, EPLB_RULE_LEAST_LOADED}) {
        eplb::dispatch_config dispatch_config;
        dispatch_config.num_ranks = 8;
        dispatch_config.experts_per_token = 4;
        dispatch_config.device = engine::get().device();
        dispatch_config.rule = rule;
        dispatch_config.no_layers = true;
        EXPECT_EQ(eplb::dispatch::memory_required(placement, dispatch_config), 0u);
        auto dispatch = eplb::dispatch::create(placement, dispatch_config);
        EXPECT_EQ(dispatch.info().num_layers, 0u);
        EXPECT_EQ(dispatch.info().workspace_bytes, 0u);
        EXPECT_EQ(dispatch.info().placement_hash, placement.hash());
        engine_array<int32_t> slots(4);
        const std::string none = "layer 3: the dispatch was created without layers";
        EXPECT_EQ(refused([&] { dispatch.tables(3); }), none);
        EXPECT_EQ(
            refused([&] { dispatch.route(3, token.ids.data(), 1, nullptr, slots.data(), token.stream); }),
            none);
        EXPECT_EQ(refused([&] {
                      dispatch.route_and_count(recorder, 3, token.ids.data(), 1, nullptr, slots.data(),
                                               token.stream);
                  }),
                  none);
        EXPECT_EQ(refused([&] { dispatch.register_rank_counts(3, nullptr, EPLB_DTYPE_INT32); }), none);

        dispatch_config.no_layers = false;
        EXPECT_GT(eplb::dispatch::create(placement, dispatch_config).info().num_layers, 0u)
            << "no layer_ids at all: all of the placement";
    }
}

TEST(NoLayers, MetricsOfARecorderWithoutLayersAreValid) {
    temporary_directory dir;
    auto config = small_config(dir / "dump", 0, 10);
    config.layer_ids = {};
    const auto recorder = eplb::recorder::create(config);
    auto metrics = eplb::metrics::create();
    metrics.add(recorder);
    EXPECT_NE(metrics.text().find("eplb_recorder_layers 0"), std::string::npos);
}

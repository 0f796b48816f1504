// Multi-token prediction: a draft layer after the model's own layers, which runs several times an iteration.
#include <eplb_tools.hpp>

#include "recipe.h"

namespace {

// recipe
/// The layers that an engine counts and routes: the model's MoE layers, then its draft layers, which have
/// the numbers after the model's last layer. DeepSeek-V3 has 3 to 60, and 61.
std::vector<int32_t> counted_layers(int32_t first_moe, int32_t num_layers, int32_t num_draft_layers) {
    std::vector<int32_t> layers;
    for (int32_t layer = first_moe; layer < num_layers + num_draft_layers; layer++) {
        layers.push_back(layer);
    }
    return layers;
}

/// Counts one iteration of the draft layer: each draft step adds to the same iteration. A captured graph may
/// hold all steps.
void count_drafts(const eplb::recorder &recorder, int32_t draft_layer, const int32_t *expert_ids,
                  uint32_t num_tokens, uint32_t num_steps, CUstream_st *stream) {
    for (uint32_t step = 0; step < num_steps; step++) {
        recorder.count_ids(draft_layer, expert_ids, num_tokens, nullptr, stream);
    }
}

/// Loads a file that was recorded without draft layers: they use the experts of the last layer.
eplb::placement load(const std::string &file, uint32_t num_ranks, const std::vector<int32_t> &layers) {
    eplb::placement_load_options options;
    options.num_ranks = num_ranks;
    options.layer_ids = layers;
    options.missing_layers = EPLB_MISSING_LAYERS_COPY_LAST;
    return eplb::placement::load(file, options);
}
// end

TEST(Recipes, DraftStepsAddUpAndAFileWithoutDraftLayersLoads) {
    const temporary_directory directory;
    const std::vector<int32_t> layers = counted_layers(3, 5, 1);
    ASSERT_EQ(layers, (std::vector<int32_t>{3, 4, 5}));
    engine_stream stream;
    const engine_array<int32_t> ids(4);
    const std::vector<int32_t> chosen = {0, 1, 1, 3};
    ids.upload(chosen, stream);
    eplb::recorder_config config;
    config.num_ranks = 1;
    config.num_experts = 4;
    config.experts_per_token = 2;
    config.layer_ids = layers;
    config.path = directory / "dump";
    config.iter_stop = 2;
    config.device = engine::get().device();
    auto recorder = eplb::recorder::create(config);
    const engine_graph drafts(stream, [&] { count_drafts(recorder, 5, ids.data(), 2, 3, stream); });
    for (int64_t iteration = 0; iteration < 2; iteration++) {
        recorder.begin_iteration(iteration, stream);
        drafts.replay(stream);
    }
    recorder.begin_iteration(2, stream);
    recorder.flush();
    const auto stats = eplb::stats::load(config.path);
    EXPECT_EQ(stats.layer_loads(5, 2), (std::vector<double>{3, 6, 0, 3, 3, 6, 0, 3}));

    const std::string file = directory / "without_drafts.yaml";
    placement_of(small, {3, 4}).save(file);
    const auto placement = load(file, 2, layers);
    EXPECT_EQ(ids_of(placement.layer_experts(5)), ids_of(placement.layer_experts(4)));
    EXPECT_THROW(eplb::placement::load(file,
                                       [&] {
                                           eplb::placement_load_options strict;
                                           strict.num_ranks = 2;
                                           strict.layer_ids = layers;
                                           return strict;
                                       }()),
                 eplb::error);
}

} // namespace

// Pipeline stages: each stage has an expert-parallel group of its own, whose ranks all start at 0.
#include <eplb_tools.hpp>

#include "recipe.h"

namespace {

// recipe
/// Where this process is: in the world, and in the expert-parallel group of its stage.
struct process {
    uint32_t world_rank, world_size;
    uint32_t ep_rank, ep_size;
};

/// Counts the MoE layers of this process's stage. A stage of dense layers alone has none.
eplb::recorder stage_recorder(const process &me, const std::vector<int32_t> &moe_layers, int32_t device,
                              const std::string &path) {
    eplb::recorder_config config;
    config.rank = me.ep_rank;
    config.num_ranks = me.ep_size;
    config.file_rank = me.world_rank; // the file is rank<world_rank>.safetensors
    config.num_files = me.world_size;
    config.num_experts = 8;
    config.experts_per_token = 2;
    config.layer_ids = moe_layers;
    config.device = device;
    config.path = path;
    config.iter_stop = 2;
    return eplb::recorder::create(config);
}
// end

TEST(Recipes, PipelineStagesWriteOneDumpAndLoadOneFile) {
    const temporary_directory directory;
    const std::string dump = directory / "dump", file = directory / "moe_load_balancer.yaml";
    const std::vector<std::vector<int32_t>> stages = {{}, {3, 4}, {5, 6}};
    engine_stream stream;
    const engine_array<int32_t> ids(6);
    const std::vector<int32_t> chosen = {0, 5, 5, 2, 5, 7};
    ids.upload(chosen, stream);
    for (uint32_t rank = 0; rank < 6; rank++) {
        const auto &layers = stages[rank / 2];
        auto recorder = stage_recorder({rank, 6, rank % 2, 2}, layers, engine::get().device(), dump);
        for (int64_t iteration = 0; iteration <= 2; iteration++) {
            recorder.begin_iteration(iteration, stream);
            for (const int32_t layer : layers) {
                recorder.count_ids(layer, ids.data(), 3, nullptr, stream);
            }
        }
        recorder.flush();
    }

    const auto stats = eplb::stats::load(dump);
    EXPECT_EQ(stats.info().num_ranks, 2u) << "the ranks of a stage's group, not the six files";
    EXPECT_EQ(ids_of(stats.layer_ids()), (std::vector<int32_t>{3, 4, 5, 6}));
    EXPECT_EQ(stats.layer_loads(6, 1), (std::vector<double>{4, 0, 4, 0, 0, 12, 0, 4}));

    eplb::generate_config config;
    config.expert_statistic_path = dump;
    config.output_path = file;
    config.num_slots = 10;
    EXPECT_EQ(eplb::generate(config).num_ranks, 2u);

    // Each stage loads the whole file, so that all have one hash, and routes its own layers.
    eplb::placement_load_options options;
    options.num_experts = 8;
    options.num_ranks = 2;
    const auto placement = eplb::placement::load(file, options);
    eplb::dispatch_config route;
    route.num_ranks = 2;
    route.experts_per_token = 2;
    route.layer_ids = {5, 6};
    route.device = engine::get().device();
    const auto dispatch = eplb::dispatch::create(placement, route);
    EXPECT_EQ(dispatch.info().num_layers, 2u);
    EXPECT_EQ(dispatch.info().placement_hash, placement.hash());
}

} // namespace

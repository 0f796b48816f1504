// Several models in a process: a target model and a draft model, under one environment.
#include <cstdlib>

#include <eplb_tools.hpp>

#include "recipe.h"

namespace {

// recipe
/// What an engine knows of one of its models.
struct model {
    std::string name; // unique in the process: the dump is PATH/<name>
    uint32_t num_experts, experts_per_token;
    std::vector<int32_t> moe_layers;
};

/// A recorder for one of the models. EXPERT_STATISTIC_ITER_RANGE and EXPERT_STATISTIC_PATH apply to all. A
/// model whose layers differ in experts or top-k has a recorder a shape, each with a name.
eplb::recorder model_recorder(const model &model, uint32_t rank, uint32_t num_ranks, int32_t device) {
    eplb::recorder_config config;
    config.name = model.name;
    config.rank = rank;
    config.num_ranks = num_ranks;
    config.num_experts = model.num_experts;
    config.experts_per_token = model.experts_per_token;
    config.layer_ids = model.moe_layers;
    config.device = device;
    config.from_env();
    return eplb::recorder::create(config);
}
// end

TEST(Recipes, ModelsOfAProcessDumpBesideEachOther) {
    const temporary_directory directory;
    const std::string path = directory / "dump";
    setenv("EXPERT_STATISTIC_ITER_RANGE", "1-3", 1);
    setenv("EXPERT_STATISTIC_PATH", path.c_str(), 1);
    const model target = {"target", 8, 2, {3, 4}}, draft = {"draft", 4, 1, {0}};
    {
        auto target_recorder = model_recorder(target, 0, 1, engine::get().device());
        auto draft_recorder = model_recorder(draft, 0, 1, engine::get().device());
        EXPECT_THROW(model_recorder(draft, 0, 1, engine::get().device()), eplb::error)
            << "another recorder must not overwrite the dump";
        engine_stream stream;
        const engine_array<int32_t> ids(4);
        const std::vector<int32_t> chosen = {3, 1, 3, 2};
        ids.upload(chosen, stream);
        for (int64_t iteration = 0; iteration <= 3; iteration++) {
            target_recorder.begin_iteration(iteration, stream);
            draft_recorder.begin_iteration(iteration, stream);
            target_recorder.count_ids(4, ids.data(), 2, nullptr, stream);
            draft_recorder.count_ids(0, ids.data(), 4, nullptr, stream);
        }
        target_recorder.flush();
        draft_recorder.flush();
    }
    unsetenv("EXPERT_STATISTIC_ITER_RANGE");
    unsetenv("EXPERT_STATISTIC_PATH");
    const auto of_target = eplb::stats::load(path + "/target"), of_draft = eplb::stats::load(path + "/draft");
    EXPECT_EQ(of_target.layer_loads(4, 1), (std::vector<double>{0, 2, 2, 4, 0, 0, 0, 0}));
    EXPECT_EQ(of_target.layer_loads(3, 1), (std::vector<double>(8, 0)));
    EXPECT_EQ(of_draft.layer_loads(0, 1), (std::vector<double>{0, 2, 2, 4}));
}

} // namespace

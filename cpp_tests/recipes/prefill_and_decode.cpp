// Prefill beside decode: two phases with different loads.
#include <eplb_tools.hpp>

#include "recipe.h"

namespace {

// recipe
/// One recorder a phase. Its name keeps the dumps apart: PATH/prefill and PATH/decode.
eplb::recorder phase_recorder(eplb::recorder_config config, const std::string &phase) {
    config.name = phase;
    return eplb::recorder::create(config);
}

/// One placement for ranks that serve both phases. The phases are samples, and `decode_weight` is the share
/// of the time that decode takes. Loads are divided by their mean, so that the longer phase does not win.
eplb::placement place_for_both(const eplb::stats &prefill, const eplb::stats &decode, double decode_weight,
                               const eplb::placement_config &shape) {
    const auto layers = prefill.layer_ids();
    std::vector<double> loads; // [layers][2][experts]
    for (const int32_t layer : layers) {
        for (const eplb::stats *phase : {&prefill, &decode}) {
            std::vector<double> sample = phase->layer_loads(layer, 1);
            double total = 0;
            for (const double load : sample) {
                total += load;
            }
            for (const double load : sample) {
                loads.push_back(total > 0 ? load / total : 0);
            }
        }
    }
    eplb::solve_options options;
    options.sample_weights = {1 - decode_weight, decode_weight};
    return eplb::solve(shape, layers, loads, 2, options);
}
// end

TEST(Recipes, PrefillAndDecodeShareAPlacementBalancedForBoth) {
    const temporary_directory directory;
    eplb::recorder_config config;
    config.num_ranks = 1;
    config.num_experts = 4;
    config.experts_per_token = 1;
    config.layer_ids = {3};
    config.path = directory / "dump";
    config.iter_stop = 1;
    config.device = engine::get().device();
    // Prefill has 30 tokens of expert 0 among 60, decode 3 of expert 1 among 6.
    std::vector<std::vector<int32_t>> chosen = {std::vector<int32_t>(60), std::vector<int32_t>(6)};
    for (size_t phase = 0; phase < 2; phase++) {
        auto &ids = chosen[phase];
        const int32_t hot = static_cast<int32_t>(phase);
        const int32_t others[] = {phase == 0 ? 1 : 0, 2, 3};
        for (size_t token = 0; token < ids.size(); token++) {
            ids[token] = token % 2 == 0 ? hot : others[token / 2 % 3];
        }
        engine_stream stream;
        const engine_array<int32_t> array(ids.size());
        array.upload(ids, stream);
        auto recorder = phase_recorder(config, phase == 0 ? "prefill" : "decode");
        recorder.begin_iteration(0, stream);
        recorder.count_ids(3, array.data(), static_cast<uint32_t>(ids.size()), nullptr, stream);
        recorder.begin_iteration(1, stream);
        recorder.flush();
    }
    const auto prefill = eplb::stats::load(directory / "dump/prefill");
    const auto decode = eplb::stats::load(directory / "dump/decode");
    EXPECT_EQ(prefill.layer_loads(3, 1), (std::vector<double>{30, 10, 10, 10}));
    EXPECT_EQ(decode.layer_loads(3, 1), (std::vector<double>{1, 3, 1, 1}));

    // Shares: 1/2 of the hot expert and 1/6 of each other. With a second slot for experts 0 and 1, a rank
    // with one slot of each, and expert 2 or 3, has half of both phases.
    eplb::placement_config shape;
    shape.num_experts = 4;
    shape.num_ranks = 2;
    shape.num_slots = 6;
    const auto placement = place_for_both(prefill, decode, 0.5, shape);
    for (uint32_t rank = 0; rank < 2; rank++) {
        auto experts = placement.distinct_experts(3, rank);
        ASSERT_EQ(experts.size(), 3u);
        EXPECT_EQ(experts[0], 0);
        EXPECT_EQ(experts[1], 1);
    }
}

} // namespace

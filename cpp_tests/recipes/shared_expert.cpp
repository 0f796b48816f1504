// A fused shared expert with DeepEP's conventions: its id is a column of the router's output, and an id of
// -1 is none.
#include <eplb_tools.hpp>

#include "recipe.h"

namespace {

// recipe
/// Routes rows of K routed ids and the shared expert's id, [num_tokens][K + 1], to rows for an all-to-all.
/// Each rank has `routed_slots` slots for routed experts, and after them one for the shared expert.
class fused_shared_expert {
  public:
    fused_shared_expert(const eplb::placement &placement, uint32_t rank, uint32_t num_ranks, uint32_t top_k,
                        uint32_t routed_slots, int32_t device)
        : dispatch_(nullptr) {
        eplb::dispatch_config config;
        config.rank = rank;
        config.num_ranks = num_ranks;
        config.experts_per_token = top_k + 1;
        config.device = device;
        config.invalid_slot = -1;
        // Id num_experts, the shared expert, is served by the last slot of this rank, which is empty in the
        // placement.
        config.shared_slot_ids = {static_cast<int32_t>(rank * (routed_slots + 1) + routed_slots)};
        dispatch_ = eplb::dispatch::create(placement, config);
    }

    /// Hot, and may be captured: reads the router's int64 rows and writes int32 rows, without a copy.
    void route(int32_t layer, const int64_t *topk_ids, uint32_t num_tokens, int32_t *topk_slots,
               CUstream_st *stream) const {
        dispatch_.route(layer, topk_ids, num_tokens, nullptr, topk_slots, stream);
    }

    const eplb::dispatch &dispatch() const { return dispatch_; }

  private:
    eplb::dispatch dispatch_;
};

/// A placement that leaves the last slot of each rank to the shared expert.
eplb::placement place_beside_shared(uint32_t num_experts, uint32_t num_ranks, uint32_t routed_slots,
                                    const std::vector<int32_t> &layers, const std::vector<double> &loads) {
    eplb::placement_config config;
    config.num_experts = num_experts;
    config.num_ranks = num_ranks;
    config.num_slots = num_ranks * (routed_slots + 1);
    config.rank_num_slots.assign(num_ranks, static_cast<int32_t>(routed_slots));
    return eplb::solve(config, layers, loads);
}
// end

TEST(Recipes, SharedExpertIsServedByItsRankAndCountedNowhere) {
    const uint32_t num_experts = 8, num_ranks = 2, top_k = 2, routed_slots = 5;
    const std::vector<double> loads = {8, 7, 6, 5, 4, 3, 2, 1};
    const auto placement = place_beside_shared(num_experts, num_ranks, routed_slots, {3}, loads);
    const auto slot_experts = placement.layer_experts(3);
    ASSERT_EQ(slot_experts.size(), 12u);
    EXPECT_EQ(slot_experts[5], -1);
    EXPECT_EQ(slot_experts[11], -1);

    const temporary_directory directory;
    engine_stream stream;
    const int64_t shared = num_experts;
    // The last token is padding: the router wrote -1.
    const std::vector<int64_t> chosen = {0, 5, shared, 7, 2, shared, 3, 3, shared, -1, -1, -1};
    const engine_array<int64_t> ids(chosen.size());
    const engine_array<int32_t> slots(chosen.size());
    ids.upload(chosen, stream);
    for (uint32_t rank = 0; rank < num_ranks; rank++) {
        const fused_shared_expert engine(placement, rank, num_ranks, top_k, routed_slots,
                                         engine::get().device());
        eplb::recorder_config record;
        record.rank = rank;
        record.num_ranks = num_ranks;
        record.num_experts = num_experts;
        record.experts_per_token = top_k + 1;
        record.num_shared_experts = 1;
        record.layer_ids = {3};
        record.path = directory / "dump";
        record.iter_stop = 3;
        record.device = engine::get().device();
        auto recorder = eplb::recorder::create(record);
        const engine_graph step(stream, [&] {
            engine.route(3, ids.data(), 4, slots.data(), stream);
            engine.dispatch().route_and_count(recorder, 3, ids.data(), 4, nullptr, slots.data(), stream);
        });
        for (int64_t iteration = 0; iteration < 3; iteration++) {
            recorder.begin_iteration(iteration, stream);
            step.replay(stream);
        }
        const auto routed = download(slots.data(), chosen.size(), stream);
        for (size_t i = 0; i < chosen.size(); i++) {
            if (chosen[i] == -1) {
                EXPECT_EQ(routed[i], -1);
            } else if (chosen[i] == shared) {
                EXPECT_EQ(routed[i], static_cast<int32_t>(rank * 6 + 5)) << "this rank's own";
            } else {
                ASSERT_GE(routed[i], 0);
                EXPECT_EQ(slot_experts[static_cast<size_t>(routed[i])], chosen[i]);
            }
        }
        recorder.begin_iteration(3, stream);
        recorder.flush();
        const eplb_recorder_info info = recorder.info();
        EXPECT_EQ(info.ids_counted, 3u * 6);
        EXPECT_EQ(info.ids_out_of_range, 0u) << "neither the shared expert nor padding";
        EXPECT_EQ(info.ids_padding, 3u * 3);
    }
    const auto stats = eplb::stats::load(directory / "dump");
    EXPECT_EQ(stats.info().experts_per_token, top_k) << "of the router";
    EXPECT_EQ(stats.layer_loads(3, 1), (std::vector<double>{6, 0, 6, 12, 0, 6, 0, 6}));
}

} // namespace

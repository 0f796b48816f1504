// The buffers of all-to-all libraries: DeepEP and NCCL EP.
#include <eplb_tools.hpp>

#include "recipe.h"

namespace {

// recipe
/// What both libraries are given: slots in place of experts. Their num_experts is the number of slots of all
/// ranks, so slot s is expert s % slots_per_rank of rank s / slots_per_rank, and -1 is no expert.
eplb::dispatch all_to_all_dispatch(const eplb::placement &placement, eplb::dispatch_config config) {
    config.invalid_slot = -1;
    return eplb::dispatch::create(placement, config);
}

/// DeepEP takes topk_idx as [num_tokens][top_k], int64 unless it was built otherwise, and drops ids of -1.
/// Routing in place is enough.
void route_for_deep_ep(const eplb::dispatch &dispatch, int32_t layer, int64_t *topk_idx, uint32_t num_tokens,
                       CUstream_st *stream) {
    dispatch.route(layer, topk_idx, num_tokens, nullptr, topk_idx, stream);
}

/// NCCL EP takes ncclInt32 or ncclInt64, and its tensors have no stride: rows must be dense. A router that
/// writes wider rows, [num_tokens][row_stride], is read in place.
void route_for_nccl_ep(const eplb::dispatch &dispatch, int32_t layer, const int64_t *router_rows,
                       uint32_t row_stride, uint32_t num_tokens, int32_t *topk_idx, CUstream_st *stream) {
    dispatch.route(layer, eplb::expert_ids(router_rows, row_stride), num_tokens, nullptr, topk_idx, stream);
}

/// A recorder that counts what DeepEP received: cumulative_local_expert_recv_stats, int32, one counter for
/// each slot of this rank. They are tokens of all ranks, so only totals over ranks are right.
eplb::recorder received_recorder(eplb::recorder_config config, uint32_t num_slots) {
    config.num_experts = num_slots;
    config.id_kind = EPLB_ID_KIND_SLOT;
    config.added_counts = EPLB_ADDED_COUNTS_CUMULATIVE | EPLB_ADDED_COUNTS_BY_LOCAL_SLOT;
    return eplb::recorder::create(config);
}

/// Hot: call it in every iteration, also outside the range, so that the counters' last values are known.
void count_received(const eplb::recorder &recorder, int32_t layer, const int32_t *recv_stats,
                    CUstream_st *stream) {
    recorder.add_counts(layer, recv_stats, EPLB_DTYPE_INT32, stream);
}
// end

TEST(Recipes, DeepEpRoutesInPlaceAndNcclEpFromWideRows) {
    const uint32_t top_k = 2;
    const auto dispatch =
        all_to_all_dispatch(placement_of(small), a_config(small, EPLB_RULE_ROUND_ROBIN, top_k));
    engine_stream stream;
    const std::vector<int64_t> chosen = {0, 1, 0, 3, -1, -1};
    const engine_array<int64_t> ids(chosen.size());
    ids.upload(chosen, stream);
    route_for_deep_ep(dispatch, 3, ids.data(), 3, stream);
    EXPECT_EQ(download(ids.data(), chosen.size(), stream), (std::vector<int64_t>{0, 1, 4, 3, -1, -1}));

    // Rows of 3 ids, of which 2 are the router's.
    const std::vector<int64_t> wide = {0, 1, 99, 0, 3, 99, -1, 2, 99};
    const engine_array<int64_t> rows(wide.size());
    const engine_array<int32_t> dense(6);
    rows.upload(wide, stream);
    route_for_nccl_ep(dispatch, 3, rows.data(), 3, 3, dense.data(), stream);
    EXPECT_EQ(download(dense.data(), 6, stream), (std::vector<int32_t>{0, 1, 4, 3, -1, 2}));
}

TEST(Recipes, ReceivedTokensOfDeepEpAddUpToTheLoadOfSlots) {
    const temporary_directory directory;
    eplb::recorder_config config;
    config.num_ranks = 2;
    config.experts_per_token = 2;
    config.layer_ids = {3};
    config.path = directory / "dump";
    config.iter_start = 1;
    config.iter_stop = 3;
    config.device = engine::get().device();
    for (uint32_t rank = 0; rank < 2; rank++) {
        config.rank = rank;
        auto recorder = received_recorder(config, 6);
        engine_stream stream;
        const engine_array<int32_t> stats(3);
        // Before each iteration, the counters have grown by (1, 2, 3) * (iteration + 1).
        std::vector<std::vector<int32_t>> values;
        for (int32_t iteration = 0; iteration < 3; iteration++) {
            const int32_t sum = (iteration + 1) * (iteration + 2) / 2;
            values.push_back({sum, 2 * sum, 3 * sum});
        }
        const engine_graph count(stream, [&] { count_received(recorder, 3, stats.data(), stream); });
        for (int64_t iteration = 0; iteration < 3; iteration++) {
            recorder.begin_iteration(iteration, stream);
            stats.upload(values[static_cast<size_t>(iteration)], stream);
            count.replay(stream);
        }
        recorder.begin_iteration(3, stream);
        recorder.flush();
    }
    const auto stats = eplb::stats::load(config.path);
    EXPECT_EQ(stats.info().id_kind, EPLB_ID_KIND_SLOT);
    EXPECT_EQ(stats.layer_loads(3, 2), (std::vector<double>{2, 4, 6, 2, 4, 6, 3, 6, 9, 3, 6, 9}));
}

} // namespace

// Tensor parallelism: several ranks hold the same tokens.
#include <eplb_tools.hpp>

#include "recipe.h"

namespace {

// recipe
/// One rank of an engine whose attention is tensor-parallel: `tp_size` consecutive ranks have the same
/// tokens, and all of them route all of these tokens. Each rank computes the slots that it owns, and an
/// all-reduce adds the results.
class tensor_parallel_rank {
  public:
    tensor_parallel_rank(const eplb::placement &placement, eplb::recorder_config record,
                         eplb::dispatch_config route, uint32_t tp_size)
        : recorder_(eplb::recorder::create(record)), dispatch_(nullptr) {
        // All ranks must choose the same slot for an id, so the rule must be rank-invariant.
        route.rule = EPLB_RULE_ROUND_ROBIN;
        route.offset_by_rank = false;
        dispatch_ = eplb::dispatch::create(placement, route);
        // The same tokens must not count tp_size times: one rank of each group counts, the others dump zeros.
        recorder_.set_paused(record.rank % tp_size != 0);
    }

    void begin_iteration(int64_t iteration, CUstream_st *stream) {
        recorder_.begin_iteration(iteration, stream);
    }

    void route(int32_t layer, const int32_t *expert_ids, uint32_t num_tokens, int32_t *slots,
               CUstream_st *stream) {
        dispatch_.route_and_count(recorder_, layer, expert_ids, num_tokens, nullptr, slots, stream);
    }

    void flush() { recorder_.flush(); }

  private:
    eplb::recorder recorder_;
    eplb::dispatch dispatch_;
};
// end

TEST(Recipes, TensorParallelRanksCountTokensOnceAndAgreeOnSlots) {
    const temporary_directory directory;
    const auto placement = placement_of(small); // 4 experts, 2 ranks, layer 3
    const std::vector<int32_t> chosen = {0, 1, 1, 2, 0, 3};
    std::vector<std::vector<int32_t>> slots_of_ranks;
    for (uint32_t rank = 0; rank < 2; rank++) {
        engine_stream stream;
        const engine_array<int32_t> ids(6), slots(6);
        ids.upload(chosen, stream);
        eplb::recorder_config record;
        record.rank = rank;
        record.num_ranks = 2;
        record.num_experts = 4;
        record.experts_per_token = 2;
        record.layer_ids = {3};
        record.path = directory / "dump";
        record.iter_stop = 1;
        record.device = engine::get().device();
        eplb::dispatch_config route = a_config(small, EPLB_RULE_DEFAULT, 2);
        route.rank = rank;
        tensor_parallel_rank engine(placement, record, route, 2);
        engine.begin_iteration(0, stream);
        engine.route(3, ids.data(), 3, slots.data(), stream);
        slots_of_ranks.push_back(download(slots.data(), 6, stream));
        engine.begin_iteration(1, stream);
        engine.flush();
    }
    EXPECT_EQ(slots_of_ranks[0], slots_of_ranks[1]);
    const auto stats = eplb::stats::load(directory / "dump");
    EXPECT_EQ(stats.layer_loads(3, 1), (std::vector<double>{2, 2, 1, 1})) << "each id once";
}

} // namespace

// An engine that is not CUDA: ROCm, Ascend, a CPU. Its kernels count, and eplb routes on its pinned memory.
#include <eplb_tools.hpp>

#include "recipe.h"

namespace {

/// Stands for the engine's device: copies between its memory and pinned host memory.
struct device_memory {
    std::vector<int32_t> hidden;

    void to_host(std::vector<int32_t> &pinned) const { pinned = hidden; }
    void from_host(const std::vector<int32_t> &pinned) { hidden = pinned; }
};

// recipe
/// One layer of an engine on a device that eplb does not know. Handles are on EPLB_DEVICE_HOST, and eplb sees
/// the engine's pinned host memory alone.
class other_device_layer {
  public:
    other_device_layer(eplb::recorder &recorder, const eplb::dispatch &dispatch, int32_t layer)
        : recorder_(recorder), dispatch_(dispatch), layer_(layer) {}

    /// Adds what the engine's kernel counted since the last call: [num_experts], int32, of this rank's
    /// tokens.
    void add_counts(const device_memory &counters) {
        counters.to_host(pinned_); // and wait for the copy
        recorder_.add_counts(layer_, pinned_.data(), EPLB_DTYPE_INT32);
    }

    /// Routes on the host, for small batches. For large ones, copy the tables of eplb_dispatch_get_tables()
    /// to the device once, and look slots up in a kernel.
    void route(const device_memory &expert_ids, uint32_t num_tokens, device_memory &slot_ids) {
        expert_ids.to_host(pinned_);
        dispatch_.route(layer_, pinned_.data(), num_tokens, nullptr, pinned_.data());
        slot_ids.from_host(pinned_);
    }

  private:
    eplb::recorder &recorder_;
    const eplb::dispatch &dispatch_;
    int32_t layer_;
    std::vector<int32_t> pinned_;
};
// end

TEST(Recipes, AnotherDeviceCountsByItselfAndRoutesOnTheHost) {
    const temporary_directory directory;
    eplb::recorder_config config;
    config.num_ranks = 2;
    config.num_experts = 4;
    config.experts_per_token = 1;
    config.layer_ids = {3};
    config.path = directory / "dump";
    config.iter_stop = 2;
    auto route = a_config(small, EPLB_RULE_ROUND_ROBIN);
    route.device = EPLB_DEVICE_HOST;
    const auto dispatch = eplb::dispatch::create(placement_of(small), route);
    for (uint32_t rank = 0; rank < 2; rank++) {
        config.rank = rank;
        auto recorder = eplb::recorder::create(config);
        other_device_layer layer(recorder, dispatch, 3);
        recorder.begin_iteration(0);
        layer.add_counts({{2, 1, 0, 0}}); // two chunks of one iteration
        layer.add_counts({{0, 1, 0, 0}});
        recorder.begin_iteration(1);
        layer.add_counts({{5, 0, 0, 1}});
        recorder.begin_iteration(2);
        recorder.flush();
        device_memory slots;
        layer.route({{0, 1, 0, 2}}, 4, slots);
        EXPECT_EQ(slots.hidden, (std::vector<int32_t>{0, 1, 4, 2})) << "expert 0 in turn";
    }
    const auto stats = eplb::stats::load(config.path);
    EXPECT_EQ(stats.layer_loads(3, 2), (std::vector<double>{4, 4, 0, 0, 10, 0, 0, 2}));
}

} // namespace

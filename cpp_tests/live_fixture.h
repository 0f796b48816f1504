// What the tests of live tables share: plans of one layer, and the slots that a dispatch of their tables
// gives.
#ifndef EPLB_TESTS_LIVE_FIXTURE_H
#define EPLB_TESTS_LIVE_FIXTURE_H

#include <eplb_live.hpp>

#include "dispatch_fixture.h"
#include "emulation/checkers.h"

struct plan_deleter {
    void operator()(eplb_plan *plan) const { eplb_plan_destroy(plan); }
};

/// A plan, and the slots of its layer afterwards.
struct planned {
    std::unique_ptr<eplb_plan, plan_deleter> plan;
    layer_placement after;

    operator const eplb_plan *() const { return plan.get(); }
};

/// As placement_of(), of a layer whose slots may be empty.
inline eplb::placement with_empty_slots(const layer_placement &layer, const std::vector<int32_t> &layers) {
    eplb::placement_config config;
    config.num_experts = layer.num_experts;
    config.num_ranks = layer.num_ranks;
    config.num_slots = static_cast<uint32_t>(layer.experts.size());
    config.allow_empty_slots = true;
    std::vector<int32_t> experts;
    for (size_t i = 0; i < layers.size(); i++) {
        experts.insert(experts.end(), layer.experts.begin(), layer.experts.end());
    }
    return eplb::placement::create(config, layers, experts);
}

inline planned plan_of(const layer_placement &from, const layer_placement &to, int32_t layer = 3) {
    const auto before = with_empty_slots(from, {layer}), wanted = with_empty_slots(to, {layer});
    eplb_plan *plan = nullptr;
    EXPECT_EQ(eplb_plan_create(before.get(), wanted.get(), nullptr, &plan), EPLB_STATUS_OK)
        << eplb_last_error_message();
    planned made = {std::unique_ptr<eplb_plan, plan_deleter>(plan), from};
    const int32_t *experts = nullptr;
    size_t size = 0;
    EXPECT_EQ(eplb_plan_layer_experts(plan, layer, 0, &experts, &size), EPLB_STATUS_OK)
        << eplb_last_error_message();
    made.after.experts.assign(experts, experts + size);
    return made;
}

/// Ids and slots of one call, on the device.
struct routed_batch {
    uint32_t choices;
    std::vector<int32_t> values;
    engine_array<int32_t> ids, slots;

    routed_batch(const std::vector<int32_t> &values, uint32_t choices, const engine_stream &stream)
        : choices(choices), values(values), ids(values.size()), slots(values.size()) {
        ids.upload(this->values, stream);
        stream.synchronize();
    }

    void route(const eplb::dispatch &dispatch, const engine_stream &stream, int32_t layer = 3) const {
        dispatch.route(layer, ids.data(), static_cast<uint32_t>(values.size() / choices), nullptr,
                       slots.data(), stream);
    }
    /// The slots, after all work of the stream.
    std::vector<int32_t> result(const engine_stream &stream) const {
        return download(slots.data(), values.size(), stream);
    }
};

/// The slots that a new dispatch of a layer gives.
inline std::vector<int32_t> slots_of_new(const layer_placement &layer, eplb::dispatch_config config,
                                         const routed_batch &batch) {
    config.live = false;
    config.layer_ids = {};
    return routed(eplb::dispatch::create(with_empty_slots(layer, {3}), config), batch.values, batch.choices);
}

inline uint64_t generation_of(const eplb::dispatch &dispatch, int32_t layer = 3) {
    uint64_t generation = 0;
    EXPECT_EQ(eplb_dispatch_get_generation(dispatch.get(), layer, &generation), EPLB_STATUS_OK);
    return generation;
}

/// The first number under a checker, the second one natively.
inline size_t when_checked(size_t checked, size_t natively) {
#ifdef EPLB_SANITIZE
    (void)natively;
    return checked;
#else
    return emulation::under_valgrind() ? checked : natively;
#endif
}

#endif

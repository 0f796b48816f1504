// What the tests of a dispatch share.
#ifndef EPLB_TESTS_DISPATCH_FIXTURE_H
#define EPLB_TESTS_DISPATCH_FIXTURE_H

#include <gtest/gtest.h>

#include <eplb.hpp>

#include "engine.h"
#include "files.h"
#include "route_reference.h"
#include "routing.h"

using ids32 = std::vector<int32_t>;

constexpr eplb_rule all_rules[] = {EPLB_RULE_ROUND_ROBIN, EPLB_RULE_TOKEN_HASH, EPLB_RULE_NEAREST,
                                   EPLB_RULE_LEAST_LOADED};

/// Slots 0 1 2 | 3 4 5 hold experts 0 1 2 | 3 0 1: expert 0 is in slots 0 and 4, expert 1 in 1 and 5.
inline const layer_placement small = {4, 2, {0, 1, 2, 3, 0, 1}};

inline eplb::placement placement_of(const layer_placement &layer, std::vector<int32_t> layers = {3}) {
    eplb::placement_config config;
    config.num_experts = layer.num_experts;
    config.num_ranks = layer.num_ranks;
    config.num_slots = static_cast<uint32_t>(layer.experts.size());
    std::vector<int32_t> experts;
    for (size_t i = 0; i < layers.size(); i++) {
        experts.insert(experts.end(), layer.experts.begin(), layer.experts.end());
    }
    return eplb::placement::create(config, layers, experts);
}

/// Each expert in a slot, and the spare slots at random: a placement of any solver, with duplicates.
inline layer_placement a_placement(uint32_t num_experts, uint32_t num_ranks, uint32_t spare_a_rank,
                                   uint64_t seed) {
    std::mt19937_64 random(seed);
    const uint32_t slots = (num_experts + num_ranks - 1) / num_ranks * num_ranks + spare_a_rank * num_ranks;
    std::vector<int32_t> experts(slots);
    for (uint32_t slot = 0; slot < slots; slot++) {
        // Low experts are hot.
        experts[slot] =
            static_cast<int32_t>(slot < num_experts ? slot : random() % (random() % num_experts + 1));
    }
    std::shuffle(experts.begin(), experts.end(), random);
    return {num_experts, num_ranks, experts};
}

inline eplb::dispatch_config a_config(const layer_placement &layer, eplb_rule rule, uint32_t choices = 1) {
    eplb::dispatch_config config;
    config.num_ranks = layer.num_ranks;
    config.experts_per_token = choices;
    config.rule = rule;
    config.device = engine::get().device();
    return config;
}

/// Waits for the stream and copies from the device.
template <class T> std::vector<T> download(const T *data, size_t size, const engine_stream &stream) {
    std::vector<T> values(size);
    stream.synchronize();
    if (size == 0) {
        return values;
    }
    if (engine::get().is_cuda()) {
        engine::check(engine::get().driver().cuMemcpyDtoH_v2(
                          values.data(), reinterpret_cast<CUdeviceptr>(data), size * sizeof(T)),
                      "cuMemcpyDtoH");
    } else {
        std::memcpy(values.data(), data, size * sizeof(T));
    }
    return values;
}

/// How ids are passed to a route call.
struct how {
    bool in_place = false;
    /// Ids by which the arrays are off the alignment of vector loads.
    size_t skew = 0;
    const int32_t *num_valid = nullptr;
};

/// The slots of the ids, and checks that nothing else is written.
template <class Id>
std::vector<Id> routed(const eplb::dispatch &dispatch, const std::vector<Id> &ids, uint32_t choices,
                       how how = {}, int32_t layer = 3) {
    engine_stream stream;
    std::vector<Id> padded(how.skew, 7);
    padded.insert(padded.end(), ids.begin(), ids.end());
    engine_array<Id> in(padded.size() + 1), out(padded.size() + 1);
    const std::vector<Id> garbage(padded.size() + 1, 77);
    in.upload(padded, stream);
    out.upload(garbage, stream);
    Id *target = (how.in_place ? in : out).data() + how.skew;
    dispatch.route(layer, in.data() + how.skew, static_cast<uint32_t>(ids.size() / choices), how.num_valid,
                   target, stream);
    if (!how.in_place) {
        const auto after = download(out.data(), padded.size() + 1, stream);
        for (size_t i = 0; i < how.skew; i++) {
            EXPECT_EQ(after[i], 77) << "written before the slots";
        }
        EXPECT_EQ(after.back(), 77) << "written behind the slots";
        EXPECT_EQ(download(in.data(), padded.size(), stream), padded) << "the ids were written to";
    }
    return download<Id>(target, ids.size(), stream);
}

#endif

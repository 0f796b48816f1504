// What a dispatch refuses, and the messages: on the host, over fake_cuda in both of its modes, and on a GPU.
#include <eplb_tools.hpp>

#include <numeric>

#include "dispatch_fixture.h"

namespace {

/// The message of a call that fails with EPLB_STATUS_INVALID_ARGUMENT.
std::string message(eplb_status status) {
    EXPECT_EQ(status, EPLB_STATUS_INVALID_ARGUMENT);
    return status == EPLB_STATUS_OK ? "nothing" : eplb_last_error_message();
}
std::string message(const std::function<void()> &call) {
    try {
        call();
    } catch (const eplb::error &error) {
        EXPECT_EQ(error.status(), EPLB_STATUS_INVALID_ARGUMENT);
        return error.what();
    }
    return "nothing";
}

/// A recorder of the dispatch's layer 3.
eplb::recorder a_recorder(const std::string &path, uint32_t num_experts) {
    eplb::recorder_config config;
    config.path = path;
    config.iter_stop = 2;
    config.num_ranks = 1;
    config.num_experts = num_experts;
    config.experts_per_token = 2;
    config.layer_ids = {3};
    config.device = engine::get().device();
    return eplb::recorder::create(config);
}

/// A dispatch of 2 experts a token, a recorder that matches it, and arrays of 2 tokens on the device.
class DispatchRefusals : public testing::Test {
  protected:
    using route_call = std::function<eplb_status(const eplb_expert_ids *, const eplb_slot_ids *)>;

    /// Every call that routes, by name.
    std::vector<std::pair<const char *, route_call>> route_calls() {
        return {{"route",
                 [&](const eplb_expert_ids *expert_ids, const eplb_slot_ids *slot_ids) {
                     return eplb_dispatch_route(dispatch.get(), 3, expert_ids, 2, nullptr, slot_ids, stream);
                 }},
                {"route_and_count", [&](const eplb_expert_ids *expert_ids, const eplb_slot_ids *slot_ids) {
                     return eplb_dispatch_route_and_count(dispatch.get(), recorder.get(), 3, expert_ids, 2,
                                                          nullptr, slot_ids, stream);
                 }}};
    }

    /// Checks that no call has written a slot or counted an id, then that a good call does both.
    void expect_nothing_was_routed() {
        EXPECT_EQ(download(slots.data(), slots.size(), stream), ids32(8, 77));
        EXPECT_EQ(recorder.info().ids_counted, 0u);
        for (const auto &[name, call] : route_calls()) {
            EXPECT_EQ(call(&good_ids, &good_slots), EPLB_STATUS_OK) << name;
        }
        EXPECT_EQ(download(slots.data(), 4, stream), (ids32{0, 1, 4, 5}));
        EXPECT_EQ(recorder.info().ids_counted, 4u);
    }

    void SetUp() override {
        const ids32 chosen = {0, 1, 0, 1, 0, 0, 0, 0}, unwritten(8, 77);
        ids.upload(chosen, stream);
        slots.upload(unwritten, stream);
        recorder.begin_iteration(0, stream);
        stream.synchronize();
    }

    const temporary_directory directory;
    const eplb::placement placement = placement_of(small);
    const eplb::dispatch_config config = a_config(small, EPLB_RULE_ROUND_ROBIN, 2);
    eplb::dispatch dispatch = eplb::dispatch::create(placement, config);
    eplb::recorder recorder = a_recorder(directory / "dump", 4);
    const engine_stream stream;
    const engine_array<int32_t> ids{8}, slots{8};
    const eplb_expert_ids good_ids = {ids.data(), EPLB_DTYPE_INT32, 0};
    const eplb_slot_ids good_slots = {slots.data(), EPLB_DTYPE_INT32, 0};
};

} // namespace

TEST_F(DispatchRefusals, CreateNamesTheFieldThatDoesNotFit) {
    const auto refused = [&](const std::function<void(eplb::dispatch_config &)> &change) {
        auto changed = config;
        change(changed);
        return message([&] { eplb::dispatch::create(placement, changed); });
    };
    EXPECT_EQ(refused([](auto &c) { c.num_ranks = 4; }), "config->num_ranks is 4, the placement has 2 ranks");
    EXPECT_EQ(refused([](auto &c) { c.num_slots = 8; }), "config->num_slots is 8, the placement has 6 slots");
    EXPECT_EQ(refused([](auto &c) { c.rank = 2; }), "rank is 2, the placement has 2 ranks");
    EXPECT_EQ(refused([](auto &c) { c.experts_per_token = 5; }),
              "experts_per_token is 5, 1 to the 4 experts of the placement expected");
    EXPECT_EQ(refused([](auto &c) {
                  c.layer_ids = {3, 61};
              }),
              "layer 61 is not in this placement of 1 layers from 3 to 3");
    EXPECT_EQ(refused([](auto &c) { c.layer_ids = {3, 3}; }), "layer_ids names layer 3 twice");
    EXPECT_EQ(refused([](auto &c) { c.max_replicas = 1; }),
              "max_replicas is 1, and expert 0 of layer 3 has 2 slots");
    EXPECT_EQ(refused([](auto &c) { c.max_replicas = UINT32_MAX; }),
              "max_replicas is 4294967295, and no expert can have more than the 6 slots of the placement");
    EXPECT_EQ(refused([](auto &c) { c.rule = 9; }),
              "config->rule is 9; expected EPLB_RULE_DEFAULT (0), EPLB_RULE_ROUND_ROBIN (1), "
              "EPLB_RULE_TOKEN_HASH (2), EPLB_RULE_NEAREST (3), EPLB_RULE_LEAST_LOADED (4)");
    EXPECT_EQ(refused([](auto &c) { c.rule = -1; }).find("config->rule is -1; expected "), 0u);
    EXPECT_EQ(
        refused([](auto &c) { c.invalid_slot = 1; }),
        "invalid_slot is 1, and slot 1 is one of rank 0: a negative one, 0 for the default, or one from 6 "
        "on expected");
    EXPECT_EQ(
        refused([](auto &c) { c.invalid_slot = 5; }).find("invalid_slot is 5, and slot 5 is one of rank 1"),
        0u);
    EXPECT_EQ(refused([](auto &c) {
                  c.shared_slot_ids = {7, -1};
              }),
              "shared_slot_ids[1] is -1: a slot expected");
    EXPECT_EQ(refused([](auto &c) { c.shared_slot_ids = {6}; }),
              "shared_slot_ids[0] is 6, the slot of ids without an expert: set invalid_slot to another one");
    EXPECT_EQ(refused([](auto &c) {
                  c.invalid_slot = 9;
                  c.shared_slot_ids = {6, 9};
              }),
              "shared_slot_ids[1] is 9, the slot of ids without an expert: set invalid_slot to another one");
    EXPECT_EQ(refused([](auto &c) {
                  c.shared_slot_ids = {8, 4};
              }),
              "shared_slot_ids[1] is 4, and slot 4 of layer 3 holds expert 0: an empty slot, or one that the "
              "placement does not have, expected");
    EXPECT_EQ(refused([](auto &c) {
                  c.shared_slot_ids = {8};
                  c.experts_per_token = 6;
              }),
              "experts_per_token is 6, 1 to the 4 experts of the placement and the 1 shared ones expected");
}

TEST_F(DispatchRefusals, RouteNamesTheArgumentThatDoesNotFit) {
    const auto call = [&](int32_t layer, uint32_t tokens, int32_t *slot_ids) {
        return message([&] { dispatch.route(layer, ids.data(), tokens, nullptr, slot_ids); });
    };
    EXPECT_EQ(call(4, 2, ids.data()),
              "layer 4 is not one of the 1 that the dispatch was created with, from 3 to 3");
    EXPECT_EQ(call(3, 2, nullptr), "slot_ids->data is NULL");
    EXPECT_EQ(call(3, 2, ids.data() + 3),
              "slot_ids overlaps expert_ids: pass the same array, or separate ones");
    EXPECT_EQ(call(3, 1u << 31, ids.data()).substr(0, 54),
              "2147483648 tokens of 2 ids are more than the 214748364");
    EXPECT_EQ(message([&] { dispatch.register_rank_counts(3, ids.data(), EPLB_DTYPE_INT32); }),
              "only EPLB_RULE_LEAST_LOADED uses the counts of all ranks");
    expect_nothing_was_routed();
}

TEST_F(DispatchRefusals, RegisterRankCountsRefusesMoreCountsThanFit) {
    layer_placement layer = {1 << 16, 1 << 16, std::vector<int32_t>(1 << 16)};
    std::iota(layer.experts.begin(), layer.experts.end(), 0);
    auto config = a_config(layer, EPLB_RULE_LEAST_LOADED, 2);
    config.device = EPLB_DEVICE_HOST;
    auto dispatch = eplb::dispatch::create(placement_of(layer), config);
    // Nothing is read.
    const int32_t count = 0;
    EXPECT_EQ(message([&] { dispatch.register_rank_counts(3, &count, EPLB_DTYPE_INT32); }),
              "layer 3: 65536 ranks of 65536 experts have 2^32 counts or more; register none");
}

TEST_F(DispatchRefusals, RoutesRefuseRowStridesBelowTheRow) {
    for (const auto &[name, call] : route_calls()) {
        const std::string is = "->row_stride is 1; at least experts_per_token, 2, or 0 expected";
        eplb_expert_ids strided_ids = good_ids;
        strided_ids.row_stride = 1;
        eplb_slot_ids strided_slots = good_slots;
        strided_slots.row_stride = 1;
        EXPECT_EQ(message(call(&strided_ids, &good_slots)), "expert_ids" + is) << name;
        EXPECT_EQ(message(call(&good_ids, &strided_slots)), "slot_ids" + is) << name;
        EXPECT_EQ(message(call(&strided_ids, &strided_slots)), "expert_ids" + is) << name;
    }
    expect_nothing_was_routed();
    const eplb_expert_ids dense_ids = {ids.data(), EPLB_DTYPE_INT32, 2};
    const eplb_slot_ids dense_slots = {slots.data(), EPLB_DTYPE_INT32, 2};
    for (const auto &[name, call] : route_calls()) {
        EXPECT_EQ(call(&dense_ids, &dense_slots), EPLB_STATUS_OK) << name;
    }
    stream.synchronize();
}

TEST_F(DispatchRefusals, RoutesRefuseOverlappingArraysAndAnotherLayoutInPlace) {
    const std::string apart = "slot_ids overlaps expert_ids: pass the same array, or separate ones",
                      same = "slot_ids is expert_ids with another dtype or row_stride: pass equal ones, or "
                             "separate arrays";
    const std::pair<eplb_slot_ids, std::string> bad[] = {
        {{ids.data(), EPLB_DTYPE_INT32, 3}, same},
        {{ids.data(), EPLB_DTYPE_INT64, 0}, same},
        // The second row of two begins behind the ids; its first one does not.
        {{ids.data() + 2, EPLB_DTYPE_INT32, 8}, apart},
    };
    for (const auto &[name, call] : route_calls()) {
        for (const auto &[slot_ids, expected] : bad) {
            EXPECT_EQ(message(call(&good_ids, &slot_ids)), expected) << name;
        }
    }
    expect_nothing_was_routed();
}

TEST_F(DispatchRefusals, RoutesRefuseUnknownTypes) {
    const auto with_types = [&](const route_call &call, eplb_dtype of_ids, eplb_dtype of_slots) {
        const eplb_expert_ids expert_ids = {ids.data(), of_ids, 0};
        const eplb_slot_ids slot_ids = {slots.data(), of_slots, 0};
        return message(call(&expert_ids, &slot_ids));
    };
    for (const auto &[name, call] : route_calls()) {
        for (const eplb_dtype unknown : {2, -1, INT32_MAX}) {
            const std::string expected =
                " is " + std::to_string(unknown) + "; expected EPLB_DTYPE_INT32 (0), EPLB_DTYPE_INT64 (1)";
            EXPECT_NE(with_types(call, unknown, EPLB_DTYPE_INT32).find(expected), std::string::npos) << name;
            EXPECT_NE(with_types(call, EPLB_DTYPE_INT32, unknown).find(expected), std::string::npos) << name;
        }
    }
    expect_nothing_was_routed();
}

TEST_F(DispatchRefusals, RoutesRefuseMissingStructsAndArrays) {
    const eplb_expert_ids no_ids = {nullptr, EPLB_DTYPE_INT32, 0};
    const eplb_slot_ids no_slots = {nullptr, EPLB_DTYPE_INT32, 0};
    for (const auto &[name, call] : route_calls()) {
        EXPECT_EQ(message(call(nullptr, &good_slots)), "expert_ids is NULL") << name;
        EXPECT_EQ(message(call(&good_ids, nullptr)), "slot_ids is NULL") << name;
        EXPECT_EQ(message(call(nullptr, nullptr)), "expert_ids is NULL") << name;
        EXPECT_EQ(message(call(&no_ids, &good_slots)), "expert_ids->data is NULL") << name;
        EXPECT_NE(message(call(&good_ids, &no_slots)).find("is NULL"), std::string::npos) << name;
    }
    EXPECT_EQ(message(eplb_dispatch_route(nullptr, 3, &good_ids, 2, nullptr, &good_slots, stream)),
              "dispatch is NULL");
    EXPECT_EQ(message(eplb_dispatch_route_and_count(dispatch.get(), nullptr, 3, &good_ids, 2, nullptr,
                                                    &good_slots, stream)),
              "recorder is NULL");
    expect_nothing_was_routed();
    // No tokens need no arrays, but the structs.
    EXPECT_EQ(eplb_dispatch_route(dispatch.get(), 3, &no_ids, 0, nullptr, &no_slots, stream), EPLB_STATUS_OK);
    EXPECT_EQ(message(eplb_dispatch_route(dispatch.get(), 3, nullptr, 0, nullptr, &no_slots, stream)),
              "expert_ids is NULL");
}

TEST_F(DispatchRefusals, RouteAndCountRefusesARecorderOfOtherSizes) {
    const auto other = a_recorder(directory / "other", 6);
    EXPECT_EQ(
        message([&] { dispatch.route_and_count(other, 3, ids.data(), 1, nullptr, ids.data(), stream); }),
        "the recorder counts 6 experts and 2 ids a token, the dispatch has 4 and 2; its num_experts, id_kind "
        "and "
        "experts_per_token must match");
    expect_nothing_was_routed();
}

TEST_F(DispatchRefusals, RoutedLoadRefusesOtherRowStridesUnknownTypesAndMissingArrays) {
    // In host memory, whatever the dispatch's device is.
    const int32_t chosen[] = {0, 1, 0, 2};
    const uint32_t rank_tokens[] = {1, 1};
    double loads[] = {77, 77};
    const auto call = [&](const eplb_expert_ids *expert_ids) {
        const eplb_dispatch_config c = config.c();
        return eplb_placement_routed_load(placement.get(), &c, 3, expert_ids, rank_tokens, 0, loads);
    };
    for (const uint32_t stride : {1u, 3u, 4u, UINT32_MAX}) {
        const eplb_expert_ids strided = {chosen, EPLB_DTYPE_INT32, stride};
        EXPECT_EQ(message(call(&strided)),
                  "expert_ids->row_stride is " + std::to_string(stride) +
                      "; recorded ids have no gaps: 0 or experts_per_token, 2, expected");
    }
    const eplb_expert_ids unknown = {chosen, 2, 0}, none = {nullptr, EPLB_DTYPE_INT32, 0};
    EXPECT_EQ(message(call(&unknown)),
              "expert_ids->dtype is 2; expected EPLB_DTYPE_INT32 (0), EPLB_DTYPE_INT64 (1)");
    EXPECT_EQ(message(call(&none)), "expert_ids->data is NULL");
    EXPECT_EQ(message(call(nullptr)), "expert_ids is NULL");
    EXPECT_EQ(loads[0] + loads[1], 2 * 77);
    for (const uint32_t stride : {0u, 2u}) {
        const eplb_expert_ids dense = {chosen, EPLB_DTYPE_INT32, stride};
        EXPECT_EQ(call(&dense), EPLB_STATUS_OK);
        // Each rank's first ids of experts 0 and 1, and expert 2, are on rank 0.
        EXPECT_EQ(loads[0], 4);
        EXPECT_EQ(loads[1], 0);
    }
}

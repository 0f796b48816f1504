// Layouts of ids and slots, the invalid slot, shared experts and padding of -1, on the host and over a
// driver.
#include <gtest/gtest.h>

#include <map>

#include "dispatch_fixture.h"

#include <eplb_tools.hpp>

namespace {

constexpr uint32_t choices = 4, num_tokens = 700;
constexpr int64_t num_experts = 64;

/// How the arrays of one test lie in memory, and what the dispatch is told.
struct layout {
    uint32_t ids_gap, slots_gap;
    int32_t invalid_slot;
    std::vector<int32_t> shared_slots;
};

const layer_placement &the_layer() {
    static const layer_placement layer = a_placement(num_experts, 8, 2, 4);
    return layer;
}

/// The layouts: gaps on either side, DeepEP's invalid slot, and shared experts behind the placement's slots.
std::vector<layout> layouts() {
    const int32_t behind = static_cast<int32_t>(the_layer().num_slots());
    return {
        {0, 0, 0, {}},
        {0, 0, -1, {}},
        {1, 0, 0, {}},
        {0, 3, -1, {}},
        {2, 1, INT32_MIN, {behind + 1}},
        {0, 0, -1, {behind, behind + 7, behind}},
        {5, 5, behind + 20, {behind, behind + 1}},
    };
}

/// Ids of experts, of shared experts, of -1, and out of range.
template <class Id> std::vector<Id> some_ids(size_t tokens, size_t num_shared, uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<Id> ids(tokens * choices);
    for (Id &id : ids) {
        switch (random() % 12) {
        case 0:
            id = -1;
            break;
        case 1:
            id = std::numeric_limits<Id>::min();
            break;
        case 2:
            id = static_cast<Id>(sizeof(Id) == 8 ? (int64_t(1) << 32) + 1 : -2);
            break;
        case 3:
        case 4:
            id = static_cast<Id>(static_cast<uint64_t>(num_experts) + random() % (num_shared + 1));
            break;
        default:
            id = static_cast<Id>(random() % (random() % static_cast<uint64_t>(num_experts) + 1));
        }
    }
    return ids;
}

/// Rows with a gap behind each, whose ids are `filler`.
template <class To, class From>
std::vector<To> with_gaps(const std::vector<From> &ids, uint32_t gap, To filler) {
    std::vector<To> rows;
    for (size_t i = 0; i < ids.size(); i++) {
        rows.push_back(static_cast<To>(ids[i]));
        if (i % choices == choices - 1) {
            rows.insert(rows.end(), gap, filler);
        }
    }
    return rows;
}

/// What a recorder must have counted.
struct expectation {
    std::vector<double> cells;
    uint64_t counted = 0, out_of_range = 0, padding = 0;
};

/// The slots by docs/routing.md: what the rule gives, with the shared experts and the invalid slot on top.
template <class Id>
std::vector<int64_t> slots_of(eplb_rule rule, const std::vector<Id> &ids, size_t valid, const layout &layout,
                              bool counts_slots, expectation *counts) {
    const auto &layer = the_layer();
    const std::vector<int32_t> nodes(layer.num_ranks);
    std::vector<int64_t> wide(ids.begin(), ids.end());
    std::vector<int64_t> slots;
    switch (rule) {
    case EPLB_RULE_ROUND_ROBIN:
        slots = round_robin(layer, wide, valid, 0);
        break;
    case EPLB_RULE_TOKEN_HASH:
        slots = token_hash(layer, wide, valid, choices);
        break;
    case EPLB_RULE_NEAREST:
        slots = nearest(layer, wide, valid, 0, nodes);
        break;
    default:
        slots = least_loaded(layer, wide, valid);
    }
    const int64_t num_slots = layer.num_slots();
    for (size_t i = 0; i < slots.size(); i++) {
        const auto shared = static_cast<uint64_t>(wide[i]) - static_cast<uint64_t>(num_experts);
        if (i < valid && slots[i] != num_slots) {
            counts->cells[static_cast<size_t>(counts_slots ? slots[i] : wide[i])]++;
            counts->counted++;
        } else if (i >= valid || wide[i] == -1) {
            counts->padding++;
        } else if (wide[i] >= num_experts && shared < layout.shared_slots.size()) {
            slots[i] = layout.shared_slots[shared];
        } else {
            counts->out_of_range++;
        }
        if (slots[i] == num_slots && (i >= valid || shared >= layout.shared_slots.size())) {
            slots[i] = layout.invalid_slot == 0 ? num_slots : layout.invalid_slot;
        }
    }
    return slots;
}

eplb::recorder_config a_recording(const std::string &path, uint32_t cells, const layout &layout) {
    eplb::recorder_config recording;
    recording.path = path;
    recording.iter_stop = 2;
    recording.num_ranks = 1;
    recording.num_experts = cells;
    recording.experts_per_token = choices;
    recording.layer_ids = {3};
    recording.device = engine::get().device();
    recording.num_shared_experts = static_cast<uint32_t>(layout.shared_slots.size());
    return recording;
}

void expect_counts(eplb::recorder &recorder, const std::string &path, const expectation &expected,
                   size_t num_shared, const engine_stream &stream) {
    recorder.dump(stream);
    recorder.flush();
    const eplb_recorder_info info = recorder.info();
    EXPECT_EQ(info.ids_counted, expected.counted);
    EXPECT_EQ(info.ids_out_of_range, expected.out_of_range);
    EXPECT_EQ(info.ids_padding, expected.padding);
    // Of the ids that are neither padding nor shared experts, a token has the rest of its choices.
    const uint64_t ids = expected.counted + expected.out_of_range, of_token = choices - num_shared;
    EXPECT_EQ(recorder.layer_tokens(1), (std::vector<uint64_t>{(ids + of_token - 1) / of_token}));
    eplb::stats_options options;
    options.iter_stop = info.counted_stop;
    EXPECT_EQ(eplb::stats::load(path, options).layer_loads(3), expected.cells);
}

/// Routes and counts by a captured graph, and at once; the two must agree with the rule's definition.
template <class Id, class Slot> void check(eplb_rule rule, const layout &layout, bool counts_slots) {
    SCOPED_TRACE(testing::Message() << "rule " << rule << ", int" << 8 * sizeof(Id) << " to int"
                                    << 8 * sizeof(Slot) << ", gaps " << layout.ids_gap << " and "
                                    << layout.slots_gap << ", " << layout.shared_slots.size()
                                    << " shared, counting " << (counts_slots ? "slots" : "experts"));
    const auto &layer = the_layer();
    const temporary_directory directory;
    const uint32_t cells = static_cast<uint32_t>(counts_slots ? layer.num_slots() : num_experts);
    auto recording = a_recording(directory / "dump", cells, layout);
    recording.id_kind = counts_slots ? EPLB_ID_KIND_SLOT : EPLB_ID_KIND_EXPERT;
    auto recorder = eplb::recorder::create(recording);
    eplb::dispatch_config config = a_config(layer, rule, choices);
    config.invalid_slot = layout.invalid_slot;
    config.shared_slot_ids = layout.shared_slots;
    const auto dispatch = eplb::dispatch::create(placement_of(layer), config);
    const eplb_dispatch_info info = dispatch.info();
    EXPECT_EQ(info.invalid_slot, layout.invalid_slot == 0 ? layer.num_slots() : layout.invalid_slot);
    EXPECT_EQ(info.num_shared_experts, layout.shared_slots.size());

    engine_stream stream;
    const std::vector<int32_t> valid = {num_tokens - 50};
    engine_array<int32_t> num_valid(1);
    num_valid.upload(valid, stream);
    engine_array<Id> ids(num_tokens * (choices + layout.ids_gap));
    engine_array<Slot> slots(num_tokens * (choices + layout.slots_gap));
    const std::vector<Slot> garbage(slots.size(), 77);
    const eplb::expert_ids given(ids.data(), layout.ids_gap == 0 ? 0 : choices + layout.ids_gap);
    const eplb::slot_ids wanted(slots.data(), layout.slots_gap == 0 ? 0 : choices + layout.slots_gap);
    const auto route = [&] {
        dispatch.route_and_count(recorder, 3, given, num_tokens, num_valid.data(), wanted, stream);
    };
    const engine_graph graph(stream, route);
    expectation expected;
    expected.cells.resize(cells);
    for (int64_t iteration = 0; iteration < 2; iteration++) {
        const auto batch =
            some_ids<Id>(num_tokens, layout.shared_slots.size(), static_cast<uint64_t>(iteration));
        // An expert's id, if the gaps were read.
        const auto rows = with_gaps<Id>(batch, layout.ids_gap, 0);
        ids.upload(rows, stream);
        slots.upload(garbage, stream);
        recorder.begin_iteration(iteration, stream);
        if (iteration == 0) {
            graph.replay(stream);
        } else {
            route();
        }
        const auto routed =
            slots_of(rule, batch, static_cast<size_t>(valid[0]) * choices, layout, counts_slots, &expected);
        EXPECT_EQ(download(slots.data(), slots.size(), stream),
                  (with_gaps<Slot>(routed, layout.slots_gap, 77)));
        EXPECT_EQ(download(ids.data(), ids.size(), stream), rows) << "the ids were written to";
    }
    // The dump sums its iterations, so the cells of both are compared at once.
    expect_counts(recorder, directory / "dump", expected, layout.shared_slots.size(), stream);
}

} // namespace

TEST(Ids, AreRoutedAndCountedInAnyLayout) {
    for (const eplb_rule rule : all_rules) {
        bool counts_slots = false;
        for (const auto &layout : layouts()) {
            check<int32_t, int32_t>(rule, layout, counts_slots);
            check<int32_t, int64_t>(rule, layout, !counts_slots);
            check<int64_t, int32_t>(rule, layout, counts_slots);
            check<int64_t, int64_t>(rule, layout, !counts_slots);
            counts_slots = !counts_slots;
        }
    }
}

TEST(Ids, AreRoutedInPlaceWithGaps) {
    const auto &layer = the_layer();
    for (const auto &layout : layouts()) {
        for (const eplb_rule rule : all_rules) {
            for (const bool counts_slots : {false, true}) {
                const temporary_directory directory;
                const uint32_t cells = static_cast<uint32_t>(counts_slots ? layer.num_slots() : num_experts);
                auto recording = a_recording(directory / "dump", cells, layout);
                recording.id_kind = counts_slots ? EPLB_ID_KIND_SLOT : EPLB_ID_KIND_EXPERT;
                auto recorder = eplb::recorder::create(recording);
                eplb::dispatch_config config = a_config(layer, rule, choices);
                config.invalid_slot = layout.invalid_slot;
                config.shared_slot_ids = layout.shared_slots;
                const auto dispatch = eplb::dispatch::create(placement_of(layer), config);
                engine_stream stream;
                const auto batch = some_ids<int64_t>(300, layout.shared_slots.size(), 9);
                const auto rows = with_gaps<int64_t>(batch, layout.ids_gap, 5);
                engine_array<int64_t> ids(rows.size());
                ids.upload(rows, stream);
                recorder.begin_iteration(0, stream);
                const uint32_t stride = choices + layout.ids_gap;
                dispatch.route_and_count(recorder, 3, eplb::expert_ids(ids.data(), stride), 300, nullptr,
                                         eplb::slot_ids(ids.data(), stride), stream);
                expectation expected;
                expected.cells.resize(cells);
                const auto slots = slots_of(rule, batch, batch.size(), layout, counts_slots, &expected);
                EXPECT_EQ(download(ids.data(), rows.size(), stream),
                          (with_gaps<int64_t>(slots, layout.ids_gap, 5)))
                    << "rule " << rule;
                expect_counts(recorder, directory / "dump", expected, layout.shared_slots.size(), stream);
            }
        }
    }
}

TEST(Ids, AreCountedWithoutADispatchInAnyLayout) {
    for (const auto &layout : layouts()) {
        const temporary_directory directory;
        auto recorder = eplb::recorder::create(
            a_recording(directory / "dump", static_cast<uint32_t>(num_experts), layout));
        engine_stream stream;
        const auto batch = some_ids<int64_t>(num_tokens, layout.shared_slots.size(), 5);
        const auto rows = with_gaps<int64_t>(batch, layout.ids_gap, 0);
        engine_array<int64_t> ids(rows.size());
        ids.upload(rows, stream);
        const std::vector<int32_t> valid = {600};
        engine_array<int32_t> num_valid(1);
        num_valid.upload(valid, stream);
        const eplb::expert_ids given(ids.data(), choices + layout.ids_gap);
        recorder.register_buffer(3, given, num_tokens, num_valid.data(), stream);
        const engine_graph graph(stream, [&] { recorder.count(3, num_tokens, stream); });
        recorder.begin_iteration(0, stream);
        graph.replay(stream);
        recorder.count_ids(3, given, num_tokens, nullptr, stream);
        expectation expected;
        expected.cells.resize(static_cast<size_t>(num_experts));
        slots_of(EPLB_RULE_TOKEN_HASH, batch, 600 * choices, layout, false, &expected);
        slots_of(EPLB_RULE_TOKEN_HASH, batch, batch.size(), layout, false, &expected);
        expect_counts(recorder, directory / "dump", expected, layout.shared_slots.size(), stream);
    }
}

TEST(Ids, OfMinusOneRaiseNoAlarm) {
    const temporary_directory directory;
    auto recorder = eplb::recorder::create(a_recording(directory / "dump", 64, {0, 0, 0, {}}));
    engine_stream stream;
    // The last token of three is a dummy.
    const ids32 batch = {0, 1, 2, 3, 4, 5, 6, 63, -1, -1, -1, -1};
    engine_array<int32_t> ids(batch.size());
    ids.upload(batch, stream);
    recorder.begin_iteration(0, stream);
    recorder.count_ids(3, ids.data(), 3, nullptr, stream);
    stream.synchronize();
    const eplb_recorder_info info = recorder.info();
    EXPECT_EQ(info.ids_counted, 8u);
    EXPECT_EQ(info.ids_out_of_range, 0u);
    EXPECT_EQ(info.ids_padding, 4u);
    EXPECT_EQ(recorder.layer_tokens(1), (std::vector<uint64_t>{2}));
}

TEST(Ids, OfSharedExpertsTakeNoQuota) {
    // Expert 0 is on both ranks. Ten tokens choose it, and all of them the shared expert too.
    const layer_placement layer = {3, 2, {0, 1, 0, 2}};
    eplb::dispatch_config config = a_config(layer, EPLB_RULE_LEAST_LOADED, 2);
    config.invalid_slot = -1;
    config.shared_slot_ids = {4};
    const auto dispatch = eplb::dispatch::create(placement_of(layer), config);
    ids32 batch;
    ids32 expected;
    for (int32_t token = 0; token < 10; token++) {
        batch.insert(batch.end(), {0, 3});
        expected.insert(expected.end(), {token < 5 ? 0 : 2, 4});
    }
    EXPECT_EQ(routed(dispatch, batch, 2), expected);
}

TEST(Ids, OfASharedExpertMayUseAnEmptySlot) {
    // A rank with fewer slots leaves the last one empty; -1 in the placement.
    eplb::placement_config shape;
    shape.num_experts = 3;
    shape.num_ranks = 2;
    shape.rank_num_slots = {2, 1};
    const auto placement =
        eplb::placement::create(shape, std::vector<int32_t>{3}, std::vector<int32_t>{0, 1, 2, -1});
    eplb::dispatch_config config;
    config.num_ranks = 2;
    config.experts_per_token = 4;
    config.device = engine::get().device();
    config.shared_slot_ids = {3};
    const auto dispatch = eplb::dispatch::create(placement, config);
    EXPECT_EQ(routed(dispatch, ids32{2, 3, 0, 1}, 4), (ids32{2, 3, 0, 1}));
}

TEST(Ids, OfARecorderAndADispatchMustHaveTheSameSharedExperts) {
    const auto &layer = the_layer();
    const temporary_directory directory;
    auto recorder = eplb::recorder::create(a_recording(directory / "dump", 64, {0, 0, 0, {99}}));
    const auto dispatch =
        eplb::dispatch::create(placement_of(layer), a_config(layer, EPLB_RULE_NEAREST, choices));
    const ids32 batch(choices, 0);
    engine_stream stream;
    engine_array<int32_t> ids(choices);
    ids.upload(batch, stream);
    try {
        dispatch.route_and_count(recorder, 3, ids.data(), 1, nullptr, ids.data(), stream);
        FAIL() << "routed";
    } catch (const eplb::error &error) {
        EXPECT_STREQ(error.what(),
                     "the recorder has num_shared_experts 1, the dispatch 0: they must be equal");
    }
    stream.synchronize();
}

TEST(Ids, OfSharedExpertsAreAmongThoseOfAToken) {
    const temporary_directory directory;
    auto recording = a_recording(directory / "dump", 64, {0, 0, 0, {7, 7, 7, 7}});
    try {
        eplb::recorder::create(recording);
        FAIL() << "created";
    } catch (const eplb::error &error) {
        EXPECT_STREQ(error.what(),
                     "experts_per_token is 4, and with 4 shared experts at least 5 is expected: it "
                     "includes their ids");
    }
}

// Structs that grow: programs compiled with an older or a newer minor version of the header.
#include <gtest/gtest.h>

#include <cstring>
#include <eplb_live.hpp>

#include "dump_file.h"
#include "files.h"

namespace {

/// A struct of a newer header: known fields, then fields that this library does not know.
template <class T> struct newer {
    T known;
    uint64_t unknown[2];
};

/// A struct of an older header: it ends after `size` bytes, and the memory after it is not part of it.
template <class T> T older(T value, size_t size) {
    std::memset(reinterpret_cast<char *>(&value) + size, 0xee, sizeof(T) - size);
    value.struct_size = size;
    return value;
}

template <class T> newer<T> from_newer(const T &value, uint64_t unknown) {
    newer<T> grown = {value, {0, unknown}};
    grown.known.struct_size = sizeof(grown);
    return grown;
}

const std::vector<double> loads = {4, 3, 2, 1};
/// On two ranks the greedy loads them with 7 and 5, the search with 6 each.
const std::vector<double> hard_loads = {3, 3, 2, 2, 2, 0};
const int32_t layer = 0;

eplb_placement_config shape() {
    eplb_placement_config config = EPLB_PLACEMENT_CONFIG_INIT;
    config.num_experts = 4;
    config.num_ranks = 2;
    return config;
}

eplb_status solve(const eplb_placement_config *config, const eplb_solve_options *options, uint64_t &hash,
                  const std::vector<double> &values = loads) {
    eplb_placement *placement = nullptr;
    const eplb_status status = eplb_solve(config, options, &layer, 1, values.data(), 1, &placement);
    if (status == EPLB_STATUS_OK) {
        EXPECT_EQ(eplb_placement_hash(placement, &hash), EPLB_STATUS_OK);
    }
    eplb_placement_destroy(placement);
    return status;
}

/// Checks that a result of `size` bytes gets the same values as the whole one, and nothing after them.
template <class T, class Fill> void fills_only(const T &init, size_t size, Fill fill) {
    T whole = init, part = older(init, size), untouched = part;
    ASSERT_EQ(fill(&whole), EPLB_STATUS_OK);
    ASSERT_EQ(fill(&part), EPLB_STATUS_OK);
    const auto bytes = [](const T &value) { return reinterpret_cast<const char *>(&value); };
    EXPECT_EQ(std::memcmp(bytes(part) + sizeof(size_t), bytes(whole) + sizeof(size_t), size - sizeof(size_t)),
              0);
    EXPECT_EQ(std::memcmp(bytes(part) + size, bytes(untouched) + size, sizeof(T) - size), 0);
    EXPECT_EQ(part.struct_size, size);

    newer<T> grown = from_newer(init, 77);
    ASSERT_EQ(fill(&grown.known), EPLB_STATUS_OK);
    EXPECT_EQ(grown.unknown[0], 0u);
    EXPECT_EQ(grown.unknown[1], 0u) << "an unknown field gets its default";
    EXPECT_EQ(grown.known.struct_size, sizeof(grown));
}

} // namespace

TEST(Growth, OlderConfigGetsDefaultsForMissingFields) {
    const eplb_placement_config config = shape();
    uint64_t whole = 0, part = 0;
    ASSERT_EQ(solve(&config, nullptr, whole), EPLB_STATUS_OK);
    for (const size_t size :
         {offsetof(eplb_placement_config, num_slots), offsetof(eplb_placement_config, layer_updates_per_iter),
          offsetof(eplb_placement_config, rank_num_slots),
          offsetof(eplb_placement_config, allow_empty_slots)}) {
        const eplb_placement_config older_config = older(config, size);
        ASSERT_EQ(solve(&older_config, nullptr, part), EPLB_STATUS_OK) << eplb_last_error_message();
        EXPECT_EQ(part, whole);
    }
    const eplb_placement_config without_ranks = older(config, offsetof(eplb_placement_config, num_ranks));
    EXPECT_EQ(solve(&without_ranks, nullptr, part), EPLB_STATUS_INVALID_SHAPE)
        << "the default of num_ranks is 0, which is no shape";

    temporary_directory dir;
    const std::string dump = data("dumps/dsr1-all-zero"), output = dir / "config.yaml";
    eplb_generate_config generate = EPLB_GENERATE_CONFIG_INIT;
    generate.expert_statistic_path = dump.c_str();
    generate.output_path = output.c_str();
    generate.num_ranks = 8;
    generate.num_slots = 320;
    ASSERT_EQ(eplb_generate(&generate, nullptr, nullptr, nullptr), EPLB_STATUS_OK)
        << eplb_last_error_message();
    const std::string by_default = read_file(output);
    for (const size_t size :
         {offsetof(eplb_generate_config, num_samples), offsetof(eplb_generate_config, progress),
          offsetof(eplb_generate_config, user_data), offsetof(eplb_generate_config, layer_updates_per_iter),
          offsetof(eplb_generate_config, rank_num_slots), offsetof(eplb_generate_config, paths),
          offsetof(eplb_generate_config, path_weights), offsetof(eplb_generate_config, num_paths)}) {
        const eplb_generate_config older_config = older(generate, size);
        ASSERT_EQ(eplb_generate(&older_config, nullptr, nullptr, nullptr), EPLB_STATUS_OK)
            << eplb_last_error_message();
        EXPECT_TRUE(read_file(output) == by_default);
        std::filesystem::remove(output);
    }
    const eplb_stats_options stats_options = EPLB_STATS_OPTIONS_INIT;
    for (const size_t size :
         {offsetof(eplb_stats_options, iter_start), offsetof(eplb_stats_options, allow_missing_ranks),
          offsetof(eplb_stats_options, num_threads), offsetof(eplb_stats_options, expected_ranks)}) {
        const eplb_stats_options older_options = older(stats_options, size);
        ASSERT_EQ(eplb_generate(&generate, &older_options, nullptr, nullptr), EPLB_STATUS_OK)
            << eplb_last_error_message();
        EXPECT_TRUE(read_file(output) == by_default);
        std::filesystem::remove(output);
    }
}

TEST(Growth, OlderStatsConfigGetsDefaultsForMissingFields) {
    eplb_stats_config config = EPLB_STATS_CONFIG_INIT;
    config.num_experts = 2;
    config.layer_ids = &layer;
    config.num_layers = 1;
    config.num_iterations = 1;
    const int32_t counts[] = {5, 6};
    const auto load_of_expert_1 = [&](const eplb_stats_config &config) {
        eplb_stats *handle = nullptr;
        EXPECT_EQ(eplb_stats_create(&config, counts, &handle), EPLB_STATUS_OK) << eplb_last_error_message();
        return eplb::stats(handle).layer_loads(layer).at(1);
    };
    EXPECT_EQ(load_of_expert_1(config), 6);
    EXPECT_EQ(load_of_expert_1(older(config, offsetof(eplb_stats_config, dtype))), 6);
    EXPECT_EQ(load_of_expert_1(from_newer(config, 0).known), 6);
    const newer<eplb_stats_config> grown = from_newer(config, 1);
    eplb_stats *handle = nullptr;
    EXPECT_EQ(eplb_stats_create(&grown.known, counts, &handle), EPLB_STATUS_INVALID_ARGUMENT);
    const eplb_stats_config cut = older(config, offsetof(eplb_stats_config, num_iterations));
    EXPECT_EQ(eplb_stats_create(&cut, counts, &handle), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_STREQ(eplb_last_error_message(), "num_iterations is 0; at least 1 expected");
}

TEST(Growth, OlderRecorderConfigAddsDeltasByExpert) {
    const temporary_directory dir;
    eplb::recorder_config config;
    config.path = dir / "dump";
    config.iter_stop = 1;
    config.num_ranks = 1;
    config.num_experts = 2;
    config.experts_per_token = 1;
    config.layer_ids = {0};
    const eplb_recorder_config older_config = older(config.c(), offsetof(eplb_recorder_config, added_counts));
    eplb_recorder *handle = nullptr;
    ASSERT_EQ(eplb_recorder_create(&older_config, &handle), EPLB_STATUS_OK) << eplb_last_error_message();
    eplb::recorder recorder(handle);
    const int32_t counts[] = {3, 1};
    recorder.begin_iteration(0);
    recorder.add_counts(layer, counts, EPLB_DTYPE_INT32);
    recorder.add_counts(layer, counts, EPLB_DTYPE_INT32);
    recorder.dump();
    recorder.flush();
    EXPECT_EQ(eplb::stats::load(config.path).layer_loads(layer), (std::vector<double>{6, 2}));
}

TEST(Growth, OlderSolveOptionsGetDefaultsForMissingFields) {
    eplb_placement_config config = shape();
    config.num_experts = static_cast<uint32_t>(hard_loads.size());
    const eplb_solve_options options = EPLB_SOLVE_OPTIONS_INIT;
    const std::vector<size_t> sizes = {
        offsetof(eplb_solve_options, policy),         offsetof(eplb_solve_options, objective),
        offsetof(eplb_solve_options, num_threads),    offsetof(eplb_solve_options, num_groups),
        offsetof(eplb_solve_options, num_nodes),      offsetof(eplb_solve_options, reserved),
        offsetof(eplb_solve_options, rank_to_node),   offsetof(eplb_solve_options, off_node_price),
        offsetof(eplb_solve_options, sample_weights), offsetof(eplb_solve_options, quantile),
        offsetof(eplb_solve_options, drift),          offsetof(eplb_solve_options, effort),
        offsetof(eplb_solve_options, pinned_experts)};
    uint64_t whole = 0, part = 0;
    ASSERT_EQ(solve(&config, nullptr, whole, hard_loads), EPLB_STATUS_OK);
    for (const size_t size : sizes) {
        const eplb_solve_options older_options = older(options, size);
        ASSERT_EQ(solve(&config, &older_options, part, hard_loads), EPLB_STATUS_OK)
            << eplb_last_error_message();
        EXPECT_EQ(part, whole);
    }

    // The fields that an older caller has are used: the greedy's slots differ from the default's.
    eplb_solve_options greedy = options;
    greedy.policy = EPLB_POLICY_TRTLLM;
    ASSERT_EQ(solve(&config, &greedy, whole, hard_loads), EPLB_STATUS_OK);
    EXPECT_NE(whole, part);
    greedy = older(greedy, offsetof(eplb_solve_options, objective));
    ASSERT_EQ(solve(&config, &greedy, part, hard_loads), EPLB_STATUS_OK);
    EXPECT_EQ(part, whole);
    greedy.policy = 9;
    EXPECT_EQ(solve(&config, &greedy, part, hard_loads), EPLB_STATUS_INVALID_ARGUMENT);

    temporary_directory dir;
    const std::string dump = data("dumps/dsr1-all-zero"), output = dir / "config.yaml";
    eplb_generate_config generate = EPLB_GENERATE_CONFIG_INIT;
    generate.expert_statistic_path = dump.c_str();
    generate.output_path = output.c_str();
    generate.num_ranks = 8;
    generate.num_slots = 320;
    ASSERT_EQ(eplb_generate(&generate, nullptr, nullptr, nullptr), EPLB_STATUS_OK);
    const std::string by_default = read_file(output);
    for (const size_t size : sizes) {
        const eplb_solve_options older_options = older(options, size);
        ASSERT_EQ(eplb_generate(&generate, nullptr, &older_options, nullptr), EPLB_STATUS_OK)
            << eplb_last_error_message();
        EXPECT_TRUE(read_file(output) == by_default);
        std::filesystem::remove(output);
    }
}

TEST(Growth, OlderDispatchAndRecorderConfigsHaveNoSharedExperts) {
    eplb::placement_config sizes;
    sizes.num_experts = 4;
    sizes.num_ranks = 2;
    const auto placement =
        eplb::placement::create(sizes, std::vector<int32_t>{layer}, std::vector<int32_t>{0, 1, 2, 3});
    const int32_t shared_slots[] = {9};
    eplb_dispatch_config config = EPLB_DISPATCH_CONFIG_INIT;
    config.num_ranks = 2;
    config.experts_per_token = 2;
    config.invalid_slot = -1;
    config.num_shared_experts = 1;
    config.shared_slot_ids = shared_slots;
    const auto info_of = [&](size_t size) {
        const eplb_dispatch_config older_config = older(config, size);
        eplb_dispatch *handle = nullptr;
        EXPECT_EQ(eplb_dispatch_create(placement.get(), &older_config, &handle), EPLB_STATUS_OK)
            << eplb_last_error_message();
        return eplb::dispatch(handle).info();
    };
    EXPECT_EQ(info_of(sizeof(config)).invalid_slot, -1);
    EXPECT_EQ(info_of(sizeof(config)).num_shared_experts, 1u);
    EXPECT_EQ(info_of(offsetof(eplb_dispatch_config, num_shared_experts)).invalid_slot, -1);
    EXPECT_EQ(info_of(offsetof(eplb_dispatch_config, num_shared_experts)).num_shared_experts, 0u);
    EXPECT_EQ(info_of(offsetof(eplb_dispatch_config, invalid_slot)).invalid_slot, 4);
    EXPECT_EQ(info_of(offsetof(eplb_dispatch_config, invalid_slot)).num_shared_experts, 0u);

    temporary_directory dir;
    const std::string path = dir / "dump";
    eplb_recorder_config recording = EPLB_RECORDER_CONFIG_INIT;
    recording.path = path.c_str();
    recording.iter_stop = 1;
    recording.num_ranks = 1;
    recording.num_experts = 4;
    recording.experts_per_token = 2;
    recording.layer_ids = &layer;
    recording.num_layers = 1;
    recording.num_shared_experts = 2;
    size_t workspace = 0, host = 0;
    EXPECT_EQ(eplb_recorder_memory_required(&recording, &workspace, &host), EPLB_STATUS_INVALID_ARGUMENT)
        << "both ids of a token are of shared experts";
    recording = older(recording, offsetof(eplb_recorder_config, num_shared_experts));
    EXPECT_EQ(eplb_recorder_memory_required(&recording, &workspace, &host), EPLB_STATUS_OK);
}

TEST(Growth, OlderConfigsAreNotLive) {
    eplb::placement_config sizes;
    sizes.num_experts = 4;
    sizes.num_ranks = 2;
    const auto placement =
        eplb::placement::create(sizes, std::vector<int32_t>{layer}, std::vector<int32_t>{0, 1, 2, 3});
    const auto wanted =
        eplb::placement::create(sizes, std::vector<int32_t>{layer}, std::vector<int32_t>{0, 2, 1, 3});
    const auto plan = eplb::plan::create(placement, wanted);
    eplb_dispatch_config config = EPLB_DISPATCH_CONFIG_INIT;
    config.num_ranks = 2;
    config.experts_per_token = 2;
    config.live = 1;
    const auto updated = [&](size_t size) {
        const eplb_dispatch_config older_config = older(config, size);
        eplb_dispatch *handle = nullptr;
        EXPECT_EQ(eplb_dispatch_create(placement.get(), &older_config, &handle), EPLB_STATUS_OK)
            << eplb_last_error_message();
        return eplb_dispatch_update_layer(eplb::dispatch(handle).get(), plan.get(), layer, nullptr);
    };
    EXPECT_EQ(updated(sizeof(config)), EPLB_STATUS_OK) << eplb_last_error_message();
    EXPECT_EQ(updated(offsetof(eplb_dispatch_config, live)), EPLB_STATUS_INVALID_ARGUMENT);

    eplb_recorder_config recording = EPLB_RECORDER_CONFIG_INIT;
    recording.num_ranks = 1;
    recording.num_experts = 4;
    recording.experts_per_token = 2;
    recording.layer_ids = &layer;
    recording.num_layers = 1;
    recording.rolling_iterations = 3;
    const auto host_bytes = [&](size_t size) {
        const eplb_recorder_config older_config = older(recording, size);
        size_t workspace = 0, host = 0;
        EXPECT_EQ(eplb_recorder_memory_required(&older_config, &workspace, &host), EPLB_STATUS_OK);
        return host;
    };
    EXPECT_GT(host_bytes(sizeof(recording)), 0u);
    EXPECT_EQ(host_bytes(offsetof(eplb_recorder_config, rolling_iterations)), 0u) << "it is off";
}

TEST(Growth, OlderPlanStructsGetDefaultsAndFillOnlyTheirFields) {
    eplb::placement_config sizes;
    sizes.num_experts = 4;
    sizes.num_ranks = 2;
    const auto from =
        eplb::placement::create(sizes, std::vector<int32_t>{layer}, std::vector<int32_t>{0, 1, 2, 3});
    const auto to =
        eplb::placement::create(sizes, std::vector<int32_t>{layer}, std::vector<int32_t>{0, 2, 1, 3});
    const eplb_plan_options options = EPLB_PLAN_OPTIONS_INIT;
    const auto hash_with = [&](const eplb_plan_options &options) {
        eplb_plan *handle = nullptr;
        EXPECT_EQ(eplb_plan_create(from.get(), to.get(), &options, &handle), EPLB_STATUS_OK)
            << eplb_last_error_message();
        return eplb::plan(handle).info().agreement[0];
    };
    const uint64_t whole = hash_with(options);
    for (const size_t size : {offsetof(eplb_plan_options, active), offsetof(eplb_plan_options, num_ranks),
                              offsetof(eplb_plan_options, buffering)}) {
        EXPECT_EQ(hash_with(older(options, size)), whole);
    }
    EXPECT_EQ(hash_with(from_newer(options, 0).known), whole);
    const auto grown = from_newer(options, 1);
    eplb_plan *refused = nullptr;
    EXPECT_EQ(eplb_plan_create(from.get(), to.get(), &grown.known, &refused), EPLB_STATUS_INVALID_ARGUMENT);

    const auto plan = eplb::plan::create(from, to);
    fills_only<eplb_plan_info>(EPLB_PLAN_INFO_INIT, offsetof(eplb_plan_info, num_moves),
                               [&](eplb_plan_info *info) { return eplb_plan_get_info(plan.get(), info); });
    fills_only<eplb_planned_layer>(
        EPLB_PLANNED_LAYER_INIT, offsetof(eplb_planned_layer, num_rounds),
        [&](eplb_planned_layer *info) { return eplb_plan_layer_info(plan.get(), layer, info); });

    eplb_rebalancer_config config = EPLB_REBALANCER_CONFIG_INIT;
    config.experts_per_token = 2;
    const auto create = [&](const eplb_rebalancer_config &config) {
        eplb_rebalancer *handle = nullptr;
        const eplb_status status = eplb_rebalancer_create(&config, from.get(), &handle);
        eplb_rebalancer_destroy(handle);
        return status;
    };
    for (const size_t size :
         {offsetof(eplb_rebalancer_config, half_life), offsetof(eplb_rebalancer_config, rank_to_node),
          offsetof(eplb_rebalancer_config, min_tokens), offsetof(eplb_rebalancer_config, noise)}) {
        EXPECT_EQ(create(older(config, size)), EPLB_STATUS_OK) << eplb_last_error_message();
    }
    EXPECT_EQ(create(from_newer(config, 0).known), EPLB_STATUS_OK);
    EXPECT_EQ(create(from_newer(config, 1).known), EPLB_STATUS_INVALID_ARGUMENT);
    eplb_rebalancer *handle = nullptr;
    ASSERT_EQ(eplb_rebalancer_create(&config, from.get(), &handle), EPLB_STATUS_OK);
    eplb::rebalancer rebalancer(handle);
    fills_only<eplb_rebalancer_info>(
        EPLB_REBALANCER_INFO_INIT, offsetof(eplb_rebalancer_info, num_windows),
        [&](eplb_rebalancer_info *info) { return eplb_rebalancer_get_info(rebalancer.get(), info); });
    for (const size_t size : {offsetof(eplb_plan_limits, max_moves), offsetof(eplb_plan_limits, buffering),
                              offsetof(eplb_plan_limits, horizon)}) {
        const eplb_plan_limits limits = older<eplb_plan_limits>(EPLB_PLAN_LIMITS_INIT, size);
        eplb_plan *kept = nullptr;
        EXPECT_EQ(eplb_rebalancer_plan(rebalancer.get(), &limits, &kept), EPLB_STATUS_OK)
            << eplb_last_error_message();
        EXPECT_EQ(eplb::plan(kept).info().reason, EPLB_KEEP_REASON_NO_COUNTS);
    }
}

TEST(Growth, NewerStructIsAcceptedUnlessItSetsUnknownFields) {
    const eplb_placement_config config = shape();
    const eplb_solve_options options = EPLB_SOLVE_OPTIONS_INIT;
    uint64_t hash = 0;
    const auto with_config = [&](uint64_t unknown) {
        const newer<eplb_placement_config> grown = from_newer(config, unknown);
        return solve(&grown.known, nullptr, hash);
    };
    EXPECT_EQ(with_config(0), EPLB_STATUS_OK);
    EXPECT_EQ(with_config(1), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_STREQ(eplb_last_error_message(),
                 "config sets fields that eplb 0.1.0 does not know; the header is newer than the library");

    const auto with_options = [&](uint64_t unknown) {
        const newer<eplb_solve_options> grown = from_newer(options, unknown);
        return solve(&config, &grown.known, hash);
    };
    EXPECT_EQ(with_options(0), EPLB_STATUS_OK);
    // The first and the last byte of the unknown field.
    for (const uint64_t unknown : {uint64_t(1), uint64_t(1) << 56}) {
        EXPECT_EQ(with_options(unknown), EPLB_STATUS_INVALID_ARGUMENT);
        EXPECT_STREQ(
            eplb_last_error_message(),
            "options sets fields that eplb 0.1.0 does not know; the header is newer than the library");
    }

    // The other calls that take the options.
    const newer<eplb_solve_options> grown = from_newer(options, 1);
    int32_t arrays[12] = {};
    EXPECT_EQ(
        eplb_deepseek_rebalance(&config, &grown.known, loads.data(), 1, 1, arrays, arrays + 4, arrays + 8),
        EPLB_STATUS_INVALID_ARGUMENT);
    temporary_directory dir;
    const std::string dump = data("dumps/dsr1-all-zero"), output = dir / "config.yaml";
    eplb_generate_config generate = EPLB_GENERATE_CONFIG_INIT;
    generate.expert_statistic_path = dump.c_str();
    generate.output_path = output.c_str();
    EXPECT_EQ(eplb_generate(&generate, nullptr, &grown.known, nullptr), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_STREQ(
        eplb_last_error_message(),
        "solve_options sets fields that eplb 0.1.0 does not know; the header is newer than the library");
    eplb::placement_config sizes;
    sizes.num_experts = 4;
    sizes.num_ranks = 2;
    const auto placement =
        eplb::placement::create(sizes, std::vector<int32_t>{layer}, std::vector<int32_t>{0, 1, 2, 3});
    eplb_placement_evaluation evaluation = EPLB_PLACEMENT_EVALUATION_INIT;
    EXPECT_EQ(eplb_placement_evaluate(placement.get(), layer, loads.data(), 1, 4, &grown.known, &evaluation),
              EPLB_STATUS_INVALID_ARGUMENT);
}

TEST(Growth, ResultsFillOnlyTheCallersStruct) {
    const auto stats = eplb::stats::load(data("dumps/dsr1-all-zero"));
    fills_only<eplb_stats_info>(
        EPLB_STATS_INFO_INIT, offsetof(eplb_stats_info, layer_ids),
        [&](eplb_stats_info *info) { return eplb_stats_get_info(stats.get(), info); });
    eplb::placement_load_options options;
    options.num_ranks = 8;
    const auto placement = eplb::placement::load(data("expected/dsr1-all-zero.ep8.slots320.yaml"), options);
    fills_only<eplb_placement_info>(
        EPLB_PLACEMENT_INFO_INIT, offsetof(eplb_placement_info, max_replicas),
        [&](eplb_placement_info *info) { return eplb_placement_get_info(placement.get(), info); });
    const std::vector<double> even(256, 1.0);
    fills_only<eplb_placement_evaluation>(
        EPLB_PLACEMENT_EVALUATION_INIT, offsetof(eplb_placement_evaluation, worst_rank),
        [&](eplb_placement_evaluation *evaluation) {
            return eplb_placement_evaluate(placement.get(), 3, even.data(), 1, even.size(), nullptr,
                                           evaluation);
        });
    eplb::dispatch_config config;
    config.num_ranks = 8;
    config.experts_per_token = 8;
    const auto dispatch = eplb::dispatch::create(placement, config);
    fills_only<eplb_dispatch_info>(
        EPLB_DISPATCH_INFO_INIT, offsetof(eplb_dispatch_info, rule),
        [&](eplb_dispatch_info *info) { return eplb_dispatch_get_info(dispatch.get(), info); });
    fills_only<eplb_dispatch_info>(
        EPLB_DISPATCH_INFO_INIT, offsetof(eplb_dispatch_info, invalid_slot),
        [&](eplb_dispatch_info *info) { return eplb_dispatch_get_info(dispatch.get(), info); });
    fills_only<eplb_dispatch_info>(
        EPLB_DISPATCH_INFO_INIT, offsetof(eplb_dispatch_info, host_bytes),
        [&](eplb_dispatch_info *info) { return eplb_dispatch_get_info(dispatch.get(), info); });
    const auto recorder = eplb::recorder::create(eplb::recorder_config());
    fills_only<eplb_recorder_info>(
        EPLB_RECORDER_INFO_INIT, offsetof(eplb_recorder_info, paused),
        [&](eplb_recorder_info *info) { return eplb_recorder_get_info(recorder.get(), info, nullptr, 0); });
    fills_only<eplb_recorder_info>(
        EPLB_RECORDER_INFO_INIT, offsetof(eplb_recorder_info, iterations_merged),
        [&](eplb_recorder_info *info) { return eplb_recorder_get_info(recorder.get(), info, nullptr, 0); });
    fills_only<eplb_recorder_info>(
        EPLB_RECORDER_INFO_INIT, offsetof(eplb_recorder_info, iter_start),
        [&](eplb_recorder_info *info) { return eplb_recorder_get_info(recorder.get(), info, nullptr, 0); });
    temporary_directory dir;
    const std::string dump = data("dumps/dsr1-all-zero"), output = dir / "config.yaml";
    eplb_generate_config generate = EPLB_GENERATE_CONFIG_INIT;
    generate.expert_statistic_path = dump.c_str();
    generate.output_path = output.c_str();
    fills_only<eplb_generate_report>(
        EPLB_GENERATE_REPORT_INIT, offsetof(eplb_generate_report, imbalance_before),
        [&](eplb_generate_report *report) { return eplb_generate(&generate, nullptr, nullptr, report); });
}

TEST(Growth, OlderRecorderConfigGetsDefaultsForMissingFields) {
    temporary_directory dir;
    const std::string path = dir / "dump";
    eplb_recorder_config config = EPLB_RECORDER_CONFIG_INIT;
    config.path = path.c_str();
    config.iter_stop = 10;
    config.rank = 1;
    config.num_ranks = 2;
    config.num_experts = 4;
    config.experts_per_token = 1;
    config.layer_ids = &layer;
    config.num_layers = 1;
    const auto created = [&](const eplb_recorder_config &c) {
        eplb_recorder *handle = nullptr;
        EXPECT_EQ(eplb_recorder_create(&c, &handle), EPLB_STATUS_OK) << eplb_last_error_message();
        eplb::recorder recorder(handle);
        for (int64_t iteration = 0; iteration <= 10; iteration++) {
            recorder.begin_iteration(iteration);
        }
        recorder.flush();
        return undated_file(path + "/rank1.safetensors");
    };
    const std::string whole = created(config);
    EXPECT_NE(whole.find("\"9_0\""), std::string::npos);
    for (const size_t size :
         {offsetof(eplb_recorder_config, name), offsetof(eplb_recorder_config, file_rank),
          offsetof(eplb_recorder_config, iter_bucket), offsetof(eplb_recorder_config, iter_stride)}) {
        std::filesystem::remove_all(path);
        EXPECT_TRUE(created(older(config, size)) == whole) << size;
    }
    const auto grown = from_newer(config, 7);
    eplb_recorder *handle = nullptr;
    EXPECT_EQ(eplb_recorder_create(&grown.known, &handle), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(handle, nullptr);
}

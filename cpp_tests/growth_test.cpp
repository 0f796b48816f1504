// Structs that grow: programs compiled with an older or a newer minor version of the header.
#include <gtest/gtest.h>

#include <cstring>
#include <eplb.hpp>

#include "files.h"

namespace {

/// A struct as a newer header has it: fields that this library does not know behind those that it does.
template <class T> struct newer {
    T known;
    uint64_t unknown[2];
};

/// A struct as an older header has it: it ends after `size` bytes, and what lies behind is somebody else's.
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
const int32_t layer = 0;

eplb_status solve(const eplb_solve_config &config, uint64_t &hash) {
    eplb_placement *placement = nullptr;
    const eplb_status status = eplb_solve(&config, loads.data(), &layer, 1, 1, loads.size(), &placement);
    if (status == EPLB_STATUS_OK) {
        EXPECT_EQ(eplb_placement_hash(placement, &hash), EPLB_STATUS_OK);
    }
    eplb_placement_destroy(placement);
    return status;
}

/// Results behind `size` bytes are not written, and those before it are the same.
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
    EXPECT_EQ(grown.unknown[1], 0u) << "a field that the library does not know has its default";
    EXPECT_EQ(grown.known.struct_size, sizeof(grown));
}

} // namespace

TEST(Growth, AnOlderConfigHasDefaultsWhereItHasNoFields) {
    eplb_solve_config config = EPLB_SOLVE_CONFIG_INIT;
    config.num_ranks = 2;
    uint64_t whole = 0, part = 0;
    ASSERT_EQ(solve(config, whole), EPLB_STATUS_OK);
    for (const size_t size :
         {offsetof(eplb_solve_config, num_slots), offsetof(eplb_solve_config, num_threads),
          offsetof(eplb_solve_config, num_groups), offsetof(eplb_solve_config, effort),
          offsetof(eplb_solve_config, rank_to_node)}) {
        ASSERT_EQ(solve(older(config, size), part), EPLB_STATUS_OK) << eplb_last_error_message();
        EXPECT_EQ(part, whole);
    }
    EXPECT_EQ(solve(older(config, offsetof(eplb_solve_config, num_ranks)), part), EPLB_STATUS_INVALID_SHAPE)
        << "a header without num_ranks never was; its default is none";

    temporary_directory dir;
    const std::string dump = data("dumps/dsr1-all-zero"), output = dir / "config.yaml";
    eplb_generate_config generate = EPLB_GENERATE_CONFIG_INIT;
    generate.expert_statistic_path = dump.c_str();
    generate.output_path = output.c_str();
    generate.num_ranks = 8;
    generate.num_slots = 320;
    ASSERT_EQ(eplb_generate(&generate, nullptr), EPLB_STATUS_OK) << eplb_last_error_message();
    const std::string by_default = read_file(output);
    for (const size_t size :
         {offsetof(eplb_generate_config, iter_start), offsetof(eplb_generate_config, policy),
          offsetof(eplb_generate_config, expected_ranks), offsetof(eplb_generate_config, progress),
          offsetof(eplb_generate_config, num_groups), offsetof(eplb_generate_config, effort),
          offsetof(eplb_generate_config, rank_to_node)}) {
        const eplb_generate_config config_of_then = older(generate, size);
        ASSERT_EQ(eplb_generate(&config_of_then, nullptr), EPLB_STATUS_OK) << eplb_last_error_message();
        EXPECT_TRUE(read_file(output) == by_default);
        std::filesystem::remove(output);
    }
}

TEST(Growth, ANewerConfigIsTakenWhileItSetsNothingUnknown) {
    eplb_solve_config config = EPLB_SOLVE_CONFIG_INIT;
    config.num_ranks = 2;
    const auto call = [&](uint64_t unknown) {
        const newer<eplb_solve_config> grown = from_newer(config, unknown);
        eplb_placement *placement = nullptr;
        const eplb_status status =
            eplb_solve(&grown.known, loads.data(), &layer, 1, 1, loads.size(), &placement);
        eplb_placement_destroy(placement);
        return status;
    };
    EXPECT_EQ(call(0), EPLB_STATUS_OK);
    EXPECT_EQ(call(1), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_STREQ(eplb_last_error_message(),
                 "config sets fields that eplb 0.1.0 does not know; the header is newer than the library");
}

TEST(Growth, ResultsFillAsMuchAsTheCallerHas) {
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
            return eplb_placement_evaluate(placement.get(), even.data(), 3, 1, even.size(), evaluation);
        });
    eplb::dispatch_config config;
    config.num_ranks = 8;
    config.experts_per_token = 8;
    const auto dispatch = eplb::dispatch::create(placement, config);
    fills_only<eplb_dispatch_info>(
        EPLB_DISPATCH_INFO_INIT, offsetof(eplb_dispatch_info, rule),
        [&](eplb_dispatch_info *info) { return eplb_dispatch_get_info(dispatch.get(), info); });
    const auto recorder = eplb::recorder::create(eplb::recorder_config());
    fills_only<eplb_recorder_info>(
        EPLB_RECORDER_INFO_INIT, offsetof(eplb_recorder_info, range_start),
        [&](eplb_recorder_info *info) { return eplb_recorder_get_info(recorder.get(), info, nullptr, 0); });
    temporary_directory dir;
    const std::string dump = data("dumps/dsr1-all-zero"), output = dir / "config.yaml";
    eplb_generate_config generate = EPLB_GENERATE_CONFIG_INIT;
    generate.expert_statistic_path = dump.c_str();
    generate.output_path = output.c_str();
    fills_only<eplb_generate_report>(
        EPLB_GENERATE_REPORT_INIT, offsetof(eplb_generate_report, imbalance_before),
        [&](eplb_generate_report *report) { return eplb_generate(&generate, report); });
}

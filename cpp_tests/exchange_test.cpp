// Files of other systems: counts and placements in and out. What each format is, is tested in
// tests/exchange.rs.
#include <gtest/gtest.h>

#include <eplb.hpp>

#include "files.h"

namespace {

// tests/exchange/make.py: 3 steps, of which the last was not reached, 4 layers, the first one dense, 8
// experts, and the counts 100 step + 10 layer + expert.
const std::string recorded = data("../tests/exchange/recorder.pt");
const std::string config = data("expected/dsv2lite-translation.ep8.slots72.yaml");

eplb::file_options format(eplb_file_format format) {
    eplb::file_options options;
    options.format = format;
    return options;
}

/// What a call refuses, and the status.
template <class Call> std::pair<eplb_status, std::string> refused(Call call) {
    try {
        call();
    } catch (const eplb::error &error) {
        return {error.status(), error.what()};
    }
    return {EPLB_STATUS_OK, ""};
}

} // namespace

TEST(Exchange, ARecordingOfSglangIsReadAndWrittenInEachFormatOfCounts) {
    const temporary_directory dir;
    eplb::file_options known;
    known.experts_per_token = 2;
    const auto stats = eplb::stats::load_file(recorded, known);
    const eplb_stats_info info = stats.info();
    EXPECT_EQ(info.num_experts, 8u);
    EXPECT_EQ(info.experts_per_token, 2u);
    EXPECT_EQ(info.iter_stop - info.iter_start, 2);
    ASSERT_EQ(info.num_layers, 3u);
    // Both steps: 100 + 2 (10 layer + expert).
    const std::vector<double> loads = stats.layer_loads(2);
    EXPECT_EQ(loads, (std::vector<double>{140, 142, 144, 146, 148, 150, 152, 154}));

    for (const auto written : {EPLB_FILE_FORMAT_DUMP, EPLB_FILE_FORMAT_SGLANG_COUNT,
                               EPLB_FILE_FORMAT_LMDEPLOY, EPLB_FILE_FORMAT_NPY}) {
        const std::string path = dir / std::to_string(written);
        stats.save_file(path, format(written));
        eplb::file_options options = format(written);
        if (written == EPLB_FILE_FORMAT_NPY) {
            options.layer_ids = {1, 2, 3};
        }
        const auto again = eplb::stats::load_file(path, options);
        ASSERT_EQ(again.info().num_layers, 3u);
        EXPECT_EQ(std::vector<double>(again.layer_loads(2)), loads);
    }
    EXPECT_EQ(eplb::stats::load(dir / "1").info().iter_stop, 2);
}

TEST(Exchange, APlacementKeepsItsHashThroughEachFormat) {
    const temporary_directory dir;
    eplb::file_options options;
    options.num_ranks = 8;
    options.num_experts = 64;
    options.num_slots = 72;
    const auto placement = eplb::placement::load_file(config, options);
    for (int32_t layer = 1; layer <= 26; layer++) {
        options.layer_ids.push_back(layer);
    }
    for (const auto written :
         {EPLB_FILE_FORMAT_CONFIG, EPLB_FILE_FORMAT_SGLANG_MAP, EPLB_FILE_FORMAT_EXPERT_MAP,
          EPLB_FILE_FORMAT_PHY2LOG_NPY, EPLB_FILE_FORMAT_PHY2LOG_JSON}) {
        const std::string path = dir / std::to_string(written);
        options.format = written;
        placement.save_file(path, options);
        EXPECT_EQ(std::uint64_t(eplb::placement::load_file(path, options).hash()),
                  std::uint64_t(placement.hash()));
    }
    EXPECT_EQ(read_file(dir / std::to_string(EPLB_FILE_FORMAT_CONFIG)), read_file(config));
}

TEST(Exchange, WhatDoesNotFitIsAStatusAndAMessage) {
    const temporary_directory dir;
    const std::string path = dir / "counts.json";
    write_file(path, "[[1, -2]]");
    EXPECT_EQ(refused([&] { eplb::stats::load_file(path, format(EPLB_FILE_FORMAT_LMDEPLOY)); }),
              std::make_pair(
                  eplb_status(EPLB_STATUS_INVALID_DUMP),
                  path + ": bad JSON: [0][1] is -2, a whole number from 0 to 2^63 - 1 expected at line 1 "
                         "column 7"));
    EXPECT_EQ(refused([&] { eplb::stats::load_file(path); }).first, EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(refused([&] { eplb::stats::load_file(path, format(eplb_file_format(6))); }),
              std::make_pair(eplb_status(EPLB_STATUS_INVALID_ARGUMENT),
                             std::string("format is 6, which is no eplb_file_format")));
    EXPECT_EQ(refused([&] { eplb::placement::load_file(recorded); }),
              std::make_pair(eplb_status(EPLB_STATUS_INVALID_ARGUMENT),
                             std::string("sglang-pt is a format of counts, one of placements expected")));
    EXPECT_EQ(refused([&] { eplb::stats::load_file(recorded).save_file(path, {}); }),
              std::make_pair(eplb_status(EPLB_STATUS_INVALID_ARGUMENT),
                             std::string("options->format says no format to write")));
    eplb::file_options options;
    options.num_ranks = 8;
    options.num_slots = 80;
    EXPECT_EQ(refused([&] { eplb::placement::load_file(config, options); }),
              std::make_pair(eplb_status(EPLB_STATUS_INVALID_PLACEMENT),
                             config + ": num_slots is 72, 80 slots expected"));
}

// Files of other systems: reading and writing counts and placements. tests/exchange tests each format.
#include <gtest/gtest.h>

#include <eplb_tools.hpp>

#include "files.h"

namespace {

// tests/exchange/make.py: 3 steps, the last one unused; 4 layers, the first one dense; 8 experts. A count is
// 100 step + 10 layer + expert.
const std::string recorded = data("../tests/exchange/recorder.pt");
const std::string config = data("expected/dsv2lite-translation.ep8.slots72.yaml");

eplb::file_options format(eplb_file_format format) {
    eplb::file_options options;
    options.format = format;
    return options;
}

/// The status and message of a call that fails.
template <class Call> std::pair<eplb_status, std::string> refused(Call call) {
    try {
        call();
    } catch (const eplb::error &error) {
        return {error.status(), error.what()};
    }
    return {EPLB_STATUS_OK, ""};
}

} // namespace

TEST(Exchange, SglangRecordingSurvivesEachFormatOfCounts) {
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

TEST(Exchange, FractionsAreLoadsOfWhichNoDumpIsWritten) {
    const temporary_directory dir;
    // A quarter of 100 + 2 (10 layer + expert).
    const auto averages = eplb::stats::load_file(data("../tests/exchange/averages.pt"));
    ASSERT_EQ(averages.info().num_layers, 3u);
    const std::vector<double> loads{35, 35.5, 36, 36.5, 37, 37.5, 38, 38.5};
    EXPECT_EQ(std::vector<double>(averages.layer_loads(2)), loads);

    const std::string path = dir / "averages.json";
    averages.save_file(path, format(EPLB_FILE_FORMAT_LMDEPLOY));
    const auto again = eplb::stats::load_file(path, format(EPLB_FILE_FORMAT_LMDEPLOY));
    EXPECT_EQ(std::vector<double>(again.layer_loads(2)), loads);

    eplb::file_options dump = format(EPLB_FILE_FORMAT_DUMP);
    dump.experts_per_token = 2;
    const auto [status, message] = refused([&] { averages.save_file(dir / "dump", dump); });
    EXPECT_EQ(status, EPLB_STATUS_INVALID_DUMP);
    EXPECT_EQ(message.find("layer 1, step 0, expert 1: 30.5 is a fraction"), 0u) << message;
    EXPECT_FALSE(std::filesystem::exists(dir / "dump"));
}

TEST(Exchange, RecordsOfSglangAreSummedOverTheFilesOfADirectory) {
    // make.py: both ranks together have 20 layer + 2 slot + 100 tokens of a slot, in the second pass three
    // times as many.
    const auto records = eplb::stats::load_file(data("../tests/exchange/per_token"));
    EXPECT_EQ(records.info().iter_stop, 2);
    EXPECT_EQ(std::vector<double>(records.layer_loads(1))[1], 4 * (20 + 2 + 100));
}

TEST(Exchange, DumpOfCountsWithoutExpertsPerTokenTakesThoseOfTheOptions) {
    const temporary_directory dir;
    const std::string path = dir / "counts.json";
    write_file(path, "[[0, 0], [3, 4]]");
    const auto loaded = eplb::stats::load_file(path, format(EPLB_FILE_FORMAT_LMDEPLOY));
    eplb::stats_config config;
    config.num_experts = 2;
    config.layer_ids = {1};
    config.num_iterations = 1;
    const auto created = eplb::stats::create(config, std::vector<int64_t>{3, 4});
    eplb::file_options options = format(EPLB_FILE_FORMAT_DUMP);
    const auto invalid = [](const std::string &message) {
        return std::make_pair(eplb_status(EPLB_STATUS_INVALID_ARGUMENT), message);
    };
    for (const auto *stats : {&loaded, &created}) {
        const std::string dump = dir / (stats == &loaded ? "loaded" : "created");
        options.experts_per_token = 0;
        EXPECT_EQ(refused([&] { stats->save_file(dump, options); }),
                  invalid("a dump needs experts_per_token, and the counts have none: set it in the options "
                          "(--experts_per_token), or in eplb_stats_config"));
        options.experts_per_token = 3;
        EXPECT_NE(refused([&] { stats->save_file(dump, options); }).second.find("1 to 2 expected"),
                  std::string::npos);
        EXPECT_FALSE(std::filesystem::exists(dump + "/meta_info.json"));
        options.experts_per_token = 2;
        stats->save_file(dump, options);
        const auto again = eplb::stats::load(dump);
        EXPECT_EQ(again.info().experts_per_token, 2u);
        EXPECT_EQ(std::vector<double>(again.layer_loads(1)), (std::vector<double>{3, 4}));
        options.experts_per_token = 1;
        EXPECT_EQ(refused([&] { again.save_file(dir / "other", options); }),
                  invalid("the counts have experts_per_token 2, the options 1"));
    }
}

TEST(Exchange, PlacementKeepsItsHashInEachFormat) {
    const temporary_directory dir;
    eplb::file_options options;
    options.num_ranks = 8;
    options.num_experts = 64;
    options.num_slots = 72;
    const auto placement = eplb::load_placement_file(config, options);
    for (int32_t layer = 1; layer <= 26; layer++) {
        options.layer_ids.push_back(layer);
    }
    for (const auto written :
         {EPLB_FILE_FORMAT_CONFIG, EPLB_FILE_FORMAT_SGLANG_MAP, EPLB_FILE_FORMAT_EXPERT_MAP,
          EPLB_FILE_FORMAT_PHY2LOG_NPY, EPLB_FILE_FORMAT_PHY2LOG_JSON}) {
        const std::string path = dir / std::to_string(written);
        options.format = written;
        eplb::save_placement_file(placement, path, options);
        EXPECT_EQ(std::uint64_t(eplb::load_placement_file(path, options).hash()),
                  std::uint64_t(placement.hash()));
    }
    EXPECT_EQ(read_file(dir / std::to_string(EPLB_FILE_FORMAT_CONFIG)), read_file(config));
}

TEST(Exchange, ExpertMapsThatVllmAscendServesWronglyAreRefused) {
    const temporary_directory dir;
    const std::string path = dir / "map.json";
    eplb::placement_config shape;
    shape.num_experts = 4;
    shape.num_ranks = 2;
    shape.num_slots = 6;
    const std::vector<int32_t> layers = {3}, slots = {0, 1, 0, 2, 3, 1};
    const auto placement = eplb::placement::create(shape, layers, slots);
    eplb::file_options options = format(EPLB_FILE_FORMAT_EXPERT_MAP);
    const auto refusal = refused([&] { eplb::save_placement_file(placement, path, options); });
    EXPECT_EQ(refusal.first, EPLB_STATUS_INVALID_PLACEMENT);
    EXPECT_NE(refusal.second.find("layer 3, device 0: slot 2 repeats expert 0 of slot 0"), std::string::npos)
        << refusal.second;
    EXPECT_FALSE(std::filesystem::exists(path));
    options.allow_lossy = true;
    eplb::save_placement_file(placement, path, options);
    options.layer_ids = layers;
    EXPECT_EQ(std::uint64_t(eplb::load_placement_file(path, options).hash()),
              std::uint64_t(placement.hash()));
}

TEST(Exchange, LayersAreSelectedAndIterationsSummed) {
    const temporary_directory dir;
    const std::string path = dir / "counts.json", array = dir / "counts.npy", sum = dir / "sum.npy";
    write_file(path, "{\"logical_count\": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]}");
    const auto stats = eplb::stats::load_file(path);
    eplb::file_options options = format(EPLB_FILE_FORMAT_NPY);
    options.layer_ids = {1};
    stats.save_file(array, options);
    const auto last = eplb::stats::load_file(array, options);
    EXPECT_EQ(std::vector<double>(last.layer_loads(1)), (std::vector<double>{10, 12}));
    EXPECT_EQ(last.info().num_layers, 1u);
    options.sum_iterations = true;
    stats.save_file(sum, options);
    EXPECT_NE(read_file(sum).find("'shape': (1, 2)"), std::string::npos);
    EXPECT_NE(read_file(array).find("'shape': (2, 1, 2)"), std::string::npos);
    options.layer_ids = {2};
    EXPECT_NE(refused([&] { stats.save_file(sum, options); }).second.find("layer 2 is not in"),
              std::string::npos);
    eplb_file_options bad = EPLB_FILE_OPTIONS_INIT;
    bad.format = EPLB_FILE_FORMAT_NPY;
    bad.sum_iterations = 2;
    EXPECT_EQ(eplb_stats_save_file(stats.get(), sum.c_str(), &bad), EPLB_STATUS_INVALID_ARGUMENT);
}

TEST(Exchange, MismatchesAreRefusedWithTheirPlace) {
    const temporary_directory dir;
    const std::string path = dir / "counts.json";
    write_file(path, "[[1, -2]]");
    EXPECT_EQ(
        refused([&] { eplb::stats::load_file(path, format(EPLB_FILE_FORMAT_LMDEPLOY)); }),
        std::make_pair(
            eplb_status(EPLB_STATUS_INVALID_DUMP),
            path + ": bad JSON: [0][1] is -2, a number from 0 to below 2^63 expected at line 1 column 7"));
    EXPECT_EQ(refused([&] { eplb::stats::load_file(path); }).first, EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(
        refused([&] { eplb::stats::load_file(path, format(6)); }),
        std::make_pair(
            eplb_status(EPLB_STATUS_INVALID_ARGUMENT),
            std::string(
                "options->format is 6; expected EPLB_FILE_FORMAT_DETECT (0), EPLB_FILE_FORMAT_DUMP (1), "
                "EPLB_FILE_FORMAT_SGLANG_COUNT (2), EPLB_FILE_FORMAT_SGLANG_PT (3), "
                "EPLB_FILE_FORMAT_LMDEPLOY (4), "
                "EPLB_FILE_FORMAT_NPY (5), EPLB_FILE_FORMAT_CONFIG (100), EPLB_FILE_FORMAT_SGLANG_MAP (101), "
                "EPLB_FILE_FORMAT_EXPERT_MAP (102), EPLB_FILE_FORMAT_PHY2LOG_NPY (103), "
                "EPLB_FILE_FORMAT_PHY2LOG_JSON (104)")));
    EXPECT_EQ(
        refused([&] { eplb::load_placement_file(recorded); }),
        std::make_pair(eplb_status(EPLB_STATUS_INVALID_ARGUMENT),
                       std::string("sglang-pt is a format of counts, a format of placements expected")));
    EXPECT_EQ(
        refused([&] { eplb::stats::load_file(recorded).save_file(path, {}); }),
        std::make_pair(eplb_status(EPLB_STATUS_INVALID_ARGUMENT),
                       std::string("options->format is EPLB_FILE_FORMAT_DETECT; set the format to write")));
    eplb::file_options options;
    options.num_ranks = 8;
    options.num_slots = 80;
    EXPECT_EQ(refused([&] { eplb::load_placement_file(config, options); }),
              std::make_pair(eplb_status(EPLB_STATUS_INVALID_PLACEMENT),
                             config + ": num_slots is 72, 80 slots expected"));
}

// eplb_stats: reading dumps.
#include <gtest/gtest.h>

#include <eplb_tools.hpp>
#include <numeric>

#include "files.h"

namespace {

// data/README.md: 8 ranks x 31 iterations (100 to 130) x 26 layers (1 to 26) x 64 experts, top-6, 32 tokens.
const std::string law = data("dumps/dsv2lite-law");

eplb_status load(const char *path, const eplb_stats_options *options) {
    eplb_stats *stats = nullptr;
    const eplb_status status = eplb_stats_load(path, options, &stats);
    EXPECT_EQ(stats != nullptr, status == EPLB_STATUS_OK);
    eplb_stats_destroy(stats);
    return status;
}

} // namespace

TEST(Stats, InfoDescribesTheDump) {
    const auto stats = eplb::stats::load(law);
    const eplb_stats_info info = stats.info();
    EXPECT_EQ(info.num_experts, 64u);
    EXPECT_EQ(info.experts_per_token, 6u);
    EXPECT_EQ(info.num_ranks, 8u);
    EXPECT_EQ(info.id_kind, EPLB_ID_KIND_EXPERT);
    EXPECT_EQ(info.iter_start, 100);
    EXPECT_EQ(info.iter_stop, 131);
    EXPECT_EQ(info.num_missing_ranks, 0u);
    std::vector<int32_t> layers(26);
    std::iota(layers.begin(), layers.end(), 1);
    const eplb::view<int32_t> counted = stats.layer_ids();
    EXPECT_EQ(std::vector<int32_t>(counted.begin(), counted.end()), layers);
}

TEST(Stats, LayerLoadsSumToTheTokensOfEachIteration) {
    const auto stats = eplb::stats::load(law);
    for (const int32_t layer : stats.layer_ids()) {
        const std::vector<double> total = stats.layer_loads(layer);
        EXPECT_EQ(std::accumulate(total.begin(), total.end(), 0.0), 8 * 31 * 32 * 6);
        const std::vector<double> iterations = stats.layer_loads(layer, 31);
        for (int i = 0; i < 31; i++) {
            const auto row = iterations.begin() + i * 64;
            EXPECT_EQ(std::accumulate(row, row + 64, 0.0), 8 * 32 * 6) << "layer " << layer << ", row " << i;
        }
        // 31 iterations in 4 groups: 0 to 6, 7 to 14, 15 to 22, 23 to 30.
        const std::vector<double> groups = stats.layer_loads(layer, 4);
        const size_t ends[] = {0, 7, 15, 23, 31};
        for (size_t group = 0; group < 4; group++) {
            for (size_t expert = 0; expert < 64; expert++) {
                double sum = 0;
                for (size_t i = ends[group]; i < ends[group + 1]; i++) {
                    sum += iterations[i * 64 + expert];
                }
                ASSERT_EQ(groups[group * 64 + expert], sum) << "group " << group << ", expert " << expert;
            }
        }
    }
}

TEST(Stats, OptionsSelectIterations) {
    eplb_stats_options options = EPLB_STATS_OPTIONS_INIT;
    options.iter_start = 110;
    eplb::stats_options two_iterations;
    two_iterations.iter_start = 110;
    two_iterations.iter_stop = 112;
    const auto part = eplb::stats::load(law, two_iterations);
    const auto whole = eplb::stats::load(law);
    const std::vector<double> all = whole.layer_loads(7, 31), two = part.layer_loads(7, 2);
    EXPECT_EQ(std::vector<double>(all.begin() + 10 * 64, all.begin() + 12 * 64), two);

    options.iter_stop = 132;
    EXPECT_EQ(load(law.c_str(), &options), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(eplb_last_error_message(),
              law + ": iterations 110..132 requested (stop excluded), the dump has 100..131");
    options.iter_stop = 131;
    options.expected_ranks = 9;
    EXPECT_EQ(load(law.c_str(), &options), EPLB_STATUS_INCOMPLETE_DUMP);
    EXPECT_EQ(eplb_last_error_message(),
              law + ": 1 of 9 ranks have no file (rank 8); copy them here, or allow missing ranks");
    options.iter_start = -1;
    EXPECT_EQ(load(law.c_str(), &options), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_STREQ(eplb_last_error_message(), "iter_start is -1");
}

TEST(Stats, MissingRankIsRefusedUnlessAllowed) {
    temporary_directory dir;
    const std::string dump = dir / "dump";
    std::filesystem::copy(law, dump);
    std::filesystem::remove(dump + "/rank2.safetensors");
    EXPECT_EQ(load(dump.c_str(), nullptr), EPLB_STATUS_INCOMPLETE_DUMP);
    EXPECT_EQ(eplb_last_error_message(),
              dump + ": 1 of 8 ranks have no file (rank 2); copy them here, or allow missing ranks");

    eplb::stats_options options;
    options.allow_missing_ranks = true;
    const auto stats = eplb::stats::load(dump, options);
    const eplb_stats_info info = stats.info();
    EXPECT_EQ(info.num_ranks, 8u);
    ASSERT_EQ(info.num_missing_ranks, 1u);
    EXPECT_EQ(info.missing_ranks[0], 2);
}

TEST(Stats, DamagedDumpIsRefusedByFile) {
    temporary_directory dir;
    const std::string dump = dir / "dump";
    std::filesystem::copy(law, dump);
    std::filesystem::resize_file(dump + "/rank7.safetensors", 60000);
    EXPECT_EQ(load(dump.c_str(), nullptr), EPLB_STATUS_INVALID_DUMP);
    EXPECT_EQ(std::string(eplb_last_error_message()).rfind(dump + "/rank7.safetensors: its tensors take", 0),
              0u);
    EXPECT_EQ(load("/no/such/dump", nullptr), EPLB_STATUS_READ_FAILED);
    EXPECT_EQ(load("", nullptr), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(load("\xff", nullptr), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_STREQ(eplb_last_error_message(), "path is not UTF-8");
}

TEST(Stats, NullAndWrongArgumentsAreRefusedUnwritten) {
    const auto stats = eplb::stats::load(law);
    eplb_stats_info info = EPLB_STATS_INFO_INIT;
    double loads[64] = {-1.0};
    EXPECT_EQ(load(nullptr, nullptr), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(eplb_stats_load(law.c_str(), nullptr, nullptr), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(eplb_stats_get_info(nullptr, &info), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(eplb_stats_get_info(stats.get(), nullptr), EPLB_STATUS_INVALID_ARGUMENT);
    info.struct_size = 0;
    EXPECT_EQ(eplb_stats_get_info(stats.get(), &info), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(eplb_stats_layer_loads(nullptr, 1, 1, 64, loads), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(eplb_stats_layer_loads(stats.get(), 1, 1, 64, nullptr), EPLB_STATUS_INVALID_ARGUMENT);
    for (const auto &[layer, samples, experts] :
         {std::tuple(0, 1, 64), {27, 1, 64}, {-1, 1, 64}, {1, 0, 64}, {1, 32, 64}, {1, 1, 63}}) {
        EXPECT_EQ(eplb_stats_layer_loads(stats.get(), layer, samples, experts, loads),
                  EPLB_STATUS_INVALID_ARGUMENT);
    }
    EXPECT_EQ(loads[0], -1.0);
    eplb_stats_destroy(nullptr);
}

TEST(Stats, StructsOfAnOlderHeaderWork) {
    // As if the header ended after iter_stop of the options and num_ranks of the info.
    eplb_stats_options options = EPLB_STATS_OPTIONS_INIT;
    options.struct_size = offsetof(eplb_stats_options, allow_missing_ranks);
    options.num_threads = 0xdeadbeef;
    eplb_stats *handle = nullptr;
    ASSERT_EQ(eplb_stats_load(law.c_str(), &options, &handle), EPLB_STATUS_OK);
    eplb_stats_info info = EPLB_STATS_INFO_INIT;
    info.struct_size = offsetof(eplb_stats_info, id_kind);
    info.iter_start = 12345;
    ASSERT_EQ(eplb_stats_get_info(handle, &info), EPLB_STATUS_OK);
    EXPECT_EQ(info.num_ranks, 8u);
    EXPECT_EQ(info.iter_start, 12345);
    eplb_stats_destroy(handle);
}

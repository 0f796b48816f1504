// eplb_stats: reading dumps.
#include <gtest/gtest.h>

#include <algorithm>
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

/// The arrays of statistics: [iterations][layers][experts], the last layer first.
template <class Count> std::vector<Count> arrays_of(const eplb::stats &stats, eplb::stats_config &config) {
    const eplb_stats_info info = stats.info();
    config.num_experts = info.num_experts;
    config.experts_per_token = info.experts_per_token;
    config.num_ranks = info.num_ranks;
    config.iter_start = info.iter_start;
    config.num_iterations = static_cast<uint32_t>(info.iter_stop - info.iter_start);
    config.layer_ids.assign(info.layer_ids, info.layer_ids + info.num_layers);
    std::reverse(config.layer_ids.begin(), config.layer_ids.end());
    std::vector<Count> counts(config.num_iterations * info.num_layers * info.num_experts);
    for (size_t layer = 0; layer < info.num_layers; layer++) {
        const auto loads = stats.layer_loads(config.layer_ids[layer], config.num_iterations);
        for (size_t i = 0; i < loads.size(); i++) {
            const size_t iteration = i / info.num_experts, expert = i % info.num_experts;
            counts[(iteration * info.num_layers + layer) * info.num_experts + expert] = Count(loads[i]);
        }
    }
    return counts;
}

TEST(Stats, CreateFromTheArraysOfADumpEqualsTheDump) {
    const auto loaded = eplb::stats::load(law);
    eplb::stats_config config;
    const auto counts = arrays_of<int32_t>(loaded, config);
    const auto wide_counts = arrays_of<int64_t>(loaded, config);
    const auto created = eplb::stats::create(config, counts);
    const auto wide = eplb::stats::create(config, wide_counts);
    for (const eplb::stats *stats : {&created, &wide}) {
        const eplb_stats_info info = stats->info(), expected = loaded.info();
        EXPECT_EQ(info.num_experts, expected.num_experts);
        EXPECT_EQ(info.experts_per_token, expected.experts_per_token);
        EXPECT_EQ(info.num_ranks, expected.num_ranks);
        EXPECT_EQ(info.id_kind, expected.id_kind);
        EXPECT_EQ(info.iter_start, expected.iter_start);
        EXPECT_EQ(info.iter_stop, expected.iter_stop);
        EXPECT_EQ(info.num_missing_ranks, 0u);
        ASSERT_EQ(info.num_layers, expected.num_layers);
        EXPECT_TRUE(std::equal(info.layer_ids, info.layer_ids + info.num_layers, expected.layer_ids));
        for (const int32_t layer : loaded.layer_ids()) {
            EXPECT_EQ(stats->layer_loads(layer, 31), loaded.layer_loads(layer, 31)) << layer;
            EXPECT_EQ(stats->layer_loads(layer, 4), loaded.layer_loads(layer, 4)) << layer;
        }
    }

    // A file of another system has the same bytes, and can be read again.
    temporary_directory dir;
    eplb::file_options format;
    format.format = EPLB_FILE_FORMAT_NPY;
    format.experts_per_token = 6;
    loaded.save_file(dir / "loaded.npy", format);
    created.save_file(dir / "created.npy", format);
    const std::string bytes = read_file(dir / "created.npy");
    EXPECT_GT(bytes.size(), size_t(26 * 64));
    EXPECT_EQ(bytes, read_file(dir / "loaded.npy"));
}

TEST(Stats, CreateRejectsBadArraysByName) {
    const int32_t layers[] = {7, 3};
    eplb_stats_config good = EPLB_STATS_CONFIG_INIT;
    good.num_experts = 2;
    good.layer_ids = layers;
    good.num_layers = 2;
    good.iter_start = 10;
    good.num_iterations = 2;
    good.dtype = EPLB_DTYPE_INT64;
    const int64_t counts[] = {1, 2, 3, 4, 5, 6, 7, 8};
    const auto message = [&](auto change, const void *counts) -> std::string {
        eplb_stats_config config = good;
        change(config);
        eplb_stats *stats = nullptr;
        EXPECT_EQ(eplb_stats_create(&config, counts, &stats), EPLB_STATUS_INVALID_ARGUMENT);
        EXPECT_EQ(stats, nullptr);
        return eplb_last_error_message();
    };
    const auto with = [&](auto change) { return message(change, counts); };
    using config = eplb_stats_config;
    const auto as_it_is = [](config &) {};
    EXPECT_EQ(message(as_it_is, nullptr), "counts is NULL");
    EXPECT_EQ(message(as_it_is, reinterpret_cast<const char *>(counts) + 4),
              "counts is not aligned to its 8 bytes");
    EXPECT_EQ(with([](config &c) { c.dtype = 2; }),
              "config->dtype is 2; expected EPLB_DTYPE_INT32 (0), EPLB_DTYPE_INT64 (1)");
    EXPECT_EQ(with([](config &c) { c.num_experts = 0; }), "num_experts is 0; 1 to 1048576 expected");
    EXPECT_EQ(with([](config &c) { c.experts_per_token = 3; }),
              "experts_per_token is 3, num_experts 2; at most 2 expected, or 0 if unknown");
    EXPECT_EQ(with([](config &c) { c.num_ranks = 1 << 21; }), "num_ranks is 2097152; 1 to 1048576 expected");
    EXPECT_EQ(with([](config &c) { c.id_kind = 2; }),
              "id_kind is 2; expected EPLB_ID_KIND_EXPERT (0), EPLB_ID_KIND_SLOT (1)");
    EXPECT_EQ(with([](config &c) { c.layer_ids = nullptr; }), "config->layer_ids is NULL");
    EXPECT_EQ(with([](config &c) { c.num_layers = 0; }), "there is no layer; at least one expected");
    EXPECT_EQ(with([](config &c) { c.num_iterations = 0; }), "num_iterations is 0; at least 1 expected");
    EXPECT_EQ(with([](config &c) { c.iter_start = -1; }), "iter_start is -1");
    EXPECT_EQ(with([](config &c) { c.iter_start = INT64_MAX; }),
              "iter_start is 9223372036854775807, num_iterations 2: the last iteration is beyond 2^63");
    const int32_t twice[] = {7, 7};
    EXPECT_EQ(with([&](config &c) { c.layer_ids = twice; }), "layer 7 is listed twice");
    const int64_t negative[] = {1, 2, 3, 4, 5, 6, 7, -8};
    EXPECT_EQ(message(as_it_is, negative),
              "layer 3, iteration 11, expert 1: the count is -8; counts are not negative");
    const int64_t large[] = {INT64_MAX, 2, 3, 4, 1, 6, 7, 8};
    EXPECT_EQ(message(as_it_is, large),
              "layer 7, iteration 11, expert 0: the sum of the iterations so far is "
              "2^63 or more; pass fewer iterations");
    EXPECT_EQ(eplb_stats_create(nullptr, counts, nullptr), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(eplb_stats_create(&good, counts, nullptr), EPLB_STATUS_INVALID_ARGUMENT);

    // Zero is the default of the rest.
    eplb_stats *handle = nullptr;
    ASSERT_EQ(eplb_stats_create(&good, counts, &handle), EPLB_STATUS_OK);
    const eplb::stats stats(handle);
    EXPECT_EQ(stats.info().num_ranks, 1u);
    EXPECT_EQ(stats.info().experts_per_token, 0u);
    EXPECT_EQ(stats.layer_loads(3, 2), (std::vector<double>{3, 4, 7, 8}));
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

namespace {

// A little-endian length and a JSON header, padded to 8 bytes, before the counts.
std::string safetensors(std::string header, const std::vector<uint64_t> &counts) {
    header.resize((header.size() + 7) / 8 * 8, ' ');
    const uint64_t length = header.size();
    std::string file(reinterpret_cast<const char *>(&length), sizeof length);
    file += header;
    return file +
           std::string(reinterpret_cast<const char *>(counts.data()), counts.size() * sizeof counts[0]);
}

// File 0 of 4, rank 0 of a stage of 2 without layers; files 2 and 3 have layer 7. Iterations 10 to 34 in rows
// of 10, one in 2 counted: rows 10 and 30 of 20 iterations each, of which 10 and 3 are counted.
void write_stages_in_rows(const std::string &dump) {
    std::filesystem::create_directory(dump);
    const std::string rows = R"("iter_bucket": 10, "iter_stride": 2)";
    write_file(
        dump + "/meta_info.json",
        R"({"num_experts": 2, "num_experts_per_token": 1, "eplb": {"version": "0.1.0", "num_ranks": 2, "num_files": 4,
                   "iter_start": 10, "iter_stop": 35, "layers": [], "counts": "experts", )" +
            rows + "}}");
    for (int file = 0; file < 4; file++) {
        const bool has_layer = file >= 2;
        std::string header = R"({"__metadata__": {"rank": ")" + std::to_string(file) +
                             R"(", "num_ranks": "2", "num_files": "4", "ep_rank": ")" +
                             std::to_string(file % 2) +
                             R"(", "iter_start": "10", "iter_stop": "35", "counts": "experts",
                                "iter_bucket": "10", "iter_stride": "2", "layers": ")" +
                             (has_layer ? "7" : "") + "\"}";
        std::vector<uint64_t> counts;
        if (has_layer) {
            header += R"(, "10_7": {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]},
                           "30_7": {"dtype": "I64", "shape": [2], "data_offsets": [16, 32]})";
            counts = {10, 20, 3, static_cast<uint64_t>(file)};
        }
        write_file(dump + "/rank" + std::to_string(file) + ".safetensors", safetensors(header + "}", counts));
    }
}

} // namespace

TEST(Stats, RowsOfSeveralIterationsAndStagesAreRead) {
    temporary_directory dir;
    const std::string dump = dir / "dump";
    write_stages_in_rows(dump);
    const auto stats = eplb::stats::load(dump);
    const eplb_stats_info info = stats.info();
    EXPECT_EQ(info.iter_bucket, 10u);
    EXPECT_EQ(info.iter_stride, 2u);
    EXPECT_EQ(info.num_rows, 2u);
    EXPECT_EQ(info.iter_start, 10);
    EXPECT_EQ(info.iter_stop, 35);
    EXPECT_EQ(info.num_ranks, 2u);
    // The sums of files 2 and 3.
    EXPECT_EQ(std::vector<double>(stats.layer_loads(7, 2)), (std::vector<double>{20, 40, 6, 5}));
    EXPECT_EQ(std::vector<double>(stats.layer_loads(7)), (std::vector<double>{26, 45}));
    double loads[8];
    EXPECT_EQ(eplb_stats_layer_loads(stats.get(), 7, 3, 2, loads), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_STREQ(eplb_last_error_message(),
                 "num_samples is 3; 1 to 2, the number of rows of iterations 10..35, one in 2 "
                 "in rows of 10, expected");

    eplb::stats_options options;
    options.iter_start = 30;
    const auto last = eplb::stats::load(dump, options);
    const eplb_stats_info last_info = last.info();
    EXPECT_EQ(last_info.num_rows, 1u);
    EXPECT_EQ(std::vector<double>(last.layer_loads(7)), (std::vector<double>{6, 5}));
    eplb_stats_options within = EPLB_STATS_OPTIONS_INIT;
    within.iter_start = 20;
    EXPECT_EQ(load(dump.c_str(), &within), EPLB_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(eplb_last_error_message(),
              dump + ": iter_start 20 is within a row, the dump has 10..35, one in 2 in rows "
                     "of 10; the nearest rows begin at 10 and 30");

    // Files are counted by the number of files, not of ranks.
    std::filesystem::remove(dump + "/rank1.safetensors");
    EXPECT_EQ(load(dump.c_str(), nullptr), EPLB_STATUS_INCOMPLETE_DUMP);
    EXPECT_EQ(eplb_last_error_message(),
              dump + ": 1 of 4 ranks have no file (rank 1); copy them here, or allow missing ranks");
}

TEST(Stats, ASingleIterationIsARow) {
    const eplb_stats_info info = eplb::stats::load(law).info();
    EXPECT_EQ(info.iter_bucket, 1u);
    EXPECT_EQ(info.iter_stride, 1u);
    EXPECT_EQ(info.num_rows, 31u);
    // As if the header ended before the rows.
    eplb_stats *handle = nullptr;
    ASSERT_EQ(eplb_stats_load(law.c_str(), nullptr, &handle), EPLB_STATUS_OK);
    eplb_stats_info older = EPLB_STATS_INFO_INIT;
    older.struct_size = offsetof(eplb_stats_info, iter_bucket);
    older.num_rows = 12345;
    EXPECT_EQ(eplb_stats_get_info(handle, &older), EPLB_STATUS_OK);
    EXPECT_EQ(older.num_missing_ranks, 0u);
    EXPECT_EQ(older.num_rows, 12345u);
    eplb_stats_destroy(handle);
}

TEST(Stats, ADirectoryOfDumpsListsThem) {
    temporary_directory dir;
    const std::string run = dir / "run";
    std::filesystem::create_directory(run);
    write_stages_in_rows(run + "/draft");
    write_stages_in_rows(run + "/100-200");
    EXPECT_EQ(load(run.c_str(), nullptr), EPLB_STATUS_INCOMPLETE_DUMP);
    EXPECT_EQ(eplb_last_error_message(), run + " has no meta_info.json; dumps are in " + run + "/100-200, " +
                                             run + "/draft: pass one of them");
    EXPECT_EQ(load((run + "/draft").c_str(), nullptr), EPLB_STATUS_OK);
}

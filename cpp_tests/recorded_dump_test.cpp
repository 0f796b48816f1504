// Dumps that recorders wrote with their newer options, read by eplb_stats and eplb_generate().
#include "recorder_fixture.h"

namespace {

/// One rank of two pipeline stages of 2 EP ranks each. Only the second stage has a layer.
void record_stage(const std::string &path, uint32_t file) {
    one_token token;
    auto config = small_config(path, 100, 125);
    config.rank = file % 2;
    config.num_ranks = 2;
    config.file_rank = file;
    config.num_files = 4;
    config.iter_bucket = 4;
    config.iter_stride = 3;
    config.layer_ids = file < 2 ? std::vector<int32_t>{} : std::vector<int32_t>{3};
    auto recorder = eplb::recorder::create(config);
    token.run(recorder, 98, 130, [&] {
        if (file >= 2) {
            token.count(recorder);
        }
    });
    recorder.flush();
}

std::vector<double> chosen_loads(double times) { return {0, times, times, times, times, 0, 0, 0}; }

} // namespace

TEST(RecordedDump, RowsOfPipelineStagesAreReadAndPlanned) {
    temporary_directory dir;
    const std::string dump = dir / "dump";
    for (uint32_t file = 0; file < 4; file++) {
        record_stage(dump, file);
    }
    const auto stats = eplb::stats::load(dump);
    const eplb_stats_info info = stats.info();
    EXPECT_EQ(info.num_ranks, 2u);
    EXPECT_EQ(info.iter_bucket, 4u);
    EXPECT_EQ(info.iter_stride, 3u);
    ASSERT_EQ(info.num_rows, 3u);
    // 9 of the 25 iterations, by 4, 4 and 1, on 2 ranks.
    const std::vector<double> rows = stats.layer_loads(3, 3);
    for (const auto &[row, times] : {std::pair(0, 8.0), {1, 8.0}, {2, 2.0}}) {
        const std::vector<double> loads(rows.begin() + row * 8, rows.begin() + row * 8 + 8);
        EXPECT_EQ(loads, chosen_loads(times)) << "row " << row;
    }
    EXPECT_EQ(std::vector<double>(stats.layer_loads(3)), chosen_loads(18));

    eplb_generate_config config = EPLB_GENERATE_CONFIG_INIT;
    const std::string output = dir / "config.yaml";
    config.expert_statistic_path = dump.c_str();
    config.output_path = output.c_str();
    eplb_generate_report report = EPLB_GENERATE_REPORT_INIT;
    ASSERT_EQ(eplb_generate(&config, nullptr, nullptr, &report), EPLB_STATUS_OK) << eplb_last_error_message();
    EXPECT_EQ(report.num_ranks, 2u);
    EXPECT_EQ(report.num_layers, 1u);
}

TEST(RecordedDump, ANamedAndALaterRangeAreListedAndReadEach) {
    temporary_directory dir;
    const std::string path = dir / "run";
    one_token token;
    auto config = small_config(path, 10, 15);
    config.name = "draft";
    auto recorder = eplb::recorder::create(config);
    token.run(recorder, 10, 16);
    recorder.flush();
    recorder.rearm(30, 33, token.stream);
    token.run(recorder, 30, 34);
    recorder.flush();

    eplb_stats *none = nullptr;
    EXPECT_EQ(eplb_stats_load(path.c_str(), nullptr, &none), EPLB_STATUS_INCOMPLETE_DUMP);
    const std::string draft = path + "/draft";
    EXPECT_EQ(eplb_last_error_message(), path + " has no meta_info.json; dumps are in " + draft + ", " +
                                             draft + "/30-33: pass one of them");
    EXPECT_EQ(std::vector<double>(eplb::stats::load(draft).layer_loads(3)), chosen_loads(5));
    EXPECT_EQ(std::vector<double>(eplb::stats::load(draft + "/30-33").layer_loads(3)), chosen_loads(3));
}

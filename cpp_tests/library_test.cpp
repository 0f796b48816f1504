// Statuses, messages, versions, log.
#include <eplb_tools.h>
#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "files.h"

TEST(Library, VersionsMatchTheHeader) {
    EXPECT_EQ(eplb_abi_version(), EPLB_ABI_VERSION);
    EXPECT_STREQ(eplb_version_string(), "0.1.0");
    EXPECT_EQ(std::to_string(EPLB_VERSION_MAJOR) + "." + std::to_string(EPLB_VERSION_MINOR) + "." +
                  std::to_string(EPLB_VERSION_PATCH),
              eplb_version_string());
}

TEST(Library, StatusStringNamesEveryNumber) {
    EXPECT_STREQ(eplb_status_string(EPLB_STATUS_OK), "EPLB_STATUS_OK");
    EXPECT_STREQ(eplb_status_string(EPLB_STATUS_INVALID_PLACEMENT), "EPLB_STATUS_INVALID_PLACEMENT");
    EXPECT_STREQ(eplb_status_string(-7), "unknown status");
    EXPECT_STREQ(eplb_status_string(INT32_MAX), "unknown status");
}

TEST(Library, LastErrorMessageBelongsToItsThread) {
    EXPECT_EQ(eplb_suggest_num_slots(1, 0, 1, nullptr, nullptr), EPLB_STATUS_INVALID_ARGUMENT);
    const std::string mine = eplb_last_error_message();
    EXPECT_EQ(mine, "below is NULL");
    std::thread([] {
        EXPECT_STREQ(eplb_last_error_message(), "");
        uint32_t below = 0, above = 0;
        EXPECT_EQ(eplb_suggest_num_slots(0, 3, 1, &below, &above), EPLB_STATUS_INVALID_ARGUMENT);
        EXPECT_STREQ(eplb_last_error_message(), "0 experts on 3 ranks");
    }).join();
    EXPECT_EQ(eplb_last_error_message(), mine);

    uint32_t below = 0, above = 0;
    EXPECT_EQ(eplb_suggest_num_slots(4, 2, 4, &below, &above), EPLB_STATUS_OK);
    EXPECT_EQ(eplb_last_error_message(), mine) << "a successful call does not change it";
}

TEST(Library, LogReportsMissingRanksUntilTheCallbackIsRemoved) {
    using messages = std::vector<std::pair<eplb_log_level, std::string>>;
    messages seen;
    const auto record = [](void *user_data, eplb_log_level level, const char *message) {
        static_cast<messages *>(user_data)->emplace_back(level, message);
    };
    ASSERT_EQ(eplb_set_log_callback(record, &seen), EPLB_STATUS_OK);

    temporary_directory dir;
    std::filesystem::copy(data("dumps/dsv2lite-law"), dir / "dump");
    std::filesystem::remove(dir / "dump/rank5.safetensors");
    const std::string dump = dir / "dump";
    eplb_stats_options options = EPLB_STATS_OPTIONS_INIT;
    options.allow_missing_ranks = 1;
    eplb_stats *stats = nullptr;
    ASSERT_EQ(eplb_stats_load(dump.c_str(), &options, &stats), EPLB_STATUS_OK);
    eplb_stats_destroy(stats);
    ASSERT_EQ(seen.size(), 1u);
    EXPECT_EQ(seen[0].first, EPLB_LOG_LEVEL_WARNING);
    EXPECT_EQ(seen[0].second, dump + ": 1 of 8 ranks have no file and are left out: [5]");

    ASSERT_EQ(eplb_set_log_callback(nullptr, nullptr), EPLB_STATUS_OK);
    ASSERT_EQ(eplb_stats_load(dump.c_str(), &options, &stats), EPLB_STATUS_OK);
    eplb_stats_destroy(stats);
    EXPECT_EQ(seen.size(), 1u);
}

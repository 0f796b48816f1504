// Where a recorder's dump goes: the number of its file, its name, and recorders that share a path.
#include "recorder_fixture.h"

#include <algorithm>

namespace {

std::string refused(const eplb::recorder_config &config, eplb_status status = EPLB_STATUS_INVALID_ARGUMENT) {
    return refusal([&] { eplb::recorder::create(config); }, status);
}

} // namespace

// Two stages of two ranks each: layers 3 and 4, each counted by both ranks of its stage.
TEST(RecorderFiles, PipelineStagesWriteAFileOfEachRankOfTheWorld) {
    temporary_directory dir;
    one_token token;
    for (uint32_t world_rank = 0; world_rank < 4; world_rank++) {
        auto config = small_config(dir / "dump", 0, 2);
        config.rank = world_rank % 2;
        config.num_ranks = 2;
        config.file_rank = world_rank;
        config.num_files = 4;
        config.layer_ids = {world_rank < 2 ? 3 : 4};
        auto recorder = eplb::recorder::create(config);
        token.run(recorder, 0, 3, [&] {
            for (uint32_t times = 0; times <= world_rank; times++) {
                token.count(recorder, config.layer_ids[0]);
            }
        });
        recorder.flush();

        const dump_file file(dir / ("dump/rank" + std::to_string(world_rank) + ".safetensors"));
        EXPECT_EQ(file.metadata("rank"), std::to_string(world_rank));
        EXPECT_EQ(file.metadata("num_ranks"), "2");
        EXPECT_EQ(file.metadata("num_files"), "4");
        EXPECT_EQ(file.metadata("ep_rank"), std::to_string(world_rank % 2));
        EXPECT_EQ(file.tensor("1_" + std::to_string(config.layer_ids[0])), chosen(world_rank + 1));
    }
    const std::string meta = read_file(dir / "dump/meta_info.json");
    EXPECT_NE(meta.find("\"num_ranks\":2,\"num_files\":4,"), std::string::npos) << meta;
    EXPECT_NE(meta.find("\"layers\":[3]"), std::string::npos) << "file 0 writes it: " << meta;
}

TEST(RecorderFiles, OnlyTheRankOfTheFileDecidesWhoWritesTheMetaFile) {
    temporary_directory dir;
    one_token token;
    auto config = small_config(dir / "dump", 0, 1);
    config.file_rank = 1;
    config.num_files = 2;
    auto recorder = eplb::recorder::create(config);
    token.run(recorder, 0, 2);
    recorder.flush();
    EXPECT_TRUE(std::filesystem::exists(dir / "dump/rank1.safetensors"));
    EXPECT_FALSE(std::filesystem::exists(dir / "dump/meta_info.json"));
}

TEST(RecorderFiles, FilesOfRanksOfOneGroupHaveNoNewKeys) {
    temporary_directory dir;
    one_token token;
    for (const uint32_t num_files : {0u, 1u}) {
        auto config = small_config(dir / std::to_string(num_files), 0, 1);
        config.num_files = num_files;
        auto recorder = eplb::recorder::create(config);
        token.run(recorder, 0, 2);
        recorder.flush();
        const dump_file file(config.path + "/rank0.safetensors");
        EXPECT_EQ(file.metadata("num_files"), "(none)");
        EXPECT_EQ(file.metadata("ep_rank"), "(none)");
        EXPECT_EQ(read_file(config.path + "/meta_info.json").find("num_files"), std::string::npos);
    }
}

TEST(RecorderFiles, CreateRejectsFileRanksThatDoNotFit) {
    temporary_directory dir;
    auto config = small_config(dir / "dump", 0, 1);
    config.num_ranks = 2;
    config.file_rank = 4;
    config.num_files = 4;
    EXPECT_EQ(refused(config), "file_rank is 4, num_files 4; 0 to 3 expected");
    config.num_files = 0;
    EXPECT_EQ(refused(config),
              "config->file_rank is 4 and num_files 0; set num_files to the number of files of the dump");
    config.file_rank = 0;
    config.num_files = 1;
    EXPECT_EQ(refused(config),
              "num_files is 1, num_ranks 2; each rank writes a file, so at least 2 expected");
    config.num_files = 4;
    config.rank = 2;
    EXPECT_EQ(refused(config), "rank is 2, num_ranks 2; 0 to 1 expected");
    EXPECT_FALSE(std::filesystem::exists(dir / "dump"));
}

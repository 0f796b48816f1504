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

// One model with two shapes of layers: layer 3 has 8 experts of which 4 are chosen, layer 4 has 16 and 2.
TEST(RecorderFiles, RecordersOfTwoShapesShareThePathByName) {
    temporary_directory dir;
    one_token token;
    auto wide = small_config(dir / "dump", 0, 2), narrow = wide;
    wide.name = "E8-K4";
    narrow.name = "E16-K2";
    narrow.num_experts = 16;
    narrow.experts_per_token = 2;
    narrow.layer_ids = {4};
    auto first = eplb::recorder::create(wide), second = eplb::recorder::create(narrow);
    for (int64_t iteration = 0; iteration <= 2; iteration++) {
        first.begin_iteration(iteration, token.stream);
        second.begin_iteration(iteration, token.stream);
        token.count(first);
        second.count_ids(4, token.ids.data(), 2, nullptr, token.stream);
    }
    first.flush();
    second.flush();
    for (const auto *config : {&wide, &narrow}) {
        const std::string path = dir / ("dump/" + config->name);
        const auto stats = eplb::stats::load(path);
        EXPECT_EQ(stats.info().num_experts, config->num_experts);
        EXPECT_EQ(stats.info().experts_per_token, config->experts_per_token);
        const auto loads = stats.layer_loads(config->layer_ids[0]);
        EXPECT_EQ(loads[4], 2) << "expert 4, once in each iteration";
        EXPECT_EQ(loads[5], 0);
        eplb::generate_config generate;
        generate.expert_statistic_path = path;
        generate.output_path = dir / (config->name + ".yaml");
        generate.num_ranks = 2;
        generate.num_slots = config->num_experts + 2;
        EXPECT_EQ(eplb::generate(generate).num_slots, config->num_experts + 2);
    }
    EXPECT_FALSE(std::filesystem::exists(dir / "dump/rank0.safetensors"));
}

TEST(RecorderFiles, LiveRecorderKeepsItsFileAfterTheDump) {
    temporary_directory dir;
    one_token token;
    const auto config = small_config(dir / "dump", 0, 1);
    const std::string way_out = "give recorders of one path a name each";
    {
        auto first = eplb::recorder::create(config);
        EXPECT_NE(refused(config, EPLB_STATUS_WRITE_FAILED).find(way_out), std::string::npos);
        token.run(first, 0, 2);
        first.flush();
        const std::string bytes = read_file(dir / "dump/rank0.safetensors");
        const std::string message = refused(config, EPLB_STATUS_WRITE_FAILED);
        EXPECT_NE(message.find("rank0.safetensors: it is being written by"), std::string::npos) << message;
        EXPECT_NE(message.find(way_out), std::string::npos) << message;
        EXPECT_EQ(read_file(dir / "dump/rank0.safetensors"), bytes);
        EXPECT_EQ(partial_file(dir / "dump", "rank0.safetensors"), "")
            << "no file beside the dump's while the recorder lives";

        auto named = config;
        named.name = "draft";
        EXPECT_EQ(eplb::recorder::create(named).info().state, EPLB_RECORDER_STATE_WAITING);

        // The recorder itself replaces its file.
        first.reset(token.stream);
        EXPECT_NE(refused(config, EPLB_STATUS_WRITE_FAILED).find(way_out), std::string::npos);
        token.run(first, 0, 2, [&] {
            token.count(first);
            token.count(first);
        });
        first.flush();
        EXPECT_EQ(dump_file(dir / "dump/rank0.safetensors").tensor("0_3"), chosen(2));
    }
    auto second = eplb::recorder::create(config);
    token.run(second, 0, 2);
    second.flush();
    EXPECT_EQ(dump_file(dir / "dump/rank0.safetensors").tensor("0_3"), chosen(1));
}

TEST(RecorderFiles, CreateRejectsPathsThatAreNoDirectory) {
    auto config = small_config("-", 0, 1);
    EXPECT_EQ(
        refused(config, EPLB_STATUS_WRITE_FAILED),
        "cannot write -: a dump is a directory of several files, which standard output cannot be; ./- is a "
        "directory of that name");
    for (const std::string path : {"/dev/null", "/dev/stdout"}) {
        config.path = path;
        EXPECT_EQ(refused(config, EPLB_STATUS_WRITE_FAILED),
                  "cannot write " + path +
                      ": it is not a directory, which a dump of several files needs; choose another path");
    }
}

TEST(RecorderFiles, CreateRejectsNamesThatAreNoDirectory) {
    temporary_directory dir;
    auto config = small_config(dir / "dump", 0, 1);
    const auto with = [&](const char *name) {
        eplb_recorder_config c = config.c();
        c.name = name;
        eplb_recorder *recorder = nullptr;
        EXPECT_EQ(eplb_recorder_create(&c, &recorder), EPLB_STATUS_INVALID_ARGUMENT) << name;
        size_t bytes = 0;
        EXPECT_EQ(eplb_recorder_memory_required(&c, &bytes, &bytes), EPLB_STATUS_INVALID_ARGUMENT) << name;
        return std::string(eplb_last_error_message());
    };
    EXPECT_EQ(with(""), "config->name is empty");
    EXPECT_EQ(with("a/b"), "name \"a/b\" has a slash; it names one directory in the path");
    EXPECT_EQ(with(".."), "name \"..\" begins with a dot");
    EXPECT_EQ(with("100-200"),
              "name \"100-200\" is a range of iterations, which eplb_recorder_rearm() uses as a directory");
    EXPECT_NE(with(std::string(201, 'x').c_str()).find("has 201 bytes, at most 200 expected"),
              std::string::npos);
    EXPECT_NE(with("\xff").find("config->name"), std::string::npos);
    EXPECT_FALSE(std::filesystem::exists(dir / "dump"));
}
